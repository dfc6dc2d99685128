"""Modelled time of the tiles of one weight together: what planning compares its choices by; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from npumatmul.mmtype import MatmulType
from npumatmul.timing import TimingModel, Work

__all__ = ["ModelledTime", "TileCosts", "tile_cores"]

#: Matrices that are bound before each run: A, B and C.
_BINDS_PER_RUN = 3
#: A copy reads and writes; adding a partial sum reads two numbers and writes one.
_ADD_PER_COPY = 1.5


def tile_cores(n_tiles: Sequence[int], cores: int) -> tuple[int, ...]:
    """The core of each N tile: each tile goes to the core that has least to do so far.

    Examples
    --------
    >>> tile_cores((96, 96, 96, 64), 3)
    (0, 1, 2, 0)
    """
    loads = [0] * cores
    chosen = []
    for width in n_tiles:
        core = loads.index(min(loads))
        loads[core] += width
        chosen.append(core)
    return tuple(chosen)


@dataclass(frozen=True)
class ModelledTime:
    """Modelled seconds of a matmul; nothing of it was measured.

    Attributes
    ----------
    device : float
        Runs of the busiest core, and joining the cores.
    binding : float
        `rknn_matmul_set_io_mem` of that core.
    host : float
        Packing A, storing C and adding partial sums.
    """

    device: float
    binding: float
    host: float

    @property
    def seconds(self) -> float:
        """All together."""
        return self.device + self.binding + self.host

    def __add__(self, other: ModelledTime) -> ModelledTime:
        return ModelledTime(self.device + other.device, self.binding + other.binding, self.host + other.host)


@dataclass
class TileCosts:
    """Modelled time of rows that meet all tiles of a weight.

    Attributes
    ----------
    model : TimingModel
    mm_type : MatmulType
    k_tiles, n_tiles : tuple of int
        Padded extents.

    Examples
    --------
    >>> from npumatmul.timing import TIMINGS
    >>> costs = TileCosts(TIMINGS["rk3588"], MatmulType.INT8_INT8_INT32, (4096,), (1376, 1376, 1376))
    >>> costs.of(128, 3).seconds < costs.of(128, 1).seconds
    True
    """

    model: TimingModel
    mm_type: MatmulType
    k_tiles: tuple[int, ...]
    n_tiles: tuple[int, ...]
    _seconds: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)
    _cores: dict[int, _Cores] = field(default_factory=dict, repr=False)

    def of(self, rows: int, cores: int) -> ModelledTime:
        """Time of `rows` rows of the device, at once, on so many cores."""
        what = self._on(cores)
        return ModelledTime(what.device_seconds(rows), what.binding, rows * what.host_row)

    def seconds(self, rows: int, cores: int) -> float:
        """All of `of` together."""
        known = self._seconds.get((rows, cores))
        if known is None:
            what = self._on(cores)
            known = self._seconds[rows, cores] = what.device_seconds(rows) + what.binding + rows * what.host_row
        return known

    def best(self, rows: int, most_cores: int) -> float:
        """Seconds on the number of cores that takes least."""
        return min([self.seconds(rows, cores) for cores in range(1, most_cores + 1)])

    def _on(self, cores: int) -> _Cores:
        known = self._cores.get(cores)
        if known is None:
            known = self._cores[cores] = self._shared(cores)
        return known

    def _shared(self, cores: int) -> _Cores:
        """What each of so many cores has to do; cores that do the same are there once."""
        model, a, c, slices = self.model, self.mm_type.a, self.mm_type.c, len(self.k_tiles)
        widths: list[Counter[int]] = [Counter() for _ in range(cores)]
        for core, n in zip(tile_cores(self.n_tiles, cores), self.n_tiles, strict=True):
            widths[core][n] += 1
        depths = Counter(self.k_tiles)
        join = model.join_seconds if cores > 1 else 0.0
        shares = []
        for tiles in {tuple(sorted(each.items())) for each in widths}:
            runs = slices * sum(count for _, count in tiles)
            work = [
                (times * count, model.work(self.mm_type, k, n, cores))
                for k, times in depths.items()
                for n, count in tiles
            ]
            shares.append((join + runs * model.start_seconds, work))
        most_runs = slices * max(each.total() for each in widths)
        packed = a.bits / 8 * sum(self.k_tiles)
        stored = c.bits / 8 * sum(self.n_tiles) * (1 + _ADD_PER_COPY * (slices - 1))
        return _Cores(shares, most_runs * _BINDS_PER_RUN * model.bind_seconds, (packed + stored) / model.host_bandwidth)


class _Cores(NamedTuple):
    """What several cores have to do for a matmul."""

    shares: list[tuple[float, list[tuple[int, Work]]]]  # of each core: starts in seconds, and how often which work
    binding: float
    host_row: float

    def device_seconds(self, rows: int) -> float:
        return max([start + sum([count * work.seconds(rows) for count, work in tiles]) for start, tiles in self.shares])
