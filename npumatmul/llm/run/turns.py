"""Whose turn it is: threads that want the same model are served one after another, in the order in which they came.

Who waits may say what for (`turn`'s `offer`): then whoever has the turn may do it with its own work, and that wait is
over.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Collection
from typing import Any

from npumatmul.errors import ClosedError

_LOOK_AGAIN = 0.1
"""Seconds after which those who wait see that somebody before them is gone, or that they are not wanted any more."""


_SURE = 3
"""After so many looks somebody is believed to be gone."""


class Turns:
    """A queue for one thing.

    Those who wait are held weakly: who is interrupted while waiting, wherever that is, blocks nobody.

    Parameters
    ----------
    what : str
        What is waited for, for messages.

    Attributes
    ----------
    closed : bool
        Whether `close` was called.
    inherited : bool
        Whether this process is a forked child of the one that made it: those in the line are not there.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._changed = threading.Condition()
        self._line: deque[weakref.ref[_Place]] = deque()
        self._gathering = False
        self._pid = os.getpid()
        self.inherited = False
        self.closed = False
        _all.add(self)

    @property
    def waiting(self) -> int:
        """How many are in the line, the one whose turn it is among them."""
        with self._changed:
            return len(self._waiting())

    @property
    def short(self) -> bool:
        """Whether nobody waits behind the one whose turn it is, as far as can be seen without looking closely."""
        return len(self._line) <= 1

    def turn(self, unwanted: Callable[[], bool] = lambda: False, offer: Any = None) -> Turn:
        """Wait for a turn, which lasts as long as the context.

        Parameters
        ----------
        unwanted : callable
            Asked while waiting; the wait is over when it says so, and the context is entered at once. While somebody
            works on the offer it is not asked.
        offer : object, optional
            What somebody else may do (`claim`); if somebody has (`serve`), the context is entered without a turn.

        Returns
        -------
        Turn
            A context, which gives a callable: it lets those go first who wait by now, and waits for another turn; for
            places where work may rest.

        Raises
        ------
        npumatmul.errors.ClosedError
            If the line was closed, or inherited through a fork; from the callable too.
        RuntimeError
            If the thread has a turn already, so that it would wait for itself.
        """
        return Turn(self, unwanted, offer)

    def wait(self, unwanted: Callable[[], bool], frame: int, offer: Any = None) -> _Place:
        """Join the line, and wait until the place is the first, or was served."""
        if self.inherited:
            raise ClosedError(
                f"{self._what} was loaded by process {self._pid} and cannot be used after a fork; load it in the "
                f"child, or start that with the 'spawn' method"
            )
        place = _Place(frame, offer)
        try:
            with self._changed:
                self._refuse_own("wait for it")
                self._line.append(weakref.ref(place))
                if self._gathering:
                    self._changed.notify_all()
                while not place.served and self._first() is not place:
                    if not place.claimed and (self.closed or unwanted()):
                        break
                    if not self._changed.wait(_LOOK_AGAIN):
                        self._drop_the_gone()
                if self.closed and not place.served:
                    raise ClosedError(f"{self._what} is closed")
        except BaseException:
            self.leave(place)
            raise
        return place

    def pass_on(self, place: _Place, unwanted: Callable[[], bool]) -> _Place:
        """Leave a place for one behind all others, unless nobody waits."""
        with self._changed:
            if self._last() is place and not self.inherited:
                return place
        self.leave(place)
        return self.wait(unwanted, place.frame)

    def leave(self, place: _Place) -> None:
        place.over = True
        with self._changed:
            self._changed.notify_all()

    def claim(
        self,
        fits: Callable[[Any], bool],
        missing: Callable[[Collection[Any]], bool] = lambda offers: False,
        patience: float = 0.0,
    ) -> list[_Place]:
        """Take what others in the line offer; for who has the turn.

        Parameters
        ----------
        fits : callable
            Asked of each offer, in the order of the line, whether it is taken.
        missing : callable
            Asked whether others than these offers are to be waited for.
        patience : float
            Seconds to wait for them at most.

        Returns
        -------
        list of places
            Each has an `offer`. `serve` ends their waits; where that does not come about, they get turns of their own.
        """
        with self._changed:
            leader = self._first()
            if patience > 0 and missing(self._offers()):
                self._gathering = True
                try:
                    self._changed.wait_for(lambda: self.closed or not missing(self._offers()), patience)
                finally:
                    self._gathering = False
            taken = []
            for place in self._waiting():
                if place is not leader and place.offer is not None and fits(place.offer):
                    place.leader = leader
                    taken.append(place)
            return taken

    def look_again(self) -> None:
        """Have whoever waits for others in `claim` ask anew who is missing."""
        if self._gathering:
            with self._changed:
                self._changed.notify_all()

    def serve(self, places: Collection[_Place]) -> None:
        """End the waits of those whose offers were taken and are done."""
        with self._changed:
            for place in places:
                place.served = place.over = True
            self._changed.notify_all()

    def _waiting(self) -> list[_Place]:
        return [place for each in self._line if (place := each()) is not None and not place.over]

    def _offers(self) -> list[Any]:
        return [place.offer for place in self._waiting() if place.offer is not None]

    def close(self) -> None:
        """Let nobody begin any more, and wait until the one whose turn it is has ended.

        Raises
        ------
        RuntimeError
            If that is the thread that calls: then nothing is closed.
        """
        with self._changed:
            self._refuse_own("close it")
            self.closed = True
            self._changed.notify_all()
            while self._first() is not None:
                if not self._changed.wait(_LOOK_AGAIN):
                    self._drop_the_gone()

    def inherit(self) -> None:
        """Be what a forked child has: nobody is in the line, nor holds its lock."""
        self.inherited = True
        self._changed = threading.Condition()
        self._line.clear()

    def _refuse_own(self, what: str) -> None:
        """Raise where a thread would wait for itself, as in a callback or a handler of signals."""
        first = self._first()
        while first is not None and first.thread == threading.get_ident() and not _runs(first.frame):
            first.over = True  # an interrupt came before it could leave, and somebody keeps the traceback
            first = self._first()
        if first is not None and first.thread == threading.get_ident():
            raise RuntimeError(
                f"{self._what} is at work in this very thread, which cannot {what} meanwhile: a callback of progress or"
                " a handler of signals may cancel a generation, and do the rest when it has ended"
            )

    def _drop_the_gone(self) -> None:
        """Go on without a first place whose function has ended.

        An interrupt came before it could leave, and somebody keeps the traceback. Functions are looked for while their
        thread runs, so one look is not relied on.
        """
        first = self._first()
        if first is None:
            return
        first.missed = 0 if _runs(first.frame, first.thread) else first.missed + 1
        if first.missed >= _SURE:
            first.over = True
            self._changed.notify_all()

    def _first(self) -> _Place | None:
        while self._line:
            place = self._line[0]()
            if place is not None and not place.over:
                return place
            self._line.popleft()
        return None

    def _last(self) -> _Place | None:
        while self._line:
            place = self._line[-1]()
            if place is not None and not place.over:
                return place
            self._line.pop()
        return None


class Turn:
    """The context of a turn; see `Turns.turn`."""

    def __init__(self, line: Turns, unwanted: Callable[[], bool], offer: Any) -> None:
        self._line, self._unwanted, self._offer = line, unwanted, offer
        self._place: _Place | None = None

    def __enter__(self) -> Callable[[], None]:
        self._place = self._line.wait(self._unwanted, id(sys._getframe(1)), self._offer)
        return self._pass_on

    def __exit__(self, *_: object) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._line.leave(place)

    def _pass_on(self) -> None:
        if self._place is not None:
            self._place = self._line.pass_on(self._place, self._unwanted)


def _runs(frame: int, thread: int | None = None) -> bool:
    """Whether a function with this frame, by its id, is being executed in a thread, by default this one."""
    each = sys._getframe(1) if thread is None else sys._current_frames().get(thread)
    while each is not None and id(each) != frame:
        each = each.f_back
    return each is not None


class _Place:
    """A place in the line."""

    __slots__ = ("__weakref__", "frame", "leader", "missed", "offer", "over", "served", "thread")

    def __init__(self, frame: int, offer: Any) -> None:
        self.over = self.served = False
        self.frame = frame
        self.thread = threading.get_ident()
        self.missed = 0
        self.offer = offer
        self.leader: _Place | None = None

    @property
    def claimed(self) -> bool:
        """Whether somebody who has the turn works on what it offers."""
        return self.leader is not None and not self.leader.over


_all: weakref.WeakSet[Turns] = weakref.WeakSet()


def _inherit() -> None:
    for each in list(_all):
        each.inherit()


os.register_at_fork(after_in_child=_inherit)
