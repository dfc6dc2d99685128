"""Caches that are kept between generations: a prompt that begins like one of them is read from where they part."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager

from npumatmul.llm.models.cache import KVCache
from npumatmul.llm.run.steps import shared_length

__all__ = ["KeptCaches"]

#: A cache that has at most so many tokens beyond what is shared is taken; one with more is forked, and stays.
_FEW = 16
#: So many tokens have to be shared before a cache is forked, whose rows are read in one more stretch from then on.
_WORTH = 8


class KeptCaches:
    """Caches of generations that ended, those used last first, up to a number of bytes.

    Parameters
    ----------
    limit : int
        Bytes of memory that they take together at most. The one that was given last stays whatever it takes, unless
        the limit is 0.

    Raises
    ------
    ValueError
        If the limit is no number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = _checked(limit)
        self._lock = threading.RLock()  # the collector may end a dropped generation inside it
        _all.add(self)
        self._kept: list[KVCache] = []
        self._running: list[weakref.ref[KVCache]] = []

    def __repr__(self) -> str:
        return f"<KeptCaches: {len(self)} caches of {self.tokens} tokens, {self.nbytes} of {self.limit} bytes>"

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    @property
    def limit(self) -> int:
        """Bytes that they take together at most; setting it gives up those that have no room."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = _checked(limit)
        with self._lock:
            self._shrink()

    @property
    def held(self) -> AbstractContextManager[object]:
        """A context in which no cache is taken or given by others; a running one is changed outside of turns in it."""
        return self._lock

    @property
    def tokens(self) -> int:
        """Tokens of all of them."""
        with self._lock:
            return sum(each.length for each in self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all of them; what they share counts once."""
        with self._lock:
            return _bytes(self._kept)

    def take(self, prompt: Sequence[int]) -> KVCache | None:
        """The cache that holds the longest beginning of a prompt, of those kept and those in use.

        It is the caller's then: what others may want of it, they keep. It may hold more tokens than the prompt has;
        those can be forgotten.
        """
        with self._lock:
            self._running = [each for each in self._running if each() is not None]
            candidates = [*self._kept, *(cache for each in self._running if (cache := each()) is not None)]
            best, most = None, 0
            for each in candidates:
                shared = _usable(each, prompt)
                if shared > most:
                    best, most = each, shared
            if best is None:
                return None
            kept = any(each is best for each in self._kept)
            if kept and best.length - most <= _FEW:
                self._kept = [each for each in self._kept if each is not best]
                self._running.append(weakref.ref(best))
                return best
            if most < _WORTH:
                return None
            if kept:  # it was of use
                self._kept = [best, *(each for each in self._kept if each is not best)]
            made = best.fork()
            self._running.append(weakref.ref(made))
            return made

    def runs(self, cache: KVCache) -> None:
        """A new cache is in use: others may fork it."""
        with self._lock:
            self._running.append(weakref.ref(cache))

    def give(self, cache: KVCache) -> None:
        """Keep a cache that nobody uses any more; what was not used for longest gives way."""
        with self._lock:
            self._running = [each for each in self._running if each() not in (None, cache)]
            if not self._limit or not cache.length:
                return
            kept = [each for each in self._kept if each is not cache and not _within(each, cache)]
            self._kept = [cache, *kept]
            self._shrink()

    def _shrink(self) -> None:
        least = 1 if self._limit else 0
        while len(self._kept) > least and (not self._limit or _bytes(self._kept) > self._limit):
            self._kept.pop()

    def clear(self) -> None:
        """Keep none."""
        with self._lock:
            self._kept, self._running = [], []


def _usable(cache: KVCache, prompt: Sequence[int]) -> int:
    """How many of its tokens a cache can save a prompt, of which at least one is computed."""
    shared = shared_length(cache.tokens, prompt[:-1])
    return shared if shared == cache.length or cache.trimmable else 0


def _within(one: KVCache, other: KVCache) -> bool:
    """Whether one has no tokens that the other one cannot give, too."""
    return other.trimmable and one.tokens == other.tokens[: one.length]


def _checked(limit: object) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise ValueError(f"the limit of kept caches is {limit!r}; it has to be a number of bytes, 0 or more")
    return limit


def _inherit() -> None:
    for each in list(_all):
        each._lock = threading.RLock()  # in a forked child nobody is there who could give it back


_all: weakref.WeakSet[KeptCaches] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_inherit)


def _bytes(caches: Sequence[KVCache]) -> int:
    memory: dict[int, int] = {}
    for each in caches:
        memory.update(each.memory())
    return sum(memory.values())
