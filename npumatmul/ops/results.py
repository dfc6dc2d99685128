"""The result of a product: its type, the caller's `out`, and how it is handed out."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["checked_out", "delivered", "in_place", "result_type"]

_FLOATS: tuple[np.dtype[Any], ...] = tuple(np.dtype(t) for t in (np.float16, np.float32, ml_dtypes.bfloat16))

Out = NDArray[Any] | tuple[NDArray[Any]] | None


def result_type(computed: np.dtype[Any], dtype: DTypeLike | None) -> np.dtype[Any]:
    """Type of a result that is computed as float32 or int32.

    Raises
    ------
    TypeError
        If it cannot be had in this type.
    """
    if dtype is None:
        return computed
    wanted = np.dtype(dtype)
    kind, allowed = ("integer", (computed,)) if computed == np.int32 else ("float", _FLOATS)
    if wanted not in allowed:
        raise TypeError(
            f"matmul: dtype is {wanted}; the result of {kind} operands can be {' or '.join(map(str, allowed))}"
        )
    return wanted


def checked_out(out: Out, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """Check the caller's `out` against the result before anything is computed.

    Raises
    ------
    TypeError
        If it is no array, or of a type that the result is not cast to.
    ValueError
        If it has another shape, or cannot be written to.
    """
    if isinstance(out, tuple):
        if len(out) != 1:
            raise ValueError(f"matmul: out is a tuple of {len(out)}; there is one result")
        (out,) = out
    if out is None:
        return None
    if not isinstance(out, np.ndarray):
        raise TypeError(f"matmul: out has to be an ndarray, not {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"matmul: out has shape {out.shape}, the result has {shape}")
    if not out.flags.writeable:
        raise ValueError("matmul: out is read-only")
    if not np.can_cast(dtype, out.dtype, "same_kind"):
        raise TypeError(f"matmul: the result is {dtype} and cannot be cast to the {out.dtype} of out by 'same_kind'")
    return out


def in_place(out: NDArray[Any] | None, shape: tuple[int, ...], dtype: np.dtype[Any], *read: Any) -> NDArray[Any] | None:
    """`out` as rows that a result can be computed in, or None where it needs memory of its own first.

    Parameters
    ----------
    out : ndarray or None
    shape : tuple of int
        (..., M, N), with as many elements as `out`.
    dtype : numpy.dtype
        Of the result.
    *read : array_like
        What is read meanwhile, and so must not overlap.

    Returns
    -------
    ndarray or None
        A view of shape `shape`.
    """
    if out is None or out.dtype != dtype or not out.flags.c_contiguous or not out.flags.aligned:
        return None
    if any(isinstance(x, np.ndarray) and np.may_share_memory(x, out) for x in read):
        return None
    return np.asarray(out).reshape(shape)


def delivered(result: NDArray[Any], out: NDArray[Any] | None, operands: tuple[Any, ...]) -> Any:
    """The result in `out`, or as numpy hands it out: of an operand's subclass, a 0-d result as a scalar."""
    if out is not None:
        if not np.may_share_memory(out, result):
            np.copyto(out, result, casting="same_kind")
        return out
    classes = [x for x in operands if isinstance(x, np.ndarray) and type(x) is not np.ndarray]
    if classes:
        return max(classes, key=lambda x: x.__array_priority__).__array_wrap__(result)
    return result[()]
