"""The rank test of Mann and Whitney, and what it says about the ratio of two times.

Times are far from any bell curve: most lie close together, and a few are far above. Ranks do not care.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["rank_test", "ratio_interval"]

#: Up to so many times in all, every way to deal ranks is counted; beyond, the normal distribution is close enough.
_COUNTED = 40
#: Times of a side whose ratios are formed; of more, so many are taken evenly.
_PAIRED = 400


def rank_test(a: Sequence[float], b: Sequence[float]) -> float:
    """How likely ranks differ as much as these, or more, if both come from one distribution (two-sided).

    Exact, ties included, for up to 40 values in all; beyond, by the normal approximation with corrections for ties and
    continuity.

    Parameters
    ----------
    a, b : sequence of float
        At least one value each.

    Returns
    -------
    float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If one has no values.

    Examples
    --------
    >>> rank_test([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])  # 2 of the 20 ways to deal six ranks are as extreme
    0.1
    """
    if not len(a) or not len(b):
        raise ValueError("rank_test: both sides need values")
    doubled = _doubled_ranks(np.concatenate([a, b]))
    first, count = int(doubled[: len(a)].sum()), len(doubled)
    middle = len(a) * (count + 1)  # the mean of `first`, whatever the ties
    if count > _COUNTED:
        return _normal(abs(first - middle) / 2, len(a), len(b), doubled)
    ways, away = _ways(tuple(sorted(doubled.tolist())), len(a)), abs(first - middle)
    if away == 0:
        return 1.0
    extreme = int(ways[middle + away :].sum()) + int(ways[: middle - away + 1].sum())
    return extreme / math.comb(count, len(a))


def ratio_interval(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """The ratio of `b` to `a`: the least that it may be, the median of all ratios of pairs, and the most.

    The interval is that of Hodges and Lehmann: ratios that the rank test would not reject, by its normal approximation.
    It is right as often as `confidence` says where `b` is `a` times a factor; where there are too few times to be as
    sure of anything, it is from 0 to infinity.

    Parameters
    ----------
    a, b : sequence of float
        Above 0, at least one each.
    confidence : float

    Returns
    -------
    tuple of float

    Raises
    ------
    ValueError
        If one has no values, or values that are not above 0.

    Examples
    --------
    >>> low, ratio, high = ratio_interval([1.0, 1.1, 0.9, 1.0, 1.1, 0.9], [2.0, 2.2, 1.8, 2.0, 2.2, 1.8])
    >>> round(ratio, 3), low < 2 < high
    (2.0, True)
    """
    x, y = _some(a), _some(b)
    if not len(x) or not len(y) or min(x[0], y[0]) <= 0:
        raise ValueError("ratio_interval: both sides need times above 0")
    ratios = np.sort(np.divide.outer(y, x).ravel())
    spread = math.sqrt(len(x) * len(y) * (len(x) + len(y) + 1) / 12)
    outside = math.floor(len(ratios) / 2 - _normal_quantile((1 + confidence) / 2) * spread)
    middle = float(np.median(ratios))
    if outside < 1:
        return 0.0, middle, math.inf
    return float(ratios[outside - 1]), middle, float(ratios[-outside])


def _some(values: Sequence[float]) -> NDArray[np.float64]:
    ordered = np.sort(np.asarray(values, np.float64))
    if len(ordered) <= _PAIRED:
        return ordered
    some: NDArray[np.float64] = ordered[np.linspace(0, len(ordered) - 1, _PAIRED).round().astype(int)]
    return some


def _doubled_ranks(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Twice the rank of each value, which is whole for ties, too: these share the mean of their ranks."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    doubled: NDArray[np.int64] = (2 * last - counts + 1)[where.ravel()]
    return doubled


@lru_cache(maxsize=64)
def _ways(ranks: tuple[int, ...], chosen: int) -> NDArray[np.int64]:
    """How many ways to choose so many ranks have each sum; fewer than 2^38 of at most 40."""
    most = sum(ranks[-chosen:])
    ways = np.zeros((chosen + 1, most + 1), np.int64)
    ways[0, 0] = 1
    for rank in ranks:
        ways[1:, rank:] += ways[:-1, : most + 1 - rank].copy()
    found: NDArray[np.int64] = ways[chosen]
    return found


def _normal(away: float, m: int, n: int, doubled: NDArray[np.int64]) -> float:
    """The two-sided tail beyond a distance of the sum of ranks from its mean."""
    count = m + n
    _, ties = np.unique(doubled, return_counts=True)
    shared = float((ties.astype(float) ** 3 - ties).sum()) / (count * (count - 1))
    variance = m * n / 12 * (count + 1 - shared)
    if variance <= 0:  # all are equal
        return 1.0
    return min(1.0, math.erfc(max(0.0, away - 0.5) / math.sqrt(2 * variance)))


def _normal_quantile(share: float) -> float:
    """Where the normal distribution has a share below it, by bisection: good to all digits, and simple."""
    low, high = -40.0, 40.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if math.erfc(-middle / math.sqrt(2)) / 2 < share else (low, middle)
    return (low + high) / 2
