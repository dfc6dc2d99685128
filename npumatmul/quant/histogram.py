"""Histograms that grow with what they see: bounded memory, and counts that stay exact."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "Histogram"]

#: Bins unless something else is asked for: a step of int8 over the whole range is then 16 bins wide.
BINS = 1 << 12

_CHUNK_ELEMENTS = 1 << 20


class Histogram:
    """Counts of values per channel, in equal bins over -limit .. limit.

    The limit of a channel is a power of two. Where a value does not fit, it is doubled and neighbouring bins are
    merged in pairs, whose edges coincide: no count ever moves to a bin that its value is not in.

    Parameters
    ----------
    channels : int
    bins : int
        A power of two, 4 or more.

    Attributes
    ----------
    counts : ndarray of int64, shape (channels, bins)
    limit : ndarray of float64, shape (channels,)
        0 for channels that have seen nothing but zeros.
    low, high : ndarray of float64, shape (channels,)
        Least and largest value; inf and -inf where nothing was seen.

    Examples
    --------
    >>> histogram = Histogram(1, bins=4)
    >>> histogram.add(np.array([[-0.9, 0.2, 0.3, 0.9]]))
    >>> histogram.counts, histogram.limit
    (array([[1, 0, 2, 1]]), array([1.]))
    >>> histogram.add(np.array([[3.0]]))
    >>> histogram.counts, histogram.limit
    (array([[0, 1, 3, 1]]), array([4.]))
    """

    def __init__(self, channels: int, bins: int = BINS) -> None:
        if bins < 4 or bins & (bins - 1):
            raise ValueError(f"Histogram: bins is a power of two of 4 or more, not {bins}")
        self.counts: NDArray[np.int64] = np.zeros((channels, bins), np.int64)
        self.limit: NDArray[np.float64] = np.zeros(channels)
        self.low: NDArray[np.float64] = np.full(channels, np.inf)
        self.high: NDArray[np.float64] = np.full(channels, -np.inf)

    @property
    def bins(self) -> int:
        return int(self.counts.shape[1])

    def add(self, values: NDArray[Any]) -> None:
        """Count finite values of shape (channels, n)."""
        channels = len(self.counts)
        if values.shape[0] != channels or values.ndim != 2:
            raise ValueError(f"Histogram.add: takes values of {channels} channels, not of shape {values.shape}")
        step = max(1, _CHUNK_ELEMENTS // max(channels, 1))
        for start in range(0, values.shape[1], step):
            self._add(np.ascontiguousarray(values[:, start : start + step], np.float64))

    def centers(self, channel: int) -> NDArray[np.float64]:
        """Middle of each bin of a channel."""
        width = 2 * self.limit[channel] / self.bins
        return np.asarray((np.arange(self.bins) + 0.5) * width - self.limit[channel])

    def _add(self, part: NDArray[np.float64]) -> None:
        np.minimum(self.low, part.min(axis=1), out=self.low)
        np.maximum(self.high, part.max(axis=1), out=self.high)
        largest = np.abs(part).max(axis=1)
        # the power of two above the largest value; that of a subnormal stays a normal number
        wanted = np.where(largest > 0, np.ldexp(1.0, np.maximum(np.frexp(largest)[1], -1000)), 0.0)
        self._grow(wanted)
        limit = np.where(self.limit > 0, self.limit, 1.0)[:, np.newaxis]
        index = np.floor((part / limit + 1) * (self.bins // 2)).astype(np.int64)
        np.clip(index, 0, self.bins - 1, out=index)  # a value that rounds up to the limit
        index += np.arange(len(part))[:, np.newaxis] * self.bins
        self.counts += np.bincount(index.ravel(), minlength=self.counts.size).reshape(self.counts.shape)

    def _grow(self, wanted: NDArray[np.float64]) -> None:
        # zeros stand beside the middle, where every limit has an edge: merging leaves them there
        growing = wanted > self.limit
        unset = growing & (self.limit == 0)
        self.limit[unset] = wanted[unset]
        growing &= ~unset
        quarter = self.bins // 4
        while growing.any():
            rows = np.flatnonzero(growing)
            merged = self.counts[rows].reshape(rows.size, -1, 2).sum(axis=2)
            self.counts[rows] = 0
            self.counts[rows, quarter : 3 * quarter] = merged
            self.limit[rows] *= 2
            growing = wanted > self.limit
