"""`Batch`: rows that are added one by one and computed in one call."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import Any

from numpy.typing import DTypeLike

from npumatmul.batching.gathering import Gatherer, ItemFuture, QueueStats
from npumatmul.batching.pool import Pool
from npumatmul.batching.rows import Form
from npumatmul.batching.work import Rows, Work, check_count, part_of
from npumatmul.errors import BusyError, ClosedError
from npumatmul.files.uncopied import Uncopied
from npumatmul.ops.background import BackgroundFuture

__all__ = ["Batch", "BatchResults"]


class BatchResults(Mapping[int, Any]):
    """Results of the rows of a batch, by their index; made by `Batch.run`.

    Attributes
    ----------
    whole : object
        What the one call gave: a result for each row that was added, in the order of their indices.
    """

    def __init__(self, whole: Any, indices: tuple[int, ...]) -> None:
        self.whole = whole
        self._positions = {index: position for position, index in enumerate(indices)}

    def __getitem__(self, index: int) -> Any:
        if index not in self._positions:
            raise KeyError(f"no row was added at index {index}; there are results of {sorted(self._positions)}")
        return part_of(self.whole, self._positions[index])

    def __iter__(self) -> Iterator[int]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __repr__(self) -> str:
        return f"BatchResults of {len(self)} rows"


class Batch(Uncopied):
    """Rows that are added one by one, or handed over by several threads, and computed in one call.

    A row of a product costs nearly as much alone as with fifteen others, since the weight is read once for all of them.
    A batch is either filled (`add`, `add_at`, `run`, `clear`), or it gathers what comes (`submit`): then a call is made
    as soon as `size` rows wait, or the oldest has waited `max_wait` seconds.

    Parameters
    ----------
    work : PackedWeight, Matmul, Pool, module, session, estimator or callable
        What computes rows on a leading axis. A `Matmul` gets an array of the batch's own as left operand and has `size`
        rows. Sessions of ONNX Runtime are run, estimators predict, modules of PyTorch get tensors and their results
        become arrays. With a `Pool`, as many calls are made at once as it has members.
    size : int
        Rows of a call at most.
    shape : tuple of int, optional
        Of a row; by default what `work` takes, or else that of the first row.
    dtype : data-type, optional
        Of rows; the same. Other dtypes are cast where nothing is lost but precision.
    max_wait : float, optional
        Seconds that a row may wait for others, for `submit`; 0: calls are made of whatever waits.
    limit : int, optional
        Rows that may wait; `submit` refuses further ones.
    listed : bool, optional
        Rows may be anything, such as texts, and `work` is called with a list of them.
    check : callable, optional
        Is given each row when it is added, and raises where it is unfit.

    Attributes
    ----------
    size : int
    max_wait : float or None

    Raises
    ------
    TypeError
        If `work` computes no rows, or an argument is of another kind.
    ValueError
        If `size` or `limit` is below 1, `max_wait` negative, or a Matmul has another number of rows.

    Notes
    -----
    Any thread may use it. A row is copied, and looked at when it is added: one of another shape, with values that the
    dtype cannot hold, or not finite where it may be quantized, is refused there and spoils no other one. Should a call
    fail all the same because of values (`ValueError`, `TypeError` and the like), halves of it are computed again until
    the error belongs to single rows; what fails because of the device is told to the rows of that call alone.

    `close`, the end of a ``with`` block and the end of the program compute what still waits. Calls are made with the
    settings (`config`, `use_device`) of the scope in which the batch was made.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> w = npu.pack(np.eye(64, dtype=np.float32))
    >>> batch = npu.Batch(w, 16)
    >>> batch.add(np.full(64, 2)), batch.add(np.full(64, 3))
    (0, 1)
    >>> batch[7] = np.full(64, 4)
    >>> results = batch.run()
    >>> list(results), results[1][:2], results.whole.shape
    ([0, 1, 7], array([3., 3.], dtype=float32), (3, 64))

    >>> with npu.Batch(w, 16, max_wait=0.005) as gathering:
    ...     futures = [gathering.submit(np.full(64, i)) for i in range(3)]
    ...     [future.result()[0].item() for future in futures]
    [0.0, 1.0, 2.0]
    """

    def __init__(
        self,
        work: Any,
        size: int,
        *,
        shape: tuple[int, ...] | int | None = None,
        dtype: DTypeLike | None = None,
        max_wait: float | None = None,
        limit: int | None = None,
        listed: bool = False,
        check: Callable[[Any], object] | None = None,
        _clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.size = _count("size", size)
        if max_wait is not None and not float(max_wait) >= 0:
            raise ValueError(f"Batch: max_wait is {max_wait}; it is a number of seconds")
        self.max_wait = None if max_wait is None else float(max_wait)
        if limit is not None and max_wait is None:
            raise TypeError("Batch: limit is for rows that wait, and needs max_wait")
        chosen = _by_members(work) if isinstance(work, Pool) else Work.of(work, "Batch")
        if chosen.place is not None and len(chosen.place) != size:
            raise ValueError(f"Batch: {chosen.name} has {len(chosen.place)} rows; size has to be the same, not {size}")
        self._runs = _Runs(chosen, Form(chosen, "Batch", shape, dtype, listed, check))
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._rows: dict[int, Any] = {}
        self._running = self._closed = False
        self._gatherer: Gatherer | None = None
        if self.max_wait is not None:
            self._gatherer = Gatherer(
                self._runs.in_context, f"Batch of {chosen.name}", self.size, self.max_wait,
                None if limit is None else _count("limit", limit), **_by(work), clock=_clock,
            )  # fmt: skip

    def __repr__(self) -> str:
        how = f"{len(self)} of {self.size} rows" if self._gatherer is None else f"size={self.size}, {self.max_wait} s"
        return f"Batch({self._runs.work.name}, {how}{', closed' if self._closed else ''})"

    # ---- filling ---------------------------------------------------------------------------------------------------

    def add(self, row: Any) -> int:
        """Add a row behind the others; its index.

        Raises
        ------
        IndexError
            If the batch is full.
        TypeError, ValueError, NotFiniteError
            If the row is unfit; the batch is as it was.
        BusyError
            If this is called by what the batch is just computing.
        """
        with self._filling():
            index = max(self._rows, default=-1) + 1
            if index >= self.size:
                raise IndexError(f"Batch: it is full, with rows up to index {index - 1}; run and clear it")
            self._rows[index] = self._runs.form.fitted(row)
            return index

    def add_at(self, index: int, row: Any) -> None:
        """Add a row at an index, in place of one that is there; the same as ``batch[index] = row``.

        Raises
        ------
        IndexError
            If there is no such index.
        TypeError, ValueError, NotFiniteError, BusyError
            As `add`.
        """
        with self._filling():
            if not 0 <= index < self.size:
                raise IndexError(f"Batch: there is no index {index}; rows are at 0 to {self.size - 1}")
            self._rows[index] = self._runs.form.fitted(row)

    __setitem__ = add_at

    def __len__(self) -> int:
        """How many rows were added, or wait."""
        return len(self._rows) if self._gatherer is None else self._gatherer.waiting

    def __bool__(self) -> bool:
        return True

    def run(self) -> BatchResults:
        """Compute all rows that were added, in one call.

        They stay until `clear`: the same batch may be run again, with other rows at some indices.

        Returns
        -------
        BatchResults
            By index. Without rows there are none, and nothing is called.

        Raises
        ------
        ValueError
            If what was called gives no result for each row.
        Exception
            Whatever `work` raises; the rows stay.
        """
        with self._filling():
            indices = tuple(sorted(self._rows))
            if not indices:
                return BatchResults((), ())
            try:
                self._running = True
                return BatchResults(self._runs.whole([self._rows[index] for index in indices]), indices)
            finally:
                self._running = False

    def clear(self) -> None:
        """Forget all rows; those that wait for being gathered stay."""
        with self._filling(gathers=True):
            self._rows.clear()

    def _filling(self, *, gathers: bool = False) -> AbstractContextManager[object]:
        """The lock, where rows may be added now."""
        if os.getpid() != self._pid:
            raise ClosedError(f"this Batch was made by process {self._pid} and cannot be used after a fork")
        if self._gatherer is not None and not gathers:
            raise TypeError("Batch: with max_wait rows are handed over by submit; without it they are added and run")
        if self._closed:
            raise ClosedError("this Batch is closed; make another one")
        with self._lock:
            if self._running:
                raise BusyError("Batch: it is being computed by this thread; add rows when that is done")
        return self._lock

    # ---- gathering -------------------------------------------------------------------------------------------------

    def submit(self, row: Any) -> BackgroundFuture[Any]:
        """Hand a row over, to be computed with others.

        Returns
        -------
        Future
            A `concurrent.futures.Future` of the row's result, which can also be awaited. One that is cancelled before
            its call has begun is not computed.

        Raises
        ------
        TypeError
            If the batch was made without `max_wait`.
        TypeError, ValueError, NotFiniteError
            If the row is unfit.
        BusyError
            If `limit` rows wait already.
        ClosedError
            If the batch is closed, or belongs to the parent of a forked process.
        """
        gatherer = self._gatherer
        if gatherer is None:
            raise TypeError("Batch: submit needs max_wait, the seconds that a row may wait for others")
        gatherer.check_process()
        if self._runs.form.known:
            return gatherer.submit(self._runs.form.fitted(row))
        with self._lock:  # the first row says what all others are
            row = self._runs.form.fitted(row)
        return gatherer.submit(row)

    @property
    def stats(self) -> QueueStats:
        """How many rows were computed since it was made, in how many calls, and how many failed or were refused."""
        return self._runs.stats if self._gatherer is None else self._gatherer.stats

    def close(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take no rows any more, and wait until those that were handed over are computed.

        Parameters
        ----------
        cancel : bool
            Cancel those whose call has not begun, instead of computing them.
        timeout : float, optional
            Seconds to wait at most.

        Returns
        -------
        bool
            Whether all is done.
        """
        self._closed = True
        self._rows.clear()
        return self._gatherer is None or self._gatherer.close(cancel=cancel, timeout=timeout)

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        gatherer: Gatherer | None = getattr(self, "_gatherer", None)
        if gatherer is not None:
            gatherer.close(wait=False)  # its threads compute what waits, and end


class _Runs:
    """Calls of the work; threads hold it, and nothing of the batch."""

    def __init__(self, work: Work, form: Form) -> None:
        self.work, self.form = work, form
        self.stats = QueueStats()
        self._context = copy_context()

    def whole(self, rows: list[Any]) -> Rows:
        """What one call gives for fitted rows."""
        self.stats.calls += 1
        given = self.form.stack(rows)
        try:
            result = self.work.call(given)
            place = self.work.place
            check_count(result, len(rows) if place is None else len(place), self.work.name)
        except BaseException:
            self.stats.failed += len(rows)
            raise
        self.stats.items += len(rows)
        return result

    def in_context(self, rows: list[Any]) -> list[Any]:
        """A result for each row, computed in the scope in which the batch was made."""
        result = self._context.copy().run(self.whole, rows)
        return [part_of(result, position) for position in range(len(rows))]


def _by_members(pool: Pool) -> Work:
    """The work of a pool, as its members do it."""
    members = pool._members

    def call(rows: Rows) -> Any:
        own = members.held_here()
        if own is not None:
            return own(rows)
        with members.get() as member:
            return member(rows)

    return pool.work.with_call(call)


def _by(work: Any) -> dict[str, Any]:
    """How a gatherer makes calls: of a pool several at once, whose rows are taken when there is a member for them."""
    if not isinstance(work, Pool):
        return {"before_waiting": _refuse_to_wait}
    members = work._members

    def help_members(gatherer: Gatherer, future: ItemFuture) -> None:
        if members.held_here() is not None:
            gatherer.compute_here(future)

    return {"parallel": work.size, "around": members.serving, "before_waiting": help_members}


def _refuse_to_wait(gatherer: Gatherer, _: ItemFuture) -> None:
    if gatherer.is_worker():
        raise BusyError("Batch: what computes rows waits for another row of the same batch, which might never come")


def _count(name: str, given: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"Batch: {name} is {given!r}; it is a number of rows")
    if given < 1:
        raise ValueError(f"Batch: {name} is {given}; it is at least 1")
    return given
