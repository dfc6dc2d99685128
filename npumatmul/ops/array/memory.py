"""Memory of `NpuArray`: which dtypes, and which buffers a device's arrays have."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from npumatmul.device.buffer import Buffer
from npumatmul.device.device import Device
from npumatmul.device.living import Living
from npumatmul.errors import NpuMemoryError

__all__ = ["DTYPES", "EXTENDED", "ArrayMemory", "dense_strides", "start_of", "supported"]

#: What an array in NPU memory can hold: what products take and give.
DTYPES: tuple[np.dtype[Any], ...] = tuple(
    np.dtype(t)
    for t in (np.float16, np.float32, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.int32, ml_dtypes.int4)
)
#: Those of `ml_dtypes`, which formats of numpy's own (array interface, memoryview) cannot name.
EXTENDED: tuple[np.dtype[Any], ...] = (np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.int4))


def supported(dtype: DTypeLike) -> np.dtype[Any]:
    """The dtype in the machine's byte order, or a `TypeError` that names those that an NpuArray can hold."""
    wanted: np.dtype[Any] = np.dtype(dtype).newbyteorder("=")
    if wanted not in DTYPES:
        raise TypeError(f"an NpuArray cannot hold {wanted}; it holds {', '.join(map(str, DTYPES))}")
    return wanted


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


class ArrayMemory:
    """The buffers of a device's arrays; `Device.attached` keeps the one instance."""

    def __init__(self, device: Device) -> None:
        self.buffers: Living[Buffer] = Living()

    def allocate(self, device: Device, nbytes: int, domain: int | None = None) -> Buffer:
        """Allocate a buffer for an array, in an IOMMU domain or in the first one that has room."""
        return device.session.with_room(lambda: self.allocate_now(device, nbytes, domain))

    def allocate_now(self, device: Device, nbytes: int, domain: int | None = None) -> Buffer:
        """As `allocate`, but without waiting for room while others are at work; the device's lock is held."""
        buffer = _anywhere(device, nbytes) if domain is None else Buffer.allocate(device.session, nbytes, domain)
        self.buffers.add(buffer)
        return buffer

    def holding(self, array: NDArray[Any]) -> tuple[Buffer, int] | None:
        """The buffer that an ndarray's memory is part of, and where in it the array starts."""
        steps = [(n - 1) * stride for n, stride in zip(array.shape, array.strides, strict=True)]
        first = start_of(array)
        low = first + sum(step for step in steps if step < 0)
        high = first + sum(step for step in steps if step > 0) + array.itemsize
        if array.size:
            for buffer in self.buffers:
                if not buffer.closed:
                    address = buffer.memory.address
                    if address <= low and high <= address + buffer.nbytes:
                        return buffer, first - address
        return None

    def close(self) -> None:
        """Nothing to do: the device gives the buffers back."""


def _anywhere(device: Device, nbytes: int) -> Buffer:
    refused: NpuMemoryError | None = None
    for domain in range(device.weights.domains):
        untouched = not device.session.held(domain)
        try:
            return Buffer.allocate(device.session, nbytes, domain)
        except NpuMemoryError as error:
            refused = refused or error
        if untouched:
            break  # nor will another one that is as empty
    assert refused is not None
    raise refused
