"""Whose turn it is: threads that want the same model are served one after another, in the order in which they came."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from npumatmul.errors import ClosedError

_LOOK_AGAIN = 0.1
"""Seconds after which those who wait see that somebody before them is gone, or that they are not wanted any more."""


class Turns:
    """A queue for one thing.

    Those who wait are held weakly: who is interrupted while waiting, wherever that is, blocks nobody.

    Parameters
    ----------
    what : str
        What is waited for, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._changed = threading.Condition()
        self._line: deque[weakref.ref[_Place]] = deque()
        self.closed = False

    @property
    def waiting(self) -> int:
        """How many are in the line, the one whose turn it is among them."""
        with self._changed:
            return sum(1 for each in self._line if (place := each()) is not None and not place.over)

    @contextmanager
    def turn(self, unwanted: Callable[[], bool] = lambda: False) -> Iterator[Callable[[], None]]:
        """Wait for a turn, which lasts as long as the context.

        Parameters
        ----------
        unwanted : callable
            Asked while waiting; the wait is over when it says so, and the context is entered at once.

        Yields
        ------
        callable
            Lets those go first who wait by now, and waits for another turn; for places where work may rest.

        Raises
        ------
        npumatmul.errors.ClosedError
            If the line was closed; from `pass_on` too.
        RuntimeError
            If the thread has a turn already, so that it would wait for itself.
        """
        place = self._wait(unwanted)

        def pass_on() -> None:
            nonlocal place
            with self._changed:
                alone = self._last() is place
            if not alone:
                self._leave(place)
                place = self._wait(unwanted)

        try:
            yield pass_on
        finally:
            self._leave(place)

    def _wait(self, unwanted: Callable[[], bool]) -> _Place:
        place = _Place()
        try:
            with self._changed:
                self._refuse_own("wait for it")
                self._line.append(weakref.ref(place))
                while not self.closed and not unwanted() and self._first() is not place:
                    self._changed.wait(_LOOK_AGAIN)
                if self.closed:
                    raise ClosedError(f"{self._what} is closed")
        except BaseException:
            self._leave(place)
            raise
        return place

    def _leave(self, place: _Place) -> None:
        place.over = True
        with self._changed:
            self._changed.notify_all()

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
                self._changed.wait(_LOOK_AGAIN)

    def _refuse_own(self, what: str) -> None:
        """Raise where a thread would wait for itself, as in a callback or a handler of signals."""
        first = self._first()
        if first is not None and first.thread == threading.get_ident():
            raise RuntimeError(
                f"{self._what} is at work in this very thread, which cannot {what} meanwhile: a callback of progress or"
                " a handler of signals may cancel a generation, and do the rest when it has ended"
            )

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


class _Place:
    """A place in the line."""

    __slots__ = ("__weakref__", "over", "thread")

    def __init__(self) -> None:
        self.over = False
        self.thread = threading.get_ident()
