"""Calibrating: constants are recovered from points that a model made, and from simulators with other constants."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import npumatmul as npu
from npumatmul import sim
from npumatmul.calibrate import Calibration, Clock, calibrate, calibration, fit
from npumatmul.calibrate.measure import Sample, measure_host
from npumatmul.calibrate.points import Point, points_for
from npumatmul.chips import NEWEST_RUNTIME, chip
from npumatmul.chips.timing import TIMINGS, TimingModel, find_timing, keep_timing
from npumatmul.cli import calibrating
from npumatmul.errors import CalibrationError, DeviceError

POINTS = {soc: points_for(chip(soc), NEWEST_RUNTIME) for soc in TIMINGS}
#: No type of the chip has an A of int4.
NEVER_SEEN = {"rk3576": {"peak int4"}}


def times(model: TimingModel) -> dict[Point, float]:
    return {point: point.seconds(model) for point in POINTS[model.soc]}


def scaled(soc: str, factors: dict[str, float]) -> TimingModel:
    values = fit.values_of(TIMINGS[soc])
    return fit.with_values(TIMINGS[soc], {name: value * factors.get(name, 1.0) for name, value in values.items()})


def check_recovered(found: fit.Fit, truth: TimingModel) -> None:
    """What is said to be known is known to 5 %, and every point comes out right, whatever decides it."""
    values, wanted = fit.values_of(found.model), fit.values_of(truth)
    assert {name: values[name] / wanted[name] for name in found.noticed} == pytest.approx(
        dict.fromkeys(found.noticed, 1.0), rel=0.05
    )
    assert float(np.max(np.abs(fit.errors(found.model, times(truth))))) < 0.05


# ---- fitting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soc", TIMINGS)
def test_what_is_right_stays(soc: str) -> None:
    found = fit.fit(TIMINGS[soc], times(TIMINGS[soc]))
    check_recovered(found, TIMINGS[soc])
    assert set(fit.values_of(TIMINGS[soc])) - found.noticed == NEVER_SEEN.get(soc, set())


@pytest.mark.parametrize("name", fit.values_of(TIMINGS["rk3588"]))
@pytest.mark.parametrize("factor", [0.55, 1.8])
def test_each_constant_is_found_alone(name: str, factor: float) -> None:
    if factor > 1:  # beyond that, no run can tell: three cores do not ask for more, and every run waits for memory
        factor = {"bandwidth_all_cores": 1.15, "peak float16": 1.3}.get(name, factor)
    truth = scaled("rk3588", {name: factor})
    found = fit.fit(TIMINGS["rk3588"], times(truth))
    check_recovered(found, truth)
    assert name in found.noticed


@settings(max_examples=8)
@given(data=st.data())
def test_all_constants_are_found_together(data: st.DataObject) -> None:
    soc = data.draw(st.sampled_from(sorted(TIMINGS)))
    factors = {name: 2 ** data.draw(st.floats(-1, 1)) for name in fit.values_of(TIMINGS[soc])}
    truth = scaled(soc, factors)
    check_recovered(fit.fit(TIMINGS[soc], times(truth)), truth)


def test_noise_does_not_matter_much() -> None:
    """Points that are off by 2 %: constants that are said to be known are right to a multiple of that."""
    rng = np.random.default_rng(1)
    truth = scaled("rk3588", {"start_seconds": 1.5, "bandwidth_one_core": 1.2, "peak int8": 0.8, "peak float16": 0.8})
    observed = {point: seconds * math.exp(0.02 * rng.standard_normal()) for point, seconds in times(truth).items()}
    found = fit.fit(TIMINGS["rk3588"], observed)
    values, wanted = fit.values_of(found.model), fit.values_of(truth)
    for name in found.noticed:
        assert abs(math.log(values[name] / wanted[name])) < 0.1, name
    assert {"start_seconds", "bandwidth_one_core", "peak int8"} <= found.noticed
    assert fit.rms(fit.errors(found.model, observed)) < 0.025


def test_runs_that_were_disturbed_decide_nothing() -> None:
    """One run in ten takes up to half as long again, as where something else came in between."""
    rng = np.random.default_rng(2)
    truth = scaled("rk3588", {"start_seconds": 0.7, "bandwidth_one_core": 1.2, "peak int8": 0.8, "buffer_bytes": 0.8})
    observed = {
        point: seconds * math.exp(0.01 * rng.standard_normal()) * (1 + rng.uniform(0.2, 0.5) * (rng.random() < 0.1))
        for point, seconds in times(truth).items()
    }
    found = fit.fit(TIMINGS["rk3588"], observed)
    values, wanted = fit.values_of(found.model), fit.values_of(truth)
    for name in found.noticed:
        assert abs(math.log(values[name] / wanted[name])) < 0.05, name
    assert {"start_seconds", "bandwidth_one_core", "buffer_bytes", "peak int8"} <= found.noticed


def test_a_constant_that_nothing_depends_on_stays() -> None:
    """Such fast products that every run waits for memory: the peak is at least what it was."""
    truth = scaled("rk3562", {"peak float16": 50.0})
    found = fit.fit(TIMINGS["rk3562"], times(truth))
    check_recovered(found, truth)
    assert "peak float16" not in found.noticed
    assert fit.values_of(found.model)["peak float16"] >= fit.values_of(TIMINGS["rk3562"])["peak float16"]


@pytest.mark.parametrize("wrong", [0.0, -1.0])
def test_times_that_are_none_are_refused(wrong: float) -> None:
    observed = times(TIMINGS["rk3588"])
    observed[POINTS["rk3588"][3]] = wrong
    with pytest.raises(CalibrationError, match="no time at all"):
        fit.fit(TIMINGS["rk3588"], observed)


def test_larger_matrices_take_longer_or_nothing_is_fitted() -> None:
    observed = dict.fromkeys(POINTS["rk3588"], 1e-3)
    for point in observed:
        if point.m == 1:
            observed[point] = 1.0 / point.k / point.n
    with pytest.raises(CalibrationError, match="something else used the NPU"):
        fit.fit(TIMINGS["rk3588"], observed)


# ---- devices -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NPUMATMUL_TIMING_FILE", raising=False)
    return tmp_path / "npumatmul"


@pytest.mark.parametrize("seed", range(4))
def test_simulators_of_other_boards(seed: int, own_settings: Path) -> None:
    """Each constant by a factor of its own between a half and two."""
    soc = ("rk3588", "rk3576", "rk3562", "rk3566")[seed]
    rng = np.random.default_rng(seed)
    truth = scaled(soc, {name: 2 ** rng.uniform(-1, 1) for name in fit.values_of(TIMINGS[soc])})
    truth = replace(truth, bind_seconds=truth.bind_seconds * 1.9)
    constants = sim.timing_constants(truth)
    with sim.configured(timing="model", timing_constants=constants), npu.Device(f"sim:{soc}") as device:
        found = calibrate(device)
        found.keep()
    assert found.problem is None
    check_recovered(fit.Fit(found.after, frozenset(each.name for each in found.constants if each.noticed
                                                   and each.name in fit.values_of(truth))), truth)  # fmt: skip
    assert found.after.bind_seconds == pytest.approx(truth.bind_seconds, rel=0.05)
    assert found.error(found.after) < 0.02 < found.error(found.before)
    with npu.Device(f"sim:{soc}") as device:  # what plans use from now on
        assert device.chip.timings[soc] == found.after
    assert find_timing(soc) == TIMINGS[soc]  # and not those for boards


def test_a_simulator_without_modelled_time_is_refused() -> None:
    with npu.Device("sim:rk3588") as device, pytest.raises(DeviceError, match="NPUMATMUL_SIM_TIMING=model"):
        calibrate(device)


def test_the_cpu_is_timed_by_the_clock_that_is_given() -> None:
    """One second for each reading of the clock."""
    ticks = iter(range(100))
    found = measure_host(Clock(lambda: float(next(ticks)), exact=True), 1.0)
    assert found == {
        "host_bandwidth": float(64 << 20),
        "host_flops": 200 * 2 * 64.0**3,
        "host_exp_seconds": 1 / (1 << 16),
    }


# ---- what is relied on, and what is stored -------------------------------------------------------------------------


def calibrated(model: TimingModel, *, spread: float = 0.01, slowdown: float = 1.0, noise: float = 0.0) -> Calibration:
    rng = np.random.default_rng(0)
    measured = {
        point: Sample(seconds * math.exp(noise * rng.standard_normal()), spread)
        for point, seconds in times(model).items()
    }
    return Calibration(TIMINGS["rk3588"], model, (), measured, slowdown, 1.0, True, {})


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (calibrated(scaled("rk3588", {"start_seconds": 2.0}), slowdown=1.3), "30 % longer at the end"),
        (calibrated(scaled("rk3588", {"start_seconds": 2.0}), spread=0.4), "times vary by 40 %"),
        (calibrated(scaled("rk3588", {"start_seconds": 2.0}), noise=0.5), "cannot explain"),
        (replace(calibrated(TIMINGS["rk3588"]), after=scaled("rk3588", {"start_seconds": 1.1})), "explain .* better"),
    ],
)
def test_constants_that_are_no_good_are_not_stored(found: Calibration, why: str, own_settings: Path) -> None:
    kept = keep_timing(TIMINGS["rk3588"], simulated=True)
    before = kept.read_bytes()
    with pytest.raises(CalibrationError, match=f"nothing was stored: .*{why}"):
        found.keep()
    assert kept.read_bytes() == before


@pytest.fixture
def command(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The command, where timing a point asks a model instead of a device."""
    state = SimpleNamespace(model=scaled("rk3588", {"start_seconds": 2.0}), points=0, interrupt_at=None)

    def measured(device: object, point: Point, clock: object, budget: float) -> Sample:
        state.points += 1
        if state.points == state.interrupt_at:
            raise KeyboardInterrupt
        return Sample(point.seconds(state.model), 0.0)

    monkeypatch.setattr(calibration, "measure_point", measured)
    state.kept = own_settings / "timing-sim-rk3588.json"
    with sim.configured(timing="model"):
        yield state


def run(output: Path | None = None, dry_run: bool = False, as_json: bool = False) -> None:
    calibrating.run("sim:rk3588", seconds=1.0, output=output, dry_run=dry_run, as_json=as_json)


def test_the_command_stores_and_shows(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    run()
    shown = capsys.readouterr()
    assert "start_seconds" in shown.out
    assert "6e-05" in shown.out
    assert f"Stored in {command.kept}" in shown.err
    kept = find_timing("rk3588", simulated=True)
    assert kept is not None
    assert kept.start_seconds == pytest.approx(6e-5)
    assert kept.provenance.startswith("npumatmul calibrate, 20")
    assert json.loads(command.kept.read_text())["facts"]["device"] == "sim:rk3588"


def test_a_dry_run_stores_nothing(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    run(dry_run=True, as_json=True)
    facts = json.loads(capsys.readouterr().out)
    assert not command.kept.exists()
    assert facts["stored"] is None
    assert facts["problem"] is None
    assert len(facts["runs"]) == len(POINTS["rk3588"])
    assert facts["error_after"] < 1e-3 < facts["error_before"]


def test_another_file_has_to_be_named_to_be_used(
    command: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(output=tmp_path / "mine.json")
    assert f"NPUMATMUL_TIMING_FILE={tmp_path / 'mine.json'}" in capsys.readouterr().err
    assert not command.kept.exists()
    environment = {"NPUMATMUL_TIMING_FILE": str(tmp_path / "mine.json")}
    kept = find_timing("rk3588", True, environment)
    assert kept is not None
    assert kept.start_seconds == pytest.approx(6e-5)


@pytest.mark.parametrize("at", [1, 40, len(POINTS["rk3588"]) + 1])
def test_an_interrupt_leaves_what_was_stored(
    at: int, command: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = keep_timing(scaled("rk3588", {"join_seconds": 3.0}), simulated=True)
    before, command.interrupt_at = kept.read_bytes(), at
    with pytest.raises(KeyboardInterrupt):
        run()
    assert kept.read_bytes() == before
    assert "Nothing was stored" in capsys.readouterr().err


def test_a_bad_fit_is_shown_and_not_stored(command: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    kept = keep_timing(TIMINGS["rk3588"], simulated=True)
    before = kept.read_bytes()
    command.model = replace(command.model, buffer_bytes=1 << 13, normal_c_seconds=1e-6, join_seconds=1e-2)
    with pytest.raises(CalibrationError, match="nothing was stored"):
        run()
    assert kept.read_bytes() == before
    assert "start_seconds" in capsys.readouterr().out


def test_info_tells_which_constants_are_in_use(own_settings: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from npumatmul.cli import info

    info.show("sim:rk3588", as_json=True)
    assert json.loads(capsys.readouterr().out)["timing_constants"].endswith("not calibrated on this machine")
    path = keep_timing(replace(TIMINGS["rk3588"], start_seconds=1e-4, provenance="mine"), simulated=True)
    info.show("sim:rk3588", as_json=True)
    assert json.loads(capsys.readouterr().out)["timing_constants"] == f"mine ({path})"
