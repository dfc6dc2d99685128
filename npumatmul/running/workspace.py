"""Buffers for A and C, kept for reuse and acquired by one user at a time."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

from npumatmul.device.buffer import PAGE
from npumatmul.device.leases import Lease, is_idle
from npumatmul.device.memory import Memory
from npumatmul.device.session import Session

__all__ = ["A_BUFFERS", "Workspace", "WorkspaceBuffers"]

#: Buffers for images of A: slices of K are worked on in batches of so many.
A_BUFFERS = 8


class WorkspaceBuffers(list[Memory]):
    """Buffers that are nobody else's until their lease is over, or nobody holds it any more.

    Attributes
    ----------
    lease : Lease
        By which they are held.
    """

    __slots__ = ("__weakref__", "lease")

    def __init__(self, memories: Sequence[Memory], lease: Lease) -> None:
        super().__init__(memories)
        self.lease = lease


class Workspace:
    """Buffers of A and C, of a few sizes, each four times the one before; each is lent to one user at a time.

    They are synchronised as a whole, so one token must not pay for what a prompt needed; but each holds a descriptor.
    What was A is never lent as C: the NPU would write there while the CPU's caches may hold what it wrote itself. They
    are in the IOMMU domain of the contexts that are bound to them. All that use it hold the device's lock.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._buffers: dict[tuple[str, int, int], list[Memory]] = {}  # by role, domain and size
        #: Lent when all was cleared: freed when they come back. A callback sees to those whose buffers is dropped.
        self._retired: dict[Memory, weakref.ref[Lease]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._buffers.values()))

    @staticmethod
    def size_for(nbytes: int) -> int:
        """Bytes of a buffer with room for `nbytes`.

        Examples
        --------
        >>> Workspace.size_for(5000), Workspace.size_for(16384)
        (16384, 16384)
        """
        size = PAGE
        while size < nbytes:
            size *= 4
        return size

    def acquire(
        self, role: str, count: int, nbytes: int, lease: Lease | None = None, domain: int = 0
    ) -> WorkspaceBuffers:
        """Buffers that nobody else gets.

        Parameters
        ----------
        role : str
            ``"A"`` where the CPU writes into them, ``"C"`` where the NPU does.
        count : int
        nbytes : int
            For which each has room.
        lease : Lease, optional
            They are lent until it is over, or nobody holds it any more; by default one that only the list holds.
        domain : int
            IOMMU domain.

        Returns
        -------
        WorkspaceBuffers
            A list of them.

        Raises
        ------
        NpuMemoryError
            If there is no room for them. Nothing is lent then.
        """
        self._free_retired()
        size = self.size_for(nbytes)
        buffers = WorkspaceBuffers((), lease or Lease())
        for memory in self._buffers.get((role, domain, size), ()):
            if len(buffers) < count and is_idle(memory) and not memory.closed:
                memory.lease = buffers.lease.ref
                buffers.append(memory)
        while len(buffers) < count:
            memory = self._session.allocate(size, domain)  # idle buffers may have to go for it
            memory.lease = buffers.lease.ref
            self._buffers.setdefault((role, domain, size), []).append(memory)
            buffers.append(memory)
        return buffers

    def clear(self, domain: int | None = None) -> bool:
        """Free those that are idle now, and those that are lent when they come back; whether there was an idle one.

        Those of one IOMMU domain, or all.
        """
        freed = False
        for key, kept in [each for each in self._buffers.items() if domain in (None, each[0][1])]:
            for memory in kept:
                if is_idle(memory):
                    freed = freed or not memory.closed
                    self._take_away(memory)
                    self._session.release(memory)
                else:
                    self._retire(memory)
            del self._buffers[key]
        self._free_retired()
        return freed

    def _retire(self, memory: Memory) -> None:
        lease = self._take_away(memory)
        if lease is not None:
            session = self._session
            self._retired[memory] = weakref.ref(lease, lambda _: session.release_later(memory))

    def _take_away(self, memory: Memory) -> Lease | None:
        """Have nobody use it after its lease."""
        memory.retired = True
        lease = memory.lease() if memory.lease else None
        if lease is not None:
            lease.worn = True
        return lease

    def _free_retired(self) -> None:
        for memory in [memory for memory in self._retired if is_idle(memory)]:
            self._session.release(memory)
            del self._retired[memory]
