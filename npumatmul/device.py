"""The device: a loaded runtime, its chip, and what is allocated on it."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, TypeVar

from npumatmul.capabilities import Chip, chip
from npumatmul.errors import ClosedError, RknnError
from npumatmul.memory import Slice, WeightMemory
from npumatmul.mmtype import MatmulType
from npumatmul.rknn import Discovery, MatmulInfo, Runtime, RuntimeVersion, discover, load

__all__ = ["Device", "DeviceStats", "current_device", "use_device"]

logger = logging.getLogger(__name__)


class _Closable(Protocol):
    def close(self) -> None: ...


_Attached = TypeVar("_Attached", bound=_Closable)


@dataclass
class DeviceStats:
    """Counts since the device was opened, and what is allocated now.

    Attributes
    ----------
    run_calls, set_io_mem_calls, mem_sync_calls : int
        Calls of the runtime's functions.
    macs : int
        Multiply-accumulates of logical matrices (without padding) that went through `rknn_matmul_run`.
    contexts : int
        Living matmul contexts, the one that memory is allocated under included.
    descriptors : int
        File descriptors that NPU memory holds.
    npu_bytes : int
        Bytes of NPU memory in use.
    """

    run_calls: int = 0
    set_io_mem_calls: int = 0
    mem_sync_calls: int = 0
    macs: int = 0
    contexts: int = 0
    descriptors: int = 0
    npu_bytes: int = 0


class Device:
    """An NPU, of this board or simulated.

    Parameters
    ----------
    name : str, optional
        ``"rknn"``: the board's own NPU. ``"sim:rk3588"`` (or ``"sim"``): the simulator. By default the environment
        decides (``NPUMATMUL_DEVICE``, ``NPUMATMUL_LIBRARY``), then the machine: the NPU on a Rockchip board, the
        simulator elsewhere.

    Attributes
    ----------
    name : str
        Device string.
    chip : Chip
        Row of the capability table.
    runtime : Runtime
        The loaded library.
    runtime_version : RuntimeVersion
    api_version, driver_version : str
        What the library says of itself and of the kernel driver.
    simulated : bool

    Raises
    ------
    LibraryNotFoundError, DeviceError
        If there is no such device.

    Examples
    --------
    >>> with Device("sim:rk3588") as device:
    ...     print(device.name, device.chip.cores)
    sim:rk3588 3
    """

    def __init__(self, name: str | None = None) -> None:
        self.discovery: Discovery = discover(name)
        self.runtime: Runtime = load(self.discovery)
        assert self.discovery.soc is not None
        self.name = self.discovery.device
        self.simulated = self.runtime.simulated_soc() is not None
        self.chip: Chip = chip(self.discovery.soc)
        self.lock = threading.RLock()
        self.counters = DeviceStats()
        self._pid = os.getpid()
        self._attached: dict[type, _Closable] = {}
        self._released: deque[list[Slice]] = deque()
        # A context of the smallest shape, under which memory is allocated and versions are asked for. 1.6.0 allocates
        # without one too, later runtimes only with a flag (facts 7.1).
        limits = self.chip.limits[MatmulType.INT8_INT8_INT32]
        self._anchor, _ = self.runtime.matmul_create(
            MatmulInfo(M=1, K=limits.k_multiple, N=limits.n_multiple, type=MatmulType.INT8_INT8_INT32.code)
        )
        self.closed = False
        self.api_version, self.driver_version = self._versions()
        self.runtime_version = RuntimeVersion.parse(self.api_version) or self.runtime.version_from_symbols()
        self.weights = WeightMemory(self.runtime, self._anchor, self.chip.memory.domain_bytes)
        _open_devices.add(self)
        logger.info("opened %s: runtime %s, driver %s", self.name, self.api_version, self.driver_version)

    def _versions(self) -> tuple[str, str]:
        try:
            return self.runtime.sdk_version(self._anchor)
        except RknnError as error:  # whether the query takes a matmul context is open on some runtimes (Q24)
            logger.info("the runtime does not tell its version: %s", error)
            return "unknown", "unknown"

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"runtime {self.runtime_version}"
        return f"Device({self.name!r}, {state})"

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "closed", True):
            self.close()

    @property
    def anchor(self) -> int:
        """Handle of the context under which memory is allocated."""
        return self._anchor

    def check_usable(self) -> None:
        """Raise `ClosedError` where the device was closed, or opened by the parent of a forked process."""
        if self.closed:
            raise ClosedError(f"the device {self.name} is closed; open another Device")
        if os.getpid() != self._pid:
            raise ClosedError(
                f"the device {self.name} was opened by process {self._pid} and cannot be used after a fork; "
                "open a Device (and pack weights) in the child, or start it with the 'spawn' method"
            )

    def attached(self, kind: type[_Attached], make: Callable[[Device], _Attached]) -> _Attached:
        """The one object of a kind that lives and dies with this device, made on first use."""
        with self.lock:
            self.check_usable()
            if kind not in self._attached:
                self._attached[kind] = make(self)
            found = self._attached[kind]
            assert isinstance(found, kind)
            return found

    def release_later(self, pieces: list[Slice]) -> None:
        """Take weight memory back at the next call; safe from a garbage collector that runs at any moment."""
        self._released.append(pieces)

    def collect(self) -> None:
        """Give back what `release_later` was told of. The caller holds the lock."""
        while self._released:
            self.weights.release(self._released.popleft())

    def stats(self) -> DeviceStats:
        """Counts since the device was opened, and what is allocated now.

        Examples
        --------
        >>> with Device("sim") as device:
        ...     device.stats().contexts
        1
        """
        with self.lock:
            self.check_usable()
            self.collect()
            contexts, buffers, extra = 1, len(self.weights.arenas), 0
            for part in self._attached.values():
                use = getattr(part, "resources", None)
                if use is not None:
                    more_contexts, more_buffers, more_bytes = use()
                    contexts, buffers, extra = contexts + more_contexts, buffers + more_buffers, extra + more_bytes
            counters = self.counters
            return DeviceStats(
                counters.run_calls,
                counters.set_io_mem_calls,
                counters.mem_sync_calls,
                counters.macs,
                contexts,
                buffers,
                self.weights.bytes_reserved + extra,
            )

    def close(self) -> None:
        """Free memory, then contexts (facts 11.5). Closing twice is allowed."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            _open_devices.discard(self)
            if os.getpid() != self._pid:
                return  # the parent's contexts are the parent's to destroy
            self._released.clear()
            self.weights.close()
            for part in reversed(list(self._attached.values())):
                part.close()
            self._attached.clear()
            self.runtime.matmul_destroy(self._anchor)
            logger.info("closed %s", self.name)


_open_devices: weakref.WeakSet[Device] = weakref.WeakSet()


@atexit.register
def _close_devices() -> None:
    """Close what is still open while the interpreter is whole."""
    for device in list(_open_devices):
        device.close()


_chosen: ContextVar[Device | None] = ContextVar("npumatmul_device", default=None)
_default_lock = threading.Lock()
_default: Device | None = None


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
        `wanted`; else the innermost `use_device`; else the process's default device, opened on first use.

    Examples
    --------
    >>> current_device("sim:rk3588").chip.soc
    'rk3588'
    """
    if isinstance(wanted, Device):
        return wanted
    if wanted is not None:
        return _named(wanted)
    return _chosen.get() or _default_device()


def _named(name: str) -> Device:
    with _default_lock:
        device_string = discover(name).device
        for device in list(_open_devices):
            if device.name == device_string and not device.closed and device._pid == os.getpid():
                return device
        opened = Device(name)
        _kept.append(opened)
        return opened


_kept: list[Device] = []  # devices opened by name live until the interpreter ends


def _default_device() -> Device:
    global _default
    with _default_lock:
        if _default is None or _default.closed or _default._pid != os.getpid():
            _default = Device()
        return _default


@contextmanager
def use_device(device: Device | str) -> Iterator[Device]:
    """Make `device` the default within a ``with`` block, for this thread or task.

    Examples
    --------
    >>> with use_device("sim:rk3588") as device:
    ...     current_device() is device
    True
    """
    chosen = current_device(device)
    token = _chosen.set(chosen)
    try:
        yield chosen
    finally:
        _chosen.reset(token)
