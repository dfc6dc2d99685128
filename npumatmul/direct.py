"""Products that the NPU reads and writes in place: no pass of the CPU over A or C.

A context whose A and C are in normal layout, row-major, can be bound to the memory of arrays. B is native, as packed
weights are. That needs extents that the NPU takes as they are, one tile of K and N, and a type whose C is the dtype of
the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from npumatmul.capabilities import Chip
from npumatmul.device import Device
from npumatmul.errors import ClosedError, DeviceError, RknnError
from npumatmul.memory import Buffer
from npumatmul.mmtype import MatmulType
from npumatmul.placement import Placement
from npumatmul.plan import row_buckets
from npumatmul.rknn import MatmulLayout, MemSyncMode
from npumatmul.session import Memory
from npumatmul.spec import ContextSpec
from npumatmul.stored import StoredWeight

__all__ = ["Rows", "direct_type", "multiply", "padded_rows"]


@dataclass(frozen=True)
class Rows:
    """Rows of a matrix that stand one behind the other in a buffer.

    Attributes
    ----------
    buffer : Buffer
    offset : int
        Bytes from the start of the buffer to the first row.
    room : int
        Bytes from there on that may be read (of A), or written (of C): rows that pad a product go behind the last one.
    """

    buffer: Buffer
    offset: int
    room: int


def _spans(m: int, chip: Chip, m_max: int) -> list[tuple[int, int]]:
    """Start and padded length of ranges of rows: the largest bucket, then the smallest that holds the rest."""
    buckets = row_buckets(m_max, chip.native.row_multiple)
    starts = range(0, m, buckets[-1])
    return [(start, next(size for size in buckets if size >= min(m - start, buckets[-1]))) for start in starts]


def padded_rows(m: int, chip: Chip) -> int:
    """Rows that a buffer needs room for, so that a product of `m` rows can be read from it or written to it.

    Examples
    --------
    >>> from npumatmul.capabilities import chip
    >>> padded_rows(5, chip("rk3588")), padded_rows(256, chip("rk3588"))
    (8, 256)
    """
    m_max = min(limits.m_max for limits in chip.limits.values())
    spans = _spans(m, chip, m_max)
    return sum(spans[-1]) if spans else 0


def direct_type(weight: StoredWeight, a: np.dtype[Any], result: np.dtype[Any]) -> MatmulType | None:
    """The matmul type by which arrays of dtype `a` are multiplied in place, giving `result`; None where there is none.

    Parameters
    ----------
    weight : StoredWeight
    a, result : numpy.dtype
    """
    plan, device = weight.plan, weight.device
    (first, *others) = weight.slices
    if others or len(plan.n_spans) > 1 or first.column_scale is not None or first.column_zero is not None:
        return None
    if plan.k_spans[0].padded != plan.k or plan.n_spans[0].padded != plan.n or plan.mm_type.a.dtype != a:
        return None
    for mm_type in MatmulType:
        same_operands = (mm_type.a, mm_type.b) == (plan.mm_type.a, plan.mm_type.b)
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
    )


@contextmanager
def _in_use(*buffers: Buffer) -> Iterator[list[Memory]]:
    """Their memories, which nobody closes meanwhile."""
    session = buffers[0]._session
    memories: list[Memory] = []
    with session.guard:
        for buffer in buffers:
            memories.append(buffer.memory)
        for memory in memories:
            memory.users += 1
    try:
        yield memories
    finally:
        with session.guard:
            for memory in memories:
                memory.users -= 1


@contextmanager
def _part(buffer: Buffer, start: int, nbytes: int) -> Iterator[Memory]:
    """Memory of a part of a buffer, to be bound."""
    whole = buffer.memory
    if start == 0:
        yield whole
        return
    part = buffer._session.wrap(whole.allocation, whole.start + start, nbytes)
    try:
        yield part
    finally:
        buffer._session.release(part)


def multiply(a: Rows, m: int, weight: StoredWeight, mm_type: MatmulType, out: Rows) -> bool:
    """Multiply `m` rows in place, or return False where they do not stand so that they could be.

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

    Raises
    ------
    RknnError
        If a function of the runtime fails.
    ClosedError
        If weight, device or one of the buffers are closed.
    """
    device = weight.device
    session, runtime, plan = device.session, device.runtime, weight.plan
    if a.buffer._session is not session or out.buffer._session is not session or a.buffer.overlaps(out.buffer):
        return False
    limits = device.chip.type_limits(mm_type, device.runtime_version)
    spans = _spans(m, device.chip, limits.m_max)
    a_row, c_row = mm_type.a.nbytes(plan.k), mm_type.c.nbytes(plan.n)
    rows = sum(spans[-1])
    if rows * a_row > a.room or rows * c_row > out.room:
        return False
    whole = all(each.offset == 0 for each in (a, out)) and len(spans) == 1
    starts = [start + each.offset for each, row in ((a, a_row), (out, c_row)) for start in (s * row for s, _ in spans)]
    alignment = device.chip.memory.slice_alignment
    # Parts of an allocation are synchronised through the whole of it, which older runtimes cannot do (Q15).
    if not whole and (not runtime.has("rknn_mem_sync") or any(start % alignment for start in starts)):
        return False
    with device.lock:
        device.check_usable()
        if weight.closed:
            raise ClosedError("this packed weight is closed; pack it again")
        device.collect()
        with _in_use(a.buffer, out.buffer) as (a_memory, c_memory):
            contexts = Placement.of(device).contexts(
                [
                    ContextSpec(
                        mm_type,
                        padded,
                        plan.k,
                        plan.n,
                        MatmulLayout.NATIVE,
                        MatmulLayout.NORM,
                        core=0 if device.chip.has_core_mask else None,
                    )
                    for _, padded in spans
                ]
            )
            counters = device.counters
            device.weights.flush()
            for buffer in (a.buffer, out.buffer):
                buffer.settle()
            # C must have no dirty cache lines, which would be written over the result later
            counters.mem_sync_calls += a_memory.flush() + c_memory.flush()
            for (start, padded), context in zip(spans, contexts, strict=True):
                with (
                    _part(a.buffer, a.offset + start * a_row, padded * a_row) as a_part,
                    _part(out.buffer, out.offset + start * c_row, padded * c_row) as c_part,
                ):
                    for pointer, attr in (
                        (a_part.pointer, context.a),
                        (weight.pointers[0], context.b),
                        (c_part.pointer, context.c),
                    ):
                        runtime.matmul_set_io_mem(context.handle, pointer, attr.struct)
                        counters.set_io_mem_calls += 1
                    counters.run_calls += 1
                    try:
                        runtime.matmul_run(context.handle)
                    except RknnError:
                        context.struct.broken = 1  # the pool makes it anew
                        raise
                    counters.macs += min(padded, m - start) * plan.k * plan.n
            counters.mem_sync_calls += c_memory.sync(MemSyncMode.FROM_DEVICE)
            out.buffer._computed()
    return True
