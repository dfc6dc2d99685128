"""Products that the CPU makes of a packed weight, from the tiles that the NPU reads.

Rows become rows of A, and sums a result, as on the way through the NPU; in between `npumm_multiply` takes the place of
runs. A and C stand in memory of the host. The weight's memory was written by the CPU through a cacheable mapping and is
only read by the NPU, so there is nothing to synchronise before the CPU reads it (facts 14, 15).
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

from numpy.typing import ArrayLike, NDArray

from npumatmul.chips import layout
from npumatmul.chips.types import ElementType
from npumatmul.device.buffer import Buffer
from npumatmul.device.leases import Lease
from npumatmul.host import executor
from npumatmul.host.activation import Activation
from npumatmul.host.epilogue import Epilogue
from npumatmul.host.executor import Call, OnCpu, ResultType
from npumatmul.host.kernels import Conversion
from npumatmul.host.multiply import Operands
from npumatmul.host.processors import fast_processors
from npumatmul.planning.on_cpu import CpuPlan, plan_on_cpu
from npumatmul.planning.product import A_BUFFERS_MOST, MatmulPlan
from npumatmul.rknn import TensorMem
from npumatmul.running.bound import BoundProgram, Shared, cores_struct, slices_struct, spans_struct
from npumatmul.running.cpu_memory import CpuMemory
from npumatmul.running.deferred import DeferredResult
from npumatmul.running.placement import Placement
from npumatmul.running.pool import PooledContext, TileShape
from npumatmul.running.program import Program
from npumatmul.running.stored import StoredWeight

__all__ = ["CpuProgram"]

#: A line of a CPU's cache.
_LINE = 64
_OPERANDS = {
    (ElementType.INT8, ElementType.INT8): Operands.I8_I8,
    (ElementType.INT8, ElementType.INT4): Operands.I8_I4,
    (ElementType.INT4, ElementType.INT4): Operands.I4_I4,
    (ElementType.FLOAT16, ElementType.FLOAT16): Operands.F16_F16,
    (ElementType.FLOAT16, ElementType.INT8): Operands.F16_I8,
    (ElementType.FLOAT16, ElementType.INT4): Operands.F16_I4,
}


class CpuProgram(Program):
    """A product of so many rows with a weight, by the CPU; as `Program`."""

    on_npu = False

    def _bind(self, lease: Lease) -> BoundProgram:
        return self._bound_once_more(self.bound_with((), self.plain_call()), lease)

    def tiles(self) -> list[TileShape]:
        """None: no contexts are needed."""
        return []

    def bound_with(self, contexts: Sequence[PooledContext], call: Call) -> BoundProgram:
        """The program with a call; nothing is acquired."""
        return _CpuBound(self._placement, self._plan, self._weight, self._activation, call, self._scales)

    def defer(
        self,
        a: NDArray[Any] | DeferredResult,
        epilogue: Epilogue | None = None,
        bias: ArrayLike | None = None,
        *,
        buffers: tuple[Buffer, ...] = (),
    ) -> DeferredResult | None:
        """None: results are always stored at once, since there is no C of the NPU that they could stay in."""
        return None


class _CpuBound(BoundProgram):
    """A plan with memory for A and C and an executor, whose threads multiply."""

    def __init__(
        self,
        placement: Placement,
        plan: MatmulPlan,
        weight: StoredWeight,
        activation: Activation,
        call: Call,
        scales: tuple[float, float, float] | None,
    ) -> None:
        self._open(placement, plan, weight.domain, (), call)
        w, slices, device = plan.weight, weight.slices, weight.device
        a_type = w.mm_type.a
        if w.row_images == 2:  # the NPU takes int8 as two halves; here they are one row of int8
            a_type, activation = ElementType.INT8, replace(activation, conversion=Conversion.F32_TO_I8)
        tile = layout.b_native_of(1, 1, w.mm_type, device.chip)
        low_first = device.runtime.int4_low_nibble_first
        cpu = plan_on_cpu(plan.m, w, tile.tile_rows, fast_processors())
        requantize = 0.0 if scales is None else scales[0] * scales[1] / scales[2]
        is_float = a_type is ElementType.FLOAT16
        c_type = ResultType.FLOAT32 if is_float else ResultType.INT32 if scales is None else ResultType.INT8
        operands = _OPERANDS[a_type, w.mm_type.b]
        self._on_cpu = OnCpu(operands, not low_first, tile.tile_rows, tile.tile_cols, requantize)
        a_count = min(weight.images, A_BUFFERS_MOST)
        rows = cpu.m_spans[0].length
        a_bytes = a_type.nbytes(rows * max(each.k_span.padded for each in slices))
        c_bytes = 4 * rows * max(piece.span.padded for piece in cpu.pieces)
        sizes = [layout.round_up(a_bytes, _LINE)] * a_count + [layout.round_up(c_bytes, _LINE)] * cpu.threads
        self._nbytes, b = sum(sizes), _pieces(weight, cpu, tile)
        #: A and C, one behind the other in memory that is acquired for a call.
        self._parts = (TensorMem * len(sizes))(*(TensorMem(size=size) for size in sizes))
        # ctypes keeps alive what a struct's pointer field is set to, but arrays of numpy are passed as bare addresses
        self._refers_to = slices, activation, b
        self.struct = executor.PlacedMatmul(
            None,
            activation.struct(layout.in_nibble_order(activation.conversion, low_first)),
            c_type,
            1,
            weight.common_scale,
            len(cpu.m_spans),
            len(slices),
            len(cpu.pieces),
            cpu.threads,
            a_count,
            spans_struct(cpu.m_spans),
            spans_struct(piece.span for piece in cpu.pieces),
            slices_struct(slices),
            cores_struct(tuple(piece.thread for piece in cpu.pieces)),
            None,
            _pointers(self._parts[:a_count]),
            _pointers(self._parts[a_count:]),
            _pointers(b),
            _shapes(cpu, weight),
            C.pointer(self._on_cpu),
            self._told_as(weight, on_cpu=True),
        )

    def acquire_others(self, lease: Lease) -> None:
        """Lease an executor, and memory for A and C."""
        self._lease = lease
        self._complete = False  # until the struct refers to others, for an interrupt may come before
        self.executor = self._placement.executor(lease)
        memory = self._placement.cpu_memories.acquire(self._nbytes, lease)
        self._stand_in(memory)
        self._buffers = (memory,)
        self._complete = True

    def share(self, shared: Shared) -> None:
        """Take memory for A and C that other programs of the same lease have, too."""
        self._stand_in(shared.cpu_memory(self._nbytes))

    def _stand_in(self, memory: CpuMemory) -> None:
        address = memory.address
        for part in self._parts:
            part.virt_addr = address
            address += part.size


def _pieces(weight: StoredWeight, cpu: CpuPlan, tile: layout.TileLayout) -> Any:
    """Where the columns of each piece stand, for each row of tiles of the weight."""
    n_spans = weight.plan.n_spans
    depths = {each.tiles: each.k_span.padded for each in weight.slices}
    rows = len(weight.tiles) // len(n_spans)
    structs = (TensorMem * (rows * len(cpu.pieces)))()
    for struct, (row, piece) in zip(structs, product(range(rows), cpu.pieces), strict=True):
        column_bytes = tile.element.nbytes(depths.get(row, 0) * tile.tile_rows)
        struct.virt_addr = weight.tiles[row * len(n_spans) + piece.n_index].address + piece.tile_columns * column_bytes
        struct.size = piece.span.padded // tile.tile_rows * column_bytes
    return structs


def _shapes(cpu: CpuPlan, weight: StoredWeight) -> Any:
    """The shape of each tile: ranges of rows, slices of K, pieces of N."""
    made: dict[tuple[int, int, int], Any] = {}
    found = []
    for m, each, piece in product(cpu.m_spans, weight.slices, cpu.pieces):
        extents = m.length, each.k_span.padded, piece.span.padded
        if extents not in made:
            made[extents] = C.pointer(executor.ExecutorShape(None, *extents))
        found.append(made[extents])
    return (C.POINTER(executor.ExecutorShape) * len(found))(*found)


def _pointers(structs: Any) -> Any:
    return (C.POINTER(TensorMem) * len(structs))(*map(C.pointer, structs))
