"""Where something was measured: versions, clocks, governors, limits."""

from __future__ import annotations

import os
import platform
import resource
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

import npumatmul
from npumatmul.device.device import Device
from npumatmul.host import kernels

__all__ = ["describe_machine"]

#: Files that tell clocks and governors on a board (facts 9.5); most need root, absent ones are left out.
CLOCK_FILES = {
    "npu_hz": ("/sys/kernel/debug/rknpu/freq", "/sys/class/devfreq/fdab0000.npu/cur_freq",
               "/sys/class/devfreq/fde40000.npu/cur_freq", "/sys/class/devfreq/ff300000.npu/cur_freq"),
    "ddr_hz": ("/sys/class/devfreq/dmc/cur_freq",),
    "ddr_governor": ("/sys/class/devfreq/dmc/governor",),
    "cpu_governor": ("/sys/devices/system/cpu/cpufreq/policy0/scaling_governor",),
    "cpu_khz": ("/sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq",),
}  # fmt: skip


def describe_machine(device: Device) -> dict[str, object]:
    """Facts that a figure means nothing without.

    Parameters
    ----------
    device : Device

    Returns
    -------
    dict
        JSON-serialisable: device, whether it is simulated, chip, versions, clocks where they can be read, CPU, time.

    Examples
    --------
    >>> with Device("sim:rk3588") as device:
    ...     describe_machine(device)["timed_on"]
    'CPU simulation of rk3588'
    """
    facts: dict[str, object] = {
        "device": device.name,
        "timed_on": f"CPU simulation of {device.chip.soc}" if device.simulated else f"NPU of {device.chip.soc}",
        "chip": device.chip.soc,
        "npu_cores": device.chip.cores,
        "runtime": device.api_version,
        "driver": device.driver_version,
        "npumatmul": npumatmul.__version__,
        "host_kernels": kernels.instruction_set(),
        "cpu": _cpu_name(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": sys.version.split()[0],
        "numpy": np.__version__,
        "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    for name, places in CLOCK_FILES.items():
        value = next((text for text in map(_first_line, places) if text), None)
        if value is not None:
            facts[name] = value
    return facts


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().strip().partition("\n")[0]
    except OSError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
