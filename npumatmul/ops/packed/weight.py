"""`pack` and `PackedWeight`: right operands that stay on the NPU."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import NotFiniteError
from npumatmul.host.activation import Activation
from npumatmul.host.epilogue import Epilogue
from npumatmul.ops.packed.base import PackedBase
from npumatmul.ops.packed.tiles import Laid, float_tiles, high_tiles, integer_tiles
from npumatmul.ops.settings import settings
from npumatmul.ops.shapes import operand
from npumatmul.planning.choices import consulting
from npumatmul.planning.product import WeightPlan
from npumatmul.quant.params import Granularity, InputTransform, QuantizedWeight, QuantParams
from npumatmul.quant.routes import Route, route_for
from npumatmul.quant.schemes import SCHEMES, Scheme, cast_advice, named, scheme_for
from npumatmul.quant.transforms import kernel_of
from npumatmul.quant.weight_scales import round_weight
from npumatmul.running.autotune import tuning_cache
from npumatmul.running.deferred import DeferredResult
from npumatmul.running.placement import Placement, StoredWeight

__all__ = ["PackedWeight", "defer_rows", "finish_rows", "multiply_rows", "native_order", "pack", "takes_deferred"]

logger = logging.getLogger(__name__)

#: What uint8 values are shifted by to become int8; the products are corrected exactly.
UINT8_SHIFT = 128


class PackedWeight(PackedBase):
    """A right operand of `matmul` that stays on the NPU: packed and uploaded once, used again and again.

    Made by `pack`. Immutable; any thread may use it. Its memory is given back by `close`, at the end of a ``with``
    block, or when it is dropped.

    Attributes
    ----------
    shape : tuple of int
        (K, N).
    scheme : Scheme
    route : Route
        How the device computes the scheme; ``route.note`` says what there is to know about it.
    device : Device
    plan : WeightPlan or None
        How it is cut into tiles; None for a weight without elements.
    zero_point : int
        What the stored values lack: 128 for uint8 weights, which are stored as int8, else 0.
    column_sums : ndarray of int32, shape (N,), or None
        Sums over K of integer weights (modulo 2**32); without them no uint8 activations are taken.
    params : QuantParams or None
        Scales and zero points of a quantized weight (N, K).
    input_transform : InputTransform or None
        What `matmul` does to activations before they meet this weight.
    activations : mapping of numpy.dtype to Activation
        Those of the route; where the input transform is done by the executor, they say so.
    ready : mapping of numpy.dtype to Activation
        Those among them for which the executor does all: rows as they are, and nothing to correct afterwards.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        route: Route,
        device: Device,
        plan: WeightPlan | None,
        stored: StoredWeight | None,
        zero_point: int = 0,
        column_sums: NDArray[np.int32] | None = None,
        params: QuantParams | None = None,
        input_transform: InputTransform | None = None,
    ) -> None:
        self.shape = shape
        self.scheme = route.scheme
        self.route = route
        self.device = device
        self.plan = plan
        self.zero_point = zero_point
        self.column_sums = column_sums
        self.params = params
        self.input_transform = input_transform
        self.activations = _fused(route, input_transform)
        self.ready = _ready(self) if stored is not None else {}
        self._stored = stored

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"PackedWeight(shape={self.shape}, scheme={self.scheme.name!r}, device={self.device.name!r}{state})"

    def __enter__(self) -> PackedWeight:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    @property
    def nbytes(self) -> int:
        """Bytes of NPU memory."""
        return 0 if self._stored is None else self._stored.nbytes

    @property
    def domain(self) -> int:
        """IOMMU domain that it is in; where there is room is decided when it is packed (`Device.memory_stats`)."""
        return 0 if self._stored is None else self._stored.domain

    @property
    def stored(self) -> StoredWeight | None:
        """What is in device memory; None for a weight without elements."""
        return self._stored

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return self.device.closed or (self._stored is not None and self._stored.closed)

    def close(self) -> None:
        """Give the NPU memory back. Closing twice is allowed."""
        if self._stored is not None:
            self._stored.close()


def pack(
    w: ArrayLike | QuantizedWeight,
    scheme: Scheme | str | None = None,
    *,
    transposed: bool = False,
    device: Device | str | None = None,
) -> PackedWeight:
    """Pack a weight and upload it to the NPU, to be used as the right operand of `matmul`.

    Parameters
    ----------
    w : array_like, shape (K, N), or (N, K) with `transposed`; or QuantizedWeight
        float16, float32, bfloat16, int8, uint8 or int4 (`ml_dtypes.int4`), of any strides. A `QuantizedWeight` is
        packed as it is, without being rounded again; results are those of activations before its transform.
    scheme : Scheme or str, optional
        By name or as an object (`npumatmul.quant.schemes` says how names are made): ``"w16a16"`` (float16; the default
        for floats), ``"w8a8"`` (int8 per output channel, symmetric; activations are quantized per row when they come),
        ``"w8a8_g128"``, ``"w4a8"``, ``"w4a4"``, ..., ``"int8"`` (int8 as it is, uint8 shifted by 128; the default for
        those) or ``"int4"`` (the default for int4). Floats are quantized by their largest magnitudes. Of a
        `QuantizedWeight` the bits and the granularity stand already; the default is 8 bits for activations.
    transposed : bool
        Whether `w` is given as (N, K), as PyTorch and GGUF files store weights. A `QuantizedWeight` always is.
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    PackedWeight
        Of shape (K, N).

    Raises
    ------
    TypeError
        If the NPU cannot represent the dtype, or the scheme does not take it.
    ValueError
        If `w` is not 2-D, there is no such scheme, or it does not go with a `QuantizedWeight`.
    DeviceError
        If the chip cannot compute the scheme; the message names chips and schemes that work. Where it has no int4
        products, int4 values are stored as int8, exactly, and ``packed.route.note`` says so.
    NotFiniteError
        If a weight to be quantized holds an inf or nan.
    NpuMemoryError
        If it does not fit.

    Examples
    --------
    >>> import npumatmul as npu
    >>> w = np.eye(64, dtype=np.float32)
    >>> with npu.pack(w) as packed:
    ...     packed.shape, packed.nbytes, npu.matmul(np.ones((1, 64), np.float32), packed).sum()
    ((64, 64), 8192, np.float32(64.0))
    >>> npu.pack(w, "w4a8_g32").scheme
    Scheme.parse('w4a8_g32')
    """
    target = current_device(device)
    with consulting(tuning_cache(target) if settings().tuned else None):
        return _packed(w, scheme, transposed, target)


def _packed(
    w: ArrayLike | QuantizedWeight, scheme: Scheme | str | None, transposed: bool, target: Device
) -> PackedWeight:
    if isinstance(w, QuantizedWeight):
        return _pack_quantized(w, scheme, target)
    weight = operand(w, "the weight", "pack")
    if weight.ndim != 2:
        raise ValueError(f"pack: a weight has 2 dimensions, (K, N); this array has shape {weight.shape}")
    return _pack(weight if transposed else weight.T, scheme, target, column_sums=True)


def _pack(weight: NDArray[Any], scheme: Scheme | str | None, target: Device, column_sums: bool) -> PackedWeight:
    """Pack a weight given as (N, K): its rows are the columns of B."""
    weight = native_order(weight)
    zero_point = 0
    if weight.dtype == np.uint8 and scheme in (None, "int8", SCHEMES["int8"]):
        weight, zero_point = shifted(weight), UINT8_SHIFT
    chosen = scheme_for(weight.dtype, scheme, "pack")
    route = route_for(chosen, target.chip, target.runtime_version)
    n, k = weight.shape
    sums: NDArray[np.int32] | None = None
    if column_sums and weight.dtype == np.int8:
        sums = (weight.sum(axis=1, dtype=np.int64) + zero_point * k).astype(np.int32)
    if k == 0 or n == 0:
        return PackedWeight((k, n), route, target, None, None, zero_point, sums)
    if chosen.integers:
        params = QuantParams(1.0, -zero_point, bits=chosen.weight_bits)
        quantized = QuantizedWeight(weight.astype(np.int8, copy=False), params)
        laid = integer_tiles(quantized, route, target.chip, target.runtime_version, column_sums=sums is not None)
        return _stored(laid, route, target, (k, n), zero_point, sums)
    if chosen.quantizes:
        quantized = _rounded(weight, chosen)
        return _stored(_laid(quantized, route, target), route, target, (k, n), params=quantized.params)
    lay = high_tiles if chosen.high else float_tiles
    return _stored(lay(weight, route, target.chip, target.runtime_version), route, target, (k, n))


def _rounded(weight: NDArray[Any], scheme: Scheme) -> QuantizedWeight:
    try:
        return round_weight(
            weight,
            bits=scheme.weight_bits,
            granularity=scheme.granularity,
            group_size=scheme.group_size,
            symmetric=scheme.symmetric,
            levels=(1 << (scheme.weight_bits - 1)) - 1 if scheme.symmetric else None,
        )
    except NotFiniteError:
        n, k = (int(i) for i in np.argwhere(~np.isfinite(weight))[0])
        raise NotFiniteError(
            f"pack: the weight holds {weight[n, k]} in row {k} and column {n} of (K, N), which cannot be quantized "
            f"to {scheme.name!r}"
        ) from None


def _pack_quantized(weight: QuantizedWeight, scheme: Scheme | str | None, target: Device) -> PackedWeight:
    route = route_for(_scheme_of(weight, scheme), target.chip, target.runtime_version)
    n, k = weight.shape
    if k == 0 or n == 0:
        return PackedWeight((k, n), route, target, None, None, 0, None, weight.params, weight.input_transform)
    laid = _laid(weight, route, target)
    return _stored(laid, route, target, (k, n), params=weight.params, input_transform=weight.input_transform)


def _scheme_of(weight: QuantizedWeight, scheme: Scheme | str | None) -> Scheme:
    """The scheme of a quantized weight: granularity and zero points are its own, the rest is what is asked for."""
    params = weight.params
    bits = 4 if params.bits <= 4 else 8
    chosen = named(f"w{bits}a8" if scheme is None else scheme, "pack")
    if not chosen.quantizes or chosen.weight_bits < params.bits:
        raise ValueError(
            f"pack: scheme {chosen.name!r} does not take a quantized weight of {params.bits} bits; "
            f"there are w{bits}a8, {'w4a4, ' if bits == 4 else ''}w{bits}a16"
        )
    asked = chosen.granularity is not Granularity.CHANNEL or not chosen.symmetric
    own = (params.granularity, params.group_size, params.symmetric)
    if asked and own != (chosen.granularity, chosen.group_size, chosen.symmetric):
        raise ValueError(
            f"pack: scheme {chosen.name!r} asks for other scales than the quantized weight has: {params}; "
            f"say w{chosen.weight_bits}a{chosen.activation_bits}, and it keeps its own"
        )
    return replace(chosen, granularity=own[0], group_size=own[1], symmetric=own[2])


def _laid(weight: QuantizedWeight, route: Route, target: Device) -> Laid:
    return integer_tiles(weight, route, target.chip, target.runtime_version)


def _stored(
    laid: Laid,
    route: Route,
    target: Device,
    shape: tuple[int, int],
    zero_point: int = 0,
    column_sums: NDArray[np.int32] | None = None,
    params: QuantParams | None = None,
    input_transform: InputTransform | None = None,
) -> PackedWeight:
    if route.note:
        logger.info("pack: %s on %s: %s", route.scheme.name, target.name, route.note)
    stored = Placement.of(target).store(laid.plan, laid.rows, laid.slices)
    return PackedWeight(shape, route, target, laid.plan, stored, zero_point, column_sums, params, input_transform)


def multiply_rows(
    a: NDArray[Any] | DeferredResult,
    packed: PackedWeight,
    out: NDArray[Any] | None = None,
    epilogue: Epilogue | None = None,
) -> NDArray[Any]:
    """Multiply a matrix with a packed weight.

    Parameters
    ----------
    a : ndarray, shape (M, K), or DeferredResult
        A kept one only where `takes_deferred` says so.
    packed : PackedWeight
    out : ndarray, shape (M, N), optional
        Its rows contiguous: of ``packed.scheme.result``, or float where the scheme's result or the epilogue is. It
        shares no memory with `a`.
    epilogue : Epilogue, optional
        Of the dtype of `out`.

    Returns
    -------
    ndarray, shape (M, N)
        `out`; by default of ``packed.scheme.result``, or what the epilogue makes.

    Raises
    ------
    TypeError
        If the scheme does not take the dtype of `a`.
    """
    scheme = packed.scheme
    unsigned = False
    if not isinstance(a, DeferredResult):
        a = native_order(a)
        unsigned = a.dtype == np.uint8 and packed.column_sums is not None
        if unsigned:
            a = shifted(a)
    rows, given = _rows(a, packed)
    if unsigned:
        given = _with_zero(given, -UINT8_SHIFT)
    m, n = a.shape[0], packed.shape[1]
    if out is None:
        out = np.empty((m, n), scheme.result if epilogue is None else epilogue.dtype)
    if packed.stored is None or m == 0:
        packed.device.check_usable()
        finish_rows(np.zeros((m, n), scheme.result), out, epilogue)
    else:
        Placement.of(packed.device).execute(rows, packed.stored, given, out, epilogue, _result_scale(scheme))
    return out


@lru_cache(maxsize=16)
def _with_zero(activation: Activation, zero: int) -> Activation:
    return replace(activation, static_zero=zero)


def defer_rows(
    a: NDArray[Any] | DeferredResult, packed: PackedWeight, dtype: np.dtype[Any], epilogue: Epilogue | None = None
) -> DeferredResult | None:
    """As `multiply_rows`, but the result stays where the NPU leaves it, until it is read or multiplied further.

    Parameters
    ----------
    a : ndarray, shape (M, K), or DeferredResult
    packed : PackedWeight
    dtype : numpy.dtype
        Of the result.
    epilogue : Epilogue, optional

    Returns
    -------
    DeferredResult or None
        None, and nothing happened, where the result has to be stored at once: an operand is uint8, the epilogue reads
        matrices that could change until then, sums are int32, which no product reads, or there is no room for it.
    """
    reads = epilogue is not None and not (epilogue.multiply is None and epilogue.residual is None)
    unsigned = packed.zero_point != 0 or a.dtype == np.uint8
    if packed.stored is None or a.shape[0] == 0 or reads or unsigned or dtype == np.int32:
        return None
    rows, given = _rows(a if isinstance(a, DeferredResult) else native_order(a), packed)
    return Placement.of(packed.device).defer(rows, packed.stored, given, dtype, epilogue, _result_scale(packed.scheme))


def takes_deferred(packed: PackedWeight, dtype: np.dtype[Any]) -> bool:
    """Whether a weight takes rows of a dtype as they stand in C: nothing is to be done to them but by the executor."""
    given = packed.activations.get(dtype)
    transformed = packed.input_transform is None or (given is not None and given.transform is not None)
    return packed.stored is not None and given is not None and packed.zero_point == 0 and transformed


def _rows(a: NDArray[Any] | DeferredResult, packed: PackedWeight) -> tuple[NDArray[Any] | DeferredResult, Activation]:
    """The rows as the executor reads them, and what becomes of them."""
    check_activation(a.dtype, packed.scheme, f"b is packed as {packed.scheme.name!r}")
    given = packed.activations[a.dtype]
    if isinstance(a, DeferredResult):
        return a, given
    if packed.input_transform is not None:
        if a.dtype == np.int8:
            raise TypeError("matmul: b has an input transform, which codes cannot go through; give a as floats")
        if packed.stored is not None and len(a) > 0 and given.transform is None:
            a = packed.input_transform.activation(a.astype(np.float32, copy=False))
    return a.astype(given.read_as, copy=False), given


def _result_scale(scheme: Scheme) -> float | None:
    return None if scheme.result_params is None else float(scheme.result_params.scale)


def _fused(route: Route, transform: InputTransform | None) -> Mapping[np.dtype[Any], Activation]:
    """The route's activations, those of float32 rows with the transform if it is one that the executor can do."""
    kernel = None if transform is None else kernel_of(transform)
    if kernel is None:
        return route.activations
    return {
        dtype: replace(each, transform=kernel) if each.read_as == np.float32 else each
        for dtype, each in route.activations.items()
    }


def _ready(packed: PackedWeight) -> Mapping[np.dtype[Any], Activation]:
    if packed.scheme.result_bits is not None:
        return {}
    return {
        dtype: each
        for dtype, each in packed.activations.items()
        if dtype in packed.scheme.activations
        and each.read_as == dtype
        and (packed.input_transform is None or each.transform is not None)
    }


def finish_rows(sums: NDArray[Any], out: NDArray[Any], epilogue: Epilogue | None) -> None:
    """Finish sums that stand in memory of their own in `out`, in a second pass."""
    if epilogue is not None:
        epilogue.apply(sums, out)
        return
    with np.errstate(over="ignore"):  # beyond float16's range a rounded result is an infinity, as in numpy
        np.copyto(out, sums, casting="same_kind")


def check_activation(dtype: np.dtype[Any], scheme: Scheme, because: str) -> None:
    """Raise a `TypeError` that says what to cast, unless the scheme takes activations of a dtype."""
    if dtype not in scheme.activations:
        accepted = " or ".join(map(str, scheme.activations))
        if any(dtype in other.activations for other in SCHEMES.values()) or dtype == np.uint8:
            raise TypeError(f"matmul: {because}, so a has to be {accepted}, not {dtype}; cast one of them explicitly")
        raise TypeError(f"matmul: a: {cast_advice(dtype)}")


def shifted(array: NDArray[Any]) -> NDArray[Any]:
    """Return uint8 values less 128, as int8."""
    values: NDArray[Any] = np.bitwise_xor(array, np.uint8(UINT8_SHIFT)).view(np.int8)
    return values


def native_order(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in the byte order of the machine; a copy only where it is not."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
