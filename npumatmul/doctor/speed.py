"""Checks of what makes a board slow: governors, clocks, heat."""

from __future__ import annotations

from collections.abc import Iterator

from npumatmul.board.readings import (
    clocks,
    governors,
    highest_clocks,
    npu_load,
    slowed_down,
    temperature_limits,
    temperatures,
)
from npumatmul.doctor.finding import Finding, Level
from npumatmul.doctor.machine import Machine

__all__ = ["check_governors", "check_heat"]

#: What a slow clock of each costs, as others measured it (peers B3).
_COSTS = {
    "npu": "A clock of 600 instead of 1000 MHz cost others 9 % of a token.",
    "ddr": "Reading weights decides how fast tokens come: memory at half its clock cost others half to three quarters "
    "of the speed.",
    "cpu": "What is between products runs there: a governor that kept 408 MHz cost others 40 % of the speed.",
}
_NAMES = {"npu": "NPU", "ddr": "memory"}
#: Degrees below the limit at which it is worth saying.
_NEAR = 5.0


def check_governors(machine: Machine) -> Iterator[Finding]:
    """Whether clocks stay at their highest."""
    if machine.soc is None:
        return
    found, most = clocks(machine.root), highest_clocks(machine.root)
    chosen = governors(machine.root)
    lazy = []
    for name, governor in chosen.items():
        kind = "cpu" if name.startswith("cpu") else name
        where = _NAMES.get(kind, name)
        now = f", now at {found[name] / 1e6:.0f} MHz" if name in found else ""
        top = f" of {most[name] / 1e6:.0f}" if name in most and name in found else ""
        if governor == "performance":
            continue
        slow = name in found and name in most and found[name] < 0.9 * most[name]
        fixed = governor == "userspace" and not slow
        if fixed:
            continue
        lazy.append(name)
        yield Finding(
            Level.WARNING if slow or governor == "powersave" else Level.NOTE, "governor",
            f"{where}: {governor}{now}{top}", _COSTS[kind], _command(name),
        )  # fmt: skip
    if chosen and not lazy:
        told = ", ".join(f"{_NAMES.get(name, name)} {found[name] / 1e6:.0f} MHz" for name in chosen if name in found)
        yield Finding(Level.OK, "clocks", told or "all governors are performance")
    if machine.has_driver and "npu" not in chosen:
        yield Finding(
            Level.NOTE, "clocks", "the NPU's clock cannot be read",
            "This kernel has no /sys/class/devfreq/*.npu; its driver tells it to root (facts 9.5).",
            "sudo cat /sys/kernel/debug/rknpu/freq",
        )  # fmt: skip
    load = npu_load(machine.root)
    if load and any(part.strip(" :%") not in ("", "0") for part in _percents(load)):
        yield Finding(
            Level.NOTE, "load", f"the NPU is at work: {load}", "What is measured meanwhile is measured beside that."
        )


def _percents(load: str) -> list[str]:
    """The numbers before percent signs."""
    return [part.split()[-1].rsplit(":", 1)[-1] for part in load.split("%")[:-1] if part.split()]


def _command(name: str) -> str:
    """What sets a governor."""
    place = {
        "npu": "/sys/class/devfreq/*.npu/governor",
        "ddr": "/sys/class/devfreq/dmc/governor",
    }.get(name, f"/sys/devices/system/cpu/cpufreq/policy{name.removeprefix('cpu')}/scaling_governor")
    return f"echo performance | sudo tee {place}"


def check_heat(machine: Machine) -> Iterator[Finding]:
    """Whether heat slows the board down, or soon will."""
    if machine.soc is None:
        return
    for kind in slowed_down(machine.root):
        yield Finding(
            Level.WARNING, "heat", f"the kernel slows {kind} down", "The board is too hot: clocks are lowered.",
            "give it a heat sink or a fan",
        )  # fmt: skip
    limits, found = temperature_limits(machine.root), temperatures(machine.root)
    for zone, degrees in found.items():
        if degrees >= limits.get(zone, float("inf")) - _NEAR:
            yield Finding(
                Level.WARNING, "heat",
                f"{zone} has {degrees:.0f} degrees; from {limits[zone]:.0f} on clocks are lowered",
                "What is measured now is slower in a minute.", "let it cool down, or give it a heat sink or a fan",
            )  # fmt: skip
    if found:
        zone = max(found, key=lambda each: found[each])
        yield Finding(Level.OK, "heat", f"at most {found[zone]:.0f} degrees ({zone})")
