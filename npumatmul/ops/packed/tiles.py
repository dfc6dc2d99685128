"""From a weight to rows of tiles and slices of K: what `store` takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import Chip
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.host import kernels
from npumatmul.host.kernels import Conversion
from npumatmul.ops.settings import settings
from npumatmul.planning.choices import planned
from npumatmul.planning.product import Span, WeightPlan
from npumatmul.quant.params import Granularity, QuantizedWeight
from npumatmul.quant.routes import Route
from npumatmul.rknn.version import RuntimeVersion
from npumatmul.running.stored import KSlice
from npumatmul.running.storing import MeasuredRow, TileRow, enlarge_scales

__all__ = ["Laid", "float_tiles", "high_tiles", "integer_tiles", "measured_tiles", "of_columns"]


@dataclass(frozen=True, eq=False)
class Laid:
    """A weight ready to be stored.

    Attributes
    ----------
    plan : WeightPlan
    rows : tuple of TileRow or MeasuredRow
    slices : tuple of KSlice
    """

    plan: WeightPlan
    rows: tuple[TileRow | MeasuredRow, ...]
    slices: tuple[KSlice, ...]


def _planned(
    k: int, n: int, mm_type: MatmulType, chip: Chip, runtime: RuntimeVersion, k_parts: int = 1, **how: Any
) -> WeightPlan:
    """As `planned`, cut for as many cores as the scope has."""
    cores = settings().cores
    return planned(k, n, mm_type, chip, runtime, k_parts, cut_for=None if cores is None else len(cores), **how)


def float_tiles(weight: NDArray[Any], route: Route, chip: Chip, runtime: RuntimeVersion) -> Laid:
    """Lay a weight of floats as float16.

    Parameters
    ----------
    weight : ndarray of float16, float32 or bfloat16, shape (N, K)
    route : Route
    chip : Chip
    runtime : RuntimeVersion
    """
    plan = _planned(weight.shape[1], weight.shape[0], route.mm_type, chip, runtime)
    conversion, scale, column_scale = Conversion.COPY_16, None, None
    if weight.dtype != np.float16:
        weight = weight.astype(np.float32, copy=False)
        powers, conversion = kernels.power_of_two_scales(weight), Conversion.F32_TO_F16
        if not bool((powers == 1).all()):
            scale, column_scale = powers, np.reciprocal(powers)
    spans = plan.k_spans
    rows = [TileRow(s, weight[:, s.start : s.start + s.length], conversion, scale) for s in spans]
    slices = [KSlice(span, tiles=i, column_scale=column_scale) for i, span in enumerate(spans)]
    return Laid(plan, tuple(rows), tuple(slices))


def high_tiles(weight: NDArray[Any], route: Route, chip: Chip, runtime: RuntimeVersion) -> Laid:
    """Lay a weight of floats as two float16 each; three of the four products are made.

    What is inf or nan is so in the low parts alone, which meet no other low part: the high ones are 1 or -1 there, so
    that no inf meets a zero or an inf of another sign.

    Parameters
    ----------
    weight, route, chip, runtime
        As for `float_tiles`.
    """
    plan = _planned(weight.shape[1], weight.shape[0], route.mm_type, chip, runtime)
    weight = weight.astype(np.float32, copy=False)
    powers = kernels.power_of_two_scales(weight, high=True)
    column_scale = np.reciprocal(powers)
    rows: list[TileRow] = []
    slices: list[KSlice] = []
    for span in plan.k_spans:
        values = weight[:, span.start : span.start + span.length]
        high, low = len(rows), len(rows) + 1
        rows += [TileRow(span, values, c, powers) for c in (Conversion.F32_TO_F16_HIGH, Conversion.F32_TO_F16_LOW)]
        # Of the smallest products first; both parts of the weight that meet the high part share one image of it.
        slices += [KSlice(span, part, tiles, column_scale) for part, tiles in ((2, high), (1, low), (1, high))]
    return Laid(plan, tuple(rows), tuple(slices))


#: What quantizes floats to what the weight is stored as, by its bits.
_MEASURED = {(8, Conversion.COPY_8): Conversion.F32_TO_I8, (4, Conversion.INT4): Conversion.F32_TO_I4}


def measured_tiles(
    weight: NDArray[Any], route: Route, chip: Chip, runtime: RuntimeVersion
) -> tuple[Laid, NDArray[np.float32]] | None:
    """Lay a weight of floats as codes, without an array of those: tiles are quantized while they are packed.

    Where K is not sliced, they are measured then, too.

    Parameters
    ----------
    weight : ndarray of float16, float32 or bfloat16, shape (N, K)
    route : Route
    chip : Chip
    runtime : RuntimeVersion

    Returns
    -------
    laid : Laid
    scale : ndarray of float32, shape (N,)
        Of each column of B, once it is stored.
        None instead of both where the kernel does not make what `integer_tiles` makes of rounded weights: other
        granularities than channels, zero points, and int4 products, whose slices depend on the codes.
    """
    scheme, (n, k) = route.scheme, weight.shape
    conversion = _MEASURED.get((scheme.weight_bits, route.weight))
    per_channel = scheme.granularity is Granularity.CHANNEL and scheme.symmetric and not scheme.integers
    if conversion is None or not per_channel or route.mm_type.c in (ElementType.INT8, ElementType.INT16):
        return None
    plan = _planned(k, n, route.mm_type, chip, runtime, row_images=route.row_images)
    weight = weight.astype(np.float32, copy=False)
    sums = None if scheme.activation_symmetric else np.empty((len(plan.k_spans), n), np.int32)
    rows: list[TileRow | MeasuredRow] = []
    if len(plan.k_spans) == 1:
        scale = np.empty(n, np.float32)
        rows.append(MeasuredRow(plan.k_spans[0], weight, conversion, scale, None if sums is None else sums[0]))
    else:  # the scales are those of all slices
        scale = kernels.symmetric_scales(weight, conversion.levels)
        enlarge_scales(scale, weight, conversion.levels)
        for index, span in enumerate(plan.k_spans):
            values = weight[:, span.start : span.start + span.length]
            rows.append(TileRow(span, values, conversion, scale, row_sum=None if sums is None else sums[index]))
    slices = tuple(
        KSlice(
            span,
            tiles=index,
            column_scale=scale,
            column_sums=None if sums is None else sums[index],
            group=_group(span, None, k) if scheme.activation_granularity == "group" else None,
        )
        for index, span in enumerate(plan.k_spans)
    )
    return Laid(plan, tuple(rows), slices), scale


def integer_tiles(
    weight: QuantizedWeight, route: Route, chip: Chip, runtime: RuntimeVersion, column_sums: bool = False
) -> Laid:
    """Lay the codes of a quantized weight, with scales and zero points beside them.

    Parameters
    ----------
    weight : QuantizedWeight
    route : Route
    chip : Chip
    runtime : RuntimeVersion
    column_sums : bool
        Whether integers on the left may have a zero point, as shifted uint8 have.

    Notes
    -----
    Groups along K become slices of their own, since each has its own scales. Slices of int4 products are so short that
    no int16 sum can overflow.
    """
    codes, params = weight.codes, weight.params
    n = codes.shape[0]
    group = params.group_size if params.granularity is Granularity.GROUP else None
    plan = _bounded_plan(codes, group, route, chip, runtime)
    asymmetric_rows = column_sums or not (route.scheme.integers or route.scheme.activation_symmetric)
    rows, slices = [], []
    for index, span in enumerate(plan.k_spans):
        values = codes[:, span.start : span.start + span.length]
        place = 0 if group is None else span.start // group
        scale, zero = of_columns(params.scale, n, place), of_columns(params.zero_point, n, place)
        sums = None
        if asymmetric_rows:
            sums = (values.sum(axis=1, dtype=np.int64) - span.length * zero.astype(np.int64)).astype(np.int32)
        rows.append(TileRow(span, values, route.weight))
        slices.append(
            KSlice(
                span,
                tiles=index,
                column_scale=None if route.scheme.integers else scale,
                column_zero=zero if bool(zero.any()) else None,
                column_sums=sums,
                group=_group(span, group, codes.shape[1]) if route.scheme.activation_granularity == "group" else None,
            )
        )
    return Laid(plan, tuple(rows), tuple(slices))


def _group(span: Span, size: int | None, k: int) -> Span:
    """The whole group that a slice belongs to."""
    start = 0 if size is None else span.start // size * size
    length = k if size is None else min(size, k - start)
    return Span(start, length, length)


_Number = TypeVar("_Number", np.float32, np.int32)


def of_columns(values: NDArray[_Number], n: int, group: int) -> NDArray[_Number]:
    """One value per output channel of parameters per layer, channel or group."""
    return np.ascontiguousarray(values[:, group] if values.ndim == 2 else np.broadcast_to(values, (n,)))


def _bounded_plan(
    codes: NDArray[np.int8], group: int | None, route: Route, chip: Chip, runtime: RuntimeVersion
) -> WeightPlan:
    """A plan whose slices of K are short enough for the result's type.

    Only int4 products need it: their sums are int16 on the device, and what it does beyond is not documented (Q20). A
    slice is safe if 8 times the sum of its magnitudes stays within int16 in every column, since 8 is the largest
    magnitude of an int4. The codes decide, not the worst case: 4095 / 8 of them could all be -8.
    """
    n, k = codes.shape

    def cut(parts: int) -> WeightPlan:
        size = None if group is None else group // parts
        return _planned(
            k, n, route.mm_type, chip, runtime, parts if group is None else 1,
            k_group=size, row_images=route.row_images,
        )  # fmt: skip

    if route.mm_type.c is ElementType.INT8:
        return _plan_of_one_slice(k, n, route, chip, runtime)
    if route.mm_type is not MatmulType.INT4_INT4_INT16:
        return cut(1)
    sums = np.zeros((n, k + 1), np.int32)
    np.cumsum(np.abs(codes), axis=1, dtype=np.int32, out=sums[:, 1:])
    return _shortened(cut, sums, group)


def _plan_of_one_slice(k: int, n: int, route: Route, chip: Chip, runtime: RuntimeVersion) -> WeightPlan:
    """A plan without slices of K: partial sums that were rounded to int8 cannot be added."""
    plan = _planned(k, n, route.mm_type, chip, runtime, k_slices=1)
    if len(plan.k_spans) > 1:
        raise ValueError(
            f"pack: scheme {route.scheme.name!r} takes K up to {chip.type_limits(route.mm_type, runtime).k_max} on "
            f"{chip.soc}, where one run makes the whole sum, not {k}; take 'w8a8_layer_static' and quantize its "
            "float32 result"
        )
    return plan


def _shortened(cut: Callable[[int], WeightPlan], sums: NDArray[np.int32], group: int | None) -> WeightPlan:
    """The plan of fewest parts whose slices stay within int16; `sums` are those of magnitudes before each value."""
    largest = np.iinfo(np.int16).max // 8
    plan, parts = cut(1), 1
    while True:
        edges = [span.start for span in plan.k_spans] + [sums.shape[1] - 1]
        if int(np.diff(sums[:, edges], axis=1).max()) <= largest:
            return plan
        # More parts: of all of K as many as there are slices and one, of groups the next number that divides them. In
        # the end slices have 32 values, whose sum is at most 256.
        if group is None:
            parts = len(plan.k_spans) + 1
        else:
            units = group // 32
            parts = next(p for p in range(parts + 1, units + 1) if units % p == 0)
        plan = cut(parts)
