"""Arenas: large allocations from which packed weights take slices.

Each allocation of the runtime holds a file descriptor (facts 7.1), so weights share few large ones: a slice wraps a
part of an arena through `rknn_create_mem_from_fd`. A slice is always synchronised through the allocation that it
belongs to, because synchronising a slice is reported to do nothing.

An arena is in one IOMMU domain, and so is a weight: what is bound to a context has to be in the context's domain (facts
7.4). The first domain that has room takes it; room for A and C is left, for they have to be there too.
"""

from __future__ import annotations

import ctypes as C
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.layout import round_up
from npumatmul.device.budget import Holder
from npumatmul.device.buffer import PAGE
from npumatmul.device.host_blocks import HostBlock
from npumatmul.device.living import Living
from npumatmul.device.memory import Memory
from npumatmul.device.session import Session
from npumatmul.errors import BusyError, NpuMemoryError, RknnError
from npumatmul.rknn import TensorMem

__all__ = ["Arena", "ArenaBlock", "WeightMemory"]

logger = logging.getLogger(__name__)

#: Arenas grow from the first size to the second with what is stored; a larger weight gets an arena of its own.
SMALLEST_ARENA = 4 * 1024**2
LARGEST_ARENA = 64 * 1024**2


class ArenaBlock:
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
        #: This block and those behind it as one, for who binds them so; it goes with this one.
        self._joined: ArenaBlock | None = None

    @property
    def memory(self) -> Memory:
        return self._memory

    @property
    def session(self) -> Session:
        return self.arena.session

    def joined(self, nbytes: int) -> ArenaBlock:
        """The block and those behind it as one of so many bytes; always the same one. The device's lock is held."""
        if self._joined is None:
            self._joined = ArenaBlock(self.arena, self.start, nbytes, 0)
        return self._joined

    def bytes(self) -> NDArray[np.uint8]:
        """Read-only view. It does not keep the memory: hold the device's lock, and the slice, while it is used."""
        pages = memoryview((C.c_uint8 * self.size).from_address(self.address))
        view: NDArray[np.uint8] = np.frombuffer(pages.toreadonly(), np.uint8)
        return view

    def fill(self, write: Callable[[NDArray[np.uint8]], None]) -> None:
        """Have all of it written. `write` must not keep the view that it is given."""
        try:
            write(np.frombuffer(memoryview((C.c_uint8 * self.size).from_address(self.address)), np.uint8))
        finally:
            self.mark_written()

    def mark_written(self) -> None:
        """Say that the CPU wrote here: the arena is synchronised before the next run."""
        self.arena.mark_written()

    def close(self) -> None:
        """Give the slice back to its arena. Closing twice is allowed, and again after an interrupt."""
        if not self.closed:
            if self._joined is not None:
                self._joined.close()
            self.arena.release(self)
            if not self.arena.undivided:
                self.arena.session.release(self._memory)
            self.closed = True


class Arena:
    """A large allocation from which slices are taken, first fit: what no living slice covers is free.

    Attributes
    ----------
    undivided : bool
        Whether it serves one weight as a whole. Before 1.6.0 nothing but `rknn_matmul_set_io_mem` synchronises caches,
        and it is not known to do so for slices (Q15), so each weight gets an allocation of its own.
    slices : Living of ArenaBlock
        Those that live; their owners hold them.
    """

    def __init__(self, session: Session, size: int, domain: int = 0, unsynchronised: set[Arena] | None = None) -> None:
        self.session = session
        self._unsynchronised = set() if unsynchronised is None else unsynchronised
        self.undivided = not session.runtime.has("rknn_mem_sync")
        self.slices: Living[ArenaBlock] = Living()
        self._free: list[tuple[int, int]] | None = None  # forgotten while it changes, for an interrupt may come then
        self._known = 0  # slices that there were when that was found out: others may be dropped at any time
        self.memory = session.allocate(size, domain, Holder.WEIGHTS)

    @property
    def domain(self) -> int:
        return self.memory.domain

    @property
    def size(self) -> int:
        return self.memory.size

    @property
    def empty(self) -> bool:
        return next(iter(self.slices), None) is None

    def free(self) -> list[tuple[int, int]]:
        """Ranges that no slice covers, (start, length), in order of their start."""
        if self._free is None or self._known != len(self.slices):
            self._known = len(self.slices)
            taken = sorted((piece.start, piece.start + piece.reserved) for piece in self.slices)
            edges = [0, *(edge for both in taken for edge in both), self.size]
            ranges = zip(edges[::2], edges[1::2], strict=True)
            self._free = [(start, stop - start) for start, stop in ranges if stop > start]
        return self._free

    def room_for(self, size: int) -> int:
        """Bytes in free ranges where a slice of that size fits; all of an empty arena, which can be given up."""
        if self.empty:
            return self.size
        return sum(length for _, length in self.free() if length >= size)

    def allocate(self, size: int) -> ArenaBlock | None:
        """A slice of `size` bytes, or None where no free range is long enough."""
        reserved = self.rounded(size)
        for start, length in self.free():
            if length >= reserved:
                taken = ArenaBlock(self, start, size, length if self.undivided else reserved)
                self._take([taken])
                return taken
        return None

    def allocate_row(self, sizes: Sequence[int]) -> list[ArenaBlock] | None:
        """Slices one behind the other, or None where no free range is long enough for all."""
        total = sum(map(self.rounded, sizes))
        start = next((start for start, length in self.free() if length >= total), None)
        if self.undivided or start is None:
            return None
        made: list[ArenaBlock] = []
        try:
            for size in sizes:
                made.append(ArenaBlock(self, start + sum(piece.reserved for piece in made), size, self.rounded(size)))
        except BaseException:
            for piece in made:
                piece.close()
            raise
        self._take(made)
        return made

    def _take(self, made: list[ArenaBlock]) -> None:
        """Count slices that follow each other, in a free range, as taken."""
        start, stop = made[0].start, made[-1].start + made[-1].reserved
        free, self._free = self.free(), None
        for block in made:
            self.slices.add(block)
        rest = [part for each in free for part in _without(each, start, stop)]
        self._known += len(made)
        self._free = rest

    def rounded(self, size: int) -> int:
        """Bytes that a slice of `size` bytes takes: the next one starts where the runtime takes an offset."""
        return round_up(size, self.session.chip.memory.slice_alignment)

    def release(self, piece: ArenaBlock) -> None:
        """Take a range back and join free ranges that touch. Doing it twice is allowed."""
        if piece not in self.slices:
            return
        free, self._free = self.free(), None
        self.slices.discard(piece)
        joined: list[tuple[int, int]] = []
        for start, length in sorted([*free, (piece.start, piece.reserved)]):
            if joined and joined[-1][0] + joined[-1][1] == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((start, length))
        self._known -= 1
        self._free = joined

    def mark_written(self) -> None:
        """Say that the CPU wrote into a block."""
        self._unsynchronised.add(self)
        self.memory.mark_written()

    def close(self) -> None:
        """Give back every slice, then the memory."""
        for piece in list(self.slices):
            piece.close()
        self.session.release(self.memory)
        self._unsynchronised.discard(self)


def _without(free: tuple[int, int], start: int, stop: int) -> list[tuple[int, int]]:
    """What is left of a free range without the bytes from `start` to `stop`, which lie in it or outside of it."""
    first, last = free[0], sum(free)
    if not first <= start < last:
        return [free]
    return [(begin, end - begin) for begin, end in ((first, start), (stop, last)) if end > begin]


@dataclass
class WeightMemory:
    """The arenas of one device. Not thread-safe by itself: the device's lock guards it.

    Attributes
    ----------
    session : Session
    capacity : int
        Bytes that one IOMMU domain can hold.
    domains : int
        IOMMU domains that weights may be in, from 0 on.
    arenas : list of Arena
    unsynchronised : set of Arena
        Those that the CPU wrote into since `flush`, so that a product looks at no others.
    """

    session: Session
    capacity: int
    domains: int = 1
    arenas: list[Arena] = field(default_factory=list)
    unsynchronised: set[Arena] = field(default_factory=set)
    #: Bytes of A and C that weights in a domain work with: with the fewest rows, and with the most at once.
    _beside: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def bytes_reserved(self) -> int:
        """Bytes of NPU memory that the arenas hold."""
        return sum(arena.size for arena in self.arenas)

    @property
    def bytes_used(self) -> int:
        return sum(piece.size for arena in self.arenas for piece in arena.slices)

    def allocate(
        self,
        rows: Sequence[Sequence[int]],
        *,
        together: bool = False,
        beside: tuple[int, int] = (0, 0),
        domains: int | None = None,
    ) -> list[ArenaBlock]:
        """Slices for the tiles of a weight, all in one domain: the first one where there is room.

        Parameters
        ----------
        rows : sequence of sequences of int
            Bytes of each tile, row of tiles by row of tiles.
        together : bool
            Have the tiles of a row stand one behind the other, if there is such a range.
        beside : (int, int)
            Bytes of A and C that its products work with, those of the fewest rows and those of the most at once. Room
            for the most is left if that goes in one of the domains, for the fewest in any case.
        domains : int, optional
            Only the first so many of the domains.

        Returns
        -------
        list of ArenaBlock
            One per tile.

        Raises
        ------
        NpuMemoryError
            If no domain has room.
        """
        needed = sum(self._rounded(size) for sizes in rows for size in sizes)
        if needed > self.capacity:
            raise NpuMemoryError(
                f"a weight of {needed} bytes is larger than an IOMMU domain, which holds {self.capacity} bytes, and "
                "all of a weight has to be in one. Split it along N (numpy.array_split(w, parts, axis=1)), pack the "
                "parts, and put their products side by side."
            )
        refused: NpuMemoryError | None = None
        most = self.domains if domains is None else min(domains, self.domains)
        for much in (1, 0):
            for domain in self._with_room(most, needed, max(map(max, rows)), beside, much):
                least, largest = map(max, zip(beside, self._beside.get(domain, (0, 0)), strict=True))
                self._beside[domain] = least, largest
                untouched = not self.session.held(domain)
                try:
                    return self._fill(domain, rows, together, largest if much else least)
                except NpuMemoryError as error:
                    refused = refused or error
                    if untouched:
                        break  # nor will another one that is as empty
                except RknnError as error:
                    if domain == 0 or error.function != "rknn_matmul_create":
                        raise
                    logger.warning("%s: weights stay in the first %d domains: %s", self.session.name, domain, error)
                    self.domains = domain
        if refused is not None:
            raise refused
        where = f"any of {most} IOMMU domains" if most > 1 else "the one IOMMU domain there is"
        raise NpuMemoryError(
            f"a weight of {needed} bytes does not fit into {where}, of {self.capacity} bytes each; all of a weight has "
            f"to be in one. Close packed weights and buffers that are not needed any more.\n"
            f"{self.session.memory_stats(self.bytes_used)}"
        )

    def _with_room(self, most: int, needed: int, largest: int, beside: tuple[int, int], much: int) -> list[int]:
        """Domains of the first `most` with so many bytes, for tiles of up to `largest`, beside those that A and C need.

        Only one of those that hold nothing is among them: where that is refused, others would be.
        """
        found = []
        for domain in range(most):
            held = self.session.held(domain)
            if not held:
                self._beside.pop(domain, None)
            free = sum(arena.room_for(largest) for arena in self._arenas_in(domain))
            # A and C of other products are given up where they are in the way
            room = self.capacity - held.get(Holder.WEIGHTS, 0) - held.get(Holder.BUFFERS, 0) + free
            if needed + max(beside[much], self._beside.get(domain, beside)[much]) <= room:
                found.append(domain)
            if not held:
                break
        return found

    def _fill(self, domain: int, rows: Sequence[Sequence[int]], together: bool, beside: int) -> list[ArenaBlock]:
        """Slices in one domain, where so many bytes stay free."""
        made: list[ArenaBlock] = []
        try:
            for sizes in rows:
                pieces = self._in_one_piece(domain, sizes, beside) if together and len(sizes) > 1 else None
                if pieces is not None:
                    made.extend(pieces)
                    continue
                for size in sizes:
                    made.append(self._slice(domain, size, beside))
        except BaseException:
            self.release(made)
            raise
        return made

    def _slice(self, domain: int, size: int, beside: int) -> ArenaBlock:
        for arena in self._arenas_in(domain):
            piece = arena.allocate(size)
            if piece is not None:
                return piece
        piece = self._new_arena(domain, size, beside).allocate(size)
        assert piece is not None
        return piece

    def _in_one_piece(self, domain: int, sizes: Sequence[int], beside: int) -> list[ArenaBlock] | None:
        """Slices one behind the other; None where there is no room for that, but perhaps in pieces."""
        if not self.session.runtime.has("rknn_mem_sync"):
            return None
        for arena in self._arenas_in(domain):
            pieces = arena.allocate_row(sizes)
            if pieces is not None:
                return pieces
        try:
            return self._new_arena(domain, sum(map(self._rounded, sizes)), beside).allocate_row(sizes)
        except NpuMemoryError:
            return None

    def _arenas_in(self, domain: int) -> list[Arena]:
        return [arena for arena in self.arenas if arena.domain == domain]

    def _rounded(self, size: int) -> int:
        return round_up(size, self.session.chip.memory.slice_alignment)

    def _new_arena(self, domain: int, size: int, beside: int) -> Arena:
        """An arena with room for a slice of that size: larger, if the runtime has as much."""
        self.session.collect()  # what an interrupt left with nobody
        for arena in [arena for arena in self._arenas_in(domain) if arena.empty]:  # it is too small, and in the way
            self.arenas.remove(arena)
            arena.close()
        needed = self._rounded(size)
        wanted = max(needed, self._next_size(domain) // needed * needed)  # what follows is often as large
        try:
            arena = self._arena(domain, wanted, beside)
        except NpuMemoryError:
            if wanted == needed:
                raise
            arena = self._arena(domain, needed, beside)
        self.arenas.append(arena)
        logger.debug("new weight arena of %d bytes in domain %d, %d in all", arena.size, domain, self.bytes_reserved)
        return arena

    def _arena(self, domain: int, size: int, beside: int) -> Arena:
        held = self.session.held(domain)
        if held.get(Holder.WEIGHTS, 0) + held.get(Holder.BUFFERS, 0) + size > self.capacity:
            raise NpuMemoryError(
                f"{size} bytes for a weight do not fit into IOMMU domain {domain}, which holds {self.capacity} bytes.\n"
                f"{self.session.memory_stats(self.bytes_used)}"
            )
        arena = Arena(self.session, size, domain, self.unsynchronised)
        # the runtime may have less than the table says, and a weight without room for its A and C is of no use
        if beside and not self.session.fits(beside, domain):
            arena.close()
            raise NpuMemoryError(
                f"a weight in IOMMU domain {domain} would leave less than the {beside} bytes that A and C of its "
                f"products need.\n{self.session.memory_stats(self.bytes_used)}"
            )
        return arena

    def _next_size(self, domain: int) -> int:
        """Bytes of the next arena, where one weight does not need more; little where little is allowed."""
        if not self.session.runtime.has("rknn_mem_sync"):
            return 0
        wanted = min(LARGEST_ARENA, max(SMALLEST_ARENA, sum(arena.size for arena in self._arenas_in(domain))))
        # not into what A and C need, nor for more than an eighth of what a limit leaves: what is left over is lost
        room = self.capacity - sum(self.session.held(domain).values()) - self._beside[domain][1]
        limit = self.session.limit
        if limit is not None:
            held = sum(memory.size for memory in self.session.allocations())
            room = min(room, (limit - held) // 8)
        return min(wanted, max(0, room) // PAGE * PAGE)

    def trim(self) -> None:
        """Free the arenas that no weight fills."""
        for arena in [arena for arena in self.arenas if arena.empty]:
            self.arenas.remove(arena)
            arena.close()
        self.session.collect()

    def release(self, pieces: Sequence[ArenaBlock | HostBlock]) -> None:
        """Take slices back; arenas that are empty are freed but for one, which serves the next weight."""
        for piece in pieces:
            piece.close()
        empty = sorted((arena for arena in self.arenas if arena.empty), key=lambda arena: arena.domain)
        for arena in empty[1:]:
            self.arenas.remove(arena)
            arena.close()

    def flush(self) -> None:
        """Make all that the CPU wrote visible to the device."""
        for arena in list(self.unsynchronised):
            if not arena.memory.closed:
                arena.memory.flush()
            self.unsynchronised.discard(arena)

    def close(self) -> None:
        """Free everything but what runs that were given up still work with."""
        for arena in self.arenas:
            with suppress(BusyError):
                arena.close()
        self.arenas.clear()
