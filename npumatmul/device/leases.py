"""Who uses what: contexts, buffers, threads and weights are leased to a call, or to a result, until it is over.

Calls are prepared under the device's lock and run without it. What one of them runs with is nobody else's meanwhile,
and neither destroyed nor given back.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import Any, Generic, Protocol, TypeVar
from weakref import ref

from numpy.typing import NDArray

from npumatmul.errors import BusyError

_Result = TypeVar("_Result")

__all__ = ["Lease", "Leased", "Leases", "Spares", "Together", "Turn", "is_idle"]

#: Seconds after which a thread that waits looks by itself: an interrupt may have kept another one from telling it.
_LOOK_AGAIN = 1.0
#: Failures for lack of room after which a call waits until it is alone, where before it waits for anybody to end.
_PATIENCE = 8


class Lease:
    """What it was given to is in use until it is `over`, or nobody holds it any more.

    Both end all that it holds at one stroke, so that an interrupt cannot leave a part of it behind: `over` is set by a
    plain assignment, and what is leased knows its lease by a weak reference only.

    Attributes
    ----------
    over : bool
        Set it when the work is done.
    ref : weakref to this
        What is leased keeps it.
    weight : object or None
        Memory of the weight that it runs with, or that of several, `Together`.
    stores : ndarray or None
        Where the CPU stores the result.
    computes : (int, int) or None
        First and last address of the allocation where the NPU writes the result, which is synchronised as a whole.
    buffers : tuple
        Of arrays that it runs with, which nobody may close meanwhile.
    thread : int
        Whose it is.
    given_up : bool
        Whether nobody waits for it any more.
    left : bool
        Whether whoever set it `over` is done with it, so that it may serve a further call.
    worn : bool
        Whether it serves no further call: somebody waits for its end, or what it is of was taken away.
    """

    __slots__ = (
        "__weakref__", "buffers", "computes", "given_up", "left", "over", "ref", "stores", "thread", "weight", "worn",
    )  # fmt: skip

    def __init__(
        self,
        weight: object = None,
        stores: NDArray[Any] | None = None,
        computes: tuple[int, int] | None = None,
        buffers: tuple[Any, ...] = (),
    ) -> None:
        self.over = False
        self.ref: weakref.ref[Lease] = ref(self)
        self.weight, self.stores = weight, stores
        self.computes, self.buffers = computes, buffers
        self.thread = get_ident()
        self.given_up = self.left = self.worn = False

    def disturbs(self, other: Lease) -> bool:
        """Whether caches would forget, when one of both synchronises an allocation, what the other stores there."""
        return _inside(self.stores, other.computes) or _inside(other.stores, self.computes)


def _inside(array: NDArray[Any] | None, addresses: tuple[int, int] | None) -> bool:
    """Whether an array shares bytes with a range of addresses."""
    if array is None or addresses is None:
        return False
    first = int(array.ctypes.data)
    steps = [(extent - 1) * stride for extent, stride in zip(array.shape, array.strides, strict=True)]
    low = first + sum(step for step in steps if step < 0)
    high = first + sum(step for step in steps if step > 0) + array.itemsize - 1
    return bool(low <= addresses[1] and addresses[0] <= high)


class Together(tuple[Any, ...]):
    """Memory of several weights, each as it would be the only one of a lease."""

    __slots__ = ()

    def has(self, weight: object) -> bool:
        """Whether it is one of them."""
        return any(each is weight for each in self)


class Leased(Protocol):
    """Something that one lease at a time holds."""

    lease: weakref.ref[Lease] | None


def is_idle(resource: Leased) -> bool:
    """Whether no lease holds it."""
    if resource.lease is None:
        return True
    lease = resource.lease()
    return lease is None or lease.over


class Leases:
    """The calls that are at work on a device.

    Parameters
    ----------
    lock : threading.RLock
        The device's. It is held by those who call `others`, `enter` and `uses`, and by nobody who waits.

    Attributes
    ----------
    ended : int
        Changes whenever one is over.
    """

    def __init__(self, lock: AbstractContextManager[object]) -> None:
        self._lock = lock
        self.ended = 0
        self._entered: set[Lease] = set()  # others leave it at any moment: look at copies
        #: Those who want to be alone: nobody enters any more until they are over.
        self._bars: list[Lease] = []
        self._waiting: deque[SimpleQueue[None]] = deque()
        #: Of calls whose runs were given up and still go on; they are not at work.
        self.given_up: list[Lease] = []

    def others(self) -> list[Lease]:
        """Calls that other threads are at."""
        here = get_ident()
        return [lease for lease in self._at_work() if lease.thread != here]

    def _at_work(self) -> list[Lease]:
        found = []
        for lease in list(self._entered):
            if lease.over:
                self._entered.discard(lease)
            else:
                found.append(lease)
        return found

    def enter(self, lease: Lease) -> list[Lease]:
        """Begin to be at work. Otherwise return those in its way, which it has to wait for."""
        if self._bars or self._entered:
            self._bars = [bar for bar in self._bars if not bar.over]
            in_the_way = [bar for bar in self._bars if bar.thread != lease.thread]
            in_the_way += [each for each in self.others() if each.disturbs(lease)]
            if in_the_way:
                return in_the_way
        self._entered.add(lease)
        return []

    def enter_again(self, lease: Lease) -> bool:
        """Begin to be at work with a lease that was left; not where anybody else is at work, or waits.

        The lease is still `over`: an interrupt that comes before its new holder has it leaves nothing at work.
        """
        if self._entered or self._bars or self._waiting:
            return False
        lease.left = False
        self._entered.add(lease)
        return True

    def bar(self, lease: Lease) -> None:
        """Let no other thread begin until a lease is over."""
        with self._lock:
            self._bars.append(lease)

    def leave(self, lease: Lease) -> None:
        """Forget a lease that is over and wake those who wait. Whoever calls it does no more with the lease."""
        self.ended += 1
        self._entered.discard(lease)
        while self._waiting:
            lease.worn = True  # else those who wait might find it in use again, and again
            with suppress(IndexError):  # another thread was faster
                self._waiting.popleft().put(None)
        lease.left = True  # at last: from here on it may be the lease of another thread's call

    def uses(self, weight: object) -> bool:
        """Whether somebody runs with the memory of a weight."""
        return any(
            lease.weight is weight or (type(lease.weight) is Together and lease.weight.has(weight))
            for lease in (*self._at_work(), *self.given_up)
        )

    def reads(self, memory: object) -> bool:
        """Whether somebody runs with the memory of an array."""
        return any(each._memory is memory for lease in self._at_work() for each in lease.buffers)

    def check_idle(self, name: str) -> None:
        """Raise `BusyError` where somebody is at work."""
        if self._at_work():
            raise BusyError(f"a product is being computed on {name}; let that end before closing")

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until something is so; it is looked at whenever a lease is over."""
        ticket: SimpleQueue[None] = SimpleQueue()
        self._waiting.append(ticket)
        while not done():
            try:
                ticket.get(timeout=_LOOK_AGAIN)
            except Empty:
                continue
            self._waiting.append(ticket)

    def wait_for(self, leases: Sequence[Lease]) -> None:
        """Wait until all of them are over."""
        self.wait(lambda: all(lease.over for lease in leases))

    def repeated(
        self, attempt: Callable[[], _Result], no_room: tuple[type[Exception], ...], check: Callable[[], None]
    ) -> _Result:
        """Make an attempt under the lock; where there is no room while others are at work, repeat it after them.

        Parameters
        ----------
        attempt : callable
            It holds nothing any more when it raises, and the caller does not hold the lock.
        no_room : tuple of exception classes
            What it raises where there is no room.
        check : callable
            Raises where no attempt is to be made any more.
        """
        turn: Turn | None = None
        try:
            while True:
                with self._lock:
                    check()
                    ended = self.ended
                    try:
                        return attempt()
                    except no_room:
                        others = self.others()
                        if not others and self.ended == ended:
                            raise
                turn = turn or Turn(self)
                turn.wait(others)
        finally:
            if turn is not None:
                turn.over = True
                turn.leave()


class Turn(Lease):
    """The attempts at something for which there may be no room while others are at work.

    Set it `over` in the end, and then `leave`.
    """

    __slots__ = ("_failures", "_leases")

    def __init__(self, leases: Leases) -> None:
        super().__init__()
        self._leases = leases
        self._failures = 0

    def wait(self, others: Sequence[Lease]) -> None:
        """After a failure for which these may be the reason: wait for one of them, in the end for being alone."""
        self._failures += 1
        if self._failures < _PATIENCE:
            self._leases.wait(lambda: not others or any(lease.over for lease in others))
            return
        if self._failures == _PATIENCE:
            self._leases.bar(self)
        self._leases.wait_for(others)

    def leave(self) -> None:
        """Wake those that it kept from beginning."""
        self._leases.leave(self)


class _Spare(Leased, Protocol):
    def close(self) -> None: ...


_Kind = TypeVar("_Kind", bound=_Spare)


class Spares(Generic[_Kind]):
    """Things of which each call has one of its own: those that are idle serve again, others are made."""

    def __init__(self) -> None:
        self._all: list[_Kind] = []

    def __len__(self) -> int:
        return len(self._all)

    def acquire(self, lease: Lease, make: Callable[[], _Kind]) -> _Kind:
        """One that is nobody else's until the lease is over."""
        for each in self._all:
            held = None if each.lease is None else each.lease()
            if held is None or held.over:
                break
        else:
            each = make()
            self._all.append(each)
        each.lease = lease.ref
        return each

    def close(self) -> None:
        for each in self._all:
            each.close()
