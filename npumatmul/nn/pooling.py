"""`pool`: one row for each text from the rows of its tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.nn.module import as_floats, float32_of, rounded_to
from npumatmul.nn.product import Float32
from npumatmul.ops import NpuArray

__all__ = ["POOLINGS", "PoolingName", "pool"]

PoolingName = Literal["mean", "cls", "last", "max"]
_CALLED = "pool"


def _mean(x: Float32, seen: NDArray[np.bool_]) -> Float32:
    total: Float32 = np.add.reduce(x, axis=1, where=seen[..., None])
    total /= np.add.reduce(seen, axis=1, dtype=np.float32)[:, None]
    return total


def _max(x: Float32, seen: NDArray[np.bool_]) -> Float32:
    highest: Float32 = np.maximum.reduce(x, axis=1, where=seen[..., None], initial=-np.inf)
    return highest


def _first(x: Float32, seen: NDArray[np.bool_]) -> Float32:
    first: Float32 = x[np.arange(len(x)), np.argmax(seen, axis=1)]
    return first


def _last(x: Float32, seen: NDArray[np.bool_]) -> Float32:
    last: Float32 = x[np.arange(len(x)), seen.shape[1] - 1 - np.argmax(seen[:, ::-1], axis=1)]
    return last


#: Ways to pool by their names.
POOLINGS: dict[str, Callable[[Float32, NDArray[np.bool_]], Float32]] = {
    "mean": _mean,
    "cls": _first,
    "last": _last,
    "max": _max,
}


def pool(x: Any, mask: ArrayLike | None = None, how: PoolingName | str = "mean") -> NDArray[Any]:
    """Make one row for each text of the rows of its tokens.

    Parameters
    ----------
    x : ndarray or NpuArray, shape (B, T, H)
        Rows of T tokens of each of B texts.
    mask : array_like of bool, shape (B, T), optional
        True where there is a token, False where a shorter text was filled up, before it or behind it; by default there
        are tokens everywhere.
    how : {"mean", "cls", "last", "max"}
        The mean of the tokens' rows; the row of the first token, which is CLS, or of the last one; or the largest
        value of each column.

    Returns
    -------
    ndarray, shape (B, H)
        A new array of the dtype of `x`, computed in float32.

    Raises
    ------
    ValueError
        If shapes do not fit, a text has no tokens, or there is no such way.
    TypeError
        If `x` is not of floats.

    Notes
    -----
    With v = 2**-24 means are off by at most (T + 2) v times the largest magnitude of their column; all else is exact.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> x = np.array([[[1, 2], [3, 6], [9, 9]]], np.float32)
    >>> nn.pool(x, [[True, True, False]])
    array([[2., 4.]], dtype=float32)
    >>> nn.pool(x, [[True, True, False]], "last")
    array([[3., 6.]], dtype=float32)
    """
    if how not in POOLINGS:
        raise ValueError(f"{_CALLED}: no pooling is called {how!r}; there are {', '.join(map(repr, POOLINGS))}")
    given = as_floats(x.numpy(writable=False) if isinstance(x, NpuArray) else x, _CALLED)
    if given.ndim != 3 or 0 in given.shape[1:]:
        raise ValueError(f"{_CALLED} takes (B, T, H), with tokens; the input has shape {given.shape}")
    seen = np.ones(given.shape[:2], bool) if mask is None else np.asarray(mask)
    if seen.dtype != bool or seen.shape != given.shape[:2]:
        raise ValueError(f"{_CALLED}: mask is {seen.dtype} of shape {seen.shape}; bool of {given.shape[:2]} is needed")
    if not seen.any(axis=1).all():
        raise ValueError(f"{_CALLED}: text {int(np.argmin(seen.any(axis=1)))} has no tokens")
    return rounded_to(POOLINGS[how](float32_of(given, _CALLED), seen), given.dtype)
