"""Linear quantization of arrays with given parameters: the formula of the vendor's guide (facts 5.5).

    q = clamp(round(x / scale) + zero_point, qmin, qmax)        x' = scale * (q - zero_point)

Halves are rounded to even, as the CPU's and the kernels' rounding does; the clamp is never skipped.
"""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.host import kernels
from npumatmul.quant.given import given_array
from npumatmul.quant.params import Granularity, QuantParams

__all__ = ["dequantize", "fake_quantize", "float_array", "quantize"]


def quantize(x: ArrayLike, params: QuantParams) -> NDArray[np.int8]:
    """Codes of values.

    Parameters
    ----------
    x : array_like
        Floats or integers. float64 and integers are divided in float64, everything else in float32.
    params : QuantParams

    Returns
    -------
    ndarray of int8
        Of the shape of `x`, within ``params.qmin .. params.qmax``.

    Raises
    ------
    NotFiniteError
        If `x` holds an inf or nan.
    TypeError
        If `x` does not hold real numbers.
    ValueError
        If the parameters do not fit its shape.

    Examples
    --------
    >>> quantize([-1.0, 0.25, 0.75, 100.0], QuantParams(0.5))
    array([ -2,   0,   2, 127], dtype=int8)
    """
    values = float_array(x, "quantize")
    params.check_shape(values.shape)
    rows = _rows_with_one_scale(values, params)
    if rows is not None:
        with contextlib.suppress(NotFiniteError):  # which element it is, is found below
            return _codes_of_rows(rows, params).reshape(values.shape)
    scale, zero_point = params.expanded(values.shape)
    if not np.isfinite(values).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
        raise NotFiniteError(f"quantize: element {where} is {values[where]}, which cannot be quantized")
    with np.errstate(over="ignore"):  # a quotient beyond float is clamped like any other
        codes = np.asarray(values / scale)
    np.rint(codes, out=codes)
    codes += zero_point
    clamped: NDArray[np.int8] = np.clip(codes, params.qmin, params.qmax).astype(np.int8)
    return clamped


def _rows_with_one_scale(values: NDArray[Any], params: QuantParams) -> NDArray[np.float32] | None:
    """The array as rows of which each has one scale and zero point, where it is float32 and can be seen so."""
    if values.dtype != np.float32 or values.ndim != 2 or not values.size or not values.flags.c_contiguous:
        return None
    if params.granularity is Granularity.LAYER or params.granularity is Granularity.TOKEN:
        return values
    if params.axis in ((0, -2) if params.granularity is Granularity.CHANNEL else ()):
        return values
    size = params.group_size or 0
    if params.granularity is Granularity.GROUP and params.axis in (1, -1) and values.shape[1] % size == 0:
        return values.reshape(-1, size)
    return None


def _codes_of_rows(rows: NDArray[np.float32], params: QuantParams) -> NDArray[np.int8]:
    """The same formula in the kernel, in one pass."""
    count, cols = rows.shape
    scale = np.ascontiguousarray(np.broadcast_to(params.scale.reshape(-1), (count,)))
    zero = np.ascontiguousarray(np.broadcast_to(params.zero_point.reshape(-1), (count,)))
    codes = np.empty((count, cols), np.int8)
    tiling = kernels.Tiling(count, cols, count, cols, count, cols)  # row-major
    symmetric = params.symmetric and params.levels == 127
    kernels.pack(
        tiling,
        kernels.Conversion.F32_TO_I8,
        rows,
        codes.ctypes.data,
        codes.nbytes,
        scale,
        None if symmetric else zero,
    )
    whole_range = symmetric or (params.qmin, params.qmax) == (-128, 127)
    return codes if whole_range else np.clip(codes, params.qmin, params.qmax, out=codes)


def dequantize(codes: ArrayLike, params: QuantParams, dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Values that codes stand for.

    Parameters
    ----------
    codes : array_like of int
    params : QuantParams
    dtype : dtype
        float32 (one rounding per value) or float64 (exact).

    Returns
    -------
    ndarray of `dtype`
        Of the shape of `codes`.

    Raises
    ------
    TypeError
        If `codes` are not integers.
    ValueError
        If the parameters do not fit their shape.

    Examples
    --------
    >>> dequantize([-2, 0, 127], QuantParams(0.5, 1))
    array([-1.5, -0.5, 63. ], dtype=float32)
    """
    given = given_array(codes, "dequantize", "the array of codes")
    if given.dtype.kind not in "iu" and given.dtype.name != "int4":
        raise TypeError(f"dequantize: codes are integers, not {given.dtype}")
    scale, zero_point = params.expanded(given.shape)
    values: NDArray[Any] = np.asarray(given.astype(np.int64) - zero_point).astype(dtype)
    values *= scale
    return values


def fake_quantize(x: ArrayLike, params: QuantParams) -> NDArray[Any]:
    """Values after quantization and dequantization: `x` with the error that quantizing makes.

    Parameters
    ----------
    x : array_like
    params : QuantParams

    Returns
    -------
    ndarray of float32, or float64 where `x` is that or of integers

    Raises
    ------
    NotFiniteError, TypeError, ValueError
        As `quantize`.

    Examples
    --------
    >>> fake_quantize(np.array([-1.0, 0.3, 100.0], np.float32), QuantParams(0.5))
    array([-1. ,  0.5, 63.5], dtype=float32)
    """
    values = float_array(x, "fake_quantize")
    return dequantize(quantize(values, params), params, values.dtype)


def float_array(x: ArrayLike, function: str) -> NDArray[Any]:
    """An array as float32, or as float64 where it is that or holds integers.

    Raises
    ------
    TypeError
        If it does not hold real numbers, or is more than an array of them: see `given_array`.
    """
    given = given_array(x, function)
    if given.dtype.kind in "iub":
        return given.astype(np.float64)
    if given.dtype.kind != "f" and given.dtype.name not in ("bfloat16", "int4"):
        raise TypeError(f"{function}: takes an array of real numbers, not {given.dtype}")
    wanted = np.float64 if given.dtype.kind == "f" and given.dtype.itemsize >= 8 else np.float32
    return np.asarray(given, wanted)
