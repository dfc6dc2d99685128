"""Products whose A and C the NPU reads and writes in the memory of arrays: no pass of the CPU over either.

A context whose A and C are in normal layout, row-major, can be bound to the memory of arrays. B is native, as packed
weights are. That needs extents that the NPU takes as they are, one slice of K, tiles of N that stand one behind the
other, and a type whose C is the dtype of the result, all in the weight's IOMMU domain.
"""

from __future__ import annotations

import ctypes as C
from typing import Any

import numpy as np

from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.device.budget import Holder
from npumatmul.device.buffer import Buffer
from npumatmul.device.device import Device
from npumatmul.device.memory import Memory
from npumatmul.errors import DeviceError
from npumatmul.host.activation import Activation
from npumatmul.host.executor import BoundStruct, Call
from npumatmul.host.kernels import Conversion
from npumatmul.planning.in_place import plan_in_place, rows_of
from npumatmul.planning.product import MatmulPlan, plan_matmul
from npumatmul.rknn import MemSyncMode, TensorMem
from npumatmul.running.bound import BoundProgram
from npumatmul.running.runs import Runs
from npumatmul.running.stored import StoredWeight
from npumatmul.running.where import on_cores

__all__ = ["InPlaceProgram", "type_in_place"]

#: Calls that a program keeps for further products.
_CALLS = 8


def type_in_place(weight: StoredWeight, a: np.dtype[Any], result: np.dtype[Any]) -> MatmulType | None:
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


class _InPlaceCall:
    """One product in place at a time, and what the executor is told of it."""

    __slots__ = (
        "_bound",
        "_program",
        "a",
        "a_offset",
        "a_parts",
        "c_parts",
        "call",
        "held",
        "made",
        "out",
        "out_offset",
    )

    a: Buffer
    a_offset: int
    out: Buffer | None
    out_offset: int

    def __init__(self, program: InPlaceProgram) -> None:
        self._program = program
        ranges = len(program.parts[0])
        self.a_parts, self.c_parts = ((C.POINTER(TensorMem) * ranges)() for _ in range(2))
        self._bound = BoundStruct(self.c_parts, None)
        self.call = Call(a_bound=self.a_parts, out_bound=C.pointer(self._bound))
        self.made: Buffer | None = None
        #: The parts, which live as long as their pointers are used.
        self.held: list[Memory] = []

    def begin(self, bound: BoundProgram) -> Call:
        """The call; the device's lock is held."""
        program, a, out = self._program, self.a, self.out
        session = program.session
        if out is None:
            out = self.made
            if out is None:  # else the run is repeated
                results = program.results
                memory = results.take(program.c_size, program.domain, computed=True, holder=Holder.BUFFERS)
                out = self.made = Buffer(session, memory)
                out.of_arrays = True
            self._bound.whole = out._memory.pointer
        else:
            self._bound.whole = None  # somebody may write into other parts of it meanwhile
        bound.results = (out._memory,)
        of_a, of_c = program.parts
        self.held = []
        if len(of_a) == 1 and not self.a_offset and not self.out_offset:
            self.a_parts[0], self.c_parts[0] = a._memory.pointer, out._memory.pointer
            return self.call
        for buffer, offset, into, parts in (
            (a, self.a_offset, self.a_parts, of_a),
            (out, self.out_offset, self.c_parts, of_c),
        ):
            for index, (start, nbytes) in enumerate(parts):
                part = session.part(buffer._memory, offset + start, nbytes)
                self.held.append(part)
                into[index] = part.pointer
        bound.results = (out._memory, *self.held)
        return self.call

    def start(self) -> None:
        """Let the NPU see what the CPU wrote; dirty cache lines of C would be written over the result later."""
        for buffer in (self.a, self.out):
            if buffer is not None:
                buffer.settle()
                self._program.count_syncs(buffer._memory.flush())

    def end(self) -> None:
        """Let the CPU see a result in a buffer that others may use, too."""
        out = self.out
        assert out is not None
        out.settle()  # what the CPU wrote into other parts of the allocation meanwhile would be forgotten
        self._program.count_syncs(out.memory.flush() + out.memory.sync(MemSyncMode.FROM_DEVICE))
        out._computed()


class InPlaceProgram(Runs):
    """A product of so many rows of an array with a weight, whose result is an array.

    Parameters
    ----------
    weight : StoredWeight
    plan : MatmulPlan
        Of `plan_in_place`.
    cores : tuple of int, optional
        The NPU's cores that it may run on; by default those of the weight.

    Attributes
    ----------
    a_bytes, c_bytes : int
        What is read and written from the first row on, with rows that pad the product.
    c_size : int
        Of memory for a result.
    domain : int
        IOMMU domain of the weight, in which the arrays have to be.
    """

    _in_place = True

    def __init__(self, weight: StoredWeight, plan: MatmulPlan, cores: tuple[int, ...] | None = None) -> None:
        mm_type = plan.weight.mm_type
        conversion = Conversion.COPY_8 if mm_type.a.nbytes(1) == 1 else Conversion.COPY_16
        super().__init__(weight, plan, Activation(mm_type.a.dtype, conversion), cores=cores)
        rows = rows_of(plan)
        self.a_bytes, self.c_bytes = mm_type.a.nbytes(rows * plan.weight.k), mm_type.c.nbytes(rows * plan.weight.n)
        row_bytes = mm_type.a.nbytes(plan.weight.k), mm_type.c.nbytes(plan.weight.n)
        self.domain = weight.domain
        self.session, self.results = self._session, self._placement.results
        self.c_size = self.results.size_for(self.c_bytes)
        #: Offset and bytes of A and of C of each range of rows.
        self.parts = [[(span.start * row, span.padded * row) for span in plan.m_spans] for row in row_bytes]
        self._calls: list[_InPlaceCall] = []

    @classmethod
    def of(
        cls,
        weight: StoredWeight,
        m: int,
        mm_type: MatmulType,
        a_room: int | None = None,
        c_room: int | None = None,
        cores: tuple[int, ...] | None = None,
    ) -> InPlaceProgram | None:
        """The program for `m` rows, at least 1; None where rows do not stand so, or copying is modelled faster.

        Parameters
        ----------
        weight : StoredWeight
        m : int
        mm_type : MatmulType
            Of `type_in_place`.
        a_room, c_room : int, optional
            Bytes that may be read and written from the first row on; by default as many as rows need that pad.
        cores : tuple of int, optional
            The NPU's cores that it may run on; by default those of the weight.
        """
        device, plan = weight.device, weight.plan
        cores = weight.where.cores if cores is None else cores
        most = None if cores is None else len(cores)
        rooms = [
            room // of.nbytes(extent)
            for room, of, extent in ((a_room, mm_type.a, plan.k), (c_room, mm_type.c, plan.n))
            if room is not None
        ]
        in_place = plan_in_place(m, plan, mm_type, device.chip, min(rooms) if rooms else None, cores=most)
        if in_place is None:
            return None
        # Parts of an allocation are synchronised through the whole of it, which older runtimes cannot do (Q15).
        if (len(in_place.m_spans) > 1 or len(weight.tiles) > 1) and not device.runtime.has("rknn_mem_sync"):
            return None
        copied = plan_matmul(m, plan if most is None else on_cores(plan, most), timings=device.chip.timings)
        seconds, copying = in_place.modelled_seconds, copied.modelled_seconds
        return (
            None if seconds is not None and copying is not None and seconds > copying else cls(weight, in_place, cores)
        )

    def multiply_array(self, a: Buffer, a_offset: int = 0, out: Buffer | None = None, out_offset: int = 0) -> Buffer:
        """Multiply rows where they stand.

        Parameters
        ----------
        a : Buffer
            In the weight's domain, with `a_bytes` from the offset on.
        a_offset : int
            Of the first row, in bytes; a multiple of the alignment of slices.
        out : Buffer, optional
            The same of the result, which shares no bytes with `a`; by default one of its own.
        out_offset : int

        Returns
        -------
        Buffer
            `out`, or a new one.

        Raises
        ------
        RknnError
            If a function of the runtime fails, and fails again when all is repeated with new contexts.
        ClosedError
            If weight, device or one of the buffers are closed.
        NpuMemoryError
            If there is no room for the result.
        """
        calls = self._calls
        told = calls.pop() if calls else _InPlaceCall(self)
        told.a, told.a_offset, told.out, told.out_offset, told.made = a, a_offset, out, out_offset, None
        memory = a._memory
        if out is None:
            dirty = memory.written != memory.synchronised or memory.views or memory.owner is not None
            given: tuple[Any, ...] = (
                told.begin, None, None, (a,), None, told.start if dirty else None
            )  # fmt: skip
        else:
            whole = out.memory.allocation
            computes = whole.address, whole.address + whole.size - 1
            given = told.begin, None, None, (a, out), computes, told.start, told.end
        self.run(*given)
        result = told.made if out is None else out
        assert result is not None
        told.made = told.out = None
        del told.a
        if len(calls) < _CALLS:
            calls.append(told)
        return result

    def count_syncs(self, syncs: int) -> None:
        """Count calls of the runtime."""
        with self._device.lock:
            self._device.counters.mem_sync_calls += syncs
