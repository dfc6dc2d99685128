"""From a plan to the device: weights in its memory, contexts that are shared, and one call that runs it all."""

from __future__ import annotations

import ctypes as C
import logging
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul import _kernels, layout
from npumatmul._kernels import Conversion, ResultType, RowScaling, Step
from npumatmul.context import MatmulContext
from npumatmul.device import Device
from npumatmul.errors import ClosedError, NotFiniteError, NpuError, RknnError, RknnFail, RknnMallocFail, rknn_error
from npumatmul.memory import PAGE, Slice
from npumatmul.mmtype import ElementType
from npumatmul.plan import MatmulPlan, Span, WeightPlan, plan_matmul
from npumatmul.rknn import MatmulLayout, TensorMem
from npumatmul.session import Memory
from npumatmul.spec import ContextSpec

logger = logging.getLogger(__name__)

#: Share of the process's contexts that is kept for reuse; the rest is left to others in the process.
_CONTEXT_SHARE = 0.8
#: Placed matmuls (one per number of rows) that a weight remembers.
_PLACED_PER_WEIGHT = 16

_RESULT_TYPE = {
    ElementType.INT16: ResultType.INT16,
    ElementType.INT32: ResultType.INT32,
    ElementType.FLOAT32: ResultType.FLOAT32,
}
_RUNTIME_FUNCTION = {
    Step.SYNC_A: "rknn_mem_sync",
    Step.BIND_A: "rknn_matmul_set_io_mem",
    Step.BIND_B: "rknn_matmul_set_io_mem",
    Step.BIND_C: "rknn_matmul_set_io_mem",
    Step.RUN: "rknn_matmul_run",
    Step.SYNC_C: "rknn_mem_sync",
}


class StoredWeight:
    """A weight in device memory: one slice per tile of its plan.

    Attributes
    ----------
    device : Device
    plan : WeightPlan
    column_scale : ndarray of float32, shape (N,), or None
        By which the columns of a result are multiplied.
    nbytes : int
        Bytes of NPU memory.
    """

    def __init__(
        self, device: Device, plan: WeightPlan, slices: list[Slice], column_scale: NDArray[np.float32] | None
    ) -> None:
        self.device = device
        self.plan = plan
        self.column_scale = column_scale
        self.nbytes = sum(piece.size for piece in slices)
        self.pointers = [piece.pointer for piece in slices]
        self.placed: OrderedDict[tuple[int, Conversion], Placed] = OrderedDict()
        self._finalizer = weakref.finalize(self, device.release_later, slices)
        self._finalizer.atexit = False  # at exit the device frees everything in its own order

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return not self._finalizer.alive

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed."""
        with self.device.lock:
            self._finalizer()
            self.placed.clear()
            if not self.device.closed:
                self.device.collect()


class Placed:
    """A plan whose contexts live: what the executor needs, ready made."""

    def __init__(
        self,
        plan: MatmulPlan,
        weight: StoredWeight,
        contexts: list[MatmulContext],
        functions: _kernels.RuntimeFunctions,
        conversion: Conversion,
        scaling: RowScaling,
    ) -> None:
        self.plan = plan
        self.contexts = set(contexts)
        self.a_bytes = max(context.a_bytes for context in contexts)
        self.c_bytes = max(context.c_bytes for context in contexts)
        self.report = _kernels.Report()
        b_memories = (C.POINTER(TensorMem) * len(weight.pointers))(*weight.pointers)
        pointers = (C.POINTER(_kernels.ExecutorContext) * len(contexts))(*(c.pointer for c in contexts))
        w = plan.weight
        self.struct = _kernels.PlacedMatmul(
            C.pointer(functions),
            layout.in_nibble_order(conversion, contexts[0].int4_low_nibble_first),
            scaling,
            _RESULT_TYPE[w.mm_type.c],
            None if weight.column_scale is None else weight.column_scale.ctypes.data,
            len(plan.m_spans),
            len(w.k_spans),
            len(w.n_spans),
            _ranges(plan.m_spans),
            _ranges(w.k_spans),
            _ranges(w.n_spans),
            None,
            None,
            b_memories,
            pointers,
        )
        # ctypes keeps alive what a struct's pointer field is set to, but column_scale is passed as a bare address
        self._column_scale = weight.column_scale


def _ranges(spans: Iterable[Span]) -> Any:
    values = [_kernels.Range(span.start, span.length) for span in spans]
    return (_kernels.Range * len(values))(*values)


class Placement:
    """Contexts and buffers of one device; `Device.attached` keeps the one instance.

    Contexts are kept for reuse and the least recently used is destroyed when their number reaches its limit. A and C
    have one buffer each, which every context is bound to in its turn; they grow with what is run.
    """

    def __init__(self, device: Device) -> None:
        self._device = weakref.ref(device)
        self._session = device.session
        # one core: the executor runs in one thread (docs/architecture.md)
        self._core = 0 if device.chip.has_core_mask else None
        self._contexts: OrderedDict[ContextSpec, MatmulContext] = OrderedDict()
        self._context_limit = int(device.chip.memory.contexts * _CONTEXT_SHARE)
        self._a: Memory | None = None
        self._c: Memory | None = None
        address = device.runtime.address
        self._functions = _kernels.RuntimeFunctions(
            address("rknn_matmul_set_io_mem"), address("rknn_matmul_run"), address("rknn_mem_sync")
        )
        _placements.add(self)
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

    def store(
        self,
        b: NDArray[Any],
        plan: WeightPlan,
        conversion: Conversion,
        row_scale: NDArray[np.float32] | None,
        column_scale: NDArray[np.float32] | None,
    ) -> StoredWeight:
        """Pack a weight into device memory.

        Parameters
        ----------
        b : ndarray, shape (N, K)
            The weight with its columns as rows, of any strides.
        plan : WeightPlan
        conversion : Conversion
            What happens to each value.
        row_scale : ndarray of float32, shape (N,), or None
            Scale of each row of `b` for the conversion.
        column_scale : ndarray of float32, shape (N,), or None
            By which columns of results are multiplied.

        Returns
        -------
        StoredWeight
        """
        device = self.device
        slices: list[Slice] = []
        with device.lock:
            device.check_usable()
            device.collect()
            try:
                for k_span in plan.k_spans:
                    for n_span in plan.n_spans:
                        slices.append(self._store_tile(b, plan, k_span, n_span, conversion, row_scale))
            except BaseException:
                device.weights.release(slices)
                raise
            return StoredWeight(device, plan, slices, column_scale)

    def _store_tile(
        self,
        b: NDArray[Any],
        plan: WeightPlan,
        k: Span,
        n: Span,
        conversion: Conversion,
        row_scale: NDArray[np.float32] | None,
    ) -> Slice:
        device = self.device
        tile = layout.b_native_of(k.length, n.length, plan.mm_type, device.chip, (k.padded, n.padded))
        piece = device.weights.allocate(tile.nbytes)
        try:
            rows = slice(n.start, n.start + n.length)
            _kernels.pack(
                tile.tiling(),
                layout.in_nibble_order(conversion, device.runtime.int4_low_nibble_first),
                b[rows, k.start : k.start + k.length],
                piece.address,
                piece.size,
                None if row_scale is None else row_scale[rows],
            )
        except BaseException:
            device.weights.release([piece])
            raise
        piece.mark_written()
        return piece

    # ---- running ---------------------------------------------------------------------------------------------------

    def execute(
        self, a: NDArray[Any], weight: StoredWeight, conversion: Conversion, scaling: RowScaling, out: NDArray[Any]
    ) -> None:
        """Compute ``out = a @ weight``.

        Parameters
        ----------
        a : ndarray, shape (M, K), M >= 1
            Of any strides, of the type that `conversion` reads.
        weight : StoredWeight
        conversion, scaling
            How rows of `a` become rows of A.
        out : ndarray, shape (M, N)
            int32 or float32, C-contiguous.

        Raises
        ------
        RknnError
            If a function of the runtime fails.
        NotFiniteError
            If a row that has to be quantized holds an inf or nan.
        ClosedError
            If weight or device are closed.
        """
        device = self.device
        with device.lock:
            device.check_usable()
            if weight.closed:
                raise ClosedError("this packed weight is closed; pack it again")
            device.collect()
            placed = self._placed(a.shape[0], weight, conversion, scaling)
            self._a = self._grown(self._a, placed.a_bytes)
            self._c = self._grown(self._c, placed.c_bytes)
            placed.struct.a_memory = self._a.pointer
            placed.struct.c_memory = self._c.pointer
            device.weights.flush()
            code = _kernels.execute(placed.struct, a, out, placed.report)
            report = placed.report
            device.counters.run_calls += report.run_calls
            device.counters.set_io_mem_calls += report.set_io_mem_calls
            device.counters.mem_sync_calls += report.mem_sync_calls
            device.counters.macs += report.macs
            if code:
                raise self._failure(report, placed)

    def _placed(self, m: int, weight: StoredWeight, conversion: Conversion, scaling: RowScaling) -> Placed:
        remembered = (m, conversion)
        placed = weight.placed.get(remembered)
        if placed is None or any(context.closed for context in placed.contexts):
            plan = plan_matmul(m, weight.plan)
            w = weight.plan
            keys = [
                ContextSpec(
                    w.mm_type,
                    m_span.padded,
                    k.padded,
                    n.padded,
                    MatmulLayout.NATIVE,
                    MatmulLayout.NATIVE if w.ac_native else MatmulLayout.NORM,
                    core=self._core,
                )
                for m_span in plan.m_spans
                for k in w.k_spans
                for n in w.n_spans
            ]
            wanted = set(keys)
            self._make_room(wanted)
            contexts = [self._context(key, wanted) for key in keys]
            placed = Placed(plan, weight, contexts, self._functions, conversion, scaling)
            weight.placed[remembered] = placed
            while len(weight.placed) > _PLACED_PER_WEIGHT:
                weight.placed.popitem(last=False)
        else:
            weight.placed.move_to_end(remembered)
            for context in placed.contexts:
                self._contexts.move_to_end(context.spec)
        return placed

    def _make_room(self, wanted: set[ContextSpec]) -> None:
        """Destroy the least recently used contexts until the wanted ones fit."""
        missing = sum(key not in self._contexts for key in wanted)
        for key in [key for key in self._contexts if key not in wanted]:
            if len(self._contexts) + missing <= self._context_limit:
                return
            logger.debug("destroying the least recently used context %s", key)
            self._contexts.pop(key).close()

    def _context(self, key: ContextSpec, wanted: set[ContextSpec]) -> MatmulContext:
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = self._create_context(key, wanted)
        self._contexts.move_to_end(key)
        return context

    def _create_context(self, key: ContextSpec, wanted: set[ContextSpec]) -> MatmulContext:
        while True:
            try:
                return MatmulContext(self._session, key)
            except (RknnFail, RknnMallocFail):
                # Contexts are limited per process: give up our own, the least recently used first, then those of
                # other devices in it, before giving up.
                if not self._spare_one(wanted) and not any(other.spare_one() for other in _others(self)):
                    raise

    def _spare_one(self, wanted: set[ContextSpec]) -> bool:
        """Destroy the least recently used context that is not wanted, if there is one."""
        spare = next((key for key in self._contexts if key not in wanted), None)
        if spare is not None:
            logger.info("no further context can be created; destroying %s", spare)
            self._contexts.pop(spare).close()
        return spare is not None

    def reclaim(self) -> bool:
        """Give up all contexts and the buffers of A and C; the next matmul makes them anew. The lock is held."""
        held = bool(self._contexts or self._a or self._c)
        self.close()
        return held

    def spare_one(self) -> bool:
        """Destroy a context for the sake of another device, unless this one is at work just now."""
        device = self._device()
        if device is None or not device.lock.acquire(blocking=False):
            return False
        try:
            return device.usable and self._spare_one(set())
        finally:
            device.lock.release()

    def _grown(self, buffer: Memory | None, size: int) -> Memory:
        if buffer is not None and buffer.size >= size:
            return buffer
        # The new one first: if it cannot be had, the old one still serves smaller shapes.
        grown = self._session.allocate(layout.round_up(size, PAGE))
        if buffer is not None:
            self._session.release(buffer)
        return grown

    def _failure(self, report: _kernels.Report, placed: Placed) -> NpuError:
        step, code, plan = Step(report.step), int(report.code), placed.plan
        if code == _kernels.NOT_FINITE:
            return NotFiniteError(f"matmul: row {report.row} of a holds an inf or nan, which cannot be quantized")
        if code == _kernels.NO_MEMORY:
            return NpuError("matmul: out of host memory")
        where = {
            "step": step.name,
            "matmul": f"({plan.m}, {plan.weight.k}) @ ({plan.weight.k}, {plan.weight.n})",
            "rows_from": report.row,
            "k_tile": report.k_index,
            "n_tile": report.n_index,
        }
        if step in _RUNTIME_FUNCTION:
            return rknn_error(_RUNTIME_FUNCTION[step], code, where)
        return RknnError("npumm_execute", code, where)

    def close(self) -> None:
        """Free buffers, then contexts."""
        for buffer in (self._a, self._c):
            if buffer is not None:
                self._session.release(buffer)
        self._a = self._c = None
        for context in self._contexts.values():
            context.close()
        self._contexts.clear()


#: The placements of all devices in the process, which share its contexts.
_placements: weakref.WeakSet[Placement] = weakref.WeakSet()


def _others(than: Placement) -> list[Placement]:
    return [placement for placement in list(_placements) if placement is not than]


__all__ = ["Placed", "Placement", "StoredWeight"]
