"""Ways to run a product are measured, the best one is kept for this machine, and what is kept is right or ignored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import npumatmul as npu
from npumatmul.chips import CHIPS
from npumatmul.chips.types import MatmulType
from npumatmul.files.folders import cache_folder
from npumatmul.host.activation import Activation
from npumatmul.host.kernels import Conversion
from npumatmul.planning.choices import Machine, Tuned, TuningCache, WeightShape
from npumatmul.planning.product import A_BUFFERS_MOST, plan_matmul, plan_weight
from npumatmul.planning.weight import WeightPlan
from npumatmul.running import autotune as module
from npumatmul.running.autotune import Timed, Trial, autotune, plan_for, tuning_cache
from npumatmul.running.program import Program
from npumatmul.running.stored import KSlice
from npumatmul.running.storing import TileRow, store

INT8 = MatmulType.INT8_INT8_INT32
KINDS = {
    MatmulType.FLOAT16_FLOAT16_FLOAT32: (np.dtype(np.float16), Conversion.COPY_16, np.dtype(np.float32)),
    INT8: (np.dtype(np.int8), Conversion.COPY_8, np.dtype(np.int32)),
    MatmulType.INT4_INT4_INT16: (np.dtype(ml_dtypes.int4), Conversion.INT4, np.dtype(np.int32)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "npumatmul"


def check_product(device: npu.Device, plan: WeightPlan) -> None:
    """A product with this plan against numpy's."""
    dtype, conversion, result = KINDS[plan.mm_type]
    random = np.random.default_rng(5)
    a = random.integers(-3, 4, (9, plan.k)).astype(dtype)
    w = random.integers(-1, 2, (plan.n, plan.k)).astype(dtype)
    rows = [TileRow(s, w[:, s.start : s.start + s.length], conversion) for s in plan.k_spans]
    slices = [KSlice(s, tiles=i) for i, s in enumerate(plan.k_spans)]
    stored = store(device, plan, rows, slices)
    out = np.empty((9, plan.n), result)
    Program(stored, len(a), Activation(dtype, conversion), out.dtype).multiply(a, out)
    stored.close()
    assert (out == a.astype(np.float64) @ w.T.astype(np.float64)).all()


@pytest.mark.parametrize("mm_type", KINDS, ids=lambda t: t.a.label)
def test_every_way_that_is_tried_multiplies_right(device: npu.Device, mm_type: MatmulType) -> None:
    dtype, conversion, result = KINDS[mm_type]
    weight = WeightShape(900, 300, mm_type)
    tuning = autotune(device, weight, Activation(dtype, conversion), result, rows=(1, 10), iterations=1, limit=4)
    assert 2 <= len({trial.plan for trial in tuning.trials}) <= 6
    assert len({(trial.step, trial.plan) for trial in tuning.trials}) == len(tuning.trials)
    for trial in tuning.trials:
        assert {(each.rows, each.cores) for each in trial.timed if each.share == "tiles"} == {
            (rows, cores) for rows in (1, 10) for cores in range(1, trial.plan.cores + 1)
        }
        # 10 rows are shared as 8 and 2, or as 4, 4 and 2
        fitting = {(10, cores) for cores in (2, 3) if cores * len(trial.plan.k_spans) <= A_BUFFERS_MOST}
        assert {(each.rows, each.cores) for each in trial.timed if each.share == "rows"} == fitting
        check_product(device, trial.plan)
    check_product(device, tuning.plan)
    last = [trial for trial in tuning.trials if trial.step == tuning.trials[-1].step]
    best = min(sum(np.log(each.seconds) for each in trial.best().values()) for trial in last)
    assert sum(np.log(seconds) for _, seconds in tuning.chosen.seconds) == pytest.approx(best)
    assert "says nothing about a board" in str(tuning)
    layouts = {trial.plan.ac_native for trial in tuning.trials}
    assert layouts == ({True} if mm_type is MatmulType.INT4_INT4_INT16 else {True, False})


def test_what_takes_least_is_chosen_kept_and_used_when_told(
    fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock of our own: three tiles in normal layout on two cores are best for few rows, one core for many."""

    def seconds(bench: object, m: int, stored: object) -> float:
        plan = stored.plan  # type: ignore[attr-defined]
        cores = plan_matmul(m, plan).cores
        wanted = 2 if m < 64 else 1
        wrong = abs(cores - wanted) + abs(len(plan.n_spans) - 3) + plan.ac_native + (100 not in plan.buckets)
        return 1.0 + wrong + len(plan.k_spans)

    monkeypatch.setattr(module._Candidates, "_seconds", seconds)
    weight = WeightShape(4096, 4096, INT8)
    activation = Activation(np.dtype(np.int8), Conversion.COPY_8)
    tuning = autotune(fresh_device, weight, activation, np.dtype(np.int32), rows=(8, 100), limit=99)
    assert (len(tuning.plan.k_spans), len(tuning.plan.n_spans), tuning.plan.ac_native) == (1, 3, False)
    assert tuning.chosen.cores == ((8, 2), (100, 1))
    assert {8, 100} <= set(tuning.plan.buckets), "contexts for exactly these rows"
    told = plan_for(fresh_device, weight)
    assert told == tuning.plan
    assert [plan_matmul(m, told).cores for m in (1, 8, 99, 100, 4000)] == [2, 2, 2, 1, 1]
    untold = plan_for(fresh_device, weight, tuned=False)
    assert untold == plan_weight(4096, 4096, INT8, fresh_device.chip, fresh_device.runtime_version)
    assert plan_for(fresh_device, replace(weight, n=4064)).measured_cores == (), "of others nothing is known"
    with npu.Device("sim:rk3588") as another:
        assert plan_for(another, weight) == told, "another device of this machine finds it"
    with npu.Device("sim:rk3576") as other_chip:
        assert plan_for(other_chip, weight).measured_cores == ()


def test_sharing_rows_is_chosen_kept_and_used_when_told(
    fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """With a clock of our own: many rows are best shared by two cores, few are not."""

    def seconds(bench: object, m: int, stored: object) -> float:
        made = plan_matmul(m, stored.plan)  # type: ignore[attr-defined]
        return 1.0 if (made.cores, bool(made.range_cores)) == ((2, True) if m > 50 else (1, False)) else 2.0

    monkeypatch.setattr(module._Candidates, "_seconds", seconds)
    weight, activation = WeightShape(512, 512, INT8), Activation(np.dtype(np.int8), Conversion.COPY_8)
    tuning = autotune(fresh_device, weight, activation, np.dtype(np.int32), rows=(8, 100))
    assert (tuning.chosen.cores, tuning.chosen.shared) == (((8, 1), (100, 2)), (100,))
    assert "on 2 by rows" in str(tuning)
    told = plan_for(fresh_device, weight)
    assert told == tuning.plan
    assert [set(plan_matmul(m, told).range_cores) for m in (1, 8, 99, 100, 4000)] == [
        set(),
        set(),
        set(),
        {0, 1},
        {0, 1},
    ]
    check_product(fresh_device, replace(told, measured_cores=((1, 2),), measured_shared=(1,)))
    kept = TuningCache(tuning_cache(fresh_device).machine).find(weight)
    assert kept == tuning.chosen
    file = next(cache.glob("*.json"))
    before = json.loads(file.read_text())
    del before["entries"][str(weight)]["shared"]  # as kept before rows could be shared
    assert Tuned.of(before["entries"][str(weight)]) == replace(tuning.chosen, shared=())


@pytest.mark.parametrize("room", ["plenty", "one at a time"])
def test_ways_take_turns_so_that_a_drifting_clock_favours_none(
    fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: str
) -> None:
    """A machine that gets slower with every run: two tiles on one core are best, whenever they are run."""
    turns: list[tuple[int, int, int, bool]] = []

    def seconds(bench: object, m: int, stored: object) -> float:
        plan = stored.plan  # type: ignore[attr-defined]
        made = plan_matmul(m, plan)
        cores = made.cores
        turns.append((len(plan.k_spans), len(plan.n_spans), cores, bool(made.range_cores)))
        way = 1.0 if (len(plan.n_spans), cores) == (2, 1) and len(plan.k_spans) == 1 else 3.0
        return way * 1.01 ** len(turns)

    weight, iterations = WeightShape(1024, 2048, INT8), 2  # too few rounds to drop anything
    monkeypatch.setattr(module._Candidates, "_seconds", seconds)
    if room != "plenty":
        fresh_device.limit_memory(weight.k * weight.n + 8 * 2**20)
    activation = Activation(np.dtype(np.int8), Conversion.COPY_8)
    with caplog.at_level("INFO", "npumatmul.running.autotune"):
        tuning = autotune(
            fresh_device, weight, activation, np.dtype(np.int32), rows=(16,), iterations=iterations, record=False
        )
    assert ("packed for every turn" in caplog.text) == (room != "plenty")
    assert (len(tuning.plan.k_spans), len(tuning.plan.n_spans), tuning.chosen.cores) == (1, 2, ((16, 1),))
    first = [trial for trial in tuning.trials if trial.step == "cuts"]
    ways = sum(len(trial.timed) for trial in first)
    assert ways > 4
    rounds = [turns[start : start + ways] for start in range(0, iterations * ways, ways)]
    assert all(len(set(each)) == ways for each in rounds), "each way once per round"
    assert rounds[0] != rounds[1], "in another order"
    assert fresh_device.memory_stats().weights_used == 0


def test_what_is_hopeless_is_dropped_and_what_is_not_is_measured_to_the_end(
    fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way with more than one tile of N is slower, whatever the noise; of one tile, layouts differ by less."""
    noise = np.random.default_rng(9)

    def seconds(bench: object, m: int, stored: object) -> float:
        plan = stored.plan  # type: ignore[attr-defined]
        way = 10.0 if len(plan.n_spans) > 1 or len(plan.k_spans) > 1 else 1.0 + 0.01 * plan.ac_native
        return float(way * noise.uniform(0.9, 1.1))

    monkeypatch.setattr(module._Candidates, "_seconds", seconds)
    activation = Activation(np.dtype(np.int8), Conversion.COPY_8)
    weight, rounds = WeightShape(2048, 2048, INT8), 25
    tuning = autotune(
        fresh_device, weight, activation, np.dtype(np.int32), rows=(1,), iterations=rounds, limit=99, record=False
    )
    for trial in tuning.trials:
        hopeless = len(trial.plan.n_spans) > 1 or len(trial.plan.k_spans) > 1
        assert trial.rounds == 3 if hopeless else trial.rounds == rounds
    for each in (each for trial in tuning.trials for each in trial.timed if each.rounds == rounds):
        # of 25 times between 0.9 and 1.1
        assert 0.9 <= each.fastest <= each.seconds <= 1.12
        assert 0.0 < each.spread < 0.22
    assert "spread" in str(tuning)


def test_a_way_that_was_dropped_is_not_best_because_the_machine_was_faster_then() -> None:
    plan = plan_weight(64, 96, INT8, CHIPS["rk3588"])
    early, late = Timed(1, 1, "tiles", 1.0, 0.0, 1.0, 3), Timed(1, 2, "tiles", 1.5, 0.1, 0.4, 9)
    assert Trial(plan, "cuts", (early, late)).best() == {1: late}


MACHINE = Machine("rk3588", False, "2.3.2", "0.9.8", {"npu_max_freq": "1000000000"}, "1.0")
SHAPE = WeightShape(64, 96, INT8, 32, 2)
CHOICE = Tuned(2, 1, True, (4, 8), ((1, 1),), ((1, 0.5),))


def test_the_cache_is_where_the_system_wants_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == cache
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "npumatmul"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "npumatmul"


def test_choices_are_kept_beside_each_other(cache: Path) -> None:
    first, second = TuningCache(MACHINE), TuningCache(MACHINE)
    assert first.find(SHAPE) is None
    second.record(SHAPE, CHOICE)
    first.record(replace(SHAPE, k=128), replace(CHOICE, n_tiles=3))
    fresh = TuningCache(MACHINE)
    assert fresh.find(SHAPE) == CHOICE, "what another process kept meanwhile stays"
    assert fresh.find(replace(SHAPE, k=128)) == replace(CHOICE, n_tiles=3)
    assert fresh.find(replace(SHAPE, k_group=None)) is None
    assert {each.name for each in cache.iterdir()} == {MACHINE.file_name, f".{MACHINE.file_name}.lock"}


def test_processes_lose_nothing_of_each_other(cache: Path) -> None:
    code = (
        "import sys\n"
        "from npumatmul.planning.choices import Machine, MatmulType, Tuned, TuningCache, WeightShape\n"
        f"choices = TuningCache(Machine(**{asdict(MACHINE)!r}))\n"
        f"choice = Tuned(**{asdict(CHOICE)!r})\n"
        "print(flush=True), input()\n"
        "for n in range(int(sys.argv[1]), int(sys.argv[1]) + 25):\n"
        "    choices.record(WeightShape(64, n, MatmulType.INT8_INT8_INT32), choice)\n"
    )
    pipe = subprocess.PIPE
    several = [
        subprocess.Popen([sys.executable, "-c", code, str(first)], stdin=pipe, stdout=pipe, text=True)
        for first in (1, 101)
    ]
    for each in several:
        assert each.stdout is not None
        each.stdout.readline()
    for each in several:  # at once
        each.communicate("\n", timeout=60)
    kept = TuningCache(MACHINE)
    for first in (1, 101):
        assert all(kept.find(WeightShape(64, first + n, INT8)) == CHOICE for n in range(25))


def test_a_file_that_cannot_be_written_leaves_the_old_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TuningCache(MACHINE).record(SHAPE, CHOICE)

    def failing(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(OSError, match="disk is full"):
        TuningCache(MACHINE).record(SHAPE, replace(CHOICE, n_tiles=7))
    assert TuningCache(MACHINE).find(SHAPE) == CHOICE
    assert {each.name for each in cache.iterdir()} == {MACHINE.file_name, f".{MACHINE.file_name}.lock"}


@pytest.mark.parametrize(
    "other",
    [
        replace(MACHINE, simulated=True),
        replace(MACHINE, soc="rk3576"),
        replace(MACHINE, runtime="2.3.0"),
        replace(MACHINE, driver="0.9.7"),
        replace(MACHINE, clocks={"npu_max_freq": "600000000"}),
        replace(MACHINE, npumatmul="1.1"),
    ],
    ids=["simulated", "chip", "runtime", "driver", "clocks", "library"],
)
def test_what_another_machine_measured_is_never_used(other: Machine) -> None:
    theirs, ours = TuningCache(other), TuningCache(MACHINE)
    theirs.record(SHAPE, CHOICE)
    assert ours.path != theirs.path
    assert ours.find(SHAPE) is None
    ours.path.write_bytes(theirs.path.read_bytes())  # even if somebody renames it
    with pytest.warns(RuntimeWarning, match="another machine's"):
        assert TuningCache(MACHINE).find(SHAPE) is None


def _damaged(text: str) -> dict[str, str | bytes]:
    content = json.loads(text)
    name = str(SHAPE)

    def entry(**changes: object) -> str:
        return json.dumps({**content, "entries": {name: {**content["entries"][name], **changes}}})

    return {
        "empty": "",
        "cut": text[: len(text) // 2],
        "a list": "[]",
        "deep": "[" * 100_000,
        "no text": b"\xff\xfe\x00",
        "another format": text.replace("npumatmul-tuning", "something"),
        "a newer version": json.dumps({**content, "version": 2}),
        "no entries": json.dumps({**content, "entries": []}),
        "a negative number": entry(k_slices=-1),
        "a huge number": entry(n_tiles=2**40),
        "no number": entry(buckets=["4"]),
        "no pairs": entry(cores=[1]),
        "truth": entry(ac_native=1),
    }


@pytest.mark.parametrize("damage", list(_damaged(json.dumps({"entries": {str(SHAPE): {}}}))))
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(damage: str) -> None:
    cache = TuningCache(MACHINE)
    cache.record(SHAPE, CHOICE)
    text = _damaged(cache.path.read_text())[damage]
    cache.path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.warns(RuntimeWarning, match=rf"{cache.path.name} is ignored"):
        assert TuningCache(MACHINE).find(SHAPE) is None
    with pytest.warns(RuntimeWarning, match="is ignored"):
        TuningCache(MACHINE).record(SHAPE, CHOICE)
    assert TuningCache(MACHINE).find(SHAPE) == CHOICE


def test_a_choice_that_does_not_fit_any_more_is_ignored(fresh_device: npu.Device) -> None:
    weight = WeightShape(64, 96, INT8)
    for wrong in (replace(CHOICE, buckets=(3,)), replace(CHOICE, buckets=(100_000,))):
        tuning_cache(fresh_device).record(weight, wrong)
        with pytest.warns(RuntimeWarning, match="choice for 64x96.*is ignored: .*buckets"):
            assert plan_for(fresh_device, weight).measured_cores == ()


def test_bad_arguments_are_refused(fresh_device: npu.Device) -> None:
    activation = Activation(np.dtype(np.int8), Conversion.COPY_8)
    weight, result = WeightShape(64, 96, INT8), np.dtype(np.int32)
    with pytest.raises(ValueError, match="at least 1"):
        autotune(fresh_device, weight, activation, result, iterations=0)
    with pytest.raises(ValueError, match="at least 1"):
        autotune(fresh_device, weight, activation, result, rows=(0, 5))
    with pytest.raises(ValueError, match="no source documents native A and C"):
        plan_weight(64, 64, MatmulType.FLOAT16_FLOAT16_FLOAT16, fresh_device.chip, ac_native=True)


@pytest.mark.parametrize(
    "scheme", ["w16a16", "w8a8", "w4a8_g64", "w4a4", "w16a16_high", "w8a8_wasym_aasym", "w4a8_g64_aasym_agroup"]
)
def test_products_of_every_kind_can_be_tuned(fresh_device: npu.Device, scheme: str) -> None:
    random = np.random.default_rng(3)
    a, b = random.standard_normal((5, 192), np.float32), random.standard_normal((192, 160), np.float32)
    with npu.Matmul(a, b, scheme=scheme, device=fresh_device) as product:
        before = product.execute()
        tuning = product.autotune(iterations=1)
        assert tuning is not None
        plan = product.plan()
        assert plan is not None
        assert plan.weight == tuning.plan
        assert plan.cores == dict(tuning.chosen.cores)[5]
        after = product.execute()
    # only the order of float32 sums may differ
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())
    with npu.config(tuned=True):
        assert npu.pack(b, scheme, device=fresh_device).plan == tuning.plan
        with npu.config(fallback="numpy"):
            assert npu.pack(b, scheme, device=fresh_device).plan == tuning.plan
        with npu.config(tuned=False):
            assert npu.pack(b, scheme, device=fresh_device).plan != tuning.plan
    for outer, option, taken in ((True, None, True), (True, False, False), (False, True, True), (False, None, False)):
        with (
            npu.config(tuned=outer),
            npu.Matmul(a, b, scheme=scheme, options={"tuned": option}, device=fresh_device) as product,
        ):
            plan = product.plan()
            assert plan is not None
            assert (plan.weight == tuning.plan) == taken
    with npu.config(tuned=True), npu.Matmul(a, b, scheme=scheme, options={"cores": 1}, device=fresh_device) as product:
        plan = product.plan()
        assert plan is not None
        assert plan.cores == 1
        assert plan.weight.measured_cores == ()  # what is asked for comes before what was measured
    untold = npu.pack(b, scheme, device=fresh_device).plan
    assert untold is not None
    assert untold.measured_cores == ()


def test_integers_stay_exact_and_packed_weights_cannot_be_tuned(fresh_device: npu.Device) -> None:
    random = np.random.default_rng(4)
    for dtype in (np.int8, np.uint8, ml_dtypes.int4):
        a, b = (random.integers(0, 8, shape).astype(dtype) for shape in ((2, 3, 700), (700, 50)))
        with npu.Matmul(a, b, device=fresh_device) as product:
            assert product.autotune(iterations=1) is not None
            assert (product.execute() == a.astype(np.int64) @ b.astype(np.int64)).all()
    with (
        npu.pack(np.ones((64, 32), np.int8), device=fresh_device) as packed,
        npu.Matmul(np.ones((1, 64), np.int8), packed) as product,
        pytest.raises(ValueError, match="packed and so it is cut already"),
    ):
        product.autotune()
    with npu.Matmul(np.ones((0, 64), np.int8), np.ones((64, 3), np.int8), device=fresh_device) as product:
        assert product.autotune() is None
