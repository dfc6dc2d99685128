"""The current device: the one that a scope chose, or the process's default; and what is asked of it.

`current_device` is where every call that takes ``device=`` begins.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from npumatmul.device.budget import MemoryStats
from npumatmul.device.device import Device, held_open, open_devices
from npumatmul.device.scope import Scope
from npumatmul.rknn import discover

__all__ = ["current_device", "empty_cache", "memory_limit", "memory_stats", "set_device", "use_device"]

_chosen: ContextVar[Device | None] = ContextVar("npumatmul_device", default=None)
_lock = threading.RLock()  # a signal's handler may look for a device, too
_default: weakref.ref[Device] | None = None
_set: Device | None = None


def _after_fork() -> None:
    """Nobody is there any more who would release the lock, nor whom the parent's devices would serve."""
    global _lock
    _lock = threading.RLock()
    held_open.clear()


os.register_at_fork(after_in_child=_after_fork)


def current_device(wanted: Device | str | None = None) -> Device:
    """The device that a call uses.

    Parameters
    ----------
    wanted : Device or str, optional
        An explicit choice; it beats the scope's. A string is looked up among the open devices and opened if it is not
        there.

    Returns
    -------
    Device
        `wanted`; else the innermost `use_device`'s; else that of `set_device`; else the process's default device,
        opened on first use.

    Raises
    ------
    TypeError
        If `wanted` is something else.
    LibraryNotFoundError, DeviceError, BoardInUseError
        If there is no such device, or it cannot be opened.

    Examples
    --------
    >>> current_device("sim:rk3588").chip.soc
    'rk3588'
    """
    if isinstance(wanted, Device):
        return wanted
    if wanted is not None:
        return _named(wanted)
    return _chosen.get() or _set or _default_device()


def _named(name: str) -> Device:
    with _lock:
        found = discover(name)
        for device in open_devices:
            if (device.name, device.runtime.path) == (found.device, found.library) and device.usable:
                return device
        return _held(Device(name))


def _default_device() -> Device:
    global _default
    with _lock:
        found = None if _default is None else _default()
        if found is None or not found.usable:
            found = _held(Device())
            _default = weakref.ref(found)
        return found


def _held(opened: Device) -> Device:
    """A device that lives until it is closed; those that are gone have no user who would close them."""
    held_open[:] = [device for device in held_open if device.usable]
    held_open.append(opened)
    return opened


def use_device(device: Device | str) -> Scope[Device]:
    """Make `device` the default within a ``with`` block, for this thread or task.

    Parameters
    ----------
    device : Device or str

    Returns
    -------
    context manager
        Of the device. Dropped without ``with`` it warns that it did nothing.

    Raises
    ------
    TypeError
        If `device` is something else.
    LibraryNotFoundError, DeviceError, BoardInUseError
        If there is no such device, or it cannot be opened: at once, not when the block begins.

    Examples
    --------
    >>> with use_device("sim:rk3588") as device:
    ...     current_device() is device
    True
    """
    if device is None:
        raise TypeError("use_device: a Device or a string such as 'rknn' or 'sim:rk3588' is needed, not None")
    chosen = current_device(device)
    advice = "; npumatmul.set_device(...) chooses for the whole process"
    return Scope(lambda: _using(chosen), "npumatmul.use_device", advice)


@contextmanager
def _using(device: Device) -> Iterator[Device]:
    before = _chosen.get()
    try:
        _chosen.set(device)  # an interrupt may come as soon as this is done
        yield device
    finally:
        _chosen.set(before)


def set_device(device: Device | str | None) -> Device:
    """Make `device` the default of the whole process, where nothing nearer chooses: for notebooks and programs.

    ``device=`` of a call and an enclosing `use_device` come first. What is packed already stays where it is.

    Parameters
    ----------
    device : Device or str or None
        None: what the environment and the machine say, as at the start.

    Returns
    -------
    Device
        The device, opened.

    Raises
    ------
    TypeError
        If `device` is something else.
    LibraryNotFoundError, DeviceError, BoardInUseError
        If there is no such device, or it cannot be opened. The default is then what it was.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.set_device("sim:rk3576")
    Device('sim:rk3576', runtime 2.3.2)
    >>> npu.current_device().name
    'sim:rk3576'
    >>> npu.set_device(None).name
    'sim:rk3588'
    """
    global _set
    chosen = _default_device() if device is None else current_device(device)
    _set = None if device is None else chosen
    return chosen


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
