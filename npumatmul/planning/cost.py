"""Modelled time of the tiles of one weight together: what planning compares its choices by; pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from npumatmul.chips.timing import Estimate, TimingModel, Work
from npumatmul.chips.types import MatmulType

__all__ = ["LEAST_GAIN", "LEAST_GAIN_IN_TURNS", "ModelledTime", "TileCosts", "tile_cores"]

#: Matrices that are bound before each run: A, B and C.
_BINDS_PER_RUN = 3
#: What sharing rows has to save by the model: cores that share tiles have one image of A, and models err.
LEAST_GAIN = 0.05
#: The same of threads that take turns on a core.
LEAST_GAIN_IN_TURNS = 0.1
#: From the end of a run to the next one on the same core, where another thread is woken for it: a guess.
_WAKE_SECONDS = 5e-5
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
    within : float
        The factor that nine tenths of such times are right to.
    """

    device: float
    binding: float
    host: float
    within: float = 1.0

    @property
    def seconds(self) -> float:
        return self.device + self.binding + self.host

    @property
    def estimate(self) -> Estimate:
        """All together, with what it may be wrong by."""
        return Estimate.within(self.seconds, self.within)

    def times(self, count: float) -> ModelledTime:
        """The same so many times, one after the other."""
        return ModelledTime(self.device * count, self.binding * count, self.host * count, self.within)

    def __add__(self, other: ModelledTime) -> ModelledTime:
        within = max(self.within, other.within)
        return ModelledTime(self.device + other.device, self.binding + other.binding, self.host + other.host, within)


@dataclass
class TileCosts:
    """Modelled time of rows that meet all tiles of a weight.

    Attributes
    ----------
    model : TimingModel
    mm_type : MatmulType
    k_tiles, n_tiles : tuple of int
        Padded extents.
    ac_native : bool
        Whether A and C are in native layout.

    Examples
    --------
    >>> from npumatmul.chips.timing import TIMINGS
    >>> costs = TileCosts(TIMINGS["rk3588"], MatmulType.INT8_INT8_INT32, (4096,), (1376, 1376, 1376))
    >>> costs.of(128, 3).seconds < costs.of(128, 1).seconds
    True
    """

    model: TimingModel
    mm_type: MatmulType
    k_tiles: tuple[int, ...]
    n_tiles: tuple[int, ...]
    ac_native: bool = True
    _seconds: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)
    _cores: dict[int, _Cores] = field(default_factory=dict, repr=False)
    _alone: dict[int, _Alone] = field(default_factory=dict, repr=False)

    def of(self, rows: int, cores: int) -> ModelledTime:
        """Time of `rows` rows of the device, at once, on so many cores."""
        what = self._on(cores)
        return ModelledTime(what.device_seconds(rows), what.binding, rows * what.host_row, self.model.within)

    def seconds(self, rows: int, cores: int) -> float:
        known = self._seconds.get((rows, cores))
        if known is None:
            what = self._on(cores)
            known = self._seconds[rows, cores] = what.device_seconds(rows) + what.binding + rows * what.host_row
        return known

    def shared_rows(self, shares: Sequence[Sequence[int]]) -> ModelledTime:
        """Time where each core has rows of its own and runs all tiles with them.

        Parameters
        ----------
        shares : sequence of sequences of int
            Ranges of rows of the device, by core.

        Examples
        --------
        >>> from npumatmul.chips.timing import TIMINGS
        >>> costs = TileCosts(TIMINGS["rk3588"], MatmulType.INT8_INT8_INT32, (4096,), (64,))
        >>> costs.shared_rows([[512], [512], [512]]).seconds < 3 * costs.of(512, 1).seconds
        True
        """
        alone = self._whole(len(shares))
        join = self.model.join_seconds if len(shares) > 1 else 0.0
        busiest = max(sum(alone.device_seconds(rows) for rows in sizes) for sizes in shares)
        rows = sum(map(sum, shares))
        # each core packs and stores rows of its own, but how fast several do so at once is not known
        binding = max(map(len, shares)) * alone.binding
        return ModelledTime(join + busiest, binding, rows * alone.host_row, self.model.within)

    def in_turns(self, shares: Sequence[Sequence[int]], turns: int) -> ModelledTime:
        """Time where so many threads take turns on each core, so that packing and storing go on during others' runs.

        Parameters
        ----------
        shares : sequence of sequences of int
            Ranges of rows of the device, by thread; those of a core follow each other.
        turns : int

        Returns
        -------
        ModelledTime
            Binding, packing and storing as far as no run hides them.

        Examples
        --------
        >>> from npumatmul.chips.timing import TIMINGS
        >>> costs = TileCosts(TIMINGS["rk3588"], MatmulType.INT8_INT8_INT32, (2048,), (2048,))
        >>> costs.in_turns([[512], [512]], 2).seconds < 2 * costs.of(512, 1).seconds
        True
        """
        cores = len(shares) // turns
        alone = self._whole(cores)
        handing_over = len(self.k_tiles) * len(self.n_tiles) * _WAKE_SECONDS
        runs = [sum(alone.device_seconds(rows) + handing_over for rows in sizes) for sizes in shares]
        busiest = max(sum(runs[core * turns : (core + 1) * turns]) for core in range(cores))
        device = busiest + (self.model.join_seconds if cores > 1 else 0.0)
        longest = max(max(sizes) for sizes in shares)
        run = alone.device_seconds(longest) + handing_over
        beside = [len(sizes) * alone.binding + sum(sizes) * alone.host_row for sizes in shares]
        # the first range is packed and the last one stored while nothing runs; of threads none is faster than its own
        # work, after one run that it waits for; and how fast several pack and store at once is not known
        ends = alone.binding + longest * alone.host_row
        longest_thread = max(own + other for own, other in zip(runs, beside, strict=True))
        seconds = max(device + ends, run + longest_thread, run + sum(beside))
        return ModelledTime(device, 0.0, seconds - device, self.model.within)

    def range_seconds(self, rows: int, cores: int) -> float:
        """What a range of rows takes on its core, with all tiles, while so many cores have rows of their own."""
        alone = self._whole(cores)
        return alone.device_seconds(rows) + alone.binding + rows * alone.host_row

    def _whole(self, cores: int) -> _Alone:
        known = self._alone.get(cores)
        if known is None:
            known = self._alone[cores] = self._all_tiles(cores)
        return known

    def _all_tiles(self, cores: int) -> _Alone:
        model, runs = self.model, len(self.k_tiles) * len(self.n_tiles)
        tiles = Counter((k, n) for k in self.k_tiles for n in self.n_tiles)
        work = [(count, model.work(self.mm_type, k, n, cores, self.ac_native)) for (k, n), count in tiles.items()]
        binding = runs * _BINDS_PER_RUN * model.bind_seconds
        return _Alone(runs * model.start_seconds, work, binding, self._on(1).host_row)

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
                (times * count, model.work(self.mm_type, k, n, cores, self.ac_native))
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


class _Alone(NamedTuple):
    """What one core has to do for a range of rows with all tiles."""

    start: float
    work: list[tuple[int, Work]]
    binding: float
    host_row: float

    def device_seconds(self, rows: int) -> float:
        return self.start + sum([count * work.seconds(rows) for count, work in self.work])
