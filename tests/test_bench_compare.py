"""Comparing runs: the rank test is scipy's, verdicts are right for times that were made up, and commands say so."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from test_bench_record import MACHINE
from typer.testing import CliRunner, Result

from npumatmul.bench import Record, Row
from npumatmul.bench.comparing import Verdict, compare
from npumatmul.bench.ranks import rank_test, ratio_interval
from npumatmul.cli.app import app

values = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=6)


@given(values, values)
def test_small_samples_are_counted_with_their_ties(a: list[float], b: list[float]) -> None:
    ranks = scipy.stats.rankdata(a + b)
    middle = len(a) * (len(ranks) + 1) / 2
    away = abs(ranks[: len(a)].sum() - middle)
    deals = [abs(sum(deal) - middle) >= away for deal in itertools.combinations(ranks, len(a))]
    assert rank_test(a, b) == pytest.approx(np.mean(deals))


@pytest.mark.parametrize(("m", "n"), [(1, 1), (3, 5), (8, 8), (20, 20), (5, 35)])
def test_exact_probabilities_are_scipys(m: int, n: int) -> None:
    rng = np.random.default_rng(m * n)
    for shift in (0.0, 0.5, 2.0):
        a, b = rng.normal(size=m), rng.normal(shift, size=n)
        expected = scipy.stats.mannwhitneyu(a, b, method="exact").pvalue
        assert rank_test(a.tolist(), b.tolist()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("m", "n"), [(21, 20), (30, 100), (400, 300)])
def test_probabilities_of_many_values_are_scipys_approximation(m: int, n: int) -> None:
    rng = np.random.default_rng(m)
    for most, shift in ((1000, 0), (10, 1), (3, 0)):  # the fewer values, the more ties
        a, b = rng.integers(0, most, m).astype(float), rng.integers(shift, most + shift, n).astype(float)
        expected = scipy.stats.mannwhitneyu(a, b, method="asymptotic").pvalue
        assert rank_test(a.tolist(), b.tolist()) == pytest.approx(expected, rel=1e-9)


def test_published_probabilities() -> None:
    # Mann and Whitney 1947, table I: of n = m = 5, U <= 2 has the probability 4/252 on one side
    assert rank_test([1, 2, 3, 4, 7], [5, 6, 8, 9, 10]) == pytest.approx(2 * 4 / 252)
    assert rank_test([1.0] * 30, [1.0] * 30) == 1
    assert rank_test([1.0], [2.0]) == 1
    with pytest.raises(ValueError, match="both sides"):
        rank_test([], [1.0])


@given(st.lists(st.floats(0.5, 2), min_size=8, max_size=12), st.floats(0.1, 10))
def test_ratios_scale(a: list[float], factor: float) -> None:
    b = [1.25 * each for each in reversed(a)]
    low, ratio, high = ratio_interval(a, b)
    assert low <= ratio <= high
    scaled = ratio_interval(a, [factor * each for each in b])
    assert scaled == pytest.approx((factor * low, factor * ratio, factor * high))
    back = ratio_interval(b, a)
    assert back == pytest.approx((1 / high, 1 / ratio, 1 / low))


def test_intervals_are_right_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        a, b = np.exp(rng.normal(0, 0.3, 10)), 1.1 * np.exp(rng.normal(0, 0.3, 12))
        low, _, high = ratio_interval(a.tolist(), b.tolist())
        held += low <= 1.1 <= high
    assert scipy.stats.binom.cdf(held, 400, 0.95) > 0.01


def test_intervals_leave_out_what_the_test_rejects() -> None:
    rng = np.random.default_rng(6)
    a, b = np.exp(rng.normal(0, 0.2, 15)), np.exp(rng.normal(0.2, 0.2, 15))
    low, _, high = ratio_interval(a.tolist(), b.tolist())
    for factor, rejected in ((low * 0.97, True), (low * 1.03, False), (high * 0.97, False), (high * 1.03, True)):
        assert (rank_test((factor * a).tolist(), b.tolist()) < 0.05) == rejected


def test_too_few_times_say_nothing() -> None:
    assert ratio_interval([1.0, 1.0], [5.0, 5.0]) == (0.0, 5.0, math.inf)
    with pytest.raises(ValueError, match="above 0"):
        ratio_interval([0.0], [1.0])


def run(*times: Sequence[float], machine: Any = MACHINE, **more: Sequence[float]) -> Record:
    rows = [Row("matmul", {"n": index}, {"run": list(each), **more}) for index, each in enumerate(times)]
    return Record(machine, rows)


def noisy(seed: int, factor: float = 1.0, count: int = 30, noise: float = 0.02) -> list[float]:
    """Times as they are: close together, with some far above."""
    rng = np.random.default_rng(seed)
    return list(factor * 1e-3 * (1 + noise * rng.exponential(size=count) + (rng.random(count) < 0.1)))


def verdicts(before: Record, after: Record, **options: Any) -> list[str]:
    return [each.verdict.value for each in compare(before, after, **options).differences]


def test_verdicts() -> None:
    few: dict[str, Any] = {"count": 3}
    loud: dict[str, Any] = {"noise": 1.0}
    before = run(noisy(0), noisy(1), noisy(2), noisy(3, **few), noisy(4, **loud))
    after = run(noisy(10, 1.2), noisy(11, 0.8), noisy(12, 1.01), noisy(13, 2.0, **few), noisy(14, 1.1, **loud))
    assert verdicts(before, after) == ["SLOWER", "FASTER", "SAME", "UNCLEAR", "UNCLEAR"]
    assert verdicts(after, before) == ["FASTER", "SLOWER", "SAME", "UNCLEAR", "UNCLEAR"]
    assert verdicts(before, after, threshold=0.3)[:3] == ["SAME", "SAME", "SAME"]
    assert verdicts(before, after, threshold=0.001)[2] == "SLOWER"


def test_a_run_is_the_same_as_itself() -> None:
    record = run(*(noisy(seed, noise=0.01) for seed in range(20)))
    assert set(verdicts(record, record)) == {"SAME"}


def test_among_many_cases_none_differs_by_chance() -> None:
    """Without the correction about ten would: the threshold is too small to save them."""
    before = run(*(noisy(seed, count=12, noise=0.3) for seed in range(200)))
    after = run(*(noisy(seed, count=12, noise=0.3) for seed in range(1000, 1200)))
    found = compare(before, after, threshold=0.0)
    assert found.counts[Verdict.SLOWER] == found.counts[Verdict.FASTER] == 0
    raw = [rank_test(a.seconds["run"], b.seconds["run"]) for a, b in zip(before.rows, after.rows, strict=True)]
    assert 2 <= sum(each < 0.05 for each in raw) <= 20
    # Holm 1979: the k-th smallest times what is left, never below the one before
    expected, largest = {}, 0.0
    for rank, index in enumerate(np.argsort(raw, kind="stable")):
        largest = max(largest, min(1.0, (200 - rank) * raw[index]))
        expected[int(index)] = largest
    assert [each.probability for each in found.differences] == [expected[index] for index in range(200)]


def test_other_times_of_a_case_can_be_compared() -> None:
    before, after = run(noisy(1), pack=noisy(2)), run(noisy(3), pack=noisy(4, 3.0))
    assert verdicts(before, after) == ["SAME"]
    assert verdicts(before, after, measure="pack") == ["SLOWER"]
    with pytest.raises(ValueError, match="no case that 'sync' was timed of in common"):
        compare(before, after, measure="sync")


def test_cases_of_one_run_only_are_named() -> None:
    before, after = run(noisy(1), noisy(2)), run(noisy(3))
    found = compare(before, after)
    assert (found.only_before, found.only_after, len(found.differences)) == (["n=1"], [], 1)
    with pytest.raises(ValueError, match="no case in common"):
        compare(before, replace(after, rows=[replace(after.rows[0], what="bandwidth")]))


def test_what_is_of_another_kind_says_so() -> None:
    record = run(noisy(1))
    both = replace(record, rows=[*record.rows, replace(record.rows[0], what="drift")])
    assert compare(both, both).columns()["case"] == ["n=0", "drift: n=0"]


def test_a_case_that_was_measured_twice_has_all_its_times() -> None:
    once = run(noisy(1, count=4))
    twice = replace(once, rows=[*once.rows, replace(once.rows[0], seconds={"run": noisy(2, count=26)})])
    assert verdicts(once, twice) == ["UNCLEAR"]
    assert verdicts(twice, twice) == ["SAME"]


def test_what_nobody_should_compare_is_refused() -> None:
    on_board = replace(MACHINE, simulated=False)
    with pytest.raises(ValueError, match="the first run was timed on a CPU that simulates, the second one on an NPU"):
        compare(run(noisy(1)), run(noisy(2), machine=on_board))
    with pytest.raises(ValueError, match="the second run was timed on a CPU that simulates, the first one on an NPU"):
        compare(run(noisy(1), machine=on_board), run(noisy(2)))
    with pytest.raises(ValueError, match="the first run is of rk3588, the second of rk3576"):
        compare(run(noisy(1)), run(noisy(2), machine=replace(MACHINE, chip="rk3576")))
    idle = replace(MACHINE, simulated_runs="runs compute nothing")
    with pytest.raises(
        ValueError, match="CPU simulation of rk3588; the second on: CPU simulation of rk3588, runs comp"
    ):
        compare(run(noisy(1)), run(noisy(2), machine=idle))
    assert verdicts(run(noisy(1)), run(noisy(2), machine=on_board), across=True) == ["SAME"]
    with pytest.raises(ValueError, match="threshold is -1"):
        compare(run(noisy(1)), run(noisy(2)), threshold=-1)
    with pytest.raises(ValueError, match="confidence is 95"):
        compare(run(noisy(1)), run(noisy(2)), confidence=95)


def command(tmp_path: Path, before: Record, after: Record, *options: str) -> Result:
    places = [tmp_path / "a.json", tmp_path / "b.jsonl"]
    places[0].write_text(before.to_json())
    places[1].write_text(after.to_json_lines())
    return CliRunner().invoke(app, ["bench", "compare", *map(str, places), *options], env={"COLUMNS": "80"})


def test_the_command_ends_with_1_where_a_case_is_slower(tmp_path: Path) -> None:
    saved = tmp_path / "compared.json"
    other = replace(MACHINE, runtime="2.4.0", load=(9.0, 9.0, 9.0))
    before, slower = run(noisy(1), noisy(2)), run(noisy(3), noisy(4, 1.5), machine=other)
    done = command(tmp_path, before, slower, "--json", str(saved))
    assert done.exit_code == 1
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.index("SLOWER") < done.stdout.index("SAME")  # what matters first
    assert done.stdout.endswith("1 SLOWER, 0 FASTER, 0 UNCLEAR, 1 SAME\n")
    assert "runtime: 2.3.2 in A, 2.4.0 in B" in done.stdout
    assert "load" not in done.stdout
    content = json.loads(saved.read_text())
    assert [row["verdict"] for row in content["rows"]] == ["SAME", "SLOWER"]
    assert content["counts"]["SLOWER"] == 1
    assert command(tmp_path, before, run(noisy(5), noisy(6))).exit_code == 0


def test_too_few_times_are_told(tmp_path: Path) -> None:
    """Three and three ranks are dealt in 20 ways: 2 of these are 10 %."""
    few = run(noisy(1, count=3), noisy(2))
    assert compare(few, few).too_few == 1
    assert compare(run(noisy(1)), run(noisy(2))).too_few == 0
    done = command(tmp_path, few, few)
    assert "1 of 2 cases have too few times for any difference to be told" in done.stderr
    # 4 and 4: 2 of 70, which is enough for one case, and not for two
    assert compare(run(noisy(1, count=4)), run(noisy(2, count=4))).too_few == 0
    two = run(noisy(1, count=4), noisy(2, count=4))
    assert compare(two, two).too_few == 2


def test_strict_comparisons_want_every_case_clear(tmp_path: Path) -> None:
    before = run(noisy(1), noisy(2))
    fewer, unclear = run(noisy(3)), run(noisy(3), noisy(4, count=3))
    for after in (fewer, unclear):
        assert command(tmp_path, before, after).exit_code == 0
        assert command(tmp_path, before, after, "--strict").exit_code == 1
    assert "only in A: n=1" in command(tmp_path, before, fewer).stderr


def test_a_saved_run_is_shown_and_converted(tmp_path: Path) -> None:
    path, page = tmp_path / "run.jsonl", tmp_path / "run.md"
    path.write_text(run(noisy(1)).to_json_lines())
    done = CliRunner().invoke(app, ["bench", "show", str(path), "--markdown", str(page)], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert "timed on: CPU simulation of rk3588" in done.stdout
    assert page.read_text().startswith("matmul: medians")
    refused = CliRunner().invoke(app, ["bench", "show", str(path), "--json", str(path)])
    assert "is made of" in str(refused.exception)
