"""Memory of results that nobody read yet: their values still stand where the NPU left them."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable

from npumatmul.device.buffer import Buffer
from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, NpuMemoryError
from npumatmul.ops.array.memory import take
from npumatmul.running.deferred import DeferredResult

__all__ = ["Pending"]

logger = logging.getLogger(__name__)

#: What results that nobody read yet may hold of a device: buffers, of a descriptor each, and a part of its memory.
_BUFFERS_MOST = 200
_PART_OF_MEMORY = 8


class Pending:
    """The buffer of a result, made when it is asked for; arrays that share memory share this.

    Attributes
    ----------
    device : Device
    """

    def __init__(self, device: Device, deferred: DeferredResult, room: Callable[[], int]) -> None:
        self.device = device
        self._room = room
        self._state: DeferredResult | Buffer | None = deferred  # None: closed before it became a buffer
        device.attached(Unread, Unread).add(self)

    @property
    def nbytes(self) -> int:
        """Bytes that the buffer has, or will have."""
        return self._room()

    @property
    def deferred(self) -> DeferredResult | None:
        """What the values can be made of, as long as nobody read them: then they may be changed."""
        state = self._state
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
        state = self._state
        return state if isinstance(state, Buffer) else self.read()

    def read(self, domain: int | None = None) -> Buffer:
        """As `buffer`; if it is made now, then in an IOMMU domain."""
        return self.device.session.with_room(lambda: self.read_now(domain))

    def read_now(self, domain: int | None = None) -> Buffer:
        """As `read`, but without waiting for room while others are at work; the device's lock is held."""
        state, device = self._state, self.device
        if isinstance(state, Buffer):
            return state
        if state is None:
            raise ClosedError("this NpuArray is closed")
        buffer = take(device, self.nbytes, domain, computed=False)
        state.store(buffer.memory.address)
        buffer.mark_written()
        device.counters.conversions += 1
        self._state = buffer
        return buffer

    @property
    def domain(self) -> int | None:
        """IOMMU domain of the buffer, once there is one."""
        state = self._state
        return state.domain if isinstance(state, Buffer) else None

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        state = self._state
        return state is None or (isinstance(state, Buffer) and state.closed)

    def close(self) -> None:
        """As `Buffer.close`."""
        state = self._state
        if isinstance(state, Buffer):
            state.close()
        elif not self.device.session.inherited:
            with self.device.lock:  # nobody makes a buffer of it meanwhile
                state, self._state = self._state, None
                if isinstance(state, Buffer):
                    self._state = state
                    state.close()

    def leave(self) -> None:
        """As the end of a ``with`` block of a `Buffer`."""
        state = self._state
        if isinstance(state, Buffer):
            state.__exit__()
        else:
            self.close()


class Unread:
    """The results of a device that nobody read yet: where they hold too much, the oldest are read and stored."""

    def __init__(self, device: Device) -> None:
        self._most_bytes = device.chip.memory.domain_bytes // _PART_OF_MEMORY
        self._lock = device.lock
        self._results: list[weakref.ref[Pending]] = []  # the oldest first

    def add(self, result: Pending) -> None:
        """Count a result among them."""
        with self._lock:
            self._results.append(weakref.ref(result))
            living = [pending for pending in (ref() for ref in self._results) if pending is not None]
            held = [(pending, deferred) for pending in living if (deferred := pending.deferred) is not None]
            self._results = [weakref.ref(pending) for pending, _ in held]
        buffers, nbytes = sum(deferred.buffers for _, deferred in held), sum(deferred.nbytes for _, deferred in held)
        for pending, deferred in held[:-1]:
            if buffers <= _BUFFERS_MOST and nbytes <= self._most_bytes:
                break
            try:
                with self._lock:
                    pending.read_now()
            except (NpuMemoryError, ClosedError) as error:
                logger.info("a result stays in C: %s", error)
            buffers, nbytes = buffers - deferred.buffers, nbytes - deferred.nbytes

    def close(self) -> None:
        """Nothing to do: nobody can read them any more."""
