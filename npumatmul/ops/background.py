"""Products computed in the background: one worker thread per device, and futures that can be awaited."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from npumatmul.device.device import Device
from npumatmul.device.living import Living
from npumatmul.errors import ClosedError

__all__ = ["BackgroundFuture", "MatmulFuture", "Result", "submit"]

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import TypeVar as _WithDefault  # of Python 3.13, but type checkers have it everywhere

    Result = _WithDefault("Result", default=NDArray[Any])
else:
    Result = TypeVar("Result")


class BackgroundFuture(Future[Result]):
    """A `concurrent.futures.Future` which can also be awaited, and says so where its process is another one."""

    def __init__(self) -> None:
        super().__init__()
        self._pid = os.getpid()

    def __await__(self) -> Generator[Any, None, Result]:
        return asyncio.wrap_future(self).__await__()

    def cancel(self) -> bool:
        """Cancel it unless it has begun; see `concurrent.futures.Future.cancel`."""
        self._check_process()
        return super().cancel()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for what it gives; see `concurrent.futures.Future.result`."""
        self._check_process()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for its exception, if there is one; see `concurrent.futures.Future.exception`."""
        self._check_process()
        return super().exception(timeout)

    def _check_process(self) -> None:
        """The thread of the parent does not exist in a forked child, where waiting for it would never end."""
        if os.getpid() != self._pid:
            raise ClosedError(
                f"this was submitted by process {self._pid} and cannot be waited for after a fork; "
                "open a Device in the child and submit it there"
            )


class MatmulFuture(BackgroundFuture[Result]):
    """The result of a product that is computed in the background.

    A `concurrent.futures.Future` which can also be awaited. Made by `Matmul.submit` and `matmul_async`.

    `cancel` succeeds as long as the product has not begun: then nothing is computed and `out` stays as it is. One that
    has begun is completed. Awaiting a task that is cancelled does the same. Products that have not begun when their
    device is closed are cancelled.

    Examples
    --------
    >>> import asyncio
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> async def both(x, w):
    ...     return await asyncio.gather(npu.matmul_async(x, w), npu.matmul_async(w, x))
    >>> a = np.array([[1, 2], [3, 4]], np.int8)
    >>> [result.tolist() for result in asyncio.run(both(a, a.T))]
    [[[5, 11], [11, 25]], [[10, 14], [14, 20]]]
    """

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__()
        self._call: Callable[[], Any] | None = call
        self._context = copy_context()

    def cancel(self) -> bool:
        """Cancel it unless it has begun; see `concurrent.futures.Future.cancel`."""
        cancelled = super().cancel()
        if cancelled:
            self._call = None  # its operands need not wait for the worker
        return cancelled

    def compute(self) -> None:
        """Compute the product, in the context of who submitted it; what the worker does."""
        if not self.set_running_or_notify_cancel():
            return
        call, self._call = self._call, None
        assert call is not None
        try:
            result = self._context.run(call)
        except BaseException as error:  # whatever it is, it belongs to who waits
            self.set_exception(error)
        else:
            self.set_result(result)

    def give_up(self) -> None:
        """Cancel it, since the worker will not get to it."""
        if super().cancel():
            self._call = None
            self.set_running_or_notify_cancel()


class _Worker:
    """The thread that computes a device's products in the background, one after the other; it starts with the first."""

    def __init__(self, device: Device) -> None:
        self._device = device.name
        self._pid = os.getpid()
        self._lock = threading.RLock()  # nothing is submitted behind what ends the thread
        self._inbox: SimpleQueue[MatmulFuture[Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        _workers.add(self)

    def __del__(self) -> None:
        self._inbox.put(None)

    def submit(self, future: MatmulFuture[Any]) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError(f"the device {self._device} is closed; open another Device")
            if self._thread is None or not self._thread.is_alive():  # an interrupt may have come when it was to start
                name = f"npumatmul {self._device}"
                self._thread = threading.Thread(target=_serve, args=(self._inbox,), name=name, daemon=True)
                self._thread.start()
            self._inbox.put(future)

    def close(self) -> None:
        """End the thread after the product that it is at; the others are cancelled."""
        with self._lock:
            self._closed = True
        with suppress(Empty):
            while True:
                future = self._inbox.get_nowait()
                if future is not None:
                    future.give_up()
        self._inbox.put(None)

    def finish(self) -> None:
        """Compute what was submitted, then end the thread; an interrupt ends the waiting."""
        if os.getpid() == self._pid and self._thread is not None:
            self._inbox.put(None)
            self._thread.join()


def _serve(inbox: SimpleQueue[MatmulFuture[Any] | None]) -> None:
    """The worker's thread: it keeps nothing alive while it waits."""
    while (future := inbox.get()) is not None:
        future.compute()
        del future


_workers: Living[_Worker] = Living()


@atexit.register
def _finish() -> None:
    """What was submitted is computed before the program ends, as by the pools of the standard library."""
    for worker in _workers:
        worker.finish()


def submit(device: Device, call: Callable[[], Any]) -> MatmulFuture[Any]:
    """Have the worker of a device make a call.

    Raises
    ------
    ClosedError
        If the device is closed.
    """
    future = MatmulFuture(call)
    device.attached(_Worker, _Worker).submit(future)
    return future
