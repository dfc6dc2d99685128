"""Processors of this machine: how many of the fast ones this process may use."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

__all__ = ["fast_processors"]

_CPUS = Path("/sys/devices/system/cpu")


@lru_cache(maxsize=1)
def fast_processors() -> int:
    """How many processors of the fastest kind this process may run on; all where they are of one kind.

    A product that is shared equally is done when the slowest thread is, so the small cores of a board are left alone.
    """
    allowed = os.sched_getaffinity(0)
    speeds = {cpu: _capacity(cpu) for cpu in allowed}
    fastest = max(speeds.values())
    return sum(speed == fastest for speed in speeds.values())


def _capacity(cpu: int) -> int:
    """What the kernel says of a processor's speed, as of 1024; 0 where it says nothing."""
    try:
        return int((_CPUS / f"cpu{cpu}" / "cpu_capacity").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0
