"""What is allocated on one opened runtime: contexts, memories, and the order in which they are given back.

A `Session` belongs to a device and to every buffer and context that was made on it, and lives as long as any of them.
It alone calls the functions that create and destroy. Memories are destroyed before contexts, and last of all the
contexts under which memory was allocated (facts 11.5).
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TypeVar

from npumatmul.chips import Chip
from npumatmul.chips.types import MatmulType
from npumatmul.device.boardlock import BoardLock
from npumatmul.device.budget import (
    NO_ROOM,
    Holder,
    MemoryStats,
    Reclaimer,
    by_holder,
    descriptor_limit,
    open_descriptors,
    provide_descriptors,
)
from npumatmul.device.given_up import recover
from npumatmul.device.leases import Leases, Spares, is_idle
from npumatmul.device.living import Living
from npumatmul.device.lost import LOOK_AT_THE_DRIVER, LOOK_AT_THE_SETTINGS, answers, lost_error
from npumatmul.device.memory import Handle, Memory, is_at_work, owner_of
from npumatmul.device.registry import ContextEntry, Entry, MemoryEntry, Registry
from npumatmul.errors import BusyError, ClosedError, DeviceLostError, NpuError, NpuMemoryError, RknnError
from npumatmul.files.uncopied import Uncopied
from npumatmul.host.executor import Executor
from npumatmul.rknn import MatmulInfo, MatmulIoAttr, Runtime

__all__ = ["Session"]

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")
#: Slices of an allocation that `Session.part` remembers.
_PARTS_MOST = 64


class Session(Uncopied):
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
    reclaimers : Living of Reclaimer
        Who holds contexts and memory for reuse.
    pid : int
        Of the process that opened it.
    inherited : bool
        Whether this process is a forked child of that one.

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
        #: For runs of contexts of users.
        self.executors: Spares[Executor] = Spares()
        self.closed = False
        self._lost: RknnError | None = None  # the call that failed first when the device went
        self.run_calls = self.set_io_mem_calls = self.mem_sync_calls = self.set_dynamic_shape_calls = self.macs = 0
        self.limit: int | None = None
        self.peak = 0
        self.reclaimers: Living[Reclaimer] = Living()
        self.pid = os.getpid()
        self.inherited = False
        self._anchors: dict[int, ContextEntry] = {}
        self._registry = Registry(runtime)
        try:
            self.anchor(0)
        except RknnError as error:
            if any(each.runtime.path == runtime.path and not each.closed for each in _open_sessions):
                raise  # the driver serves others
            advice = LOOK_AT_THE_DRIVER + (LOOK_AT_THE_SETTINGS if runtime.simulated_soc() is not None else "")
            raise type(error)(error.function, error.code, error.arguments, advice) from None
        _open_sessions.add(self)

    def __del__(self) -> None:
        registry = getattr(self, "_registry", None)
        if registry is not None and (not self.closed or len(registry) or self._anchors):
            with suppress(BusyError):  # a run that was given up is still going on
                self.close()

    # ---- state -----------------------------------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise `ClosedError` where the device was closed, or opened by the parent of a forked process.

        And `DeviceLostError` where it is gone.
        """
        if self._lost is not None:
            raise lost_error(self.name, self._lost)
        if self.closed:
            raise ClosedError(f"the device {self.name} is closed; open another Device")
        if self.inherited:
            raise ClosedError(
                f"the device {self.name} was opened by process {self.pid} and cannot be used after a fork; "
                "open a Device (and pack weights) in the child, or start it with the 'spawn' method"
            )

    def resources(self) -> tuple[int, int, int]:
        """Living contexts, descriptors of memory, bytes of memory."""
        with self.lock:
            allocations = self.allocations()
            return self.count_contexts(), len(allocations), sum(memory.size for memory in allocations)

    def count_contexts(self) -> int:
        """Living contexts, those under which memory is allocated included."""
        return sum(each.exists for each in list(self._anchors.values())) + len(self._registry.contexts())

    def allocations(self) -> list[MemoryEntry]:
        """Memory that is no slice of other memory."""
        return self._registry.allocations()

    def memories(self) -> list[Memory]:
        """The same, but for what nobody holds."""
        return [memory for memory in map(owner_of, self.allocations()) if isinstance(memory, Memory)]

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
                memories = self._registry.slices() if self.runtime.has("rknn_mem_sync") else self.allocations()
                weights_used = sum(memory.size for memory in memories if memory.holder is Holder.WEIGHTS)
            contexts, descriptors, _ = self.resources()
            same = [each for each in _open_sessions if each.name == self.name and not each.inherited]
            in_process = sum(each.count_contexts() for each in same)
            limits, held = self.chip.memory, [(m.domain, m.holder, m.size) for m in self.allocations()]
            return MemoryStats(
                self.name, by_holder(held, limits.domain_bytes), self.peak, self.limit, weights_used,
                contexts, in_process, limits.contexts, descriptors, open_descriptors(), descriptor_limit(),
            )  # fmt: skip

    def viewed(self) -> int:
        """How many views of memory somebody holds."""
        return sum(len(memory.living_views()) for memory in self.memories())

    # ---- a device that is gone -------------------------------------------------------------------------------------

    def diagnosed(self, error: RknnError) -> NpuError:
        """What to raise for a failure of the runtime: that the device is gone, where it is; else the same error."""
        with self.lock:
            if self._lost is None:
                anchors = [each for each in self._anchors.values() if each.exists]
                if self.closed or answers(self.runtime, self._registry, anchors, self._smallest(0)):
                    return error
                self._lost, self.closed = error, True
                logger.error("%s", lost_error(self.name, error))
            return lost_error(self.name, self._lost)

    def raise_if_lost(self, error: RknnError) -> None:
        """Raise `DeviceLostError` where the device is gone."""
        failure = self.diagnosed(error)
        if failure is not error:
            raise failure from failure.__cause__

    # ---- creating --------------------------------------------------------------------------------------------------

    def anchor(self, domain: int = 0) -> int:
        """Handle of the context under which memory of an IOMMU domain is allocated.

        It is a context of the smallest shape. 1.6.0 allocates without one too, later runtimes only with a flag, and
        never in a domain of choice (facts 7.1, 7.4).
        """
        with self.lock:
            entry = self._anchors.get(domain)
            while entry is None or not entry.exists:
                entry = self._anchors[domain] = ContextEntry()
                try:
                    provide_descriptors(self.chip.memory.context_descriptors)
                    self.runtime.matmul_create(self._smallest(domain), entry)
                    if domain:
                        logger.info("%s: memory of IOMMU domain %d is used from now on", self.name, domain)
                except NO_ROOM as error:  # descriptors and memory are limited per process
                    if domain and isinstance(error, RknnError):
                        self.raise_if_lost(error)
                    if not self.spare_context():
                        raise
            return entry.value

    def _smallest(self, domain: int) -> MatmulInfo:
        """A context of the smallest shape."""
        limits, mm_type = self.chip.limits[MatmulType.INT8_INT8_INT32], MatmulType.INT8_INT8_INT32
        return MatmulInfo(M=1, K=limits.k_multiple, N=limits.n_multiple, type=mm_type.code, iommu_domain_id=domain)

    def allocate(self, nbytes: int, domain: int = 0, holder: Holder = Holder.WORKSPACES) -> Memory:
        """Allocate NPU memory; it is given back when nobody holds it any more, or by `release`.

        Contexts and workspaces that are kept for reuse and idle are given up where there is no room otherwise.

        Raises
        ------
        NpuMemoryError
            If the limit is reached, the runtime has no memory, or the process no descriptors left; the message says
            what holds what.
        """
        with self.lock:
            self.check_usable()
            self.collect()
            provide_descriptors()
            if not self._has_room(nbytes) and not (self.reclaim() and self._has_room(nbytes)):
                raise NpuMemoryError(
                    f"{nbytes} bytes of NPU memory for {holder.value} are beyond the limit of {self.limit} that "
                    f"memory_limit set. Close packed weights and buffers that are not needed.\n{self.memory_stats()}"
                )
            try:
                memory = self._created(MemoryEntry(self.anchor(domain), domain, nbytes, holder))
            except RknnError as error:
                if error.function == "rknn_matmul_create":
                    raise
                raise NpuMemoryError(
                    f"{nbytes} bytes of NPU memory for {holder.value} could not be allocated in IOMMU domain {domain} "
                    f"({error}). Close packed weights and buffers there that are not needed any more; if the runtime "
                    f"printed 'Too many open files', raise the limit (ulimit -n).\n{self.memory_stats()}"
                ) from error
            total = sum(each.size for each in self.allocations())
            self.peak = total if total > self.peak else self.peak
            return memory

    def _created(self, entry: MemoryEntry) -> Memory:
        """Allocate; where that fails, once more when what is idle has given way."""
        memory = Memory(self.runtime, entry)

        def create() -> None:
            try:
                self.runtime.create_mem(entry.ctx, entry.size, entry)
            except RknnError as error:
                self.raise_if_lost(error)
                if not self.reclaim(entry.domain):
                    raise
                self.runtime.create_mem(entry.ctx, entry.size, entry)

        self._make(entry, memory, create)
        memory.made()
        return memory

    def _make(self, entry: Entry, owner: Memory | Handle, create: Callable[[], _Result]) -> _Result:
        """Have the runtime make what an entry is for; where that fails, or is interrupted, nothing stays."""
        self._registry.add(entry, owner)
        try:
            return create()
        except BaseException:
            if entry.exists:
                self._registry.drop(entry)
            else:
                self._registry.forget(entry)
            raise

    def fits(self, nbytes: int, domain: int) -> bool:
        """Whether the runtime has so much more memory in a domain, once what is idle has given way; it is tried."""
        with self.lock:
            try:
                memory = self._created(MemoryEntry(self.anchor(domain), domain, nbytes, Holder.WORKSPACES))
            except RknnError:
                return False
            try:
                self.release(memory)
            except RknnError as error:
                self._tell_refused(error)
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
        return self.leases.repeated(attempt, NO_ROOM, self.check_usable)

    def reclaim(self, domain: int | None = None) -> bool:
        """Have everybody give up what is kept for reuse and idle, of one domain or of all; whether there was any."""
        with self.lock:
            given = [each.reclaim(domain) for each in self.reclaimers]
            self.collect()
            given.append(self._registry.destroy_again())
            if any(given):
                logger.info("%s: gave up contexts and memory that were kept for reuse", self.name)
            return any(given)

    def spare_context(self) -> bool:
        """Have somebody give up a context that is kept for reuse; whether there was one."""
        with self.lock:
            return any(each.spare_one() for each in self.reclaimers)

    def wrap(self, whole: Memory, start: int, nbytes: int) -> Memory:
        """A slice of an allocation; the address passed is that of the descriptor's whole memory (facts 7.1)."""
        with self.lock:
            self.check_usable()
            self.collect()
            own = whole.pointer.contents
            entry = MemoryEntry(whole.ctx, whole.domain, nbytes, whole.holder, whole.entry)
            memory = Memory(self.runtime, entry, start, whole)
            try:
                self._make(
                    entry,
                    memory,
                    lambda: self.runtime.create_mem_from_fd(
                        whole.ctx, int(own.fd), int(own.virt_addr), nbytes, int(own.offset) + start, entry
                    ),
                )
            except RknnError as error:
                self.raise_if_lost(error)
                raise
            memory.made()
            if whole.mirror is not None:
                memory.address = whole.address + start
            return memory

    def part(self, memory: Memory, start: int, nbytes: int) -> Memory:
        """A slice of a memory, the same one if it is asked for again soon. The lock is held.

        Whoever has its pointer used holds the slice: it may be forgotten here at any time.
        """
        whole, key = memory.allocation, (memory.start + start, nbytes)
        found = whole.parts.pop(key, None)
        if found is None:
            found = self.wrap(whole, *key)
            while len(whole.parts) >= _PARTS_MOST:
                del whole.parts[next(iter(whole.parts))]  # the one that was asked for longest ago
        whole.parts[key] = found
        return found

    def create(
        self, info: MatmulInfo, shapes: list[tuple[int, int, int]] | None = None
    ) -> tuple[Handle, list[MatmulIoAttr]]:
        """Create a context, of one shape or of several; returns the attributes of each.

        It is destroyed when nobody holds the handle any more, or by `release`.
        """
        with self.lock:
            self.check_usable()
            self.collect()
            provide_descriptors(self.chip.memory.context_descriptors)
            entry = ContextEntry()
            handle = Handle(entry)

            def create() -> list[MatmulIoAttr]:
                if shapes is None:
                    return [self.runtime.matmul_create(info, entry)[1]]
                return self.runtime.matmul_create_dynamic_shape(info, shapes, entry)[1]

            try:
                return handle, self._make(entry, handle, create)
            except RknnError as error:
                self.raise_if_lost(error)
                raise

    # ---- giving back -----------------------------------------------------------------------------------------------

    def release(self, resource: Memory | Handle) -> None:
        """Give a memory, with its slices, or a context back. Doing it twice is allowed.

        Raises
        ------
        BusyError
            If another thread runs with it.
        RknnError
            If the runtime does not destroy it. It counts until it does: `reclaim` and `close` try again.
        """
        entry = resource.entry
        if self.inherited:  # the parent's are the parent's to destroy, and locks may be held there
            resource.closed = True
            return
        if resource.closed and entry not in self._registry:
            return
        with self.lock:
            whole = isinstance(entry, MemoryEntry) and entry.whole is None
            slices = self._registry.slices(entry) if whole else []
            entries = [*slices, entry]
            self._claim(entries)
            failed: RknnError | None = None
            before, self._registry.unsure = self._registry.unsure, True
            for each in entries:
                try:
                    self._registry.destroy(each)
                except RknnError as error:
                    failed = failed or error
            self._registry.unsure = before  # no interrupt came
            if self.closed:
                self._drop_anchors()
                self._leave_board()
            if failed is not None and not isinstance(self.diagnosed(failed), DeviceLostError):
                raise failed

    def check_idle(self, resource: Memory | Handle) -> None:
        """Raise `BusyError` where somebody runs with a memory or a context. The lock is held."""
        used = isinstance(resource, Memory) and (resource.in_use or self.leases.reads(resource))
        if used or (isinstance(resource, Handle) and not is_idle(resource)):
            raise BusyError("another thread is running with it; let that end before closing")

    def _claim(self, entries: Iterable[Entry]) -> None:
        """Mark those that hold them as closed, so that nobody begins to use them any more."""
        with self.guard:
            owners = [owner for owner in map(owner_of, entries) if owner is not None]
            for owner in owners:
                self.check_idle(owner)
            for owner in owners:
                owner.closed = owner.entry.unwanted = True

    def release_later(self, *resources: Memory | Handle) -> None:
        """Give back at the next call; safe from a garbage collector that runs at any moment."""
        for resource in resources:
            self._registry.drop(resource.entry)
        if self.closed and self.lock.acquire(blocking=False):  # no call will follow
            try:
                self.collect()
            finally:
                self.lock.release()

    def collect(self) -> None:
        """Give back what nobody holds, and what `release_later` was told of. The caller holds the lock."""
        if self.leases.given_up:
            recover(self.leases)
        if not self._registry.has_dropped:
            return
        for entry in self._registry.take_dropped():
            owner = owner_of(entry)
            try:
                if owner is not None:
                    self.release(owner)
                else:
                    self._registry.destroy(entry)
            except BusyError:
                self._registry.drop(entry)
            except RknnError as error:
                self._tell_refused(error)
        self._registry.settled()
        if self.closed:
            self._drop_anchors()
            self._leave_board()

    def _tell_refused(self, error: RknnError) -> None:
        """Log that something was not destroyed, unless the device is gone, with all that was on it."""
        if not isinstance(self.diagnosed(error), DeviceLostError):
            logger.warning("%s: giving back failed: %s", self.name, error)

    def _drop_anchors(self) -> None:
        """Destroy the contexts under which memory was allocated, once nothing else is left."""
        kept = {memory.domain for memory in (*self.allocations(), *self._registry.slices())}
        contexts = self._registry.contexts()
        for domain, anchor in [each for each in list(self._anchors.items()) if each[0] not in kept and not contexts]:
            try:
                self._registry.destroy(anchor)
            except RknnError:
                if self._lost is None:
                    continue  # it is tried again when something else goes
            self._anchors.pop(domain, None)

    def _leave_board(self) -> None:
        """Let another process have the board, once nothing of this one is left on it."""
        if self._board is not None and self.closed and not self._anchors and not self._registry.contexts():
            self._board.release()

    def check_closable(self, keep_viewed: bool) -> None:
        """Raise what `close` would, but for products that are at work and will end. The caller holds the lock."""
        with self.guard:
            if any(is_at_work(owner) for owner in map(owner_of, self._registry.contexts())):
                raise BusyError(f"another thread is running on {self.name}; let that end before closing")
            if not keep_viewed and self.viewed():
                raise BufferError(
                    f"{self.viewed()} views of buffers of {self.name} are still held; delete them, then close"
                )

    def close(self, keep_viewed: bool = True) -> None:
        """Give everything back. Closing twice is allowed; the second time tries again what the runtime refused.

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
        with self.lock:
            with self.guard:
                if not self.closed:
                    self.check_closable(keep_viewed)
                if not self.closed or self._lost is not None:
                    self.leases.check_idle(self.name)
                    logger.info("closing %s", self.name)
                self.closed = True
            # for the second time, too: an interrupt may have come in the first one
            recover(self.leases)
            refused = self._destroy_all()
            self._drop_anchors()
            self._leave_board()
            self.executors.close()
            if refused:
                logger.warning(
                    "closing %s: the runtime did not destroy %d contexts and memories, which stay until the process "
                    "ends or another close succeeds: %s", self.name, len(refused), refused[0],
                )  # fmt: skip

    def _destroy_all(self) -> list[RknnError]:
        """Destroy what nobody has a view of, memories first; return what the runtime refused."""
        refused: list[RknnError] = []
        for entry in self._registry.in_order():
            owner = owner_of(entry)
            if isinstance(owner, Memory) and owner.allocation.living_views():
                continue
            try:
                self._claim([entry])
                self._registry.destroy(entry)
            except BusyError:
                continue
            except RknnError as error:
                if self._lost is not None:
                    self._registry.forget(entry)  # what was on the device went with it
                else:
                    refused.append(error)
        return refused


_open_sessions: Living[Session] = Living()


def _inherit_sessions() -> None:
    """In a forked child: what was open before is the parent's."""
    for session in list(_open_sessions):
        session.inherited = True


os.register_at_fork(after_in_child=_inherit_sessions)


@atexit.register
def _close_sessions() -> None:
    """Close what is still open while the interpreter is whole; what is in use then, the system takes back."""
    for session in _open_sessions:
        try:
            session.close()
        except BusyError as error:
            logger.info("at exit: %s", error)
