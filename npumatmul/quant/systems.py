"""Cholesky factors and linear systems of matrices that are symmetric and positive definite, in blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npumatmul.quant.meter import Meter

__all__ = ["cholesky", "factor_cost", "solve", "solve_cost"]

#: Smaller ones are factored in one call.
_BLOCK = 512


def factor_cost(k: int) -> float:
    """Of a factor of (K, K)."""
    return k**3 / 6


def solve_cost(k: int, columns: int) -> float:
    """Of a system with a factor that is known."""
    return float(k * k * columns)


def cholesky(matrix: NDArray[np.float64], meter: Meter) -> NDArray[np.float64]:
    """Lower triangular L with ``L @ L.T == matrix``.

    Raises
    ------
    numpy.linalg.LinAlgError
        If the matrix is not positive definite.
    """
    k = len(matrix)
    if k <= _BLOCK:
        lower = np.asarray(np.linalg.cholesky(matrix), np.float64)
        meter.add(factor_cost(k))
        return lower
    rest = np.array(matrix, np.float64)  # below what is done, what of the matrix is not accounted for yet
    for start in range(0, k, _BLOCK):
        end = min(start + _BLOCK, k)
        columns = [slice(column, min(column + _BLOCK, k)) for column in range(end, k, _BLOCK)]
        each = (factor_cost(k - start) - factor_cost(k - end)) / (1 + len(columns))
        rest[start:end, start:end] = np.linalg.cholesky(rest[start:end, start:end])
        below = np.linalg.solve(rest[start:end, start:end], rest[end:, start:end].T)
        rest[end:, start:end] = below.T
        meter.add(each)
        for part in columns:
            rest[part.start :, part] -= below[:, part.start - end :].T @ below[:, part.start - end : part.stop - end]
            meter.add(each)
    return np.tril(rest)


def solve(lower: NDArray[np.float64], right: NDArray[np.float64], meter: Meter) -> NDArray[np.float64]:
    """``X`` with ``lower @ lower.T @ X == right``, of shape (K, columns)."""
    k = len(lower)
    spans = [slice(start, min(start + _BLOCK, k)) for start in range(0, k, _BLOCK)]
    result = np.array(right, np.float64)
    cost = solve_cost(k, right.shape[1]) / (2 * max(len(spans), 1))
    for span in spans:
        result[span] = np.linalg.solve(
            lower[span, span], result[span] - lower[span, : span.start] @ result[: span.start]
        )
        meter.add(cost)
    for span in reversed(spans):
        result[span] = np.linalg.solve(
            lower[span, span].T, result[span] - lower[span.stop :, span].T @ result[span.stop :]
        )
        meter.add(cost)
    return result
