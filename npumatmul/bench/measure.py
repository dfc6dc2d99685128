"""Measure one matmul, step by step, through the C API, and as a product of this library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.bench.cases import TYPES, Case
from npumatmul.bench.contexts import BoundTiles, Tile, tiles_of
from npumatmul.bench.operands import Operands
from npumatmul.bench.record import Row, Value
from npumatmul.bench.sampling import Sampling, Stopwatch, settle
from npumatmul.bench.statistics import summarise
from npumatmul.board.readings import cache_bytes
from npumatmul.board.slowdown import SlowdownWatch
from npumatmul.device.device import Device
from npumatmul.ops import Matmul, pack
from npumatmul.planning.product import MatmulPlan
from npumatmul.quant.routes import route_for

__all__ = ["Caches", "measure"]

#: Contexts are costly to make, and so are packed weights: a few times say enough.
_FEW = 5
#: What is timed, as rows have it: the run first.
_ORDER = (
    "run", "run_cold", "matmul", "matmul_cold", "executor", "host", "pack_a", "sync_a", "bind", "sync_c", "unpack_c",
    "create", "pack_b",
)  # fmt: skip
#: More than any cache of a board has, and as much as is read between two cold runs at most.
_MOST_READ = 128 << 20


class Caches:
    """Drives everything else out of the CPU's caches, by reading twice as much as they hold."""

    def __init__(self, nbytes: int | None = None) -> None:
        size = min(2 * cache_bytes(), _MOST_READ) if nbytes is None else nbytes
        self._values = np.ones(max(size // 8, 1), np.int64)

    def drop(self) -> None:
        """Read it."""
        self._values.max()


def measure(
    device: Device,
    case: Case,
    sampling: Sampling | None = None,
    *,
    check: bool = True,
    caches: Caches | None = None,
    watch: SlowdownWatch | None = None,
    seed: int = 0,
) -> Row:
    """Measure a case.

    On several cores ``run`` is from the first run's start to the last one's end, the hand-over between Python threads
    included. Of a scheme it is all runs of the product's plan, those that are alike with one B.

    Parameters
    ----------
    device : Device
    case : Case
    sampling : Sampling, optional
        How often the steps are timed, and then the product.
    check : bool
        Whether results are compared with the exact product.
    caches : Caches, optional
        With them runs and products are timed once more, each with another copy of B than the run before (a product:
        with other weights in between), and nothing in the CPU's caches.
    watch : SlowdownWatch, optional
        Looks just after the runs, before clocks fall again; what it says is marked.
    seed : int
        Of the random operands.

    Returns
    -------
    Row
        Seconds of ``run``; ``matmul`` (`Matmul.execute` with `b` packed, in the case's layout, on at most its cores),
        ``executor`` (the same without Python) and ``host`` (that without the runs); ``create`` (contexts), ``pack_a``,
        ``sync_a``, ``bind``, ``sync_c``, ``unpack_c``; of a scheme not ``pack_a`` and ``unpack_c``, which are part of
        ``host``, but ``pack_b``; ``run_cold`` and ``matmul_cold``.

    Raises
    ------
    ValueError
        If the chip cannot run the case.
    RuntimeError
        If a result is wrong.

    Examples
    --------
    >>> with Device("sim:rk3588") as device:
    ...     row = measure(device, Case("int8", 4, 64, 32), Sampling.exactly(3))
    >>> row.label, len(row.seconds["run"]), row.figures["checked"]
    ('int8 4x64x32', 3, True)
    """
    sampling = Sampling() if sampling is None else sampling
    problem = case.problem(device.chip, device.runtime_version)
    if problem is not None:
        raise ValueError(f"{case}: {problem}")
    rng, stopwatch = np.random.default_rng(seed), Stopwatch()
    of_one_type = case.scheme is None
    figures: dict[str, Value] = {}
    slow: list[str] = []

    def look() -> None:
        slow.extend([] if watch is None else watch.reasons())

    if of_one_type:
        operands = Operands.of_type(case, rng)
        _time_steps(device, case, operands, sampling, stopwatch, check, caches, look, figures)
    else:
        assert case.scheme is not None
        operands = Operands.of_scheme(case, route_for(case.scheme, device.chip, device.runtime_version), rng)
    plan, tiles = _time_product(device, case, operands, sampling, stopwatch, check, caches)
    if not of_one_type:
        figures["runs"] = sum(tile.times for tile in tiles)
        _time_runs(device, plan, tiles, sampling, stopwatch, caches, look)
    row = _row(device, case, plan, sampling, stopwatch.seconds, {**figures, "checked": check})
    return replace(row, marks=[*row.marks, *slow])


def _time_steps(
    device: Device,
    case: Case,
    operands: Operands,
    sampling: Sampling,
    stopwatch: Stopwatch,
    check: bool,
    caches: Caches | None,
    look: Callable[[], None],
    figures: dict[str, Value],
) -> None:
    """Steps of contexts of the case's own type; what fills them up is zero."""
    runtime = device.runtime_version
    padded = case.padded(device.chip, runtime)
    shares = padded.shares(device.chip.type_limits(TYPES[case.type_name], runtime).n_multiple)
    if padded != case:
        figures["runs_as"] = f"{padded.m}x{padded.k}x{padded.n}"
    a, b = _filled(operands.a, padded.m, padded.k), _filled(operands.b, padded.k, padded.n)
    tiles = [Tile(core, padded.m, padded.k, each.stop - each.start) for core, each in enumerate(shares)]
    time = stopwatch.time
    with _bound(device, case, tiles, sampling, stopwatch, caches) as bound:
        bound.put_b([b[:, share] for share in shares])
        parts: list[NDArray[Any]] = []
        for _ in sampling.rounds(stopwatch, ["run"]):
            time("pack_a", bound.put_a, a)
            time("sync_a", bound.flush_a)
            time("bind", bound.bind)
            time("run", bound.run)
            time("sync_c", bound.sync_c)
            parts = time("unpack_c", bound.get_c)
        look()
        if check:
            operands.check(np.concatenate(parts, axis=1)[: case.m, : case.n], case)
        _time_cold(bound, sampling, stopwatch, caches)


def _time_runs(
    device: Device,
    plan: MatmulPlan,
    tiles: list[Tile],
    sampling: Sampling,
    stopwatch: Stopwatch,
    caches: Caches | None,
    look: Callable[[], None],
) -> None:
    """Runs of a plan; what is in their operands does not matter."""
    case = Case("int8", plan.m, plan.weight.k, plan.weight.n, plan.weight.ac_native)
    with _bound(device, case, tiles, sampling, stopwatch, caches, plan) as bound:
        for _ in sampling.rounds(stopwatch, ["run"]):
            stopwatch.time("sync_a", bound.flush_a)
            stopwatch.time("bind", bound.bind)
            stopwatch.time("run", bound.run)
            stopwatch.time("sync_c", bound.sync_c)
        look()
        _time_cold(bound, sampling, stopwatch, caches)


def _bound(
    device: Device,
    case: Case,
    tiles: list[Tile],
    sampling: Sampling,
    stopwatch: Stopwatch,
    caches: Caches | None,
    plan: MatmulPlan | None = None,
) -> BoundTiles:
    mm_type = TYPES[case.type_name] if plan is None else plan.weight.mm_type
    bound = BoundTiles(device, mm_type, tiles, case.ac_native, 1 if caches is None else 2)
    for _ in range(min(sampling.least, _FEW)):
        for context in stopwatch.time("create", bound.create):
            context.close()
    return bound


def _time_cold(bound: BoundTiles, sampling: Sampling, stopwatch: Stopwatch, caches: Caches | None) -> None:
    if caches is None:
        return
    for _ in _fewer(sampling).rounds(stopwatch, ["run_cold"]):
        bound.next_copy()
        bound.bind()
        caches.drop()
        stopwatch.time("run_cold", bound.run)


def _time_product(
    device: Device,
    case: Case,
    operands: Operands,
    sampling: Sampling,
    stopwatch: Stopwatch,
    check: bool,
    caches: Caches | None,
) -> tuple[MatmulPlan, list[Tile]]:
    options = {"cores": case.cores, "layout": case.layout}
    if case.scheme is not None:
        for _ in range(min(sampling.least, _FEW)):
            stopwatch.time("pack_b", lambda: pack(operands.b, case.scheme, device=device)).close()
    with Matmul(operands.a, operands.b, scheme=case.scheme, options=options, device=device) as product:
        plan = product.plan()
        result = product.execute()
        if check:
            operands.check(np.asarray(result), f"Matmul.execute of {case}")
        prepared = product.prepared
        assert plan is not None
        assert prepared is not None
        assert prepared.program is not None
        assert prepared.stored is not None
        settle(product.execute)
        for _ in sampling.rounds(stopwatch, ["matmul", "executor"]):
            result = stopwatch.time("matmul", product.execute)
            stopwatch.time("executor", prepared.program.bare_call())  # into `result`
            stopwatch.time("host", prepared.program.bare_call(runs=False))
        if caches is not None:
            for _ in _fewer(sampling).rounds(stopwatch, ["matmul_cold"]):
                caches.drop()
                stopwatch.time("matmul_cold", product.execute)
        return plan, tiles_of(plan, prepared.stored.slices)


def _fewer(sampling: Sampling) -> Sampling:
    """Of what takes longest between two times, which is dropping caches."""
    return replace(sampling, warmup=min(sampling.warmup, 1), least=min(sampling.least, 5))


def _filled(values: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """A matrix with zeros below and beside it."""
    if values.shape == (rows, columns):
        return values
    filled = np.zeros((rows, columns), values.dtype)
    filled[: values.shape[0], : values.shape[1]] = values
    return filled


def _row(
    device: Device,
    case: Case,
    plan: MatmulPlan,
    sampling: Sampling,
    seconds: Mapping[str, list[float]],
    figures: Mapping[str, Value],
) -> Row:
    ordered = {name: seconds[name] for name in _ORDER if name in seconds}
    medians = {name: summarise(times).median for name, times in ordered.items()}
    mm_type = plan.weight.mm_type if case.scheme is not None else TYPES[case.type_name]
    alike = case.scheme is not None or (plan.cores, plan.weight.mm_type) == (case.cores, mm_type)
    if case.scheme is None:
        bytes_of = [mm_type.a.nbytes(case.m * case.k), mm_type.b.nbytes(case.k * case.n)]
        nbytes = sum(bytes_of) + mm_type.c.nbytes(case.m * case.n)
    else:
        rows = sum(span.padded for span in plan.m_spans)
        nbytes = plan.weight.nbytes + mm_type.a.nbytes(rows * case.k) + mm_type.c.nbytes(rows * case.n)
    worked_out: dict[str, Value] = {
        "matmul_cores": plan.cores,
        "beyond_run_us": (medians["matmul"] - medians["run"]) * 1e6 if alike else None,
        "python_us": (medians["matmul"] - medians["executor"]) * 1e6,
        "gops": 2 * case.macs / medians["run"] / 1e9,
        "ops_per_byte": 2 * case.macs / nbytes,
        "gb_per_s": nbytes / medians["run"] / 1e9,
    }
    if case.scheme is not None:
        worked_out["matmul_type"] = mm_type.name.lower()
    marks = sampling.mark(ordered, ("run", "matmul"))
    return Row("matmul", case.fields, ordered, {**worked_out, **figures}, _modelled(device, case, plan, figures), marks)


def _modelled(device: Device, case: Case, plan: MatmulPlan, figures: Mapping[str, Value]) -> dict[str, float]:
    """By the timing model: of the run, and what nine tenths of such times are taken to lie between."""
    model = device.chip.timings.get(device.chip.soc)
    mm_type = plan.weight.mm_type if case.scheme is not None else TYPES[case.type_name]
    if model is None or not model.knows(mm_type):
        return {}
    if case.scheme is None:
        shape = case.padded(device.chip, device.runtime_version)
        run = model.run_estimate(mm_type, shape.m, shape.k, shape.n, case.cores, case.ac_native)
        return {"run": run.seconds, "low": run.low, "high": run.high}
    if plan.modelled is None or figures["runs"] != plan.runs:  # where values have two parts, the plan knows of one
        return {}
    device_seconds, within = plan.modelled.device, plan.modelled.within
    return {
        "run": device_seconds, "low": device_seconds / within, "high": device_seconds * within,
        "matmul": plan.modelled.seconds,
    }  # fmt: skip
