"""The timing model against the figures that others published; it was fitted to them, so this guards the constants."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from npumatmul.chips import CHIPS
from npumatmul.chips.timing import TIMINGS
from npumatmul.chips.types import MatmulType
from npumatmul.planning.product import plan_matmul, plan_weight

TYPES = {
    "fp16": MatmulType.FLOAT16_FLOAT16_FLOAT32,
    "int8": MatmulType.INT8_INT8_INT32,
    "int4": MatmulType.INT4_INT4_INT16,
}
SEGMENT = 8192


def points() -> list[tuple[str, MatmulType, int, int, int, int, float]]:
    """(name, type, M, K, N, cores, seconds) of the rows that give a shape and a time or a rate."""
    found = []
    with (Path(__file__).parent / "measurements" / "rk3588.csv").open() as file:
        for row in csv.DictReader(file):
            if not all(row[key].isdigit() for key in ("M", "K", "N_total", "cores")):
                continue
            # Not what is modelled: throttled memory, and the conversion of normal A and C, which this source isolates
            # by giving both layouts for one shape (it costs up to a factor of 80).
            compared = row["source"] == "unimatrix" and row["a_c_layout"] == "norm"
            if compared or "throttled" in row["clock_note"]:
                continue
            m, k, n = (int(row[key]) for key in ("M", "K", "N_total"))
            rate = row["rate_as_published"].replace("about ", "").split()
            if row["time_ms"]:
                seconds = float(row["time_ms"]) / 1e3
            else:
                scale = {"GOPS": 1e9, "GFLOPS": 1e9, "TOPS": 1e12}[rate[1]]
                seconds = 2 * m * k * n / (float(rate[0]) * scale)
            found.append(
                (f"{row['dtype']} {m}x{k}x{n} {row['cores']}c {row['a_c_layout']}", TYPES[row["dtype"]], m, k, n,
                 int(row["cores"]), seconds)
            )  # fmt: skip
    return found


def modelled(mm_type: MatmulType, m: int, k: int, n: int, cores: int) -> float:
    """Contexts with K above 8192 run as segments (facts 4.4), and so do they here."""
    model = TIMINGS["rk3588"]
    parts = -(-k // SEGMENT)
    return sum(model.run_seconds(mm_type, m, min(SEGMENT, k - i * SEGMENT), n, cores) for i in range(parts))


def test_the_published_points_are_met() -> None:
    errors = [
        (abs(math.log(modelled(mm_type, m, k, n, cores) / seconds)), name)
        for name, mm_type, m, k, n, cores, seconds in points()
    ]
    assert len(errors) == 31
    assert math.sqrt(sum(error**2 for error, _ in errors) / len(errors)) < 0.25
    worst, name = max(errors)
    assert worst < math.log(1.7), f"{name}: off by a factor of {math.exp(worst):.2f}"


def test_large_k_collapses_and_slices_do_not() -> None:
    model = TIMINGS["rk3588"]
    whole = model.run_seconds(TYPES["fp16"], 2048, 8192, 512)
    slices = 4 * model.run_seconds(TYPES["fp16"], 2048, 2048, 512)
    assert whole > 2.5 * slices  # published: eight slices of 2048 take 60 ms where one run of 16384 takes 462


@pytest.mark.parametrize("mm_type", TYPES.values())
def test_more_work_never_takes_less_time(mm_type: MatmulType) -> None:
    model = TIMINGS["rk3588"]
    for m, k, n in ((1, 32, 64), (7, 2048, 4096), (256, 8192, 4096)):
        base = model.run_seconds(mm_type, m, k, n)
        assert base > model.start_seconds
        for more in ((2 * m, k, n), (m, 2 * k, n), (m, k, 2 * n)):
            assert model.run_seconds(mm_type, *more) >= base


def test_a_plan_tells_its_modelled_time_and_says_that_it_is_modelled() -> None:
    """One core, by hand from the formulas of timing.py: runs, three bindings each, packing, storing, adding."""
    weight = plan_weight(5000, 9000, TYPES["fp16"], CHIPS["rk3588"], k_slices=5, n_tiles=3, buckets=(300,))
    plan = plan_matmul(300, weight, cores=1)
    model = TIMINGS["rk3588"]
    tiles = [(k.padded, n.padded) for k in weight.k_spans for n in weight.n_spans]
    assert len(tiles) == 15
    runs = sum(model.run_seconds(TYPES["fp16"], 300, k, n) for k, n in tiles)
    copied = 300 * 2 * sum(k.padded for k in weight.k_spans)
    copied += 300 * 4 * sum(n.padded for n in weight.n_spans) * (1 + 4 * 1.5)
    by_hand = runs + 15 * 3 * model.bind_seconds + copied / model.host_bandwidth
    assert plan.modelled_seconds == pytest.approx(by_hand)
    assert f"modelled {by_hand * 1e3:.3f} ms on the chip, not measured" in str(plan)


def test_several_cores_share_bandwidth_and_are_joined_once() -> None:
    model = TIMINGS["rk3588"]
    weight = plan_weight(2048, 3072, TYPES["int8"], CHIPS["rk3588"], k_slices=1, n_tiles=6, buckets=(4,))
    three = plan_matmul(4, weight, cores=3)
    assert three.tile_cores == (0, 1, 2, 0, 1, 2)
    traffic = 2048 * 512 + 4 * 2048 + 4 * 512 * 4  # bound by bandwidth at four rows
    by_hand = model.start_seconds_all_cores + model.start_seconds + 2 * traffic / (model.bandwidth_all_cores / 3)
    assert three.modelled is not None
    assert three.modelled.device == pytest.approx(by_hand)


def test_chips_without_figures_have_no_modelled_time() -> None:
    plan = plan_matmul(4, plan_weight(64, 64, TYPES["int8"], CHIPS["rk3566"]))
    assert plan.modelled_seconds is None
    assert "modelled" not in str(plan)


def test_unknown_types_are_refused() -> None:
    with pytest.raises(ValueError, match="no timing is known"):
        TIMINGS["rk3588"].run_seconds(_Other(), 1, 32, 32)  # type: ignore[arg-type]


class _Other:
    """A matmul type of a kind that has no figure."""

    from npumatmul.chips.types import ElementType

    a, name = ElementType.BFLOAT16, "BFLOAT16"
