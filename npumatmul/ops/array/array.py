"""`NpuArray`: arrays in NPU memory, which numpy and others see without a copy."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, SupportsIndex

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin
from numpy.typing import DTypeLike, NDArray

from npumatmul.chips.layout import round_up
from npumatmul.device.buffer import PAGE, Buffer
from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.device.result_memory import ResultMemory
from npumatmul.errors import ClosedError
from npumatmul.host import dlpack
from npumatmul.ops.array.memory import TYPESTRS, allocate, dense_strides, holding, start_of, supported
from npumatmul.ops.array.methods import NdarrayMethods
from npumatmul.ops.array.pending import Pending, UnreadResults
from npumatmul.ops.operators import operators
from npumatmul.ops.shapes import operand
from npumatmul.planning.in_place import padded_rows
from npumatmul.running.deferred import DeferredResult

__all__ = ["NpuArray", "asarray", "empty", "made_of", "room_for", "unread", "zeros"]

_Shape = SupportsIndex | tuple[SupportsIndex, ...]


class NpuArray(NdarrayMethods, NDArrayOperatorsMixin):
    """An array whose memory is an NPU buffer; made by `empty`, `zeros`, `asarray`, and by products of such arrays.

    A product with an NpuArray operand runs on the NPU and gives an NpuArray (two vectors: a scalar), whether it is
    called as `npumatmul.matmul`, ``@``, `numpy.matmul`, `numpy.dot`, `numpy.einsum` or a relative. Everything else that
    numpy does with it happens on the CPU and gives ndarrays.

    Basic slicing, `reshape`, `transpose` and `T` give NpuArrays that share the memory and keep it; other indexing gives
    an ndarray, and so do the other methods of ndarrays: reductions, `ravel`, `flatten`, `squeeze`, `argsort`, ... int4
    takes a byte per element, as in numpy arrays of `ml_dtypes.int4`.

    Attributes
    ----------
    shape, strides : tuple of int
        As of an ndarray; strides in bytes.
    dtype : numpy.dtype
        float16, float32, bfloat16, int8, uint8, int16, int32 or int4.
    device : Device
    buffer : Buffer
        The memory, for contexts of the runtime (`Device.context`).
    offset : int
        Bytes from the start of the buffer to the first element.

    Notes
    -----
    Without a copy, numpy sees it through ``np.asarray(x)`` or ``x.numpy()``, which are writable; everything that takes
    a memoryview through ``x.data``, and from Python 3.12 on through ``memoryview(x)``; PyTorch and others through
    DLPack (``torch.from_dlpack(x)``, bfloat16 included). While such a view lives `close` refuses, and every product
    with `x` synchronises caches, because the view may have been written through; without views only what is new is
    synchronised.

    float16 operands whose extents fit the NPU's are read in place, and results written in place: in a chain of
    products with ``dtype=np.float16`` nothing is copied (`DeviceStats.conversions` counts what is). Other results stay
    where the NPU left them until they are read; `buffer` is allocated then. A product that they are the left operand
    of takes them from there, in one pass. Results of a few rows, up to 1 MiB, are stored in memory of the host at once.

    Examples
    --------
    >>> import npumatmul as npu
    >>> x = npu.asarray(np.ones((2, 3), np.float32))
    >>> x @ np.ones((3, 2), np.float32)
    NpuArray([[3., 3.],
              [3., 3.]], dtype=float32, device='sim:rk3588')
    >>> np.asarray(x)[0, 0] = 5  # no copy
    >>> float(x[0, 0]), type(x + 1).__name__
    (5.0, 'ndarray')
    """

    __array_priority__ = 20.0

    def __init__(
        self,
        device: Device,
        buffer: Buffer | Pending,
        shape: tuple[int, ...],
        dtype: DTypeLike,
        strides: tuple[int, ...] | None = None,
        offset: int = 0,
        extent: int | None = None,
    ) -> None:
        self.device = device
        self._memory = buffer
        self.shape = tuple(operator.index(extent) for extent in shape)
        self.dtype: np.dtype[Any] = supported(dtype)
        self.strides = dense_strides(self.shape, self.dtype.itemsize) if strides is None else tuple(strides)
        self.offset = offset
        #: Bytes from the buffer's start that arrays use; what follows is room for rows that pad a product.
        self.extent = buffer.nbytes if extent is None else extent
        self._dense = strides is None
        if isinstance(buffer, Pending) and strides is None and offset == 0:
            return  # its buffer will have room
        reach = [(n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True)]
        low = offset + sum(step for step in reach if step < 0)
        high = offset + sum(step for step in reach if step > 0) + self.dtype.itemsize
        if 0 not in self.shape and not (low >= 0 and high <= self.extent <= buffer.nbytes):
            raise ValueError(f"shape {shape}, strides {self.strides} and offset {offset} leave {buffer}")

    # ---- what it is ------------------------------------------------------------------------------------------------

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.size * self.dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether its elements stand one behind the other, in C order."""
        return (
            self._dense
            or self.size == 0
            or all(
                n == 1 or stride == dense
                for n, stride, dense in zip(
                    self.shape, self.strides, dense_strides(self.shape, self.dtype.itemsize), strict=True
                )
            )
        )

    @property
    def buffer(self) -> Buffer:
        """The memory. Of a result that nobody read yet it is allocated now, and the values come into it."""
        memory = self._memory
        return memory if isinstance(memory, Buffer) else memory.buffer

    def buffer_in(self, domain: int) -> Buffer:
        """The memory; if it is allocated now, then in this IOMMU domain."""
        return self._memory if isinstance(self._memory, Buffer) else self._memory.read(domain)

    @property
    def domain(self) -> int | None:
        """IOMMU domain of the memory; None as long as none is allocated."""
        return self._memory.domain

    @property
    def room(self) -> int:
        """Bytes of the buffer."""
        return self._memory.nbytes

    @property
    def deferred(self) -> DeferredResult | None:
        """Of a result that nobody read yet, and all of it: what its values are made of, as rows."""
        deferred = None if isinstance(self._memory, Buffer) else self._memory.deferred
        whole = deferred is not None and self.size == math.prod(deferred.shape) and self.contiguous
        return deferred if whole else None

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return self._memory.closed or self.device.closed

    def __repr__(self) -> str:
        if self.closed:
            return f"NpuArray(shape={self.shape}, dtype={self.dtype}, device={self.device.name!r}, closed)"
        text = np.array2string(self.numpy(writable=False), separator=", ", prefix="NpuArray(")
        return f"NpuArray({text}, dtype={self.dtype}, device={self.device.name!r})"

    def __str__(self) -> str:
        return str(self.numpy(writable=False))

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of an NpuArray without dimensions")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        """Scalars of one dimension; else what indices give."""
        if not self.shape:
            raise TypeError("iteration over an NpuArray without dimensions")
        return iter(self.numpy(writable=False)) if self.ndim == 1 else (self[index] for index in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.numpy(writable=False))

    def __int__(self) -> int:
        return int(self.numpy(writable=False))

    def __float__(self) -> float:
        return float(self.numpy(writable=False))

    def __reduce__(self) -> tuple[Callable[..., NpuArray], tuple[NDArray[Any]]]:
        """Pickled as its values; unpickling puts them into memory of the current device."""
        return asarray, (self.numpy(writable=False).copy(),)

    # ---- its memory ------------------------------------------------------------------------------------------------

    def __enter__(self) -> NpuArray:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._memory, Buffer):
            self._memory.__exit__()
        else:
            self._memory.leave()

    def close(self) -> None:
        """Give the memory back, that of all arrays which share it. Closing twice is allowed.

        Raises
        ------
        BufferError
            If numpy arrays, memoryviews or tensors that share the memory are still held.
        BusyError
            If another thread runs with it.
        """
        self._memory.close()

    def numpy(self, *, writable: bool = True) -> NDArray[Any]:
        """An ndarray that shares the memory.

        Parameters
        ----------
        writable : bool
            While a writable one lives, every product with the array synchronises caches.

        Raises
        ------
        ClosedError
            If the array or its device are closed, or inherited through a fork.
        """
        if self.device.closed:
            self._check_usable()
        memory = self._memory
        if isinstance(memory, Pending):
            view = self._seen(memory, writable=writable)
            if view is not None:
                return view
        pages = self.buffer.pages(writable=writable)
        seen: NDArray[Any] = np.ndarray(self.shape, self.dtype, pages, self.offset, self.strides)
        return seen

    def _check_usable(self) -> None:
        if self.device.closed:
            raise ClosedError(f"the device {self.device.name} of this NpuArray is closed; open another Device")

    @property
    def data(self) -> memoryview:
        """Memoryview of the memory, writable; bfloat16 and int4 have no format there, view `numpy` as uint8 instead."""
        return memoryview(self.numpy())  # type: ignore[arg-type]

    def __buffer__(self, flags: int, /) -> memoryview:
        """Buffer protocol of Python 3.12 and later; before, `data`."""
        try:
            return self.data
        except ValueError as error:
            raise BufferError(str(error)) from error

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """An ndarray: without a copy where dtype is this one's and `copy` is not True."""
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        if wanted == self.dtype and not copy:
            return self.numpy()
        if copy is False:
            raise ValueError(f"an NpuArray of {self.dtype} cannot be seen as {wanted} without a copy")
        return self.numpy(writable=False).astype(wanted)

    @property
    def __array_interface__(self) -> Mapping[str, Any]:
        """Version 3 of numpy's array interface; bfloat16 and int4 have none, numpy takes those by ``__array__``."""
        typestr = TYPESTRS.get(self.dtype)
        if typestr is None:
            raise AttributeError(f"{self.dtype} has no array interface")
        if self.device.closed:
            self._check_usable()
        memory = self._memory
        if isinstance(memory, Pending):
            whole = memory.whole()
            if whole is not None:
                described = {"version": 3, "shape": self.shape, "typestr": typestr, "data": whole, "strides": None}
                return described if self._dense else {**described, "strides": self.strides, "offset": self.offset}
        return {
            "version": 3,
            "shape": self.shape,
            "typestr": typestr,
            "strides": self.strides,
            "data": self.buffer.pages(writable=True),
            "offset": self.offset,
        }

    def _seen(self, memory: Pending, *, writable: bool) -> NDArray[Any] | None:
        """A view of values in memory of the host; None where they are not there."""
        return memory.seen(self.shape, self.dtype, self.strides, self.offset, writable=writable)

    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A DLPack capsule that shares the memory, or of a copy.

        Raises
        ------
        BufferError
            If another device than the CPU is asked for, or dtype is int4, which DLPack lacks.
        """
        if stream is not None:
            raise BufferError("NpuArray.__dlpack__: memory of the CPU has no streams")
        if dl_device is not None and tuple(dl_device) != self.__dlpack_device__():
            raise BufferError("NpuArray.__dlpack__: the array is in memory of the CPU, device (1, 0)")
        return dlpack.export(self.copy().numpy() if copy else self.numpy(), max_version)

    def __dlpack_device__(self) -> tuple[int, int]:
        """Memory of the CPU: NPU buffers are mapped into the process."""
        return (1, 0)

    # ---- views -----------------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> Any:
        """A view for basic indices, a scalar for a single element; other indices: an ndarray."""
        key = index if isinstance(index, tuple) else (index,)
        if not all(_is_basic(part) for part in key):
            return self.numpy(writable=False)[_plain(index)]
        if len(key) == self.ndim and not any(
            part is None or part is Ellipsis or isinstance(part, slice) for part in key
        ):
            return self.numpy(writable=False)[index]
        outline = self._outline()
        # with an ellipsis numpy makes a view in any case, and reads nothing
        view = outline[key if any(part is Ellipsis for part in key) else (*key, Ellipsis)]
        return self._seen_as(view, start_of(outline))

    def __setitem__(self, index: Any, values: Any) -> None:
        self.numpy()[_plain(index)] = values

    def _outline(self) -> NDArray[Any]:
        """An array of the same geometry for working out views; it has no memory behind it and must not be read."""
        anchor = np.empty(1, self.dtype)
        return np.lib.stride_tricks.as_strided(anchor, self.shape, self.strides, writeable=False)

    def _seen_as(self, view: NDArray[Any], start: int) -> NpuArray:
        """The array that is to this one as `view` is to an array that starts at `start`."""
        offset = self.offset + start_of(view) - start if view.size else self.offset
        return NpuArray(self.device, self._memory, view.shape, self.dtype, view.strides, offset, self.extent)

    def transpose(self, *axes: Any) -> NpuArray:
        """A view with its axes in another order; reversed without `axes`."""
        outline = self._outline()
        return self._seen_as(outline.transpose(*axes), start_of(outline))

    @property
    def T(self) -> NpuArray:  # noqa: N802 - numpy's name
        """A view with its axes reversed."""
        return self.transpose()

    @property
    def mT(self) -> NpuArray:  # noqa: N802 - numpy's name
        """A view with its last two axes swapped."""
        if self.ndim < 2:
            raise ValueError(f"mT: the array has {self.ndim} dimensions, a matrix has 2")
        return self.transpose(*range(self.ndim - 2), self.ndim - 1, self.ndim - 2)

    def reshape(self, *shape: Any) -> NpuArray:
        """Another shape: a view where strides allow, else a copy; one extent can be -1."""
        wanted = shape[0] if len(shape) == 1 and not isinstance(shape[0], SupportsIndex) else shape
        seen = self._outline() if self.contiguous else self.numpy(writable=False)  # contiguous ones are not copied
        reshaped = seen.reshape(tuple(wanted))
        if self.size and not np.shares_memory(seen, reshaped):
            return asarray(reshaped, device=self.device)
        return self._seen_as(reshaped, start_of(seen))

    def copy(self) -> NpuArray:
        """A copy in memory of its own, in C order."""
        return asarray(self, copy=True, device=self.device)

    def astype(self, dtype: DTypeLike, *, copy: bool = True) -> NpuArray:
        """The values as another dtype, in memory of its own; itself without `copy` where nothing changes."""
        if not copy and supported(dtype) == self.dtype:
            return self
        return asarray(self.numpy(writable=False), dtype, copy=True, device=self.device)

    def dot(self, b: Any, out: Any = None) -> NpuArray:
        """The product as of `npumatmul.dot`, on the NPU."""
        product: NpuArray = operators.call_function(np.dot, (self, b), {} if out is None else {"out": out})
        return product

    def tolist(self) -> Any:
        """Nested lists of Python numbers."""
        return self.numpy(writable=False).tolist()

    # ---- numpy's protocols -----------------------------------------------------------------------------------------

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        """Products run on the NPU, other ufuncs on the CPU."""
        return operators.call_ufunc(ufunc, method, inputs, options)

    def __matmul__(self, other: Any) -> NpuArray:
        """The product; with a packed weight without a way through numpy."""
        weighs = type(other) is operators.weight
        product: NpuArray = operators.matmul(self, other) if weighs else super().__matmul__(other)
        return product

    def __array_function__(
        self, function: Callable[..., Any], types: object, args: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Products run on the NPU, other functions on the CPU."""
        return operators.call_function(function, args, options)


def empty(
    shape: _Shape, dtype: DTypeLike = np.float32, *, device: Device | str | None = None, domain: int | None = None
) -> NpuArray:
    """An array in NPU memory, in C order, with whatever was in that memory.

    Parameters
    ----------
    shape : int or tuple of int
    dtype : data-type
        float32 by default; one of those of `NpuArray`.
    device : Device or str, optional
        The current device by default.
    domain : int, optional
        IOMMU domain: only products with weights of the same one (`PackedWeight.domain`) read and write it in place. By
        default the first one that has room.

    Raises
    ------
    TypeError
        If the NPU has no such dtype.
    ValueError
        If an extent is negative, or there is no such domain.
    NpuMemoryError
        If the runtime has no memory, or the process no descriptors left: an array holds one.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.empty((4, 8), np.float16).strides
    (16, 2)
    """
    extents = (operator.index(shape),) if isinstance(shape, SupportsIndex) else tuple(map(operator.index, shape))
    if any(extent < 0 for extent in extents):
        raise ValueError(f"empty: shape {extents} has a negative extent")
    wanted = supported(dtype)
    target = current_device(device)
    buffer = allocate(target, room_for(extents, wanted, target), domain)
    return NpuArray(target, buffer, extents, wanted, extent=math.prod(extents) * wanted.itemsize or None)


def unread(values: DeferredResult | NDArray[Any], shape: tuple[int, ...], device: Device) -> NpuArray:
    """An array of a result that has no buffer yet, of the same elements in another shape."""
    results = device.attached(UnreadResults, UnreadResults)
    pending = Pending(device, values, ResultMemory.size_for(room_for(shape, values.dtype, device)), results)
    if isinstance(values, DeferredResult):
        assert values.slot is not None
        results.add(pending, values.slot)
    return made_of(pending, device, shape, values.dtype, dense_strides(shape, values.dtype.itemsize))


_new = NpuArray.__new__


def made_of(
    memory: Buffer | Pending, device: Device, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...]
) -> NpuArray:
    """An array of memory that has room for it, in C order from its start on; nothing is checked."""
    made = _new(NpuArray)
    made.device, made._memory, made.shape, made.dtype, made.strides = device, memory, shape, dtype, strides
    made.offset, made.extent, made._dense = 0, math.prod(shape) * dtype.itemsize, True
    return made


def room_for(shape: tuple[int, ...], dtype: np.dtype[Any], device: Device) -> int:
    """Bytes for an array. A product may be made of more rows than there are: they find room behind the last one."""
    rows = max(padded_rows(math.prod(shape[:-1]), device.chip), math.prod(shape[:-1])) if shape else 1
    return round_up(max(rows * (shape[-1] if shape else 1) * dtype.itemsize, 1), PAGE)


def zeros(shape: _Shape, dtype: DTypeLike = np.float32, *, device: Device | str | None = None) -> NpuArray:
    """An array of zeros in NPU memory; see `empty`.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.zeros(3, np.int8)
    NpuArray([0, 0, 0], dtype=int8, device='sim:rk3588')
    """
    made = empty(shape, dtype, device=device)
    made.numpy()[...] = np.zeros((), made.dtype)
    return made


def asarray(
    a: Any, dtype: DTypeLike | None = None, *, copy: bool | None = None, device: Device | str | None = None
) -> NpuArray:
    """An array in NPU memory with the values of another.

    Parameters
    ----------
    a : array_like, NpuArray, or object with ``__dlpack__`` such as a tensor of PyTorch
    dtype : data-type, optional
        That of `a` by default.
    copy : bool, optional
        True: always copy. None: copy unless `a` is in memory of an NpuArray of the device already, as ndarrays and
        tensors made of one are. False: raise where that would need a copy.
    device : Device or str, optional
        By default that of `a`, else the current device.

    Returns
    -------
    NpuArray
        In C order if it was copied. `a` itself where it is an NpuArray and nothing changes.

    Raises
    ------
    TypeError
        If the NPU has no such dtype; the message names those that it has.
    ValueError
        If `copy` is False and a copy is needed.

    Examples
    --------
    >>> import npumatmul as npu
    >>> x = npu.asarray([[1, 2], [3, 4]], np.int8)
    >>> npu.asarray(np.asarray(x)[1], copy=False)
    NpuArray([3, 4], dtype=int8, device='sim:rk3588')
    """
    if isinstance(a, NpuArray):
        target = a.device if device is None else current_device(device)
        wanted = a.dtype if dtype is None else supported(dtype)
        if target is a.device and wanted == a.dtype and not copy:
            a._check_usable()
            return a
        values = a.numpy(writable=False)
    else:
        target = current_device(device)
        exchanged = hasattr(type(a), "__dlpack__") and not isinstance(a, np.ndarray | np.generic)
        values = dlpack.take(a) if exchanged else operand(a, "the array", "asarray")
        wanted = supported(values.dtype if dtype is None else dtype)
        if not copy and wanted == values.dtype:
            found = _holding(target, values)
            if found is not None:
                return NpuArray(target, found[0], values.shape, wanted, values.strides, found[1])
    if copy is False:
        raise ValueError(
            f"asarray: {wanted} on {target.name} of this {type(a).__name__} needs a copy; leave copy at None for one"
        )
    made = empty(values.shape, wanted, device=target)
    made.numpy()[...] = values.astype(wanted, copy=False)
    return made


def _holding(device: Device, values: NDArray[Any]) -> tuple[Buffer | Pending, int] | None:
    """What an ndarray is a view of, and where in it the ndarray starts."""
    found = device.attached(UnreadResults, UnreadResults).whose(values)
    if found is not None and isinstance(found.state, np.ndarray):
        return found, start_of(values) - start_of(found.state)
    return holding(device, values)


def _is_basic(part: Any) -> bool:
    if part is None or part is Ellipsis or isinstance(part, slice):
        return True
    return isinstance(part, int | np.integer) and not isinstance(part, bool)


def _plain(index: Any) -> Any:
    """An index whose NpuArrays became ndarrays."""
    if isinstance(index, tuple):
        return tuple(_plain(part) for part in index)
    return index.numpy(writable=False) if isinstance(index, NpuArray) else index
