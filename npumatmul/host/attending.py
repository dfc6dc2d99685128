"""Interrupts while the executor is at work: who looks for signals meanwhile.

Python runs the handlers of signals in its main thread, between its own instructions, so none runs while that thread is
in a C function. The executor therefore leaves cores to threads of its own where the main thread calls it, and asks an
`Attendant` from time to time whether to go on: that is Python again, where handlers run and may raise.
"""

from __future__ import annotations

import ctypes as C
import os
import threading
from collections.abc import Iterator

__all__ = ["ATTEND", "Attendant", "main_thread"]

#: Of the function that the executor asks: 0 to go on, 1 to end with the runs that are going on, 2 to give these up.
ATTEND = C.CFUNCTYPE(C.c_int)

#: Number of the thread in which handlers of signals run.
main_thread = [threading.main_thread().ident]


def _after_fork() -> None:
    """The thread that forked is the child's main thread."""
    main_thread[0] = threading.get_ident()


os.register_at_fork(after_in_child=_after_fork)


class Attendant:
    """What the executor asks on behalf of one call.

    Attributes
    ----------
    function : ATTEND
    interrupts : list of BaseException
        What handlers raised meanwhile.
    """

    def __init__(self) -> None:
        self.interrupts: list[BaseException] = []
        self._asked = _answers(self.interrupts)
        next(self._asked)
        self.function = ATTEND(self._asked.__next__)

    def raise_first(self) -> None:
        """Raise what a handler raised first, and forget the others."""
        first = self.interrupts[0]
        self.interrupts.clear()  # their tracebacks refer to frames that refer to this
        try:
            raise first
        finally:
            del first


def _answers(interrupts: list[BaseException]) -> Iterator[int]:
    """A generator is asked, since a function would look for signals before its first ``try``."""
    while True:
        try:
            yield len(interrupts)  # here a signal's handler raises
        except GeneratorExit:
            raise
        except BaseException as error:
            interrupts.append(error)
