"""Results that stay where the NPU left them, until they are read or become the next product's A."""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.session import Memory
from npumatmul.host import executor
from npumatmul.host.epilogue import ELEMENTS, Epilogue, PlacedEpilogue
from npumatmul.host.executor import Element
from npumatmul.planning.product import Span
from npumatmul.rknn import TensorMem

__all__ = ["DeferredResult", "Tiles"]


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


class DeferredResult:
    """A result in C of its last slice of K, with what is needed to finish it: scales, zero points, sums so far.

    It lives as long as somebody refers to it; then its buffers are idle again. `Placement.defer` makes it.

    Attributes
    ----------
    shape : (int, int)
    dtype : numpy.dtype
        Of the finished elements.
    buffers, nbytes : int
        How many buffers it holds, and bytes of them.
    struct : DeferredStruct
        For the executor.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: np.dtype[Any],
        epilogue: Epilogue | None,
        tiles: Tiles,
        memories: Sequence[Memory],
        slices: tuple[Any, ...],
        lease: object,
    ) -> None:
        self.shape, self.dtype = shape, dtype
        self.buffers, self.nbytes = len(memories), sum(memory.size for memory in memories)
        m, n = shape
        rows = (C.c_double * (2 * m))()  # factors, and zero points and sums of half their size
        address = C.addressof(rows)
        sums = np.empty(shape, np.int32) if len(slices) > 1 else None
        after = None if epilogue is None or epilogue.does_nothing else _placed(epilogue, shape, dtype)
        # ctypes keeps alive what a struct's pointer field is set to, but not what is passed as a bare address
        self._refers_to = rows, sums, after, slices, lease
        self.struct = executor.DeferredStruct(
            m,
            n,
            Element.INT8 if dtype == np.int8 else ELEMENTS[dtype],
            None if after is None else after.pointer,
            *tiles.fields,
            (C.POINTER(TensorMem) * len(memories))(*[memory.pointer for memory in memories]),
            address,
            address + 8 * m,
            address + 12 * m,
            None if sums is None else sums.ctypes.data,
        )

    def store(self, address: int) -> None:
        """Finish it in memory that has room for it, in C order. Its device must not be closed meanwhile."""
        executor.store_deferred(self.struct, address, self.shape[1] * self.dtype.itemsize)


def _placed(epilogue: Epilogue, shape: tuple[int, int], dtype: np.dtype[Any]) -> PlacedEpilogue:
    """The epilogue with a bias of its own: the caller's may change before it is read."""
    bias = None if epilogue.bias is None else np.array(epilogue.bias, np.float32)
    nowhere: NDArray[Any] = np.broadcast_to(np.empty((), dtype), shape)
    return PlacedEpilogue(replace(epilogue, bias=bias), nowhere)
