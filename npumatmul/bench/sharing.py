"""Runs made fit to be sent to others: only what is known to say nothing about whose machine it was.

Nothing is searched for and struck out: what is kept is what a list of words and forms allows. Names of hosts and
users, paths and serial numbers could stand in any text, so that every text that is not made of those words is replaced,
the same one always by the same number.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from npumatmul.bench.record import Machine, Record, Row, Value
from npumatmul.bench.words import WORDS
from npumatmul.errors import UnusableFileError
from npumatmul.files.reading import parse_json, read_text
from npumatmul.quant.schemes import Scheme
from npumatmul.rknn.socs import SOCS

__all__ = ["FORMAT", "VERSION", "Shared", "read_runs", "share"]

FORMAT = "npumatmul-bench-shared"
VERSION = 1
_FILE_BYTES, _RUNS = 1 << 28, 1000
_T = TypeVar("_T")

#: Numbers that are no serial numbers: a few digits, a point, an exponent, a sign of multiplication between them.
_NUMBER = re.compile(r"[+-]?[0-9]{1,6}(\.[0-9]{1,6})?(e[+-]?[0-9]{1,2})?(ghz|mhz|khz|us|ms|s|x|kib|mib|gib|b|m|k|%)?")
_SHAPE = re.compile(r"m?[0-9]{0,7}(x[0-9]{1,7}){1,2}")
_VERSION = re.compile(r"[0-9]{1,4}(\.[0-9]{1,5}){1,2}([ab][0-9]{1,2}|rc[0-9]{1,2})?")
#: Six pairs of digits, as of a network's card, and four numbers of an address.
_ADDRESS = re.compile(r"([0-9a-f]{2}[:-]){5}[0-9a-f]{2}|([0-9]{1,3}\.){3}[0-9]{1,3}")
_MOST_DIGITS = 10
#: Tests of language models, as llama-bench calls them.
_TEST = re.compile(r"(pp|tg)[0-9]{1,6}")
_ZONE = re.compile(r"zone[0-9]{1,2}|cpu[0-9]{1,2}")
#: Between words of a text.
_BETWEEN = re.compile(r"[\s,;:=*/<>|&'\"@±°]+|\.\.+")


@dataclass
class _Withheld:
    """Texts that were replaced, and by what."""

    texts: dict[str, str] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def text(self, value: str, place: str) -> str:
        """The text itself where it is made of known words, else its number."""
        if _is_known(value):
            return value
        return self.instead(value, place)

    def instead(self, value: str, place: str) -> str:
        """The number of a text that is withheld."""
        self.places[place] = self.places.get(place, 0) + 1
        return self.texts.setdefault(value, f"withheld {len(self.texts) + 1}")

    def fields(self, found: Mapping[str, _T], place: str, keep: Callable[[_T, str], _T | None]) -> dict[str, Any]:
        """Fields whose names are known; values as `keep` leaves them."""
        kept: dict[str, Any] = {}
        for name, value in found.items():
            if _is_name(name):
                kept[name] = keep(value, f"{place}.{name}")
            else:
                self.places[f"{place}: other fields"] = self.places.get(f"{place}: other fields", 0) + 1
        return kept

    def name(self, name: str) -> str:
        """The name of a field, or its number where it is not known."""
        return name if _is_name(name) else self.names.setdefault(name, f"other_{len(self.names) + 1}")

    def value(self, value: Value, place: str) -> Value:
        return self.text(value, place) if isinstance(value, str) else value


@dataclass(frozen=True)
class Shared:
    """Runs that can be sent.

    Attributes
    ----------
    runs : sequence of Record
    withheld : mapping of str to int
        How many texts were replaced or left out, by where they stood.
    """

    runs: Sequence[Record]
    withheld: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> str:
        """One JSON object, with the runs as `Record.to_json` writes them."""
        runs = [json.loads(run.to_json()) for run in self.runs]
        return json.dumps({"format": FORMAT, "version": VERSION, "runs": runs}, allow_nan=False) + "\n"

    def contents(self) -> list[str]:
        """What is in it, in lines for people: every fact about the machines, and what was withheld."""
        lines = []
        for number, run in enumerate(self.runs, 1):
            counts: dict[str, int] = {}
            for row in run.rows:
                counts[row.what] = counts.get(row.what, 0) + 1
            times = sum(len(each) for row in run.rows for each in row.seconds.values())
            kinds = ", ".join(f"{count} of {what}" for what, count in counts.items())
            lines.append(f"run {number}: {len(run.rows)} cases ({kinds}) with {times} times")
            lines += [f"  machine.{name}: {value}" for name, value in run.machine.flat().items()]
            lines += [f"  settings.{name}: {value}" for name, value in run.settings.items()]
        told = ", ".join(f"{place} ({count})" for place, count in self.withheld.items())
        lines.append(f"withheld: {told or 'nothing'}")
        return lines


def share(runs: Sequence[Record]) -> Shared:
    """Runs without anything that could tell whose they are.

    Parameters
    ----------
    runs : sequence of Record

    Returns
    -------
    Shared

    Examples
    --------
    >>> machine = Machine("sim:rk3588", True, "rk3588", 3, "2.3.2", "0.9.8", "0.1.0", "3.11", "2.0", "6.1.0-alices-pc",
    ...                   "neon", "Cortex-A76", 8, "aarch64", 1024, "2026-01-31T12:34:56+00:00")
    >>> row = Row("matmul", {"type": "int8", "model": "/home/alice/m.gguf"}, {"run": [1.0]})
    >>> shared = share([Record(machine, [row])])
    >>> shared.runs[0].machine.kernel, shared.runs[0].machine.time, dict(shared.runs[0].rows[0].case)
    ('6.1.0', '2026-01-31', {'type': 'int8', 'model': 'withheld 1'})
    """
    withheld = _Withheld()
    return Shared([_run(run, withheld) for run in runs], dict(withheld.places))


def read_runs(path: str | os.PathLike[str]) -> list[Record]:
    """Read a saved run, or all runs of a file that `Shared.to_json` wrote.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    list of Record

    Raises
    ------
    OSError
        If it cannot be read.
    UnusableFileError
        If it holds anything else.
    """
    try:
        text = read_text(path, _FILE_BYTES)
        if FORMAT not in text[:200]:
            return [Record.parse(text)]
        content = parse_json(text)
        if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("version") != VERSION:
            raise ValueError("it is no file of npumatmul bench share, or of another version")
        runs = content.get("runs")
        if not isinstance(runs, list) or len(runs) > _RUNS:
            raise ValueError(f'its "runs" are no list of at most {_RUNS}')
        return [Record.parse(json.dumps(run)) for run in runs]
    except UnicodeDecodeError:
        problem = "it is not a text in UTF-8"
    except ValueError as error:
        problem = str(error)
    raise UnusableFileError(f"{os.fspath(path)} cannot be used: {problem}")


def _run(run: Record, withheld: _Withheld) -> Record:
    rows = [_row(row, withheld) for row in run.rows]
    return Record(_machine(run.machine, withheld), rows, withheld.fields(run.settings, "settings", withheld.value))


def _row(row: Row, withheld: _Withheld) -> Row:
    def times(value: Sequence[float], place: str) -> Sequence[float]:
        return value

    def seconds(value: float, place: str) -> float:
        return value

    case = {withheld.name(name): _case_value(name, value, withheld) for name, value in row.case.items()}
    timed = withheld.fields(row.seconds, "seconds", times)
    if not timed:  # none of the names is known; the times alone say nothing of anybody
        timed = {"time": row.seconds[row.main]}
    return Row(
        withheld.text(row.what, "what"),
        case,
        timed,
        withheld.fields(row.figures, "figures", withheld.value),
        withheld.fields(row.modelled, "modelled", seconds),
        tuple(withheld.text(mark, "marks") for mark in row.marks),
    )


def _case_value(name: str, value: Value, withheld: _Withheld) -> Value:
    """The value of a field of a case, which stays different from those of others."""
    if withheld.name(name) == name:
        return withheld.value(value, f"case.{name}")
    return withheld.instead(str(value), "case: other fields")


def _machine(machine: Machine, withheld: _Withheld) -> Machine:
    def version(value: str, name: str) -> str:
        found = _VERSION.match(value)
        if found is None or _ADDRESS.search(value.lower()):
            return withheld.text(value, f"machine.{name}")
        if found[0] != value:
            withheld.places[f"machine.{name}: what follows the version"] = 1
        return found[0]

    def text(value: str, name: str) -> str:
        return withheld.text(value, f"machine.{name}")

    chip = machine.chip if machine.chip in SOCS else text(machine.chip, "chip")
    device = f"sim:{chip}" if machine.simulated else "rknn"
    if device != machine.device:
        withheld.places["machine.device"] = 1
    facts = asdict(machine) | {
        "device": device,
        "chip": chip,
        "time": machine.time[:10],
        "load": tuple(round(each, 1) for each in machine.load),
        "clocks": _named(machine.clocks, "clocks", withheld, lambda value: value),
        "governors": _named(machine.governors, "governors", withheld, lambda value: text(value, "governors")),
        "temperatures": _named(machine.temperatures, "temperatures", withheld, lambda value: float(round(value))),
    }
    for name in ("runtime", "driver", "npumatmul", "python", "numpy", "kernel"):
        facts[name] = version(facts[name], name)
    for name in ("host_kernels", "cpu", "machine", "simulated_runs"):
        facts[name] = text(facts[name], name)
    return Machine(**facts)


def _named(found: Mapping[str, Any], place: str, withheld: _Withheld, keep: Callable[[Any], Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in found.items():
        known = name in WORDS or _ZONE.fullmatch(name)
        if not known:
            withheld.places[f"machine.{place}: names"] = withheld.places.get(f"machine.{place}: names", 0) + 1
        kept[name if known else f"zone{50 + len(kept)}"] = keep(value)
    return kept


def _is_name(name: str) -> bool:
    return all(each in WORDS for each in name.split("_"))


def _is_known(text: str) -> bool:
    """Whether a text is made of known words and of numbers that are none of anybody's."""
    lower = text.lower()
    if _ADDRESS.search(lower):
        return False
    return all(map(_is_word, filter(None, _BETWEEN.split(lower))))


def _is_word(word: str) -> bool:
    plain = word.strip("()[]{}-+.!?")
    if not plain or plain in WORDS or word in WORDS or _is_numeric(plain):
        return True
    parts = [each for each in re.split(r"[-()_.+%]", plain) if each]
    if sum(map(str.isdigit, plain)) <= _MOST_DIGITS and all(each in WORDS or _NUMBER.fullmatch(each) for each in parts):
        return True
    return _is_scheme(plain)


def _is_numeric(word: str) -> bool:
    return any(form.fullmatch(word) for form in (_NUMBER, _SHAPE, _TEST))


def _is_scheme(word: str) -> bool:
    try:
        Scheme.parse(word)
    except ValueError:
        return False
    return True
