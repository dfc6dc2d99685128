"""Checksums of what is stored: CRC-32, which notices every change of up to 32 bits that follow each other."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["array_checksum", "text_checksum"]


def array_checksum(array: NDArray[Any]) -> int:
    """Of an array's elements in their order; contiguous ones are not copied.

    Examples
    --------
    >>> array_checksum(np.arange(3, dtype=np.uint8)) == array_checksum(np.arange(6, dtype=np.uint8)[:3])
    True
    """
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def text_checksum(text: str) -> str:
    """Of a text, as metadata hold it."""
    return str(zlib.crc32(text.encode("utf-8", "surrogatepass")))
