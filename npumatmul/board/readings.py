"""Clocks, governors, temperatures and what slows a board down, from the files of Linux below any root (facts 9.5)."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "cache_bytes",
    "clocks",
    "first_line",
    "governors",
    "highest_clocks",
    "npu_load",
    "number",
    "opened",
    "slowed_down",
    "temperature_limits",
    "temperatures",
]

_ROOT = Path("/")
#: Folders of frequency scaling by what they scale; the NPU's has a name for each chip.
_DEVFREQ = {"npu": "sys/class/devfreq/*.npu", "ddr": "sys/class/devfreq/dmc"}
_CPUFREQ = "sys/devices/system/cpu/cpufreq/policy*"
#: What the vendor's driver says, from 0.8.2 on; only root reads it.
_DRIVER = "sys/kernel/debug/rknpu"
_LOADS = (f"{_DRIVER}/load", "proc/debug/rknpu/load", "proc/rknpu/load")


def clocks(root: Path = _ROOT) -> dict[str, int]:
    """Clocks in Hz, as far as they can be read: ``npu``, ``ddr``, and ``cpu<first of its group>``."""
    found = {name: number(folder / "cur_freq") for name, folder in _scaled(root).items()}
    npu = number(root / _DRIVER / "freq")  # what the driver set, where devfreq tells what it was asked for
    if npu is not None:
        found["npu"] = npu
    found |= {name: _times_1000(number(folder / "scaling_cur_freq")) for name, folder in _cpus(root).items()}
    return {name: hertz for name, hertz in found.items() if hertz is not None}


def highest_clocks(root: Path = _ROOT) -> dict[str, int]:
    """The highest that each clock may be now, in Hz, by the names of `clocks`."""
    found = {name: number(folder / "max_freq") for name, folder in _scaled(root).items()}
    found |= {name: _times_1000(number(folder / "scaling_max_freq")) for name, folder in _cpus(root).items()}
    return {name: hertz for name, hertz in found.items() if hertz is not None}


def governors(root: Path = _ROOT) -> dict[str, str]:
    """What chooses the clocks, by the names of `clocks`."""
    found = {name: first_line(folder / "governor") for name, folder in _scaled(root).items()}
    found |= {name: first_line(folder / "scaling_governor") for name, folder in _cpus(root).items()}
    return {name: governor for name, governor in found.items() if governor}


def temperatures(root: Path = _ROOT) -> dict[str, float]:
    """Degrees Celsius by thermal zone."""
    return {name: degrees for name, degrees, _ in _zones(root)}


def temperature_limits(root: Path = _ROOT) -> dict[str, float]:
    """Degrees Celsius that the kernel slows things down to stay below, by the names of `temperatures`."""
    found = {}
    for name, _, zone in _zones(root):
        points = [
            degrees
            for kind in zone.glob("trip_point_*_type")
            if first_line(kind) == "passive"
            and (degrees := number(kind.with_name(kind.name.replace("_type", "_temp")))) is not None
        ]
        if points:  # at the first one the kernel begins to look, the last one is what it keeps to
            found[name] = max(points) / 1000
    return found


def slowed_down(root: Path = _ROOT) -> list[str]:
    """What the kernel slows down because of heat: processors, the NPU, ... as it calls them."""
    found = []
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        kind, state = first_line(device / "type") or device.name, number(device / "cur_state") or 0
        if state > 0 and "fan" not in kind.lower():
            found.append(kind)
    return found


def npu_load(root: Path = _ROOT) -> str | None:
    """How busy the NPU's cores are, as the vendor's driver says it."""
    return next((text for place in _LOADS if (text := first_line(root / place))), None)


def cache_bytes(root: Path = _ROOT) -> int:
    """Bytes of the largest cache of the first processor; 4 MiB where nothing says it."""
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [4 << 20]
    for place in root.glob("sys/devices/system/cpu/cpu0/cache/index*/size"):
        found = re.fullmatch(r"(\d+)([KM])", first_line(place) or "")
        if found:
            sizes.append(int(found[1]) * units[found[2]])
    return max(sizes[1:], default=sizes[0])


def opened(path: Path) -> BinaryIO:
    """A regular file, to be read; of others some never end, and others do something when they are opened."""
    if stat.S_ISREG(path.stat().st_mode):
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb")
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # as it is now
            return file
        file.close()
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def first_line(path: Path) -> str | None:
    """The first line of a file, or None where there is nothing to read."""
    try:
        with opened(path) as file:
            return file.readline(100).decode("utf-8", "replace").strip()
    except (OSError, ValueError):
        return None


def number(path: Path) -> int | None:
    """The whole number that a file holds, or None."""
    try:
        return int(first_line(path) or "")
    except ValueError:
        return None


def _times_1000(value: int | None) -> int | None:
    return None if value is None else 1000 * value


def _scaled(root: Path) -> dict[str, Path]:
    return {name: folder for name, pattern in _DEVFREQ.items() for folder in sorted(root.glob(pattern))}


def _cpus(root: Path) -> dict[str, Path]:
    return {f"cpu{folder.name.removeprefix('policy')}": folder for folder in sorted(root.glob(_CPUFREQ))}


def _zones(root: Path) -> Iterator[tuple[str, float, Path]]:
    """Name, degrees and folder of each thermal zone."""
    names: set[str] = set()
    for folder in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        thousandths = number(folder / "temp")
        if thousandths is None:
            continue
        kind = (first_line(folder / "type") or "").lower().removesuffix("-thermal")
        name = re.sub("[^a-z0-9]+", "_", kind).strip("_")[:24]
        if not name[:1].isalpha() or name in names:
            name = f"zone{folder.name.removeprefix('thermal_zone')}_{name}".rstrip("_")
        names.add(name)
        yield name, thousandths / 1000, folder
