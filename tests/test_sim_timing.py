"""The simulator's model of time against the planner's, and what its virtual clock makes of products."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from interrupts import interrupted_until_given_up

import npumatmul as npu
from npumatmul import sim
from npumatmul.chips import CHIPS
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.rknn import discovery
from npumatmul.rknn.runtime import Runtime
from npumatmul.rknn.simulator import Simulator

#: What a simulator's constant is in the planner's model.
SINGLE = ("start_seconds", "join_seconds", "buffer_bytes", "bandwidth_one_core", "bandwidth_all_cores", "bind_seconds",
          "host_bandwidth", "normal_c_seconds")  # fmt: skip
BY_ELEMENT = ("peak", "normal_peak")


@pytest.fixture(scope="module")
def simulator() -> Simulator:
    return Simulator(Runtime(discovery.simulator_path()))


def same(simulator: Simulator, model: TimingModel, mm_type: MatmulType, m: int, k: int, n: int, native: bool) -> None:
    for cores in range(1, model.cores + 1):
        expected = model.start_seconds + model.work_seconds(mm_type, m, k, n, cores, native)
        found = simulator.run_seconds(model.soc, mm_type.code, m, k, n, cores, native)
        assert found == pytest.approx(expected, rel=1e-9), (cores, native)


@pytest.mark.parametrize("soc", TIMINGS)
@given(data=st.data())
def test_runs_take_what_the_planner_models(soc: str, simulator: Simulator, data: st.DataObject) -> None:
    mm_type, limits = data.draw(st.sampled_from(sorted(CHIPS[soc].limits.items(), key=lambda item: item[0].name)))
    m = data.draw(st.integers(1, 3000))
    k = limits.k_multiple * data.draw(st.integers(1, 400))
    n = limits.n_multiple * data.draw(st.integers(1, 400))
    same(simulator, TIMINGS[soc], mm_type, m, k, n, data.draw(st.booleans()))


@pytest.mark.parametrize("soc", TIMINGS)
def test_every_type_of_a_chip_has_a_time(soc: str, simulator: Simulator) -> None:
    for mm_type in CHIPS[soc].limits:
        assert simulator.run_seconds(soc, mm_type.code, 4, 64, 64, 1, True) > 0, mm_type


@given(factors=st.lists(st.floats(0.5, 2.0), min_size=14, max_size=14), data=st.data())
def test_other_constants(factors: list[float], data: st.DataObject, simulator: Simulator) -> None:
    """Each constant can be another one, and then both models are still the same."""
    soc = data.draw(st.sampled_from(sorted(TIMINGS)))
    model, factor = TIMINGS[soc], iter(factors)
    values: dict[str, object] = {name: getattr(model, name) * next(factor) for name in SINGLE}
    values["buffer_bytes"] = int(values["buffer_bytes"])  # type: ignore[call-overload]
    for name in BY_ELEMENT:
        values[name] = {element: rate * next(factor) for element, rate in getattr(model, name).items()}
    other = dataclasses.replace(model, **values)  # type: ignore[arg-type]
    simulator.configure("NPUMATMUL_SIM_TIMING_CONSTANTS", sim.timing_constants(other))
    try:
        mm_type = data.draw(st.sampled_from(sorted(CHIPS[soc].limits, key=lambda each: each.name)))
        m, k, n = (data.draw(st.integers(1, most)) for most in (1000, 100, 100))
        same(simulator, other, mm_type, m, 64 * k, 64 * n, data.draw(st.booleans()))
    finally:
        simulator.configure("NPUMATMUL_SIM_TIMING_CONSTANTS", None)


# ---- the virtual clock ---------------------------------------------------------------------------------------------


@pytest.fixture
def timed() -> Iterator[npu.Device]:
    with sim.configured(timing="model"), npu.Device("sim:rk3588") as device:
        yield device


def elapsed(device: npu.Device) -> float:
    return sim.counters(device).device_nanoseconds * 1e-9


@pytest.mark.parametrize(("rows", "cores"), list(itertools.product((1, 64), (1, 2, 3))))
def test_a_product_takes_what_its_plan_says(timed: npu.Device, rows: int, cores: int) -> None:
    """Runs, joining and binding; the host's part is no time of the device. Every repetition takes the same."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-9, 9, shape).astype(np.int8) for shape in ((rows, 1024), (1024, 3072)))
    with npu.Matmul(a, b, options={"cores": cores}, device=timed) as product:
        plan = product.plan()
        assert plan is not None
        assert plan.cores == cores
        modelled = plan.modelled
        assert modelled is not None
        product.execute()
        expected = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32)
        for _ in range(3):
            before = elapsed(timed)
            np.testing.assert_array_equal(product.execute(), expected)
            assert elapsed(timed) - before == pytest.approx(modelled.device + modelled.binding, rel=1e-4)


def test_without_the_setting_nothing_takes_time() -> None:
    with npu.Device("sim:rk3588") as device:
        before = elapsed(device)
        npu.matmul(np.ones((4, 32), np.int8), np.ones((32, 32), np.int8), device=device)
        assert elapsed(device) == before


def test_details_tell_each_core(timed: npu.Device) -> None:
    sim.reset_counters(timed)
    npu.matmul(np.ones((4, 256), np.int8), np.ones((256, 96), np.int8), device=timed)
    nanoseconds = sim.counter_details(timed)["chips"]["rk3588"]["nanoseconds"]
    assert len(nanoseconds["cores"]) == 3
    assert 0 < max(nanoseconds["cores"]) <= nanoseconds["all"] == sim.counters(timed).device_nanoseconds


def test_constants_are_given_as_a_model() -> None:
    text = sim.timing_constants(TIMINGS["rk3588"])
    variables = sim.environment("rk3588", timing="model", timing_constants=text)
    assert variables["NPUMATMUL_SIM_TIMING"] == "model"
    given = dict(each.split("=") for each in variables["NPUMATMUL_SIM_TIMING_CONSTANTS"].split(","))
    assert float(given["peak_int8"]) == TIMINGS["rk3588"].peak[ElementType.INT8]
    assert float(given["start_seconds"]) == TIMINGS["rk3588"].start_seconds


@pytest.mark.parametrize("text", ["start_seconds=fast", "speed=1", "start_seconds=-1"])
def test_constants_that_are_none_are_refused(text: str, fresh_device: npu.Device) -> None:
    with pytest.raises(ValueError, match="NPUMATMUL_SIM_TIMING_CONSTANTS"), \
            sim.configured(fresh_device, timing_constants=text):  # fmt: skip
        pass


def test_a_version_without_synchronisation_has_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Binding A begins them, so that a product on one core does not share its memory with one before on three."""
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "1.5.2")
    b = np.ones((1024, 3072), np.int8)
    with npu.Device("sim:rk3588") as device, sim.configured(device, timing="model"):
        for cores in (3, 1):
            with npu.Matmul(np.ones((1, 1024), np.int8), b, options={"cores": cores}, device=device) as product:
                plan = product.plan()
                assert plan is not None
                assert plan.modelled is not None
                assert plan.cores == cores
                product.execute()
                before = elapsed(device)
                product.execute()
                modelled = plan.modelled.device + plan.modelled.binding
                assert elapsed(device) - before == pytest.approx(modelled, rel=1e-4)


# ---- runs that take their time -------------------------------------------------------------------------------------


def test_runs_that_would_last_for_ever_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As runs that hang are; where the simulator lets them go they end, and new contexts compute as ever."""
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "2.0.0b0")  # a library of its own, whose settings are changed here
    a, b = (np.random.default_rng(0).integers(-9, 9, shape).astype(np.int8) for shape in ((64, 512), (512, 1536)))
    with npu.Device("sim:rk3588") as device:
        packed = npu.pack(b, device=device)
        with sim.configured(device, timing="realtime", timing_constants="start_seconds=1e15"):
            interrupted_until_given_up(device, lambda: a @ packed)
        np.testing.assert_array_equal(a @ packed, a.astype(np.int32) @ b.astype(np.int32))
        packed.close()
