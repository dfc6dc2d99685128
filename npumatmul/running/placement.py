"""From a plan to the device: weights in its memory, contexts that are shared, and one call that runs it all."""

from __future__ import annotations

import ctypes as C
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import layout
from npumatmul.chips.layout import TileLayout
from npumatmul.device.arenas import ArenaBlock
from npumatmul.device.context import DynamicMatmulContext, MatmulContext
from npumatmul.device.device import Device
from npumatmul.device.leases import Lease, Spares
from npumatmul.device.session import Memory
from npumatmul.device.spec import ContextSpec
from npumatmul.errors import RKNN_ERRORS, ClosedError, NotFiniteError, NpuError, RknnError, rknn_error
from npumatmul.host import executor, kernels
from npumatmul.host.activation import Activation
from npumatmul.host.epilogue import Epilogue
from npumatmul.host.executor import Step
from npumatmul.planning.product import MatmulPlan, Span, WeightPlan, plan_matmul
from npumatmul.rknn import MatmulLayout, TensorMem
from npumatmul.running.call import RESULT_TYPE, Deferral, NoRoomError, device_scales, prepared, written_to
from npumatmul.running.core_threads import CoreThreads
from npumatmul.running.deferred import DeferredResult, Tiles
from npumatmul.running.pool import ContextPool, TileShape, Workspace, WorkspaceBuffers
from npumatmul.running.stored import KSlice, StoredWeight, TileRow

logger = logging.getLogger(__name__)

#: Placed matmuls (one per number of rows) that a weight remembers.
_PLACED_PER_WEIGHT = 16
#: Copies of each, with contexts of their own, for threads that are at work with it at once.
_COPIES = 8
#: Buffers for images of A: slices of K are worked on in batches of so many.
_A_BUFFERS = 8

#: Scales of A, B and C that contexts are made with.
_Scales = tuple[float, float, float] | None
_RUNTIME_FUNCTION = {
    Step.SYNC_A: "rknn_mem_sync",
    Step.BIND_A: "rknn_matmul_set_io_mem",
    Step.BIND_B: "rknn_matmul_set_io_mem",
    Step.BIND_C: "rknn_matmul_set_io_mem",
    Step.RUN: "rknn_matmul_run",
    Step.SYNC_C: "rknn_mem_sync",
    Step.SELECT: "rknn_matmul_set_dynamic_shape",
}


class Placed:
    """A plan whose contexts live: what the executor needs, ready made. Who leases its contexts has it alone."""

    def __init__(
        self,
        plan: MatmulPlan,
        weight: StoredWeight,
        activation: Activation,
        contexts: Sequence[MatmulContext | DynamicMatmulContext],
        functions: executor.RuntimeFunctions,
    ) -> None:
        self.plan, self.domain = plan, weight.domain
        self.contexts = tuple(dict.fromkeys(contexts))
        #: When it was used last, by the pool's clock.
        self.used = contexts[0].used
        per_range = len(contexts) // len(plan.m_spans)
        rows = [span.padded for span in plan.m_spans for _ in range(per_range)]
        sizes = [context.sizes(m) for context, m in zip(contexts, rows, strict=True)]
        self.a_bytes, self.c_bytes = (max(each) for each in zip(*sizes, strict=True))
        #: Bytes of C of each range of rows.
        self.c_bytes_of = [max(c for _, c in sizes[i : i + per_range]) for i in range(0, len(sizes), per_range)]
        #: Those of the call that has it just now.
        self.executor: executor.Executor | None = None
        self.a_buffers_held: WorkspaceBuffers | None = None
        self.c_buffers_held: WorkspaceBuffers | None = None
        self.report = executor.Report()
        w, slices = plan.weight, weight.slices
        a_count = min(_images(weight), _A_BUFFERS)
        self.a_buffers = a_count * (plan.cores if plan.range_cores else 1)
        # ctypes keeps alive what a struct's pointer field is set to, but arrays of numpy are passed as bare addresses
        self._alive = slices, activation
        low_first = contexts[0].int4_low_nibble_first
        self.struct = executor.PlacedMatmul(
            C.pointer(functions),
            activation.struct(layout.in_nibble_order(activation.conversion, low_first)),
            RESULT_TYPE[w.mm_type.c],
            w.row_images,
            weight.common_scale,
            len(plan.m_spans),
            len(slices),
            len(w.n_spans),
            plan.cores,
            a_count,
            _ranges(plan.m_spans),
            _ranges(w.n_spans),
            (executor.SliceStruct * len(slices))(*map(_slice_struct, slices)),
            _cores(plan.tile_cores),
            _cores(plan.range_cores),
            None,
            None,
            (C.POINTER(TensorMem) * len(weight.pointers))(*weight.pointers),
            (C.POINTER(executor.ExecutorShape) * len(contexts))(
                *(context.executor_shape(m) for context, m in zip(contexts, rows, strict=True))
            ),
        )

    @cached_property
    def tiles(self) -> Tiles:
        """For deferred results."""
        return Tiles(self.plan.m_spans, self.plan.weight.n_spans)

    @property
    def usable(self) -> bool:
        """Whether all its contexts live and none of them failed."""
        return not any(context.closed or context.broken for context in self.contexts)


def _slice_struct(each: KSlice) -> executor.SliceStruct:
    addresses = (
        None if array is None else array.ctypes.data
        for array in (each.column_scale, each.column_zero, each.column_sums)
    )
    group = executor.SpanStruct() if each.group is None else executor.SpanStruct(each.group.start, each.group.length)
    return executor.SliceStruct(
        executor.SpanStruct(each.k_span.start, each.k_span.length), each.part, each.tiles, *addresses, group
    )


def _images(weight: StoredWeight) -> int:
    """Images of A that a range of rows has."""
    return len({(each.k_span, each.part, each.group) for each in weight.slices})


def _cores(numbers: tuple[int, ...]) -> Any:
    return (C.c_int32 * len(numbers))(*numbers) if numbers else None


def _ranges(spans: Iterable[Span]) -> Any:
    values = [executor.SpanStruct(span.start, span.length) for span in spans]
    return (executor.SpanStruct * len(values))(*values)


class Placement:
    """Weights, contexts and buffers of one device, and what runs on them; `Device.attached` keeps the one instance."""

    def __init__(self, device: Device) -> None:
        self._device = weakref.ref(device)
        self._session = device.session
        self._has_cores = device.chip.has_core_mask
        self._pool = ContextPool(device.session)
        self._workspace = Workspace(device.session)
        address = device.runtime.address
        names = ("rknn_matmul_set_io_mem", "rknn_matmul_run", "rknn_mem_sync", "rknn_matmul_set_dynamic_shape")
        self._functions = executor.RuntimeFunctions(*map(address, names))
        self._executors: Spares[executor.Executor] = Spares()
        self._core_threads: Spares[CoreThreads] = Spares()
        device.session.reclaimers.add(self)

    @classmethod
    def of(cls, device: Device) -> Placement:
        """The placement of a device."""
        return device.attached(cls, cls)

    @property
    def device(self) -> Device:
        """The device, while it lives."""
        device = self._device()
        if device is None:
            raise ClosedError("the device is gone")
        return device

    # ---- weights ---------------------------------------------------------------------------------------------------

    def store(self, plan: WeightPlan, rows: Sequence[TileRow], slices: Sequence[KSlice]) -> StoredWeight:
        """Pack a weight into device memory.

        Parameters
        ----------
        plan : WeightPlan
        rows : sequence of TileRow
            What each row of tiles is packed from.
        slices : sequence of KSlice
            What a matmul runs through.

        Returns
        -------
        StoredWeight

        Raises
        ------
        NpuMemoryError
            If it does not fit.
        ValueError
            If plan, rows and slices do not fit together.
        """
        device = self.device

        def attempt() -> StoredWeight:
            device.collect()
            tiles: list[ArenaBlock] = []
            try:
                layouts = [self._tile_row(row.k_span, plan) for row in rows]
                tiles.extend(self._allocate(layouts, plan))
                pieces = iter(tiles)
                for row, of_row in zip(rows, layouts, strict=True):
                    for n_span, of in zip(plan.n_spans, of_row, strict=True):
                        self._pack_tile(row, n_span, of, next(pieces))
                return StoredWeight(device, plan, tiles, slices)
            except BaseException:
                device.weights.release(tiles)
                raise

        return self._session.with_room(attempt)

    def restore(
        self,
        plan: WeightPlan,
        k_spans: Sequence[Span],
        tile: Callable[[int, int], NDArray[np.uint8]],
        slices: Sequence[KSlice],
    ) -> StoredWeight:
        """Put tiles that were packed before into device memory, byte for byte.

        Parameters
        ----------
        plan : WeightPlan
        k_spans : sequence of Span
            The range of K of each row of tiles.
        tile : callable
            Gives a tile by its index in `StoredWeight.tiles` and its size in bytes.
        slices : sequence of KSlice

        Returns
        -------
        StoredWeight

        Raises
        ------
        NpuMemoryError
            If it does not fit.
        ValueError
            If plan, tiles and slices do not fit together.
        """
        device = self.device

        def attempt() -> StoredWeight:
            device.collect()
            tiles: list[ArenaBlock] = []
            try:
                tiles.extend(self._allocate([self._tile_row(k, plan) for k in k_spans], plan))
                for index, piece in enumerate(tiles):
                    piece.fill(tile(index, piece.size))
                return StoredWeight(device, plan, tiles, slices)
            except BaseException:
                device.weights.release(tiles)
                raise

        return self._session.with_room(attempt)

    def _tile_row(self, k: Span, plan: WeightPlan) -> list[TileLayout]:
        """Layouts of the tiles of a row."""
        chip = self.device.chip
        return [layout.b_native_of(k.length, n.length, plan.mm_type, chip, (k.padded, n.padded)) for n in plan.n_spans]

    def _allocate(self, layouts: Sequence[Sequence[TileLayout]], plan: WeightPlan) -> list[ArenaBlock]:
        """Memory for rows of tiles, in one domain; in one piece where one context could take a row as its B."""
        limits = self.device.chip.type_limits(plan.mm_type, self.device.runtime_version)
        return self.device.weights.allocate(
            [[each.nbytes for each in row] for row in layouts],
            together=len(plan.k_spans) == 1 and plan.n <= limits.n_max,
            beside=(_beside(plan, plan.buckets[0]), _beside(plan, plan.buckets[-1])),
        )

    def _pack_tile(self, row: TileRow, n: Span, of: TileLayout, piece: ArenaBlock) -> None:
        rows = slice(n.start, n.start + n.length)
        kernels.pack(
            of.tiling(),
            layout.in_nibble_order(row.conversion, self.device.runtime.int4_low_nibble_first),
            row.values[rows],
            piece.address,
            piece.size,
            None if row.row_scale is None else row.row_scale[rows],
            None if row.row_zero is None else row.row_zero[rows],
        )
        piece.mark_written()

    # ---- running ---------------------------------------------------------------------------------------------------

    def execute(
        self,
        a: NDArray[Any] | DeferredResult,
        weight: StoredWeight,
        activation: Activation,
        out: NDArray[Any],
        epilogue: Epilogue | None = None,
        result_scale: float | None = None,
    ) -> None:
        """Compute ``out = epilogue(a @ weight)``.

        Parameters
        ----------
        a : ndarray, shape (M, K), M >= 1, or DeferredResult
            Of any strides, of the type that `activation` reads. It is copied if it may share memory with `out`. A
            deferred result is finished on the way into A; its float16 and bfloat16 may be read as float32, too.
        weight : StoredWeight
        activation : Activation
            How rows of `a` become rows of A.
        out : ndarray, shape (M, N)
            float32, float16 or bfloat16; int32 for integers without scales; or int8 with `result_scale`. Adjacent along
            the columns.
        epilogue : Epilogue, optional
            Its `dtype` is that of `out`.
        result_scale : float, optional
            Where the runtime makes int8 of sums (matmul type 3): what one step of the result stands for. K is one
            slice, the weight has one scale, activations one static scale, and nothing has zero points; all three scales
            go to the runtime.

        Raises
        ------
        RknnError
            If a function of the runtime fails.
        NotFiniteError
            If a row that has to be quantized holds an inf or nan.
        ClosedError
            If weight or device are closed.
        ValueError, TypeError
            If shapes or dtypes do not fit.
        """
        if isinstance(a, np.ndarray) and np.may_share_memory(a, out):
            a = a.copy()
        call, lives = prepared(a, weight, activation, out.dtype, epilogue, result_scale)
        after = written_to(call, a, weight, out, epilogue)
        self._execute(a.shape[0], weight, activation, call, result_scale, out, None)
        del lives, after

    def defer(
        self,
        a: NDArray[Any] | DeferredResult,
        weight: StoredWeight,
        activation: Activation,
        dtype: np.dtype[Any],
        epilogue: Epilogue | None = None,
        result_scale: float | None = None,
    ) -> DeferredResult | None:
        """As `execute`, but leave the result in C, to be finished when it is read, or on its way into the next A.

        Parameters
        ----------
        a, weight, activation, result_scale
            As for `execute`.
        dtype : numpy.dtype
            Of the result: float32, float16 or bfloat16, or int8 with `result_scale`.
        epilogue : Epilogue, optional
            Without `multiply` and `residual`. Its bias is copied.

        Returns
        -------
        DeferredResult or None
            None where there is no room for it; nothing was run then.

        Raises
        ------
        RknnError, NotFiniteError, ClosedError, ValueError, TypeError
            As `execute`.
        """
        call, lives = prepared(a, weight, activation, dtype, epilogue, result_scale)
        deferral = Deferral((a.shape[0], weight.plan.n), dtype, epilogue, weight)
        try:
            self._execute(a.shape[0], weight, activation, call, result_scale, None, deferral)
        except NoRoomError:
            return None
        del lives
        return deferral.deferred

    def _execute(
        self,
        m: int,
        weight: StoredWeight,
        activation: Activation,
        call: executor.Call,
        result_scale: float | None,
        out: NDArray[Any] | None,
        deferral: Deferral | None,
    ) -> None:
        scales = None if result_scale is None else device_scales(weight, activation, result_scale)
        prepare = partial(self._prepare, m, weight, activation, scales, call, deferral)
        first: RknnError | None = None
        while True:
            try:
                error, broke = weight.leased(prepare, partial(self._run, call, first is not None), stores=out)
            except (RknnError, ClosedError) as refused:
                if first is not None:
                    raise refused from first
                raise
            if error is None:
                break
            if first is not None:
                raise error from first
            if not broke or not isinstance(error, RknnError):
                raise error
            first = error  # the contexts that failed are made anew, and all of it is repeated once

    def _prepare(
        self,
        m: int,
        weight: StoredWeight,
        activation: Activation,
        scales: _Scales,
        call: executor.Call,
        deferral: Deferral | None,
        lease: Lease,
    ) -> Placed:
        """All that a product needs, leased."""
        placed = self._placed(m, weight, activation, scales, lease)
        placed.executor = self._executors.acquire(lease, executor.Executor)
        self._acquire_buffers(placed, lease)
        if deferral is not None:
            call.out_deferred = deferral.prepare(placed.tiles, placed.c_bytes_of, self._workspace)
        weight.device.weights.flush()
        return placed

    def _run(self, call: executor.Call, repeated: bool, placed: Placed) -> tuple[NpuError | None, bool]:
        """Run it; what went wrong, and whether a context broke."""
        assert placed.executor is not None
        report = placed.report
        code = placed.executor.execute(placed.struct, call, report)
        device = self.device
        counters = device.counters
        with device.lock:
            counters.run_calls += report.run_calls
            counters.set_io_mem_calls += report.set_io_mem_calls
            counters.set_dynamic_shape_calls += report.set_dynamic_shape_calls
            counters.mem_sync_calls += report.mem_sync_calls
            counters.macs += report.macs
            counters.conversions += 1 if call.out_deferred else 2  # `a`, or a deferred result, into A; C into `out`
        if not code:
            return None, False
        return self._failure(report, placed, repeated), any(context.broken for context in placed.contexts)

    def _acquire_buffers(self, placed: Placed, lease: Lease) -> None:
        """Lend it buffers for A and C; the ones that it had last time, if they are idle."""
        workspace, struct, domain = self._workspace, placed.struct, placed.domain
        if placed.a_buffers_held is None or not workspace.reacquire(placed.a_buffers_held, lease):
            placed.a_buffers_held = None  # until the struct is right, for an interrupt may come then
            buffers = workspace.acquire("A", placed.a_buffers, placed.a_bytes, lease, domain)
            struct.a_memories = _pointers(buffers)
            placed.a_buffers_held = buffers
        if placed.c_buffers_held is None or not workspace.reacquire(placed.c_buffers_held, lease):
            placed.c_buffers_held = None
            buffers = workspace.acquire("C", placed.plan.cores, placed.c_bytes, lease, domain)
            struct.c_memories = _pointers(buffers)
            placed.c_buffers_held = buffers

    def _placed(self, m: int, weight: StoredWeight, activation: Activation, scales: _Scales, lease: Lease) -> Placed:
        """What a product needs."""
        remembered = (m, activation, scales)
        copies: list[Placed] | None = weight.placed.get(remembered)
        for placed in copies or ():
            if self._pool.again(placed.contexts, lease):
                placed.used = placed.contexts[0].used
                return placed
        plan = plan_matmul(m, weight.plan, images=_images(weight))
        contexts = self._pool.for_tiles(self._tiles(plan, weight, scales), lease)
        placed = Placed(plan, weight, activation, contexts, self._functions)
        usable = [other for other in copies or () if other.usable]
        weight.placed[remembered] = [placed, *usable][:_COPIES]
        while len(weight.placed) > _PLACED_PER_WEIGHT:
            del weight.placed[min(weight.placed, key=lambda key: max(each.used for each in weight.placed[key]))]
        return placed

    def _tiles(self, plan: MatmulPlan, weight: StoredWeight, scales: _Scales) -> list[TileShape]:
        w = plan.weight
        return [
            TileShape(
                ContextSpec(
                    w.mm_type,
                    m_span.padded,
                    each.k_span.padded,
                    n.padded,
                    MatmulLayout.NATIVE,
                    MatmulLayout.NATIVE if w.ac_native else MatmulLayout.NORM,
                    core=plan.core(m_index, n_index) if self._has_cores else None,
                    domain=weight.domain,
                    scales=scales,
                ),
                w.buckets,
            )
            for m_index, m_span in enumerate(plan.m_spans)
            for each in weight.slices
            for n_index, n in enumerate(w.n_spans)
        ]

    def contexts(self, specs: Sequence[ContextSpec], lease: Lease) -> list[MatmulContext]:
        """Contexts by spec, until the lease is over; for `StoredWeight.leased` to prepare with."""
        return self._pool.static(specs, lease)

    def core_threads(self, lease: Lease) -> CoreThreads:
        """Threads for further cores, until the lease is over; for `StoredWeight.leased` to prepare with."""
        return self._core_threads.acquire(lease, lambda: CoreThreads(self.device))

    def spare_one(self) -> bool:
        """Destroy the context that was used longest ago, unless all are in use."""
        return self._pool.spare()

    def reclaim(self, domain: int | None = None) -> bool:
        """Give up contexts and buffers of A and C that are idle, to be made anew. The lock is held."""
        contexts = self._pool.clear(domain)
        return self._workspace.clear(domain) or contexts

    def _failure(self, report: executor.Report, placed: Placed, repeated: bool) -> NpuError:
        step, code, plan = Step(report.step), int(report.code), placed.plan
        if code == kernels.NOT_FINITE:
            return NotFiniteError(f"matmul: row {report.row} of a holds an inf or nan, which cannot be quantized")
        if code == kernels.NO_MEMORY:
            return NpuError("matmul: out of host memory")
        where = {
            "step": step.name,
            "matmul": f"({plan.m}, {plan.weight.k}) @ ({plan.weight.k}, {plan.weight.n})",
            "rows_from": report.row,
            "slice": report.slice_index,
            "n_tile": report.n_index,
            "core": report.core,
        }
        if step in _RUNTIME_FUNCTION:
            hint = RKNN_ERRORS.get(code, RknnError).hint
            if repeated:
                names = ", ".join(str(context.spec) for context in placed.contexts if context.broken)
                hint = f"It failed before, its context was made anew and all was repeated, in vain ({names}). {hint}"
            return rknn_error(_RUNTIME_FUNCTION[step], code, where, hint.strip())
        return RknnError("npumm_execute", code, where)

    def close(self) -> None:
        """End the threads, free buffers, then contexts."""
        self._executors.close()
        self._core_threads.close()
        self._workspace.clear()
        self._pool.clear()


def _beside(plan: WeightPlan, rows: int) -> int:
    """Bytes of A and C that products of so many rows of the device work with."""
    a = plan.mm_type.a.nbytes(rows * max(span.padded for span in plan.k_spans))
    c = plan.mm_type.c.nbytes(rows * max(span.padded for span in plan.n_spans))
    return min(len(plan.k_spans), _A_BUFFERS) * Workspace.size_for(a) + plan.cores * Workspace.size_for(c)


def _pointers(memories: Sequence[Memory]) -> Any:
    return (C.POINTER(TensorMem) * len(memories))(*(memory.pointer for memory in memories))


__all__ = ["KSlice", "Placed", "Placement", "StoredWeight", "TileRow"]
