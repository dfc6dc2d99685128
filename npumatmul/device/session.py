"""What is allocated on one opened runtime: contexts, memories, and the order in which they are given back.

A `Session` belongs to a device and to every buffer and context that was made on it, and lives as long as any of them.
It alone calls the functions that create and destroy. Memories are destroyed before contexts, and last of all the
contexts under which memory was allocated (facts 11.5).
"""

from __future__ import annotations

import atexit
import ctypes as C
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from npumatmul.chips import Chip
from npumatmul.chips.types import MatmulType
from npumatmul.device.boardlock import BoardLock
from npumatmul.device.budget import (
    Holder,
    MemoryStats,
    Reclaimer,
    by_holder,
    descriptor_limit,
    open_descriptors,
    provide_descriptors,
)
from npumatmul.device.leases import Lease, Leases, Turn
from npumatmul.errors import BusyError, ClosedError, NpuMemoryError, RknnError, RknnFail, RknnMallocFail
from npumatmul.rknn import MatmulInfo, MatmulIoAttr, MemSyncMode, Runtime, TensorMem

__all__ = ["NO_ROOM", "Handle", "Memory", "Session", "View"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
#: Slices of an allocation that `Session.part` remembers.
_PARTS_MOST = 64
#: What is raised where there is no memory, or no further context.
NO_ROOM = (NpuMemoryError, RknnFail, RknnMallocFail)


@dataclass(eq=False)
class Handle:
    """A matmul context of the runtime."""

    value: int
    closed: bool = False
    busy: bool = False


class View:
    """CPU access to a range of an allocation that somebody holds.

    Attributes
    ----------
    pages : weakref
        To what keeps the memory for them.
    through : Memory
        By which it was asked for: the allocation, or a slice.
    writable : bool
    """

    __slots__ = ("pages", "through", "writable")

    def __init__(self, pages: weakref.ref[Any], through: Memory, writable: bool) -> None:
        self.pages, self.through, self.writable = pages, through, writable

    def touches(self, memory: Memory) -> bool:
        """Whether it shows bytes of `memory`, of the same allocation."""
        return self.through.start < memory.stop and memory.start < self.through.stop


@dataclass(eq=False)
class Memory:
    """A `rknn_tensor_mem`: an allocation of the runtime, or a slice of one.

    Attributes
    ----------
    runtime : Runtime
    ctx : int
        Handle of the context under which it was allocated.
    domain : int
        IOMMU domain.
    holder : Holder
        Whom it is for.
    pointer : pointer to TensorMem
    address : int
        CPU address of the first byte (facts 1.3: `virt_addr` plus `offset`).
    size : int
        Bytes.
    start : int
        Offset in the allocation.
    allocation : Memory
        What it is a slice of; itself where it is none.
    written, synchronised : int
        Of an allocation: how often the CPU wrote into it, and up to which of these the device can see it.
    users : int
        Runs that are going on with it.
    lease : weakref to Lease, or None
        Of a buffer that is lent: to whom.
    held_by : weakref or None
        The `Buffer`, or the result, that has it.
    home : list of Memory, or None
        Where it goes when nobody has it any more, to serve again; None: it is given back to the runtime.
    parts : dict
        Of an allocation: slices of it that are bound again and again, by offset and bytes.
    retired : bool
        Of a buffer that is lent: whether it is given back now or at the end of its lease, and lent to nobody else.
    """

    runtime: Runtime
    ctx: int
    domain: int
    pointer: C._Pointer[TensorMem]
    size: int
    start: int = 0
    owner: Memory | None = None
    holder: Holder = Holder.WORKSPACES
    closed: bool = False
    written: int = 0
    synchronised: int = 0
    users: int = 0
    lease: weakref.ref[Lease] | None = None
    held_by: weakref.ref[Any] | None = None
    home: list[Memory] | None = None
    retired: bool = False
    views: list[View] = field(default_factory=list)
    parts: dict[tuple[int, int], Memory] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    address: int = field(init=False)

    def __post_init__(self) -> None:
        memory = self.pointer.contents
        self.address = int(memory.virt_addr) + int(memory.offset)

    @property
    def allocation(self) -> Memory:
        """The allocation that it is, or is a slice of."""
        return self if self.owner is None else self.owner

    @property
    def stop(self) -> int:
        """Offset in the allocation of the byte after the last."""
        return self.start + self.size

    def sync(self, mode: MemSyncMode) -> int:
        """Synchronise caches, always through the whole allocation: for a slice it is reported to do nothing (Q15).

        Runtimes before 1.6.0 have no such call; nothing is done there. Returns how often the runtime was called.
        """
        whole = self.allocation
        if not whole.runtime.has("rknn_mem_sync"):
            return 0
        whole.runtime.mem_sync(whole.ctx, whole.pointer, mode)
        return 1

    def mark_written(self) -> None:
        """Say that the CPU wrote here."""
        self.allocation.written += 1

    def flush(self) -> int:
        """Make what the CPU wrote visible to the device; again and again while somebody can still write.

        Returns how often the runtime was called for it.
        """
        whole = self.allocation
        if any(view.writable for view in whole.views):
            whole.written += 1
        if whole.written != whole.synchronised:
            with whole.lock:  # a second thread has to wait until it is done
                written = whole.written
                if written != whole.synchronised:
                    calls = whole.sync(MemSyncMode.TO_DEVICE)
                    whole.synchronised = written
                    return calls
        return 0

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
        return sum(self.owner is None or view.through is self for view in self.living_views())

    def being_written(self) -> bool:
        """Whether somebody holds a writable view that touches this range, or did and was not counted yet."""
        return any(view.writable and view.touches(self) for view in self.allocation.views)


class Session:
    """An opened runtime on one chip, and all that was created through it.

    Parameters
    ----------
    runtime : Runtime
    chip : Chip
    name : str
        Device string, for messages.
    board : BoardLock, optional
        The board's lock, given up when the session is closed.

    Attributes
    ----------
    lock : threading.RLock
        Held while something is created or destroyed.
    guard : threading.RLock
        Held for the moment in which a context is marked as busy or not. Taken after `lock`, never before.
    leases : Leases
        Who is at work. Runs hold neither lock.
    run_calls, set_io_mem_calls, mem_sync_calls, set_dynamic_shape_calls, macs : int
        What contexts of users did (`DeviceStats`).
    limit : int or None
        Bytes of NPU memory that may be allocated.
    peak : int
        Most bytes that were allocated at once.
    reclaimers : WeakSet of Reclaimer
        Who holds contexts and memory for reuse.
    pid : int
        Of the process that opened it.

    Raises
    ------
    RknnError
        If not even the smallest context can be created.
    """

    def __init__(self, runtime: Runtime, chip: Chip, name: str, board: BoardLock | None = None) -> None:
        self.runtime, self.chip, self.name, self._board = runtime, chip, name, board
        self.lock = threading.RLock()
        self.guard = threading.RLock()
        self.leases = Leases(self.lock)
        self.closed = False
        self._depth = 0  # how deep the lock's owner is inside of release and close
        self.run_calls = self.set_io_mem_calls = self.mem_sync_calls = self.set_dynamic_shape_calls = self.macs = 0
        self.limit: int | None = None
        self.peak = 0
        self.reclaimers: weakref.WeakSet[Reclaimer] = weakref.WeakSet()
        self.pid = os.getpid()
        self._anchors: dict[int, int] = {}
        self._memories: dict[Memory, None] = {}
        self._handles: dict[Handle, None] = {}
        self._released: deque[Memory | Handle] = deque()
        self.anchor(0)
        _open_sessions.add(self)

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()
        elif getattr(self, "_released", None):
            with self._inside():
                self.collect()

    # ---- state -----------------------------------------------------------------------------------------------------

    @property
    def inherited(self) -> bool:
        """Whether the process that opened it is this one's parent."""
        return os.getpid() != self.pid

    def check_usable(self) -> None:
        """Raise `ClosedError` where the device was closed, or opened by the parent of a forked process."""
        if self.closed:
            raise ClosedError(f"the device {self.name} is closed; open another Device")
        if os.getpid() != self.pid:
            raise ClosedError(
                f"the device {self.name} was opened by process {self.pid} and cannot be used after a fork; "
                "open a Device (and pack weights) in the child, or start it with the 'spawn' method"
            )

    def resources(self) -> tuple[int, int, int]:
        """Living contexts, descriptors of memory, bytes of memory."""
        with self.lock:
            allocations = self.allocations()
            contexts = len(self._anchors) + len(self._handles)
            return contexts, len(allocations), sum(memory.size for memory in allocations)

    def allocations(self) -> list[Memory]:
        """Memory that is no slice of other memory."""
        return [memory for memory in list(self._memories) if memory.owner is None]

    def held(self, domain: int) -> dict[Holder, int]:
        """Bytes of memory in an IOMMU domain, by what holds them; empty where nothing does."""
        held: dict[Holder, int] = {}
        for memory in self.allocations():
            if memory.domain == domain:
                held[memory.holder] = held.get(memory.holder, 0) + memory.size
        return held

    def memory_stats(self, weights_used: int | None = None) -> MemoryStats:
        """What is held now; weights fill their slices of memory, or as many bytes as is said."""
        with self.lock:
            if weights_used is None:
                divided = self.runtime.has("rknn_mem_sync")
                of_weights = [memory for memory in list(self._memories) if memory.holder is Holder.WEIGHTS]
                weights_used = sum(memory.size for memory in of_weights if (memory.owner is not None) == divided)
            contexts, descriptors, _ = self.resources()
            same = [each for each in list(_open_sessions) if each.name == self.name and not each.inherited]
            return MemoryStats(
                self.name,
                by_holder([(m.domain, m.holder, m.size) for m in self.allocations()], self.chip.memory.domain_bytes),
                self.peak,
                self.limit,
                weights_used,
                contexts,
                sum(len(each._anchors) + len(each._handles) for each in same),
                self.chip.memory.contexts,
                descriptors,
                open_descriptors(),
                descriptor_limit(),
            )

    def viewed(self) -> int:
        """How many views of memory somebody holds."""
        return sum(len(memory.living_views()) for memory in self._memories if memory.owner is None)

    # ---- creating --------------------------------------------------------------------------------------------------

    def anchor(self, domain: int = 0) -> int:
        """Handle of the context under which memory of an IOMMU domain is allocated.

        It is a context of the smallest shape. 1.6.0 allocates without one too, later runtimes only with a flag, and
        never in a domain of choice (facts 7.1, 7.4).
        """
        with self.lock:
            if domain not in self._anchors:
                limits = self.chip.limits[MatmulType.INT8_INT8_INT32]
                info = MatmulInfo(
                    M=1, K=limits.k_multiple, N=limits.n_multiple, type=MatmulType.INT8_INT8_INT32.code,
                    iommu_domain_id=domain,
                )  # fmt: skip
                while domain not in self._anchors:
                    try:
                        provide_descriptors(self.chip.memory.context_descriptors)
                        self._anchors[domain], _ = self.runtime.matmul_create(info)
                    except NO_ROOM:  # descriptors and memory are limited per process
                        if not self.spare_context():
                            raise
                if domain:
                    logger.info("%s: memory of IOMMU domain %d is used from now on", self.name, domain)
            return self._anchors[domain]

    def allocate(self, nbytes: int, domain: int = 0, holder: Holder = Holder.WORKSPACES) -> Memory:
        """Allocate NPU memory.

        Contexts and workspaces that are kept for reuse and idle are given up where there is no room otherwise.

        Raises
        ------
        NpuMemoryError
            If the limit is reached, the runtime has no memory, or the process no descriptors left; the message says
            what holds what.
        """
        made: list[Memory] = []
        try:
            with self.lock:
                made.append(self._allocate(nbytes, domain, holder))
        except BaseException:
            self.release_later(*made)  # an interrupt came when it was made
            raise
        return made[0]

    def _allocate(self, nbytes: int, domain: int, holder: Holder) -> Memory:
        self.check_usable()
        self.collect()
        provide_descriptors()
        if not self._has_room(nbytes) and not (self.reclaim() and self._has_room(nbytes)):
            raise NpuMemoryError(
                f"{nbytes} bytes of NPU memory for {holder.value} are beyond the limit of {self.limit} that "
                f"memory_limit set. Close packed weights and buffers that are not needed.\n{self.memory_stats()}"
            )
        ctx = self.anchor(domain)
        try:
            pointer = self._create_mem(ctx, nbytes, domain)
        except RknnError as error:
            raise NpuMemoryError(
                f"{nbytes} bytes of NPU memory for {holder.value} could not be allocated in IOMMU domain {domain} "
                f"({error}). Close packed weights and buffers there that are not needed any more; if the runtime "
                f"printed 'Too many open files', raise the limit (ulimit -n).\n{self.memory_stats()}"
            ) from error
        try:
            total = sum(each.size for each in self.allocations()) + nbytes
            memory = Memory(self.runtime, ctx, domain, pointer, nbytes, holder=holder)
        except BaseException:  # an interrupt
            self.runtime.destroy_mem(ctx, pointer)
            raise
        self._memories[memory] = None
        self.peak = total if total > self.peak else self.peak
        return memory

    def _create_mem(self, ctx: int, nbytes: int, domain: int) -> C._Pointer[TensorMem]:
        try:
            return self.runtime.create_mem(ctx, nbytes)
        except RknnError:
            if not self.reclaim(domain):
                raise
            return self.runtime.create_mem(ctx, nbytes)

    def fits(self, nbytes: int, domain: int) -> bool:
        """Whether the runtime has so much more memory in a domain, once what is idle has given way; it is tried."""
        with self.lock:
            ctx, pointer = self.anchor(domain), None
            try:
                pointer = self._create_mem(ctx, nbytes, domain)
            except RknnError:
                return False
            finally:
                if pointer is not None:
                    self.runtime.destroy_mem(ctx, pointer)
            return True

    def _has_room(self, nbytes: int) -> bool:
        return self.limit is None or sum(each.size for each in self.allocations()) + nbytes <= self.limit

    def with_room(self, attempt: Callable[[], _Result]) -> _Result:
        """Make an attempt under the lock; where there is no room while others are at work, repeat it after them.

        Parameters
        ----------
        attempt : callable
            It holds nothing any more when it raises, and the caller does not hold the lock.

        Raises
        ------
        NpuMemoryError, RknnFail, RknnMallocFail
            If the attempt raises it and nobody else is at work.
        """
        self.check_usable()  # of a forked child, where the lock may be held for ever
        turn: Turn | None = None
        try:
            while True:
                with self.lock:
                    self.check_usable()
                    ended = self.leases.ended
                    try:
                        return attempt()
                    except NO_ROOM:
                        others = self.leases.others()
                        if not others and self.leases.ended == ended:
                            raise
                turn = turn or Turn(self.leases)
                turn.wait(others)
        finally:
            if turn is not None:
                turn.over = True
                turn.leave()

    def reclaim(self, domain: int | None = None) -> bool:
        """Have everybody give up what is kept for reuse and idle, of one domain or of all; whether there was any."""
        with self.lock:
            given = [each.reclaim(domain) for each in list(self.reclaimers)]
            self.collect()
            if any(given):
                logger.info("%s: gave up contexts and memory that were kept for reuse", self.name)
            return any(given)

    def spare_context(self) -> bool:
        """Have somebody give up a context that is kept for reuse; whether there was one."""
        with self.lock:
            return any(each.spare_one() for each in list(self.reclaimers))

    def wrap(self, whole: Memory, start: int, nbytes: int) -> Memory:
        """A slice of an allocation; the address passed is that of the descriptor's whole memory (facts 7.1)."""
        with self.lock:
            self.check_usable()
            own = whole.pointer.contents
            pointer = self.runtime.create_mem_from_fd(
                whole.ctx, int(own.fd), int(own.virt_addr), nbytes, int(own.offset) + start
            )
            memory = Memory(self.runtime, whole.ctx, whole.domain, pointer, nbytes, start, whole, whole.holder)
            self._memories[memory] = None
            return memory

    def part(self, memory: Memory, start: int, nbytes: int) -> Memory:
        """A slice of a memory, always the same one: it lives as long as the allocation. The lock is held."""
        whole, first = memory.allocation, memory.start + start
        found = whole.parts.get((first, nbytes))
        if found is None:
            if len(whole.parts) >= _PARTS_MOST and not self.leases.reads(whole):
                for part in list(whole.parts.values()):
                    self.release(part)
                whole.parts.clear()
            found = whole.parts[first, nbytes] = self.wrap(whole, first, nbytes)
        return found

    def create(
        self, info: MatmulInfo, shapes: list[tuple[int, int, int]] | None = None
    ) -> tuple[Handle, list[MatmulIoAttr]]:
        """Create a context, of one shape or of several; returns the attributes of each."""
        with self.lock:
            self.check_usable()
            self.collect()
            provide_descriptors(self.chip.memory.context_descriptors)
            if shapes is None:
                value, io_attr = self.runtime.matmul_create(info)
                io_attrs = [io_attr]
            else:
                value, io_attrs = self.runtime.matmul_create_dynamic_shape(info, shapes)
            handle = Handle(value)
            self._handles[handle] = None
            return handle, io_attrs

    # ---- giving back -----------------------------------------------------------------------------------------------

    def release(self, resource: Memory | Handle) -> None:
        """Give a memory, with its slices, or a context back. Doing it twice is allowed.

        Raises
        ------
        BusyError
            If another thread runs with it.
        """
        if self.inherited:  # the parent's are the parent's to destroy, and locks may be held there
            resource.closed = True
            return
        if resource.closed and not self._holds(resource):
            return
        with self._inside():
            if resource.closed and not self._holds(resource):  # else an interrupt came when it was given back before
                return
            if isinstance(resource, Memory):
                self._release_memory(resource)
            else:
                self._claim([resource], [])
                del self._handles[resource]
                self.runtime.matmul_destroy(resource.value)

    def _holds(self, resource: Memory | Handle) -> bool:
        return resource in self._memories if isinstance(resource, Memory) else resource in self._handles

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Hold the lock, and have a garbage collector that runs meanwhile leave things for later."""
        with self.lock:
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _release_memory(self, memory: Memory) -> None:
        slices = [] if memory.owner is not None else [other for other in self._memories if other.owner is memory]
        self._claim([], [*slices, memory])
        failed: RknnError | None = None
        for each in (*slices, memory):
            del self._memories[each]
            try:
                self.runtime.destroy_mem(each.ctx, each.pointer)
            except RknnError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        if self.closed:
            self._drop_anchors()
            self._leave_board()

    def _drop_anchors(self) -> None:
        """Destroy the contexts under which memory was allocated, once nothing else is left."""
        kept = {memory.domain for memory in self._memories}
        for domain in [domain for domain in self._anchors if domain not in kept and not self._handles]:
            self.runtime.matmul_destroy(self._anchors.pop(domain))

    def _leave_board(self) -> None:
        """Let another process have the board, once nothing of this one is left on it."""
        if self._board is not None and self.closed and not self._anchors and not self._handles:
            self._board.release()

    def check_idle(self, memory: Memory) -> None:
        """Raise `BusyError` where somebody runs with a memory. The lock is held."""
        if memory.users or self.leases.reads(memory):
            raise BusyError("another thread is running with it; let that end before closing")

    def _claim(self, handles: list[Handle], memories: list[Memory]) -> None:
        """Mark as closed, so that nobody starts to use them any more."""
        with self.guard:
            for memory in memories:
                self.check_idle(memory)
            if any(handle.busy for handle in handles):
                raise BusyError("another thread is running with it; let that end before closing")
            for handle in handles:
                handle.closed = True
            for memory in memories:
                memory.closed = True

    def release_later(self, *resources: Memory | Handle) -> None:
        """Give back at the next call; safe from a garbage collector that runs at any moment."""
        self._released.extend(resources)
        if self.closed and self.lock.acquire(blocking=False):  # no call will follow
            try:
                if not self._depth:
                    with self._inside():
                        self.collect()
            finally:
                self.lock.release()

    def collect(self) -> None:
        """Give back what `release_later` was told of: memories, then contexts. The caller holds the lock."""
        if not self._released:
            return
        for kind in (Memory, Handle):
            for resource in [each for each in list(self._released) if isinstance(each, kind)]:
                self._try_to_release(resource)  # twice, if an interrupt comes before it is off the list
                with suppress(ValueError):  # a garbage collector that ran meanwhile did the same
                    self._released.remove(resource)

    def _try_to_release(self, resource: Memory | Handle) -> None:
        """Release, where whoever is there to be told of a failure did not ask for it."""
        try:
            self.release(resource)
        except RknnError as error:
            logger.warning("%s: giving back failed: %s", self.name, error)

    def check_closable(self, keep_viewed: bool) -> None:
        """Raise what `close` would, but for products that are at work and will end. The caller holds the lock."""
        with self.guard:
            if any(handle.busy for handle in self._handles):
                raise BusyError(f"another thread is running on {self.name}; let that end before closing")
            if not keep_viewed and self.viewed():
                raise BufferError(
                    f"{self.viewed()} views of buffers of {self.name} are still held; delete them, then close"
                )

    def close(self, keep_viewed: bool = True) -> None:
        """Give everything back. Closing twice is allowed.

        Parameters
        ----------
        keep_viewed : bool
            What to do about memory that somebody holds a view of: let it stay until the view is gone, or refuse.

        Raises
        ------
        BufferError
            If there is such memory and it may not stay. Nothing was closed then.
        BusyError
            If another thread is running. Nothing was closed then.
        """
        if self.inherited:
            self.closed = True
            return
        with self._inside():
            if not self.closed:
                with self.guard:
                    self.check_closable(keep_viewed)
                    self.leases.check_idle(self.name)
                    self.closed = True
                logger.info("closing %s", self.name)
            # for the second time, too: an interrupt may have come in the first one
            for memory in list(self._memories):
                if not memory.allocation.living_views():
                    self._try_to_release(memory)
            for handle in list(self._handles):
                self._try_to_release(handle)
            self.collect()
            self._drop_anchors()
            self._leave_board()


_open_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


@atexit.register
def _close_sessions() -> None:
    """Close what is still open while the interpreter is whole; what is in use then, the system takes back."""
    for session in list(_open_sessions):
        try:
            session.close()
        except BusyError as error:
            logger.info("at exit: %s", error)
