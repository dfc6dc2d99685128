"""NPU memory: single allocations, and arenas of them from which weights take slices.

Each allocation of the runtime holds a file descriptor (facts 7.1), so weights share few large ones: a slice wraps a
part of an arena through `rknn_create_mem_from_fd`. A slice is always synchronised through the arena that it belongs
to, because synchronising a slice is reported to do nothing.
"""

from __future__ import annotations

import ctypes as C
import logging
from dataclasses import dataclass, field

from npumatmul.errors import ClosedError, NpuMemoryError, RknnError
from npumatmul.layout import round_up
from npumatmul.rknn import MemSyncMode, Runtime, TensorMem

logger = logging.getLogger(__name__)

#: Sizes are rounded up to a memory page.
PAGE = 4096
#: Slices start at multiples of this. What the runtime really needs is an open question (Q16).
SLICE_ALIGNMENT = PAGE
#: Arenas grow from the first size to the second with what is stored; a larger weight gets an arena of its own.
SMALLEST_ARENA = 4 * 1024**2
LARGEST_ARENA = 64 * 1024**2


class Buffer:
    """One allocation of the runtime (`rknn_create_mem`): CPU address, descriptor, size in bytes.

    Parameters
    ----------
    runtime : Runtime
    ctx : int
        Handle of a living context to allocate under.
    size : int
        Bytes.

    Raises
    ------
    NpuMemoryError
        If the runtime has no memory or the process no descriptors left.
    """

    def __init__(self, runtime: Runtime, ctx: int, size: int) -> None:
        self._runtime = runtime
        self._ctx = ctx
        try:
            self.pointer = runtime.create_mem(ctx, size)
        except RknnError as error:
            raise NpuMemoryError(
                f"{size} bytes of NPU memory could not be allocated ({error}). Close packed weights that are not "
                "needed any more; if the runtime printed 'Too many open files', raise the limit (ulimit -n)."
            ) from error
        self.size = size
        self.closed = False

    def __repr__(self) -> str:
        return f"Buffer(size={self.size}, {'closed' if self.closed else f'fd={self.fd}'})"

    @property
    def memory(self) -> TensorMem:
        """The runtime's own struct."""
        if self.closed:
            raise ClosedError("this NPU buffer is closed")
        return self.pointer.contents

    @property
    def fd(self) -> int:
        """Descriptor of the memory."""
        return int(self.memory.fd)

    @property
    def address(self) -> int:
        """CPU address of the first byte (facts 1.3: `virt_addr` plus `offset`)."""
        memory = self.memory
        return int(memory.virt_addr) + int(memory.offset)

    def sync(self, mode: MemSyncMode) -> None:
        """Synchronise caches; nothing to do on runtimes before 1.6.0, which have no such call."""
        if self._runtime.has("rknn_mem_sync"):
            self._runtime.mem_sync(self._ctx, self.pointer, mode)

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed."""
        if not self.closed:
            self.closed = True
            self._runtime.destroy_mem(self._ctx, self.pointer)


class Slice:
    """A part of an arena that has a `rknn_tensor_mem` of its own, so that it can be bound to a context.

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
        self.address = arena.buffer.address + start
        self.pointer: C._Pointer[TensorMem] = arena.wrap(start, size)
        self.closed = False

    def mark_written(self) -> None:
        """Say that the CPU wrote here: the arena is synchronised before the next run."""
        self.arena.dirty = True

    def close(self) -> None:
        """Give the slice back to its arena. Closing twice is allowed."""
        if not self.closed:
            self.closed = True
            self.arena.release(self)


class Arena:
    """A large buffer with a list of its free ranges, in order of their start; first fit."""

    def __init__(self, runtime: Runtime, ctx: int, size: int) -> None:
        self._runtime = runtime
        self._ctx = ctx
        self.buffer = Buffer(runtime, ctx, size)
        self.free = [(0, size)]
        self.slices: set[Slice] = set()
        self.dirty = False

    def allocate(self, size: int) -> Slice | None:
        """A slice of `size` bytes, or None where no free range is long enough."""
        reserved = round_up(size, SLICE_ALIGNMENT)
        for index, (start, length) in enumerate(self.free):
            if length >= reserved:
                taken = Slice(self, start, size, reserved)
                self.slices.add(taken)
                rest = [(start + reserved, length - reserved)] if length > reserved else []
                self.free[index : index + 1] = rest
                return taken
        return None

    def wrap(self, start: int, size: int) -> C._Pointer[TensorMem]:
        """A `rknn_tensor_mem` of a range; the virtual address passed is that of the whole memory (facts 7.1)."""
        memory = self.buffer.memory
        offset = int(memory.offset) + start
        return self._runtime.create_mem_from_fd(self._ctx, self.buffer.fd, int(memory.virt_addr), size, offset)

    def release(self, piece: Slice) -> None:
        """Take a slice back and join free ranges that touch."""
        self._runtime.destroy_mem(self._ctx, piece.pointer)
        self.slices.discard(piece)
        joined: list[tuple[int, int]] = []
        for start, length in sorted([*self.free, (piece.start, piece.reserved)]):
            if joined and joined[-1][0] + joined[-1][1] == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self.free = joined

    def flush(self) -> None:
        """Make what the CPU wrote visible to the device."""
        if self.dirty:
            self.buffer.sync(MemSyncMode.TO_DEVICE)
            self.dirty = False

    def close(self) -> None:
        """Give back every slice, then the memory."""
        for piece in list(self.slices):
            piece.close()
        self.buffer.close()


@dataclass
class WeightMemory:
    """The arenas of one device. Not thread-safe by itself: the device's lock guards it."""

    runtime: Runtime
    ctx: int
    capacity: int
    arenas: list[Arena] = field(default_factory=list)

    @property
    def bytes_reserved(self) -> int:
        """Bytes of NPU memory that the arenas hold."""
        return sum(arena.buffer.size for arena in self.arenas)

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
        wanted = max(round_up(size, SLICE_ALIGNMENT), min(LARGEST_ARENA, max(SMALLEST_ARENA, self.bytes_reserved)))
        room = self.capacity - self.bytes_reserved
        if round_up(size, SLICE_ALIGNMENT) > room:
            raise NpuMemoryError(
                f"a weight of {size} bytes does not fit: of the {self.capacity} bytes that one IOMMU domain can hold, "
                f"packed weights use {self.bytes_used} and {self.bytes_reserved} are reserved. "
                "Close packed weights that are not needed any more."
            )
        arena = Arena(self.runtime, self.ctx, min(wanted, room))
        self.arenas.append(arena)
        logger.debug("new weight arena of %d bytes, %d in all", arena.buffer.size, self.bytes_reserved)
        piece = arena.allocate(size)
        assert piece is not None
        return piece

    def release(self, pieces: list[Slice]) -> None:
        """Take slices back; arenas that are empty are freed but for one, which serves the next weight."""
        for piece in pieces:
            piece.close()
        empty = [arena for arena in self.arenas if not arena.slices]
        for arena in empty[1:]:
            self.arenas.remove(arena)
            arena.close()

    def flush(self) -> None:
        """Make all that the CPU wrote visible to the device."""
        for arena in self.arenas:
            arena.flush()

    def close(self) -> None:
        """Free everything."""
        for arena in self.arenas:
            arena.close()
        self.arenas.clear()
