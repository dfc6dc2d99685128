"""NPU memory of results, kept for reuse: a result that is dropped gives its memory to the next one."""

from __future__ import annotations

from npumatmul.device.budget import Holder
from npumatmul.device.buffer import PAGE
from npumatmul.device.memory import Memory
from npumatmul.device.session import Session

__all__ = ["ResultMemory"]


class ResultMemory:
    """Allocations of a few sizes, each twice the one before, that results have one at a time.

    What the CPU stores into and what the NPU writes are different ones: the caches may hold what the CPU wrote, which
    has to be synchronised before the NPU writes there. Who has one is known by ``Memory.held_by``; a list of those that
    are idle makes it quick to find one. All that use it hold the device's lock.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._all: dict[tuple[bool, int, int], list[Memory]] = {}  # by who writes, domain and size
        self._idle: dict[tuple[bool, int, int], list[Memory]] = {}
        session.reclaimers.add(self)

    @staticmethod
    def size_for(nbytes: int) -> int:
        """Bytes of an allocation with room for `nbytes`.

        Examples
        --------
        >>> ResultMemory.size_for(5000), ResultMemory.size_for(16384)
        (8192, 16384)
        """
        return max(PAGE, 1 << (nbytes - 1).bit_length())

    def take(self, size: int, domain: int, *, computed: bool, holder: Holder = Holder.WORKSPACES) -> Memory:
        """One that nobody has; its `held_by` has to be set before the lock is given up.

        Parameters
        ----------
        size : int
            Of `size_for`.
        domain : int
            IOMMU domain.
        computed : bool
            Whether the NPU writes there, or else the CPU.
        holder : Holder
            Whom it is for.

        Raises
        ------
        NpuMemoryError
            If there is no room for it.
        """
        key = computed, domain, size
        idle = self._idle.setdefault(key, [])
        while True:
            if not idle:
                self._find_idle(key)
            if not idle:
                break
            memory = idle.pop()
            if memory.held_by is None and not memory.closed:
                memory.entry.holder = holder
                if memory.views:  # views that are gone: whoever held them could write until then
                    memory.views = []
                    memory.written += 1
                if computed and memory.written != memory.synchronised:
                    self.clean(memory)
                return memory
        memory = self._session.allocate(size, domain, holder)
        memory.home = idle
        self._all.setdefault(key, []).append(memory)
        return memory

    def clean(self, memory: Memory) -> None:
        """Leave no dirty cache lines, which would be written over what the NPU writes there."""
        self._session.mem_sync_calls += memory.flush()

    def _find_idle(self, key: tuple[bool, int, int]) -> None:
        """Find those that an interrupt kept from the list."""
        idle = self._idle[key]
        listed = {id(memory) for memory in idle}
        for memory in self._all.get(key, ()):
            if memory.held_by is not None and memory.held_by() is None:
                memory.held_by = None
            if memory.held_by is None and not memory.closed and id(memory) not in listed:
                idle.append(memory)

    def reclaim(self, domain: int | None = None) -> bool:
        """Free those that are idle, of one IOMMU domain or of all; whether there was one."""
        freed = False
        for key in [key for key in self._all if domain in (None, key[1])]:
            self._find_idle(key)
            idle = self._idle[key]
            while idle:
                memory = idle[-1]
                if memory.held_by is None:
                    freed = freed or not memory.closed
                    self._session.release(memory)
                idle.pop()
            self._all[key] = [memory for memory in self._all[key] if not memory.closed]
        return freed

    def spare_one(self) -> bool:
        """There are no contexts here."""
        return False

    def close(self) -> None:
        """Nothing to do: the device gives all memory back."""
