"""Memory of results that have no buffer yet: their values stand where the NPU left them, or in memory of the host."""

from __future__ import annotations

import logging
import sys
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.budget import Holder
from npumatmul.device.buffer import Buffer
from npumatmul.device.device import Device
from npumatmul.device.memory import Memory
from npumatmul.errors import ClosedError, NpuMemoryError
from npumatmul.ops.array.memory import in_any_domain
from npumatmul.running.deferred import DeferredResult, ResultSlot
from npumatmul.running.placement import Placement

__all__ = ["Pending", "UnreadResults"]

logger = logging.getLogger(__name__)
_ref, _ndarray = weakref.ref, np.ndarray

#: What results that nobody read yet may hold of a device: buffers, of a descriptor each, and a part of its memory.
_BUFFERS_MOST = 200
_PART_OF_MEMORY = 8
#: Results that somebody saw in memory of the host, before it is looked which of them are gone.
_SHOWN = 256


class Pending:
    """The buffer of a result, made when it is asked for; arrays that share memory share this.

    Attributes
    ----------
    device : Device
    nbytes : int
        Bytes that the buffer has room for.
    state : DeferredResult, ndarray, Buffer or None
        What there is: the result in C, its values in memory of the host, or the buffer; None: it was closed before it
        became one.
    address : int
        Of values in memory of the host; 0 where nobody asked for it yet.
    """

    __slots__ = ("__weakref__", "_results", "address", "device", "nbytes", "state")

    def __init__(
        self, device: Device, state: DeferredResult | NDArray[Any], nbytes: int, results: UnreadResults
    ) -> None:
        self.device, self.nbytes, self._results = device, nbytes, results
        self.address = 0
        self.state: DeferredResult | NDArray[Any] | Buffer | None = state

    @property
    def deferred(self) -> DeferredResult | None:
        """What the values can be made of, as long as nobody read them: then they may be changed."""
        state = self.state
        return state if isinstance(state, DeferredResult) else None

    def whole(self) -> NDArray[Any] | None:
        """All values in memory of the host; None where they are not there (any more). Who holds them holds a view."""
        session, results = self.device.session, self._results
        if session.inherited:  # a forked child, where the lock may be held for ever
            session.check_usable()
        with session.lock:  # else a buffer is made of them meanwhile
            values: Any = self.state
            if type(values) is not _ndarray:
                return None
            shown = results.shown
            if values.base is None and len(shown) < _SHOWN:
                shown[id(values)] = _ref(self)
            else:
                results.show(values, self)
        whole: NDArray[Any] = values
        return whole

    def seen(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...], offset: int, *, writable: bool
    ) -> NDArray[Any] | None:
        """A view of the values in memory of the host; None where they are not there (any more)."""
        values = self.whole()
        if values is None:
            return None
        same = offset == 0 and shape == values.shape and strides == values.strides
        view: NDArray[Any] = values.view() if same else np.ndarray(shape, dtype, values, offset, strides)
        if not writable:
            view.flags.writeable = False
        return view

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
        if session.inherited:
            session.check_usable()
        try:
            with session.lock:
                return self.read_now(domain)
        except NpuMemoryError:
            return session.with_room(lambda: self.read_now(domain))

    def read_now(self, domain: int | None = None) -> Buffer:
        """As `read`, but without waiting for room while others are at work; the device's lock is held."""
        device = self.device
        if isinstance(self.state, Buffer):
            return self.state
        if device.session.closed:
            device.session.check_usable()
        if self.state is None:
            raise ClosedError("this NpuArray is closed")
        buffer = (
            self._of_deferred(self.state, domain) if isinstance(self.state, DeferredResult) else self._of_values(domain)
        )
        buffer.of_arrays = True
        device.counters.conversions += 1
        self.state = buffer
        return buffer

    def _of_deferred(self, state: DeferredResult, domain: int | None) -> Buffer:
        slot = state.slot
        assert slot is not None
        buffer = Buffer(self.device.session, self._take(slot.domain if domain is None else domain, domain is None))
        state.store(buffer._memory.address)
        buffer._memory.written += 1
        return buffer

    def _of_values(self, domain: int | None) -> Buffer:
        """Of values in memory of the host: where somebody sees them there, they stay, and the buffer has a copy."""
        session, seen = self.device.session, self.viewed()
        assert isinstance(self.state, np.ndarray)
        if not seen:
            buffer = Buffer(session, self._take(domain or 0, domain is None))
            buffer._memory.fill(self.state)
            return buffer
        memory = session.allocate(self.state.nbytes, domain or 0, Holder.BUFFERS)
        memory.mirror_in(self.state)
        return Buffer(session, memory)

    def _take(self, domain: int, anywhere: bool) -> Memory:
        results = self._results.memory
        try:
            return results.take(self.nbytes, domain, computed=False, holder=Holder.BUFFERS)
        except NpuMemoryError:
            if not anywhere:
                raise
            return in_any_domain(self.device, self.nbytes, results)

    def viewed(self) -> int:
        """How many views of values in memory of the host are held: numpy's views refer to who owns the memory."""
        if not isinstance(self.state, np.ndarray):
            return 0
        return _references(self) - (_ALONE if self.state.base is None else _ALONE_RESHAPED)

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
        if not isinstance(self.state, Buffer) and not self.device.session.inherited:
            with self.device.lock:  # nobody makes a buffer of it meanwhile
                held = self.viewed()
                if held:
                    raise BufferError(f"{held} views of this array are still held; delete them, then close")
                if not isinstance(self.state, Buffer):
                    self.state = None
        if isinstance(self.state, Buffer):
            self.state.close()

    def leave(self) -> None:
        """As the end of a ``with`` block of a `Buffer`."""
        state = self.state
        if isinstance(state, Buffer):
            state.__exit__()
        elif isinstance(state, np.ndarray):
            self.state = None  # views keep their memory
        else:
            self.close()


class UnreadResults:
    """The results of a device that have no buffer yet: where those in C hold too much, the oldest are stored.

    Attributes
    ----------
    memory : ResultMemory
        For their buffers.
    """

    def __init__(self, device: Device) -> None:
        self.memory = Placement.of(device).results
        self._most_bytes = device.chip.memory.domain_bytes // _PART_OF_MEMORY
        self._lock = device.lock
        self._results: list[weakref.ref[Pending]] = []  # the oldest first; some were read or dropped since
        self._buffers = self._nbytes = 0  # what they held when they were added
        #: By the identity of values in memory of the host that somebody saw.
        self.shown: dict[int, weakref.ref[Pending]] = {}

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

    def show(self, values: NDArray[Any], result: Pending) -> None:
        """Know whose values somebody sees."""
        shown, owner = self.shown, values if values.base is None else values.base
        if id(owner) not in shown and len(shown) >= _SHOWN:
            for key in [key for key, ref in shown.items() if ref() is None]:
                shown.pop(key, None)
        shown[id(owner)] = weakref.ref(result)

    def whose(self, values: NDArray[Any]) -> Pending | None:
        """The result whose values in memory of the host an array is a view of."""
        base: Any = values
        while isinstance(base, np.ndarray | memoryview):
            result = self.shown.get(id(base), _nobody)()
            state = None if result is None else result.state
            if isinstance(state, np.ndarray) and (base is state or base is state.base):
                return result
            base = base.base if isinstance(base, np.ndarray) else base.obj
        return None

    def close(self) -> None:
        """Nothing to do: nobody can read them any more."""


def _nobody() -> None:
    return None


def _references(holder: Any) -> int:
    """References to values, and to who owns their memory; how many of them are this function's depends on Python."""
    own = sys.getrefcount(holder.state)
    return own if holder.state.base is None else own + sys.getrefcount(holder.state.base)


_ALONE = _references(SimpleNamespace(state=np.empty(1)))
_ALONE_RESHAPED = _references(SimpleNamespace(state=np.empty(2).reshape(2, 1)))
