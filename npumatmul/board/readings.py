"""Clocks, governors, temperatures and load at this moment, from the files of Linux below any root (facts 9.5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Clock", "Readings", "SlowdownWatch", "npu_folders", "read_board"]

#: Of clocks by name: folders that tell them. The kernel names an NPU by its address, which every chip has its own of.
_DEVFREQ = {"npu": "sys/class/devfreq/*npu*", "ddr": "sys/class/devfreq/dmc"}
_POLICIES = "sys/devices/system/cpu/cpufreq/policy*"
#: What the driver says from 0.8.2 on; most need root.
_DRIVER = ("sys/kernel/debug/rknpu", "proc/debug/rknpu", "proc/rknpu")


@dataclass(frozen=True)
class Clock:
    """A clock; what cannot be read is None.

    Attributes
    ----------
    hz, highest_hz : int or None
        Now, and the highest that it may have.
    governor : str or None
    """

    hz: int | None = None
    highest_hz: int | None = None
    governor: str | None = None


@dataclass(frozen=True)
class Readings:
    """What could be read.

    Attributes
    ----------
    clocks : mapping of str to Clock
        ``"npu"``, ``"ddr"``, and ``"cpu<n>"`` for each group of processors, by the first of them.
    temperatures : mapping of str to float
        Degrees Celsius by the name of the zone.
    limits : mapping of str to float
        Degrees from which the kernel slows things down.
    cooling : mapping of str to int
        What the kernel slows down now: states above 0, by the name of what it cools. Fans do not count.
    npu_load : str or None
        As the driver says it.
    load : float or None
        Processes that were at work on average in the last minute.
    """

    clocks: Mapping[str, Clock] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    cooling: Mapping[str, int] = field(default_factory=dict)
    npu_load: str | None = None
    load: float | None = None

    @property
    def hottest(self) -> tuple[str, float] | None:
        """The hottest zone, and its temperature."""
        return max(self.temperatures.items(), key=lambda zone: zone[1], default=None)

    def facts(self) -> dict[str, object]:
        """All of it by one name each, for files."""
        facts: dict[str, object] = {}
        for name, clock in self.clocks.items():
            values = {"hz": clock.hz, "highest_hz": clock.highest_hz, "governor": clock.governor}
            facts |= {f"{name}_{what}": value for what, value in values.items() if value is not None}
        facts |= {f"{name}_celsius": value for name, value in self.temperatures.items()}
        if self.cooling:
            facts["slowed_down"] = ", ".join(self.cooling)
        if self.npu_load is not None:
            facts["npu_load"] = self.npu_load
        if self.load is not None:
            facts["load"] = self.load
        return facts


def npu_folders(root: Path = Path("/")) -> list[Path]:
    """Folders with the clocks of NPUs."""
    return sorted(root.glob(_DEVFREQ["npu"]))


def read_board(root: Path = Path("/")) -> Readings:
    """Read everything that this user may.

    Parameters
    ----------
    root : Path
        Below which the files are looked for.

    Examples
    --------
    >>> isinstance(read_board().temperatures, dict)
    True
    """
    clocks: dict[str, Clock] = {}
    for name, pattern in _DEVFREQ.items():
        for folder in sorted(root.glob(pattern)):
            clocks[name] = Clock(
                _number(folder / "cur_freq"), _number(folder / "max_freq"), _line(folder / "governor")
            )
    from_driver = next((hz for folder in _DRIVER if (hz := _number(root / folder / "freq")) is not None), None)
    if from_driver:  # it knows best, where it may be asked
        known = clocks.get("npu", Clock())
        clocks["npu"] = Clock(from_driver, known.highest_hz, known.governor)
    for folder in sorted(root.glob(_POLICIES)):
        hz, highest = (_number(folder / f"scaling_{which}_freq", 1000) for which in ("cur", "max"))
        clocks[folder.name.replace("policy", "cpu")] = Clock(hz, highest, _line(folder / "scaling_governor"))
    temperatures, limits = _zones(root)
    loads = _line(root / "proc/loadavg")
    return Readings(
        clocks,
        temperatures,
        limits,
        _cooling(root),
        next((text for folder in _DRIVER if (text := _line(root / folder / "load"))), None),
        _float(loads.split()[0]) if loads else None,
    )


class SlowdownWatch:
    """Says when a board was slower than it was before: by its clocks, its temperature, and what its kernel does.

    Parameters
    ----------
    share : float
        A clock below this share of the fastest that was seen counts as slow.
    """

    def __init__(self, share: float = 0.75) -> None:
        self.share = share
        self._fastest: dict[str, int] = {}

    def note(self, now: Readings, only: tuple[str, ...] = ()) -> list[str]:
        """What slows the board down now; nothing where all is well.

        Parameters
        ----------
        now : Readings
            While or just after something runs.
        only : tuple of str
            Beginnings of names of clocks that count; all by default.

        Examples
        --------
        >>> watch = SlowdownWatch()
        >>> watch.note(Readings({"npu": Clock(1_000_000_000)}))
        []
        >>> watch.note(Readings({"npu": Clock(600_000_000)}))
        ['npu at 600 of 1000 MHz']
        """
        reasons = []
        for name, clock in now.clocks.items():
            if clock.hz is None or (only and not name.startswith(only)):
                continue
            fastest = self._fastest[name] = max(clock.hz, self._fastest.get(name, 0))
            if clock.hz < self.share * fastest:
                reasons.append(f"{name} at {clock.hz / 1e6:.0f} of {fastest / 1e6:.0f} MHz")
        reasons += [f"the kernel slows {name} down" for name in now.cooling]
        reasons += [
            f"{zone} has {now.temperatures[zone]:.0f} of {limit:.0f} degrees"
            for zone, limit in now.limits.items()
            if now.temperatures.get(zone, limit - 1) >= limit
        ]
        return reasons


def _zones(root: Path) -> tuple[dict[str, float], dict[str, float]]:
    temperatures: dict[str, float] = {}
    limits: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        thousandths = _number(zone / "temp")
        if thousandths is None:
            continue
        name = (_line(zone / "type") or zone.name).removesuffix("-thermal").removesuffix("_thermal")
        temperatures[name] = thousandths / 1000
        trips = [
            trip_point
            for trip in sorted(zone.glob("trip_point_*_type"))
            if _line(trip) == "passive"
            and (trip_point := _number(trip.with_name(trip.name.replace("_type", "_temp")))) is not None
        ]
        if trips:
            # the first passive point is where the kernel begins to watch, the next one what it holds the zone to
            limits[name] = max(trips) / 1000
    return temperatures, limits


def _cooling(root: Path) -> dict[str, int]:
    found = {}
    for device in sorted(root.glob("sys/class/thermal/cooling_device*")):
        name, state = _line(device / "type") or device.name, _number(device / "cur_state")
        if state and "fan" not in name:
            found[name.removeprefix("thermal-").removeprefix("devfreq-")] = state
    return found


def _line(path: Path) -> str | None:
    """The first line of a file, or None."""
    try:
        return path.read_text(errors="replace").strip().partition("\n")[0] or None
    except (OSError, ValueError):
        return None


def _number(path: Path, factor: int = 1) -> int | None:
    text = _line(path)
    try:
        return None if text is None else int(text) * factor
    except ValueError:
        return None


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
