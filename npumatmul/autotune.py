"""Measures ways to run a weight's products on the device at hand, and keeps the best.

The model of `timing.py` was fitted to other people's boards. Here tiles, cores, layout and buckets are tried on the
device, beginning with what the model likes best, each step with what the step before chose.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul._kernels import Conversion
from npumatmul.activation import Activation
from npumatmul.device import Device
from npumatmul.layout import round_up
from npumatmul.mmtype import ElementType
from npumatmul.placement import Placement, StoredWeight, TileRow, WeightSlice
from npumatmul.tuning import Machine, Tuned, TuningCache, WeightShape, consulting, planned
from npumatmul.weight_plan import ROWS_MIX, WeightPlan, costs_of, plan_weight

__all__ = ["Trial", "Tuning", "autotune", "plan_for", "tuning_cache"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One way that was measured.

    Attributes
    ----------
    plan : WeightPlan
    seconds : tuple of (int, int, float)
        Numbers of rows, cores, and the median time.
    """

    plan: WeightPlan
    seconds: tuple[tuple[int, int, float], ...]

    def best(self) -> dict[int, tuple[float, int]]:
        """Least time and its cores, by number of rows."""
        found: dict[int, tuple[float, int]] = {}
        for rows, cores, seconds in self.seconds:
            found[rows] = min(found.get(rows, (math.inf, 0)), (seconds, cores))
        return found

    @property
    def score(self) -> float:
        """Sum of the logarithms of the least times: what is made small."""
        return sum(math.log(max(seconds, 1e-9)) for seconds, _ in self.best().values())


@dataclass(frozen=True)
class Tuning:
    """What was measured, and what is best.

    Attributes
    ----------
    weight : WeightShape
    simulated : bool
        Whether the times are those of a simulation, which says nothing about a board.
    trials : tuple of Trial
        In the order in which they were measured; the first one is what the model chose.
    chosen : Tuned
    plan : WeightPlan
        What `chosen` means; `Placement.store` takes it.
    """

    weight: WeightShape
    simulated: bool
    trials: tuple[Trial, ...]
    chosen: Tuned
    plan: WeightPlan

    def __str__(self) -> str:
        where = "simulated, says nothing about a board" if self.simulated else "on this board"
        lines = [f"{self.weight}: {len(self.trials)} ways measured ({where})"]
        for trial in self.trials:
            w = trial.plan
            times = ", ".join(
                f"{rows} rows {seconds * 1e3:.3f} ms on {cores}" for rows, (seconds, cores) in trial.best().items()
            )
            mark = "*" if trial.plan == replace(self.plan, measured_cores=()) else " "
            layout = "native" if w.ac_native else "normal"
            lines.append(f" {mark} K {len(w.k_spans)}, N {len(w.n_spans)}, A and C {layout}: {times}")
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
    iterations: int = 3,
    limit: int = 8,
    k_parts: int = 1,
    keep: bool = True,
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
        Timed runs of each way, after one that is not timed; the median counts.
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

    Examples
    --------
    >>> import npumatmul as npu
    >>> activation = Activation(np.dtype(np.int8), Conversion.COPY_8)
    >>> weight = WeightShape(256, 256, npu.MatmulType.INT8_INT8_INT32)
    >>> with npu.Device("sim:rk3588") as device:
    ...     tuning = autotune(device, weight, activation, np.dtype(np.int32), keep=False, limit=2)
    >>> sorted(dict(tuning.chosen.seconds))
    [1, 128]
    """
    if iterations < 1 or limit < 1:
        raise ValueError(f"autotune: iterations and limit are at least 1, not {iterations} and {limit}")
    if not rows or min(rows) < 1:
        raise ValueError(f"autotune: rows are numbers of at least 1, got {tuple(rows)}")
    bench = _Bench(device, weight, activation, np.dtype(out_dtype), tuple(sorted(set(rows))), iterations)
    trials: list[Trial] = []

    def best_of(plans: Sequence[WeightPlan]) -> WeightPlan:
        known = [trial.plan for trial in trials]
        trials.extend(bench.trial(plan) for plan in dict.fromkeys(plans) if plan not in known)
        return min(trials, key=lambda trial: trial.score).plan

    best = best_of(_cuts(device, weight, k_parts, bench.rows)[:limit])
    best = best_of(_layouts(device, weight, k_parts, best))
    best = best_of(_more_buckets(device, weight, k_parts, best, bench.rows))
    winner = next(trial for trial in trials if trial.plan == best)
    chosen = Tuned(
        len(best.k_spans), len(best.n_spans), best.ac_native, best.buckets,
        tuple((m, cores) for m, (_, cores) in sorted(winner.best().items())),
        tuple((m, seconds) for m, (seconds, _) in sorted(winner.best().items())),
    )  # fmt: skip
    plan = chosen.plan(weight, device.chip, device.runtime_version, k_parts)
    tuning = Tuning(weight, device.simulated, tuple(trials), chosen, plan)
    logger.info("autotune: %s", tuning)
    if keep:
        tuning_cache(device).keep(weight, chosen)
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
    return [base, *sorted(found, key=lambda plan: _modelled(plan, rows))]


def _modelled(plan: WeightPlan, rows: tuple[int, ...]) -> float:
    costs = costs_of(plan)
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


class _Bench:
    """Measures plans for one weight."""

    def __init__(
        self, device: Device, weight: WeightShape, activation: Activation, out_dtype: np.dtype[Any],
        rows: tuple[int, ...], iterations: int,
    ) -> None:  # fmt: skip
        self.placement = Placement.of(device)
        self.weight, self.activation, self.rows, self.iterations = weight, activation, rows, iterations
        self.a: NDArray[Any] = np.zeros((rows[-1], weight.k), activation.read_as)
        self.out: NDArray[Any] = np.zeros((rows[-1], weight.n), out_dtype)

    def trial(self, plan: WeightPlan) -> Trial:
        """Measure a plan with each number of rows and cores."""
        seconds = []
        with self._stored(plan) as stored:
            for m in self.rows:
                for cores in range(1, plan.cores + 1):
                    stored.plan = replace(plan, measured_cores=((1, cores),))
                    stored.placed.clear()
                    seconds.append((m, cores, self._median(m, stored)))
        trial = Trial(plan, tuple(seconds))
        logger.debug("autotune: K %d, N %d: %s", len(plan.k_spans), len(plan.n_spans), trial.seconds)
        return trial

    @contextmanager
    def _stored(self, plan: WeightPlan) -> Iterator[StoredWeight]:
        """A weight of zeros."""
        conversion, dtype = _CONVERSIONS[plan.mm_type.b]
        zeros: NDArray[Any] = np.broadcast_to(np.zeros(1, dtype), (plan.n, plan.k))
        # what a weight of the kind has beside it: scales, per group ones that differ, and sums for zero points
        scales: list[NDArray[np.float32] | None] = [None, None]
        if self.out.dtype != np.int32:
            scales = [np.full(plan.n, 1 + (plan.k_group is not None) * odd, np.float32) for odd in (0, 1)]
        sums = np.zeros(plan.n, np.int32) if self.activation.scaling.zero_points else None
        rows = [TileRow(span, zeros[:, span.start : span.start + span.length], conversion) for span in plan.k_spans]
        slices = [
            WeightSlice(span, tiles=i, column_scale=scales[i % 2], column_sums=sums, group=span)
            for i, span in enumerate(plan.k_spans)
        ]
        stored = self.placement.store(plan, rows, slices)
        try:
            yield stored
        finally:
            stored.close()

    def _median(self, m: int, stored: StoredWeight) -> float:
        times = []
        for _ in range(self.iterations + 1):
            start = time.perf_counter()
            self.placement.execute(self.a[:m], stored, self.activation, self.out[:m])
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])
