"""The members of a pool: who has them, and on which cores they compute."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from npumatmul.errors import BusyError, ClosedError
from npumatmul.ops.settings import CURRENT

__all__ = ["Members", "PoolMember"]

#: Seconds after which those who wait for a member look by themselves: one that is dropped tells nobody.
_LOOK_AGAIN = 0.5


class PoolMember:
    """A place in a pool, until it is put back; `Pool.get` gives one.

    It is called as the pool's work is, by one thread at a time. It goes back by `Pool.put`, at the end of a ``with``
    block, or when it is dropped.

    Attributes
    ----------
    number : int
        Which one it is, from 0 on.
    cores : tuple of int or None
        The NPU cores that its products run on; None: any.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> w = npu.pack(np.eye(64, dtype=np.float32))
    >>> with npu.Pool(w) as pool, pool.get() as member:
    ...     member.number, member.cores, member(np.ones((2, 64), np.float32)).shape
    (0, (0,), (2, 64))
    """

    def __init__(self, members: Members, number: int, cores: tuple[int, ...] | None) -> None:
        self._members, self.number, self.cores = members, number, cores
        #: Whether it was put back: one assignment, of which no interrupt can leave a part behind.
        self._back = False
        #: The call that is going on, and the thread that has the member.
        self._call: object | None = None
        self._thread = threading.get_ident()
        #: Whether it serves a job, which a closed pool has still to do.
        self._of_job = False

    def __repr__(self) -> str:
        return f"PoolMember({self.number}, cores={self.cores}{', put back' if self._back else ''})"

    def __enter__(self) -> PoolMember:
        return self

    def __exit__(self, *_: object) -> None:
        self._members.put(self, again=True)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute.

        Raises
        ------
        ClosedError
            If it was put back, or the pool is closed.
        BusyError
            If another thread calls it just now.
        Exception
            Whatever the work raises. A run of the NPU that fails has been repeated once with new contexts then.
        """
        members = self._members
        members.check_process()
        call = object()
        try:
            with members.changed:
                if self._back:
                    raise ClosedError(f"{self!r}, or its pool was closed; get another one")
                if self._call is not None:
                    raise BusyError(f"{self!r} is being called; each thread gets a member of its own")
                self._thread, self._call = threading.get_ident(), call
            if self.cores is None:
                return members.compute(*args, **kwargs)
            # in a context of its own, so that no interrupt can leave the setting behind
            return copy_context().run(self._on_cores, *args, **kwargs)
        finally:
            if self._call is call:
                self._call = None
                if members.closed:
                    members.release(self)

    def _on_cores(self, *args: Any, **kwargs: Any) -> Any:
        CURRENT.set(replace(CURRENT.get(), cores=self.cores))
        return self._members.compute(*args, **kwargs)


class _Place:
    """What stays of a member: its cores, and whoever has it now."""

    __slots__ = ("cores", "holder", "number", "used")

    def __init__(self, number: int, cores: tuple[int, ...] | None) -> None:
        self.number, self.cores, self.used = number, cores, 0
        self.holder: weakref.ref[PoolMember] | None = None

    def member(self) -> PoolMember | None:
        """The member that somebody has."""
        member = None if self.holder is None else self.holder()
        return None if member is None or member._back else member


class Members:
    """The members of a pool. Threads of the pool hold this, and nothing of the pool.

    Parameters
    ----------
    compute : callable
        The work.
    name : str
        What messages call the pool.
    cores : sequence of tuple of int or None
        Of each member.
    """

    def __init__(self, compute: Callable[..., Any], name: str, cores: Sequence[tuple[int, ...] | None]) -> None:
        self.compute, self.name = compute, name
        self._places = [_Place(number, each) for number, each in enumerate(cores)]
        #: Reentrant: a signal's handler may come back here.
        self.changed = threading.Condition(threading.RLock())
        self.closed = False
        self._uses = 0
        self._pid = os.getpid()
        self._serving = threading.local()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def idle(self) -> int:
        """How many members nobody has."""
        return sum(place.member() is None for place in self._places)

    def check_process(self) -> None:
        """Raise `ClosedError` in a forked child, where locks may be held for ever."""
        if os.getpid() != self._pid:
            raise ClosedError(f"{self.name} was made by process {self._pid} and cannot be used after a fork")

    def get(self, timeout: float | None = None, *, closing: bool = False) -> PoolMember:
        """The member that nobody has had for longest, as soon as there is one.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.
        closing : bool
            Whether it is for what a closed pool has still to do.
        """
        self.check_process()
        ends = None if timeout is None else time.monotonic() + timeout
        with self.changed:
            while True:
                if self.closed and not closing:
                    raise ClosedError(f"{self.name} is closed; make another one")
                idle = [place for place in self._places if place.member() is None]
                if idle:
                    place = min(idle, key=lambda each: (each.used, each.number))
                    member = PoolMember(self, place.number, place.cores)
                    member._of_job = closing
                    self._uses += 1
                    place.used, place.holder = self._uses, weakref.ref(member)
                    return member
                left = _LOOK_AGAIN if ends is None else min(_LOOK_AGAIN, ends - time.monotonic())
                if left <= 0:
                    raise TimeoutError(
                        f"{self.name}: none of {len(self)} members came back within {timeout} s; each goes back by "
                        "put, or at the end of its with block"
                    )
                self.changed.wait(left)

    def put(self, member: object, *, again: bool = False) -> None:
        """Take a member back; `again`: even if it was taken back before."""
        self.check_process()
        if not isinstance(member, PoolMember) or member._members is not self:
            raise ValueError(f"put: {member!r} is no member of this pool")
        with self.changed:
            if member._call is not None:
                raise BusyError(f"put: {member!r} is still being called")
            if member._back and not again:
                raise ValueError(f"put: {member!r}, and may be somebody else's by now")
            self.release(member)

    def release(self, member: PoolMember) -> None:
        member._back = True
        with self.changed:
            self.changed.notify()

    def held_here(self) -> PoolMember | None:
        """A member that this thread has, to be used once more within a call of it, or beside."""
        here = threading.get_ident()
        with self.changed:
            for place in self._places:
                held = place.member()
                if held is not None and held._thread == here:
                    return PoolMember(self, held.number, held.cores)
        return None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Have this thread compute what was handed over, on the next member that is free."""
        with self.get(closing=True) as member:
            self._serving.member = member
            try:
                yield
            finally:
                self._serving.member = None

    def served(self) -> PoolMember | None:
        """The member on which this thread computes what was handed over, once more."""
        member: PoolMember | None = getattr(self._serving, "member", None)
        return None if member is None else PoolMember(self, member.number, member.cores)

    def close(self) -> None:
        """Give out no member any more; those that are out go back as soon as no call of theirs is going on."""
        with self.changed:
            self.closed = True
            for place in self._places:
                member = place.member()
                if member is not None and member._call is None and not member._of_job:
                    member._back = True
            self.changed.notify_all()
