"""Weights into device memory: allocated in one piece where that is of use, and filled tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import layout
from npumatmul.chips.layout import TileLayout
from npumatmul.device.arenas import ArenaBlock
from npumatmul.device.device import Device
from npumatmul.device.host_blocks import HostBlock, host_blocks
from npumatmul.host import kernels
from npumatmul.host.kernels import Conversion
from npumatmul.planning.product import Span, WeightPlan
from npumatmul.running.stored import KSlice, StoredWeight
from npumatmul.running.where import where
from npumatmul.running.workspace import A_BUFFERS, Workspace

__all__ = ["MeasuredRow", "PackedRow", "TileRow", "enlarge_scales", "store", "workspace_bytes"]

#: Smallest scale of a weight: no number of float32 is smaller and as precise.
_SMALLEST_SCALE = np.finfo(np.float32).tiny


class _Row(Protocol):
    """A row of tiles: a range of K over all of N."""

    @property
    def k_span(self) -> Span: ...

    def write(self, index: int, columns: slice, of: TileLayout, block: ArenaBlock | HostBlock) -> None:
        """Fill the memory of the tile with an index in the row."""


@dataclass(frozen=True, eq=False)
class TileRow:
    """What one row of tiles is packed from.

    Attributes
    ----------
    k_span : Span
    values : ndarray, shape (N, k_span.length)
        The weight with its columns as rows, of any strides.
    conversion : Conversion
        What happens to each value.
    row_scale : ndarray of float32, shape (N,), or None
        Scale of each row of `values` for the conversion.
    row_zero : ndarray of int32, shape (N,), or None
        Zero point of each row.
    row_sum : ndarray of int32, shape (N,), or None
        Receives the sum of the integers of each row.
    """

    k_span: Span
    values: NDArray[Any]
    conversion: Conversion
    row_scale: NDArray[np.float32] | None = None
    row_zero: NDArray[np.int32] | None = None
    row_sum: NDArray[np.int32] | None = None

    def write(self, index: int, columns: slice, of: TileLayout, block: ArenaBlock | HostBlock) -> None:
        kernels.pack(
            of.tiling(),
            layout.in_nibble_order(self.conversion, block.session.runtime.int4_low_nibble_first),
            self.values[columns],
            block.address,
            block.size,
            None if self.row_scale is None else self.row_scale[columns],
            None if self.row_zero is None else self.row_zero[columns],
            None if self.row_sum is None else self.row_sum[columns],
        )
        block.mark_written()


@dataclass(frozen=True, eq=False)
class MeasuredRow:
    """A row of tiles that is measured, quantized and packed in one pass: each column of B gets a scale of its own.

    Attributes
    ----------
    k_span : Span
        All of K.
    values : ndarray of float32, shape (N, K)
        The weight with its columns as rows, of any strides.
    conversion : Conversion
        To codes.
    scale : ndarray of float32, shape (N,)
        Receives the largest magnitudes over the largest code.
    sums : ndarray of int32, shape (N,), or None
        Receives the sums of the codes.
    """

    k_span: Span
    values: NDArray[np.float32]
    conversion: Conversion
    scale: NDArray[np.float32]
    sums: NDArray[np.int32] | None = None

    def write(self, index: int, columns: slice, of: TileLayout, block: ArenaBlock | HostBlock) -> None:
        values, sums = self.values[columns], None if self.sums is None else self.sums[columns]
        conversion = layout.in_nibble_order(self.conversion, block.session.runtime.int4_low_nibble_first)
        scale = kernels.quantize(of.tiling(), conversion, values, block.address, block.size, sums)
        if enlarge_scales(scale, values, conversion.levels):
            kernels.pack(of.tiling(), conversion, values, block.address, block.size, scale, row_sum=sums)
        self.scale[columns] = scale
        block.mark_written()


def enlarge_scales(scale: NDArray[np.float32], values: NDArray[np.float32], levels: int) -> bool:
    """Make scales that are too small, or vanished and became 1, the smallest; whether there was one.

    Parameters
    ----------
    scale : ndarray of float32, shape (N,)
        Of `kernels.symmetric_scales` or `kernels.quantize`; changed in place.
    values : ndarray of float32, shape (N, K)
    levels : int
    """
    changed = False
    for row in np.flatnonzero((scale < _SMALLEST_SCALE) | (scale == 1)):
        peak = max(float(values[row].max()), -float(values[row].min()))
        if 0 < peak / levels < _SMALLEST_SCALE:
            scale[row], changed = _SMALLEST_SCALE, True
    return changed


@dataclass(frozen=True, eq=False)
class PackedRow:
    """A row of tiles that were packed before.

    Attributes
    ----------
    k_span : Span
    write_tile : callable
        Writes the bytes of a tile, as the NPU reads them, by its index in the row.
    """

    k_span: Span
    write_tile: Callable[[int, NDArray[np.uint8]], None]

    def write(self, index: int, columns: slice, of: TileLayout, block: ArenaBlock | HostBlock) -> None:
        block.fill(partial(self.write_tile, index))


def store(device: Device, plan: WeightPlan, rows: Sequence[_Row], slices: Sequence[KSlice]) -> StoredWeight:
    """Put a weight into device memory, or into ordinary one where that holds (`where`).

    Parameters
    ----------
    device : Device
    plan : WeightPlan
    rows : sequence of TileRow, MeasuredRow or PackedRow
    slices : sequence of KSlice
        What a matmul runs through.

    Returns
    -------
    StoredWeight

    Raises
    ------
    NpuMemoryError
        If it does not fit.
    ClosedError
        If the device is closed.
    ValueError
        If plan, rows and slices do not fit together.
    """
    chosen = where()
    limited = chosen.limited(plan)

    def attempt() -> StoredWeight:
        device.collect()
        blocks: Sequence[ArenaBlock | HostBlock] = ()
        try:
            layouts = [_layouts(row.k_span, plan, device) for row in rows]
            blocks = _allocate(layouts, limited, device)
            free = iter(blocks)
            for row, of_row in zip(rows, layouts, strict=True):
                for index, (n, of) in enumerate(zip(plan.n_spans, of_row, strict=True)):
                    row.write(index, slice(n.start, n.start + n.length), of, next(free))
            return StoredWeight(device, limited, blocks, slices, chosen)
        except BaseException:
            device.weights.release(blocks)
            raise

    return device.session.with_room(attempt)


def _layouts(k: Span, plan: WeightPlan, device: Device) -> list[TileLayout]:
    padded = [(k.padded, n.padded) for n in plan.n_spans]
    return [
        layout.b_native_of(k.length, n.length, plan.mm_type, device.chip, extents)
        for n, extents in zip(plan.n_spans, padded, strict=True)
    ]


def _allocate(
    layouts: Sequence[Sequence[TileLayout]], plan: WeightPlan, device: Device
) -> Sequence[ArenaBlock | HostBlock]:
    """Memory for rows of tiles, in one domain; in one piece where one context could take a row as its B."""
    if where().memory == "host":
        return host_blocks(device.session, [each.nbytes for row in layouts for each in row])
    limits = device.chip.type_limits(plan.mm_type, device.runtime_version)
    return device.weights.allocate(
        [[each.nbytes for each in row] for row in layouts],
        together=len(plan.k_spans) == 1 and plan.n <= limits.n_max,
        domains=where().domains,
        beside=(workspace_bytes(plan, plan.buckets[0]), workspace_bytes(plan, plan.buckets[-1])),
    )


def workspace_bytes(plan: WeightPlan, rows: int) -> int:
    """Bytes of A and C that products of so many rows of the device work with."""
    a = plan.mm_type.a.nbytes(rows * max(span.padded for span in plan.k_spans))
    c = plan.mm_type.c.nbytes(rows * max(span.padded for span in plan.n_spans))
    return min(len(plan.k_spans), A_BUFFERS) * Workspace.size_for(a) + plan.cores * Workspace.size_for(c)
