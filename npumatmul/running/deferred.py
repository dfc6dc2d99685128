"""Results that stay where the NPU left them, until they are read or become the next product's A."""

from __future__ import annotations

import ctypes as C
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.result_memory import ResultMemory
from npumatmul.device.session import Memory
from npumatmul.host import executor
from npumatmul.host.epilogue import ELEMENTS, Epilogue, PlacedEpilogue
from npumatmul.host.executor import Element
from npumatmul.planning.product import Span
from npumatmul.rknn import TensorMem
from npumatmul.running.stored import StoredWeight

__all__ = ["DeferredResult", "ResultSlot", "Tiles"]

#: Slots that a program keeps for further results.
_SLOTS = 8


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
        Of the result at hand.
    nbytes : int
        Bytes of them.
    results : ResultMemory
    domain : int
        IOMMU domain.
    """

    __slots__ = (
        "_after", "_array", "_refers_to", "_struct", "_sums", "_wanted", "call", "domain", "dtype", "memories",
        "nbytes", "pointer", "results", "shape",
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
        each_tile = [nbytes for nbytes in c_bytes for _ in range(tiles.n_count)]
        self._wanted = [(results.idle(nbytes, weight.domain, computed=True), nbytes) for nbytes in each_tile]
        self.memories: list[Memory] = []
        self.nbytes = sum(map(results.size_for, each_tile))
        m, n = shape
        rows = (C.c_double * (2 * m))()  # factors, and zero points and sums of half their size
        address = C.addressof(rows)
        self._array = (C.POINTER(TensorMem) * len(each_tile))()
        self._sums: NDArray[np.int32] | None = None
        self._after: PlacedEpilogue | None = None
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
        ref, array = result.ref, self._array
        for index in range(len(self.memories), len(self._wanted)):
            idle, nbytes = self._wanted[index]
            memory = idle.pop() if idle else None
            if memory is None or memory.held_by is not None or memory.closed or memory.views:
                memory = self.results.take(nbytes, self.domain, computed=True)
            memory.held_by = ref
            self.memories.append(memory)
            if memory.written != memory.synchronised:
                memory.flush()  # C must have no dirty cache lines, which would be written over the result later
            array[index] = memory.pointer
        struct = self._struct
        if len(self._refers_to[1]) > 1:
            self._sums = np.empty(self.shape, np.int32)
            struct.sums = self._sums.ctypes.data
        if bias is not None or (epilogue is not None and not epilogue.does_nothing):
            self._after = _placed(epilogue or Epilogue(), bias, self.shape, self.dtype)
            struct.epilogue = self._after.pointer
        elif self._after is not None:
            struct.epilogue = self._after = None

    def end(self) -> None:
        """Give up what it has."""
        self._sums = None
        memories = self.memories
        while memories:
            memory = memories.pop()  # an interrupt may come after any call: `ResultMemory` finds what nobody has
            memory.held_by = None
            if memory.home is not None:
                memory.home.append(memory)


class DeferredResult:
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
            slot.end()
            if len(self._home) < _SLOTS:
                self._home.append(slot)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        assert self.slot is not None
        return self.slot.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the finished elements."""
        assert self.slot is not None
        return self.slot.dtype

    def store(self, address: int) -> None:
        """Finish it in memory that has room for it, in C order. Its device must not be closed meanwhile."""
        slot = self.slot
        assert slot is not None
        rows, columns = slot.shape
        executor.store_deferred(slot.pointer, rows, address, columns * slot.dtype.itemsize)


def _placed(epilogue: Epilogue, bias: ArrayLike | None, shape: tuple[int, int], dtype: np.dtype[Any]) -> PlacedEpilogue:
    """The epilogue with a bias of its own: the caller's may change before it is read."""
    bias = epilogue.bias if bias is None else bias
    own = None if bias is None else np.array(bias, np.float32)
    nowhere: NDArray[Any] = np.broadcast_to(np.empty((), dtype), shape)
    return PlacedEpilogue(epilogue, nowhere, own, fresh=True)
