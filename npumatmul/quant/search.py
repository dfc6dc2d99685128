"""How well ranges of a histogram are represented, many of them at once: what calibrators search through.

A code stands for all bins within half a step of it, so that errors come of the bins' counts, sums and sums of squares
up to each edge between two codes: the work is in codes per range, not in bins. Bins are counted in widths of a bin,
where middles are halves of odd numbers and these sums are exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npumatmul.quant.ranges import range_params

__all__ = ["divergences", "squared_errors"]


def squared_errors(
    counts: NDArray[np.int64],
    centers: NDArray[np.float64],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    codes: tuple[int, int],
    symmetric: bool,
) -> NDArray[np.float64]:
    """Mean squared errors of the values if ranges are represented.

    Parameters
    ----------
    counts : ndarray of int64, shape (B,)
    centers : ndarray of float64, shape (B,)
        Middles of the bins, equally far apart.
    low, high : ndarray of float64, shape (R,)
        The ranges.
    codes : (int, int)
        The least and the largest code.
    symmetric : bool
        Whether zero points are 0.

    Returns
    -------
    ndarray of float64, shape (R,)
        In squares of the bins' width.

    Examples
    --------
    >>> counts, centers = np.array([3, 1, 2]), np.array([0.5, 1.5, 2.5])
    >>> steps = squared_errors(counts, centers, np.zeros(2), np.array([2.5, 5]), (-1, 1), True)
    >>> np.allclose(steps, [(3 * 0.5**2 + 1**2) / 6, (3 * 0.5**2 + 1.5**2 + 2 * 2.5**2) / 6])
    True
    """
    width = _width(centers)
    middles = centers / width
    sums = [_up_to(counts * power) for power in (np.ones_like(middles), middles, middles * middles)]
    scale, zero_point = range_params(low, high, *codes, symmetric)
    step = (scale.astype(np.float64) / width)[:, np.newaxis]
    values = np.arange(codes[0], codes[1] + 1) - zero_point.astype(np.int64)[:, np.newaxis]
    edges = _bins_below((values[:, :-1] + 0.5) * step, middles)
    ends = np.empty((edges.shape[0], edges.shape[1] + 2), np.int64)
    ends[:, 0], ends[:, 1:-1], ends[:, -1] = 0, edges, counts.size
    number, total = (np.diff(each[ends], axis=1) for each in sums[:2])
    cross, squares = (values * total).sum(axis=1), (values * values * number).sum(axis=1)
    errors = sums[2][-1] - 2 * step[:, 0] * cross + step[:, 0] ** 2 * squares
    return np.asarray(errors / sums[0][-1])


def divergences(
    counts: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64], levels: int
) -> NDArray[np.float64]:
    """Kullback-Leibler divergences of runs of bins from the clipped original.

    Bins ``start .. stop``, of which there are at least `levels` and two, are cut into `levels` equal runs. Within a run
    all bins that hold something hold the same; what lies outside is added to the outermost bins of the original alone,
    so that what is clipped onto an empty bin costs, but not all.

    Parameters
    ----------
    counts : ndarray of int64, shape (B,)
    start, stop : ndarray of int64, shape (R,)
    levels : int

    Returns
    -------
    ndarray of float64, shape (R,)

    Examples
    --------
    >>> np.allclose(divergences(np.array([4, 4, 2, 2]), np.array([0]), np.array([4]), 2), 0)  # nothing is lost
    True
    """
    total = float(max(counts.sum(), 1))
    present = counts > 0
    own = counts / total
    information = _up_to(own * np.log(np.where(present, own, 1.0)))
    inside, occupied = _up_to(counts), _up_to(present)
    size = (stop - start)[:, np.newaxis]
    cuts = np.arange(levels + 1) * size // levels + start[:, np.newaxis]
    number = np.diff(inside[cuts], axis=1).astype(np.float64)
    bins = np.diff(occupied[cuts], axis=1)
    kept = np.maximum(number.sum(axis=1, keepdims=True), 1.0)
    share = np.maximum(number / (kept * np.maximum(bins, 1)), _LEAST)  # of a bin that holds something
    result = information[stop] - information[start] - (number / total * np.log(share)).sum(axis=1)
    beyond = (inside[start], inside[-1] - inside[stop])
    for end, outside, of_run in ((start, beyond[0], share[:, 0]), (stop - 1, beyond[1], share[:, -1])):
        merged = np.where(present[end], of_run, _LEAST)
        result += _divergence(own[end] + outside / total, merged) - _divergence(own[end], merged)
    return np.asarray(result)


#: What a bin that was merged to nothing counts as.
_LEAST = 1e-9


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / q), 0.0)


def _up_to(values: NDArray[np.float64] | NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Sums of what lies before each bin, and of all."""
    sums = np.zeros(values.size + 1)
    np.cumsum(values, out=sums[1:])
    return sums


def _width(centers: NDArray[np.float64]) -> float:
    """Of a bin; for one that is alone any width will do."""
    return float(centers[1] - centers[0]) if centers.size > 1 else 2 * abs(float(centers[0]))


def _bins_below(edges: NDArray[np.float64], middles: NDArray[np.float64]) -> NDArray[np.int64]:
    """How many middles, which are 1 apart, lie below edges."""
    below: NDArray[np.int64] = np.clip(np.ceil(edges - middles[0]), 0, middles.size).astype(np.int64)
    return below
