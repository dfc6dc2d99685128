"""Where something is measured: versions, clocks, governors, temperatures, load, limits."""

from __future__ import annotations

import os
import platform
import re
import resource
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

import npumatmul
from npumatmul.bench.record import Machine
from npumatmul.device.device import Device
from npumatmul.host import kernels

__all__ = ["clocks", "describe_machine", "governors", "temperatures"]

_ROOT = Path("/")
#: Folders of frequency scaling by what they scale (facts 9.5); the NPU's has a name for each chip.
_DEVFREQ = {"npu": "sys/class/devfreq/*.npu", "ddr": "sys/class/devfreq/dmc"}
_CPUFREQ = "sys/devices/system/cpu/cpufreq/policy*"
#: What the vendor's driver says about its clock; only root reads it.
_NPU_CLOCK = "sys/kernel/debug/rknpu/freq"


def describe_machine(device: Device) -> Machine:
    """Facts that a figure means nothing without.

    Parameters
    ----------
    device : Device

    Returns
    -------
    Machine

    Examples
    --------
    >>> with Device("sim:rk3588") as device:
    ...     describe_machine(device).timed_on
    'CPU simulation of rk3588'
    """
    return Machine(
        device=device.name,
        simulated=device.simulated,
        chip=device.chip.soc,
        npu_cores=device.chip.cores,
        runtime=device.api_version,
        driver=device.driver_version,
        npumatmul=npumatmul.__version__,
        python=sys.version.split()[0],
        numpy=np.__version__,
        kernel=platform.release(),
        host_kernels=kernels.instruction_set(),
        cpu=_cpu_name(),
        cpus=os.cpu_count() or 1,
        machine=platform.machine(),
        descriptor_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        clocks=clocks(),
        governors=governors(),
        temperatures=temperatures(),
        load=os.getloadavg(),
    )


def clocks(root: Path = _ROOT) -> dict[str, int]:
    """Clocks in Hz, as far as they can be read: ``npu``, ``ddr``, and ``cpu<first of its group>``."""
    found = {name: _number(folder / "cur_freq") for name, folder in _scaled(root).items()}
    npu = _number(root / _NPU_CLOCK)  # what the driver set, where devfreq tells what it was asked for
    if npu is not None:
        found["npu"] = npu
    for name, folder in _cpus(root).items():
        khz = _number(folder / "scaling_cur_freq")
        found[name] = None if khz is None else khz * 1000
    return {name: hertz for name, hertz in found.items() if hertz is not None}


def governors(root: Path = _ROOT) -> dict[str, str]:
    """What chooses the clocks, by the names of `clocks`."""
    found = {name: _first_line(folder / "governor") for name, folder in _scaled(root).items()}
    found.update({name: _first_line(folder / "scaling_governor") for name, folder in _cpus(root).items()})
    return {name: governor for name, governor in found.items() if governor}


def temperatures(root: Path = _ROOT) -> dict[str, float]:
    """Degrees Celsius by thermal zone."""
    found: dict[str, float] = {}
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        millidegrees = _number(folder / "temp")
        if millidegrees is not None:
            kind = (_first_line(folder / "type") or "").lower().removesuffix("-thermal")
            name = re.sub("[^a-z0-9]+", "_", kind).strip("_")[:24]
            if not name[:1].isalpha() or name in found:
                name = f"zone{folder.name.removeprefix('thermal_zone')}_{name}".rstrip("_")
            found[name] = millidegrees / 1000
    return found


def _scaled(root: Path) -> dict[str, Path]:
    return {name: folder for name, pattern in _DEVFREQ.items() for folder in root.glob(pattern)}


def _cpus(root: Path) -> dict[str, Path]:
    return {f"cpu{folder.name.removeprefix('policy')}": folder for folder in sorted(root.glob(_CPUFREQ))}


def _first_line(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip().partition("\n")[0][:100]
    except OSError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(_first_line(path) or "")
    except ValueError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()[:100]
    except OSError:
        pass
    return platform.processor() or "unknown"
