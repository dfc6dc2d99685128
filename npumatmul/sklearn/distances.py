"""Euclidean distances to points that stay on the NPU, by ``|x|**2 - 2 x.p + |p|**2``.

The three terms cancel, so points and rows are centred first, and what a product may be off is known (`npumatmul.matmul`
documents it): where a choice depends on it, those that could be chosen are computed once more, exactly.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.sklearn.affine import Affine
from npumatmul.sklearn.ranges import Float64
from npumatmul.sklearn.schemes import HIGH

__all__ = ["Nearest", "SquaredDistances"]

_U, _V = 2.0**-11, 2.0**-24
#: Elements of a piece of a matrix of distances.
_PIECE = 1 << 22


class SquaredDistances:
    """Squares of distances from rows to points.

    Parameters
    ----------
    name : str
    points : ndarray of float, shape (N, K)
    scheme : str
        ``"w16a16"`` where what is near is looked at again, else ``"w16a16_high"``.
    device
        As for `npumatmul.pack`.
    """

    def __init__(self, name: str, points: NDArray[Any], *, scheme: str = HIGH, device: Any = None) -> None:
        exact = np.asarray(points, np.float64)
        self.center: Float64 = exact.mean(axis=0)
        self.points: Float64 = exact - self.center
        self.product = Affine(name, self.points.T, None, scheme=scheme, device=device)
        self._squares = (self.points * self.points).sum(axis=1)
        k = self.points.shape[1]
        if scheme == HIGH:
            self._error = 3 * _U**2 + (1 + 4 * _U) * ((1 + _V) ** (3 * k + 1) - 1) + k * 2.0**-35
        else:
            self._error = (1 + _U) ** 2 * (1 + _V) ** (k + 1) - 1 + k * 2.0**-21
        self._error += 2 * _V  # rows and points are rounded to float32 before

    def centred(self, rows: NDArray[Any]) -> Float64:
        """Rows as `of` takes them."""
        made: Float64 = rows - self.center
        return made

    def of(self, centred: Float64) -> Float64:
        """Squares of distances, ``(M, N)``; of those below zero, zero."""
        made: Float64 = self._squares - 2.0 * np.asarray(self.product(centred), np.float64)
        made += (centred * centred).sum(axis=1)[:, None]
        np.maximum(made, 0.0, out=made)
        return made

    def bound(self, centred: Float64) -> Float64:
        """What `of` is off at most, for each row and point, ``(M, N)``: by Cauchy-Schwarz, twice that of a product."""
        lengths = np.sqrt((centred * centred).sum(axis=1)), np.sqrt(self._squares)
        # and what sums in float64 are off
        made: Float64 = 2 * self._error * np.outer(*lengths) + 2.0**-48 * (lengths[0][:, None] + lengths[1]) ** 2
        return made

    def pieces(self, rows: NDArray[Any]) -> Iterator[slice]:
        """Slices of rows whose distances fit into a piece of memory."""
        step = max(1, _PIECE // max(self.points.shape))
        return (slice(start, min(start + step, len(rows))) for start in range(0, len(rows), step))


class Nearest:
    """The nearest points, exactly: those that may be among them by what the NPU made are computed again in float64.

    Parameters
    ----------
    name, points, device
        As for `SquaredDistances`.
    """

    def __init__(self, name: str, points: NDArray[Any], *, device: Any = None) -> None:
        self.distances = SquaredDistances(name, points, scheme="w16a16", device=device)
        self.looked_at = 0  # points that were computed again, by now

    def find(self, rows: NDArray[Any], count: int) -> tuple[Float64, NDArray[np.intp]]:
        """The nearest points of each row, nearest first; of equals those that come first.

        Returns
        -------
        squares : ndarray of float64, shape (M, count)
        indices : ndarray of intp, shape (M, count)
        """
        squares = np.empty((len(rows), count))
        indices = np.empty((len(rows), count), np.intp)
        for part in self.distances.pieces(rows):
            squares[part], indices[part] = self._find(self.distances.centred(rows[part]), count)
        return squares, indices

    def _find(self, centred: Float64, count: int) -> tuple[Float64, NDArray[np.intp]]:
        found, off = self.distances.of(centred), self.distances.bound(centred)
        highest = np.partition(found + off, count - 1, axis=1)[:, count - 1]
        found -= off
        most = int((found <= highest[:, None]).sum(axis=1).max())
        chosen = np.sort(np.argpartition(found, most - 1, axis=1)[:, :most], axis=1)
        self.looked_at += chosen.size
        exact = np.empty(chosen.shape)
        step = max(1, _PIECE // (most * centred.shape[1]))
        for start in range(0, len(centred), step):
            part = slice(start, start + step)
            apart = centred[part, None, :] - self.distances.points[chosen[part]]
            exact[part] = np.einsum("mnk,mnk->mn", apart, apart)
        order = np.argsort(exact, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(exact, order, 1), np.take_along_axis(chosen, order, 1)
