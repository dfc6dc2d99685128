"""What a packed weight says of itself in one place, held against what it says in others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npumatmul.ops.packed.files.description import Reader
from npumatmul.ops.packed.tiles import of_columns
from npumatmul.planning.product import Span, WeightPlan
from npumatmul.quant.params import Granularity, QuantParams
from npumatmul.quant.routes import Route
from npumatmul.running.stored import KSlice

__all__ = ["check_params", "check_slices"]


def check_params(reader: Reader, route: Route, params: QuantParams | None) -> None:
    """Refuse scales that are not those of the scheme.

    Raises
    ------
    PackedFileError
        If they are not.
    """
    scheme = route.scheme
    if params is None:
        return
    if scheme.weight_bits == 16:
        raise reader.wrong(f"scheme {scheme.name!r} is of floats, and there are scales of codes")
    groups = Granularity.GROUP in (params.granularity, scheme.granularity)
    if groups and (params.granularity, params.group_size) != (scheme.granularity, scheme.group_size):
        raise reader.wrong(
            f"scheme {scheme.name!r} and scales per {params.granularity.value} of {params.group_size} contradict each "
            "other"
        )
    if params.bits > scheme.weight_bits:
        raise reader.wrong(f"scheme {scheme.name!r} has {scheme.weight_bits} bits, its codes have {params.bits}")


def check_slices(
    reader: Reader, route: Route, params: QuantParams | None, plan: WeightPlan, slices: Sequence[KSlice]
) -> None:
    """Refuse slices of K that a weight of this scheme does not have.

    Raises
    ------
    PackedFileError
        If they contradict the scheme, its scales or each other.
    """
    scheme = route.scheme
    if plan.row_images != route.row_images:
        raise reader.wrong(f"scheme {scheme.name!r} has {route.row_images} images of a row, not {plan.row_images}")
    group = scheme.group_size if scheme.granularity is Granularity.GROUP else None
    if (plan.k_group is None) != (group is None) or (group is not None and group % (plan.k_group or 1)):
        raise reader.wrong(f"its slices are of groups of {plan.k_group}, its scales of {group}")
    wanted = [
        (span, part, tiles)
        for index, span in enumerate(plan.k_spans)
        for part, tiles in (((2, 2 * index), (1, 2 * index + 1), (1, 2 * index)) if scheme.high else ((0, index),))
    ]
    if [(each.k_span, each.part, each.tiles) for each in slices] != wanted:
        raise reader.wrong("its slices of K are not those of its scheme, each once and in their order")
    in_groups = scheme.activation_granularity is Granularity.GROUP
    floats = scheme.weight_bits == 16
    for each in slices:
        if (each.group is not None) != in_groups:
            raise reader.wrong(f"scheme {scheme.name!r} and the groups of its activations contradict each other")
        if floats and (each.column_zero is not None or each.column_sums is not None):
            raise reader.wrong("floats have no zero points")
        if not floats and (each.column_scale is None) != scheme.integers:
            raise reader.wrong(f"scheme {scheme.name!r} and the scales of its columns contradict each other")
        if not (floats or scheme.integers or scheme.activation_symmetric) and each.column_sums is None:
            raise reader.wrong("it lacks what corrects activations with zero points")
        if params is not None and not scheme.integers:
            _check_columns(reader, params, each, _place(reader, each.k_span, group))


def _place(reader: Reader, span: Span, group: int | None) -> int:
    """The group of scales that a slice takes."""
    if group is None:
        return 0
    if span.start // group != (span.start + span.length - 1) // group:
        raise reader.wrong(f"the slice of K from {span.start} is of two groups")
    return span.start // group


def _check_columns(reader: Reader, params: QuantParams, piece: KSlice, place: int) -> None:
    """Refuse scales and zero points of a slice that are not the weight's."""
    scale, zero = piece.column_scale, piece.column_zero
    if scale is None:
        return
    zeros = of_columns(params.zero_point, len(scale), place)
    same = not zeros.any() if zero is None else np.array_equal(zero, zeros)
    if not (same and np.array_equal(scale, of_columns(params.scale, len(scale), place))):
        raise reader.wrong(f"scales or zero points of the slice of K from {piece.k_span.start} are not the weight's")
