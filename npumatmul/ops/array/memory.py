"""Memory of `NpuArray`: which dtypes, and which buffers a device's arrays have."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from npumatmul.device.budget import Holder
from npumatmul.device.buffer import Buffer
from npumatmul.device.device import Device
from npumatmul.device.memory import Memory
from npumatmul.device.result_memory import ResultMemory
from npumatmul.errors import NpuMemoryError

_Made = TypeVar("_Made")

__all__ = ["DTYPES", "TYPESTRS", "allocate", "dense_strides", "holding", "in_any_domain", "start_of", "supported"]

#: What an array in NPU memory can hold: what products take and give.
DTYPES: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(t)
    for t in (np.float16, np.float32, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.int32, ml_dtypes.int4)
)
#: As numpy's array interface names them; those of `ml_dtypes` it cannot name.
TYPESTRS = {dtype: dtype.str for dtype in DTYPES if dtype.isbuiltin == 1}


def supported(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype in the machine's byte order, or a `TypeError` that names those that an NpuArray can hold."""
    wanted: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    if wanted not in DTYPES:
        raise TypeError(f"an NpuArray cannot hold {wanted}; it holds {', '.join(map(str, DTYPES))}")
    return wanted


@lru_cache(maxsize=1024)
def dense_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides in bytes of an array in C order.

    Examples
    --------
    >>> dense_strides((2, 3), 4)
    (12, 4)
    """
    strides, step = [], itemsize
    for extent in reversed(shape):
        strides.append(step)
        step *= max(extent, 1)
    return tuple(reversed(strides))


def start_of(array: NDArray[Any]) -> int:
    """Address of the first element."""
    return int(array.ctypes.data)


def allocate(device: Device, nbytes: int, domain: int | None = None) -> Buffer:
    """Allocate a buffer for an array, in an IOMMU domain or in the first one that has room."""
    session = device.session
    if domain is not None:
        made = session.with_room(lambda: Buffer.allocate(session, nbytes, domain))
    else:
        made = session.with_room(lambda: _anywhere(device, lambda each: Buffer.allocate(session, nbytes, each)))
    made.of_arrays = True
    return made


def in_any_domain(device: Device, nbytes: int, results: ResultMemory) -> Memory:
    """Memory that the CPU stores a result in, in the first IOMMU domain that has room; the device's lock is held."""
    return _anywhere(device, lambda domain: results.take(nbytes, domain, computed=False, holder=Holder.BUFFERS))


def holding(device: Device, array: NDArray[Any]) -> tuple[Buffer, int] | None:
    """The buffer of an array that an ndarray's memory is part of, and where in it the ndarray starts."""
    steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
    first = start_of(array)
    low = first + sum(step for step in steps if step < 0)
    high = first + sum(step for step in steps if step > 0) + array.itemsize
    for memory in device.session.memories() if array.size else ():
        if memory.address <= low and high <= memory.address + memory.size and memory.held_by is not None:
            buffer = memory.held_by()
            if isinstance(buffer, Buffer) and buffer.of_arrays and not buffer.closed:
                return buffer, first - memory.address
    return None


def _anywhere(device: Device, make: Callable[[int], _Made]) -> _Made:
    """Make something in the first IOMMU domain that has room."""
    refused: NpuMemoryError | None = None
    for domain in range(device.weights.domains):
        untouched = not device.session.held(domain)
        try:
            return make(domain)
        except NpuMemoryError as error:
            refused = refused or error
        if untouched:
            break  # nor will another one that is as empty
    assert refused is not None
    raise refused
