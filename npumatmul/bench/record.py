"""A run of `npumatmul bench` as it is saved: where it was measured, what was asked for, and every time of every case.

Two forms hold the same. JSON is one object: ``format``, ``version``, ``machine``, ``settings`` and ``rows``. JSON Lines
has all but the rows in its first line, and a row in each of the others, so that a long run can be followed. What is
read back may have been sent by somebody else, so that everything in it is checked.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any, TypeAlias

from npumatmul.bench.statistics import summarise
from npumatmul.errors import UnusableFileError
from npumatmul.files.reading import parse_json, read_text, shown

__all__ = ["FORMAT", "VERSION", "Machine", "Record", "Row", "Value", "read_record"]

FORMAT = "npumatmul-bench"
VERSION = 1

#: What a field of a case, a figure or a setting may be.
Value: TypeAlias = str | int | float | bool | None

#: More than any run has; a file beyond them was made for something else.
_FILE_BYTES, _ROWS, _FIELDS, _SAMPLES, _TEXT = 1 << 28, 100_000, 64, 1_000_000, 1000
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Machine:
    """Where something was measured, without which its figures mean nothing.

    Attributes
    ----------
    device : str
        Device string.
    simulated : bool
        Whether times are those of a CPU that simulates the chip.
    simulated_runs : str
        What its runs did other than to compute as fast as the CPU could; empty where they did just that.
    chip : str
    npu_cores : int
    runtime, driver : str
        Versions of the runtime library and of the kernel's driver.
    npumatmul, python, numpy, kernel : str
        Versions.
    host_kernels : str
        Instructions that the host's kernels use.
    cpu : str
    cpus : int
    machine : str
        Architecture of the CPU.
    descriptor_limit : int
        Files that the process may have open.
    time : str
        When it began, ISO 8601 with its zone.
    clocks : mapping of str to int
        Hertz, of what could be read: ``npu``, ``ddr``, ``cpu0``, ...
    governors : mapping of str to str
        By the same names.
    temperatures : mapping of str to float
        Degrees Celsius by name of the zone.
    load : sequence of float
        Processes that wanted to run, over 1, 5 and 15 minutes.
    """

    device: str
    simulated: bool
    chip: str
    npu_cores: int
    runtime: str
    driver: str
    npumatmul: str
    python: str
    numpy: str
    kernel: str
    host_kernels: str
    cpu: str
    cpus: int
    machine: str
    descriptor_limit: int
    time: str
    clocks: Mapping[str, int] = field(default_factory=dict)
    governors: Mapping[str, str] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    load: Sequence[float] = ()
    simulated_runs: str = ""

    @property
    def timed_on(self) -> str:
        """What everything that is printed or drawn says about its times."""
        remark = f", {self.simulated_runs}" if self.simulated_runs else ""
        return f"{'CPU simulation' if self.simulated else 'NPU'} of {self.chip}{remark}"

    def flat(self) -> dict[str, Value]:
        """Every fact under a name of its own, for a line of a table."""
        facts: dict[str, Value] = {"timed_on": self.timed_on}
        for name, value in asdict(self).items():
            if isinstance(value, Mapping):
                facts.update({f"{name}_{key}": each for key, each in value.items()})
            elif isinstance(value, (list, tuple)):
                facts[name] = " ".join(str(each) for each in value)
            else:
                facts[name] = value
        return facts


@dataclass(frozen=True)
class Row:
    """One case of a run.

    Attributes
    ----------
    what : str
        Which measurement it belongs to, such as ``"matmul"`` or ``"bandwidth"``.
    case : mapping of str to value
        Fields that tell the case from the others of that measurement, such as ``type``, ``m``, ``k``, ``n``, ``layout``
        and ``cores``. Rows with the same ones are compared between runs.
    seconds : mapping of str to sequence of float
        Every repetition of what was timed, by its name; the first one is what the case is about.
    figures : mapping of str to value
        What was worked out of the times, and what else is to be known, such as ``gops`` or ``checked``.
    modelled : mapping of str to float
        Seconds by the timing model of the chip, never measured.
    marks : sequence of str
        What to know before the times are believed, in few words, such as ``"throttled"``.

    Examples
    --------
    >>> row = Row("overhead", {"call": "run"}, {"run": [2e-6, 3e-6, 2e-6]}, {"calls": 3})
    >>> row.main, row.flat()["run_us"], row.flat()["calls"]
    ('run', 2.0, 3)
    """

    what: str
    case: Mapping[str, Value]
    seconds: Mapping[str, Sequence[float]]
    figures: Mapping[str, Value] = field(default_factory=dict)
    modelled: Mapping[str, float] = field(default_factory=dict)
    marks: Sequence[str] = ()

    @property
    def main(self) -> str:
        """What the case is about, of all that was timed."""
        return next(iter(self.seconds))

    @property
    def key(self) -> tuple[str, tuple[tuple[str, Value], ...]]:
        """What the same case of another run has, too."""
        return self.what, tuple(sorted(self.case.items()))

    @property
    def label(self) -> str:
        """The case in few words, as tables and plots name it.

        Examples
        --------
        >>> case = {"type": "int8", "m": 1, "k": 64, "n": 32, "layout": "native", "cores": 3}
        >>> Row("matmul", case, {"run": [1.0]}).label
        'int8 1x64x32 3 cores'
        """
        words: list[str] = []
        product = "k" in self.case and "n" in self.case
        shape = "x".join(str(self.case.get(name, "M")) for name in "mkn")  # "M" stands for several numbers of rows
        for name, value in self.case.items():
            if product and name in "mkn":
                words += [] if shape in words else [shape]
            elif name == "cores":
                words += [] if value == 1 else [f"{value} cores"]
            elif not (name == "layout" and value == "native"):  # it goes without saying, as one core does
                words.append(str(value) if isinstance(value, str) else f"{name}={value}")
        return " ".join(words) or self.what

    def flat(self) -> dict[str, Value]:
        """The row as a line of a table: the case, medians in microseconds, spread of the main one, and the rest."""
        line: dict[str, Value] = {"what": self.what, **self.case}
        for name, seconds in self.seconds.items():
            line[f"{name}_us"] = summarise(seconds).median * 1e6
        summary = summarise(self.seconds[self.main])
        line["samples"] = summary.count
        for name in ("minimum", "p90", "low", "high"):
            line[f"{self.main}_{'min' if name == 'minimum' else name}_us"] = getattr(summary, name) * 1e6
        line.update(self.figures)
        line.update({f"modelled_{name}_us": seconds * 1e6 for name, seconds in self.modelled.items()})
        if self.marks:
            line["marks"] = "; ".join(self.marks)
        return line


@dataclass(frozen=True)
class Record:
    """A run: where, what was asked for, and what came out.

    Attributes
    ----------
    machine : Machine
    rows : sequence of Row
    settings : mapping of str to value
        What the command was asked for: its options.
    """

    machine: Machine
    rows: Sequence[Row]
    settings: Mapping[str, Value] = field(default_factory=dict)

    def to_json(self) -> str:
        """The whole run as one JSON object."""
        return (
            json.dumps({**self._head(), "rows": [asdict(row) for row in self.rows]}, indent=1, allow_nan=False) + "\n"
        )

    def to_json_lines(self) -> str:
        """The same, a JSON object in each line: the machine first, then each row."""
        return "".join(json.dumps(each, allow_nan=False) + "\n" for each in (self._head(), *map(asdict, self.rows)))

    def _head(self) -> dict[str, Any]:
        return {
            "format": FORMAT, "version": VERSION, "machine": asdict(self.machine), "settings": dict(self.settings),
        }  # fmt: skip

    @classmethod
    def parse(cls, text: str) -> Record:
        """Read what `to_json` or `to_json_lines` wrote.

        Raises
        ------
        ValueError
            If it is anything else; the message says what is wrong and where.

        Examples
        --------
        >>> Record.parse("{}")
        Traceback (most recent call last):
            ...
        ValueError: it is no run of npumatmul bench: its "format" is not 'npumatmul-bench'
        """
        head, rows = _split(text)
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise ValueError(f'it is no run of npumatmul bench: its "format" is not {FORMAT!r}')
        if type(head.get("version")) is not int or head["version"] != VERSION:
            raise ValueError(
                f"it has version {shown(head.get('version'))} of the format; this npumatmul reads {VERSION}"
            )
        _only(head, {"format", "version", "machine", "settings"}, "the run")
        if len(rows) > _ROWS:
            raise ValueError(f"it has {len(rows)} rows; at most {_ROWS} are read")
        settings = _mapping(head.get("settings"), "settings", _value)
        machine = _machine(head.get("machine"))
        return cls(machine, [_row(row, f"row {number}") for number, row in enumerate(rows, 1)], settings)


def read_record(path: str | os.PathLike[str]) -> Record:
    """Read a run that ``--json`` or ``--jsonl`` saved.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    Record

    Raises
    ------
    OSError
        If it cannot be read.
    UnusableFileError
        If it holds anything else; the message names the file and what is wrong in it.
    """
    try:
        return Record.parse(read_text(path, _FILE_BYTES))
    except UnicodeDecodeError:
        problem = "it is not a text in UTF-8"
    except ValueError as error:
        problem = str(error)
    raise UnusableFileError(
        f"{os.fspath(path)} cannot be used: {problem}; runs are saved by npumatmul bench ... --json FILE"
    )


def _split(text: str) -> tuple[Any, list[Any]]:
    """What comes before the rows, and the rows, of either form."""
    first, _, rest = text.partition("\n")
    try:
        head = parse_json(first)
    except ValueError:  # an object of several lines
        head, rest = None, text
    if head is not None and rest.strip() and not (isinstance(head, dict) and "rows" in head):
        lines = [line for line in rest.split("\n") if line.strip()]
        return head, [_parsed(line, f"line {number}") for number, line in enumerate(lines, 2)]
    whole = _parsed(text, None)
    if not isinstance(whole, dict):
        return whole, []
    rows = whole.pop("rows", [])
    if not isinstance(rows, list):
        raise ValueError('its "rows" are not a list')
    return whole, rows


def _parsed(text: str, where: str | None) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"{f'{where} is' if where else 'it is'} not JSON ({error})") from None


def _only(found: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f"{where} has {shown(unknown[0])}, which version {VERSION} of the format does not know")


def _machine(found: Any) -> Machine:
    if not isinstance(found, dict):
        raise ValueError('its "machine" is missing')
    _only(found, (each.name for each in fields(Machine)), "machine")
    checks: dict[str, Callable[[Any, str], Any]] = {
        **dict.fromkeys(("device", "chip", "runtime", "driver", "npumatmul", "python", "numpy", "kernel"), _text),
        **dict.fromkeys(("host_kernels", "cpu", "machine"), _text),
        **dict.fromkeys(("npu_cores", "cpus"), _count),
        "simulated": _flag,
        "descriptor_limit": _whole,
        "time": _time,
        "clocks": lambda value, where: _mapping(value, where, _whole),
        "governors": lambda value, where: _mapping(value, where, _text),
        "temperatures": lambda value, where: _mapping(value, where, _real),
        "load": lambda value, where: tuple(_list(value, where, _real, 3)),
    }
    missing = [name for name in checks if name not in found]
    if missing:
        raise ValueError(f"machine.{missing[0]} is missing")
    if "simulated_runs" in found:
        checks["simulated_runs"] = _text
    return Machine(**{name: check(found[name], f"machine.{name}") for name, check in checks.items()})


def _row(found: Any, where: str) -> Row:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {shown(found)}; a row is an object")
    _only(found, (each.name for each in fields(Row)), where)
    what = _text(found.get("what"), f"{where}: what")
    seconds = _mapping(found.get("seconds"), f"{where}: seconds", _times)
    if not seconds:
        raise ValueError(f"{where}: it has no times")
    return Row(
        what,
        _mapping(found.get("case"), f"{where}: case", _value),
        seconds,
        _mapping(found.get("figures", {}), f"{where}: figures", _value),
        _mapping(found.get("modelled", {}), f"{where}: modelled", _duration),
        tuple(_list(found.get("marks", []), f"{where}: marks", _text, _FIELDS)),
    )


def _mapping(found: Any, where: str, check: Callable[[Any, str], Any]) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {shown(found)}; an object is needed")
    if len(found) > _FIELDS:
        raise ValueError(f"{where} has {len(found)} fields; at most {_FIELDS} are read")
    for name in found:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{where} has a field {shown(name)}; names are small letters, digits and _")
    return {name: check(value, f"{where}.{name}") for name, value in found.items()}


def _list(found: Any, where: str, check: Callable[[Any, str], Any], most: int) -> list[Any]:
    if not isinstance(found, list):
        raise ValueError(f"{where} is {shown(found)}; a list is needed")
    if len(found) > most:
        raise ValueError(f"{where} has {len(found)} entries; at most {most} are read")
    return [check(value, where) for value in found]


def _times(found: Any, where: str) -> list[float]:
    times = _list(found, where, _duration, _SAMPLES)
    if not times:
        raise ValueError(f"{where} has no times")
    return times


def _duration(value: Any, where: str) -> float:
    seconds = _real(value, where)
    if seconds < 0:
        raise ValueError(f"{where} is {shown(value)}; no time is below 0")
    return seconds


def _real(value: Any, where: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30 and math.isfinite(value):
        return float(value)
    raise ValueError(f"{where} is {shown(value)}; a finite number is needed")


def _whole(value: Any, where: str) -> int:
    if type(value) is int and abs(value) < 1 << 63:
        return value
    raise ValueError(f"{where} is {shown(value)}; a whole number of at most 64 bits is needed")


def _count(value: Any, where: str) -> int:
    if _whole(value, where) < 1:
        raise ValueError(f"{where} is {shown(value)}; at least 1 is needed")
    return int(value)


def _flag(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError(f"{where} is {shown(value)}; true or false is needed")


def _text(value: Any, where: str) -> str:
    if isinstance(value, str) and len(value) <= _TEXT:
        return value
    raise ValueError(f"{where} is {shown(value)}; a text of at most {_TEXT} characters is needed")


def _time(value: Any, where: str) -> str:
    try:
        datetime.fromisoformat(_text(value, where))
    except ValueError:
        raise ValueError(f"{where} is {shown(value)}; a time such as 2026-01-31T12:00:00+00:00 is needed") from None
    return str(value)


def _value(value: Any, where: str) -> Value:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    return _whole(value, where) if isinstance(value, int) else _real(value, where)
