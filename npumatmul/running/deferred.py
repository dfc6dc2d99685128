"""Results that stay where the NPU left them, until they are read or become the next product's A."""

from __future__ import annotations

import ctypes as C
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.memory import Memory
from npumatmul.device.result_memory import ResultMemory
from npumatmul.files.uncopied import Uncopied
from npumatmul.host import executor
from npumatmul.host.epilogue import ELEMENTS, Epilogue, PlacedEpilogue
from npumatmul.host.executor import Element
from npumatmul.planning.product import Span
from npumatmul.rknn import TensorMem
from npumatmul.running.stored import StoredWeight

__all__ = ["DeferredResult", "ResultSlot", "Tiles"]

#: Slots that a program keeps for further results.
_SLOTS = 8
_NOTHING = Epilogue()


class Tiles:
    """How a result is cut into tiles of C: the fields of `DeferredStruct` that say so."""

    def __init__(self, m_spans: Sequence[Span], n_spans: Sequence[Span]) -> None:
        both = (m_spans, n_spans)
        self.n_count = len(n_spans)
        self.fields = (
            *map(len, both),
            *((executor.SpanStruct * len(spans))(*map(_range, spans)) for spans in both),
            *((C.c_int32 * len(spans))(*(span.padded for span in spans)) for spans in both),
        )


def _range(span: Span) -> executor.SpanStruct:
    return executor.SpanStruct(span.start, span.length)


class ResultSlot:
    """What the executor is told of a deferred result: of one program, made once, for one result at a time.

    Parameters
    ----------
    shape : (int, int)
    dtype : numpy.dtype
        Of the finished elements.
    tiles : Tiles
    c_bytes : sequence of int
        Bytes of C of each range of rows.
    weight : StoredWeight
        Whose scales and zero points the result needs, but not the weight itself, which may go.
    results : ResultMemory

    Attributes
    ----------
    pointer : pointer to DeferredStruct
    memories : list of Memory
        Of the result at hand, or else of the last one, which others may have by now.
    nbytes : int
        Bytes of them.
    results : ResultMemory
    domain : int
        IOMMU domain.
    """

    __slots__ = (
        "_after",
        "_array",
        "_nowhere",
        "_of",
        "_refers_to",
        "_sizes",
        "_struct",
        "_sums",
        "call",
        "domain",
        "dtype",
        "memories",
        "nbytes",
        "pointer",
        "results",
        "shape",
    )  # fmt: skip

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        tiles: Tiles,
        c_bytes: Sequence[int],
        weight: StoredWeight,
        results: ResultMemory,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.results, self.domain = results, weight.domain
        self._sizes = [results.size_for(nbytes) for nbytes in c_bytes for _ in range(tiles.n_count)]
        self.memories: list[Memory] = []
        self._of: weakref.ref[DeferredResult] | None = None
        self.nbytes = sum(self._sizes)
        m, n = shape
        rows = (C.c_double * (2 * m))()  # factors, and zero points and sums of half their size
        address = C.addressof(rows)
        self._array = (C.POINTER(TensorMem) * len(self._sizes))()
        self._sums: NDArray[np.int32] | None = None
        self._after: PlacedEpilogue | None = None
        self._nowhere: NDArray[Any] = np.broadcast_to(np.empty((), dtype), shape)
        # ctypes keeps alive what a struct's pointer field is set to, but not what is passed as a bare address
        self._refers_to = rows, weight.slices
        element = Element.INT8 if dtype == np.int8 else ELEMENTS[dtype]
        self._struct = executor.DeferredStruct(
            m, n, element, None, *tiles.fields, self._array, address, address + 8 * m, address + 12 * m, None
        )
        self.pointer = C.pointer(self._struct)
        self.call = executor.Call(out_deferred=self.pointer, out_type=element)

    def begin(self, result: DeferredResult, epilogue: Epilogue | None, bias: ArrayLike | None) -> None:
        """Have it tell of a new result, which gets memory. The device's lock is held.

        Raises
        ------
        NpuMemoryError
            If there is no room.
        """
        if self._of is not result.ref:  # else the run is repeated
            self._acquire(result.ref)
        struct = self._struct
        if len(self._refers_to[1]) > 1:
            self._sums = np.empty(self.shape, np.int32)
            struct.sums = self._sums.ctypes.data
        if bias is not None or (epilogue is not None and not epilogue.does_nothing):
            given = epilogue or _NOTHING
            bias = given.bias if bias is None else bias
            own = None if bias is None else np.array(bias, np.float32)  # the caller's may change before it is read
            self._after = PlacedEpilogue(given, self._nowhere, own, fresh=True)
            struct.epilogue = self._after.pointer
        elif self._after is not None:
            struct.epilogue = self._after = None

    def _acquire(self, ref: weakref.ref[DeferredResult]) -> None:
        """Memory for each tile's C: what the last result had, if nobody else has it."""
        memories = self.memories
        for index, size in enumerate(self._sizes):
            memory = memories[index] if index < len(memories) else None
            home = None if memory is None else memory.home
            if (
                memory is not None
                and memory.held_by is None
                and home
                and home[-1] is memory
                and not (memory.views or memory.closed)
            ):
                home.pop()
            else:
                memory = self.results.take(size, self.domain, computed=True)
                self._array[index] = memory.pointer
                memories[index : index + 1] = [memory]
            memory.held_by = ref
            if memory.written != memory.synchronised:
                self.results.clean(memory)
        self._of = ref

    def end(self, result: DeferredResult) -> None:
        """Let others have the result's memory, until the next one takes it back."""
        self._sums, ref = None, result.ref
        for memory in reversed(self.memories):  # `ResultMemory` finds what an interrupt keeps from its list
            if memory.held_by is ref:
                memory.held_by = None
                if memory.home is not None:
                    memory.home.append(memory)


class DeferredResult(Uncopied):
    """A result in C of its last slice of K, with what is needed to finish it: scales, zero points, sums so far.

    It lives as long as somebody refers to it; then its memory is idle again. `Program.defer` makes it.

    Parameters
    ----------
    home : list of ResultSlot
        Where slots wait for results.

    Attributes
    ----------
    slot : ResultSlot or None
        None before there are contexts to compute it.
    ref : weakref to this
        By which memory knows who has it.
    """

    __slots__ = ("__weakref__", "_home", "ref", "slot")

    def __init__(self, home: list[ResultSlot]) -> None:
        self.slot: ResultSlot | None = None
        self._home = home
        self.ref = weakref.ref(self)

    def __del__(self) -> None:
        slot = self.slot
        if slot is not None:
            slot.end(self)
            if len(self._home) < _SLOTS:
                self._home.append(slot)

    @property
    def shape(self) -> tuple[int, int]:
        assert self.slot is not None
        return self.slot.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        assert self.slot is not None
        return self.slot.dtype

    def store(self, address: int) -> None:
        """Finish it in memory that has room for it, in C order. Its device must not be closed meanwhile."""
        slot = self.slot
        assert slot is not None
        rows, columns = slot.shape
        executor.store_deferred(slot.pointer, rows, address, columns * slot.dtype.itemsize)
