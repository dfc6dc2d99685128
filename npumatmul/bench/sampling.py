"""When something was timed often enough: its median is precise, or its time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from npumatmul.bench.statistics import CONFIDENCE, summarise
from npumatmul.running.bound import PROVEN, SHORT

__all__ = ["Sampling", "Stopwatch", "settle"]

_T = TypeVar("_T")
#: Rounds that there are however long they take.
_FEWEST = 3


@dataclass(frozen=True)
class Sampling:
    """How often something is timed.

    Rounds are timed until half of the interval that the median is in, as sure as `CONFIDENCE`, is at most `precision`
    of the median. Looking again and again makes that a little less sure than it says.

    Attributes
    ----------
    precision : float
        As a share of the median: 0.02 is 2 %.
    least, most : int
        Rounds that count.
    min_time : float
        Seconds that are spent at least.
    time_limit : float
        Seconds after which no round begins any more, once there are three.
    warmup : int
        Rounds before those that count; fewer where they take longer than the time limit.

    Raises
    ------
    ValueError
        If a value makes no sense.

    Examples
    --------
    >>> Sampling.exactly(7).least, Sampling.exactly(7).most
    (7, 7)
    """

    precision: float = 0.02
    least: int = 10
    most: int = 10_000
    min_time: float = 0.05
    time_limit: float = 2.0
    warmup: int = 3

    def __post_init__(self) -> None:
        problem = None
        if not 0 < self.precision < 1:
            problem = f"precision is {self.precision:g}; it is a share above 0 and below 1, such as 0.02 (2%)"
        elif not 1 <= self.least <= self.most:
            problem = f"at least {self.least} and at most {self.most} rounds: the first is 1 or more, and no more"
        elif self.warmup < 0:
            problem = f"warmup is {self.warmup}; it is a number of rounds, 0 or more"
        elif not (0 <= self.min_time < float("inf") and self.time_limit >= 0):
            problem = f"times are 0 s or more, not {self.min_time:g} and {self.time_limit:g}"
        elif self.min_time > self.time_limit:
            problem = f"the shortest time, {self.min_time:g} s, is above the time limit, {self.time_limit:g} s"
        if problem is not None:
            raise ValueError(f"sampling: {problem}")

    @classmethod
    def exactly(cls, rounds: int, warmup: int = 3) -> Sampling:
        """So many rounds, however they spread."""
        return cls(least=rounds, most=rounds, min_time=0.0, time_limit=float("inf"), warmup=warmup)

    @property
    def fixed(self) -> bool:
        """Whether the number of rounds does not depend on what comes out."""
        return self.least == self.most

    def is_precise(self, seconds: Sequence[float]) -> bool:
        """Whether the median of these times is known well enough."""
        return summarise(seconds, CONFIDENCE).uncertainty <= self.precision

    def rounds(
        self,
        stopwatch: Stopwatch,
        watched: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> Iterator[int]:
        """Yield the number of each round until all that is watched was timed often enough.

        What a stopwatch noted while warming up is taken back.

        Parameters
        ----------
        stopwatch : Stopwatch
            Notes the times of each round, under each of the watched names once.
        watched : sequence of str
            What has to be precise.
        clock : callable
            Seconds, for the limits of time.
        """
        before = {name: len(times) for name, times in stopwatch.seconds.items()}
        began = clock()
        for _ in range(self.warmup):
            yield 0
            if clock() - began >= self.time_limit:
                break
        for name, times in stopwatch.seconds.items():
            del times[before.get(name, 0) :]
        began, look = clock(), min(self.least, _FEWEST)
        for done in range(1, self.most + 1):
            yield done
            if done < look:
                continue
            spent = clock() - began
            if spent >= self.time_limit:
                return
            times_of = (stopwatch.seconds[name][before.get(name, 0) :] for name in watched)
            if done >= self.least and spent >= self.min_time and all(map(self.is_precise, times_of)):
                return
            look = done + max(1, done // 10)  # looking costs more than many a round

    def mark(self, seconds: Mapping[str, Sequence[float]], watched: Sequence[str]) -> list[str]:
        """What to say of medians that the time limit left less precise than was asked for."""
        if self.fixed:
            return []
        worst = max((summarise(seconds[name], CONFIDENCE).uncertainty, name) for name in watched)
        return [] if worst[0] <= self.precision else [f"{worst[1]} to within {100 * worst[0]:.1f} % only"]


def settle(execute: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> None:
    """Call a product until it is known to be short, as one is that is used: then it runs in the caller's thread."""
    short = SHORT * 1e-9
    proven = in_vain = 0
    while proven < PROVEN and in_vain < 3:  # others may have had the processor once
        began = clock()
        execute()
        taken = clock() - began
        proven, in_vain = (proven + 1, 0) if taken < short else (proven, in_vain + 1)
        if taken > 20 * short:
            return


class Stopwatch:
    """Notes what each step takes, by name.

    Parameters
    ----------
    clock : callable
        Seconds.

    Attributes
    ----------
    seconds : dict of str to list of float

    Examples
    --------
    >>> ticks = iter([0.0, 2.0])
    >>> stopwatch = Stopwatch(lambda: next(ticks))
    >>> stopwatch.time("sum", sum, [1, 2]), stopwatch.seconds
    (3, {'sum': [2.0]})
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[str, list[float]] = {}

    def time(self, name: str, work: Callable[..., _T], *arguments: Any) -> _T:
        """Do some work, and note under a name what it takes."""
        clock = self.clock
        began = clock()
        result = work(*arguments)
        ended = clock()
        self.seconds.setdefault(name, []).append(ended - began)
        return result
