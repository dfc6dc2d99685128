"""Descriptors that are kept for long, in programs that may close any: those that become daemons close all of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["Descriptor"]


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
