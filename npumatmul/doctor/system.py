"""Checks of the chip, the kernel, its drivers and their nodes."""

from __future__ import annotations

from collections.abc import Iterator

from npumatmul.doctor.finding import Finding, Level
from npumatmul.doctor.machine import Machine
from npumatmul.rknn.socs import SOCS
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["check_chip", "check_driver", "check_kernel", "check_nodes"]

#: Chips of the vendor that have an NPU without the matmul API (facts 3.1).
_WITHOUT = ("rk1808", "rv1103", "rv1106", "rv1109", "rv1126", "rk3399pro", "rk2118")
#: The driver that is advised, and the one that users of language models were told to have (facts 11.2).
_ADVISED, _FOR_MODELS = RuntimeVersion(0, 9, 2), RuntimeVersion(0, 9, 6)


def check_chip(machine: Machine) -> Iterator[Finding]:
    """Whether there is an NPU with the matmul API."""
    board = f" ({machine.model})" if machine.model else ""
    if machine.soc is not None:
        yield Finding(Level.OK, "chip", f"{machine.soc.upper()}{board}")
        return
    names = [name.partition(",")[2] for name in machine.compatible if name.startswith("rockchip,")]
    known = next((name for name in names if name.startswith(_WITHOUT)), None)
    if known is not None:
        yield Finding(
            Level.ERROR, "chip", f"{known.upper()}{board} has an NPU, but no matmul API",
            "The vendor's matmul functions exist for " + ", ".join(each.upper() for each in SOCS) + " alone.",
            "use the simulator, NPUMATMUL_DEVICE=sim, or another board",
        )  # fmt: skip
    elif names:
        yield Finding(
            Level.ERROR, "chip", f"{names[-1].upper()}{board} is no chip with the matmul API that is known",
            "Only chips that are known are used: layouts and limits differ between them.",
            "if it is one of " + ", ".join(SOCS) + ": export NPUMATMUL_SOC=<name>",
        )  # fmt: skip
    elif machine.compatible:
        yield Finding(Level.NOTE, "chip", f"{machine.compatible[0]} is no Rockchip machine", "There is no NPU to use.")
    else:
        yield Finding(
            Level.NOTE, "chip", "no board: there is no device tree here",
            "Where no device is named the simulator computes. Its results are those of the NPU; its speed is that of "
            "this CPU, and says nothing of a chip: `npumatmul plan` and `npumatmul bench` print modelled times.",
        )  # fmt: skip


def check_kernel(machine: Machine) -> Iterator[Finding]:
    """Android, containers, and kernels that are known to matter."""
    if machine.soc is None:
        return
    yield Finding(Level.OK, "kernel", machine.kernel)
    if machine.is_android:
        yield Finding(
            Level.WARNING, "Android", "the system is Android",
            "Its librknn_api_android.so has no matmul functions (facts 1.8), and programs may load only what their "
            "app brings along.",
            "bring librknnrt.so for arm64 along, and set NPUMATMUL_LIBRARY to its path",
        )  # fmt: skip
    if machine.container is not None:
        yield Finding(
            Level.NOTE, "container", f"this runs in a container ({machine.container})",
            "It has to be given the NPU's device node, the device tree and the runtime library (facts 11.2).",
            "docker run --device /dev/dri -v /proc/device-tree/compatible:/proc/device-tree/compatible "
            "-v /usr/lib/librknnrt.so:/usr/lib/librknnrt.so ...",
        )  # fmt: skip


def check_driver(machine: Machine) -> Iterator[Finding]:
    """Whether the vendor's driver is there, and new enough."""
    if machine.soc is None:
        return
    if not machine.has_driver:
        if machine.has_rocket:
            yield Finding(
                Level.ERROR, "driver", "the NPU belongs to rocket, the open driver of mainline kernels",
                "The vendor's runtime speaks to the vendor's driver, rknpu, only; rocket serves Mesa's Teflon, which "
                "runs whole TFLite models and has no matmul functions.",
                "boot a kernel of the vendor's line (5.10 or 6.1 of Rockchip, Armbian's 'vendor' branch)",
            )  # fmt: skip
        else:
            yield Finding(
                Level.ERROR, "driver", f"kernel {machine.kernel} has no driver of the NPU",
                "The vendor's driver, rknpu, is a part of the vendor's kernels, and some third-party firmware leaves "
                "it out (facts 11.2).",
                "install a kernel with CONFIG_ROCKCHIP_RKNPU=y, and look at: sudo dmesg | grep -i rknpu",
            )  # fmt: skip
        return
    if machine.has_rocket:
        yield Finding(
            Level.WARNING, "driver", "rocket is loaded beside rknpu", "Only one of them can have the NPU.",
            "echo blacklist rocket | sudo tee /etc/modprobe.d/rocket.conf, and reboot",
        )  # fmt: skip
    version = machine.driver_version
    if version is None:
        yield Finding(
            Level.NOTE, "driver", "rknpu is there; its version cannot be read",
            "It stands in debugfs, which only root reads (facts 11.1).", "sudo cat /sys/kernel/debug/rknpu/version",
        )  # fmt: skip
        return
    number = RuntimeVersion.parse(version)
    if number is not None and number < _ADVISED:
        yield Finding(
            Level.WARNING, "driver", f"rknpu {version} is older than 0.9.2",
            "The vendor advises 0.9.2 or later and to update the driver first where something is wrong; results that "
            "change from run to run may be the driver's fault (facts 11.2). No SRAM for the NPU before it.",
            "install a newer kernel of the board's vendor",
        )  # fmt: skip
    elif number is not None and number < _FOR_MODELS:
        yield Finding(
            Level.NOTE, "driver", f"rknpu {version}",
            "Failed runs of language models and core masks that were refused went away with 0.9.6 to 0.9.8 for some "
            "(facts 11.2).",
            "if runs fail, install a newer kernel of the board's vendor",
        )  # fmt: skip
    else:
        yield Finding(Level.OK, "driver", f"rknpu {version}")


def check_nodes(machine: Machine) -> Iterator[Finding]:
    """Whether the driver can be spoken to by this user."""
    if machine.soc is None or not machine.has_driver:
        return
    nodes = machine.npu_nodes
    if not nodes:
        yield Finding(
            Level.ERROR, "device node", "there is no device node of the NPU",
            "Programs speak to the driver through /dev/dri/renderD129 or the like (facts 11.2).",
            "in a container: --device /dev/dri; else look at: sudo dmesg | grep -i rknpu",
        )  # fmt: skip
        return
    usable = [each for each in nodes if each.usable]
    if usable:
        yield Finding(Level.OK, "device node", ", ".join(each.path for each in usable))
        return
    closed = nodes[0]
    group = _group(machine, closed.group)
    yield Finding(
        Level.ERROR, "device node", f"{closed.path} cannot be opened by this user (its group is {group})",
        "The runtime cannot create a context then, and reports that the driver is missing.",
        f"sudo usermod -aG {group} $USER, and log in again",
    )  # fmt: skip


def _group(machine: Machine, number: int) -> str:
    """The name of a group, as that machine knows it."""
    for line in (machine.text("etc/group") or "").splitlines():
        name, _, rest = line.partition(":")
        if rest.split(":")[1:2] == [str(number)]:
            return name
    return str(number)
