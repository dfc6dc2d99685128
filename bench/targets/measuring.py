"""How a line is timed: work and reference in turns, so that the machine's mood cancels; medians of their ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from targets.lines import Count, Line, Turns, Work

#: A work and its reference together run for about so long, within these numbers of rounds.
SECONDS = 1.0
FEWEST, MOST = 7, 501
#: Works are repeated until a turn takes so long; a clock is read in a hundredth of that.
TURN_SECONDS = 20e-6


@dataclass(frozen=True)
class Figure:
    """What was measured of a line; times in seconds per call."""

    value: float
    seconds: float | None = None
    reference_seconds: float | None = None
    instructions: int | None = None


def timed(work: Work, repetitions: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds per call."""
    start = clock()
    for _ in range(repetitions):
        work()
    return (clock() - start) / repetitions


def _repetitions(work: Work) -> int:
    return max(1, round(TURN_SECONDS / max(timed(work, 1), 1e-9)))


def time_turns(line: Line, turns: Turns, seconds: float) -> Figure:
    """Time both in turns; which goes first changes, for it finds the caches as the other one left them."""
    turns.work(), turns.reference()
    works = (turns.reference, turns.work)
    clock = time.thread_time if turns.one_thread else time.perf_counter
    repetitions = [_repetitions(work) for work in works]
    both = sum(timed(work, count) * count for work, count in zip(works, repetitions, strict=True))
    times: list[tuple[float, float]] = []
    for i in range(min(max(int(seconds / both), FEWEST), MOST)):
        pair = [0.0, 0.0]
        for which in (0, 1) if i % 2 else (1, 0):
            pair[which] = timed(works[which], repetitions[which], clock)
        times.append((pair[0], pair[1]))
    speed = statistics.median(reference / work for reference, work in times) * turns.share
    reference, work = (statistics.median(each) for each in zip(*times, strict=True))
    return Figure(1 / speed if line.most is not None else speed, work, reference)


@contextmanager
def prepared(line: Line) -> Iterator[Turns | Count]:
    """What a line yields, cleaned up behind."""
    steps = line.prepare()
    try:
        yield next(steps)
        next(steps, None)
    finally:
        steps.close()  # type: ignore[attr-defined]


def measure(line: Line, seconds: float = SECONDS) -> Figure:
    """Measure one line; with 0 seconds both works are called once and the value says nothing."""
    with prepared(line) as what:
        if isinstance(what, Count):
            return Figure(what.value)
        if seconds:
            return time_turns(line, what, seconds)
        what.reference(), what.work()
        return Figure(float("nan"))


def machine_speeds(seconds: float = SECONDS) -> dict[str, float]:
    """Rates of this machine: of memory by one thread, of float32 products by numpy's threads."""
    size = 64 << 20
    source, copy = np.ones(size, np.uint8), np.zeros(size, np.uint8)
    words = source.view(np.uint64)
    small, small_copy = source[: 1 << 21], copy[: 1 << 21]
    n = 1024
    a, b, c = (np.ones((n, n), np.float32) for _ in range(3))

    def rate(amount: float, work: Work, clock: Callable[[], float] = time.thread_time) -> float:
        work()
        once = timed(work, 1)
        rounds = max(3, min(100, int(seconds / 4 / max(once, 1e-9))))
        return amount / statistics.median(timed(work, 1, clock) for _ in range(rounds)) / 1e9

    return {
        "memcpy, 64 MiB, GB/s": rate(size, lambda: np.copyto(copy, source)),
        "memcpy, 2 MiB, GB/s": rate(1 << 21, lambda: np.copyto(small_copy, small)),
        "read, 64 MiB, GB/s": rate(size, lambda: np.bitwise_or.reduce(words)),
        "float32 GEMM 1024, GFLOPS": rate(2 * n**3, lambda: np.matmul(a, b, c), time.perf_counter),
    }
