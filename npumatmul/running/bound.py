"""A program bound to contexts, buffers and an executor, which runs one call at a time."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from npumatmul.chips import layout
from npumatmul.device.arenas import ArenaBlock
from npumatmul.device.given_up import give_up
from npumatmul.device.leases import Lease, Together
from npumatmul.device.memory import Memory
from npumatmul.device.session import Session
from npumatmul.errors import RKNN_ERRORS, NotFiniteError, NpuError, RknnError, rknn_error
from npumatmul.host import executor, kernels
from npumatmul.host.activation import Activation
from npumatmul.host.epilogue import PlacedEpilogue
from npumatmul.host.executor import Call, Executor, Step
from npumatmul.planning.product import MatmulPlan, Span
from npumatmul.rknn import TensorMem
from npumatmul.running import profiled
from npumatmul.running.call import RESULT_TYPE
from npumatmul.running.cpu_memory import CpuMemory
from npumatmul.running.deferred import Tiles
from npumatmul.running.placement import Placement
from npumatmul.running.pool import PooledContext
from npumatmul.running.profiled import Multiplied
from npumatmul.running.stored import KSlice, StoredWeight
from npumatmul.running.workspace import A_BUFFERS, Workspace

__all__ = ["PROVEN", "SHORT", "BoundProgram", "Shared", "cores_struct", "slices_struct", "spans_struct"]

#: A call is attended so often before it is known to be short,
PROVEN = 64
#: which it is where it takes fewer nanoseconds; longer ones are always attended.
SHORT = 1_000_000

_RUNTIME_FUNCTION = {
    Step.SYNC_A: "rknn_mem_sync",
    Step.BIND_A: "rknn_matmul_set_io_mem",
    Step.BIND_B: "rknn_matmul_set_io_mem",
    Step.BIND_C: "rknn_matmul_set_io_mem",
    Step.RUN: "rknn_matmul_run",
    Step.SYNC_C: "rknn_mem_sync",
    Step.SELECT: "rknn_matmul_set_dynamic_shape",
}


class BoundProgram:
    """A plan with contexts, buffers and an executor: all that a call needs, ready made.

    Where A and C stand in the memory of arrays (`in_place`) there are no buffers, and the weight is bound as one.

    Contexts stay the same as long as they live; buffers and executor are those of the last call wherever nobody else
    has them.

    Attributes
    ----------
    contexts : tuple
        Each once.
    c_bytes : list of int
        Bytes of C of each range of rows.
    struct : PlacedMatmul
    executor : Executor
        That of the last call, or of the one that is going on.
    call : Call
        For whoever acquired it, with all but the addresses of `a` and `out`.
    after : PlacedEpilogue or None
        The epilogue that the call refers to.
    results : sequence of Memory
        What the last result stands in, of those that are left where the NPU writes them.
    proven : int
        How many calls were found to be short; from `PROVEN` on they are known to be.
    """

    def __init__(
        self,
        placement: Placement,
        plan: MatmulPlan,
        weight: StoredWeight,
        activation: Activation,
        contexts: Sequence[PooledContext],
        call: Call,
        *,
        in_place: bool = False,
    ) -> None:
        self._open(placement, plan, weight.domain, contexts, call)
        per_range = len(contexts) // len(plan.m_spans)
        rows = [span.padded for span in plan.m_spans for _ in range(per_range)]
        sizes = [context.sizes(m) for context, m in zip(contexts, rows, strict=True)]
        self._a_bytes, self._c_bytes = (max(each) for each in zip(*sizes, strict=True))
        self.c_bytes = [max(c for _, c in sizes[i : i + per_range]) for i in range(0, len(sizes), per_range)]
        w, slices = plan.weight, weight.slices
        a_count = min(weight.images, A_BUFFERS)
        self._a_count = 0 if in_place else a_count * (plan.threads if plan.range_cores else 1)
        self._c_count = 0 if in_place else plan.threads
        b = [weight.whole.pointer] if in_place else weight.pointers
        # ctypes keeps alive what a struct's pointer field is set to, but arrays of numpy are passed as bare addresses
        self._refers_to: tuple[Any, ...] = slices, activation
        low_first = contexts[0].int4_low_nibble_first
        self.struct = executor.PlacedMatmul(
            C.pointer(placement.functions),
            activation.struct(layout.in_nibble_order(activation.conversion, low_first)),
            RESULT_TYPE[w.mm_type.c],
            w.row_images,
            weight.common_scale,
            len(plan.m_spans),
            len(slices),
            len(w.n_spans),
            plan.threads,
            a_count,
            spans_struct(plan.m_spans),
            spans_struct(w.n_spans),
            slices_struct(slices),
            cores_struct(plan.tile_cores),
            cores_struct(tuple(core * plan.turns + plan.turn(m) for m, core in enumerate(plan.range_cores))),
            None,
            None,
            (C.POINTER(TensorMem) * len(b))(*b),
            (C.POINTER(executor.ExecutorShape) * len(contexts))(
                *(context.executor_shape(m) for context, m in zip(contexts, rows, strict=True))
            ),
            None,
            self._told_as(weight),
            plan.turns,
        )

    def _open(
        self,
        placement: Placement,
        plan: MatmulPlan,
        domain: int,
        contexts: Sequence[PooledContext],
        call: Call,
    ) -> None:
        """What is so whoever multiplies."""
        self.call = call
        self.after: PlacedEpilogue | None = None
        self.proven = 0
        self.results: Sequence[Memory] = ()
        self._placement, self.plan, self._domain = placement, plan, domain
        self.contexts = tuple(dict.fromkeys(contexts))
        self._structs = tuple((context, context.struct) for context in self.contexts)
        self._pool = placement.contexts
        #: Buffers and executor of the last call, and whether the struct refers to them.
        self._buffers: tuple[Memory | CpuMemory, ...] = ()
        self._complete = False
        #: Of the last call. It serves the next one, unless somebody took since then what it was of.
        self._lease: Lease
        self.executor: Executor

    def _told_as(self, weight: StoredWeight, *, on_cpu: bool = False) -> int:
        """The number by which profiles know it from now on."""
        plan, scheme = self.plan, weight.scheme or weight.plan.mm_type.name
        simulator = weight.device.runtime if weight.device.simulated and not on_cpu else None
        about = Multiplied(weight.name, scheme, plan.m, plan.weight.k, plan.weight.n, on_cpu, simulator)
        self._about = about  # which lives as long
        return profiled.number(about)

    @cached_property
    def tiles(self) -> Tiles:
        """For results that are deferred."""
        return Tiles(self.plan.m_spans, self.plan.weight.n_spans)

    @property
    def broken(self) -> bool:
        """Whether one of its contexts failed or is gone."""
        return any(context.struct.broken for context in self.contexts)

    def mark_broken(self) -> None:
        """Have its contexts made anew."""
        for context in self.contexts:
            context.struct.broken = 1

    def give_up(self, session: Session, weight: StoredWeight, memories: Iterable[Memory], keeps: object) -> None:
        """Let threads of the last call have what they were given, since they do not come back.

        Parameters
        ----------
        session : Session
        weight : StoredWeight
        memories : iterable of Memory
            Of arrays, where A or C stand there.
        keeps : object
            What else has to live.
        """
        every_tile = chain.from_iterable(weight.tiles) if type(weight.tiles) is Together else weight.tiles
        tiles = [tile for tile in every_tile if isinstance(tile, ArenaBlock)]
        blocks = [block for tile in tiles for block in (tile.memory, tile.arena.memory)]
        own = [each for memory in (*self.results, *memories) for each in (memory, memory.allocation)]
        every = (*(each for each in self._buffers if isinstance(each, Memory)), *own, *blocks)
        keeps = self, weight, session, keeps
        give_up(session.leases, session.guard, self.executor, self.contexts, every, weight.tiles, keeps)

    def acquire(self, lease: Lease) -> bool:
        """Lease all that a call needs; nothing where one of the contexts is in use, broken or gone."""
        # Products of a model come here in turns: whether things are idle is looked at without calls of functions.
        if not self._lease.over:
            return False
        for context, struct in self._structs:
            if struct.broken:
                return False
            ref = context.lease
            if ref is not None and not ((held := ref()) is None or held.over):
                return False
        pool, ref = self._pool, lease.ref
        pool.uses = uses = pool.uses + 1
        for context, _ in self._structs:
            context.lease, context.used = ref, uses
        if not self._complete or not self._has_its_own():
            self.acquire_others(lease)
            return True
        self._lease, self.executor.lease = lease, ref
        for memory in self._buffers:
            memory.lease = ref
        return True

    def _has_its_own(self) -> bool:
        """Whether nobody is at work with the executor and the buffers of the last call, and they are still there."""
        ref = self.executor.lease
        if ref is not None and not ((held := ref()) is None or held.over):
            return False
        for memory in self._buffers:
            ref = memory.lease
            if memory.retired or (ref is not None and not ((held := ref()) is None or held.over)):
                return False
        return True

    def last_lease(self) -> Lease | None:
        """The lease of the last call, if all that it was of is still as that call left it, and nobody's."""
        # Every product comes here, and nearly always finds it so: there are no calls to spare.
        lease = self._lease
        if not lease.left or lease.worn or not self._complete:
            return None
        ref, pool = lease.ref, self._pool
        pool.uses = uses = pool.uses + 1
        for context, struct in self._structs:
            if context.lease is not ref or struct.broken:
                return None
            context.used = uses
        for memory in self._buffers:
            if memory.lease is not ref:
                return None
        return lease if self.executor.lease is ref else None

    def forget_lease(self, lease: Lease) -> None:
        """Have a lease that is worn serve no further call, so that what waits for its end can go."""
        if self._lease is lease:
            self._lease = _OVER

    def acquire_others(self, lease: Lease) -> None:
        """Lease buffers and an executor, which those of the last call are not: somebody has them, or they are gone."""
        placement, struct, self._lease = self._placement, self.struct, lease
        self._complete = False  # until the struct refers to others, for an interrupt may come before
        self.executor = placement.executor(lease)
        a = placement.workspace.acquire("A", self._a_count, self._a_bytes, lease, self._domain)
        c = placement.workspace.acquire("C", self._c_count, self._c_bytes, lease, self._domain)
        struct.a_memories, struct.c_memories = _pointers(a), _pointers(c)
        self._buffers = (*a, *c)
        self._complete = True

    def share(self, shared: Shared) -> None:
        """Take buffers of A and C that other programs of the same lease have, too: they run one after the other."""
        a = shared.buffers("A", self._a_count, self._a_bytes, self._domain)
        c = shared.buffers("C", self._c_count, self._c_bytes, self._domain)
        self.struct.a_memories, self.struct.c_memories = _pointers(a), _pointers(c)

    def failure(self, repeated: bool) -> NpuError:
        """What went wrong in the last call."""
        report, plan = self.executor.report, self.plan
        step, code = Step(report.step), int(report.code)
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
        if step not in _RUNTIME_FUNCTION:
            return RknnError("npumm_execute", code, where)
        failed = rknn_error(_RUNTIME_FUNCTION[step], code, where, RKNN_ERRORS.get(code, RknnError).hint)
        return self.in_vain(failed) if repeated else failed

    def is_repeated_after(self, error: RknnError) -> bool:
        """Whether contexts count as broken after what was raised, and the call is made again."""
        return True

    def in_vain(self, failed: RknnError) -> RknnError:
        """The error of a call that was repeated, which says so."""
        names = ", ".join(str(context.spec) for context in self.contexts if context.broken)
        hint = f"It failed before, its context was made anew and all was repeated, in vain ({names}). {failed.hint}"
        plan = self.plan
        where = {"matmul": f"({plan.m}, {plan.weight.k}) @ ({plan.weight.k}, {plan.weight.n})", **failed.arguments}
        return rknn_error(failed.function, failed.code, where, hint.strip())


class Shared:
    """Buffers of one lease, of which programs that run one after the other have the same.

    Attributes
    ----------
    memories : list of Memory and CpuMemory
        All of them.
    """

    def __init__(self, placement: Placement, lease: Lease) -> None:
        self._placement, self._lease = placement, lease
        self._buffers: dict[tuple[str, int, int], list[Memory]] = {}
        self._cpu: dict[int, CpuMemory] = {}
        self.memories: list[Memory | CpuMemory] = []

    def buffers(self, role: str, count: int, nbytes: int, domain: int) -> Sequence[Memory]:
        """As `Workspace.acquire`."""
        have = self._buffers.setdefault((role, domain, Workspace.size_for(nbytes)), [])
        if count > len(have):
            more = self._placement.workspace.acquire(role, count - len(have), nbytes, self._lease, domain)
            have.extend(more)
            self.memories.extend(more)
        return have[:count]

    def cpu_memory(self, nbytes: int) -> CpuMemory:
        """As `CpuMemories.acquire`."""
        size = Workspace.size_for(nbytes)
        if size not in self._cpu:
            self._cpu[size] = self._placement.cpu_memories.acquire(nbytes, self._lease)
            self.memories.append(self._cpu[size])
        return self._cpu[size]


_OVER = Lease()
_OVER.over = True


def _slice_struct(each: KSlice) -> executor.SliceStruct:
    addresses = (
        None if array is None else array.ctypes.data
        for array in (each.column_scale, each.column_zero, each.column_sums)
    )
    group = executor.SpanStruct() if each.group is None else _span(each.group)
    return executor.SliceStruct(_span(each.k_span), each.part, each.tiles, *addresses, group)


def _span(span: Span) -> executor.SpanStruct:
    return executor.SpanStruct(span.start, span.length)


def slices_struct(slices: Sequence[KSlice]) -> Any:
    """Slices as the executor takes them."""
    return (executor.SliceStruct * len(slices))(*map(_slice_struct, slices))


def spans_struct(spans: Iterable[Span]) -> Any:
    """Ranges as the executor takes them."""
    values = list(map(_span, spans))
    return (executor.SpanStruct * len(values))(*values)


def cores_struct(numbers: tuple[int, ...]) -> Any:
    """The core of each tile, or of each range; None where there are none."""
    return (C.c_int32 * len(numbers))(*numbers) if numbers else None


def _pointers(memories: Sequence[Memory]) -> Any:
    return (C.POINTER(TensorMem) * len(memories))(*(memory.pointer for memory in memories))
