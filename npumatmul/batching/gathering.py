"""Items that threads hand over one by one, and a few threads that compute as many at once as have come together."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import InvalidStateError
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from npumatmul.device.living import Living
from npumatmul.errors import BusyError, ClosedError, NotFiniteError, NpuError
from npumatmul.ops.background import BackgroundFuture

__all__ = ["Gatherer", "ItemFuture", "QueueStats"]


class ItemFuture(BackgroundFuture[Any]):
    """The result of an item; whoever waits for it may be told that it would never come."""

    def __init__(self, before_waiting: Callable[[ItemFuture], None]) -> None:
        super().__init__()
        self._before_waiting = before_waiting

    def result(self, timeout: float | None = None) -> Any:
        """Wait for it; see `concurrent.futures.Future.result`."""
        self._look_ahead()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for its exception, if there is one; see `concurrent.futures.Future.exception`."""
        self._look_ahead()
        return super().exception(timeout)

    def _look_ahead(self) -> None:
        self._check_process()
        if not self.done():
            self._before_waiting(self)


@dataclass
class _Item:
    value: Any
    future: ItemFuture
    arrived: float


@dataclass
class QueueStats:
    """What a `Batch` or a `Pool` has computed since it was made.

    Attributes
    ----------
    items, calls : int
        Items that were computed, and in how many calls.
    failed : int
        Items that got an exception.
    refused : int
        Items that were not taken, because too many were waiting.
    """

    items: int = 0
    calls: int = 0
    failed: int = 0
    refused: int = 0


class Gatherer:
    """Gathers items until they fill a call, or the oldest has waited as long as it may.

    Parameters
    ----------
    compute : callable
        From a list of items to one result for each. It refers to nothing that has to be dropped before this ends.
    name : str
        What messages and threads are called.
    size : int
        Items of a call at most.
    max_wait : float
        Seconds that an item may wait for others.
    limit : int, optional
        Items that may wait; further ones are refused.
    parallel : int
        How many calls may be made at once, each in a thread.
    around : callable
        Makes a context manager within which a call is made; items of the call are taken once it is entered.
    before_waiting : callable, optional
        Is called with this and a future that somebody is going to wait for.
    clock : callable
        Seconds that have passed.
    """

    def __init__(
        self,
        compute: Callable[[list[Any]], Sequence[Any]],
        name: str,
        size: int,
        max_wait: float,
        limit: int | None = None,
        parallel: int = 1,
        around: Callable[[], AbstractContextManager[object]] = nullcontext,
        before_waiting: Callable[[Gatherer, ItemFuture], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._compute, self._name, self._clock = compute, name, clock
        self._size, self._max_wait, self._limit = size, max_wait, limit
        self._around, self._before_waiting = around, before_waiting
        self._pid = os.getpid()
        #: Reentrant: a signal's handler, or a garbage collector, may come back here.
        self._changed = threading.Condition(threading.RLock())
        self._waiting: deque[_Item] = deque()
        self._threads: list[threading.Thread | None] = [None] * parallel
        self._closed = False
        self.stats = QueueStats()
        _gatherers.add(self)

    # ---- those who hand over ---------------------------------------------------------------------------------------

    def submit(self, value: Any) -> ItemFuture:
        """Hand an item over.

        Raises
        ------
        ClosedError
            If nothing is taken any more.
        BusyError
            If as many wait already as may.
        """
        self.check_process()
        future = ItemFuture(self._look_ahead)
        with self._changed:
            if self._closed:
                raise ClosedError(f"{self._name} is closed; make another one")
            if self._limit is not None and len(self._waiting) >= self._limit:
                self._drop_cancelled()
                if len(self._waiting) >= self._limit:
                    self.stats.refused += 1
                    raise BusyError(
                        f"{self._name}: {len(self._waiting)} are waiting already, which is the limit; come again later"
                    )
            self._start()
            self._waiting.append(_Item(value, future, self._clock()))
            if len(self._waiting) in (1, self._size) or self._max_wait == 0:
                self._changed.notify()
        return future

    def compute_here(self, future: ItemFuture) -> None:
        """Compute an item in this thread, unless somebody began with it."""
        with self._changed:
            found = next((item for item in self._waiting if item.future is future), None)
            if found is None or not future.set_running_or_notify_cancel():
                return
            self._waiting = deque(item for item in self._waiting if item is not found)
        self._answer([found])

    def is_worker(self) -> bool:
        """Whether this thread is one of those that compute."""
        return threading.current_thread() in self._threads

    def wake(self) -> None:
        """Have the threads look at the clock."""
        with self._changed:
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many items wait."""
        self.check_process()
        with self._changed:
            self._drop_cancelled()
            return len(self._waiting)

    def close(self, *, wait: bool = True, cancel: bool = False, timeout: float | None = None) -> bool:
        """Take nothing any more. What waits is computed at once, or cancelled; whether all that is done.

        Parameters
        ----------
        wait : bool
            Until it is; not in a thread that computes, which would wait for itself.
        cancel : bool
        timeout : float, optional
            Seconds to wait at most.
        """
        if os.getpid() != self._pid:
            return True
        with self._changed:
            self._closed = True
            dropped: list[_Item] = list(self._waiting) if cancel else []
            if cancel:
                self._waiting.clear()
            self._changed.notify_all()
        for item in dropped:  # whoever is told of it may come back here
            item.future.cancel()
            item.future.set_running_or_notify_cancel()
        ends = None if timeout is None else time.monotonic() + timeout
        threads = [each for each in self._threads if each is not None and each is not threading.current_thread()]
        if wait and not self.is_worker():
            for thread in threads:
                thread.join(None if ends is None else max(0.0, ends - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def check_process(self) -> None:
        """Raise `ClosedError` in a forked child."""
        if os.getpid() != self._pid:
            raise ClosedError(f"{self._name} was made by process {self._pid}, whose threads do not exist after a fork")

    def _look_ahead(self, future: ItemFuture) -> None:
        if self._before_waiting is not None:
            self._before_waiting(self, future)

    def _start(self) -> None:
        for index, thread in enumerate(self._threads):
            if thread is None or not thread.is_alive():  # an interrupt may have come when it was to start
                name = f"npumatmul {self._name}"
                made = threading.Thread(target=self._serve, name=name, daemon=True)
                self._threads[index] = made
                made.start()

    def _drop_cancelled(self) -> None:
        """Forget items that nobody wants; the lock is held."""
        if any(item.future.cancelled() for item in self._waiting):
            kept = deque(item for item in self._waiting if not item.future.cancelled())
            gone, self._waiting = [item for item in self._waiting if item.future.cancelled()], kept
            for item in gone:
                item.future.set_running_or_notify_cancel()

    # ---- those who compute -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        while self._wait():
            with self._around():  # while this waits, others may still take what waits
                items = self._take()
                if items:
                    self._answer(items)
                del items  # it keeps nothing alive while it waits

    def _wait(self) -> bool:
        """Wait until it is time for a call; False at the end."""
        with self._changed:
            while True:
                self._drop_cancelled()
                left = self._time_left()
                if left is not None and left <= 0:
                    return True
                if left is None and self._closed:
                    return False
                self._changed.wait(left)

    def _time_left(self) -> float | None:
        """Seconds until it is time for a call; None where nothing waits. The lock is held."""
        if not self._waiting:
            return None
        if self._closed or len(self._waiting) >= self._size:
            return 0.0
        return self._waiting[0].arrived + self._max_wait - self._clock()

    def _take(self) -> list[_Item]:
        """The items of a call, if it is time for one: somebody else may have been faster."""
        with self._changed:
            self._drop_cancelled()
            left = self._time_left()
            if left is None or left > 0:
                return []
            taken = [self._waiting.popleft() for _ in range(min(self._size, len(self._waiting)))]
            if self._waiting:  # somebody else is to look when it is time for those
                self._changed.notify()
            return [item for item in taken if item.future.set_running_or_notify_cancel()]

    def _answer(self, items: Sequence[_Item]) -> None:
        """Compute items; where some of them are at fault it is they who are told, and the others are computed."""
        self._count(calls=1)
        try:
            results = self._compute([item.value for item in items])
        except BaseException as error:  # whatever it is, it belongs to those who wait
            if len(items) > 1 and _is_about_values(error):
                half = len(items) // 2
                self._answer(items[:half])
                self._answer(items[half:])
                return
            self._count(failed=len(items))
            for item in items:
                with suppress(InvalidStateError):
                    item.future.set_exception(error)
            return
        self._count(items=len(items))
        for item, result in zip(items, results, strict=True):
            with suppress(InvalidStateError):
                item.future.set_result(result)

    def _count(self, **counts: int) -> None:
        with self._changed:
            for name, count in counts.items():
                setattr(self.stats, name, getattr(self.stats, name) + count)


def _is_about_values(error: BaseException) -> bool:
    """Whether single items may be the reason of an error, and not the device or all of them."""
    values = ValueError, TypeError, ArithmeticError, LookupError
    return isinstance(error, NotFiniteError) or (isinstance(error, values) and not isinstance(error, NpuError))


_gatherers: Living[Gatherer] = Living()


@atexit.register
def _finish() -> None:
    """What was handed over is computed before the program ends, as by the pools of the standard library."""
    for gatherer in _gatherers:
        gatherer.close()
