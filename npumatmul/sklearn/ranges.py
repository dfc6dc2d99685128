"""Ranges of values: what makes rows of unlike features fit for eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Float64", "Ranges"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Ranges:
    """Mean and standard deviation of each column of an example.

    Attributes
    ----------
    middle, spread : ndarray of float64, shape (columns,)
        `spread` is 0 where a column has one value only: nothing is known of others.
    """

    middle: Float64
    spread: Float64

    @classmethod
    def of(cls, rows: NDArray[Any]) -> Ranges:
        """The ranges of example rows ``(n, columns)``."""
        low, high = (np.asarray(find(rows, axis=0), np.float64) for find in (np.min, np.max))
        center, half = low / 2 + high / 2, high / 2 - low / 2
        varies = half > 0
        within = (rows - center) / np.where(varies, half, 1.0)  # so that squares cannot overflow
        middle = center + np.where(varies, half * within.mean(axis=0), 0.0)
        return cls(middle, np.where(varies, half * within.std(axis=0), 0.0))

    def units(self, weight: Float64) -> Float64:
        """By what columns of rows are divided and rows of a weight ``(K, N)`` multiplied, shape (K,).

        Rows and weights are rounded both, rows by their largest value, and columns of weights by theirs. A spread is
        shared out between the two, so that neither of them has all of what features differ in: both become as large
        as the square root of what the feature brings to results. A spread that is not known is taken to be 1.
        """
        spread = np.where(self.spread > 0, self.spread, 1.0)
        largest = np.abs(weight).max(axis=1, initial=0.0)
        known = largest > 0
        return np.where(known, np.sqrt(spread) / np.sqrt(np.where(known, largest, 1.0)), spread)
