"""Checksums of what is stored: CRC-32, which notices every change of up to 32 bits that follow each other.

The values are zlib's. `libnpumm.so` finds them faster where the processor has instructions for it.
"""

from __future__ import annotations

import ctypes as C
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.kernels import library

__all__ = ["array_checksum", "checksum_sets", "crc32_by", "text_checksum"]


@lru_cache(maxsize=1)
def checksum_sets() -> tuple[str, ...]:
    """Ways of `crc32_by` on this machine, the fastest last; plain C, the first, is slower than zlib."""
    names: list[str] = []
    while (name := library().npumm_crc32_set(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def crc32_by(index: int, data: NDArray[np.uint8], before: int = 0) -> int:
    """Of contiguous bytes, by one of `checksum_sets`; `before` is the checksum of those before them."""
    checksum = C.c_uint32(before)
    if library().npumm_crc32_by(index, data.ctypes.data, data.size, C.byref(checksum)):
        raise ValueError(f"checksum: there is no way number {index}, only {', '.join(checksum_sets())}")
    return checksum.value


def array_checksum(array: NDArray[Any], before: int = 0) -> int:
    """Of an array's elements in their order, behind what has the checksum `before`; contiguous ones are not copied.

    Examples
    --------
    >>> array_checksum(np.arange(3, dtype=np.uint8)) == array_checksum(np.arange(6, dtype=np.uint8)[:3])
    True
    """
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    sets = checksum_sets()
    return crc32_by(len(sets) - 1, data, before) if len(sets) > 1 else zlib.crc32(data.data, before)


def text_checksum(text: str) -> str:
    """Of a text, as metadata hold it."""
    return str(zlib.crc32(text.encode("utf-8", "surrogatepass")))
