"""Numbers of rows that contexts are made for, and how any number of rows is made up of them; pure.

A context has a fixed M, so rows are padded to one of few registered sizes (buckets), and longer inputs are cut. With
native A and C a bucket is 1 or a multiple of four (`NativeTiles.row_multiple`).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

__all__ = ["Cover", "choose_buckets", "row_buckets", "simple_cover"]

#: The most that a number of rows may lose to padding by the model when it runs as one bucket; on average far less.
_WORST_LOSS = 0.15


def row_buckets(m_max: int, row_multiple: int) -> tuple[int, ...]:
    """Buckets where no time is known: 1, then `row_multiple` times 1, 2, 3, 4, 6, 8, 12, ... up to `m_max`.

    Less than a third of a range is padding, with a logarithmic number of contexts.

    Examples
    --------
    >>> row_buckets(64, 4)
    (1, 4, 8, 12, 16, 24, 32, 48, 64)
    """
    sizes = {1}
    size = row_multiple
    while size <= m_max:
        sizes.add(size)
        if size > row_multiple and size * 3 // 2 <= m_max:
            sizes.add(size * 3 // 2)
        size *= 2
    return tuple(sorted(sizes))


def choose_buckets(m_max: int, row_multiple: int, seconds: Callable[[int], float]) -> tuple[int, ...]:
    """Buckets by modelled time: 1, the size in the upper half that takes least per row, and as many as are needed.

    From a bucket downwards, the next one is the smallest that leaves no number of rows between them to lose more than
    15 % to padding: few where time hardly depends on the rows, many where it is proportional. The next one is at least
    half as large, since models err.

    Parameters
    ----------
    m_max : int
        Largest M of one run.
    row_multiple : int
    seconds : callable
        Modelled time of so many rows at once.

    Returns
    -------
    tuple of int
        Ascending.

    Examples
    --------
    >>> choose_buckets(64, 4, lambda rows: 1.0)
    (1, 4, 8, 16, 32, 64)
    >>> choose_buckets(32, 4, float)
    (1, 4, 8, 12, 16, 20, 24, 32)
    """
    sizes = list(range(row_multiple, m_max + 1, row_multiple))
    if not sizes:
        return (1,)
    last = len(sizes) - 1
    upper = {*range(len(sizes) // 2, last, max(1, last // 32)), last}  # a few of them are enough
    top = min(upper, key=lambda i: (seconds(sizes[i]) / sizes[i], -i))
    chosen = [top]
    while top > 0:
        # the largest of those that lose too much as sizes[top], or are half as large; times only rise with the size
        most, limit = sizes[top] // 2, seconds(sizes[top]) / (1 + _WORST_LOSS)
        top = bisect.bisect_left(range(top), True, key=lambda i: sizes[i] > most and seconds(sizes[i]) >= limit) - 1
        if top >= 0:
            chosen.append(top)
    return (1, *(sizes[i] for i in sorted(chosen) if sizes[i] > 1))


def simple_cover(rows: int, buckets: Sequence[int]) -> tuple[int, ...]:
    """The largest bucket as often as it fits, then the smallest that takes the rest.

    Examples
    --------
    >>> simple_cover(70, (1, 4, 8, 16, 32))
    (32, 32, 8)
    """
    full, rest = divmod(rows, buckets[-1])
    last = (next(size for size in buckets if size >= rest),) if rest else ()
    return (buckets[-1],) * full + last


class Cover:
    """Makes any number of rows up of buckets, in the least modelled time.

    Parameters
    ----------
    buckets : sequence of int
        Ascending.
    seconds : callable
        Modelled time of a bucket.

    Notes
    -----
    Up to three times the largest bucket the result is the optimum; beyond, the bucket that takes least per row is
    used as often as it fits before.

    Examples
    --------
    >>> Cover((1, 4, 128, 256), lambda rows: 10.0 + rows).of(130)
    (128, 4)
    >>> Cover((1, 4, 128, 256), lambda rows: 200.0 + rows).of(130)
    (256,)
    """

    def __init__(self, buckets: Sequence[int], seconds: Callable[[int], float]) -> None:
        self._buckets = tuple(buckets)
        self._times = {size: seconds(size) for size in buckets}
        if not all(map(math.isfinite, self._times.values())):
            raise ValueError("modelled times of numbers of rows are finite; constants of a chip are wrong")
        self._most_efficient = min(buckets, key=lambda size: (self._times[size] / size, -size))
        self._per_row = self._times[self._most_efficient] / self._most_efficient
        self._known: dict[int, tuple[float, int]] = {}  # time, and the bucket to begin with, by number of rows

    def of(self, rows: int) -> tuple[int, ...]:
        """Buckets for that many rows, at least 1, in descending order; only the last is padded."""
        often = max(0, -(-(rows - 3 * self._buckets[-1]) // self._most_efficient))
        sizes = [self._most_efficient] * often
        left = rows - often * self._most_efficient
        self._solve(left)
        while left > 0:
            sizes.append(self._known[left][1])
            left -= sizes[-1]
        return tuple(sorted(sizes, reverse=True))

    def _solve(self, rows: int) -> float:
        if rows <= 0:
            return 0.0
        if rows in self._known:
            return self._known[rows][0]
        times = self._times
        covering = (size for size in self._buckets if size >= rows)
        best, choice = min(((times[size], size) for size in covering), default=(float("inf"), 0))
        for size in reversed(self._buckets):
            # passed over where it cannot end earlier even if all that it leaves ran at the best time per row
            if size < rows and times[size] + (rows - size) * self._per_row < best:
                total = times[size] + self._solve(rows - size)
                if total < best:
                    best, choice = total, size
        self._known[rows] = best, choice
        return best
