"""Products that the NPU reads and writes in place: no pass of the CPU over A or C.

A context whose A and C are in normal layout, row-major, can be bound to the memory of arrays. B is native, as packed
weights are. That needs extents that the NPU takes as they are, one slice of K, tiles of N that stand one behind the
other, and a type whose C is the dtype of the result, all in the weight's IOMMU domain. Rows are what cores share, since
only whole rows stand together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from npumatmul.chips import Chip
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.device.buffer import Buffer
from npumatmul.device.context import MatmulContext
from npumatmul.device.device import Device
from npumatmul.device.leases import Lease
from npumatmul.device.session import Memory
from npumatmul.device.spec import ContextSpec
from npumatmul.errors import ClosedError, DeviceError, RknnError, rknn_error
from npumatmul.planning.product import plan_matmul, row_buckets
from npumatmul.rknn import MatmulLayout, MemSyncMode
from npumatmul.running.core_threads import CoreThreads
from npumatmul.running.placement import Placement
from npumatmul.running.stored import StoredWeight

_Prepared = TypeVar("_Prepared")
_Result = TypeVar("_Result")

__all__ = ["Ranges", "Room", "Rows", "direct_type", "multiply", "padded_rows", "ranges_in_place", "share_rows"]


@dataclass(frozen=True)
class Room:
    """Where rows of a matrix stand in a buffer, one behind the other.

    Attributes
    ----------
    offset : int
        Bytes from the start of the buffer to the first row.
    nbytes : int
        Bytes from there on that may be read (of A), or written (of C): rows that pad a product go behind the last one.
    """

    offset: int
    nbytes: int


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix in a buffer."""

    buffer: Buffer
    room: Room

    @property
    def offset(self) -> int:
        """Bytes from the start of the buffer to the first row."""
        return self.room.offset


@dataclass(frozen=True)
class Ranges:
    """How rows are shared by cores.

    Attributes
    ----------
    spans : tuple of (int, int)
        First row and rows of each run; all but the last have as many, the last may reach beyond the rows there are.
    cores : int
        Run i is made by core i modulo `cores`.
    seconds : float or None
        Modelled time, where the chip's is known.
    """

    spans: tuple[tuple[int, int], ...]
    cores: int
    seconds: float | None

    @property
    def padded(self) -> int:
        """Rows that are read and written."""
        return sum(self.spans[-1])


def padded_rows(m: int, chip: Chip) -> int:
    """Rows that a buffer needs room for, so that a product of `m` rows can be read from it or written to it.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> padded_rows(5, chip("rk3588")), padded_rows(256, chip("rk3588"))
    (8, 256)
    """
    buckets = _buckets(chip)
    full, rest = divmod(m, buckets[-1])
    return full * buckets[-1] + (next(size for size in buckets if size >= rest) if rest else 0)


def _buckets(chip: Chip) -> tuple[int, ...]:
    return row_buckets(min(limits.m_max for limits in chip.limits.values()), chip.native.row_multiple)


def share_rows(m: int, mm_type: MatmulType, k: int, n: int, chip: Chip, room: int | None = None) -> Ranges | None:
    """Share `m` rows, at least 1, of a product in place: by modelled time, or on one core where nothing is known.

    Parameters
    ----------
    m : int
    mm_type : MatmulType
    k, n : int
    chip : Chip
    room : int, optional
        Rows that can be read and written; as many as `padded_rows` are always enough.

    Returns
    -------
    Ranges or None
        None where there is not room enough.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> share_rows(300, MatmulType.FLOAT16_FLOAT16_FLOAT16, 1024, 1024, chip("rk3588")).spans
    ((0, 128), (128, 128), (256, 48))
    """
    alignment = chip.memory.slice_alignment
    step = math.lcm(*(alignment // math.gcd(alignment, each) for each in (mm_type.a.nbytes(k), mm_type.c.nbytes(n))))
    model = TIMINGS.get(chip.soc)
    model = model if model is not None and model.knows(mm_type) else None
    buckets = _buckets(chip)
    return _shared(m, mm_type, k, n, buckets, step, chip.cores, model, padded_rows(m, chip) if room is None else room)


@lru_cache(maxsize=1024)
def _shared(
    m: int, mm_type: MatmulType, k: int, n: int, buckets: tuple[int, ...], step: int, cores: int,
    model: TimingModel | None, room: int,
) -> Ranges | None:  # fmt: skip
    choices = []
    for size in reversed(buckets):
        if size < m and size % step:
            continue  # every range but the last ends where the next one starts, at a multiple of the alignment
        starts = range(0, m, size)
        last = next(bucket for bucket in buckets if bucket >= m - starts[-1])
        spans = (*((start, size) for start in starts[:-1]), (starts[-1], last))
        if starts[-1] + last > room:
            continue
        if model is None:
            return Ranges(spans, 1, None)
        for used in range(1, min(cores, len(spans)) + 1):
            rows = max(rows for _, rows in spans)
            one = model.work_seconds(mm_type, rows, k, n, used, ac_native=False) + 3 * model.bind_seconds
            start = model.start_seconds if used == 1 else model.start_seconds_all_cores
            choices.append(Ranges(spans, used, start + -(-len(spans) // used) * one))
    return min(choices, key=lambda ranges: (ranges.seconds, len(ranges.spans)), default=None)


def direct_type(weight: StoredWeight, a: np.dtype[Any], result: np.dtype[Any]) -> MatmulType | None:
    """The matmul type by which arrays of dtype `a` are multiplied in place, giving `result`; None where there is none.

    Parameters
    ----------
    weight : StoredWeight
    a, result : numpy.dtype
    """
    plan, device = weight.plan, weight.device
    (first, *others) = weight.slices
    if others or first.column_scale is not None or first.column_zero is not None or not weight.in_one_piece:
        return None
    if plan.k_spans[0].padded != plan.k or any(n.padded != n.length for n in plan.n_spans) or plan.mm_type.a.dtype != a:
        return None
    for mm_type in MatmulType:
        same_operands = (mm_type.a, mm_type.b) == (plan.mm_type.a, plan.mm_type.b)
        if mm_type.c is ElementType.INT8:  # requantized with scales that these contexts do not have
            continue
        if same_operands and mm_type.c.dtype == result and _row_major(device, mm_type, plan.k, plan.n):
            return mm_type
    return None


def _row_major(device: Device, mm_type: MatmulType, k: int, n: int) -> bool:
    """Whether the chip has the type with A and C in normal and B in native layout, for this K and N."""
    try:
        limits = device.chip.type_limits(mm_type, device.runtime_version)
    except DeviceError:
        return False
    row = device.chip.type_row(mm_type, device.runtime_version)
    return bool(
        row.ac_normal.value
        and row.b_native.value
        and k <= limits.k_max
        and n <= limits.n_max
        and k % limits.k_multiple == 0
        and n % limits.n_multiple == 0
        and k not in limits.avoid
        and n not in limits.avoid
    )


def ranges_in_place(m: int, weight: StoredWeight, mm_type: MatmulType, a: Room, out: Room) -> Ranges | None:
    """How cores would share `m` rows in place; None where they do not stand so, or where copying is modelled faster.

    Parameters
    ----------
    m : int
        At least 1.
    weight : StoredWeight
    mm_type : MatmulType
        Of `direct_type`.
    a, out : Room
    """
    device, plan = weight.device, weight.plan
    a_row, c_row = mm_type.a.nbytes(plan.k), mm_type.c.nbytes(plan.n)
    ranges = share_rows(m, mm_type, plan.k, plan.n, device.chip, min(a.nbytes // a_row, out.nbytes // c_row))
    if ranges is None:
        return None
    starts = [each.offset + start * row for each, row in ((a, a_row), (out, c_row)) for start, _ in ranges.spans]
    # Parts of an allocation are synchronised through the whole of it, which older runtimes cannot do (Q15).
    in_parts = any(starts) or len(weight.tiles) > 1
    alignment = device.chip.memory.slice_alignment
    if in_parts and (not device.runtime.has("rknn_mem_sync") or any(s % alignment for s in starts)):
        return None
    copying = plan_matmul(m, plan).modelled_seconds
    return None if ranges.seconds is not None and copying is not None and ranges.seconds > copying else ranges


def multiply(a: Rows, m: int, weight: StoredWeight, mm_type: MatmulType, out: Rows, ranges: Ranges) -> bool:
    """Multiply `m` rows in place; return False where the buffers do not allow it.

    Parameters
    ----------
    a : Rows
        (m, K), of the dtype of ``mm_type.a``.
    m : int
        At least 1.
    weight : StoredWeight
    mm_type : MatmulType
        Of `direct_type`.
    out : Rows
        (m, N), of the dtype of ``mm_type.c``.
    ranges : Ranges
        Of `ranges_in_place`.

    Raises
    ------
    RknnError
        If a function of the runtime fails, and fails again when all is repeated with new contexts.
    ClosedError
        If weight, device or one of the buffers are closed.
    """
    device = weight.device
    session = device.session
    if a.buffer._session is not session or out.buffer._session is not session or a.buffer.overlaps(out.buffer):
        return False
    if (a.buffer.domain, out.buffer.domain) != (weight.domain, weight.domain):
        return False  # memory of one domain means nothing in another (facts 7.4)
    _multiply(a, m, weight, mm_type, out, ranges)
    return True


def _multiply(a: Rows, m: int, weight: StoredWeight, mm_type: MatmulType, out: Rows, ranges: Ranges) -> None:
    """Multiply; where contexts fail they are made anew and all is repeated once, since nothing that is read changes."""
    plan, device = weight.plan, weight.device
    placement = Placement.of(device)
    specs = [
        ContextSpec(
            mm_type,
            rows,
            plan.k,
            plan.n,
            MatmulLayout.NATIVE,
            MatmulLayout.NORM,
            core=index % ranges.cores if device.chip.has_core_mask else None,
            domain=weight.domain,
        )
        for index, (_, rows) in enumerate(ranges.spans)
    ]

    def prepare(lease: Lease) -> tuple[list[MatmulContext], CoreThreads | None]:
        return placement.static_contexts(specs, lease), placement.core_threads(lease) if ranges.cores > 1 else None

    def attempt(prepared: tuple[list[MatmulContext], CoreThreads | None]) -> RknnError | None:
        contexts, threads = prepared
        with ExitStack() as parts:
            b_memory = parts.enter_context(weight.whole())
            runs = []
            for context, (start, rows) in zip(contexts, ranges.spans, strict=True):
                a_part, c_part = (
                    parts.enter_context(_part(each.buffer, each.offset + start * row, rows * row))
                    for each, row in ((a, mm_type.a.nbytes(plan.k)), (out, mm_type.c.nbytes(plan.n)))
                )
                runs.append(_Run(context, (a_part, b_memory, c_part)))
            try:
                _attempt(runs, a.buffer, out.buffer, device, ranges.cores, threads)
            except RknnError as error:
                broken.extend(str(context.spec) for context in contexts if context.broken)
                return error
        return None

    broken: list[str] = []
    first: RknnError | None = None
    whole = out.buffer.memory.allocation
    computes = whole.address, whole.address + whole.size - 1
    while True:
        broken.clear()
        try:
            failed = weight.leased(prepare, lambda got: _using((a.buffer, out.buffer), got, attempt), computes=computes)
        except (RknnError, ClosedError) as refused:  # the contexts cannot be made, or all was closed meanwhile
            if first is not None:
                raise refused from first
            raise
        if failed is None:
            break
        device.session.raise_if_lost(failed)
        if first is not None:
            hint = f"It failed before, its context was made anew and all was repeated, in vain ({', '.join(broken)})."
            where = {**failed.arguments, "matmul": f"({m}, {plan.k}) @ ({plan.k}, {plan.n})"}
            raise rknn_error(failed.function, failed.code, where, f"{hint} {failed.hint}".strip()) from first
        first = failed
    with device.lock:
        device.counters.macs += m * plan.k * plan.n


def _using(buffers: Sequence[Buffer], prepared: _Prepared, run: Callable[[_Prepared], _Result]) -> _Result:
    """Run with buffers that nobody can close meanwhile."""
    lease = Lease()
    try:
        with buffers[0]._session.guard:
            for buffer in buffers:
                buffer.memory.use(lease)
        return run(prepared)
    finally:
        lease.over = True


@dataclass
class _Run:
    """One run of a context, what it is bound to, and how many calls were made."""

    context: MatmulContext
    memories: tuple[Memory, Memory, Memory]
    binds: int = 0
    runs: int = 0

    def __call__(self) -> None:
        context = self.context
        runtime = context._runtime
        try:
            for memory, attr in zip(self.memories, (context.a, context.b, context.c), strict=True):
                self.binds += 1
                runtime.matmul_set_io_mem(context.handle, memory.pointer, attr.struct)
            self.runs += 1
            runtime.matmul_run(context.handle)
        except RknnError:
            context.struct.broken = 1
            raise


def _attempt(runs: list[_Run], a: Buffer, out: Buffer, device: Device, cores: int, threads: CoreThreads | None) -> None:
    """Make the runs. If the runtime fails the contexts that it concerns are broken."""
    syncs = 0
    try:
        with device.lock:
            device.weights.flush()
        for buffer in (a, out):
            buffer.settle()
            # C too: it must have no dirty cache lines, which would be written over the result later
            syncs += buffer.memory.flush()
        if threads is not None:
            threads.run([runs[core::cores] for core in range(cores)])
        else:
            for run in runs:
                run()
        # what the CPU wrote into other parts of the allocation meanwhile would be forgotten
        out.settle()
        syncs += out.memory.flush() + out.memory.sync(MemSyncMode.FROM_DEVICE)
    except RknnError:
        if not any(run.context.broken for run in runs):  # caches could not be synchronised
            for run in runs:
                run.context.struct.broken = 1
        raise
    finally:
        with device.lock:
            device.counters.mem_sync_calls += syncs
            device.counters.run_calls += sum(run.runs for run in runs)
            device.counters.set_io_mem_calls += sum(run.binds for run in runs)
    out._computed()


@contextmanager
def _part(buffer: Buffer, start: int, nbytes: int) -> Iterator[Memory]:
    """Memory of a part of a buffer, to be bound."""
    if start == 0:
        yield buffer.memory
        return
    with buffer.slice(start, nbytes) as part:
        yield part.memory
