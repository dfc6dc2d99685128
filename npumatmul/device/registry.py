"""What a session made and did not destroy yet.

An entry stands in the registry before the runtime is asked to make what it is for, and goes when the runtime has
destroyed that; what the runtime says is noted by the call itself (`npumatmul.rknn.notes`). Entries know by a weak
reference who holds them, so that nothing is lost whenever an interrupt comes: what nobody holds is destroyed by the
next call on the device.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import suppress
from typing import Any

from npumatmul.device.budget import Holder
from npumatmul.errors import RknnError
from npumatmul.rknn import Runtime
from npumatmul.rknn.notes import ContextNote, MemoryNote

__all__ = ["ContextEntry", "MemoryEntry", "Registry"]


class _Owner(weakref.ref[Any]):
    """Who holds an entry."""

    __slots__ = ("entry",)
    entry: ContextEntry | MemoryEntry


class ContextEntry(ContextNote):
    """A matmul context.

    Attributes
    ----------
    owner : weakref to Handle, or None
    going : bool
        Whether it is being destroyed just now.
    unwanted : bool
        Whether it is to be destroyed though somebody holds it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.owner: _Owner | None = None
        self.going = self.unwanted = False

    @property
    def is_held(self) -> bool:
        return self.owner is not None and self.owner() is not None


class MemoryEntry(MemoryNote):
    """A memory.

    Attributes
    ----------
    ctx : int
        Handle of the context under which it is allocated.
    domain : int
        IOMMU domain.
    size : int
        Bytes.
    holder : Holder
        Whom it is for.
    whole : MemoryEntry or None
        The allocation that it is a slice of.
    owner : weakref to Memory, or None
    going, unwanted : bool
        As of a context.
    """

    def __init__(self, ctx: int, domain: int, size: int, holder: Holder, whole: MemoryEntry | None = None) -> None:
        super().__init__()
        self.ctx, self.domain, self.size, self.holder, self.whole = ctx, domain, size, holder, whole
        self.owner: _Owner | None = None
        self.going = self.unwanted = False

    @property
    def is_held(self) -> bool:
        return self.owner is not None and self.owner() is not None


Entry = ContextEntry | MemoryEntry


class Registry:
    """The entries of a session, whose lock is held by whoever makes or destroys something.

    Attributes
    ----------
    unsure : bool
        Whether an interrupt may have kept something from being destroyed: then all entries are looked at.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._contexts: dict[ContextEntry, None] = {}
        self._allocations: dict[MemoryEntry, None] = {}
        self._slices: dict[MemoryEntry, None] = {}
        #: Entries that nobody holds any more; a garbage collector adds to it at any moment, by one call of C.
        self._dropped: deque[_Owner] = deque()
        self.unsure = False

    def add(self, entry: Entry, owner: Any) -> None:
        """Take up an entry, before anything is made. It is held as long as `owner` lives."""
        entry.owner = _Owner(owner, self._dropped.append)
        entry.owner.entry = entry
        if isinstance(entry, ContextEntry):
            self._contexts[entry] = None
        else:
            (self._allocations if entry.whole is None else self._slices)[entry] = None

    def contexts(self) -> list[ContextEntry]:
        return [each for each in list(self._contexts) if each.exists]

    def allocations(self) -> list[MemoryEntry]:
        """Memories that exist and are no slices."""
        return [each for each in list(self._allocations) if each.exists]

    def slices(self, whole: Entry | None = None) -> list[MemoryEntry]:
        """Slices that exist, of one allocation or of all."""
        return [each for each in list(self._slices) if whole in (None, each.whole) and each.exists]

    def in_order(self) -> list[Entry]:
        """All entries, in the order in which they have to go (facts 11.5): memories first, and slices before them."""
        return [*self._slices, *self._allocations, *self._contexts]

    def drop(self, entry: Entry) -> None:
        """Have an entry destroyed by the next call, whoever holds it; safe from a garbage collector."""
        entry.unwanted = True
        if entry.owner is not None:
            self._dropped.append(entry.owner)

    @property
    def has_dropped(self) -> bool:
        """Whether something waits to be destroyed."""
        return bool(self._dropped) or self.unsure

    def take_dropped(self) -> list[Entry]:
        """What waits to be destroyed, in the order in which it has to go; `settled` says that it was seen to."""
        everything, self.unsure = self.unsure, True
        found: list[Entry] = []
        while self._dropped:
            found.append(self._dropped.popleft().entry)
        if everything:
            return [each for each in self.in_order() if each.unwanted or not each.is_held]
        return sorted(dict.fromkeys(found), key=_turn)

    def settled(self) -> None:
        """Say that all of `take_dropped` was seen to."""
        self.unsure = False

    def destroy(self, entry: Entry) -> None:
        """Destroy what exists and forget the entry; doing it twice, or again after an interrupt, is allowed.

        Raises
        ------
        RknnError
            If the runtime refuses. Then the entry stays, to be tried again.
        """
        if entry.going:  # a garbage collector came in the middle of it
            return
        try:
            entry.going = True
            if isinstance(entry, ContextEntry):
                if entry.exists:
                    self._runtime.matmul_destroy(entry.value, entry)
            elif entry.exists:
                self._runtime.destroy_mem(entry.ctx, entry.pointer, entry)
            self.forget(entry)
        finally:
            entry.going = False

    def destroy_again(self) -> bool:
        """Try to destroy what could not be destroyed before; whether something was."""
        done = False
        for entry in [each for each in self.in_order() if each.destroyed]:
            with suppress(RknnError):
                self.destroy(entry)
                done = True
        return done

    def forget(self, entry: Entry) -> None:
        """Know an entry no more, whatever the runtime has of it."""
        entry.owner = None  # nor is it told any more when that is dropped
        if isinstance(entry, ContextEntry):
            self._contexts.pop(entry, None)
        else:
            self._allocations.pop(entry, None)
            self._slices.pop(entry, None)

    def __len__(self) -> int:
        return len(self._contexts) + len(self._allocations) + len(self._slices)

    def __contains__(self, entry: object) -> bool:
        return entry in self._contexts or entry in self._allocations or entry in self._slices


def _turn(entry: Entry) -> int:
    """When it has to go: a slice before what it is a slice of, a memory before contexts."""
    return 2 if isinstance(entry, ContextEntry) else int(entry.whole is None)
