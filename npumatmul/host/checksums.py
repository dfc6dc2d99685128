"""Checksums of what is stored and read: CRC-32, which notices every change of up to 32 bits that follow each other.

The values are zlib's. `libnpumm.so` finds them faster where the processor has instructions for it.
"""

from __future__ import annotations

import ctypes as C
import os
import zlib
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.kernels import library

__all__ = ["SummedReader", "array_checksum", "checksum_sets", "crc32_by", "text_checksum"]

#: Threads that read at once, and the fewest bytes that more than one reads.
_THREADS_MOST, _SHARED = 4, 1 << 19


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


class SummedReader:
    """Reads files into memory and sums up all that it has read.

    Several threads share what is large; none is left when a call returns. Their number is that of the processors, 4 at
    most: so many fetch what there is of a disk or of memory.

    Attributes
    ----------
    checksum : int
        Of what was read so far, in its order.

    Examples
    --------
    >>> import tempfile
    >>> memory, reader = np.empty(9, np.uint8), SummedReader()
    >>> with tempfile.TemporaryFile() as file:
    ...     _ = file.write(b"123456789")
    ...     _ = file.flush()
    ...     reader(file.fileno(), memory, 0), hex(reader.checksum)
    (9, '0xcbf43926')
    """

    def __init__(self) -> None:
        self.checksum = 0

    def __call__(self, descriptor: int, memory: NDArray[np.uint8], start: int) -> int:
        """Read into contiguous memory from an offset on, and tell how many bytes there were.

        Where those are not all, the file ends behind them, and they are not summed up.

        Raises
        ------
        OSError
            If they cannot be read.
        """
        checksum, error = C.c_uint32(self.checksum), C.c_int()
        threads = 1 if memory.size < _SHARED else min(len(os.sched_getaffinity(0)), _THREADS_MOST)
        got = library().npumm_read_summed(
            len(checksum_sets()) - 1, descriptor, start, memory.ctypes.data, memory.size, threads,
            C.byref(checksum), C.byref(error),
        )  # fmt: skip
        if got < 0:
            raise ValueError(f"{memory.size} bytes at {start} of descriptor {descriptor} are none that there can be")
        if error.value:
            raise OSError(error.value, os.strerror(error.value))
        self.checksum = checksum.value
        return int(got)


def text_checksum(text: str) -> str:
    """Of a text, as metadata hold it."""
    return str(zlib.crc32(text.encode("utf-8", "surrogatepass")))
