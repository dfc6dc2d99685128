"""``precision="high"``: float32 operands as two float16 each, and three of the four products.

A value x, scaled by a power of two, is hi + lo + e with hi = float16(x) and lo = float16(x - hi). Of a @ b the products
hi @ hi, hi @ lo and lo @ hi are made; lo @ lo is left out. They are one matmul of threefold K::

    [hi | hi | lo] @ [hi ; lo ; hi]

Rows of `a` and columns of `b` are scaled so that the largest magnitude lies in [2^13, 2^14): far enough below float16's
largest value, and so high that the low part of all but the smallest elements is a normal float16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["joined", "split_rows"]

#: Exponent that frexp gives the largest magnitude of a scaled row.
_LARGEST = 14


def split_rows(x: NDArray[Any]) -> tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.intc]]:
    """Split the rows of a matrix into high and low parts.

    Parameters
    ----------
    x : ndarray, shape (R, K)
        float32, float16 or bfloat16.

    Returns
    -------
    high, low : ndarray of float16, shape (R, K)
        ``(high + low) * 2.0**-exponent`` is `x` but for the last bits. The low part is zero where `x` is not finite.
    exponent : ndarray of int, shape (R,)

    Examples
    --------
    >>> high, low, exponent = split_rows(np.array([[1 + 2.0**-13, 0.5]], np.float32))
    >>> high.tolist(), low.tolist(), exponent.tolist()
    ([[8192.0, 4096.0]], [[1.0, 0.0]], [13])
    """
    x = x.astype(np.float32, copy=False)
    finite = np.isfinite(x)
    largest = np.max(np.abs(x), axis=1, where=finite, initial=0)
    exponent = np.where(largest > 0, _LARGEST - np.frexp(largest)[1], 0).astype(np.intc)
    scaled = np.ldexp(x, exponent[:, np.newaxis])
    high = scaled.astype(np.float16)
    with np.errstate(invalid="ignore"):  # inf - inf
        low = (scaled - high).astype(np.float16)
    low[~finite] = 0
    return high, low, exponent


def joined(high: NDArray[np.float16], low: NDArray[np.float16], order: str) -> NDArray[np.float16]:
    """Put the parts of rows side by side, for one matmul that sums all products.

    The products across parts leave out rows that are not finite: there inf times a low part of 0 would be nan.

    Parameters
    ----------
    high, low : ndarray of float16, shape (R, K)
    order : str
        ``"hhl"`` for rows of `a`, ``"hlh"`` for columns of `b`.

    Returns
    -------
    ndarray of float16, shape (R, 3 K)
    """
    finite = np.asarray(np.isfinite(high).all(axis=1))
    across = {"h": high, "l": low}
    if not finite.all():
        across = {part: np.where(finite[:, np.newaxis], values, np.float16(0)) for part, values in across.items()}
    return np.concatenate([high, *(across[part] for part in order[1:])], axis=1)
