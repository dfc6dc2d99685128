"""Measures ways to run a weight's products on the device at hand, and keeps the best.

The model of `chips.timing` was fitted to other people's boards. Here tiles, cores, layout and buckets are tried on the
device, beginning with what the model likes best, each step with what the step before chose.
"""

from __future__ import annotations

import logging
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.layout import round_up
from npumatmul.chips.timing import TimingModel
from npumatmul.chips.types import ElementType
from npumatmul.device.device import Device
from npumatmul.errors import NpuMemoryError
from npumatmul.host.activation import Activation
from npumatmul.host.kernels import Conversion
from npumatmul.planning.choices import Machine, Tuned, TuningCache, WeightShape, consulting, planned
from npumatmul.planning.product import Share, plan_matmul
from npumatmul.planning.weight import ROWS_MIX, WeightPlan, costs_of, plan_weight
from npumatmul.running.program import Program
from npumatmul.running.stored import KSlice, StoredWeight
from npumatmul.running.storing import TileRow, store

__all__ = ["Timed", "Trial", "Tuning", "autotune", "plan_for", "tuning_cache"]

logger = logging.getLogger(__name__)


#: Rounds before a way can be dropped.
_ROUNDS_BEFORE_DROPPING = 3


@dataclass(frozen=True)
class Timed:
    """What some number of rows took on so many cores.

    Attributes
    ----------
    rows, cores : int
    share : {"tiles", "rows"}
        What each core had of its own.
    seconds : float
        Median over the rounds.
    spread : float
        Seconds between the quartiles: half of the runs lay that close together.
    fastest : float
        Seconds of the fastest run.
    rounds : int
        How often it was measured.
    """

    rows: int
    cores: int
    share: Share
    seconds: float
    spread: float
    fastest: float
    rounds: int

    @classmethod
    def of(cls, rows: int, cores: int, times: Sequence[float], share: Share = "tiles") -> Timed:
        """Out of the seconds of single runs, at least one.

        Examples
        --------
        >>> timed = Timed.of(1, 3, [2.0, 9.0, 1.0, 3.0, 2.0])
        >>> timed.seconds, timed.spread, timed.fastest, timed.rounds
        (2.0, 1.0, 1.0, 5)
        """
        spread = 0.0
        if len(times) > 1:
            low, _, high = statistics.quantiles(times, n=4, method="inclusive")
            spread = high - low
        return cls(rows, cores, share, statistics.median(times), spread, min(times), len(times))


@dataclass(frozen=True)
class Trial:
    """One way to cut a weight that was measured, in one step.

    Attributes
    ----------
    plan : WeightPlan
    step : str
        ``"cuts"``, ``"layouts"`` or ``"buckets"``: what was tried beside each other, so that times compare.
    timed : tuple of Timed
        For each number of rows and cores.
    """

    plan: WeightPlan
    step: str
    timed: tuple[Timed, ...]

    def best(self) -> dict[int, Timed]:
        """What took least, by number of rows, of what was measured as often: what was dropped met another machine."""
        found: dict[int, Timed] = {}
        for each in self.timed:
            other = found.get(each.rows)
            if other is None or (-each.rounds, each.seconds) < (-other.rounds, other.seconds):
                found[each.rows] = each
        return found

    @property
    def score(self) -> float:
        """Sum of the logarithms of the least times: what is made small."""
        return _score({rows: each.seconds for rows, each in self.best().items()})

    @property
    def rounds(self) -> int:
        """Rounds that it took part in."""
        return max(each.rounds for each in self.timed)


@dataclass(frozen=True)
class Tuning:
    """What was measured, and what is best.

    Attributes
    ----------
    weight : WeightShape
    simulated : bool
        Whether the times are those of a simulation, which says nothing about a board.
    trials : tuple of Trial
        By step; the first one is what the model chose. What a step chose is measured again in the next one.
    chosen : Tuned
    plan : WeightPlan
        What `chosen` means; `store` takes it.
    """

    weight: WeightShape
    simulated: bool
    trials: tuple[Trial, ...]
    chosen: Tuned
    plan: WeightPlan

    def __str__(self) -> str:
        where = "simulated, says nothing about a board" if self.simulated else "on this board"
        lines = [
            f"{self.weight}: {len({trial.plan for trial in self.trials})} ways measured in turns ({where}), "
            "medians and the spread of half of the runs"
        ]
        for trial in self.trials:
            w = trial.plan
            times = ", ".join(
                f"{rows} rows {each.seconds * 1e3:.3f} ms (spread {each.spread * 1e3:.3f}) on {each.cores}"
                + (" by rows" if each.share == "rows" else "")
                for rows, each in trial.best().items()
            )
            mark = "*" if trial.plan == replace(self.plan, measured_cores=(), measured_shared=()) else " "
            layout = "native" if w.ac_native else "normal"
            rounds = f"{trial.rounds} round{'s' if trial.rounds > 1 else ''}"
            way = f"K {len(w.k_spans)}, N {len(w.n_spans)}, A and C {layout}, {len(w.buckets)} buckets"
            lines.append(f" {mark} {trial.step}: {way}, {rounds}: {times}")
        return "\n".join(lines)


def tuning_cache(device: Device) -> TuningCache:
    """The cache of a device's machine."""
    return device.attached(_Cache, _Cache).cache


class _Cache:
    def __init__(self, device: Device) -> None:
        machine = Machine(device.chip.soc, device.simulated, device.api_version, device.driver_version)
        self.cache = TuningCache(machine)

    def close(self) -> None:
        """Nothing is held."""


def plan_for(device: Device, weight: WeightShape, k_parts: int = 1, *, tuned: bool = True) -> WeightPlan:
    """How a weight is cut for a device: as `autotune` found best on this machine, else by the model.

    Parameters
    ----------
    device : Device
    weight : WeightShape
    k_parts : int
        As for `plan_weight`.
    tuned : bool
        Whether the cache is consulted.

    Raises
    ------
    DeviceError, ValueError
        As `plan_weight`.
    """
    with consulting(tuning_cache(device) if tuned else None):
        return planned(
            weight.k, weight.n, weight.mm_type, device.chip, device.runtime_version, k_parts, k_group=weight.k_group,
            row_images=weight.row_images,
        )  # fmt: skip


def autotune(
    device: Device,
    weight: WeightShape,
    activation: Activation,
    out_dtype: np.dtype[Any],
    *,
    rows: Sequence[int] = ROWS_MIX,
    iterations: int = 9,
    limit: int = 8,
    k_parts: int = 1,
    record: bool = True,
) -> Tuning:
    """Measure ways to multiply with a weight of some shape and type, and keep the best for this machine.

    Weights and activations of zeros are used: what is in them does not change the time.

    Parameters
    ----------
    device : Device
    weight : WeightShape
        Shape and type.
    activation : Activation
        How rows of the left operand become rows of A.
    out_dtype : numpy.dtype
        Of the result: float32, or int32 for integers without scales.
    rows : sequence of int
        Numbers of rows to be good at; the product of their times is made small.
    iterations : int
        Rounds of each step. In every round each way is run twice, in turns with the others and in another order every
        time, and the second run is timed; the median counts. After three rounds, ways whose fastest run was slower
        than the median of another one are dropped.
    limit : int
        Most ways to cut K and N that are measured.
    k_parts : int
        As for `plan_weight`.
    keep : bool
        Whether the choice is written to the cache.

    Returns
    -------
    Tuning
        Prints as a table.

    Raises
    ------
    ValueError
        If an argument makes no sense.
    NpuMemoryError
        If the weight does not fit once more beside what is packed already.
    RknnError
        If a function of the runtime fails.

    Notes
    -----
    The ways of a step are in NPU memory at once; where there is no room for that, each is packed for every turn.

    Examples
    --------
    >>> import npumatmul as npu
    >>> activation = Activation(np.dtype(np.int8), Conversion.COPY_8)
    >>> weight = WeightShape(256, 256, npu.MatmulType.INT8_INT8_INT32)
    >>> with npu.Device("sim:rk3588") as device:
    ...     tuning = autotune(device, weight, activation, np.dtype(np.int32), record=False, limit=2)
    >>> sorted(dict(tuning.chosen.seconds))
    [1, 128]
    """
    if iterations < 1 or limit < 1:
        raise ValueError(f"autotune: iterations and limit are at least 1, not {iterations} and {limit}")
    if not rows or min(rows) < 1:
        raise ValueError(f"autotune: rows are numbers of at least 1, got {tuple(rows)}")
    candidates = _Candidates(device, weight, activation, np.dtype(out_dtype), tuple(sorted(set(rows))), iterations)
    trials: list[Trial] = []

    def best_of(step: str, plans: Sequence[WeightPlan]) -> Trial:
        """What was best before takes part again, for times of another step were measured at another time."""
        measured = candidates.measure(step, list(dict.fromkeys(plans)))
        trials.extend(measured)
        lasted = max(trial.rounds for trial in measured)
        return min((trial for trial in measured if trial.rounds == lasted), key=lambda trial: trial.score)

    winner = best_of("cuts", _cuts(device, weight, k_parts, candidates.rows)[:limit])
    others = _layouts(device, weight, k_parts, winner.plan)
    if others:
        winner = best_of("layouts", [winner.plan, *others])
    others = [
        each for each in _more_buckets(device, weight, k_parts, winner.plan, candidates.rows) if each != winner.plan
    ]
    if others:
        winner = best_of("buckets", [winner.plan, *others])
    best, times = winner.plan, sorted(winner.best().items())
    chosen = Tuned(
        len(best.k_spans), len(best.n_spans), best.ac_native, best.buckets,
        tuple((m, each.cores) for m, each in times), tuple((m, each.seconds) for m, each in times),
        tuple(m for m, each in times if each.share == "rows"),
    )  # fmt: skip
    plan = chosen.plan(weight, device.chip, device.runtime_version, k_parts)
    tuning = Tuning(weight, device.simulated, tuple(trials), chosen, plan)
    logger.info("autotune: %s", tuning)
    if record:
        tuning_cache(device).record(weight, chosen)
    return tuning


# ---- what is tried -------------------------------------------------------------------------------------------------


def _planned(device: Device, weight: WeightShape, k_parts: int, **options: Any) -> WeightPlan:
    return plan_weight(
        weight.k, weight.n, weight.mm_type, device.chip, device.runtime_version, k_parts, k_group=weight.k_group,
        row_images=weight.row_images, **options,
    )  # fmt: skip


def _cuts(device: Device, weight: WeightShape, k_parts: int, rows: tuple[int, ...]) -> list[WeightPlan]:
    """Ways to cut K and N, the model's choice first and then in the order of their modelled times."""
    base = _planned(device, weight, k_parts)
    fewest = _planned(device, weight, k_parts, k_slices=1, n_tiles=1)
    least_k, least_n = len(fewest.k_spans), len(fewest.n_spans)
    k_counts = {least_k, 2 * least_k, *(len(base.k_spans) + step for step in (-1, 0, 1)), 2 * len(base.k_spans)}
    n_counts = {len(base.n_spans), *(round_up(least_n, cores) for cores in range(1, device.chip.cores + 1))}
    found = dict.fromkeys(
        _planned(device, weight, k_parts, k_slices=slices, n_tiles=tiles)
        for slices in sorted(k_counts)
        for tiles in sorted(n_counts)
        if slices >= least_k
    )
    found.pop(base, None)
    return [base, *sorted(found, key=lambda plan: _modelled(plan, rows, device.chip.timings))]


def _modelled(plan: WeightPlan, rows: tuple[int, ...], timings: Mapping[str, TimingModel]) -> float:
    costs = costs_of(plan, timings)
    if costs is None:  # as few runs as can be
        return float(len(plan.k_spans) * len(plan.n_spans))
    parts = ((m * plan.row_images, -(-m * plan.row_images // plan.m_max)) for m in rows)
    return sum(math.log(count * costs.best(-(-m // count), plan.cores)) for m, count in parts)


def _layouts(device: Device, weight: WeightShape, k_parts: int, best: WeightPlan) -> list[WeightPlan]:
    """The other layout of A and C, where the chip has both; int4 in the normal one is eighty times slower: peers B1."""
    row = device.chip.type_row(weight.mm_type, device.runtime_version)
    if weight.mm_type.a is ElementType.INT4 or not (best.ac_native and row.ac_normal.value):
        return []
    counts = {"k_slices": len(best.k_spans), "n_tiles": len(best.n_spans)}
    return [_planned(device, weight, k_parts, ac_native=False, **counts)]


def _more_buckets(
    device: Device, weight: WeightShape, k_parts: int, best: WeightPlan, rows: tuple[int, ...]
) -> list[WeightPlan]:
    """Contexts for exactly these rows, beside the others."""
    step = math.lcm(best.row_multiple, best.row_images)
    exact = {m * best.row_images if m * best.row_images == 1 else round_up(m * best.row_images, step) for m in rows}
    more = sorted({*best.buckets, *(size for size in exact if size <= best.m_max)})
    counts = {"k_slices": len(best.k_spans), "n_tiles": len(best.n_spans)}
    return [_planned(device, weight, k_parts, ac_native=best.ac_native, buckets=more, **counts)]


# ---- measuring -----------------------------------------------------------------------------------------------------

_CONVERSIONS: dict[ElementType, tuple[Conversion, np.dtype[Any]]] = {
    ElementType.FLOAT16: (Conversion.COPY_16, np.dtype(np.float16)),
    ElementType.INT8: (Conversion.COPY_8, np.dtype(np.int8)),
    ElementType.INT4: (Conversion.INT4, ElementType.INT4.dtype),
}


class _Candidates:
    """Measures plans for one weight."""

    def __init__(
        self, device: Device, weight: WeightShape, activation: Activation, out_dtype: np.dtype[Any],
        rows: tuple[int, ...], iterations: int,
    ) -> None:  # fmt: skip
        self.device = device
        self.weight, self.activation, self.rows, self.iterations = weight, activation, rows, iterations
        self.a: NDArray[Any] = np.zeros((rows[-1], weight.k), activation.read_as)
        self.out: NDArray[Any] = np.zeros((rows[-1], weight.n), out_dtype)

    def measure(self, step: str, plans: Sequence[WeightPlan]) -> list[Trial]:
        """Measure plans in turns, with each number of rows and cores."""
        try:
            with ExitStack() as kept:
                stored = {plan: kept.enter_context(self._stored(plan)) for plan in plans}
                return self._in_turns(step, plans, lambda plan: nullcontext(stored[plan]))
        except NpuMemoryError:
            if len(plans) == 1:
                raise
        logger.info("autotune: there is no room for %d ways at once; each is packed for every turn", len(plans))
        return self._in_turns(step, plans, self._stored)

    def _in_turns(
        self,
        step: str,
        plans: Sequence[WeightPlan],
        stored_as: Callable[[WeightPlan], AbstractContextManager[StoredWeight]],
    ) -> list[Trial]:
        ways = [_Way(plan, m, *way) for plan in plans for m in self.rows for way in _ways_to_share(plan, m)]
        running, order = list(ways), random.Random(0)
        for done in range(1, self.iterations + 1):
            order.shuffle(running)
            for way in running:
                with stored_as(way.plan) as stored:
                    shared = (1,) if way.share == "rows" else ()
                    stored.plan = replace(way.plan, measured_cores=((1, way.cores),), measured_shared=shared)
                    way.times.append(self._seconds(way.rows, stored))
            if done >= _ROUNDS_BEFORE_DROPPING:
                running = _promising(running)
        trials = [Trial(plan, step, tuple(way.timed() for way in ways if way.plan == plan)) for plan in plans]
        for trial in trials:
            logger.debug("autotune: K %d, N %d: %s", len(trial.plan.k_spans), len(trial.plan.n_spans), trial.timed)
        return trials

    @contextmanager
    def _stored(self, plan: WeightPlan) -> Iterator[StoredWeight]:
        conversion, dtype = _CONVERSIONS[plan.mm_type.b]
        zeros: NDArray[Any] = np.broadcast_to(np.zeros(1, dtype), (plan.n, plan.k))
        # what a weight of the kind has beside it: scales, per group ones that differ, and sums for zero points
        scales: list[NDArray[np.float32] | None] = [None, None]
        if self.out.dtype != np.int32:
            scales = [np.full(plan.n, 1 + (plan.k_group is not None) * odd, np.float32) for odd in (0, 1)]
        sums = np.zeros(plan.n, np.int32) if self.activation.scaling.zero_points else None
        rows = [TileRow(span, zeros[:, span.start : span.start + span.length], conversion) for span in plan.k_spans]
        slices = [
            KSlice(span, tiles=i, column_scale=scales[i % 2], column_sums=sums, group=span)
            for i, span in enumerate(plan.k_spans)
        ]
        stored = store(self.device, plan, rows, slices)
        try:
            yield stored
        finally:
            stored.close()

    def _seconds(self, m: int, stored: StoredWeight) -> float:
        """Of one run, after one that finds contexts and caches as the way before left them."""
        program, start = Program(stored, m, self.activation, self.out.dtype), 0.0
        for _ in range(2):
            start = time.perf_counter()
            program.multiply(self.a[:m], self.out[:m])
        return time.perf_counter() - start


@dataclass(eq=False)
class _Way:
    """What is timed as one: some number of rows on so many cores, which share tiles or rows."""

    plan: WeightPlan
    rows: int
    cores: int
    share: Share
    times: list[float] = field(default_factory=list)

    def timed(self) -> Timed:
        return Timed.of(self.rows, self.cores, self.times, self.share)


def _ways_to_share(plan: WeightPlan, m: int) -> Iterator[tuple[int, Share]]:
    """Numbers of cores, and what they have of their own."""
    for cores in range(1, plan.cores + 1):
        yield cores, "tiles"
    for cores in range(2, plan.row_cores + 1):
        with suppress(ValueError):  # too few rows, or too many images of A
            plan_matmul(m, plan, cores=cores, share="rows")
            yield cores, "rows"


def _promising(ways: Sequence[_Way]) -> list[_Way]:
    """Without those whose fastest run was slower than the median of what beats them: of their plan, and plans."""
    medians: dict[WeightPlan, dict[int, float]] = {}
    for way in ways:
        least = medians.setdefault(way.plan, {})
        least[way.rows] = min(least.get(way.rows, math.inf), statistics.median(way.times))
    kept = [way for way in ways if min(way.times) <= medians[way.plan][way.rows]]
    fastest: dict[WeightPlan, dict[int, float]] = {}
    for way in kept:
        least = fastest.setdefault(way.plan, {})
        least[way.rows] = min(least.get(way.rows, math.inf), *way.times)
    goal = min(map(_score, medians.values()))
    return [way for way in kept if _score(fastest[way.plan]) <= goal]


def _score(seconds: Mapping[int, float]) -> float:
    return sum(math.log(max(each, 1e-9)) for each in seconds.values())
