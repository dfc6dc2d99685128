"""Arenas: large allocations from which packed weights take slices.

Each allocation of the runtime holds a file descriptor (facts 7.1), so weights share few large ones: a slice wraps a
part of an arena through `rknn_create_mem_from_fd`. A slice is always synchronised through the allocation that it
belongs to, because synchronising a slice is reported to do nothing.
"""

from __future__ import annotations

import ctypes as C
import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from npumatmul.budget import Holder
from npumatmul.errors import NpuMemoryError, RknnError
from npumatmul.layout import round_up
from npumatmul.memory import PAGE
from npumatmul.rknn import TensorMem
from npumatmul.session import Memory, Session

__all__ = ["Arena", "Slice", "WeightMemory"]

logger = logging.getLogger(__name__)

#: Arenas grow from the first size to the second with what is stored; a larger weight gets an arena of its own.
SMALLEST_ARENA = 4 * 1024**2
LARGEST_ARENA = 64 * 1024**2


class Slice:
    """A part of an arena that has a `rknn_tensor_mem` of its own, so that it can be bound to a context.

    Whoever has it holds the memory: one that is dropped, as by an interrupt, is given back too.

    Attributes
    ----------
    pointer : pointer to TensorMem
    address : int
        CPU address of its first byte.
    size : int
        Bytes as asked for.
    """

    def __init__(self, arena: Arena, start: int, size: int, reserved: int) -> None:
        self.arena = arena
        self.start = start
        self.size = size
        self.reserved = reserved
        self._memory = arena.memory if arena.undivided else arena.session.wrap(arena.memory, start, size)
        self.address = self._memory.address
        self.pointer: C._Pointer[TensorMem] = self._memory.pointer
        self.closed = False
        self._finalizer = weakref.finalize(self, arena.dropped, self._memory)
        self._finalizer.atexit = False  # at exit the session frees everything in its own order

    @property
    def memory(self) -> Memory:
        """The runtime's memory."""
        return self._memory

    def bytes(self) -> NDArray[np.uint8]:
        """Read-only view. It does not keep the memory: hold the device's lock, and the slice, while it is used."""
        pages = memoryview((C.c_uint8 * self.size).from_address(self.address))
        view: NDArray[np.uint8] = np.frombuffer(pages.toreadonly(), np.uint8)
        return view

    def fill(self, data: NDArray[np.uint8]) -> None:
        """Write all of it.

        Raises
        ------
        ValueError
            If `data` is not as many contiguous bytes.
        """
        if data.dtype != np.uint8 or data.shape != (self.size,) or not data.flags.c_contiguous:
            raise ValueError(f"fill: {self.size} contiguous bytes are needed, not {data.dtype} of shape {data.shape}")
        C.memmove(self.address, data.ctypes.data, self.size)
        self.mark_written()

    def mark_written(self) -> None:
        """Say that the CPU wrote here: the arena is synchronised before the next run."""
        self._memory.mark_written()

    def close(self) -> None:
        """Give the slice back to its arena. Closing twice is allowed, and again after an interrupt."""
        if not self.closed:
            self.arena.release(self)
            if not self.arena.undivided:
                self.arena.session.release(self._memory)
            self._finalizer.detach()
            self.closed = True


class Arena:
    """A large allocation from which slices are taken, first fit: what no living slice covers is free.

    Attributes
    ----------
    undivided : bool
        Whether it serves one weight as a whole. Before 1.6.0 nothing but `rknn_matmul_set_io_mem` synchronises caches,
        and it is not known to do so for slices (Q15), so each weight gets an allocation of its own.
    slices : WeakSet of Slice
        Those that live; their owners hold them.
    """

    def __init__(self, session: Session, size: int) -> None:
        self.session = session
        self.undivided = not session.runtime.has("rknn_mem_sync")
        self.slices: weakref.WeakSet[Slice] = weakref.WeakSet()
        self._free: list[tuple[int, int]] | None = None  # forgotten while it changes, for an interrupt may come then
        self._stale = False  # whether slices went that nobody closed
        self.memory = session.allocate(size, holder=Holder.WEIGHTS)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.memory.size

    @property
    def empty(self) -> bool:
        """Whether no slice lives."""
        return next(iter(self.slices), None) is None

    def free(self) -> list[tuple[int, int]]:
        """Ranges that no slice covers, (start, length), in order of their start."""
        if self._stale or self._free is None:
            self._stale = False
            taken = sorted((piece.start, piece.start + piece.reserved) for piece in self.slices)
            edges = [0, *(edge for both in taken for edge in both), self.size]
            ranges = zip(edges[::2], edges[1::2], strict=True)
            self._free = [(start, stop - start) for start, stop in ranges if stop > start]
        return self._free

    def allocate(self, size: int) -> Slice | None:
        """A slice of `size` bytes, or None where no free range is long enough."""
        reserved = self.rounded(size)
        for start, length in self.free():
            if length >= reserved:
                taken = Slice(self, start, size, length if self.undivided else reserved)
                self._take([taken])
                return taken
        return None

    def allocate_row(self, sizes: Sequence[int]) -> list[Slice] | None:
        """Slices one behind the other, or None where no free range is long enough for all."""
        total = sum(map(self.rounded, sizes))
        start = next((start for start, length in self.free() if length >= total), None)
        if self.undivided or start is None:
            return None
        made: list[Slice] = []
        try:
            for size in sizes:
                made.append(Slice(self, start + sum(piece.reserved for piece in made), size, self.rounded(size)))
        except BaseException:
            for piece in made:
                piece.close()
            raise
        self._take(made)
        return made

    def _take(self, made: list[Slice]) -> None:
        """Count slices that follow each other, in a free range, as taken."""
        start, stop = made[0].start, made[-1].start + made[-1].reserved
        free, self._free = self.free(), None
        self.slices.update(made)
        rest = [part for each in free for part in _without(each, start, stop)]
        self._free = rest

    def rounded(self, size: int) -> int:
        """Bytes that a slice of `size` bytes takes: the next one starts where the runtime takes an offset."""
        return round_up(size, self.session.chip.memory.slice_alignment)

    def release(self, piece: Slice) -> None:
        """Take a range back and join free ranges that touch. Doing it twice is allowed."""
        if piece not in self.slices:
            return
        free, self._free = self._free, None
        self.slices.discard(piece)
        if free is None:
            return
        joined: list[tuple[int, int]] = []
        for start, length in sorted([*free, (piece.start, piece.reserved)]):
            if joined and joined[-1][0] + joined[-1][1] == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self._free = joined

    def dropped(self, memory: Memory) -> None:
        """A slice is gone that nobody closed. A garbage collector may call this at any moment."""
        self._stale = True
        if not self.undivided:
            self.session.release_later(memory)

    def recount(self) -> None:
        """Find out anew what is free."""
        self._stale = True

    def close(self) -> None:
        """Give back every slice, then the memory."""
        for piece in list(self.slices):
            piece.close()
        self.session.release(self.memory)


def _without(free: tuple[int, int], start: int, stop: int) -> list[tuple[int, int]]:
    """What is left of a free range without the bytes from `start` to `stop`, which lie in it or outside of it."""
    first, last = free[0], sum(free)
    if not first <= start < last:
        return [free]
    return [(begin, end - begin) for begin, end in ((first, start), (stop, last)) if end > begin]


@dataclass
class WeightMemory:
    """The arenas of one device. Not thread-safe by itself: the device's lock guards it."""

    session: Session
    capacity: int
    arenas: list[Arena] = field(default_factory=list)

    @property
    def bytes_reserved(self) -> int:
        """Bytes of NPU memory that the arenas hold."""
        return sum(arena.size for arena in self.arenas)

    @property
    def bytes_used(self) -> int:
        """Bytes of the slices."""
        return sum(piece.size for arena in self.arenas for piece in arena.slices)

    def allocate(self, size: int) -> Slice:
        """A slice of `size` bytes.

        Raises
        ------
        NpuMemoryError
            If the device's memory is used up.
        """
        for arena in self.arenas:
            piece = arena.allocate(size)
            if piece is not None:
                return piece
        arena = self._new_arena(size)
        piece = arena.allocate(size)
        assert piece is not None
        return piece

    def allocate_row(self, sizes: Sequence[int]) -> list[Slice]:
        """Slices for the tiles of a row: one behind the other if there is such a range, else wherever there is room.

        Raises
        ------
        NpuMemoryError
            If the device's memory is used up.
        """
        if len(sizes) > 1 and self.session.runtime.has("rknn_mem_sync"):
            for arena in self.arenas:
                pieces = arena.allocate_row(sizes)
                if pieces is not None:
                    return pieces
            try:
                alignment = self.session.chip.memory.slice_alignment
                pieces = self._new_arena(sum(round_up(size, alignment) for size in sizes)).allocate_row(sizes)
            except NpuMemoryError as error:
                if isinstance(error.__cause__, RknnError):
                    raise
                pieces = None  # there is no room for it as a whole, but perhaps in pieces
            if pieces is not None:
                return pieces
        made: list[Slice] = []
        try:
            for size in sizes:
                made.append(self.allocate(size))
        except BaseException:
            self.release(made)
            raise
        return made

    def _new_arena(self, size: int) -> Arena:
        """An arena with room for a slice of that size."""
        needed = round_up(size, self.session.chip.memory.slice_alignment)
        room = self.capacity - self.bytes_reserved
        if needed > room:
            raise NpuMemoryError(
                f"a weight of {size} bytes does not fit: of the {self.capacity} bytes that one IOMMU domain can hold, "
                f"packed weights use {self.bytes_used} and {self.bytes_reserved} are reserved. "
                f"Close packed weights that are not needed any more.\n{self.session.memory_stats(self.bytes_used)}"
            )
        self._release_orphans()
        arena = Arena(self.session, max(needed, min(self._next_size(), room)))
        self.arenas.append(arena)
        logger.debug("new weight arena of %d bytes, %d in all", arena.size, self.bytes_reserved)
        return arena

    def _next_size(self) -> int:
        """Bytes of the next arena, where one weight does not need more; little where little is allowed."""
        if not self.session.runtime.has("rknn_mem_sync"):
            return 0
        wanted = min(LARGEST_ARENA, max(SMALLEST_ARENA, self.bytes_reserved))
        limit = self.session.limit
        if limit is None:
            return wanted
        held = sum(memory.size for memory in self.session.allocations())
        return min(wanted, max(0, limit - held) // 2 // PAGE * PAGE)

    def trim(self) -> None:
        """Free the arenas that no weight fills."""
        for arena in [arena for arena in self.arenas if arena.empty]:
            self.arenas.remove(arena)
            arena.close()
        self._release_orphans()

    def _release_orphans(self) -> None:
        """Free what an interrupt left with nobody: arenas that were made or given back, ranges that were dropped."""
        for arena in self.arenas:
            arena.recount()
        known = {arena.memory for arena in self.arenas}
        for memory in self.session.allocations():
            if memory.holder is Holder.WEIGHTS and memory not in known:
                self.session.release(memory)

    def release(self, pieces: Sequence[Slice]) -> None:
        """Take slices back; arenas that are empty are freed but for one, which serves the next weight."""
        for piece in pieces:
            piece.close()
        empty = [arena for arena in self.arenas if arena.empty]
        for arena in empty[1:]:
            self.arenas.remove(arena)
            arena.close()

    def flush(self) -> None:
        """Make all that the CPU wrote visible to the device."""
        for arena in self.arenas:
            arena.memory.flush()

    def close(self) -> None:
        """Free everything."""
        for arena in self.arenas:
            arena.close()
        self.arenas.clear()
