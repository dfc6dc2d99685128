"""Tiles of weights in ordinary memory: what the CPU alone multiplies with takes none of the NPU's."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.layout import round_up
from npumatmul.device.session import Session
from npumatmul.rknn import TensorMem

__all__ = ["HostBlock", "host_blocks"]

#: A line of a CPU's cache: no tile begins within one of another.
_LINE = 64


class HostBlock:
    """A tile in ordinary memory; it is used as an `ArenaBlock` is, but can be bound to no context.

    Attributes
    ----------
    session : Session
    address, size : int
    pointer : pointer to TensorMem
        One of our own, which says where the bytes are. The runtime never sees it.
    """

    def __init__(self, session: Session, memory: NDArray[np.uint8]) -> None:
        self.session = session
        self._memory: NDArray[np.uint8] | None = memory
        self.address, self.size = memory.ctypes.data, memory.size
        self._struct = TensorMem(virt_addr=self.address, size=self.size, fd=-1)
        self.pointer: C._Pointer[TensorMem] = C.pointer(self._struct)

    def bytes(self) -> NDArray[np.uint8]:
        """Read-only view, empty once it is closed."""
        memory = np.empty(0, np.uint8) if self._memory is None else self._memory
        view: NDArray[np.uint8] = memory.view()
        view.flags.writeable = False
        return view

    def fill(self, write: Callable[[NDArray[np.uint8]], None]) -> None:
        """Have all of it written.

        Raises
        ------
        ValueError
            If it has been closed.
        """
        if self._memory is None:
            raise ValueError("fill: the block has been closed")
        write(self._memory)

    def mark_written(self) -> None:
        """Nothing is to be synchronised."""

    def close(self) -> None:
        """Give the memory up. Closing twice is allowed."""
        self._memory = None


def host_blocks(session: Session, sizes: Sequence[int]) -> list[HostBlock]:
    """Tiles of so many bytes each, in one piece of memory, which lives as long as any of them.

    Examples
    --------
    >>> from npumatmul.device.device import Device
    >>> with Device("sim") as device:
    ...     [(block.size, block.address % 64) for block in host_blocks(device.session, [100, 3])]
    [(100, 0), (3, 0)]
    """
    starts = np.cumsum([0, *(round_up(size, _LINE) for size in sizes)]).tolist()
    memory = np.empty(starts[-1] + _LINE, np.uint8)
    first = -memory.ctypes.data % _LINE
    return [
        HostBlock(session, memory[first + start : first + start + size])
        for start, size in zip(starts, sizes, strict=False)
    ]
