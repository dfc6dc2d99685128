"""`matmul`, with numpy's semantics for shapes.

==================================  ==================================  ========  ===================================
a                                   b                                   result    computed as
==================================  ==================================  ========  ===================================
float16, float32, bfloat16          float16, float32, bfloat16          float32   products of float16, sums in float32
int8, uint8, int4                   int8, uint8, int4                   int32     exact (modulo 2**32)
float16, float32, bfloat16          ``pack(w, "w8a8")``                  float32   int8 weight per channel, int8 rows of
                                                                                  `a`, sums in int32
==================================  ==================================  ========  ===================================

A float32 or bfloat16 operand is rounded to float16, so relative errors of 2**-11 per operand are to be expected; rows
of `a` and columns of `b` whose largest magnitude leaves float16's range are scaled by powers of two first, exactly, so
values neither overflow nor vanish. uint8 values are shifted by 128 and the products corrected exactly. Two int4
operands are multiplied as int4 where the chip can, in slices of K so short that no int16 sum overflows; otherwise int4
values become int8, exactly.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.device import Device, current_device
from npumatmul.ops.array_products import involves_npu_arrays, matmul_of_arrays
from npumatmul.ops.packed import PackedWeight, _pack, multiply_rows, native_order
from npumatmul.ops.settings import settings
from npumatmul.quant.schemes import cast_advice

__all__ = ["matmul", "npu_kind"]

_FLOATS: tuple[np.dtype[Any], ...] = tuple(np.dtype(t) for t in (np.float16, np.float32, ml_dtypes.bfloat16))
_INTEGERS: tuple[np.dtype[Any], ...] = tuple(np.dtype(t) for t in (np.int8, np.uint8, ml_dtypes.int4))
_RESULTS = {"float": _FLOATS, "integer": (np.dtype(np.int32),)}


def matmul(
    a: ArrayLike,
    b: ArrayLike | PackedWeight,
    /,
    out: NDArray[Any] | tuple[NDArray[Any]] | None = None,
    *,
    dtype: DTypeLike | None = None,
    device: Device | str | None = None,
) -> Any:
    """Product of matrices on the NPU; as `numpy.matmul` for 1-D operands, stacks of matrices and broadcasting.

    Parameters
    ----------
    a : array_like, shape (..., M, K) or (K,)
        float16, float32, bfloat16, int8, uint8 or int4, of any strides and byte order.
    b : array_like, shape (..., K, N) or (K,), or PackedWeight of shape (K, N)
        Of the same kind (float or integer) as `a`. A plain array is packed and uploaded anew on every call, since its
        contents may have changed; use `pack` for a weight that stays.
    out : ndarray, optional
        Where the result goes, of the result's shape; it may overlap the operands.
    dtype : data-type, optional
        Type of the result: float32 (default), float16 or bfloat16 (both rounded from float32 at the end) for floats,
        int32 for integers.
    device : Device or str, optional
        The current device by default; a packed weight's own device in any case.

    Returns
    -------
    ndarray, shape (..., M, N)
        Without M for a 1-D `a`, without N for a 1-D `b`; a scalar for both. float32 for floats, int32 for integers;
        the table in this module says what is computed how. `out` if it was given. An `NpuArray` where `a` or `b` is
        one.

    Raises
    ------
    TypeError
        If the NPU cannot multiply these dtypes without losing information; the message says what to cast to. Within
        ``config(fallback="numpy")`` numpy computes those instead, exactly as `numpy.matmul` does.
    ValueError
        If shapes do not fit.
    RknnError
        If the NPU runtime fails.

    Notes
    -----
    Integer results are exact as long as they fit int32, and wrap around beyond as numpy's int32 do. For floats let
    u = 2**-11 and v = 2**-24; then ``|result - a @ b| <= ((1 + u)**2 (1 + v)**(K + 1) - 1) (|a| @ |b|)`` wherever no
    operand becomes subnormal beside the largest of its row (of `a`) or column (of `b`), and the result does not
    overflow.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.matmul(np.array([[1, 2]], np.int8), np.array([[3], [4]], np.int8))
    array([[11]], dtype=int32)
    >>> npu.matmul(np.ones((5, 1, 2, 3), np.float16), np.ones((4, 3, 7), np.float16)).shape
    (5, 4, 2, 7)
    """
    if involves_npu_arrays(a, b, out):
        return matmul_of_arrays(matmul, a, b, out, device, {"dtype": dtype})
    left = np.asarray(a)
    if isinstance(b, PackedWeight):
        kind = "integer" if b.scheme.result == np.int32 else "float"
        result = _finished(_with_packed(left, b), kind, dtype)
        return _delivered(result, out, (a,))
    right = np.asarray(b)
    shape = _check_shapes(left, right.shape)
    kinds = npu_kind(left.dtype), npu_kind(right.dtype)
    if None in kinds or kinds[0] != kinds[1]:
        if settings().fallback == "numpy":
            options: dict[str, Any] = {"out": out, "dtype": dtype}
            return np.matmul(a, b, **{name: value for name, value in options.items() if value is not None})
        raise TypeError(_refusal(left.dtype, right.dtype))
    result = _finished(_product(left, right, current_device(device)), kinds[0], dtype)
    return _delivered(result.reshape(shape), out, (a, b))


def npu_kind(dtype: np.dtype[Any]) -> str | None:
    """Return ``"float"`` or ``"integer"`` for dtypes that the NPU multiplies, None for others."""
    dtype = dtype.newbyteorder("=")
    return "float" if dtype in _FLOATS else "integer" if dtype in _INTEGERS else None


def _product(a: NDArray[Any], b: NDArray[Any], device: Device) -> NDArray[Any]:
    """Product of plain arrays whose shapes and kinds fit, with M and N kept: (..., M, N)."""
    a = a[np.newaxis] if a.ndim == 1 else a
    b = b[:, np.newaxis] if b.ndim == 1 else b
    a, b = native_order(a), native_order(b)
    if npu_kind(a.dtype) == "integer" and a.dtype != b.dtype:
        # int4 stays int4 only where both are; uint8 is shifted by whoever reads it
        a, b = (x.astype(np.int8) if x.dtype == ml_dtypes.int4 else x for x in (a, b))
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    result_type = np.int32 if npu_kind(a.dtype) == "integer" else np.float32
    result: NDArray[Any] = np.empty((*batch, m, n), result_type)
    if result.size == 0 or k == 0:
        result[...] = 0
        return result
    # Each matrix of b is packed once, and meets all matrices of a that are multiplied with it as rows of one matmul.
    a = np.broadcast_to(a, (*batch, m, k))
    own = (1,) * (len(batch) - (b.ndim - 2)) + b.shape[:-2]
    b = b.reshape(*own, k, n)
    for index in np.ndindex(own):
        where = tuple(slice(None) if size == 1 else i for size, i in zip(own, index, strict=True))
        rows = a[where]
        with _pack(b[index].T, None, device, column_sums=a.dtype == np.uint8) as packed:
            product = multiply_rows(rows.reshape(-1, k), packed)
        result[where] = product.reshape(*rows.shape[:-1], n)
    return result


def _with_packed(a: NDArray[Any], packed: PackedWeight) -> NDArray[Any]:
    _check_shapes(a, packed.shape)
    product = multiply_rows(a.reshape(-1, a.shape[-1]), packed) if a.shape[-1] else None
    shape = (*a.shape[:-1], packed.shape[1])
    return np.zeros(shape, packed.scheme.result) if product is None else product.reshape(shape)


def _check_shapes(a: NDArray[Any], b_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the product, by numpy's rules."""
    for name, shape in (("a", a.shape), ("b", b_shape)):
        if not shape:
            raise ValueError(f"matmul: {name} is a scalar; use * to multiply by it")
    k = b_shape[-2] if len(b_shape) > 1 else b_shape[0]
    if a.shape[-1] != k:
        hint = ""
        if a.shape[-1] == b_shape[-1] and len(b_shape) > 1:
            hint = "; b looks transposed: use its .T, or pack(w, transposed=True) for a weight stored as (N, K)"
        raise ValueError(
            f"matmul: the last dimension of a is K = {a.shape[-1]}, but K of b is {k} "
            f"(shapes {a.shape} and {b_shape}){hint}"
        )
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b_shape[:-2])
    except ValueError as error:
        raise ValueError(
            f"matmul: the stacks of a and b cannot be broadcast together: {a.shape[:-2]} and {b_shape[:-2]} "
            f"(shapes {a.shape} and {b_shape})"
        ) from error
    return (*batch, *a.shape[-2:-1], *(b_shape[-1:] if len(b_shape) > 1 else ()))


def _refusal(a: np.dtype[Any], b: np.dtype[Any]) -> str:
    for name, dtype in (("a", a), ("b", b)):
        if npu_kind(dtype) is None:
            return f"matmul: {name}: {cast_advice(dtype)}, or compute it on the CPU: with npu.config(fallback='numpy')"
    return f"matmul: a is {a} and b is {b}: a float and an integer; cast one of them explicitly"


def _finished(result: NDArray[Any], kind: str | None, dtype: DTypeLike | None) -> NDArray[Any]:
    """The result in the dtype that was asked for."""
    if dtype is None:
        return result
    wanted = np.dtype(dtype)
    allowed = _RESULTS[kind or "float"]
    if wanted not in allowed:
        raise TypeError(
            f"matmul: dtype is {wanted}; the result of {kind} operands can be {' or '.join(map(str, allowed))}"
        )
    with np.errstate(over="ignore"):  # beyond float16's range a rounded result is an infinity, as in numpy
        return result.astype(wanted, copy=False)


def _delivered(result: NDArray[Any], out: NDArray[Any] | tuple[NDArray[Any]] | None, operands: tuple[Any, ...]) -> Any:
    """The result in `out`, or as numpy hands it out: of an operand's subclass, a 0-d result as a scalar."""
    if isinstance(out, tuple):
        if len(out) != 1:
            raise ValueError(f"matmul: out is a tuple of {len(out)}; there is one result")
        (out,) = out
    if out is not None:
        if not isinstance(out, np.ndarray):
            raise TypeError(f"matmul: out has to be an ndarray, not {type(out).__name__}")
        if out.shape != result.shape:
            raise ValueError(f"matmul: out has shape {out.shape}, the result has {result.shape}")
        np.copyto(out, result, casting="same_kind")
        return out
    classes = [x for x in operands if isinstance(x, np.ndarray) and type(x) is not np.ndarray]
    if classes:
        return max(classes, key=lambda x: x.__array_priority__).__array_wrap__(result)
    return result[()]
