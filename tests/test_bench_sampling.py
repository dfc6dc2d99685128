"""When things were timed often enough, by clocks that are made up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from npumatmul.bench import Case, Row, Sampling
from npumatmul.bench import matmul_bench as module
from npumatmul.bench.matmul_bench import MatmulBenchmark
from npumatmul.bench.sampling import Stopwatch, settle
from npumatmul.bench.statistics import summarise


class FakeClock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def take(self, seconds: float) -> None:
        self.now += seconds


def sampled(sampling: Sampling, times: Iterator[float]) -> list[float]:
    """What is left of work that takes these times, one after the other."""
    clock = FakeClock()
    stopwatch = Stopwatch(clock)
    for _ in sampling.rounds(stopwatch, ["work"], clock):
        stopwatch.time("work", lambda: clock.take(next(times)))
    return stopwatch.seconds["work"]


def test_equal_times_end_as_soon_as_they_may() -> None:
    found = sampled(Sampling(least=10, min_time=0.0, time_limit=100.0, warmup=2), itertools.repeat(0.01))
    assert len(found) == 10


def test_what_warms_up_does_not_count() -> None:
    slow_at_first = itertools.chain([5.0, 4.0, 3.0], itertools.repeat(0.01))
    found = sampled(Sampling(least=6, min_time=0.0, time_limit=100.0, warmup=3), slow_at_first)
    assert max(found) < 0.02


def test_the_shortest_time_is_spent() -> None:
    found = sampled(Sampling(least=10, min_time=1.0, time_limit=2.0, warmup=0), itertools.repeat(0.01))
    assert 100 <= len(found) <= 111  # it is not looked at after each round


def test_it_goes_on_until_the_interval_of_the_median_is_small_enough() -> None:
    """Three of four take 1 s and one takes 2 s, in turns: order statistics 2 and 9 of 10 are 1 and 2."""
    turns = itertools.cycle([1.0, 2.0, 1.0, 1.0])
    sampling = Sampling(precision=0.05, least=8, min_time=0.0, time_limit=1e6, warmup=0)
    found = sampled(sampling, turns)
    assert len(found) > 8
    assert summarise(found).uncertainty <= 0.05
    assert not sampling.is_precise(found[:8])
    assert sampling.mark({"work": found}, ["work"]) == []


def test_the_time_limit_ends_what_does_not_settle() -> None:
    sampling = Sampling(precision=0.01, least=10, min_time=0.0, time_limit=30.0, warmup=0)
    found = sampled(sampling, itertools.cycle([1.0, 2.0]))
    assert 20 <= len(found) <= 23
    assert sampling.mark({"work": found}, ["work"]) == ["work to within 33.3 % only"]


def test_long_work_is_done_three_times() -> None:
    assert len(sampled(Sampling(least=10, time_limit=1.0, warmup=3), itertools.repeat(60.0))) == 3


def test_a_fixed_number_of_rounds_is_that_number() -> None:
    sampling = Sampling.exactly(7, warmup=2)
    found = sampled(sampling, itertools.cycle([60.0, 1.0]))
    assert len(found) == 7
    assert sampling.mark({"work": found}, ["work"]) == []


def test_all_that_is_watched_has_to_settle() -> None:
    clock = FakeClock()
    stopwatch, times = Stopwatch(clock), itertools.cycle([1.0, 3.0, 1.0])
    sampling = Sampling(precision=0.05, least=5, min_time=0.0, time_limit=1e6, warmup=0)
    for _ in sampling.rounds(stopwatch, ["even", "odd"], clock):
        stopwatch.time("even", clock.take, 1.0)
        stopwatch.time("odd", lambda: clock.take(next(times)))
    assert len(stopwatch.seconds["even"]) == len(stopwatch.seconds["odd"]) > 5
    assert sampling.is_precise(stopwatch.seconds["odd"])


def test_what_was_noted_before_is_left_alone() -> None:
    clock = FakeClock()
    stopwatch = Stopwatch(clock)
    stopwatch.time("work", clock.take, 7.0)
    for _ in Sampling.exactly(2, warmup=1).rounds(stopwatch, ["work"], clock):
        stopwatch.time("work", clock.take, 1.0)
    assert stopwatch.seconds["work"] == [7.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": 0.0}, "precision is 0; it is a share above 0 and below 1"),
        ({"precision": 2.0}, "precision is 2"),
        ({"least": 0}, "at least 0 and at most 10000 rounds"),
        ({"least": 5, "most": 4}, "at least 5 and at most 4 rounds"),
        ({"warmup": -1}, "warmup is -1"),
        ({"min_time": -1.0}, "times are 0 s or more"),
        ({"min_time": float("nan")}, "times are 0 s or more"),
        ({"min_time": 3.0}, "the shortest time, 3 s, is above the time limit, 2 s"),
    ],
)
def test_samplings_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_products_settle_until_they_are_known_to_be_short() -> None:
    clock, calls = FakeClock(), itertools.count()

    def work(seconds: float) -> None:
        next(calls)
        clock.take(seconds)

    settle(lambda: work(1e-5), clock)
    assert next(calls) == 64
    settle(lambda: work(2e-3), clock)
    assert next(calls) == 64 + 1 + 3  # it will never be short
    settle(lambda: work(0.5), clock)
    assert next(calls) == 68 + 1 + 1
    once_late = itertools.chain([1e-5, 3e-3], itertools.repeat(1e-5))
    settle(lambda: work(next(once_late)), clock)
    assert next(calls) == 70 + 1 + 65


# ---- drift and throttling -----------------------------------------------------------------------------------------


def board(root: Path, npu: int, degrees: int = 50) -> None:
    files = {
        "sys/class/devfreq/fdab0000.npu/cur_freq": npu,
        "sys/class/thermal/thermal_zone0/type": "npu-thermal",
        "sys/class/thermal/thermal_zone0/temp": degrees * 1000,
    }
    for name, value in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")


def measured(
    monkeypatch: pytest.MonkeyPatch, device: Any, root: Path, seconds: list[float], clocks: list[int]
) -> list[Row]:
    """Rows of three cases and the first one again, with these medians, while the NPU has these clocks."""
    times, order = iter(seconds), iter(clocks)

    def measure(device: object, case: Case, sampling: object, **how: Any) -> Row:
        board(root, next(order))
        return Row("matmul", case.fields, {"run": [next(times)] * 3}, {}, {}, how["watch"].reasons())

    monkeypatch.setattr(module, "measure", measure)
    benchmark = MatmulBenchmark(types="int8", shapes="1-3x64x64", root=root, repetitions=3)
    return list(benchmark.measure(device))


def test_the_first_case_is_measured_again_at_the_end(
    monkeypatch: pytest.MonkeyPatch, device: Any, tmp_path: Path
) -> None:
    rows = measured(monkeypatch, device, tmp_path, [2.0, 1.0, 1.0, 2.5], [10**9] * 4)
    assert [row.what for row in rows] == ["matmul", "matmul", "matmul", "drift"]
    assert rows[-1].case == rows[0].case
    assert rows[-1].figures == {"first_run_us": 2e6, "drift_percent": pytest.approx(25)}
    assert rows[-1].marks == ["the first case takes +25.0 % now"]


def test_a_small_drift_is_told_and_not_marked(monkeypatch: pytest.MonkeyPatch, device: Any, tmp_path: Path) -> None:
    rows = measured(monkeypatch, device, tmp_path, [2.0, 1.0, 1.0, 1.96], [10**9] * 4)
    assert rows[-1].figures["drift_percent"] == pytest.approx(-2)
    assert rows[-1].marks == []


def test_cases_that_a_slow_clock_met_are_marked(monkeypatch: pytest.MonkeyPatch, device: Any, tmp_path: Path) -> None:
    rows = measured(monkeypatch, device, tmp_path, [1.0] * 4, [10**9, 6 * 10**8, 9 * 10**8, 3 * 10**8])
    assert [row.marks for row in rows] == [[], ["npu at 600 of 1000 MHz"], [], ["npu at 300 of 1000 MHz"]]


def test_the_order_is_random_and_repeatable(monkeypatch: pytest.MonkeyPatch, device: Any, tmp_path: Path) -> None:
    def order(seed: int) -> list[object]:
        board(tmp_path, 10**9)
        monkeypatch.setattr(
            module, "measure", lambda device, case, *_, **__: Row("matmul", case.fields, {"run": [1.0]})
        )
        benchmark = MatmulBenchmark(types="int8", shapes="1-9x64x64", seed=seed, repetitions=1)
        rows = list(benchmark.measure(device))
        assert [row.case["m"] for row in benchmark.arranged(rows, device)][:-1] == list(range(1, 10))
        return [row.case["m"] for row in rows]

    assert order(0) == order(0) != order(1)
    assert sorted(map(str, order(0)[:-1])) == [str(m) for m in range(1, 10)]
