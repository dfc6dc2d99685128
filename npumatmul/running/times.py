"""From events of a profile to time: which part of it went by with what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.profiling import Span

__all__ = ["Times", "is_step", "nanoseconds_covered"]

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Times:
    """How a span of time was spent.

    Attributes
    ----------
    each : ndarray of float64
        Nanoseconds of each event: where several threads were at work at once, they share what went by. Events that
        others are within have none.
    executor : float
        Nanoseconds in calls of the executor and of programs, but in no step of theirs.
    outside : float
        Nanoseconds in no such call: Python's, and whatever else the program does.
    """

    each: NDArray[np.float64]
    executor: float
    outside: float

    @classmethod
    def of(cls, events: NDArray[Any], start: int, stop: int) -> Times:
        """Of events between two times, in nanoseconds."""
        steps = is_step(events)
        starts, ends = events["start"], events["start"] + events["nanoseconds"]
        # Python that a program calls is within the program, but not its time; what that Python calls is within, too.
        depth = np.where(steps, 0, np.where(events["kind"] == Span.PYTHON, -1, 1))
        times = np.concatenate([starts, ends])
        order = np.argsort(times, kind="stable")
        ordered = times[order]
        at_work = np.cumsum(np.concatenate([steps, -steps.astype(np.int64)])[order])
        within = np.cumsum(np.concatenate([depth, -depth])[order])
        lasts = np.diff(ordered, append=ordered[-1:])
        shared = np.concatenate([[0.0], np.cumsum(np.where(at_work > 0, lasts / np.maximum(at_work, 1), 0.0))])
        first, last = (np.searchsorted(ordered, each) for each in (starts, ends))
        each = np.where(steps, shared[last] - shared[first], 0.0)
        executor = float(lasts[(at_work == 0) & (within > 0)].sum())
        covered = float(lasts[at_work > 0].sum())
        return cls(each, executor, max(0.0, stop - start - covered - executor))


def is_step(events: NDArray[Any]) -> NDArray[np.bool_]:
    """Which events are steps: no others are within them."""
    return ~np.isin(events["kind"], (Span.CALL, Span.PROGRAM, Span.PYTHON))


def nanoseconds_covered(events: NDArray[Any]) -> int:
    """How long at least one of these events was going on."""
    if not len(events):
        return 0
    ordered = events[np.argsort(events["start"], kind="stable")]
    starts, ends = ordered["start"], np.maximum.accumulate(ordered["start"] + ordered["nanoseconds"])
    begins = np.maximum(starts[1:], ends[:-1])
    return int(ends[0] - starts[0] + np.maximum(ends[1:] - begins, 0).sum())
