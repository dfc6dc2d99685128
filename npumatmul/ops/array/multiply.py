"""Products of an `NpuArray` with a packed weight, which give an `NpuArray`: in place, or deferred."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.chips.types import MatmulType
from npumatmul.device.buffer import Buffer
from npumatmul.device.result_memory import ResultMemory
from npumatmul.errors import NpuMemoryError
from npumatmul.host.arrays import address_of
from npumatmul.host.epilogue import Epilogue
from npumatmul.ops.array.array import NpuArray, made_of, room_for
from npumatmul.ops.array.memory import dense_strides
from npumatmul.ops.array.pending import Pending, UnreadResults
from npumatmul.running.deferred import DeferredResult
from npumatmul.running.in_place import InPlaceProgram, type_in_place

if TYPE_CHECKING:
    from npumatmul.ops.product import Product

_new, _new_pending = NpuArray.__new__, Pending.__new__
_empty, _ndarray = np.empty, np.ndarray

__all__ = ["ArrayProduct", "is_stored_at_once"]

#: Results up to so many bytes are stored at once in memory of the host: while they stay in a CPU's caches a second pass
#: over them costs less than leaving them in C, and making memory of the NPU of them when they are read.
AT_ONCE = 1024 * 1024


def is_stored_at_once(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Whether a result goes to memory of the host at once, unless it is computed in place."""
    return 0 < math.prod(shape) * dtype.itemsize <= AT_ONCE


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
        self._product, self._a, self._compute = product, a, product.compute
        shapes, device, dtype = product.shapes, product.device, product.dtype
        self._device, self._shape, self._dtype = device, shapes.result, dtype
        self._rows = rows = (shapes.rows, shapes.k)
        self._strides = dense_strides(self._shape, dtype.itemsize)
        self._room = ResultMemory.size_for(room_for(self._shape, dtype, device))
        self._defers = product.takes_deferred and dtype != np.int32
        self._at_once = product.on_cpu or is_stored_at_once(shapes.result, dtype)
        self._reads_rows = product.reads_rows
        self._results = device.attached(UnreadResults, UnreadResults)
        by_npu = product.takes_deferred and not product.on_cpu and product.input_transform is None
        stored = product.stored if by_npu else None
        #: By which the weight is multiplied in place, if it can be.
        self._type: MatmulType | None = None if stored is None else type_in_place(stored, a, dtype)
        self._is_stored = self._at_once and self._type is None
        #: Where operand and result are matrices with nothing to be done to them but by the executor.
        self._run = product.program.run if product.as_it_stands and product.program is not None else None
        extent = math.prod(self._shape) * dtype.itemsize
        self._of_result = self._shape, self._strides, extent, dtype, self._room, self._results
        self._in_place: InPlaceProgram | None = None
        if stored is not None and self._type is not None:
            self._in_place = InPlaceProgram.of(stored, rows[0], self._type, cores=product.cores)

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
        rows: Any
        buffers: tuple[Buffer, ...]
        memory: Any = a._memory
        device = self._device
        if a.device is not device or not (a._dense or a.contiguous):
            return None
        state: Any = memory.state if type(memory) is Pending else memory
        if self._is_stored and out is None:  # there are no calls that can be spared
            run = self._run if epilogue is None and bias is None else None
            if type(state) is _ndarray and a._dense:
                rows, buffers, first = state, (), memory.address or address_of(state)
            elif type(state) is Buffer and self._reads_rows:
                first, buffers = state._memory.address + a.offset, (state,)
                rows = state.rows(a.shape, self._a, a.offset) if run is None else state
            else:
                return self._at_once_of(a, state, epilogue, bias)
            if run is not None:
                values = _empty(self._shape, self._dtype)
                address = address_of(values)
                run(None, rows, values, buffers, addresses=(first, address))
            else:
                values, address = self._compute(rows, None, epilogue, bias, buffers=buffers), 0
            made = _new(NpuArray)
            made._memory = own = _new_pending(Pending)
            own.state, own.address = values, address
            own.device = made.device = device
            made.shape, made.strides, made.extent, made.dtype, own.nbytes, own._results = self._of_result
            made.offset, made._dense = 0, True
            return made
        if self._type is not None and epilogue is None and bias is None:
            del state  # references count as views
            result = self._multiply_in_place(a, out)
            if result is not None:
                return result
            state = memory.state if type(memory) is Pending else memory
        if out is not None:
            return None
        if self._at_once:
            return self._at_once_of(a, state, epilogue, bias)
        if not self._defers:
            return None
        if epilogue is not None and (epilogue.multiply is not None or epilogue.residual is not None):
            return None  # these matrices may change until the result is read
        buffers = ()
        if isinstance(state, DeferredResult):
            if state.slot is None or state.slot.shape != self._rows:
                return None
            rows = state
        elif state is None or not self._reads_rows:
            return None
        elif isinstance(state, Buffer):
            rows, buffers = state.rows(self._rows, self._a, a.offset), (state,)
        else:
            rows = a.numpy(writable=False).reshape(self._rows)
        program = self._product.program
        assert program is not None
        deferred = program.defer(rows, epilogue, bias, buffers=buffers)
        if deferred is None:
            return None
        slot = deferred.slot
        assert slot is not None
        pending = Pending(device, deferred, self._room, self._results)
        del deferred  # nothing but the state may refer to it
        self._results.add(pending, slot)
        return made_of(pending, device, self._shape, self._dtype, self._strides)

    def _at_once_of(
        self,
        a: NpuArray,
        state: Buffer | DeferredResult | NDArray[Any] | None,
        epilogue: Epilogue | None,
        bias: ArrayLike | None,
    ) -> NpuArray | None:
        """Multiply, and store the result in memory of the host."""
        if isinstance(state, DeferredResult):
            if not self._defers or state.slot is None or state.slot.shape != self._rows:
                return None
            values = self._compute(state, None, epilogue, bias)
        elif state is None:
            return None
        else:
            values = self._compute(a.numpy(writable=False), None, epilogue, bias)
        result = Pending(self._device, values, self._room, self._results)
        return made_of(result, self._device, self._shape, self._dtype, self._strides)

    def _multiply_in_place(self, a: NpuArray, out: NpuArray | None) -> NpuArray | None:
        """Multiply where a and the result stand; None where they do not stand so."""
        if isinstance(a._memory, Pending) and a._memory.viewed():
            return None  # the values stay in memory of the host
        own: Any = a._memory.state if isinstance(a._memory, Pending) else a._memory
        state = own if type(own) is Buffer else None
        del own
        program = self._in_place
        room = a.room if state is None else state._memory.size
        if out is not None or program is None or a.offset or room < program.a_bytes:
            program = self._elsewhere(a, out)
            if program is None:
                return None
        domain = program.domain
        try:
            buffer = state if state is not None else a.buffer_in(domain)
            memory = buffer._memory
            if memory.domain != domain or memory.mirror is not None:
                return None  # memory of one domain means nothing in another (facts 7.4)
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
        return InPlaceProgram.of(product.stored, self._rows[0], mm_type, a.room - a.offset, c_room, product.cores)
