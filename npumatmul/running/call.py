"""What one call of the executor is given: whether weight, activation and result fit, and the caller's matrices."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.types import ElementType
from npumatmul.host.activation import Activation
from npumatmul.host.epilogue import ELEMENTS
from npumatmul.host.executor import Element, ResultType
from npumatmul.host.kernels import Conversion, RowScaling
from npumatmul.running.stored import StoredWeight

__all__ = ["RESULT_TYPE", "NoRoomError", "check_place", "device_scales", "result_element"]

logger = logging.getLogger(__name__)

#: Element type of C.
RESULT_TYPE = {
    ElementType.INT16: ResultType.INT16,
    ElementType.INT32: ResultType.INT32,
    ElementType.FLOAT32: ResultType.FLOAT32,
    ElementType.FLOAT16: ResultType.FLOAT16,
    ElementType.INT8: ResultType.INT8,
}
_INTEGERS = {np.dtype(np.int32): Element.INT32, np.dtype(np.int8): Element.INT8}


def device_scales(weight: StoredWeight, activation: Activation, result_scale: float) -> tuple[float, float, float]:
    """Scales of A, B and C."""
    column_scale = weight.slices[0].column_scale
    return activation.static_scale, 1.0 if column_scale is None else float(column_scale[0]), result_scale


def _requantizes(weight: StoredWeight, activation: Activation) -> bool:
    """Whether the runtime can make int8 of these products: all scales are known beforehand, nothing is added after."""
    (first, *others) = weight.slices
    scale = first.column_scale
    one_scale = scale is None or bool((scale == scale[0]).all())
    static = activation.scaling in (RowScaling.UNSCALED, RowScaling.STATIC) and activation.static_zero == 0
    return (
        weight.plan.mm_type.c is ElementType.INT8 and not others and one_scale and static and first.column_zero is None
    )


def result_element(
    weight: StoredWeight, activation: Activation, dtype: np.dtype[Any], result_scale: float | None
) -> Element:
    """What the result consists of.

    Raises
    ------
    TypeError, ValueError
        If weight, activation, dtype and scale do not fit together.
    """
    if activation.transform is not None and activation.transform.features != weight.plan.k:
        raise ValueError(
            f"execute: the transform is of {activation.transform.features} features, a has {weight.plan.k}"
        )
    if activation.conversion is not Conversion.F32_TO_F16 and any(each.part for each in weight.slices):
        raise ValueError(f"execute: only float32 has a high and a low part, {activation.conversion.name} has none")
    if activation.scaling.in_groups and any(each.group is None for each in weight.slices):
        raise ValueError(f"execute: {activation.scaling.name} needs a weight whose slices have groups")
    if (weight.plan.mm_type.c is ElementType.INT8) != (result_scale is not None):
        raise ValueError(f"execute: result_scale is {result_scale}, and {weight.plan.mm_type.name} computes the weight")
    element = _INTEGERS.get(dtype, ELEMENTS.get(dtype))
    c_type = RESULT_TYPE[weight.plan.mm_type.c]
    sums_are_whole = weight.common_scale and c_type not in (ResultType.FLOAT32, ResultType.FLOAT16)
    unscaled = activation.scaling is RowScaling.UNSCALED and weight.slices[0].column_scale is None
    fits = element is not None and (result_scale is None) == (element is not Element.INT8)
    if element is Element.INT32:
        fits = fits and sums_are_whole and unscaled
    elif element is Element.INT8:
        fits = fits and _requantizes(weight, activation)
    if element is None or not fits:
        raise TypeError(f"execute: the result cannot be {dtype}")
    return element


def check_place(out: NDArray[Any], shape: tuple[int, int], dtype: np.dtype[Any]) -> None:
    """Raise unless the executor can store a result in an array."""
    if out.shape != shape or out.dtype != dtype:
        raise ValueError(f"execute: the result is {dtype} of shape {shape}, out {out.dtype} of shape {out.shape}")
    if out.strides[1] != out.itemsize or out.strides[0] % out.itemsize or not out.flags.aligned:
        raise ValueError("execute: rows of out have to be aligned, and its columns adjacent")
    if not out.flags.writeable:
        raise ValueError("execute: out is read-only")


class NoRoomError(Exception):
    """There is no room for a result to be deferred."""
