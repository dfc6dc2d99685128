"""`matmul`, with numpy's semantics for shapes.

==================================  ==================================  ========  ===================================
a                                   b                                   result    computed as
==================================  ==================================  ========  ===================================
float16, float32, bfloat16          float16, float32, bfloat16          float32   products of float16, sums in float32
int8, uint8, int4                   int8, uint8, int4                   int32     exact (modulo 2**32)
float16, float32, bfloat16          ``pack(w, "w8a8")``                  float32   int8 weight per channel, int8 rows of
                                                                                  `a`, sums in int32
the same, or int8                   ``pack(w, "w8a8o8")``, with scales  int8      the NPU rounds its sums to int8
==================================  ==================================  ========  ===================================

A float32 or bfloat16 operand is rounded to float16, so relative errors of 2**-11 per operand are to be expected; rows
of `a` and columns of `b` whose largest magnitude leaves float16's range are scaled by powers of two first, exactly, so
values neither overflow nor vanish. uint8 values are shifted by 128 and the products corrected exactly. Two int4
operands are multiplied as int4 where the chip can, in slices of K so short that no int16 sum overflows; otherwise int4
values become int8, exactly.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.device.device import Device
from npumatmul.host.epilogue import Epilogue
from npumatmul.host.layers import RECORDER
from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.array.products import device_of, involves_npu_arrays, on_cpu
from npumatmul.ops.background import MatmulFuture, submit
from npumatmul.ops.foreign import OWN, of_others
from npumatmul.ops.options import MatmulOptions
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.planned import Matmul
from npumatmul.ops.product import Product, remember
from npumatmul.ops.settings import CURRENT, settings
from npumatmul.ops.shapes import Shapes, npu_kind
from npumatmul.ops.typed import HowMatmul, Into, Operand, Place, Unpack
from npumatmul.ops.weights import check_device
from npumatmul.quant.names import Precision, SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["matmul", "matmul_async"]

#: One product is nobody's phase: it is logged where details are asked for.
_ONCE = MatmulOptions(level=logging.DEBUG)
_is_logged, _DEBUG = _ONCE.logger.isEnabledFor, logging.DEBUG
_ndarray = np.ndarray


def logs_products() -> bool:
    """Whether each product is logged, so that none may be made unseen."""
    return _is_logged(_DEBUG)


_current, _recorder = CURRENT.get, RECORDER.get


@overload
def matmul(a: NpuArray, b: Operand, /, out: None = None, **how: Unpack[HowMatmul]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def matmul(a: Operand, b: NpuArray, /, out: None = None, **how: Unpack[HowMatmul]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def matmul(a: Operand, b: Operand, /, out: None = None, **how: Unpack[HowMatmul]) -> NDArray[Any]: ...
@overload
def matmul(a: Operand, b: Operand, /, out: Place | tuple[Place], **how: Unpack[HowMatmul]) -> Place: ...
def matmul(
    a: Operand,
    b: Operand,
    /,
    out: Into = None,
    *,
    dtype: DTypeLike | None = None,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    epilogue: Epilogue | None = None,
    bias: ArrayLike | None = None,
    device: Device | str | None = None,
) -> Any:
    """Product of matrices on the NPU; as `numpy.matmul` for 1-D operands, stacks of matrices and broadcasting.

    Parameters
    ----------
    a : array_like, shape (..., M, K) or (K,), or PackedWeight
        float16, float32, bfloat16, int8, uint8 or int4, of any strides and byte order. A packed weight is unpacked
        anew on every call (`PackedWeight.unpack`), and multiplied on its device.
    b : array_like, shape (..., K, N) or (K,), or PackedWeight of shape (K, N)
        Of the same kind (float or integer) as `a`. A plain array is packed and uploaded anew on every call, since its
        contents may have changed; use `pack` for a weight that stays.
    out : ndarray, optional
        Where the result goes, of the result's shape, or of a larger stack that it is broadcast to; it may overlap the
        operands.
    dtype : data-type, optional
        Type of the result: float32 (default), float16 or bfloat16 (both rounded from float32 at the end) for floats
        and with an epilogue; int32 for integers; int8 where the scheme's results are.
    scheme : Scheme or str, optional
        How plain operands are represented on the NPU, as for `pack`: ``"w8a8"`` quantizes both to int8, `b` per column
        and `a` per row. By default float operands are ``"w16a16"``, and integers are exact.
    precision : {None, "high"}, optional
        ``"high"``: each float32 becomes two float16, and three products are made: close to float32, for three times
        the work. Integers, and two float16, are computed as ever, since their products are exact.
    epilogue : Epilogue, optional
        What is done to the result in the same pass: scale, bias, activation, multiply, residual, clip, cast. `multiply`
        and `residual` may have any shape that can be broadcast to the result's. Results are float then, also of
        integers, whose exact int32 products are converted first.
    bias : array_like, shape (N,), optional
        Short for an epilogue with just this bias. For integers without an epilogue it is an integer, and added to the
        int32 result.
    device : Device or str, optional
        The current device by default; with a packed weight its own, and no other one.

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
        If shapes do not fit, or `scheme`, `precision` and `device` do not go together or with a packed weight.
    NotFiniteError
        If a scheme quantizes, and an operand holds an inf or nan.
    RknnError
        If the NPU runtime fails; what stands in `out` is undefined then, as after an interrupt. After any other
        exception it is unchanged.
    DeviceLostError
        If it fails because the device is gone.

    Notes
    -----
    Integer results are exact as long as they fit int32, and wrap around beyond as numpy's int32 do.

    For finite floats let u = 2**-11, v = 2**-24, A and B the largest magnitudes of a row of `a` and a column of `b`.
    As long as the result does not overflow::

        |result - a @ b| <= ((1 + u)**2 (1 + v)**(K + 1) - 1) (|a| @ |b|) + 2**-21 K A B

    with u = 0 and without the last summand for two float16. The last summand is due to elements that are tiny beside
    the largest of their row or column. With ``precision="high"``::

        |result - a @ b| <= (3 u**2 + (1 + 4 u) ((1 + v)**(3 K + 1) - 1)) (|a| @ |b|) + 2**-35 K A B

    Either way a result below float32's normal range is rounded to steps of 2**-149. inf and nan go through as in
    float32 arithmetic; a value that vanishes beside the largest of its row or column is a zero there.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.matmul(np.array([[1, 2]], np.int8), np.array([[3], [4]], np.int8))
    array([[11]], dtype=int32)
    >>> npu.matmul(np.ones((5, 1, 2, 3), np.float16), np.ones((4, 3, 7), np.float16)).shape
    (5, 4, 2, 7)
    """
    asked: Any = None
    left: Any = a
    kind = type(left)
    place: Any = out[0] if type(out) is tuple and len(out) == 1 else out
    if (
        type(b) is PackedWeight
        and (kind is _ndarray or kind is NpuArray)
        and (place is None or type(place) is _ndarray)
        and (device is None or device is b.device)
        and scheme is None
        and precision is None
    ):
        finishes = epilogue.dtype if epilogue is not None and isinstance(epilogue, Epilogue) else epilogue
        scope = _current()
        asked = left.shape, left.dtype, dtype, finishes, b.processor or scope.processor, scope.cores
        try:
            prepared: Product | None = b.products.get(asked)
        except TypeError:  # a dtype that cannot be looked up
            prepared = asked = None
        if prepared is not None and not _is_logged(_DEBUG):
            if epilogue is not None or bias is not None:
                epilogue, bias = prepared.fitted(epilogue, bias)
            if kind is _ndarray:
                computed = prepared.compute(left, place, epilogue, bias)
                if (recorder := _recorder()) is not None:
                    recorder.product(prepared.recorded(place), b, left, computed, epilogue, bias)
                return computed
            if place is None:
                made = (prepared.of_arrays or prepared.with_arrays()).multiply(left, epilogue, bias)
                if made is not None:
                    return made
    if type(a) not in OWN or type(b) not in OWN or type(place) not in OWN:
        given: dict[str, Any] = {"dtype": dtype, "scheme": scheme, "precision": precision, "epilogue": epilogue}
        return of_others(matmul, (a, b), {"out": out, **given, "bias": bias, "device": device})
    if isinstance(a, PackedWeight):
        device = a.device if device is None and not isinstance(b, PackedWeight) else device
        a = a.unpack()
    plain = all(x is None for x in (scheme, precision, epilogue, bias))
    arrays = involves_npu_arrays(a, b, out)
    if settings().fallback == "numpy" and plain and not isinstance(b, PackedWeight):
        left, right = np.asarray(a), np.asarray(b)
        kinds = npu_kind(left.dtype), npu_kind(right.dtype)
        if None in kinds or kinds[0] != kinds[1]:
            Shapes.of(left.shape, right.shape)  # mistakes get our messages
            given = {"out": out, "dtype": dtype}
            given = {name: value for name, value in given.items() if value is not None}
            return on_cpu(np.matmul, a, b, given) if arrays else np.matmul(a, b, **given)
    product = Matmul(
        a, b, dtype=dtype, scheme=scheme, precision=precision, epilogue=epilogue, bias=bias, options=_ONCE,
        device=device,
    )  # fmt: skip
    if asked is None:
        return product.once(out)
    result = product.execute(out)  # there is nothing to give back: the weight is the caller's
    if product.prepared is not None:
        assert isinstance(b, PackedWeight)
        remember(b, asked, product.prepared)
    if kind is _ndarray and (recorder := _recorder()) is not None:
        prepared = product.prepared
        recorder.product(None if prepared is None else prepared.recorded(place), b, left, result, epilogue, bias)
    return result


@overload
def matmul_async(a: NpuArray, b: Operand, /, out: None = None, **how: Unpack[HowMatmul]) -> MatmulFuture[NpuArray]: ...  # type: ignore[overload-overlap]
@overload
def matmul_async(a: Operand, b: NpuArray, /, out: None = None, **how: Unpack[HowMatmul]) -> MatmulFuture[NpuArray]: ...  # type: ignore[overload-overlap]
@overload
def matmul_async(
    a: Operand, b: Operand, /, out: None = None, **how: Unpack[HowMatmul]
) -> MatmulFuture[NDArray[Any]]: ...
@overload
def matmul_async(
    a: Operand, b: Operand, /, out: Place | tuple[Place], **how: Unpack[HowMatmul]
) -> MatmulFuture[Place]: ...
def matmul_async(
    a: Operand,
    b: Operand,
    /,
    out: Into = None,
    *,
    dtype: DTypeLike | None = None,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    epilogue: Epilogue | None = None,
    bias: ArrayLike | None = None,
    device: Device | str | None = None,
) -> MatmulFuture[Any]:
    """Compute `matmul` in the background, by the device's worker thread.

    Parameters
    ----------
    a, b, out, dtype, scheme, precision, epilogue, bias, device
        As for `matmul`. Arrays are referenced, not copied: do not change their contents, nor use `out`, until the
        product is done.

    Returns
    -------
    MatmulFuture
        A `concurrent.futures.Future`, which can also be awaited: ``y = await npu.matmul_async(x, w)``. Every exception
        that `matmul` raises arrives there. One that is cancelled before it began leaves `out` as it is.

    Raises
    ------
    ClosedError
        If the device is closed.

    Notes
    -----
    A device computes one product at a time, in the order of submission. Settings of the caller's scope (`config`,
    `use_device`) apply.

    Examples
    --------
    >>> import npumatmul as npu
    >>> future = npu.matmul_async(np.array([[1, 2]], np.int8), np.array([[3], [4]], np.int8))
    >>> future.result()
    array([[11]], dtype=int32)
    """
    if isinstance(b, PackedWeight):
        check_device(b, device)
        target = b.device
    else:
        target = device_of([a, b, out], device)
    call = partial(
        matmul, a, b, out, dtype=dtype, scheme=scheme, precision=precision, epilogue=epilogue, bias=bias, device=target
    )
    return submit(target, call)
