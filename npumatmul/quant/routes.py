"""Which matmul type computes a scheme on a chip, and what becomes of activations there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from npumatmul.chips import CHIPS, NEWEST_RUNTIME, OLDEST_RUNTIME, Chip
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError
from npumatmul.host.activation import Activation
from npumatmul.host.kernels import Conversion, RowScaling
from npumatmul.quant.params import Granularity
from npumatmul.quant.schemes import FLOATS, SCHEMES, Scheme
from npumatmul.rknn.differences import type_since
from npumatmul.rknn.version import RuntimeVersion

__all__ = ["Route", "route_for"]

_F16, _F32, _I8 = (np.dtype(t) for t in (np.float16, np.float32, np.int8))
_I4: np.dtype[Any] = np.dtype(ml_dtypes.int4)


@dataclass(frozen=True, eq=False)
class Route:
    """A scheme on a chip.

    Attributes
    ----------
    scheme : Scheme
    mm_type : MatmulType
    weight : Conversion
        From codes, one per byte, or from floats.
    activations : mapping of numpy.dtype to Activation
        What `matmul` takes on the left, and what becomes of it.
    note : str
        What a user should know about it; empty where there is nothing.
    """

    scheme: Scheme
    mm_type: MatmulType
    weight: Conversion
    activations: Mapping[np.dtype[Any], Activation]
    note: str = ""

    @property
    def row_images(self) -> int:
        """Rows of A per row of activations: 2 where each is split into two int4 halves."""
        return max(each.conversion.row_images for each in self.activations.values())


@dataclass(frozen=True)
class _Way:
    """One way to compute schemes of certain bits: matmul type, conversions of weight and activation."""

    mm_type: MatmulType
    weight: Conversion
    activation: Conversion
    note: str = ""


_AS_INT8 = "this chip has no int4 products: the int4 values are stored as int8, exactly, and take twice the memory"
#: By bits of weight and activation, the preferred one first.
_WAYS: Mapping[tuple[int, int], tuple[_Way, ...]] = {
    (16, 16): (_Way(MatmulType.FLOAT16_FLOAT16_FLOAT32, Conversion.F32_TO_F16, Conversion.F32_TO_F16),),
    (8, 8): (_Way(MatmulType.INT8_INT8_INT32, Conversion.COPY_8, Conversion.F32_TO_I8),),
    (4, 8): (
        _Way(MatmulType.INT8_INT4_INT32, Conversion.INT4, Conversion.F32_TO_I8),
        _Way(
            MatmulType.INT4_INT4_INT16, Conversion.INT4, Conversion.F32_TO_I4_SPLIT,
            "activations are split into two int4 halves, which are rows of one matmul; that leaves a few levels less",
        ),
        _Way(MatmulType.INT8_INT8_INT32, Conversion.COPY_8, Conversion.F32_TO_I8, _AS_INT8),
    ),
    (4, 4): (_Way(MatmulType.INT4_INT4_INT16, Conversion.INT4, Conversion.F32_TO_I4),),
    (8, 16): (_Way(MatmulType.FLOAT16_INT8_FLOAT32, Conversion.COPY_8, Conversion.F32_TO_F16),),
    (4, 16): (_Way(MatmulType.FLOAT16_INT4_FLOAT32, Conversion.INT4, Conversion.F32_TO_F16),),
}  # fmt: skip
_REQUANTIZED_WAY = _Way(
    MatmulType.INT8_INT8_INT8, Conversion.COPY_8, Conversion.F32_TO_I8,
    "the device rounds sums to int8: how is not documented, so codes may be off by one",
)  # fmt: skip
_INTEGER_WAYS: Mapping[int, tuple[_Way, ...]] = {
    8: (_Way(MatmulType.INT8_INT8_INT32, Conversion.COPY_8, Conversion.COPY_8),),
    4: (
        _Way(MatmulType.INT4_INT4_INT16, Conversion.INT4, Conversion.INT4),
        _Way(MatmulType.INT8_INT8_INT32, Conversion.COPY_8, Conversion.COPY_8, _AS_INT8),
    ),
}


def route_for(scheme: Scheme, chip: Chip, runtime: RuntimeVersion = NEWEST_RUNTIME) -> Route:
    """How a chip computes a scheme.

    Parameters
    ----------
    scheme : Scheme
    chip : Chip
    runtime : RuntimeVersion

    Raises
    ------
    DeviceError
        If the chip has no matmul type for it; the message says which chips have and which schemes there are here.
    ValueError
        If static activations lack `activation_params`, or int8 results `result_params`.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> [route_for(Scheme.parse("w4a8"), chip(soc)).mm_type.name for soc in ("rk3588", "rk3576", "rk3566")]
    ['INT4_INT4_INT16', 'INT8_INT4_INT32', 'INT8_INT8_INT32']
    """
    way = _way(scheme, chip, runtime)
    if way is None:
        wanted = _ways(scheme)[0].mm_type
        there = [
            f"{soc} from runtime {oldest} on"
            for soc, other in CHIPS.items()
            if (oldest := _oldest_runtime(scheme, other)) is not None
        ]
        here = [name for name, other in SCHEMES.items() if _way(other, chip, runtime) is not None]
        raise DeviceError(
            f"scheme {scheme.name!r} needs the matmul type {wanted.name}, which {chip.soc} under runtime {runtime} "
            f"does not have; it works on {', '.join(there)}, and here there are {', '.join(here)}"
        )
    return Route(scheme, way.mm_type, way.weight, _activations(scheme, way), way.note)


def _ways(scheme: Scheme) -> tuple[_Way, ...]:
    if scheme.result_bits is not None:
        return (_REQUANTIZED_WAY,)
    if scheme.integers:
        return _INTEGER_WAYS[scheme.weight_bits]
    return _WAYS[scheme.weight_bits, scheme.activation_bits]


def _way(scheme: Scheme, chip: Chip, runtime: RuntimeVersion) -> _Way | None:
    for way in _ways(scheme):
        has = way.mm_type in chip.limits if runtime == chip.runtime else _supported(chip, way.mm_type, runtime)
        if has:
            return way
    return None


def _oldest_runtime(scheme: Scheme, chip: Chip) -> RuntimeVersion | None:
    """The first runtime under which a chip computes a scheme, or None."""
    versions = sorted({OLDEST_RUNTIME, *(type_since(mm_type.code) for mm_type in MatmulType)})
    return next((version for version in versions if _way(scheme, chip, version) is not None), None)


def _supported(chip: Chip, mm_type: MatmulType, runtime: RuntimeVersion) -> bool:
    return chip.type_row(mm_type, runtime).supported.value


def _activations(scheme: Scheme, way: _Way) -> dict[np.dtype[Any], Activation]:
    if scheme.integers:
        read_as = _I4 if way.activation is Conversion.INT4 else _I8
        return dict.fromkeys(scheme.activations, Activation(read_as, way.activation))
    if way.activation is Conversion.F32_TO_F16:
        scaling = RowScaling.POWER_OF_TWO_HIGH if scheme.high else RowScaling.POWER_OF_TWO
        from_float32 = Activation(_F32, Conversion.F32_TO_F16, scaling)
        exact = {} if scheme.high else {_F16: Activation(_F16, Conversion.COPY_16)}
        return {**dict.fromkeys(FLOATS, from_float32), **exact}
    quantized = _quantized(scheme, way)
    if scheme.result_bits is None:
        return dict.fromkeys(FLOATS, quantized)
    if scheme.result_params is None:
        raise ValueError(f"scheme {scheme.name!r} needs result_params: the scale of results that calibration found")
    codes = Activation(_I8, Conversion.COPY_8, static_scale=quantized.static_scale)
    return {**dict.fromkeys(FLOATS, quantized), _I8: codes}


def _quantized(scheme: Scheme, way: _Way) -> Activation:
    if not scheme.static:
        scaling = RowScaling.ABSMAX if scheme.activation_symmetric else RowScaling.MINMAX
        if scheme.activation_granularity is Granularity.GROUP:
            scaling = RowScaling.ABSMAX_GROUPS if scheme.activation_symmetric else RowScaling.MINMAX_GROUPS
        return Activation(_F32, way.activation, scaling, way.activation.levels, scheme.activation_clip)
    params = scheme.activation_params
    if params is None:
        raise ValueError(f"scheme {scheme.name!r} needs activation_params: the scale that calibration found")
    scale, zero, levels = float(params.scale), int(params.zero_point), way.activation.levels
    if params.qmax > levels or params.qmin < -levels - 1:
        # The range that the parameters cover, onto the levels that there are: fewer where values are split.
        step = scale * params.qmax / levels
        if not params.symmetric:
            step = scale * (params.qmax - params.qmin) / (2 * levels + 1)
            lowest = -levels - 1
            zero = int(np.clip(lowest - round(scale * (params.qmin - zero) / step), lowest, levels))
        scale = float(np.float32(step))
    return Activation(_F32, way.activation, RowScaling.STATIC, levels, static_scale=scale, static_zero=zero)
