"""`pack`: from a plain or quantized weight to a right operand that stays on the NPU."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import NotFiniteError
from npumatmul.ops.operands import UINT8_SHIFT, native_order, shifted
from npumatmul.ops.packed.tiles import Laid, float_tiles, high_tiles, integer_tiles, measured_tiles
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.settings import settings
from npumatmul.ops.shapes import operand
from npumatmul.planning.choices import consulting
from npumatmul.quant.names import SchemeName
from npumatmul.quant.params import Granularity, InputTransform, QuantizedWeight, QuantParams
from npumatmul.quant.routes import Route, route_for
from npumatmul.quant.schemes import SCHEMES, Scheme, named, scheme_for
from npumatmul.quant.weight_scales import round_weight
from npumatmul.running.autotune import tuning_cache
from npumatmul.running.stored import StoredWeight
from npumatmul.running.storing import store

__all__ = ["pack", "pack_columns"]

logger = logging.getLogger(__name__)


def pack(
    w: ArrayLike | QuantizedWeight,
    scheme: Scheme | SchemeName | None = None,
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
    return pack_columns(weight if transposed else weight.T, scheme, target, column_sums=True)


def pack_columns(weight: NDArray[Any], scheme: Scheme | str | None, target: Device, column_sums: bool) -> PackedWeight:
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
        try:
            return _quantized(weight, route, target)
        except NotFiniteError:
            row, column = (int(i) for i in np.argwhere(~np.isfinite(weight))[0])
            raise NotFiniteError(
                f"pack: the weight holds {weight[row, column]} in row {column} and column {row} of (K, N), which "
                f"cannot be quantized to {chosen.name!r}"
            ) from None
    lay = high_tiles if chosen.high else float_tiles
    return _stored(lay(weight, route, target.chip, target.runtime_version), route, target, (k, n))


def _quantized(weight: NDArray[Any], route: Route, target: Device) -> PackedWeight:
    scheme, (n, k) = route.scheme, weight.shape
    levels = (1 << (scheme.weight_bits - 1)) - 1 if scheme.symmetric else None
    measured = measured_tiles(weight, route, target.chip, target.runtime_version)
    if measured is None:
        quantized = round_weight(
            weight, bits=scheme.weight_bits, granularity=scheme.granularity, group_size=scheme.group_size,
            symmetric=scheme.symmetric, levels=levels,
        )  # fmt: skip
        return _stored(_laid(quantized, route, target), route, target, (k, n), params=quantized.params)
    laid, scale = measured
    stored = _placed(laid, route, target)
    params = QuantParams(scale, 0, scheme.granularity, bits=scheme.weight_bits, axis=0, levels=levels)
    return PackedWeight((k, n), route, target, stored.plan, stored, params=params)


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
    stored = _placed(laid, route, target)
    return PackedWeight(shape, route, target, stored.plan, stored, zero_point, column_sums, params, input_transform)


def _placed(laid: Laid, route: Route, target: Device) -> StoredWeight:
    if route.note:
        logger.info("pack: %s on %s: %s", route.scheme.name, target.name, route.note)
    return store(target, laid.plan, laid.rows, laid.slices)
