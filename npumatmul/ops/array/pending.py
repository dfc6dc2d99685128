"""Memory of results that nobody read yet: their values still stand where the NPU left them."""

from __future__ import annotations

import logging
import weakref
from os import getpid

from npumatmul.device.budget import Holder
from npumatmul.device.buffer import Buffer
from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, NpuMemoryError
from npumatmul.ops.array.memory import in_any_domain
from npumatmul.running.deferred import DeferredResult, ResultSlot

__all__ = ["Pending", "Unread"]

logger = logging.getLogger(__name__)

#: What results that nobody read yet may hold of a device: buffers, of a descriptor each, and a part of its memory.
_BUFFERS_MOST = 200
_PART_OF_MEMORY = 8


class Pending:
    """The buffer of a result, made when it is asked for; arrays that share memory share this.

    Attributes
    ----------
    device : Device
    nbytes : int
        Bytes that the buffer has room for.
    state : DeferredResult or Buffer or None
        What there is; None: it was closed before it became a buffer.
    """

    __slots__ = ("__weakref__", "device", "nbytes", "state")

    def __init__(self, device: Device, deferred: DeferredResult, nbytes: int) -> None:
        self.device, self.nbytes = device, nbytes
        self.state: DeferredResult | Buffer | None = deferred

    @property
    def deferred(self) -> DeferredResult | None:
        """What the values can be made of, as long as nobody read them: then they may be changed."""
        state = self.state
        return state if isinstance(state, DeferredResult) else None

    @property
    def buffer(self) -> Buffer:
        """The memory; the values come into it on first use, in one pass.

        Raises
        ------
        NpuMemoryError
            If there is no memory for it. It can be asked for again.
        ClosedError
            If the array or its device are closed, or inherited through a fork.
        """
        state = self.state
        return state if isinstance(state, Buffer) else self.read()

    def read(self, domain: int | None = None) -> Buffer:
        """As `buffer`; if it is made now, then in an IOMMU domain."""
        session = self.device.session
        if getpid() != session.pid:  # of a forked child, where the lock may be held for ever
            session.check_usable()
        try:
            with session.lock:
                return self.read_now(domain)
        except NpuMemoryError:
            return session.with_room(lambda: self.read_now(domain))

    def read_now(self, domain: int | None = None) -> Buffer:
        """As `read`, but without waiting for room while others are at work; the device's lock is held."""
        state, device = self.state, self.device
        if isinstance(state, Buffer):
            return state
        if device.session.closed:
            device.session.check_usable()
        if state is None:
            raise ClosedError("this NpuArray is closed")
        slot = state.slot
        assert slot is not None
        try:
            place = slot.domain if domain is None else domain
            memory = slot.results.take(self.nbytes, place, computed=False, holder=Holder.BUFFERS)
        except NpuMemoryError:
            if domain is not None:
                raise
            memory = in_any_domain(device, self.nbytes, slot.results)
        buffer = Buffer(device.session, memory)
        buffer.of_arrays = True
        state.store(memory.address)
        memory.written += 1
        device.counters.conversions += 1
        self.state = buffer
        return buffer

    @property
    def domain(self) -> int | None:
        """IOMMU domain of the buffer, once there is one."""
        state = self.state
        return state.domain if isinstance(state, Buffer) else None

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        state = self.state
        return state is None or (isinstance(state, Buffer) and state.closed)

    def close(self) -> None:
        """As `Buffer.close`."""
        state = self.state
        if isinstance(state, Buffer):
            state.close()
        elif not self.device.session.inherited:
            with self.device.lock:  # nobody makes a buffer of it meanwhile
                state, self.state = self.state, None
                if isinstance(state, Buffer):
                    self.state = state
                    state.close()

    def leave(self) -> None:
        """As the end of a ``with`` block of a `Buffer`."""
        state = self.state
        if isinstance(state, Buffer):
            state.__exit__()
        else:
            self.close()


class Unread:
    """The results of a device that nobody read yet: where they hold too much, the oldest are read and stored."""

    def __init__(self, device: Device) -> None:
        self._most_bytes = device.chip.memory.domain_bytes // _PART_OF_MEMORY
        self._lock = device.lock
        self._results: list[weakref.ref[Pending]] = []  # the oldest first; some were read or dropped since
        self._buffers = self._nbytes = 0  # what they held when they were added

    def add(self, result: Pending, slot: ResultSlot) -> None:
        """Count a result among them."""
        with self._lock:
            self._results.append(weakref.ref(result))
            self._buffers += len(slot.memories)
            self._nbytes += slot.nbytes
            if self._buffers > _BUFFERS_MOST or self._nbytes > self._most_bytes:
                self._store_oldest()

    def _store_oldest(self) -> None:
        """Count anew, and store as many as it takes."""
        living = [pending for pending in (ref() for ref in self._results) if pending is not None]
        held = [(pending, deferred) for pending in living if (deferred := pending.deferred) is not None]
        slots = [deferred.slot for _, deferred in held]
        self._results = [weakref.ref(pending) for pending, _ in held]
        self._buffers = sum(len(slot.memories) for slot in slots if slot is not None)
        self._nbytes = sum(slot.nbytes for slot in slots if slot is not None)
        for pending, deferred in held[:-1]:
            if self._buffers <= _BUFFERS_MOST and self._nbytes <= self._most_bytes:
                return
            slot = deferred.slot
            assert slot is not None
            buffers, nbytes = len(slot.memories), slot.nbytes
            try:
                pending.read_now()
            except (NpuMemoryError, ClosedError) as error:
                logger.info("a result stays in C: %s", error)
            self._buffers -= buffers
            self._nbytes -= nbytes

    def close(self) -> None:
        """Nothing to do: nobody can read them any more."""
