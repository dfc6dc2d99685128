"""Work in threads for clients that wait in the event loop: a few at a time, some more in a queue, others not."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from npumatmul.errors import DeviceLostError
from npumatmul.server.errors import ApiError
from npumatmul.server.settings import Settings

__all__ = ["Desk", "Gone", "Job"]


class Gone(Exception):
    """Nobody wants the result any more."""


class Job:
    """Something that is computed in a thread; what it gives is iterated over in the event loop.

    An asynchronous context: entering waits for a place, leaving ends the work.
    """

    def __init__(self, desk: Desk, work: Callable[[Job], None]) -> None:
        self._desk, self._work = desk, work
        self._items: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._gone = threading.Event()
        self._cancel: Callable[[], None] = lambda: None

    def give(self, item: object) -> None:
        """Hand something over, in the thread."""
        self.check()
        self._call(self._items.put_nowait, ("item", item))

    def check(self, *_: object) -> None:
        """Raise `Gone` if nobody waits any more, in the thread."""
        if self._gone.is_set():
            raise Gone

    def cancelled_by(self, cancel: Callable[[], None]) -> None:
        """Say what ends the work, in the thread."""
        self._cancel = cancel
        self.check()

    def cancel(self) -> None:
        """End the work, from wherever."""
        self._gone.set()
        self._cancel()

    async def __aenter__(self) -> Job:
        await self._desk.enter()
        try:
            self._desk.submit(self)
        except BaseException:
            self._desk.leave(None)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    def __aiter__(self) -> Job:
        return self

    async def __anext__(self) -> Any:
        kind, value = await self._items.get()
        if kind == "item":
            return value
        if value is not None:
            raise value
        raise StopAsyncIteration

    def run(self) -> None:
        """Do the work; the thread's function."""
        began = time.monotonic()
        failed: BaseException | None = None
        try:
            self.check()
            self._work(self)
        except BaseException as error:
            failed = error
        self._cancel = lambda: None
        self._call(self._end, failed, time.monotonic() - began)

    def _end(self, failed: BaseException | None, seconds: float) -> None:
        self._desk.jobs.discard(self)
        if isinstance(failed, ApiError) and isinstance(failed.__cause__, DeviceLostError):
            self._desk.lost = failed.message
        if isinstance(failed, Gone):
            failed = ApiError(503, "the server is ending", code="unavailable")  # clients that are gone read nothing
        self._items.put_nowait(("end", failed))
        self._desk.leave(seconds)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left
            self._loop.call_soon_threadsafe(function, *arguments)


class Desk:
    """Gives places to jobs.

    Parameters
    ----------
    settings : Settings
        How many work and wait.

    Attributes
    ----------
    jobs : set of Job
        Those at work.
    waiting : int
        How many wait for a place.
    lost : str or None
        What was said when a device was lost.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.parallel, "npumatmul-server")
        self._places = asyncio.Semaphore(settings.parallel)
        self._seconds = 1.0
        self.jobs: set[Job] = set()
        self.waiting = 0
        self.lost: str | None = None

    def job(self, work: Callable[[Job], None]) -> Job:
        return Job(self, work)

    async def enter(self) -> None:
        if self._places.locked() and self.waiting >= self._settings.queue:
            raise ApiError(
                503,
                f"{self.waiting} requests are waiting already: come again later",
                code="overloaded",
                retry_after=max(1, math.ceil(self._seconds * (self.waiting + 1) / self._settings.parallel)),
            )
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1

    def submit(self, job: Job) -> None:
        self.jobs.add(job)
        try:
            self._threads.submit(job.run)
        except BaseException:
            self.jobs.discard(job)
            raise

    def leave(self, seconds: float | None) -> None:
        """Give a place back; the time is for what others are told."""
        if seconds is not None:
            self._seconds += 0.2 * (seconds - self._seconds)
        self._places.release()

    def close(self) -> None:
        """End all work, and wait until the threads are gone."""
        for job in list(self.jobs):
            job.cancel()
        self._threads.shutdown(wait=True, cancel_futures=True)
