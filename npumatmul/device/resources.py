"""`memory_stats`, `empty_cache` and `memory_limit`: what a device holds, and how much that may be."""

from __future__ import annotations

from npumatmul.device.budget import MemoryStats
from npumatmul.device.device import Device, current_device

__all__ = ["empty_cache", "memory_limit", "memory_stats"]


def memory_stats(device: Device | str | None = None) -> MemoryStats:
    """What a device holds: bytes per IOMMU domain and holder, contexts, descriptors, and their limits.

    Parameters
    ----------
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    MemoryStats
        Prints as a few lines.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> with npu.use_device("sim:rk3588"), npu.pack(np.ones((64, 64), np.int8)):
    ...     npu.memory_stats().weights_used >= 4096
    True
    """
    return current_device(device).memory_stats()


def empty_cache(device: Device | str | None = None) -> int:
    """Give up what a device keeps for reuse and is idle: contexts, buffers for A and C, memory that no weight fills.

    Packed weights and buffers of users stay.

    Parameters
    ----------
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    int
        Bytes of NPU memory that became free.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.empty_cache("sim:rk3588") >= 0
    True
    """
    return current_device(device).empty_cache()


def memory_limit(nbytes: int | None, device: Device | str | None = None) -> int | None:
    """Allow a device at most so many bytes of NPU memory, from now on and until it is told otherwise.

    A limit belongs to the device and not to a scope, because memory outlives scopes. What is held already stays, even
    if it is more. Beyond the limit, what is kept for reuse and idle is given up; then `NpuMemoryError` says what holds
    what.

    Parameters
    ----------
    nbytes : int or None
        None: as many as there are.
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    int or None
        The limit before.

    Raises
    ------
    ValueError
        If `nbytes` is negative.

    Examples
    --------
    >>> import npumatmul as npu
    >>> with npu.Device("sim") as device:
    ...     before = npu.memory_limit(64 * 2**20, device)
    ...     device.memory_stats().limit
    67108864
    """
    return current_device(device).limit_memory(nbytes)
