"""What repeated times say: their median, how sure it is, and their spread."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Summary", "summarise"]

#: How sure the interval of a median is, unless told.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Repeated times in few figures.

    Attributes
    ----------
    count : int
        Repetitions.
    minimum, median, p90 : float
        The shortest, the middle one, and what nine of ten stay within; in seconds.
    low, high : float
        The median of many more repetitions lies between these, as sure as was asked, if they are independent. They are
        the shortest and the longest time where there are too few repetitions to be as sure of anything.
    """

    count: int
    minimum: float
    median: float
    p90: float
    low: float
    high: float

    @property
    def uncertainty(self) -> float:
        """Half the interval of the median, as a share of the median; infinite where that is 0 or stands alone.

        Examples
        --------
        >>> summarise([1.0, 1.1, 0.9, 1.0, 1.0, 1.0, 1.1, 0.9]).uncertainty
        0.1
        """
        if self.count < 2 or self.median == 0:
            return math.inf
        return round((self.high - self.low) / 2 / self.median, 12)


def summarise(seconds: Sequence[float], confidence: float = CONFIDENCE) -> Summary:
    """Summarise times; the interval of their median needs no assumption about how they are distributed.

    Parameters
    ----------
    seconds : sequence of float
        At least one.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    Summary

    Raises
    ------
    ValueError
        If there are no times, or `confidence` is none.

    Examples
    --------
    >>> summarise([5.0, 1.0, 3.0, 2.0, 4.0, 6.0])
    Summary(count=6, minimum=1.0, median=3.5, p90=5.5, low=1.0, high=6.0)
    """
    if not len(seconds):
        raise ValueError("summarise: there are no times to summarise")
    if not 0 < confidence < 1:
        raise ValueError(f"summarise: confidence is {confidence}; it lies between 0 and 1")
    ordered = sorted(seconds)
    rank = _rank(len(ordered), confidence)
    return Summary(
        len(ordered),
        ordered[0],
        _quantile(ordered, 0.5),
        _quantile(ordered, 0.9),
        ordered[rank],
        ordered[-1 - rank],
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which a share lies, between two of them in proportion, as numpy has it by default."""
    place = share * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 1)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _rank(count: int, confidence: float) -> int:
    """The largest r for which the r-th value from either end encloses the median surely enough; 0 where none does.

    Fewer than r+1 of `count` values are below the median with the binomial probability P(B(count, 1/2) <= r).
    """
    allowed = (1 - confidence) / 2
    log_half = count * math.log(0.5)
    cumulated, rank = 0.0, 0
    for below in range((count + 1) // 2):
        log_ways = math.lgamma(count + 1) - math.lgamma(below + 1) - math.lgamma(count - below + 1)
        cumulated += math.exp(log_ways + log_half)
        if cumulated > allowed:
            break
        rank = below
    return rank
