"""Memory of the host for A and C of products that the CPU makes, kept for reuse and acquired by one call at a time."""

from __future__ import annotations

import weakref

import numpy as np

from npumatmul.device.leases import Lease, is_idle
from npumatmul.running.workspace import Workspace

__all__ = ["CpuMemories", "CpuMemory"]

#: A line of a CPU's cache.
_LINE = 64


class CpuMemory:
    """A piece of memory.

    Attributes
    ----------
    address, size : int
    lease : weak reference to Lease, or None
        By which it is held.
    retired : bool
        Whether nobody is to use it after its lease.
    """

    def __init__(self, size: int) -> None:
        self._array = np.empty(size + _LINE, np.uint8)
        self.address = self._array.ctypes.data + -self._array.ctypes.data % _LINE
        self.size = size
        self.lease: weakref.ref[Lease] | None = None
        self.retired = False


class CpuMemories:
    """Pieces of a few sizes, as `Workspace` has them, so that weights and numbers of rows share them.

    All that use it hold the device's lock.
    """

    def __init__(self) -> None:
        self._by_size: dict[int, list[CpuMemory]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all pieces."""
        return sum(each.size for pieces in self._by_size.values() for each in pieces)

    def acquire(self, nbytes: int, lease: Lease) -> CpuMemory:
        """A piece with room for `nbytes` that nobody else gets until the lease is over."""
        size = Workspace.size_for(nbytes)
        pieces = self._by_size.setdefault(size, [])
        found = next((each for each in pieces if is_idle(each)), None)
        if found is None:
            found = CpuMemory(size)
            pieces.append(found)
        found.lease = lease.ref
        return found

    def clear(self) -> None:
        """Give up all of them; those that are lent go when they come back."""
        for pieces in self._by_size.values():
            for each in pieces:
                each.retired = True
        self._by_size.clear()
