"""Saved runs: both forms hold everything, what is read back is checked, and statistics are those of textbooks."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from mutations import changed_json

import npumatmul as npu
from npumatmul.bench import Machine, Record, Row, as_csv, as_markdown, describe_machine, read_record
from npumatmul.bench.comparing import compare
from npumatmul.bench.page import as_html
from npumatmul.bench.sharing import share
from npumatmul.bench.statistics import summarise
from npumatmul.errors import UnusableFileError

MACHINE = Machine(
    device="sim:rk3588", simulated=True, chip="rk3588", npu_cores=3, runtime="2.3.2", driver="0.9.8",
    npumatmul="0.1.0", python="3.11.2", numpy="2.0.0", kernel="6.1.0", host_kernels="avx2", cpu="a CPU", cpus=8,
    machine="x86_64", descriptor_limit=1024, time="2026-01-31T12:00:00+00:00", clocks={"npu": 1_000_000_000},
    governors={"npu": "performance"}, temperatures={"npu": 41.5}, load=(0.5, 0.25, 0.125),
)  # fmt: skip
ROWS = [
    Row(
        "matmul", {"type": "int8", "m": 1, "k": 64, "n": 32, "layout": "native", "cores": 1},
        {"run": [3e-6, 1e-6, 2e-6], "pack_a": [1e-7]}, {"gops": 2.5, "checked": True, "beyond_run_us": None},
        {"run": 3e-5, "low": 2e-5, "high": 4.5e-5}, ("padded",),
    ),
    Row("bandwidth", {"bytes": 4096}, {"copy": [1e-3]}),
]  # fmt: skip
RECORD = Record(MACHINE, ROWS, {"types": "int8", "seed": 0})


@pytest.mark.parametrize("form", ["to_json", "to_json_lines"])
def test_what_is_read_is_what_was_saved(form: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_text(getattr(RECORD, form)())
    assert read_record(path) == RECORD
    path.write_text(getattr(Record(MACHINE, [], {}), form)())
    assert read_record(path) == Record(MACHINE, [], {})


def test_a_line_of_json_lines_is_a_row() -> None:
    head, *rows = map(json.loads, RECORD.to_json_lines().splitlines())
    assert (head["format"], head["version"], "rows" in head) == ("npumatmul-bench", 1, False)
    assert [row["what"] for row in rows] == ["matmul", "bandwidth"]


def test_a_run_of_this_machine_is_read_back(device: npu.Device) -> None:
    machine = describe_machine(device)
    assert (machine.chip, machine.simulated, machine.runtime) == ("rk3588", True, device.api_version)
    found = Record.parse(Record(machine, ROWS).to_json()).machine
    assert asdict(found) == asdict(machine)


def changed(*path: str | int, to: Any) -> str:
    content = json.loads(RECORD.to_json())
    inner = content
    for step in path[:-1]:
        inner = inner[step]
    if to is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = to
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is not JSON"),
        ("[]", "it is no run of npumatmul bench"),
        ("[" * 100_000, "nested too deeply"),
        ('{"format": "npumatmul-bench",\n"format": ""}', "says 'format' twice"),
        (changed("format", to="npumatmul-probe"), "it is no run of npumatmul bench"),
        (changed("version", to=2), "it has version 2 of the format; this npumatmul reads 1"),
        (changed("version", to=True), "it has version True"),
        (changed("comment", to="x"), "the run has 'comment', which version 1"),
        (changed("rows", to={}), '"rows" are not a list'),
        (changed("rows", to=[1]), "row 1 is 1; a row is an object"),
        (changed("rows", to=[{}] * 100_001), "100001 rows"),
        (changed("settings", to=None), "settings is None; an object is needed"),
        (changed("settings", "A b", to=1), "settings has a field 'A b'"),
        (changed("settings", "x", to=[1]), r"settings.x is \[1\]; a finite number"),
        (changed("settings", "x", to="y" * 1001), "settings.x is 'yyy"),
        (changed("settings", "x", to=1 << 70), "settings.x is 1180591620717411303424; a whole number"),
        (changed("machine", to=...), '"machine" is missing'),
        (changed("machine", "chip", to=...), "machine.chip is missing"),
        (changed("machine", "cpus", to=0), "machine.cpus is 0; at least 1"),
        (changed("machine", "simulated", to=1), "machine.simulated is 1; true or false"),
        (changed("machine", "time", to="yesterday"), "machine.time is 'yesterday'"),
        (changed("machine", "clocks", "npu", to=1e9), "machine.clocks.npu is 1000000000.0; a whole number"),
        (changed("machine", "load", to=[1] * 4), "machine.load has 4 entries"),
        (changed("machine", "temperatures", "npu", to=math.nan), "machine.temperatures.npu is nan"),
        (changed("machine", "host", to="x"), "machine has 'host'"),
        (changed("rows", 0, "seconds", to={}), "row 1: it has no times"),
        (changed("rows", 1, "seconds", "copy", to=[]), "row 2: seconds.copy has no times"),
        (changed("rows", 0, "seconds", "run", to=[-1.0]), "row 1: seconds.run is -1.0; no time is below 0"),
        (changed("rows", 0, "seconds", "run", to=[math.inf]), "row 1: seconds.run is inf; a finite number"),
        (changed("rows", 0, "seconds", "run", to=[True]), "row 1: seconds.run is True; a finite number"),
        (changed("rows", 0, "modelled", "run", to="1"), "row 1: modelled.run is '1'"),
        (changed("rows", 0, "marks", to=["x"] * 65), "row 1: marks has 65 entries"),
        (changed("rows", 0, "what", to=None), "row 1: what is None"),
        (changed("rows", 0, "case", to={f"f{i}": 1 for i in range(65)}), "row 1: case has 65 fields"),
        (RECORD.to_json_lines() + "{\n", "line 4 is not JSON"),
        (RECORD.to_json_lines()[:-20], "line 3 is not JSON"),
        (RECORD.to_json()[:-20], "it is not JSON"),
    ],
)
def test_what_is_no_run_is_refused_in_words(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(UnusableFileError, match=problem) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(UnusableFileError, match="not a text in UTF-8"):
        read_record(path)


def test_a_line_of_a_table_has_the_case_the_medians_and_the_spread() -> None:
    line = ROWS[0].flat()
    assert (line["what"], line["type"], line["run_us"], line["run_min_us"], line["samples"]) == (
        "matmul",
        "int8",
        2,
        1,
        3,
    )
    assert line["modelled_run_us"] == pytest.approx(30)
    assert line["marks"] == "padded"
    assert ROWS[1].flat()["copy_us"] == 1000


def test_labels_say_fields_in_their_order_and_leave_out_what_goes_without_saying() -> None:
    def label(**case: Any) -> str:
        return Row("x", case, {"run": [1.0]}).label

    assert label(type="int8", m=1, k=64, n=96, layout="normal", cores=3) == "int8 1x64x96 normal 3 cores"
    assert label(type="int8", m=1, k=64, n=96, layout="native", cores=1) == "int8 1x64x96"
    assert label(reads="npu", m=1, k=64, n=96, cores=2) == "npu 1x64x96 2 cores"
    assert label(type="w8a8", k=64, n=96) == "w8a8 Mx64x96"
    assert label(model="m", test="pp128", depth=0) == "m pp128 depth=0"
    assert label(k=64) == "k=64"
    assert label() == "x"


def test_cases_are_the_same_whatever_the_order_of_their_fields() -> None:
    turned = replace(ROWS[0], case=dict(reversed(list(ROWS[0].case.items()))))
    assert turned.key == ROWS[0].key != ROWS[1].key


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60))
def test_quantiles_are_numpys(seconds: list[float]) -> None:
    summary = summarise(seconds)
    assert summary.count == len(seconds)
    assert summary.median == pytest.approx(np.median(seconds))
    assert summary.p90 == pytest.approx(np.quantile(seconds, 0.9))
    assert min(seconds) == summary.minimum <= summary.low <= summary.median <= summary.high <= max(seconds)


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_the_interval_of_a_median_is_the_narrowest_that_is_sure_enough(confidence: float) -> None:
    for count in range(1, 120):
        summary = summarise(list(range(count)), confidence)
        rank = int(summary.low)
        assert summary.high == count - 1 - rank
        # values outside are those of which at most `rank` of `count` lie on one side of the median
        outside = 2 * scipy.stats.binom.cdf(rank, count, 0.5)
        assert outside <= 1 - confidence + 1e-12 or rank == 0
        if 2 * (rank + 1) < count:
            assert 2 * scipy.stats.binom.cdf(rank + 1, count, 0.5) > 1 - confidence


def test_no_times_have_no_summary() -> None:
    with pytest.raises(ValueError, match="no times"):
        summarise([])
    with pytest.raises(ValueError, match="confidence is 1"):
        summarise([1.0], 1)
    assert summarise([1.0]).uncertainty == math.inf


def test_changed_runs_are_refused_or_go_through_everything() -> None:
    """Whatever is read, tables, files, comparisons and pages can be made of it; what they say is read back."""
    products = [
        replace(ROWS[0], case={**ROWS[0].case, "m": m, "k": k}, figures={"gops": 1.0 * m, "ops_per_byte": 2.0})
        for m in (1, 4)
        for k in (32, 64)
    ]
    batches = [Row("batch", {"type": "int8", "m": m, "k": 64, "n": 32}, {"batch": [1e-3 * m]}) for m in (1, 2)]
    speeds = Row("bandwidth", {"reads": "npu"}, {"run": [1.0]}, {"kib": 4, "gb_per_s": 2.0, "modelled_gb_per_s": 1.0})
    tokens = Row("llm", {"test": "pp1"}, {"test": [1.0]}, {"tokens_per_second": 2.0, "plus_minus": 1.0})
    whole = json.loads(Record(MACHINE, [*products, *batches, speeds, tokens], RECORD.settings).to_json())
    read = 0
    for index, changed in enumerate(changed_json(whole, 240)):
        try:
            record = Record.parse(json.dumps(changed))
        except ValueError:
            continue
        read += 1
        assert Record.parse(record.to_json_lines()) == record
        assert as_markdown(record).count("\n") > len(record.rows)
        assert as_csv(record).count("\n") >= len(record.rows)
        assert Record.parse(share([record]).runs[0].to_json())
        if record.rows and any(max(row.seconds[row.main]) > 0 for row in record.rows):
            compare(record, record)
        if index % 40 == 0:
            assert as_html(record).count("<tr>") >= len(record.rows)
    assert read > 10
