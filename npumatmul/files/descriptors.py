"""Descriptors that are kept for long, in programs that may close any: those that become daemons close all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Descriptor", "open_into"]


def open_into(held: list[int], path: str | os.PathLike[str], flags: int, mode: int = 0o666) -> int:
    """Open a file and note its descriptor, without a step in between at which an interrupt could lose it.

    Parameters
    ----------
    held : list of int
        Where it is noted; who has the list closes it.
    path : str or os.PathLike
    flags, mode : int
        As for `os.open`.

    Returns
    -------
    int
        The descriptor.

    Raises
    ------
    OSError
    """
    held.extend(map(os.open, (path,), (flags,), (mode,)))  # all of it in C, where signals wait
    return held[-1]


@dataclass(frozen=True)
class Descriptor:
    """An open descriptor, and which file it was opened for: its number may be another file's by now.

    Examples
    --------
    >>> kept = Descriptor.of(os.open(os.devnull, os.O_RDONLY))
    >>> kept.is_open()
    True
    >>> os.close(kept.number)  # somebody else's mistake
    >>> kept.is_open()
    False
    >>> kept.close()
    """

    number: int
    device: int
    inode: int

    @classmethod
    def of(cls, number: int) -> Descriptor:
        """What a descriptor that was just opened is."""
        status = os.fstat(number)
        return cls(number, status.st_dev, status.st_ino)

    def is_open(self) -> bool:
        """Whether the number still stands for that file."""
        try:
            status = os.fstat(self.number)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)

    def close(self) -> None:
        """Close it, unless somebody did so already."""
        if self.is_open():
            os.close(self.number)
