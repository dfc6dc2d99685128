"""Contexts with their buffers, bound and run as the C API has it: what steps are timed on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.types import MatmulType
from npumatmul.device.buffer import Buffer
from npumatmul.device.context import MatmulContext
from npumatmul.device.device import Device
from npumatmul.host.executor import run_proven
from npumatmul.planning.product import MatmulPlan
from npumatmul.rknn import MatmulLayout, MemSyncMode
from npumatmul.running.stored import KSlice

__all__ = ["BoundTiles", "Tile", "tiles_of"]


@dataclass(frozen=True)
class Tile:
    """Runs that are alike.

    Attributes
    ----------
    core : int
        Which core makes them.
    m, k, n : int
        Extents of their context.
    times : int
        How many of them a product has.
    """

    core: int
    m: int
    k: int
    n: int
    times: int = 1


def tiles_of(plan: MatmulPlan, slices: Sequence[KSlice]) -> list[Tile]:
    """What a product with a weight in such slices runs, those that are alike together."""
    counted = Counter(
        (plan.core(m_index, n_index), rows.padded, each.k_span.padded, columns.padded)
        for m_index, rows in enumerate(plan.m_spans)
        for each in slices
        for n_index, columns in enumerate(plan.weight.n_spans)
    )
    return [Tile(*shape, times) for shape, times in counted.items()]


class BoundTiles:
    """A context for each tile, with an A that tiles of one shape share, and a B and a C of its own.

    Parameters
    ----------
    device : Device
    mm_type : MatmulType
    tiles : sequence of Tile
    ac_native : bool
        Layout of A and C; B is native.
    copies : int
        Of each B, so that a run may meet another one than the run before.

    Attributes
    ----------
    contexts : list of MatmulContext
        In the order of the tiles.
    """

    def __init__(
        self, device: Device, mm_type: MatmulType, tiles: Sequence[Tile], ac_native: bool, copies: int = 1
    ) -> None:
        self._device, self._mm_type, self._tiles = device, mm_type, list(tiles)
        self._layout = MatmulLayout.NATIVE if ac_native else MatmulLayout.NORM
        self._pinned = len({tile.core for tile in tiles}) > 1
        self.contexts: list[MatmulContext] = []
        self._copies, self._copy = copies, 0
        self._held = ExitStack()

    def create(self) -> list[MatmulContext]:
        """Contexts of all tiles."""
        return [
            self._device.context(
                self._mm_type, tile.m, tile.k, tile.n, b_layout=MatmulLayout.NATIVE, ac_layout=self._layout,
                core=tile.core if self._pinned else None,
            )
            for tile in self._tiles
        ]  # fmt: skip

    def __enter__(self) -> BoundTiles:
        with ExitStack() as held:
            hold, device = held.enter_context, self._device
            self.contexts = [hold(context) for context in self.create()]
            shared: dict[tuple[int, int], Buffer] = {}
            for tile, context in zip(self._tiles, self.contexts, strict=True):
                if (tile.m, tile.k) not in shared:
                    shared[tile.m, tile.k] = hold(device.buffer(context.a.size))
            self._a = [shared[tile.m, tile.k] for tile in self._tiles]
            self._shared = list(shared.values())
            self._b = [[hold(device.buffer(each.b.size)) for _ in range(self._copies)] for each in self.contexts]
            self._c = [hold(device.buffer(each.c.size)) for each in self.contexts]
            cores = list(dict.fromkeys(tile.core for tile in self._tiles))
            self._of_core = [
                [(each.handle, t.times) for t, each in zip(self._tiles, self.contexts, strict=True) if t.core == core]
                for core in cores
            ]
            self._others = hold(ThreadPoolExecutor(len(cores) - 1)) if len(cores) > 1 else None
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.close()

    def put_b(self, parts: Sequence[NDArray[Any]]) -> None:
        """Fill every B."""
        for context, copies, part in zip(self.contexts, self._b, parts, strict=True):
            for buffer in copies:
                buffer.put(context.b, np.ascontiguousarray(part))
                buffer.memory.flush()

    def put_a(self, a: NDArray[Any]) -> None:
        """Fill A, where all tiles have the same one."""
        self._shared[0].put(self.contexts[0].a, a)

    def flush_a(self) -> None:
        """Synchronise every A to the device."""
        for buffer in self._shared:
            buffer.memory.flush()

    def bind(self) -> None:
        """Name A, B and C to the runtime, for each run that there is."""
        set_io_mem = self._device.runtime.matmul_set_io_mem
        for tile, context, x, y, z in zip(self._tiles, self.contexts, self._a, self._b, self._c, strict=True):
            for _ in range(tile.times):
                for attr, buffer in ((context.a, x), (context.b, y[self._copy]), (context.c, z)):
                    set_io_mem(context.handle, buffer.memory.pointer, attr.struct)

    def next_copy(self) -> None:
        """Bind the next copy of every B from now on."""
        self._copy = (self._copy + 1) % self._copies

    def run(self) -> None:
        """Run all of it, each core in a thread of its own."""
        first, *rest = self._of_core
        jobs = [] if self._others is None else [self._others.submit(self._run_core, each, None) for each in rest]
        self._run_core(first, run_proven)
        for job in jobs:
            job.result()

    def _run_core(self, runs: list[tuple[int, int]], through: Any) -> None:
        run = self._device.runtime.matmul_run
        for handle, times in runs:
            for _ in range(times):
                run(handle, through)

    def sync_c(self) -> None:
        """Synchronise every C from the device."""
        for buffer in self._c:
            buffer.memory.sync(MemSyncMode.FROM_DEVICE)

    def get_c(self) -> list[NDArray[Any]]:
        """Every C as rows."""
        return [buffer.get(context.c) for buffer, context in zip(self._c, self.contexts, strict=True)]
