"""Threads that take turns on a core of the NPU: what they compute, what they need, and what happens when that fails."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chaining import KINDS, chained, floats, layer
from interrupts import interrupted_until_given_up
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import sim
from npumatmul.chips import CHIPS
from npumatmul.chips.timing import TIMINGS
from npumatmul.chips.types import MatmulType
from npumatmul.errors import NotFiniteError, RknnError
from npumatmul.planning.product import MatmulPlan, plan_matmul, plan_weight
from npumatmul.planning.weight import costs_of
from npumatmul.running import program
from npumatmul.running.placement import Placement

RNG = np.random.default_rng(1)
M, K, N = 530, 320, 96
A = RNG.standard_normal((M, K), dtype=np.float32)
B = RNG.standard_normal((K, N), dtype=np.float32)


@pytest.fixture(params=["rk3566", "rk3588"])
def device(request: pytest.FixtureRequest) -> Iterator[npu.Device]:
    with npu.Device(f"sim:{request.param}") as opened:
        yield opened


def planned_as(monkeypatch: pytest.MonkeyPatch, share: str, cores: int | None = None) -> list[MatmulPlan]:
    """Have products planned so; the plans that were made."""
    plans = []

    def plan(m: int, weight: Any, **how: Any) -> MatmulPlan:
        plans.append(plan_matmul(m, weight, share=share, cores=cores, **how))  # type: ignore[arg-type]
        return plans[-1]

    monkeypatch.setattr(program, "plan_matmul", plan)
    return plans


def product(device: npu.Device, scheme: str | None, left: NDArray[Any], right: NDArray[Any]) -> NDArray[Any]:
    with npu.pack(right, scheme, device=device) as packed:  # type: ignore[arg-type]
        return np.asarray(npu.matmul(left, packed))


# ---- plans ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_each_thread_has_rows_that_follow_each_other(cores: int) -> None:
    weight = plan_weight(2048, 2048, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"])
    plan = plan_matmul(1999, weight, share="turns", cores=cores)
    assert (plan.cores, plan.turns, plan.threads) == (cores, 2, 2 * cores)
    owners = [2 * core + turn for core, turn in zip(plan.range_cores, plan.range_turns, strict=True)]
    assert owners == sorted(owners)
    assert set(owners) == set(range(2 * cores))
    assert [span.start for span in plan.m_spans] == [0, *np.cumsum([span.length for span in plan.m_spans])[:-1]]
    assert sum(span.length for span in plan.m_spans) == 1999
    rows = [sum(s.length for s, o in zip(plan.m_spans, owners, strict=True) if o == each) for each in set(owners)]
    assert max(rows) - min(rows) <= 2 * cores * weight.row_multiple
    assert MatmulPlan.from_json(plan.to_json()) == plan
    assert "by 2 threads in turns" in str(plan)
    largest = max(span.padded for span in plan.m_spans)
    assert plan.a_bytes == 2 * cores * largest * 2048, "each thread has an image of A"
    assert plan.c_bytes == 2 * cores * largest * max(span.padded for span in weight.n_spans) * 4
    alone = plan.without_turns()
    assert (alone.turns, alone.m_spans, alone.range_cores) == (1, plan.m_spans, plan.range_cores)


def test_turns_are_taken_where_they_gain_by_the_model() -> None:
    """Where the host has much to pack and store beside what one core computes; not for few rows, or without a model."""
    rk3566 = CHIPS["rk3566"]
    weight = plan_weight(2048, 2048, MatmulType.INT8_INT8_INT32, rk3566)
    costs = costs_of(weight)
    assert costs is not None
    for m in (1, 8, 64):
        assert plan_matmul(m, weight).turns == 1
    plan, tiles = plan_matmul(2048, weight), plan_matmul(2048, weight, share="tiles")
    assert (plan.turns, tiles.turns) == (2, 1)
    assert plan.modelled is not None
    assert tiles.modelled_seconds is not None
    runs = sum(costs.range_seconds(s.padded, 1) - s.padded * tiles.modelled.host / 2048 for s in plan.m_spans)  # type: ignore[union-attr]
    assert runs < plan.modelled.seconds < 0.9 * tiles.modelled_seconds
    assert plan_matmul(2048, weight, cores=1).turns == 1, "cores that are asked for share tiles"
    assert plan_matmul(2048, weight, timings={}).turns == 1
    assert plan_matmul(2048, weight, images=9).turns == 1, "there are 16 buffers of A"
    with pytest.raises(ValueError, match="cannot be shared"):
        plan_matmul(4, weight, share="turns")


def test_what_runs_do_not_hide_is_modelled_by_hand() -> None:
    """Two ranges on one core, bound by runs: A of the first one is packed before, C of the last one stored after."""
    model = TIMINGS["rk3588"]
    weight = plan_weight(2048, 2048, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"], n_tiles=1)
    costs = costs_of(weight)
    assert costs is not None
    run = model.run_seconds(MatmulType.INT8_INT8_INT32, 512, 2048, 2048)
    packed, stored = (512 * 2048 * each / model.host_bandwidth for each in (1, 4))
    waking = 5e-5
    expected = 2 * (run + waking) + packed + stored + 3 * model.bind_seconds
    assert costs.in_turns([[512], [512]], 2).seconds == pytest.approx(expected)


def test_measured_cores_take_turns_as_well() -> None:
    weight = plan_weight(2048, 2048, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"], measured_cores=((1, 1),))
    plan = plan_matmul(4096, weight)
    assert (plan.cores, plan.turns) == (1, 2)


# ---- products ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "kind"),
    [*((1, kind) for kind in KINDS), *itertools.product((2, 3), ("w8a8", "w16a16", "w8a8_wasym_aasym"))],
)
def test_the_bits_are_those_of_one_thread(cores: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where A is made of the result of the product before, which nobody has read."""
    monkeypatch.setattr("npumatmul.ops.array.multiply.AT_ONCE", 0)  # small results are deferred, too
    with npu.Device("sim:rk3588") as device, npu.use_device(device):
        layers = [layer(kind, 160, 96), layer(kind, 96, 64, 1)]
        a, results = floats(M, 160), []
        for share, count in (("tiles", 1), ("turns", cores)):
            plans = planned_as(monkeypatch, share, count)
            for weight, _ in layers:
                weight.products.clear()
            results.append([chained(a, layers), chained(npu.asarray(a), layers).numpy()])
        np.testing.assert_array_equal(*results)
        assert {plan.threads for plan in plans} == {2 * cores}


def test_a_product_takes_turns_by_itself() -> None:
    left = RNG.integers(-9, 9, (1024, K), dtype=np.int8)
    right = RNG.integers(-9, 9, (K, 1024), dtype=np.int8)
    with npu.Device("sim:rk3566") as device, npu.pack(right, device=device) as packed:
        assert packed.plan is not None
        plan = plan_matmul(1024, packed.plan)
        assert plan.turns == 2
        before = device.stats().run_calls
        expected = (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int32)
        np.testing.assert_array_equal(npu.matmul(left, packed), expected)
        assert device.stats().run_calls - before == plan.runs
        contexts = [len(copies) for copies in Placement.of(device).contexts._contexts.values()]
        assert set(contexts) == {2}, "each thread has contexts of its own"


# ---- failures ------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_repeated_once(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = planned_as(monkeypatch, "turns", 1)
    with npu.pack(B, "w8a8", device=device) as packed:
        expected = npu.matmul(A, packed)
        held = device.stats().contexts
        for after in range(plans[0].runs):
            with sim.configured(device, faults=f"run:after={after}:times=1:code=-2"):
                np.testing.assert_array_equal(npu.matmul(A, packed), expected)
        with sim.configured(device, faults="run:code=-2"), pytest.raises(RknnError, match="in vain") as caught:
            npu.matmul(A, packed)
        assert caught.value.arguments["core"] == 0, "a core of the NPU, whichever thread it was"
        np.testing.assert_array_equal(npu.matmul(A, packed), expected)
        assert device.stats().contexts == held


def test_a_run_that_hangs_is_given_up_with_who_waits_for_it(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is the first run on the core or the second one: nothing is left of both threads when it ends."""
    plans = planned_as(monkeypatch, "turns", 1)
    with npu.pack(B, "w8a8", device=device) as packed:
        expected = npu.matmul(A, packed)
        held = device.stats()
        for after in range(plans[0].runs):
            with sim.configured(device, faults=f"run:after={after}:hang"):
                interrupted_until_given_up(device, lambda: npu.matmul(A, packed), after)
            np.testing.assert_array_equal(npu.matmul(A, packed), expected)
        npu.empty_cache(device)
        np.testing.assert_array_equal(npu.matmul(A, packed), expected)
        assert (device.stats().contexts, device.stats().descriptors) == (held.contexts, held.descriptors)


def test_rows_that_cannot_be_quantized_are_told(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    planned_as(monkeypatch, "turns", 1)
    wrong = A.copy()
    wrong[M - 3, 5] = np.inf
    with npu.pack(B, "w8a8", device=device) as packed:
        with pytest.raises(NotFiniteError, match=f"row {M - 3} of a"):
            npu.matmul(wrong, packed)
        assert np.isfinite(npu.matmul(A, packed)).all()


def test_without_room_for_a_second_set_one_thread_does_it(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the limit of memory: a product that one thread has room for is made, and it is the same."""
    planned_as(monkeypatch, "tiles", 1)
    expected = product(device, "w8a8", A, B)
    plans = planned_as(monkeypatch, "turns", 1)
    with npu.pack(B, "w8a8", device=device) as packed:
        np.testing.assert_array_equal(npu.matmul(A, packed), expected)
        both = device.memory_stats().nbytes
        npu.empty_cache(device)
        weights = device.memory_stats().nbytes
        one = (both - weights) // 2
        npu.memory_limit(weights + one, device)
        try:
            packed.products.clear()
            np.testing.assert_array_equal(npu.matmul(A, packed), expected)
            np.testing.assert_array_equal(npu.matmul(A, packed), expected)
            assert device.memory_stats().nbytes == weights + one
            npu.memory_limit(weights + one - 1, device)
            packed.products.clear()
            with pytest.raises(npu.errors.NpuMemoryError):
                npu.matmul(A, packed)
        finally:
            npu.memory_limit(None, device)
    assert [plan.turns for plan in plans] == [2, 2, 2]


def test_without_contexts_for_a_second_set_one_thread_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a library of its own: where others gave up contexts, the limit and the counter differ by them."""
    monkeypatch.setenv("NPUMATMUL_LIBRARY", str(shutil.copy(sim.library_path(), tmp_path / "libown.so")))
    monkeypatch.setenv("NPUMATMUL_SIM_SOC", "rk3566")
    planned_as(monkeypatch, "tiles", 1)
    with npu.Device() as device:
        expected = product(device, "w8a8", A, B)
    plans = planned_as(monkeypatch, "turns", 1)
    with npu.Device() as device, npu.pack(B, "w8a8", device=device) as packed:
        held = sim.counters(device).contexts_now
        with sim.configured(device, contexts=held + 1):
            np.testing.assert_array_equal(npu.matmul(A, packed), expected)
            assert sim.counters(device).contexts_now == held + 1
        packed.products.clear()
        np.testing.assert_array_equal(npu.matmul(A, packed), expected)
        assert sim.counters(device).contexts_now == held + 2
    assert [plan.turns for plan in plans] == [2, 2]
