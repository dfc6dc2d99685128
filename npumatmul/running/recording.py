"""Recording the steps of a computation while Python makes them, so that they can be run again without it.

Within `recording` every product with a packed weight, every kernel of `npumatmul.host.layers` and all attention to a
cache tells the recorder what it reads and what it writes. What is read has to be what an earlier step wrote, or what
the computation began with: whatever else touched it in between, numpy say, has put its result elsewhere, and the
recording is refused. So is whatever depends on values, unless it is recorded as one call of Python
(`Recorder.called`).
"""

from __future__ import annotations

import ctypes as C
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.arrays import address_of
from npumatmul.host.epilogue import Epilogue
from npumatmul.host.layers import RECORDER, Kind, Op, RowsAt, RowsShape
from npumatmul.running.program import Program

__all__ = ["Buffer", "Entry", "Recorder", "recording"]

Float32 = NDArray[np.float32]


@dataclass(eq=False)
class Buffer:
    """Memory that steps write and read.

    Attributes
    ----------
    array : ndarray
        What stood there while it was recorded: nobody else's as long as this lives.
    start, stop : int
        Addresses.
    first, last : int
        Numbers of the steps that use it first and last; -1 for what the computation begins with.
    """

    array: NDArray[Any]
    start: int
    stop: int
    first: int
    last: int


@dataclass(eq=False)
class Entry:
    """One step.

    Attributes
    ----------
    op : Op
        With addresses of arrays that it was recorded with.
    places : list of (str, Buffer, int)
        Its fields that refer to memory: name, where, and how many bytes behind the beginning.
    keeps : object
        What has to live.
    program : Program, optional
        Of a product.
    epilogue, bias
        Of a product.
    call : callable, optional
        Of a call: what is given rows, and what a run is given, and makes a result.
    arrays : (ndarray, ndarray), optional
        Of a call: what it read, and what it gave.
    """

    op: Op
    places: list[tuple[str, Buffer, int]]
    keeps: object = None
    program: Program | None = None
    epilogue: Epilogue | None = None
    bias: Any = None
    call: Callable[[Float32, Any], Float32] | None = None
    arrays: tuple[Float32, Float32] | None = None


@dataclass(eq=False)
class Recorder:
    """Listens to steps.

    Parameters
    ----------
    x : ndarray of float32
        What the computation begins with.
    beside : ndarray of float32, optional
        What it is given besides.

    Attributes
    ----------
    entries : list of Entry
    sequence : int
        Which of several texts the steps are of that are going on.
    refused : str or None
        Why it cannot be run again.
    """

    x: Float32
    beside: Float32 | None = None
    entries: list[Entry] = field(default_factory=list)
    sequence: int = 0
    refused: str | None = None
    _buffers: list[Buffer] = field(default_factory=list)
    _starts: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        for each in (self.x, self.beside):
            if each is None:
                continue
            if not each.flags.c_contiguous or each.dtype != np.float32:
                self.refuse("what it begins with does not stand in one piece")
            self._know(each, -1)

    @property
    def begins_with(self) -> Buffer:
        """Where the computation begins."""
        found = self._find(self.x)
        assert found is not None
        return found[0]

    @property
    def begins_beside(self) -> Buffer | None:
        """Where it finds what it is given besides."""
        found = None if self.beside is None else self._find(self.beside)
        return None if found is None else found[0]

    def refuse(self, why: str) -> None:
        """What is going on cannot be run again."""
        self.refused = self.refused or why

    def step(self, op: Op, reads: Sequence[tuple[str, NDArray[Any]]], out: NDArray[Any], keeps: object) -> None:
        """A step was run; see `npumatmul.host.layers.Recording`."""
        op.sequence = self.sequence
        self._note(Entry(op, [], keeps), reads, out)

    def product(
        self,
        program: Program | None,
        keeps: object,
        a: NDArray[Any],
        out: NDArray[Any],
        epilogue: Epilogue | None,
        bias: Any,
    ) -> None:
        """A product was made; `program` is None where more than it was needed for that."""
        plain = epilogue is None or (epilogue.multiply is None and epilogue.residual is None)
        if program is None or not plain or not a.flags.c_contiguous or out.dtype != np.float32:
            self.refuse("a product needs more than one call of the executor")
            return
        entry = Entry(Op(kind=Kind.PRODUCT), [], keeps, program, epilogue, bias)
        self._note(entry, [("x", a)], out)

    def attended(
        self, layer: int, how: C.Structure, q: Float32, k: Float32 | None, v: Float32 | None, out: Float32
    ) -> None:
        """Keys and values were stored in a layer of a cache, unless it has them of another, and queries attended.

        Parameters
        ----------
        layer : int
        how : AttentionOptions
        q, k, v, out : ndarray of float32, shape (1, heads, T, dim)
        """
        if any(x is not None and (x.shape[0] != 1 or x.strides[3] != x.itemsize) for x in (q, k, v)):
            self.refuse("several sequences attend, or their rows do not stand whole")
            return
        if k is not None and v is not None:
            if not k.dtype == v.dtype == np.float32:
                self.refuse("keys are not float32")
                return
            op = Op(
                kind=Kind.APPEND,
                sequence=self.sequence,
                layer=layer,
                shape=RowsShape(*k.shape[1:]),
                x=_rows_at(k),
                y=_rows_at(v),
            )
            self._note(Entry(op, []), [("x", k), ("y", v)], None)
        op = Op(
            kind=Kind.ATTEND,
            sequence=self.sequence,
            layer=layer,
            shape=RowsShape(*q.shape[1:]),
            x=_rows_at(q),
            out=_rows_at(out),
        )
        op.attention = C.addressof(how)
        self._note(Entry(op, [], how), [("x", q)], out)

    def called(self, call: Callable[[Float32, Any], Float32], x: Float32, given: Any) -> Float32:
        """Make something of rows by a call that is to be made again, whatever it does.

        Parameters
        ----------
        call : callable
            Is given `x`, or what stands in its place later, and `given`.
        x : ndarray of float32
        given : object
            What differs from run to run, such as a cache.

        Returns
        -------
        ndarray of float32
            What it made.
        """
        token = RECORDER.set(None)
        try:
            out = np.array(call(x, given), np.float32, order="C")
        finally:
            RECORDER.reset(token)
        if not x.flags.c_contiguous:
            self.refuse("rows that Python is called with do not stand one behind the other")
        self._note(Entry(Op(kind=Kind.CALL), [], call=call, arrays=(x, out)), [("x", x)], out)
        return out

    @contextmanager
    def unless_nan(self, value: Float32) -> Iterator[None]:
        """Steps within a ``with`` block are left out by programs where a value is a nan.

        They write nothing that is read behind the block, but for what was written before, too.

        Parameters
        ----------
        value : ndarray of float32, shape (1,)
        """
        entry = Entry(Op(kind=Kind.SKIP), [])
        self._note(entry, [("x", value)], None)
        begun = len(self.entries)
        yield
        entry.op.shape.inner = len(self.entries) - begun

    def _note(self, entry: Entry, reads: Sequence[tuple[str, NDArray[Any]]], out: NDArray[Any] | None) -> None:
        if self.refused is not None:
            return
        number = len(self.entries)
        for name, array in reads:
            found = self._find(array)
            if found is None:
                self.refuse(f"step {number} ({Kind(entry.op.kind).name}) reads what no step has written")
                return
            buffer, offset = found
            buffer.last = number
            entry.places.append((name, buffer, offset))
        if out is not None:
            found = self._find(out)
            if found is None:
                self._add(out, number)
                found = self._find(out)
                assert found is not None
            found[0].last = number
            entry.places.append(("out", *found))
        self.entries.append(entry)

    def _add(self, array: NDArray[Any], number: int) -> None:
        """Know all the memory that an array is a part of."""
        base = array
        while isinstance(base.base, np.ndarray):
            base = base.base
        self._know(base, number)

    def _know(self, base: NDArray[Any], number: int) -> None:
        start, stop = _extent(base)
        i = bisect_right(self._starts, start)
        self._starts.insert(i, start)
        self._buffers.insert(i, Buffer(base, start, stop, number, number))

    def _find(self, array: NDArray[Any]) -> tuple[Buffer, int] | None:
        """The memory that an array stands in, and how far behind its beginning the first element is."""
        low, high = _extent(array)
        i = bisect_right(self._starts, low) - 1
        if i < 0 or high > self._buffers[i].stop:
            return None
        return self._buffers[i], address_of(array) - self._buffers[i].start

    def result(self, y: NDArray[Any]) -> Buffer | None:
        """Where the result of all stands; None, and refused, where no step wrote it as a whole."""
        found = self._find(y)
        if found is None or found[1] or not y.flags.c_contiguous or y.nbytes != found[0].stop - found[0].start:
            self.refuse("the result is what no step has written")
            return None
        return found[0]


def _rows_at(x: Float32) -> RowsAt:
    """Where rows of ``(1, heads, T, dim)`` stand."""
    return RowsAt(address_of(x), *x.strides[1:3])


def _extent(array: NDArray[Any]) -> tuple[int, int]:
    """The first address, and the one behind the last."""
    low = high = address_of(array)
    if not array.size:
        return low, low
    for size, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (size - 1) * stride
        else:
            high += (size - 1) * stride
    return low, high + array.itemsize


@contextmanager
def recording(x: Float32, beside: Float32 | None = None) -> Iterator[Recorder]:
    """Record what this thread computes of `x`, and of something beside it, within a ``with`` block."""
    recorder = Recorder(x, beside)
    token = RECORDER.set(recorder)
    try:
        yield recorder
    finally:
        RECORDER.reset(token)
