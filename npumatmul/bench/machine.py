"""Where something is measured: versions, clocks, governors, temperatures, load, limits."""

from __future__ import annotations

import os
import platform
import resource
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

import npumatmul
from npumatmul.bench.record import Machine
from npumatmul.board.readings import clocks, governors, temperatures
from npumatmul.device.device import Device
from npumatmul.host import kernels

__all__ = ["describe_machine"]


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
        simulated_runs=device.simulated_runs,
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Hardware")):
                return line.partition(":")[2].strip()[:100]
    except OSError:
        pass
    return platform.processor() or "unknown"
