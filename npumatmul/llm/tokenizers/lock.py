"""A lock of a tokenizer, which is free in a forked child, whatever threads of the parent were doing."""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["Lock"]


class Lock:
    """`threading.Lock` for what a forked child uses on: nobody is there who would release it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _all.add(self)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def renew(self) -> None:
        self._lock = threading.Lock()


_all: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew() -> None:
    for each in list(_all):
        each.renew()


os.register_at_fork(after_in_child=_renew)
