"""Contexts and memories of the runtime as whoever holds them sees them; a session makes and destroys them."""

from __future__ import annotations

import ctypes as C
import threading
import weakref
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from npumatmul.device.budget import Holder
from npumatmul.device.leases import Lease, is_idle
from npumatmul.device.registry import ContextEntry, Entry, MemoryEntry
from npumatmul.rknn import MemSyncMode, Runtime, TensorMem

__all__ = ["Handle", "Memory", "View", "is_at_work", "owner_of"]


@dataclass(eq=False)
class Handle:
    """A matmul context of the runtime; it is destroyed when nobody holds this any more.

    Attributes
    ----------
    entry : ContextEntry
    closed : bool
        Whether it may be used no more.
    lease : weakref to Lease, or None
        Of the call that is at work with it.
    """

    entry: ContextEntry
    closed: bool = False
    lease: weakref.ref[Lease] | None = None

    @property
    def value(self) -> int:
        """Number of the context."""
        return self.entry.value


class View:
    """CPU access to a range of an allocation that somebody holds.

    Attributes
    ----------
    pages : weakref
        To what keeps the memory for them.
    entry : MemoryEntry
        Of the memory by which it was asked for: the allocation, or a slice.
    start, stop : int
        Of that in the allocation.
    writable : bool
    """

    __slots__ = ("entry", "pages", "start", "stop", "writable")

    def __init__(self, pages: weakref.ref[Any], memory: Memory, writable: bool) -> None:
        self.pages, self.writable = pages, writable
        # not the memory, which is to be given back as soon as nobody holds it
        self.entry, self.start, self.stop = memory.entry, memory.start, memory.start + memory.size

    def touches(self, memory: Memory) -> bool:
        """Whether it shows bytes of `memory`, of the same allocation."""
        return self.start < memory.stop and memory.start < self.stop


@dataclass(eq=False)
class Memory:
    """A `rknn_tensor_mem`: an allocation of the runtime, or a slice of one. It is destroyed when nobody holds this.

    Attributes
    ----------
    runtime : Runtime
    entry : MemoryEntry
        What the runtime said of it.
    start : int
        Offset in the allocation.
    owner : Memory or None
        What it is a slice of.
    pointer : pointer to TensorMem
        The runtime's struct, once it is made.
    address : int
        CPU address of the first byte (facts 1.3: `virt_addr` plus `offset`); 0 before it is made.
    device_address : int
        Where the memory is mapped: the same, unless it has a mirror.
    domain, size : int
        IOMMU domain, and bytes.
    written, synchronised : int
        Of an allocation: how often the CPU wrote into it, and up to which of these the device can see it.
    lease : weakref to Lease, or None
        Of a buffer that is lent: to whom.
    retired : bool
        Of a buffer that is lent: whether it is given back now or at the end of its lease, and lent to nobody else.
    users : list of weakref to Lease
        Of a buffer of a user: the calls that are at work with it.
    held_by : weakref or None
        The `Buffer`, or the result, that has it.
    home : list of Memory, or None
        Where it goes when nobody has it any more, to serve again; None: it is given back to the runtime.
    mirror : ndarray or None
        Of an allocation: memory of the host of the same size that the CPU reads and writes instead, at `address`. It is
        copied whenever caches are synchronised.
    parts : dict
        Of an allocation: slices of it that are bound again and again, by offset and bytes.
    """

    runtime: Runtime
    entry: MemoryEntry
    start: int = 0
    owner: Memory | None = None
    address: int = 0
    pointer: C._Pointer[TensorMem] = field(init=False)
    device_address: int = field(init=False)
    domain: int = field(init=False)
    size: int = field(init=False)
    closed: bool = False
    written: int = 0
    synchronised: int = 0
    lease: weakref.ref[Lease] | None = None
    retired: bool = False
    users: list[weakref.ref[Lease]] = field(default_factory=list)
    held_by: weakref.ref[Any] | None = None
    home: list[Memory] | None = None
    mirror: NDArray[Any] | None = None
    parts: dict[tuple[int, int], Memory] = field(default_factory=dict)
    views: list[View] = field(default_factory=list)
    lock: AbstractContextManager[object] = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        # plain attributes, since every product comes here
        self.domain, self.size = self.entry.domain, self.entry.size

    def made(self) -> None:
        """Take over what the runtime said when it was made."""
        self.pointer = self.entry.pointer
        own = self.pointer.contents
        self.address = self.device_address = int(own.virt_addr) + int(own.offset)

    @property
    def ctx(self) -> int:
        """Handle of the context under which it was allocated."""
        return self.entry.ctx

    @property
    def holder(self) -> Holder:
        """Whom it is for."""
        return self.entry.holder

    @property
    def allocation(self) -> Memory:
        """The allocation that it is, or is a slice of."""
        return self if self.owner is None else self.owner

    @property
    def stop(self) -> int:
        """Offset in the allocation of the byte after the last."""
        return self.start + self.size

    # ---- users -----------------------------------------------------------------------------------------------------

    def use(self, lease: Lease) -> None:
        """Be in use until a lease is over, or nobody holds it; the session's guard is held."""
        self.users = [*filter(_goes_on, self.users), lease.ref]

    @property
    def in_use(self) -> bool:
        """Whether a call is at work with it."""
        return any(map(_goes_on, self.users))

    # ---- caches ----------------------------------------------------------------------------------------------------

    def sync(self, mode: MemSyncMode) -> int:
        """Synchronise caches, always through the whole allocation: for a slice it is reported to do nothing (Q15).

        Runtimes before 1.6.0 have no such call; nothing is done there. Returns how often the runtime was called.
        """
        whole = self.allocation
        if whole.mirror is not None and mode & MemSyncMode.TO_DEVICE:
            C.memmove(whole.device_address, whole.address, whole.size)
        calls = int(whole.runtime.has("rknn_mem_sync"))
        if calls:
            whole.runtime.mem_sync(whole.ctx, whole.pointer, mode)
        if whole.mirror is not None and mode & MemSyncMode.FROM_DEVICE:
            C.memmove(whole.address, whole.device_address, whole.size)
        return calls

    def fill(self, values: NDArray[Any]) -> None:
        """Write values that stand one behind the other, from the first byte on."""
        C.memmove(self.address, values.ctypes.data, values.nbytes)
        self.mark_written()

    def mirror_in(self, values: NDArray[Any]) -> None:
        """Have the CPU read and write an array of the same size instead, with what it holds now."""
        whole = self.allocation
        whole.mirror, whole.address = values, values.ctypes.data
        self.mark_written()

    def mark_written(self) -> None:
        """Say that the CPU wrote here."""
        self.allocation.written += 1

    def flush(self) -> int:
        """Make what the CPU wrote visible to the device; again and again while somebody can still write.

        Returns how often the runtime was called for it.
        """
        whole = self.allocation
        if whole.mirror is not None or any(view.writable for view in whole.views):
            whole.written += 1
        if whole.written != whole.synchronised:
            with whole.lock:  # a second thread has to wait until it is done
                written = whole.written
                if written != whole.synchronised:
                    calls = whole.sync(MemSyncMode.TO_DEVICE)
                    whole.synchronised = written
                    return calls
        return 0

    # ---- views -----------------------------------------------------------------------------------------------------

    def living_views(self) -> list[View]:
        """Views of the whole allocation that somebody still holds."""
        return [view for view in self.allocation.views if view.pages() is not None]

    def add_view(self, pages: Any, writable: bool) -> None:
        """Remember that somebody holds a view of this range as long as `pages` lives."""
        whole = self.owner or self
        view = View(weakref.ref(pages), self, writable)
        with whole.lock:
            if whole.views:
                whole.views = [*(each for each in whole.views if each.writable or each.pages() is not None), view]
            else:
                whole.views = [view]

    def take_ended_writers(self) -> list[View]:
        """Forget the views that are gone; return those that somebody could write through until then.

        Until this is called they count as still being written through, so that no write is missed.
        """
        whole = self.allocation
        if not whole.views:
            return []
        with whole.lock:
            living = whole.living_views()
            ended = [view for view in whole.views if view.writable and view not in living]
            whole.views = living
            return ended

    def viewed(self) -> int:
        """How many views would dangle without it: all of an allocation; of a slice, those taken through it."""
        return sum(self.owner is None or view.entry is self.entry for view in self.living_views())

    def being_written(self) -> bool:
        """Whether somebody holds a writable view that touches this range, or did and was not counted yet."""
        whole = self.allocation
        return whole.mirror is not None or any(view.writable and view.touches(self) for view in whole.views)


def _goes_on(ref: weakref.ref[Lease]) -> bool:
    lease = ref()
    return lease is not None and not lease.over


def owner_of(entry: Entry) -> Memory | Handle | None:
    """Who holds an entry."""
    owner = None if entry.owner is None else entry.owner()
    assert owner is None or isinstance(owner, (Memory, Handle))
    return owner


def is_at_work(owner: Memory | Handle | None) -> bool:
    """Whether a thread waits for a run of a context."""
    if not isinstance(owner, Handle) or is_idle(owner):
        return False
    lease = None if owner.lease is None else owner.lease()
    return lease is not None and not lease.given_up
