"""Modelled time of the tiles of one weight together: what planning compares its choices by; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from npumatmul.mmtype import MatmulType
from npumatmul.timing import TimingModel

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
    _known: dict[tuple[int, int], ModelledTime] = field(default_factory=dict, repr=False)

    def of(self, rows: int, cores: int) -> ModelledTime:
        """Time of `rows` rows of the device, at once, on so many cores."""
        known = self._known.get((rows, cores))
        if known is None:
            known = self._known[rows, cores] = self._modelled(rows, cores)
        return known

    def best(self, rows: int, most_cores: int) -> float:
        """Seconds on the number of cores that takes least."""
        return min(self.of(rows, cores).seconds for cores in range(1, most_cores + 1))

    def _modelled(self, rows: int, cores: int) -> ModelledTime:
        model, slices = self.model, len(self.k_tiles)
        per_tile = {
            n: sum(self._work(rows, k, n, cores) for k in self.k_tiles) + slices * model.start_seconds
            for n in set(self.n_tiles)
        }
        loads, runs = [0.0] * cores, [0] * cores
        for core, n in zip(tile_cores(self.n_tiles, cores), self.n_tiles, strict=True):
            loads[core] += per_tile[n]
            runs[core] += slices
        device = max(loads) + (model.join_seconds if cores > 1 else 0.0)
        binding = max(runs) * _BINDS_PER_RUN * model.bind_seconds
        packed = self.mm_type.a.nbytes(rows * sum(self.k_tiles))
        stored = self.mm_type.c.nbytes(rows * sum(self.n_tiles)) * (1 + _ADD_PER_COPY * (slices - 1))
        return ModelledTime(device, binding, (packed + stored) / model.host_bandwidth)

    def _work(self, rows: int, k: int, n: int, cores: int) -> float:
        return self.model.work_seconds(self.mm_type, rows, k, n, cores)
