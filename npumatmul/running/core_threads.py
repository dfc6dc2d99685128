"""Work for several NPU cores: that of the first one in the caller's thread, of each other one in a thread of its own.

An interrupt may come between any two calls of the caller. When `CoreThreads.run` has returned or raised, no work is
going on nor will begin: then what it works with can be given back. The pools of the standard library do not promise
that, since an interrupt may come between a task and the future that stands for it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from npumatmul.device.device import Device
from npumatmul.device.leases import Lease

__all__ = ["CoreThreads"]

Work = Callable[[], None]


class CoreThreads:
    """Threads for a device's further cores, for one call at a time.

    Attributes
    ----------
    lease : weakref to Lease, or None
        Whose they are.
    """

    def __init__(self, device: Device) -> None:
        self.lease: weakref.ref[Lease] | None = None
        self._inboxes: list[SimpleQueue[_Share | None]] = []
        self._threads: list[threading.Thread] = []
        for core in range(1, device.chip.cores):
            self._inboxes.append(SimpleQueue())
            name = f"{device.name}-core-{core}"
            self._threads.append(threading.Thread(target=_serve, args=self._inboxes[-1:], name=name, daemon=True))
            self._threads[-1].start()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)

    def close(self) -> None:
        """End them."""
        self._end()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join()

    def run(self, work: Sequence[Sequence[Work]]) -> None:
        """Do the work of each core; return when all of it is done.

        Parameters
        ----------
        work : sequence of sequence of callable
            By core, at least one and no more than the device has; that of a core in this order.

        Raises
        ------
        BaseException
            The first that was raised in this thread, or else in one of the others. What had begun is finished, what
            had not is left undone.
        """
        own, *others = work
        shares = [_Share(each) for each in others]
        unfinished = list(shares)
        interrupt: KeyboardInterrupt | None = None
        complete = False
        try:
            for inbox, share in zip(self._inboxes, shares, strict=False):
                inbox.put(share)
            for each in own:
                each()
            complete = True
        finally:
            while unfinished:
                try:
                    while unfinished:
                        if complete or not unfinished[-1].take(by_caller=True):
                            unfinished[-1].wait()
                        del unfinished[-1]
                except KeyboardInterrupt as error:
                    interrupt, complete = error, False
            if interrupt is not None:
                raise interrupt
        for share in shares:
            share.raise_error()


class _Share:
    """The work of one core, which is done or withdrawn: by whoever takes it first."""

    def __init__(self, work: Sequence[Work]) -> None:
        self._work = work
        self._taken: dict[str, bool] = {}
        self._finished = False
        self._ended = threading.Lock()
        self._ended.acquire()
        self._error: BaseException | None = None

    def take(self, by_caller: bool) -> bool:
        """Whether it is taken by this side, now or before: one operation that may be repeated."""
        return self._taken.setdefault("by_caller", by_caller) is by_caller

    def do(self) -> None:
        """In the core's thread: do it, unless it was withdrawn."""
        if not self.take(by_caller=False):
            return
        try:
            for each in self._work:
                each()
        except BaseException as error:  # the caller raises it
            self._error = error
        finally:
            self._finished = True
            self._ended.release()

    def wait(self) -> None:
        """Wait until the core's thread has done it."""
        while not self._finished:  # not the lock alone: an interrupt may come between taking it and returning
            self._ended.acquire(timeout=1)

    def raise_error(self) -> None:
        """Raise what its work raised."""
        error, self._error = self._error, None  # its traceback refers to this share
        if error is not None:
            try:
                raise error
            finally:
                del error


def _serve(inbox: SimpleQueue[_Share | None]) -> None:
    """A core's thread: it keeps nothing alive while it waits."""
    while (share := inbox.get()) is not None:
        share.do()
        del share
