"""Where the result of a product goes: the caller's `out`, and how it is handed out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.quant.schemes import FLOATS

__all__ = ["Out", "as_rows", "checked_out", "fits", "in_place"]


Out = NDArray[Any] | tuple[NDArray[Any]] | None


def checked_out(
    out: Out, shape: tuple[int, ...], dtype: np.dtype[Any], core: int, function: str = "matmul"
) -> NDArray[Any] | None:
    """Check the caller's `out` against the result before anything is computed.

    Parameters
    ----------
    out : ndarray or (ndarray,) or None
    shape : tuple of int
        Of the result. Where only its stack is smaller than that of `out`, it is broadcast, as numpy's ufuncs do.
    dtype : numpy.dtype
        Of the result.
    core : int
        Dimensions of the result that are not of the stack.
    function : str
        For error messages.

    Raises
    ------
    TypeError
        If it is no array, or of a type that the result is not cast to.
    ValueError
        If it has another shape, or cannot be written to.
    """
    if isinstance(out, tuple):
        if len(out) != 1:
            raise ValueError(f"{function}: out is a tuple of {len(out)}; there is one result")
        (out,) = out
    if out is None:
        return None
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{function}: out has to be an ndarray, not {type(out).__name__}")
    if out.shape != shape and not fits(out.shape, shape, core):
        raise ValueError(f"{function}: out has shape {out.shape}, the result has {shape}")
    if not out.flags.writeable:
        raise ValueError(f"{function}: out is read-only")
    if out.dtype != dtype and not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(
            f"{function}: the result is {dtype} and cannot be cast to the {out.dtype} of out by 'same_kind'"
        )
    return out


def fits(place: tuple[int, ...], shape: tuple[int, ...], core: int) -> bool:
    """Whether a result can be broadcast to a place: its stack, that is, and not its last `core` dimensions."""
    stack = len(shape) - core
    beyond = len(place) - len(shape)
    return (
        beyond >= 0
        and place[beyond + stack :] == shape[stack:]
        and all(size in (1, own) for size, own in zip(shape[:stack], place[beyond:], strict=False))
    )


def in_place(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any], *read: Any) -> NDArray[Any] | None:
    """`out` as the place to compute a result in, or None where it needs memory of its own first.

    Parameters
    ----------
    out : ndarray or None
    shape : tuple of int
        (..., M, N).
    dtype : numpy.dtype
        Of the result.
    *read : ndarray or None
        What is read meanwhile: it must not overlap, unless it is `out` itself, element by element.

    Returns
    -------
    ndarray or None
        A view of shape `shape`, of the type of `out`: a float16 or bfloat16 `out` is rounded to from float32 directly.
    """
    if out is None or not out.flags.aligned or not out.dtype.isnative or out.size != math.prod(shape):
        return None
    if out.dtype != dtype and not (dtype == np.float32 and out.dtype in FLOATS):
        return None
    view = np.asarray(out).reshape(shape)
    if not np.may_share_memory(view, out):
        return None
    return None if any(_disturbs(x, view) for x in read) else view


def _disturbs(read: NDArray[Any] | None, written: NDArray[Any]) -> bool:
    if read is None or not np.may_share_memory(read, written):
        return False
    same = (read.ctypes.data, read.shape, read.strides, read.dtype)
    return same != (written.ctypes.data, written.shape, written.strides, written.dtype)


def as_rows(array: NDArray[Any]) -> NDArray[Any] | None:
    """An array (..., N) as a matrix of contiguous rows that shares its memory, or None where there is no such view."""
    rows = array.reshape(-1, array.shape[-1])
    contiguous = rows.strides[1] == rows.itemsize and (
        len(rows) == 1 or rows.strides[0] >= rows.shape[1] * rows.itemsize
    )
    return rows if contiguous and np.may_share_memory(rows, array) else None
