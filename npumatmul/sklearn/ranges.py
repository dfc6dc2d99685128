"""Ranges of features: what makes rows of unlike features fit for eight bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ranges"]

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Ranges:
    """Middle and half width of the range that each feature has in an example.

    Attributes
    ----------
    middle, half : ndarray of float64, shape (features,)
        `half` is 1 where a feature has one value only.
    """

    middle: Float64
    half: Float64

    @classmethod
    def of(cls, rows: NDArray[Any]) -> Ranges:
        """The ranges of example rows ``(n, features)``."""
        low, high = (np.asarray(find(rows, axis=0), np.float64) for find in (np.min, np.max))
        half = high / 2 - low / 2
        return cls(low / 2 + high / 2, np.where(half > 0, half, 1.0))

    def scaled(self, rows: NDArray[Any]) -> Float64:
        """Rows with all features between -1 and 1, as far as they are like the example."""
        scaled: Float64 = (rows - self.middle) / self.half
        return scaled
