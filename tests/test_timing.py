"""The timing model against the figures that others published, and what must hold for any constants."""

from __future__ import annotations

import json
import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from npumatmul.chips import CHIPS
from npumatmul.chips.limits import chip_here
from npumatmul.chips.rows import NEWEST_RUNTIME
from npumatmul.chips.timing import TIMINGS, Estimate, TimingModel, default_timing_path, find_timing, keep_timing
from npumatmul.chips.types import ElementType
from npumatmul.planning.product import plan_matmul, plan_weight

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import fit_timing

TYPES = fit_timing.TYPES
RK3588 = TIMINGS["rk3588"]


def test_the_published_points_are_met() -> None:
    points = fit_timing.points()
    assert len(points) == 37
    errors = fit_timing.errors(RK3588, points)
    assert fit_timing.rms(errors) <= 0.20
    worst = int(np.argmax(np.abs(errors)))
    assert abs(errors[worst]) <= math.log(2), f"{points[worst]}: off by a factor of {math.exp(errors[worst]):.2f}"


def test_sources_that_are_left_out_are_predicted() -> None:
    found = fit_timing.fit(fit_timing.points())
    assert {source: fit_timing.rms(errors) for source, errors in found.left_out.items() if
            fit_timing.rms(errors) > 0.35} == {}  # fmt: skip
    assert found.within == pytest.approx(RK3588.within, abs=0.01)


def test_the_constants_are_those_that_the_points_give() -> None:
    found = fit_timing.fitted(fit_timing.points())
    for name in ("start_seconds", "join_seconds", "bandwidth_one_core", "bandwidth_all_cores", "normal_c_seconds"):
        assert getattr(RK3588, name) == pytest.approx(getattr(found, name), rel=0.01), name
    assert RK3588.peak == pytest.approx(found.peak, rel=0.001)


def test_every_constant_has_a_source_or_is_a_guess() -> None:
    for soc, model in TIMINGS.items():
        constants = set(json.loads(model.to_json())) - {"soc", "cores", "provenance", "sources"}
        if not model.normal_peak:
            constants -= {"normal_peak"}
        assert set(model.sources) == constants, soc
        for source in model.sources.values():
            assert source.startswith(("fitted: ", "documented: ", "published: ", "derived: ", "guess: ", "tools/"))
        assert model.cores == CHIPS[soc].cores


def test_large_k_collapses_and_slices_do_not() -> None:
    whole = RK3588.run_seconds(TYPES["fp16"], 2048, 8192, 512)
    slices = 4 * RK3588.run_seconds(TYPES["fp16"], 2048, 2048, 512)
    assert whole > 2.5 * slices  # published: eight slices of 2048 take 60 ms where one run of 16384 takes 462


@pytest.mark.parametrize("model", TIMINGS.values(), ids=TIMINGS)
@given(data=st.data())
def test_more_work_never_takes_less_time(model: TimingModel, data: st.DataObject) -> None:
    mm_type = data.draw(st.sampled_from([each for each in CHIPS[model.soc].limits if model.knows(each)]))
    m, k, n = (data.draw(st.integers(1, most)) for most in (2048, 256, 256))
    cores, native = data.draw(st.integers(1, model.cores)), data.draw(st.booleans())
    base = model.run_seconds(mm_type, m, 32 * k, 64 * n, cores, native)
    assert base > model.start_seconds
    more = [(m + 1, k, n), (2 * m, k, n), (m, 2 * k, n), (m, k, n + 1)]
    for m_more, k_more, n_more in more:
        assert model.run_seconds(mm_type, m_more, 32 * k_more, 64 * n_more, cores, native) >= base * (1 - 1e-12)
    faster = replace(
        model, bandwidth_one_core=2 * model.bandwidth_one_core, bandwidth_all_cores=2 * model.bandwidth_all_cores,
        peak={element: 2 * rate for element, rate in model.peak.items()},
        normal_peak={element: 2 * rate for element, rate in model.normal_peak.items()},
    )  # fmt: skip
    assert base / 2 <= faster.run_seconds(mm_type, m, 32 * k, 64 * n, cores, native) <= base


def test_b_is_read_again_by_hand() -> None:
    """float16, K = 4096, N = 512: a group of 16 columns is 128 KiB, so two leave 128 KiB for 16 rows."""
    fp16 = TYPES["fp16"]
    assert RK3588.resident_rows(fp16, 4096) == 16
    traffic = 128 * 4096 * 512 * 2 + 2048 * 4096 * 2 + 2048 * 512 * 4
    by_hand = RK3588.start_seconds + traffic / RK3588.bandwidth_one_core
    assert RK3588.run_seconds(fp16, 2048, 4096, 512) == pytest.approx(by_hand)
    # K = 8192: two groups would fill the buffer, so there is one, and nothing is read while it is at work
    assert RK3588.resident_rows(fp16, 8192) == 8
    traffic = 256 * 8192 * 512 * 2 + 2048 * 8192 * 2 + 2048 * 512 * 4
    work = 2 * 2048 * 8192 * 512 / RK3588.peak[ElementType.FLOAT16]
    by_hand = RK3588.start_seconds + traffic / RK3588.bandwidth_one_core + work
    assert RK3588.run_seconds(fp16, 2048, 8192, 512) == pytest.approx(by_hand)


def test_a_plan_tells_its_modelled_time_and_says_that_it_is_modelled() -> None:
    """One core, by hand from the formulas of timing/model.py: runs, three bindings each, packing, storing, adding."""
    weight = plan_weight(5000, 9000, TYPES["fp16"], CHIPS["rk3588"], k_slices=5, n_tiles=3, buckets=(300,))
    plan = plan_matmul(300, weight, cores=1)
    tiles = [(k.padded, n.padded) for k in weight.k_spans for n in weight.n_spans]
    assert len(tiles) == 15
    runs = sum(RK3588.run_seconds(TYPES["fp16"], 300, k, n) for k, n in tiles)
    copied = 300 * 2 * sum(k.padded for k in weight.k_spans)
    copied += 300 * 4 * sum(n.padded for n in weight.n_spans) * (1 + 4 * 1.5)
    by_hand = runs + 15 * 3 * RK3588.bind_seconds + copied / RK3588.host_bandwidth
    assert plan.modelled_seconds == pytest.approx(by_hand)
    low, high = by_hand / RK3588.within, by_hand * RK3588.within
    shown = f"modelled {by_hand * 1e3:.3f} ms on the chip, not measured ({low * 1e3:.3f} to {high * 1e3:.3f})"
    assert shown in str(plan)


def test_several_cores_share_bandwidth_and_are_joined_once() -> None:
    weight = plan_weight(2048, 3072, TYPES["int8"], CHIPS["rk3588"], k_slices=1, n_tiles=6, buckets=(4,))
    three = plan_matmul(4, weight, cores=3)
    assert three.tile_cores == (0, 1, 2, 0, 1, 2)
    traffic = 2048 * 512 + 4 * 2048 + 4 * 512 * 4  # bound by bandwidth at four rows
    by_hand = RK3588.join_seconds + 2 * RK3588.start_seconds + 2 * traffic / (RK3588.bandwidth_all_cores / 3)
    assert three.modelled is not None
    assert three.modelled.device == pytest.approx(by_hand)


@pytest.mark.parametrize("model", TIMINGS.values(), ids=TIMINGS)
def test_cores_share_the_memory(model: TimingModel) -> None:
    rates = [model.bandwidth(cores) for cores in range(1, model.cores + 1)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (model.bandwidth_one_core, model.bandwidth_all_cores)
    assert all(rate / cores <= rates[0] for cores, rate in enumerate(rates, 1))


def test_chips_without_figures_have_no_modelled_time() -> None:
    weight = plan_weight(64, 64, TYPES["int8"], CHIPS["rk3566"], timings={})
    plan = plan_matmul(4, weight, timings={})
    assert plan.modelled_seconds is None
    assert "modelled" not in str(plan)


def test_unknown_types_are_refused() -> None:
    model = replace(RK3588, peak={ElementType.INT8: 1e12})
    with pytest.raises(ValueError, match="no timing is known"):
        model.run_seconds(TYPES["fp16"], 1, 32, 32)


@given(st.floats(1e-9, 1e3), st.floats(1.0, 100.0))
def test_an_estimate_lies_in_its_band(seconds: float, factor: float) -> None:
    found = Estimate.within(seconds, factor)
    assert found.low <= found.seconds <= found.high
    both = found + Estimate.within(seconds, 1.0)
    assert both.low <= both.seconds <= both.high
    assert both.seconds == pytest.approx(2 * seconds)


# ---- constants that were fitted here -------------------------------------------------------------------------------


def other() -> TimingModel:
    return replace(RK3588, start_seconds=20e-6, bandwidth_all_cores=15e9, provenance="fitted here")


def test_kept_constants_are_what_a_device_plans_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NPUMATMUL_TIMING_FILE", raising=False)
    assert find_timing("rk3588", simulated=True) is RK3588
    path = keep_timing(other(), simulated=True, facts={"driver": "0.9.8"})
    assert path == default_timing_path("rk3588", simulated=True)
    assert find_timing("rk3588", simulated=True) == other()
    assert find_timing("rk3588", simulated=False) is RK3588
    chip = chip_here("rk3588", NEWEST_RUNTIME, simulated=True)
    assert chip.timings == {"rk3588": other()}
    monkeypatch.setenv("NPUMATMUL_TIMING_FILE", "")
    assert find_timing("rk3588", simulated=True) is RK3588
    weight = plan_weight(2048, 8192, TYPES["int8"], chip)
    slow, fast = (plan_matmul(1, weight, timings=each).modelled_seconds or 0 for each in (chip.timings, TIMINGS))
    assert slow > 1.3 * fast


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["constants"].update(start_seconds=-1),
        lambda content: content["constants"].update(start_seconds=True),
        lambda content: content["constants"].update(start_seconds=5e-324),
        lambda content: content["constants"].update(start_seconds=10**400),
        lambda content: content["constants"].update(bandwidth_one_core=5e-324),
        lambda content: content["constants"].update(bandwidth_all_cores=1e300),
        lambda content: content["constants"].update(buffer_bytes=1 << 70),
        lambda content: content["constants"].update(cores=1 << 70),
        lambda content: content["constants"].update(within=1e300),
        lambda content: content["constants"].update(peak={"int8": 1e-300}),
        lambda content: content["constants"].update(cores=1e9),
        lambda content: content["constants"].update(peak={"int9": 1.0}),
        lambda content: content["constants"].update(peak=[1]),
        lambda content: content["constants"].update(within=0.5),
        lambda content: content["constants"].update(sources={"a": 1}),
        lambda content: content["constants"].update(provenance=3),
        lambda content: content["constants"].update(soc="rk3576"),
        lambda content: content["constants"].update(soc="rk1"),
        lambda content: content["constants"].update(colour="blue"),
        lambda content: content.update(constants=None),
        lambda content: content.update(format="npumatmul-probe"),
        lambda content: content.update(version=2),
        lambda content: content.update(simulated=True),
    ],
)
def test_a_file_that_is_no_use_is_ignored_with_one_warning(tmp_path: Path, change: object) -> None:
    path = keep_timing(other(), path=tmp_path / "kept.json")
    assert find_timing("rk3588", environment={"NPUMATMUL_TIMING_FILE": str(path)}) == other()
    content = json.loads(path.read_text())
    change(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))
    with pytest.warns(UserWarning, match=r"kept\.json are ignored"):
        assert find_timing("rk3588", environment={"NPUMATMUL_TIMING_FILE": str(path)}) is RK3588
    path.write_text("{")
    with pytest.warns(UserWarning, match="not JSON"):
        assert find_timing("rk3588", environment={"NPUMATMUL_TIMING_FILE": str(path)}) is RK3588
    with pytest.warns(UserWarning, match="it is not there"):
        find_timing("rk3588", environment={"NPUMATMUL_TIMING_FILE": str(tmp_path / "absent")})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_timing("rk3588", environment={"XDG_CONFIG_HOME": str(tmp_path)}) is RK3588


def test_plans_are_pure() -> None:
    """The same plan for the same arguments, whatever was planned before and whatever the process has kept."""

    def planned() -> tuple[str, str]:
        weight = plan_weight(3000, 5000, TYPES["int8"], CHIPS["rk3588"])
        return weight.to_json(), plan_matmul(77, weight).to_json()

    before = planned()
    chip = replace(CHIPS["rk3588"], timings={"rk3588": other()})
    plan_matmul(77, plan_weight(3000, 5000, TYPES["int8"], chip), timings=chip.timings)
    assert planned() == before


@given(data=st.data(), k=st.integers(1, 12_000), n=st.integers(1, 12_000))
@settings(max_examples=30)
def test_what_is_planned_is_modelled_to_be_no_slower_than_other_cuts(data: st.DataObject, k: int, n: int) -> None:
    """On every chip; the buckets of either may lose up to 15 % at 128 rows."""
    chip = CHIPS[data.draw(st.sampled_from(sorted(TIMINGS)))]
    mm_type = data.draw(st.sampled_from([each for each in TYPES.values() if each in chip.limits]))

    def seconds(**options: int) -> float:
        weight = plan_weight(k, n, mm_type, chip, **options)  # type: ignore[arg-type]
        return math.prod(plan_matmul(m, weight).modelled_seconds or math.nan for m in (1, 128))

    slices, tiles = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    assert seconds() <= 1.16 * seconds(k_slices=slices, n_tiles=tiles)
