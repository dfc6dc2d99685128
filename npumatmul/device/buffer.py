"""NPU memory that users hold: buffers, and what the runtime says of the matrices in them."""

from __future__ import annotations

import ctypes as C
import math
import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from os import getpid
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from npumatmul.chips import layout
from npumatmul.chips.layout import TileLayout
from npumatmul.chips.types import ElementType
from npumatmul.device.budget import Holder
from npumatmul.device.living import Living
from npumatmul.device.memory import Memory
from npumatmul.device.session import Session
from npumatmul.errors import ClosedError, LayoutMismatchError
from npumatmul.files.uncopied import Uncopied
from npumatmul.rknn import MatmulTensorAttr

__all__ = ["PAGE", "Buffer", "TensorAttr"]

#: Sizes are rounded up to a memory page.
PAGE = 4096
#: `size` fields of the C API are 32 bits wide (facts 1.8).
LARGEST_BUFFER = 2**32 - 1


@lru_cache(maxsize=1024)
def _bytes_type(nbytes: int) -> type[C.Array[C.c_uint8]]:
    return C.c_uint8 * nbytes


@dataclass(frozen=True)
class TensorAttr:
    """A, B or C of a context, as the runtime describes it.

    Attributes
    ----------
    name : str
        ``"A"``, ``"B"`` or ``"C"``.
    shape : (int, int)
        The matrix as its user sees it: (M, K), (K, N) or (M, N).
    dims : tuple of int
        What the runtime reports: the shape, or groups and tiles where the layout is native.
    size : int
        Bytes that a buffer for it needs.
    element : ElementType
    layout : TileLayout or None
        Where the elements stand; None where that is an open question (a native B in segments: Q4, Q5).
    struct : MatmulTensorAttr
        The C struct.
    """

    name: str
    shape: tuple[int, int]
    dims: tuple[int, ...]
    size: int
    element: ElementType
    layout: TileLayout | None
    struct: MatmulTensorAttr = field(repr=False, compare=False)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype of the elements."""
        return self.element.dtype

    @property
    def known_layout(self) -> TileLayout:
        """The layout.

        Raises
        ------
        LayoutMismatchError
            If no source settles it.
        """
        if self.layout is None:
            raise LayoutMismatchError(
                f"a native {self.name} of shape {self.shape} is stored in segments, whose order no source settles "
                "(open questions Q4, Q5): split K, or fill the buffer as your runtime has it"
            )
        return self.layout


def _check_attr(call: str, attr: object) -> None:
    if not isinstance(attr, TensorAttr):
        raise TypeError(f"{call}: attr says where elements stand, such as context.a; {type(attr).__name__} does not")


class Buffer(Uncopied):
    """NPU memory that contexts can be bound to: an allocation (`Device.buffer`), or a part of one (`Buffer.slice`).

    Reading goes through `array` or `get`, writing through `write` or `put`. What was written reaches the NPU with the
    next run of a context that is bound to it: the run synchronises caches and binds anew (facts 7.2, 7.3).

    Views keep the memory: a buffer that is dropped, or whose ``with`` block is left, gives it back when the last view
    is gone. `close` gives it back at once, and refuses while there are views.

    Attributes
    ----------
    nbytes : int
    domain : int
        IOMMU domain; contexts of the same domain can use it.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with npu.Device("sim") as device, device.buffer(4096) as buffer:
    ...     with buffer.write(np.float16) as a:
    ...         a[:] = 1.5
    ...     print(buffer.array.nbytes, buffer.array.view(np.float16)[-1])
    4096 1.5
    """

    #: Whether the memory was given back, or on to somebody else, or never came.
    _gone = True

    def __init__(self, session: Session, memory: Memory, parent: Buffer | None = None) -> None:
        if not isinstance(memory, Memory):
            raise TypeError("buffers are made by Device.buffer and Buffer.slice")
        self._session = session
        self._memory = memory
        self._parent = parent
        self._watched: list[weakref.ref[Any]] = []
        #: Whether it was closed, or its with block left while there were views.
        self.is_left = False
        self._gone = False
        #: What `rows` was asked for last, and gave.
        self._rows: tuple[tuple[Any, ...], NDArray[Any]] | None = None
        #: Whether arrays share it, so that `asarray` finds it.
        self.of_arrays = False
        # What contexts compare to know whether they have to bind anew.
        self._writes = 0
        self._results = 0
        #: All buffers of one allocation, where there are several.
        self._family: Living[Buffer] | None = None
        if parent is None:
            memory.held_by = weakref.ref(self)
            return
        with memory.allocation.lock:
            family = parent._family
            if family is None:
                family = Living()
                family.add(parent)
                parent._family = family
        family.add(self)
        self._family = family

    def __del__(self, finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if not finalizing():  # at exit the session frees everything in its own order
            self._give_back()

    def _give_back(self) -> None:
        """Let somebody else have the memory, or the runtime; safe from a garbage collector that runs at any moment."""
        if self._gone:
            return
        memory, session = self._memory, self._session
        if memory.home is None or session.closed or self._family is not None:
            if not memory.closed:
                session.release_later(memory)
            self._gone = True
        else:  # an interrupt may come after any call: `ResultMemory` finds what is not on the list
            self._gone = True
            memory.held_by = None
            memory.home.append(memory)

    @classmethod
    def allocate(cls, session: Session, nbytes: int, domain: int = 0) -> Buffer:
        """Allocate; `Device.buffer` is the public form."""
        nbytes = operator.index(nbytes)
        if not 1 <= nbytes <= LARGEST_BUFFER:
            raise ValueError(f"a buffer has 1 to {LARGEST_BUFFER} bytes, not {nbytes}")
        domain, domains = operator.index(domain), session.chip.memory.domains
        if domain < 0 or 1 < domains <= domain:  # what runtimes without domains lack, the binding says
            raise ValueError(f"domain {domain}: IOMMU domains are 0 to {domains - 1}")
        memory = session.allocate(nbytes, domain, Holder.BUFFERS)
        try:
            return cls(session, memory)
        except BaseException:  # an interrupt
            session.release_later(memory)
            raise

    def __repr__(self) -> str:
        return f"Buffer({self.nbytes} bytes{', closed' if self.closed else ''} on {self._session.name})"

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.is_left = True
        self._watch()
        if not self._memory.viewed():  # else the last view that goes gives it back
            self._close()

    def _close(self) -> None:
        memory, session = self._memory, self._session
        if memory.home is None or self._family is not None or session.inherited or session.closed:
            session.release(memory)
            return
        with session.lock:
            if self._gone:  # the memory is somebody else's
                return
            session.check_idle(memory)
            self.is_left = True
            self._give_back()

    @property
    def nbytes(self) -> int:
        """Bytes."""
        return self._memory.size

    @property
    def domain(self) -> int:
        """IOMMU domain."""
        return self._memory.domain

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return self._memory.closed or self.is_left

    @property
    def memory(self) -> Memory:
        """The runtime's memory, while it lives."""
        self._check_usable()
        return self._memory

    def _check_usable(self) -> None:
        self._session.check_usable()
        if self.closed:
            raise ClosedError("this NPU buffer is closed")

    def overlaps(self, other: Buffer) -> bool:
        """Whether two buffers share bytes.

        Raises
        ------
        TypeError
            If `other` is no buffer.
        """
        if not isinstance(other, Buffer):
            raise TypeError(f"overlaps: another Buffer is needed, not {type(other).__name__}")
        mine, theirs = self._memory, other._memory
        return mine.allocation is theirs.allocation and mine.start < theirs.stop and theirs.start < mine.stop

    # ---- access ----------------------------------------------------------------------------------------------------

    @property
    def array(self) -> NDArray[np.uint8]:
        """Read-only view of the bytes, shape (nbytes,); ``.view(dtype)`` it as you like.

        After a run it shows the new results.

        Raises
        ------
        ClosedError
            If buffer or device are closed, or inherited through a fork.
        """
        return np.frombuffer(self.pages(writable=False), np.uint8)

    def pages(self, *, writable: bool) -> memoryview:
        """The bytes as a memoryview, for arrays of any geometry; it keeps the buffer.

        While a writable one lives, every run of a context that is bound to the buffer synchronises it and binds it
        anew; when it is gone the next run does so once.

        Raises
        ------
        ClosedError
            If buffer or device are closed, or inherited through a fork.
        """
        pages = memoryview(self._pages(writable))
        return pages if writable else pages.toreadonly()

    @contextmanager
    def write(self, dtype: DTypeLike = np.uint8, shape: tuple[int, ...] | None = None) -> Iterator[NDArray[Any]]:
        """A view to write through, within a ``with`` block.

        Parameters
        ----------
        dtype : dtype, optional
            How to see the bytes: uint8 by default.
        shape : tuple of int, optional
            By default one dimension with as many elements as there are.

        Raises
        ------
        ValueError
            If dtype and shape do not fit the buffer's size.
        ClosedError
            If buffer or device are closed.

        Notes
        -----
        Until the block ends, and beyond as long as any view of the array lives, every run of a context that is bound
        to the buffer synchronises it and binds it anew; afterwards the next run does so once. When the block ends the
        array becomes read-only.
        """
        wanted = np.dtype(dtype)
        if wanted.hasobject or wanted.itemsize == 0:
            raise ValueError(f"write: a buffer cannot hold {wanted}")
        if shape is None:
            if self.nbytes % wanted.itemsize:
                raise ValueError(f"write: {self.nbytes} bytes are no whole number of {wanted}")
            shape = (self.nbytes // wanted.itemsize,)
        if any(extent < 0 for extent in shape) or math.prod(shape) * wanted.itemsize > self.nbytes:
            raise ValueError(f"write: {shape} of {wanted} does not fit into {self.nbytes} bytes")
        pages = self._pages(writable=True)
        array: NDArray[Any] = np.ndarray(shape, wanted, memoryview(pages))
        del pages
        try:
            yield array
        finally:
            array.flags.writeable = False
            self._wrote()

    def put(self, attr: TensorAttr, values: NDArray[Any]) -> None:
        """Pack a matrix into the buffer, as A or B of a context.

        Parameters
        ----------
        attr : TensorAttr
            Of the context, such as ``context.b``.
        values : ndarray
            Of ``attr.shape`` and ``attr.dtype``, of any strides; int4 as `ml_dtypes.int4`, one value per element.

        Raises
        ------
        TypeError, ValueError
            If `attr` is no `TensorAttr`, dtype or shape differ, or the buffer is too small; nothing was written.
        LayoutMismatchError
            If no source settles the layout.
        """
        self._check_usable()
        _check_attr("put", attr)
        if self.nbytes < attr.size:
            raise ValueError(f"put: {attr.name} needs {attr.size} bytes, the buffer has {self.nbytes}")
        layout.pack_into(values, attr.known_layout, self._memory.address, self.nbytes)
        self._wrote()

    def get(self, attr: TensorAttr) -> NDArray[Any]:
        """Unpack the matrix in the buffer: a copy, of ``attr.shape`` and ``attr.dtype``.

        Raises
        ------
        TypeError
            If `attr` is no `TensorAttr`.
        ValueError
            If the buffer is too small.
        LayoutMismatchError
            If no source settles the layout.
        """
        self._check_usable()
        _check_attr("get", attr)
        if self.nbytes < attr.size:
            raise ValueError(f"get: {attr.name} has {attr.size} bytes, the buffer {self.nbytes}")
        return layout.unpack(self.array[: attr.size], attr.known_layout)

    def slice(self, start: int, nbytes: int) -> Buffer:
        """A buffer that is a part of this one and shares its memory.

        Parameters
        ----------
        start : int
            Multiple of the capability table's `slice_alignment`: which offsets the runtime takes is an open question
            (Q16).
        nbytes : int

        Raises
        ------
        ValueError
            If it reaches beyond this buffer, or does not start at a page.
        """
        self._check_usable()
        start, nbytes = operator.index(start), operator.index(nbytes)
        alignment = self._session.chip.memory.slice_alignment
        if start % alignment or not 0 <= start < self.nbytes or not 1 <= nbytes <= self.nbytes - start:
            raise ValueError(
                f"slice: {nbytes} bytes from {start} on are no part of a buffer of {self.nbytes} bytes that starts at "
                f"a multiple of {alignment}"
            )
        memory = self._session.wrap(self._memory.allocation, self._memory.start + start, nbytes)
        return Buffer(self._session, memory, self)

    def close(self) -> None:
        """Give the memory back, with its slices. Closing twice is allowed.

        Raises
        ------
        BufferError
            If views of it are still held.
        BusyError
            If another thread runs with it.
        """
        held = 0 if self._memory.closed or self._gone else self._memory.viewed()
        if held:
            raise BufferError(f"{held} views of this buffer are still held; delete them, then close")
        self._close()

    def rows(self, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> NDArray[Any]:
        """Rows that stand one behind the other, for a product that keeps the buffer from being closed meanwhile."""
        asked, found = (shape, dtype, offset), self._rows
        if found is None or found[0] != asked:
            memory = self._memory
            pages = _bytes_type(memory.size).from_address(memory.address)
            found = self._rows = asked, np.ndarray(shape, dtype, pages, offset)  # type: ignore[arg-type]
        return found[1]

    # ---- for contexts ----------------------------------------------------------------------------------------------

    def _pages(self, writable: bool) -> C.Array[C.c_uint8]:
        """The bytes as an object that numpy can take, and that keeps this buffer alive."""
        memory, session = self._memory, self._session
        if memory.closed or self.is_left or session.closed or getpid() != session.pid:
            self._check_usable()
        pages = _bytes_type(memory.size).from_address(memory.address)
        pages._buffer = self  # type: ignore[attr-defined]
        if memory.allocation.views:
            self.settle()
        memory.add_view(pages, writable)
        return pages

    def _watch(self) -> None:
        """Have the last view that goes give the memory back."""
        this = weakref.ref(self)

        def gone(_: object) -> None:
            """A garbage collector may call this at any moment."""
            buffer = this()
            if buffer is not None and not buffer._memory.viewed():
                buffer._give_back()

        held = [view.pages() for view in self._memory.living_views()]
        self._watched = [weakref.ref(pages, gone) for pages in held if pages is not None]

    def settle(self) -> None:
        """Count what may have been written through views that are gone; while they live every run looks by itself."""
        for view in self._memory.take_ended_writers():
            self._memory.mark_written()
            for buffer in self._relatives():
                if view.touches(buffer._memory):
                    buffer._writes += 1

    def mark_written(self) -> None:
        """Say that the CPU wrote here, through no view."""
        self._wrote()

    def _wrote(self) -> None:
        """The CPU wrote here."""
        self._memory.mark_written()
        for other in self._overlapping():
            other._writes += 1

    def _computed(self) -> None:
        """The NPU wrote here."""
        for other in self._overlapping():
            other._results += 1

    def _relatives(self) -> list[Buffer]:
        """All buffers of the allocation."""
        return [self] if self._family is None else list(self._family)

    def _overlapping(self) -> list[Buffer]:
        return [other for other in self._relatives() if self.overlaps(other)]
