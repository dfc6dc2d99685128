"""Objects that are known as long as they live."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Generic, TypeVar

__all__ = ["Living"]

_Kind = TypeVar("_Kind")


class Living(Generic[_Kind]):
    """Objects that others hold, in the order in which they came.

    Any thread may look while others add objects or drop them, which a `weakref.WeakSet` does not promise: each step
    here is one operation of a dict.

    Examples
    --------
    >>> class Thing: pass
    >>> things, kept = Living(), Thing()
    >>> things.add(kept)
    >>> things.add(Thing())
    >>> list(things) == [kept], len(things)
    (True, 1)
    """

    def __init__(self) -> None:
        self._refs: dict[weakref.ref[_Kind], None] = {}

    def add(self, thing: _Kind) -> None:
        """Know it until nobody holds it any more."""
        self._refs[weakref.ref(thing, self._forget)] = None

    def discard(self, thing: _Kind) -> None:
        self._refs.pop(weakref.ref(thing), None)

    def _forget(self, ref: weakref.ref[_Kind]) -> None:
        self._refs.pop(ref, None)  # one that was discarded may be held by a thread that looks, and called nevertheless

    def __iter__(self) -> Iterator[_Kind]:
        for ref in list(self._refs):
            thing = ref()
            if thing is not None:
                yield thing

    def __len__(self) -> int:
        return len(self._refs)

    def __contains__(self, thing: object) -> bool:
        return weakref.ref(thing) in self._refs
