"""Products of an `NpuArray` with a packed weight, which give an `NpuArray`: in place, or deferred."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from npumatmul.chips.types import MatmulType
from npumatmul.device.buffer import Buffer
from npumatmul.device.result_memory import ResultMemory
from npumatmul.errors import NpuMemoryError
from npumatmul.host.epilogue import Epilogue
from npumatmul.ops.array.array import NpuArray, made_of, room_for
from npumatmul.ops.array.memory import dense_strides
from npumatmul.ops.array.pending import Pending, Unread
from npumatmul.running.deferred import DeferredResult
from npumatmul.running.in_place import InPlaceProgram, type_in_place
from npumatmul.running.program import BufferRows

if TYPE_CHECKING:
    from npumatmul.ops.product import Product

__all__ = ["ArrayProduct"]


class ArrayProduct:
    """A product whose left operand and result are NpuArrays: what follows from shapes and dtypes, worked out once.

    Where the NPU can read the operand and write the result in place, and copying is not modelled to be faster, it does.
    Otherwise the result stays in C until it is read.

    Parameters
    ----------
    product : Product
    a : numpy.dtype
        Of the left operand.
    """

    def __init__(self, product: Product, a: np.dtype[Any]) -> None:
        self._product, self._a = product, a
        shapes, device, dtype = product.shapes, product.device, product.dtype
        self._device, self._shape, self._dtype = device, shapes.result, dtype
        self._rows = rows = (shapes.rows, shapes.k)
        self._strides = dense_strides(self._shape, dtype.itemsize)
        self._row_strides = (shapes.k * a.itemsize, a.itemsize)
        self._is_matrix = len(self._shape) == 2
        self._room = ResultMemory.size_for(room_for(self._shape, dtype, device))
        self._defers = product.takes_deferred and dtype != np.int32
        self._reads_rows = product.reads == a
        self._unread = device.attached(Unread, Unread)
        stored = product.stored if product.takes_deferred and product.input_transform is None else None
        #: By which the weight is multiplied in place, if it can be.
        self._type: MatmulType | None = None if stored is None else type_in_place(stored, a, dtype)
        self._in_place: InPlaceProgram | None = None
        if stored is not None and self._type is not None:
            self._in_place = InPlaceProgram.of(stored, rows[0], self._type)

    def multiply(
        self, a: NpuArray, epilogue: Epilogue | None = None, bias: ArrayLike | None = None, out: NpuArray | None = None
    ) -> NpuArray | None:
        """Multiply.

        Parameters
        ----------
        a : NpuArray
            Of the shape and dtype that the product is for.
        epilogue, bias : optional
            As `Product.fitted` gives them.
        out : NpuArray, optional

        Returns
        -------
        NpuArray or None
            None, and nothing happened, where the result has to be stored otherwise.
        """
        device = self._device
        if a.device is not device or not (a._dense or a.contiguous):
            return None
        memory = a._memory
        state = memory.state if isinstance(memory, Pending) else memory
        if self._type is not None and epilogue is None and bias is None:
            result = self._multiply_in_place(a, state, out)
            if result is not None:
                return result
        if out is not None or not self._defers:
            return None
        if epilogue is not None and (epilogue.multiply is not None or epilogue.residual is not None):
            return None  # these matrices may change until the result is read
        rows: DeferredResult | BufferRows
        if type(state) is DeferredResult and state.slot is not None and state.slot.shape == self._rows:
            rows = state
        elif type(state) is Buffer and self._reads_rows:
            rows = BufferRows(state, a.offset, self._rows, self._row_strides, self._a)
        else:
            return None
        program = self._product.program
        assert program is not None
        deferred = program.defer(rows, epilogue, bias)
        if deferred is None:
            return None
        slot = deferred.slot
        assert slot is not None
        pending = Pending(device, deferred, self._room)
        del deferred  # nothing but the state may refer to it
        self._unread.add(pending, slot)
        return made_of(pending, device, self._shape, self._dtype, self._strides)

    def _multiply_in_place(
        self, a: NpuArray, state: Buffer | DeferredResult | None, out: NpuArray | None
    ) -> NpuArray | None:
        """Multiply where a and the result stand; None where they do not stand so."""
        program = self._in_place
        room = state._memory.size if type(state) is Buffer else a.room
        if out is not None or program is None or a.offset or room < program.a_bytes:
            program = self._elsewhere(a, out)
            if program is None:
                return None
        domain = program.domain
        try:
            buffer = state if type(state) is Buffer else a.buffer_in(domain)
            if buffer._memory.domain != domain:  # memory of one domain means nothing in another (facts 7.4)
                return None
            if out is None:
                made = program.multiply_array(buffer, a.offset)
                return made_of(made, self._device, self._shape, self._dtype, self._strides)
        except NpuMemoryError:
            return None  # where it is computed otherwise it may be in another domain
        if out.buffer._memory.domain != domain or buffer.overlaps(out.buffer):
            return None
        program.multiply_array(buffer, a.offset, out.buffer, out.offset)
        return out

    def _elsewhere(self, a: NpuArray, out: NpuArray | None) -> InPlaceProgram | None:
        """The program for rows that are a part of an array, or have less room behind them."""
        product, mm_type = self._product, self._type
        assert product.stored is not None
        assert mm_type is not None
        c_room = self._room
        if out is not None:
            if out.device is not self._device or out.dtype != self._dtype or out.shape != self._shape:
                return None
            if not out.contiguous:
                return None
            # behind the last row of the memory that arrays use there is room for rows that nobody sees
            ends = out.offset + out.nbytes
            c_room = (out.room if ends == out.extent else ends) - out.offset
        alignment = self._device.chip.memory.slice_alignment
        in_parts = bool(a.offset or (out is not None and out.offset))
        if in_parts and (a.offset % alignment or (out is not None and out.offset % alignment)):
            return None
        if in_parts and not self._device.runtime.has("rknn_mem_sync"):
            return None
        return InPlaceProgram.of(product.stored, self._rows[0], mm_type, a.room - a.offset, c_room)
