"""The device: a loaded runtime, its chip, and what is allocated on it."""

from __future__ import annotations

import logging
import operator
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from npumatmul.chips import Chip, chip, chip_here
from npumatmul.chips.types import MatmulType
from npumatmul.device.arenas import ArenaBlock, WeightMemory
from npumatmul.device.boardlock import BoardLock, wants_lock
from npumatmul.device.budget import NO_ROOM, MemoryStats
from npumatmul.device.buffer import Buffer
from npumatmul.device.context import DynamicMatmulContext, MatmulContext
from npumatmul.device.host_blocks import HostBlock
from npumatmul.device.leases import Lease
from npumatmul.device.living import Living
from npumatmul.device.session import Session
from npumatmul.device.spec import ContextSpec
from npumatmul.files.uncopied import Uncopied
from npumatmul.host.executor import Report
from npumatmul.rknn import Discovery, MatmulLayout, QuantType, Runtime, RuntimeVersion, discover, load
from npumatmul.rknn.simulator import Simulator, check_environment

__all__ = ["Device", "DeviceStats", "open_devices"]

logger = logging.getLogger(__name__)

#: What contexts of users, executors and products in place count.
_COUNTED = ("run_calls", "set_io_mem_calls", "mem_sync_calls", "set_dynamic_shape_calls", "macs")
#: What products of this library alone count.
_COUNTED_BY_EXECUTORS = ("conversions", "cpu_macs")


class _Closable(Protocol):
    def close(self) -> None: ...


class Holding(weakref.ref[Any]):
    """The owner of weight memory.

    Attributes
    ----------
    pieces : sequence of ArenaBlock or HostBlock
    """

    __slots__ = ("pieces",)
    pieces: Sequence[ArenaBlock | HostBlock]


_Attached = TypeVar("_Attached", bound=_Closable)
_Context = TypeVar("_Context", MatmulContext, DynamicMatmulContext)


@dataclass
class DeviceStats:
    """Counts since the device was opened, and what is allocated now.

    Attributes
    ----------
    run_calls, set_io_mem_calls, mem_sync_calls, set_dynamic_shape_calls : int
        Calls of the runtime's functions.
    macs : int
        Multiply-accumulates of logical matrices (without padding) that went through `rknn_matmul_run`.
    cpu_macs : int
        Those that the CPU made, of weights in NPU memory (``config(processor="cpu")``).
    conversions : int
        Passes of the CPU over an operand on its way into A, or over a result on its way out of C, or both at once. A
        product whose arrays the NPU reads and writes in place makes none.
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
    set_dynamic_shape_calls: int = 0
    macs: int = 0
    cpu_macs: int = 0
    conversions: int = 0
    contexts: int = 0
    descriptors: int = 0
    npu_bytes: int = 0


class Device(Uncopied):
    """An NPU, of this board or simulated.

    Parameters
    ----------
    name : str, optional
        ``"rknn"``: the board's own NPU. ``"sim:rk3588"``, or another chip: the simulator. By default the environment
        decides (``NPUMATMUL_DEVICE``, ``NPUMATMUL_LIBRARY``), then the machine: the NPU on a Rockchip board, the
        simulator elsewhere. ``NPUMATMUL_SIM_RUNTIME`` names the version of the runtime that is simulated. Several
        devices can be open at once.

    share_board : bool, optional
        Use the NPU of a board even if another process does, which can take the board down. The environment's
        ``NPUMATMUL_SHARE_BOARD=1`` does the same. Simulated devices are never exclusive, unless
        ``NPUMATMUL_LOCK_SIMULATOR=1`` asks for it.

    Attributes
    ----------
    name : str
        Device string.
    chip : Chip
        Row of the capability table, with what `npumatmul probe` found on this machine.
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
    BoardInUseError
        If another process uses the board's NPU.

    Examples
    --------
    >>> with Device("sim:rk3588") as device:
    ...     print(device.name, device.chip.cores)
    sim:rk3588 3
    """

    def __init__(self, name: str | None = None, *, share_board: bool = False) -> None:
        self.closed = True
        self.discovery: Discovery = discover(name)
        self.runtime: Runtime = load(self.discovery)
        assert self.discovery.soc is not None
        self.name = self.discovery.device
        self.simulated = self.runtime.simulated_soc() is not None
        if self.simulated:
            check_environment()
        self.chip: Chip = chip(self.discovery.soc)
        self.counters = DeviceStats()
        #: Of the device's executors, which count for themselves.
        self.reports: list[Report] = []
        self._attached: dict[type, _Closable] = {}
        self._attaching = threading.RLock()
        #: Of weights that are gone; a garbage collector adds to it at any moment, by one call of C.
        self.released: deque[Holding] = deque()
        self._holdings: dict[Holding, None] = {}
        board = BoardLock() if wants_lock(self.simulated) and not share_board else None
        try:
            self.session = Session(self.runtime, self.chip, self.name, board)
        except BaseException:
            if board is not None:
                board.release()
            raise
        self.lock = self.session.lock
        self.closed = False
        self.api_version, self.driver_version = self.runtime.api_version, self.runtime.driver_version
        self.runtime_version: RuntimeVersion = self.runtime.version
        # the version is known now, and with it what npumatmul probe found under it on this machine
        self.chip = self.session.chip = chip_here(self.discovery.soc, self.runtime_version, self.simulated)
        # two processes that use domains at once can panic the kernel (facts 7.4): then all stay in the first one
        domains = self.chip.memory.domains if board is not None or self.simulated else 1
        self.weights = WeightMemory(self.session, self.chip.memory.domain_bytes, domains)
        open_devices.add(self)
        logger.info("opened %s: runtime %s, driver %s", self.name, self.api_version, self.driver_version)

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"runtime {self.runtime_version}"
        return f"Device({self.name!r}, {state})"

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(keep_viewed=True)

    def __del__(self) -> None:
        if not (getattr(self, "closed", True) or self.session.closed or self.session.inherited):
            self._let_go()

    @property
    def usable(self) -> bool:
        """Whether it is open, and was opened by this process."""
        return not (self.closed or self.session.closed or self.session.inherited)

    @property
    def simulated_runs(self) -> str:
        """What simulated runs do by settings other than to compute as fast as this CPU can, in words; mostly empty."""
        return Simulator(self.runtime).runs() if self.simulated else ""

    def check_usable(self) -> None:
        """Raise `ClosedError` where the device was closed, or opened by the parent of a forked process."""
        self.session.check_usable()

    # ---- buffers and contexts --------------------------------------------------------------------------------------

    def buffer(self, nbytes: int, *, domain: int = 0) -> Buffer:
        """Allocate NPU memory.

        Parameters
        ----------
        nbytes : int
        domain : int, optional
            IOMMU domain, from 0 on: only contexts of the same one can use the buffer. The capability table says how
            many there are (`iommu_domains`).

        Returns
        -------
        Buffer

        Raises
        ------
        NpuMemoryError
            If the runtime has no memory, or the process no descriptors left.
        ValueError
            If there are not as many domains.
        UnsupportedByRuntime
            If the runtime has no domains.

        Examples
        --------
        >>> with Device("sim") as device, device.buffer(64) as buffer:
        ...     buffer.array.shape
        (64,)
        """
        return self.session.with_room(lambda: Buffer.allocate(self.session, nbytes, domain))

    def context(
        self,
        mm_type: MatmulType,
        m: int,
        k: int,
        n: int,
        *,
        b_layout: MatmulLayout = MatmulLayout.NORM,
        ac_layout: MatmulLayout = MatmulLayout.NORM,
        b_quant: QuantType = QuantType.PER_LAYER_SYM,
        ac_quant: QuantType = QuantType.PER_LAYER_SYM,
        group_size: int = 0,
        core: int | None = None,
        domain: int = 0,
    ) -> MatmulContext:
        """Create a matmul context: one type, one shape, as the runtime's own API has it.

        Parameters
        ----------
        mm_type : MatmulType
            Element types of A, B and C.
        m, k, n : int
            Shape; the runtime asks for multiples in K and N (`Chip.type_limits`).
        b_layout, ac_layout : MatmulLayout, optional
            How B, and A and C, stand in memory.
        b_quant, ac_quant : QuantType, optional
            What `MatmulContext.set_quant_params` will give.
        group_size : int, optional
            Elements along K that share a scale, with a per-group `b_quant`.
        core : int, optional
            NPU core; by default the runtime takes one that is idle.
        domain : int, optional
            IOMMU domain.

        Returns
        -------
        MatmulContext

        Raises
        ------
        ValueError
            If M, K, N, core or group size make no sense.
        DeviceError
            If the chip does not have the type.
        UnsupportedByRuntime
            If the runtime is too old; the message names the version that is needed.
        RknnError
            If the runtime refuses it.

        Examples
        --------
        >>> with Device("sim") as device, device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32) as context:
        ...     context.b.shape, context.b.size, context.c.dtype
        ((64, 32), 2048, dtype('int32'))
        """
        layouts, quants = (b_layout, ac_layout), (b_quant, ac_quant)
        spec = ContextSpec.of(mm_type, (m, k, n), layouts, quants, group_size, core, domain)
        return self._created(lambda: MatmulContext(self.session, spec))

    def dynamic_context(
        self,
        mm_type: MatmulType,
        shapes: Sequence[tuple[int, int, int]],
        *,
        b_layout: MatmulLayout = MatmulLayout.NORM,
        ac_layout: MatmulLayout = MatmulLayout.NORM,
        b_quant: QuantType = QuantType.PER_LAYER_SYM,
        ac_quant: QuantType = QuantType.PER_LAYER_SYM,
        group_size: int = 0,
        core: int | None = None,
        domain: int = 0,
    ) -> DynamicMatmulContext:
        """Create a context for several shapes (M, K, N), of which one at a time is selected.

        The first one is selected to begin with. M may vary; K and N only with B in TP_NORM layout (D16).

        Parameters
        ----------
        mm_type : MatmulType
        shapes : sequence of (int, int, int)
        b_layout, ac_layout, b_quant, ac_quant, group_size, core, domain
            As for `context`.

        Returns
        -------
        DynamicMatmulContext

        Raises
        ------
        ValueError, DeviceError, UnsupportedByRuntime, RknnError
            As for `context`. Dynamic shapes need runtime 2.0.0b0.

        Examples
        --------
        >>> shapes = [(1, 64, 32), (8, 64, 32)]
        >>> with Device("sim") as device, device.dynamic_context(MatmulType.INT8_INT8_INT32, shapes) as context:
        ...     context.select(8, 64, 32)
        ...     context.c.shape
        (8, 32)
        """
        given = [(operator.index(m), operator.index(k), operator.index(n)) for m, k, n in shapes]
        if not given:
            raise ValueError("dynamic_context: at least one shape (M, K, N) is needed")
        layouts, quants = (b_layout, ac_layout), (b_quant, ac_quant)
        spec = ContextSpec.of(mm_type, given[0], layouts, quants, group_size, core, domain)
        return self._created(lambda: DynamicMatmulContext(self.session, spec, given))

    def _created(self, create: Callable[[], _Context]) -> _Context:
        """A context; where the runtime has none left, one that is kept for reuse gives way."""

        def attempt() -> _Context:
            while True:
                try:
                    return create()
                except NO_ROOM:
                    if not self.session.spare_context():
                        raise

        return self.session.with_room(attempt)

    # ---- what is held ----------------------------------------------------------------------------------------------

    def memory_stats(self) -> MemoryStats:
        """What the device holds: bytes per IOMMU domain and holder, contexts, descriptors, and their limits.

        Returns
        -------
        MemoryStats
            Prints as a few lines.

        Examples
        --------
        >>> with Device("sim") as device, device.buffer(4096):
        ...     stats = device.memory_stats()
        ...     stats.nbytes, stats.domains[0].buffers, stats.descriptors
        (4096, 4096, 1)
        """
        with self.lock:
            self.check_usable()
            self.collect()
            self.session.collect()
            return self.session.memory_stats(self.weights.bytes_used)

    def empty_cache(self) -> int:
        """Give up what is kept for reuse and idle: contexts, buffers for A and C, memory that no weight fills.

        Packed weights and buffers of users stay. What is needed again is made again by the next matmul.

        Returns
        -------
        int
            Bytes of NPU memory that became free.

        Examples
        --------
        >>> with Device("sim") as device:
        ...     device.empty_cache()
        0
        """
        with self.lock:
            self.check_usable()
            self.collect()
            before = sum(memory.size for memory in self.session.allocations())
            self.weights.trim()
            self.session.reclaim()
            return before - sum(memory.size for memory in self.session.allocations())

    def limit_memory(self, nbytes: int | None) -> int | None:
        """Allow the device at most so many bytes of NPU memory; None: as many as there are.

        What is held already stays, even if it is more.

        Returns
        -------
        int or None
            The limit before.

        Raises
        ------
        ValueError
            If `nbytes` is negative.
        """
        if nbytes is not None and operator.index(nbytes) < 0:
            raise ValueError(f"a limit of memory is a number of bytes, not {nbytes}")
        with self.lock:
            self.check_usable()
            before, self.session.limit = self.session.limit, None if nbytes is None else operator.index(nbytes)
            return before

    # ---- what lives and dies with the device -----------------------------------------------------------------------

    def attached(self, kind: type[_Attached], make: Callable[[Device], _Attached]) -> _Attached:
        """The one object of a kind that lives and dies with this device, made on first use."""
        self.check_usable()
        with self._attaching:  # not the device's lock: whoever runs a product holds that all the time
            self.check_usable()
            if kind not in self._attached:
                self._attached[kind] = make(self)
            found = self._attached[kind]
            assert isinstance(found, kind)
            return found

    def hold(self, owner: object, pieces: Sequence[ArenaBlock | HostBlock]) -> Holding:
        """Take weight memory back when its owner is dropped, or when it is among the `released`."""
        holding = Holding(owner, self.released.append)
        holding.pieces = pieces
        self._holdings[holding] = None
        return holding

    def collect(self) -> None:
        """Give back the memory of weights that are gone and nobody runs with. The caller holds the lock."""
        for _ in range(len(self.released)):
            holding = self.released[0]
            if self.session.leases.uses(holding.pieces):
                self.released.rotate(-1)
            else:
                self.weights.release(holding.pieces)  # twice, if an interrupt comes before it is off the list
                self._holdings.pop(holding, None)
                self.released.popleft()

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
            self.session.collect()
            counting = [self.counters, self.session, *self.reports]
            counts = {name: sum(getattr(each, name) for each in counting) for name in _COUNTED}
            ours = [self.counters, *self.reports]
            counts |= {name: sum(getattr(each, name) for each in ours) for name in _COUNTED_BY_EXECUTORS}
            contexts, descriptors, nbytes = self.session.resources()
            return DeviceStats(**counts, contexts=contexts, descriptors=descriptors, npu_bytes=nbytes)

    def close(self) -> None:
        """Free memory, then contexts (facts 11.5): all buffers and contexts of the device. Twice is allowed.

        Products that other threads are computing are completed first; what they begin afterwards raises `ClosedError`.

        Raises
        ------
        BufferError
            If views of buffers are still held. Nothing was closed then. Leaving a ``with`` block instead lets their
            memory stay until they are gone.
        BusyError
            If another thread runs a context of its own, or this one is interrupted in a product (by a signal's
            handler). Nothing was closed then.
        """
        self._close(keep_viewed=False)

    def _close(self, keep_viewed: bool) -> None:
        if self.session.inherited:  # locks may be held for ever here
            self.closed = self.session.closed = True
            self._forget()
            return
        leases, bar = self.session.leases, Lease()
        try:
            leases.bar(bar)  # else products of other threads might always be at work
            while True:
                with self.lock:
                    if not self.session.closed:
                        self.session.check_closable(keep_viewed)
                    others = leases.others()
                    if not others:
                        self.session.close(keep_viewed)
                        self._forget()
                        self._let_go()
                        return
                leases.wait_for(others)
        finally:
            bar.over = True
            leases.leave(bar)

    def _forget(self) -> None:
        """Be found no more."""
        open_devices.discard(self)
        with suppress(ValueError):
            held_open.remove(self)

    def _let_go(self) -> None:
        """Give up what is the device's own; buffers and contexts of users keep the session."""
        with self.lock:
            self.closed = True
            self.released.clear()
            self._holdings.clear()
            with self._attaching:
                attached = list(self._attached.values())
                self._attached.clear()
            for part in reversed(attached):
                part.close()
            self.weights.close()


#: Every device that is open.
open_devices: Living[Device] = Living()
#: Those that live until they are closed or the interpreter ends, whoever holds them.
held_open: list[Device] = []
