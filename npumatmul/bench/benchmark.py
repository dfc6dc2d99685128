"""What all benchmarks have in common: how often things are timed, and rows that come one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, TypeAlias

from npumatmul.bench.record import Row, Value
from npumatmul.bench.sampling import Sampling
from npumatmul.bench.shapes import parse_numbers
from npumatmul.device.device import Device

__all__ = ["Benchmark", "Names", "Numbers", "Progress", "names_of", "numbers_of"]

#: Called with what is done, of how much, and what is going on.
Progress: TypeAlias = Callable[[int, int, str], object]
#: Several values, as a command line has them or as Python does.
Names: TypeAlias = str | Sequence[str]
Numbers: TypeAlias = str | int | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Benchmark(ABC):
    """A kind of measurement; the fields are its options.

    Attributes
    ----------
    precision : float
        Half the interval of each median, as a share of it, that is aimed at.
    min_time, time_limit : float
        Seconds that are spent on each thing at least and at most.
    warmup : int
        Rounds that do not count.
    repetitions : int or None
        So many rounds instead, however they spread.
    seed : int
        Of random operands, and of the order of cases.
    throttle : float
        Clocks below this share of the fastest that was seen are named.
    root : Path
        Below which the files of Linux are.
    """

    name: ClassVar[str]
    #: Whether anything of it can be drawn.
    drawable: ClassVar[bool] = True
    #: Fields of this class that it has no use for.
    unused: ClassVar[tuple[str, ...]] = ()
    #: Options that are nobody's business where a run is saved.
    _private: ClassVar[tuple[str, ...]] = ("root",)

    precision: float = Sampling.precision
    min_time: float = Sampling.min_time
    time_limit: float = 1.0
    warmup: int = Sampling.warmup
    repetitions: int | None = None
    seed: int = 0
    throttle: float = 0.75
    root: Path = Path("/")

    @property
    def sampling(self) -> Sampling:
        """How often each thing is timed.

        Raises
        ------
        ValueError
            If options of that make no sense.
        """
        if self.repetitions is not None:
            return Sampling.exactly(self.repetitions, self.warmup)
        return Sampling(self.precision, min_time=self.min_time, time_limit=self.time_limit, warmup=self.warmup)

    @property
    def settings(self) -> dict[str, Value]:
        """Options, as a saved run says them."""
        found: dict[str, Value] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name not in (*self._private, *self.unused):
                plain = value is None or isinstance(value, (str, int, float, bool))
                found[field.name] = value if plain else ",".join(map(str, value))
        return found

    @abstractmethod
    def prepare(self, device: Device) -> list[str]:
        """Look at all options, before anything is measured.

        Returns
        -------
        list of str
            What will be left out, and why.

        Raises
        ------
        ValueError, OSError
            If an option makes no sense, or nothing is left to measure.
        """

    @abstractmethod
    def measure(self, device: Device, progress: Progress = lambda done, total, what: None) -> Iterator[Row]:
        """Measure; each row comes when it is measured."""

    def arranged(self, rows: Sequence[Row], device: Device) -> list[Row]:
        """Rows in the order in which they are told, which need not be that in which they were measured."""
        return list(rows)


def names_of(given: Names, option: str) -> list[str]:
    """Names, each once.

    Raises
    ------
    ValueError
        If one is empty.
    """
    names = [name.strip() for name in given.split(",")] if isinstance(given, str) else list(given)
    if not names or not all(names):
        raise ValueError(f"{option}: a name is missing in {given!r}")
    return list(dict.fromkeys(names))


def numbers_of(given: Numbers, option: str) -> list[int]:
    """Numbers of at least 1, each once.

    Raises
    ------
    ValueError
        As `parse_numbers`.
    """
    text = given if isinstance(given, str) else str(given) if isinstance(given, int) else ",".join(map(str, given))
    return parse_numbers(text, option)
