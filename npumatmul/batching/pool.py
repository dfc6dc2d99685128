"""`Pool`: several members that compute the same work at once, each on NPU cores of its own."""

from __future__ import annotations

import operator
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextvars import Context, copy_context
from typing import Any, Literal

from npumatmul.batching.gathering import Gatherer, ItemFuture, QueueStats
from npumatmul.batching.members import Members, PoolMember
from npumatmul.batching.work import Work
from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.files.uncopied import Uncopied
from npumatmul.ops.background import BackgroundFuture

__all__ = ["Pool"]

_Job = tuple[tuple[Any, ...], dict[str, Any], Context]


class Pool(Uncopied):
    """Several members that compute the same work at once, each on NPU cores of its own.

    They share one packed weight, or all those of one module or session, which is in NPU memory once. What each has of
    its own are contexts and buffers, which are made when they are needed, and given up when others need the room.

    Parameters
    ----------
    work : PackedWeight, module, session, estimator or callable
        What members compute; several threads may call it at once. What else its calls are given goes to a function as
        it is.
    size : int, optional
        How many members; by default one for each of `cores`, or for each core of the device or of the weight.
    cores : sequence of int or of tuples of int, or "any", optional
        The cores of each member, in turns where there are more members. By default each has one core, so that products
        of different members do not wait for each other; ``"any"``: products run on the cores that are modelled best.
    limit : int, optional
        Jobs that may wait; `submit` refuses further ones.
    device : Device or str, optional
        Whose cores they are, where `work` does not say it; the current one by default.

    Attributes
    ----------
    size : int

    Raises
    ------
    TypeError
        If `work` cannot be called, or not by several threads (a `Matmul`, which multiplies what stands in its operand).
    ValueError
        If there are no members, or no such cores.

    Notes
    -----
    Any thread may use it. A run of the NPU that fails is repeated once, with contexts that are made anew; if it fails
    again the error goes to who asked for it, and others notice nothing.

    Who holds a member and waits for a job computes it on that member, and jobs of jobs are computed where they are
    submitted: a pool does not wait for itself. Who waits in `get` for members that are never put back waits for ever
    without a `timeout`.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> w = npu.pack(np.eye(64, dtype=np.float32), device="sim:rk3588")
    >>> with npu.Pool(w) as pool:
    ...     results = list(pool.map([np.full((1, 64), i, np.float32) for i in range(4)]))
    ...     future = pool.submit(np.full((1, 64), 9, np.float32))
    ...     pool.size, [result[0, 0].item() for result in results], future.result()[0, 0].item()
    (3, [0.0, 1.0, 2.0, 3.0], 9.0)
    """

    def __init__(
        self,
        work: Any,
        size: int | None = None,
        *,
        cores: Sequence[int | Sequence[int]] | Literal["any"] | None = None,
        limit: int | None = None,
        device: Device | str | None = None,
    ) -> None:
        self.work = Work.of(work, "Pool")
        if not self.work.shared:
            raise TypeError(
                f"Pool: {self.work.name} multiplies what stands in its own left operand, for one thread at a time; "
                "give the PackedWeight, or give a Batch the Matmul"
            )
        chosen = _cores(cores, self.work.device if device is None else device, self.work.cores)
        self.size = len(chosen) if size is None else _count("size", size)
        given = [chosen[number % len(chosen)] for number in range(self.size)]
        self._members = Members(self.work.call, f"Pool of {self.work.name}", given)
        self._jobs = jobs = _Jobs(self._members)
        self._gatherer = Gatherer(
            jobs.compute, self._members.name, 1, 0.0, None if limit is None else _count("limit", limit), self.size,
            self._members.serving, jobs.help,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Pool({self.work.name}, size={self.size}{', closed' if self._members.closed else ''})"

    # ---- members ---------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> int:
        """How many members nobody has."""
        return self._members.idle

    def get(self, timeout: float | None = None) -> PoolMember:
        """Get a member that nobody else has, until it is put back.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for one at most.

        Returns
        -------
        PoolMember

        Raises
        ------
        TimeoutError
            If none came back in time.
        ClosedError
            If the pool is closed, also while this waits, or belongs to the parent of a forked process.
        """
        return self._members.served() or self._members.get(timeout)

    def put(self, member: PoolMember) -> None:
        """Put a member back.

        Raises
        ------
        ValueError
            If it is another pool's, or was put back already.
        BusyError
            If it is still being called.
        """
        self._members.put(member)

    # ---- jobs ------------------------------------------------------------------------------------------------------

    def submit(self, *args: Any, **kwargs: Any) -> BackgroundFuture[Any]:
        """Have the next member that is free compute, in the caller's scope (`config`, `use_device`).

        Returns
        -------
        Future
            A `concurrent.futures.Future`, which can also be awaited, and cancelled as long as it has not begun.

        Raises
        ------
        BusyError
            If `limit` jobs wait already.
        ClosedError
            If the pool is closed, or belongs to the parent of a forked process.
        """
        future = self._gatherer.submit((args, kwargs, copy_context()))
        if self._gatherer.is_worker():  # all others may wait for such jobs, too
            self._jobs.help(self._gatherer, future)
        return future

    def map(self, items: Iterable[Any], *, return_exceptions: bool = False) -> Iterator[Any]:
        """Compute each of some items; results come in the order of the items.

        Parameters
        ----------
        items : iterable
            It is read as results are taken, a few items ahead, and may be endless.
        return_exceptions : bool
            Give exceptions in the place of results, and go on. By default the first one is raised, and what has not
            begun is cancelled.

        Yields
        ------
        object
            A result for each item.
        """
        ahead: deque[BackgroundFuture[Any]] = deque()

        def next_result() -> Any:
            future = ahead.popleft()
            error = future.exception() if return_exceptions else None
            return future.result() if error is None else error

        try:
            for item in items:
                ahead.append(self.submit(item))
                if len(ahead) > 2 * self.size:
                    yield next_result()
            while ahead:
                yield next_result()
        finally:
            for future in ahead:
                future.cancel()

    @property
    def stats(self) -> QueueStats:
        """How many jobs were computed since the pool was made, and how many failed or were refused."""
        return self._gatherer.stats

    def close(self, *, cancel: bool = False, timeout: float | None = None) -> bool:
        """Give no members any more, and wait until what was submitted is computed.

        Who waits in `get` gets a `ClosedError`. Members that are out are taken back: a call that is going on ends as
        ever, and a further one raises `ClosedError`.

        Parameters
        ----------
        cancel : bool
            Cancel jobs that have not begun, instead of computing them.
        timeout : float, optional
            Seconds to wait at most.

        Returns
        -------
        bool
            Whether all is done.
        """
        if os.getpid() == self._members._pid:
            self._members.close()
        return self._gatherer.close(cancel=cancel, timeout=timeout)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        gatherer: Gatherer | None = getattr(self, "_gatherer", None)
        if gatherer is not None:
            gatherer.close(wait=False)  # its threads compute what waits, and end


class _Jobs:
    """How jobs become calls of members. Threads of the pool hold this, and nothing of the pool."""

    def __init__(self, members: Members) -> None:
        self._members = members

    def compute(self, jobs: list[_Job]) -> list[Any]:
        """Compute on a member that this thread has."""
        ((args, kwargs, context),) = jobs
        member = self._members.held_here()
        assert member is not None
        return [context.run(member, *args, **kwargs)]

    def help(self, gatherer: Gatherer, future: ItemFuture) -> None:
        """Compute a job right here that nobody began with, if this thread has a member."""
        if self._members.held_here() is not None:
            gatherer.compute_here(future)


def _cores(given: Any, device: Any, own: tuple[int, ...] | None) -> list[tuple[int, ...] | None]:
    """The cores of members, in turns."""
    if isinstance(given, str):
        if given != "any":
            raise ValueError(f"Pool: cores is {given!r}; it can be 'any', or cores of each member")
        return [None]
    opened = current_device() if device is None else Device(device) if isinstance(device, str) else device
    count = opened.chip.cores
    if given is None:
        return [(number,) for number in own or range(count)]
    try:
        cores = [
            tuple(operator.index(core) for core in each) if isinstance(each, Iterable) else (operator.index(each),)
            for each in given
        ]
    except TypeError:
        raise TypeError(f"Pool: cores is {given!r}; it has a number, or a tuple of some, for each member") from None
    if not cores:
        raise ValueError("Pool: cores names none")
    for each in cores:
        if not each or min(each) < 0 or max(each) >= count or len(set(each)) != len(each):
            raise ValueError(f"Pool: cores has {each} for a member; {opened.name} has {count}, counted from 0")
    return list(cores)


def _count(name: str, given: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int):
        raise TypeError(f"Pool: {name} is {given!r}; it is a number")
    if given < 1:
        raise ValueError(f"Pool: {name} is {given}; it is at least 1")
    return given
