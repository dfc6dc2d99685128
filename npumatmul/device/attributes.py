"""What the runtime says of A, B and C of a context, checked against the capability table; what it is told of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from npumatmul.chips import Chip, layout
from npumatmul.chips.layout import TileLayout
from npumatmul.chips.types import ElementType
from npumatmul.device.buffer import TensorAttr
from npumatmul.device.spec import ASYMMETRIC, ContextSpec
from npumatmul.errors import LayoutMismatchError
from npumatmul.rknn import MatmulIoAttr, MatmulLayout, MatmulTensorAttr, QuantType, RuntimeVersion

__all__ = ["attributes", "zero_points"]


def attributes(
    spec: ContextSpec,
    shape: tuple[int, int, int],
    io_attr: MatmulIoAttr,
    chip: Chip,
    version: RuntimeVersion,
    int4_low_first: bool,
) -> tuple[TensorAttr, TensorAttr, TensorAttr]:
    """What the runtime says of A, B and C.

    Raises
    ------
    LayoutMismatchError
        If the capability table says otherwise.
    """
    m, k, n = shape
    mm_type = spec.mm_type
    a = c = None
    if spec.ac_layout is MatmulLayout.NATIVE:
        a = _grouped(io_attr.A, m, k, mm_type.a, chip.native.a.get(mm_type.a))
        c = _grouped(io_attr.C, m, n, mm_type.c, chip.native.c.get(mm_type.c))
    b: TileLayout | None = layout.b_normal(k, n, mm_type.b)
    b_dims: tuple[int, ...] | None = (k, n)
    if spec.b_layout is MatmulLayout.TP_NORM:
        b, b_dims = layout.b_transposed(k, n, mm_type.b), None  # the order of its dims is not documented (facts 4.1)
    elif spec.b_layout is MatmulLayout.NATIVE:
        b = layout.b_native_of(k, n, mm_type, chip)
        b_dims = (n // b.tile_rows, k // b.tile_cols, b.tile_rows, b.tile_cols)
        segment = chip.type_row(mm_type, version).k_segment.value
        if segment is not None and k > segment:  # how segments follow each other is not settled (Q4)
            b = b_dims = None

    def attr(
        name: str, struct: MatmulTensorAttr, of: TileLayout | None, seen: tuple[int, int], element: ElementType,
        dims: tuple[int, ...] | None,
    ) -> TensorAttr:  # fmt: skip
        nbytes = element.nbytes(seen[0] * seen[1])
        if (dims is not None and struct.shape != dims) or struct.size != nbytes or struct.type != element.tensor_type:
            raise LayoutMismatchError(
                f"{spec}: the runtime says that {name} has dims {struct.shape}, {struct.size} bytes, tensor type "
                f"{struct.type}; the capability table says {dims}, {nbytes} bytes, type {int(element.tensor_type)}. "
                "This runtime is not one that npumatmul knows: please report it."
            )
        placed = None if of is None else of.in_nibble_order(int4_low_first)
        return TensorAttr(name, seen, struct.shape, struct.size, element, placed, struct)

    return (
        attr("A", io_attr.A, a or layout.normal(m, k, mm_type.a), (m, k), mm_type.a, _dims(a) if a else (m, k)),
        attr("B", io_attr.B, b, (k, n), mm_type.b, b_dims),
        attr("C", io_attr.C, c or layout.normal(m, n, mm_type.c), (m, n), mm_type.c, _dims(c) if c else (m, n)),
    )


def _grouped(
    struct: MatmulTensorAttr, rows: int, cols: int, element: ElementType, documented: int | None
) -> TileLayout:
    """Native layout of A or C, with the documented group or, where there is none, the reported one (Q6)."""
    group = documented or (struct.shape[2] if len(struct.shape) == 3 else 0)
    if group < 1 or cols % group:
        raise LayoutMismatchError(f"the runtime reports dims {struct.shape} for a native matrix of {(rows, cols)}")
    return TileLayout(rows, cols, rows, cols, rows, group, element)


def _dims(of: TileLayout) -> tuple[int, ...]:
    return (of.padded_cols // of.tile_cols, of.padded_rows, of.tile_cols)


def zero_points(
    given: ArrayLike, attr: TensorAttr, scales: np.ndarray[tuple[int, ...], np.dtype[np.float32]], quant: QuantType
) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Zero points as the runtime takes them, one for each scale.

    Raises
    ------
    ValueError
        If they are too many or too few, no integers, or out of the range of the element type.
    """
    points = np.asarray(given)
    if points.dtype.kind not in "iu" or points.size != scales.size:
        raise ValueError(
            f"set_quant_params: {attr.name} takes {scales.size} integers as zero points, not {points.size} of "
            f"{points.dtype}"
        )
    bits = attr.element.bits
    if attr.element not in (ElementType.INT8, ElementType.INT4):
        low = high = 0
    else:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    if quant not in ASYMMETRIC:
        low = high = 0
    if points.size and not (low <= int(points.min()) and int(points.max()) <= high):
        raise ValueError(
            f"set_quant_params: zero points of {attr.name} ({attr.element.label}, {quant.name}) have to lie in "
            f"{low}..{high}"
        )
    return np.ascontiguousarray(points, np.int32)
