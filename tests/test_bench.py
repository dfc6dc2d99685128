"""The microbenchmarks: what is measured, that results are checked, and what is written down. No time is asserted."""

from __future__ import annotations

import csv
import io
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import npumatmul as npu
from npumatmul.bench import (
    Case,
    Measurement,
    Record,
    Step,
    as_csv,
    cases_from,
    describe_machine,
    measure,
    parse_shapes,
    read_record,
    row_of,
)
from npumatmul.bench.cases import LLM_LAYERS, SQUARES, TYPES
from npumatmul.bench.plots import drawn, picture
from npumatmul.chips import CHIPS, NEWEST_RUNTIME
from npumatmul.chips.timing import TIMINGS
from npumatmul.chips.types import ElementType
from npumatmul.cli import benching
from npumatmul.cli.app import app
from npumatmul.cli.bench_outputs import Outputs


@pytest.mark.parametrize("layout", ["native", "normal"])
@pytest.mark.parametrize("name", TYPES)
def test_every_step_is_timed_as_often_as_asked(device: npu.Device, name: str, layout: str) -> None:
    (case,) = cases_from([name], [(4, 96, 128)], [layout])
    result = measure(device, case, repetitions=7, warmup=2)
    assert {step: len(times) for step, times in result.seconds.items()} == {
        step: 5 if step is Step.CREATE else 7 for step in Step
    }
    assert all(seconds > 0 for times in result.seconds.values() for seconds in times)
    assert result.simulated
    assert result.operations_per_second == pytest.approx(2 * 4 * 96 * 128 / np.median(result.seconds[Step.RUN]))


def test_bytes_are_those_of_the_matrices() -> None:
    assert Case("fp16", 4, 96, 128).nbytes == 4 * 96 * 2 + 96 * 128 * 2 + 4 * 128 * 4
    assert Case("int4", 4, 96, 128).nbytes == 4 * 96 // 2 + 96 * 128 // 2 + 4 * 128 * 2


def test_nothing_is_left_allocated(fresh_device: npu.Device) -> None:
    measure(fresh_device, Case("int8", 4, 64, 32), repetitions=2)
    before = fresh_device.stats()
    measure(fresh_device, Case("int8", 4, 64, 32), repetitions=2)
    after = fresh_device.stats()
    assert (after.contexts, after.descriptors, after.npu_bytes) == (
        before.contexts,
        before.descriptors,
        before.npu_bytes,
    )


@pytest.mark.parametrize("name", TYPES)
def test_wrong_results_are_noticed(device: npu.Device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    get = npu.Buffer.get

    def wrong(self: npu.Buffer, attr: npu.TensorAttr) -> Any:
        values = get(self, attr)
        values[1, 2] += 1
        return values

    monkeypatch.setattr(npu.Buffer, "get", wrong)
    with pytest.raises(RuntimeError, match=r"wrong result, 1 of 512 elements; at \(1, 2\)"):
        measure(device, Case(name, 4, 96, 128), repetitions=1)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        (Case("int8", 4, 100, 32), "K = 100 is not a multiple"),
        (Case("int8", 4, 64, 33), "N = 33 is not a multiple"),
        (Case("int8", 4, 8224, 32), "K = 8224 is above"),
        (Case("fp16", 4, 64, 8192), "N = 8192 is above"),
        (Case("int8", 5, 64, 32), "M = 5 is neither 1 nor a multiple"),
        (Case("int4", 256, 2048, 64), r"M = 256 is above 124, the most that is safe"),
    ],
)
def test_cases_that_a_chip_cannot_run(device: npu.Device, case: Case, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        measure(device, case)


def test_the_lists_fit_the_chip() -> None:
    rk3588 = CHIPS["rk3588"]
    for k, n in LLM_LAYERS:
        case = Case("int8", 8, k, n)
        assert case.problem(rk3588, NEWEST_RUNTIME) is None, case
    for size in SQUARES:
        assert Case("fp16", size, size, size).problem(rk3588, NEWEST_RUNTIME) is None


def test_notation_of_shapes(tmp_path: Path) -> None:
    assert parse_shapes("4,64,32;1,32,64") == [(4, 64, 32), (1, 32, 64)]
    assert parse_shapes("64,32", rows=(1, 2)) == [(1, 64, 32), (2, 64, 32)]
    assert parse_shapes("4x64x32; 1X32x64 ;64x32", rows=(2,)) == [(4, 64, 32), (1, 32, 64), (2, 64, 32)]
    assert len(parse_shapes("llm", rows=(1, 8))) == 2 * len(LLM_LAYERS)
    assert parse_shapes("square")[0] == (SQUARES[0],) * 3
    table = tmp_path / "shapes.csv"
    table.write_text("N,M,K,remark\n32,4,64,first\n64,1,32,second\n")
    assert parse_shapes(str(table)) == [(4, 64, 32), (1, 32, 64)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,x,3", "'4,x,3' is none of llm, square, M,K,N, MxKxN and K,N, nor the path of a .csv file"),
        ("4", "neither M,K,N nor K,N"),
        ("1,2,0", "below 1"),
        ("", "'' is none of llm"),
    ],
)
def test_wrong_notation(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        parse_shapes(text)
    table = tmp_path / "bad.csv"
    table.write_text("M,K\n1,2\n")
    with pytest.raises(ValueError, match="no column N"):
        parse_shapes(str(table))


def test_unknown_types_and_layouts() -> None:
    with pytest.raises(ValueError, match="'fp8' is not known"):
        cases_from(["fp8"], [(1, 32, 32)])
    with pytest.raises(ValueError, match="'diagonal' is not known"):
        cases_from(["int8"], [(1, 32, 32)], ["diagonal"])


def test_reports_label_what_is_measured_and_what_is_modelled(device: npu.Device) -> None:
    results = [measure(device, case, repetitions=2) for case in cases_from(["fp16", "int8"], [(1, 64, 32)])]
    record = Record(describe_machine(device), [row_of(result) for result in results])
    rows = list(csv.DictReader(io.StringIO(as_csv(record))))
    assert [row["type"] for row in rows] == ["fp16", "int8"]
    for row in rows:
        assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in row)  # for programs
        assert row["samples"] == "2"
        assert row["machine_timed_on"] == "CPU simulation of rk3588"
        assert {f"machine_{name}": str(value) for name, value in record.machine.flat().items()}.items() <= row.items()
        assert float(row["modelled_run_us"]) >= 30  # the fixed cost of a run alone is 30 us
        within = TIMINGS["rk3588"].within
        assert float(row["modelled_high_us"]) == pytest.approx(float(row["modelled_run_us"]) * within)
        assert float(row["modelled_low_us"]) == pytest.approx(float(row["modelled_run_us"]) / within)
        assert float(row["run_min_us"]) <= float(row["run_us"]) <= float(row["run_p90_us"])
    assert {"runtime", "driver", "npumatmul", "cpu", "kernel"} <= set(record.machine.flat())
    assert len(record.rows[0].seconds["run"]) == 2
    assert picture(drawn(record, "roofline"))[:4] == b"\x89PNG"


def test_results_can_be_measured_again(device: npu.Device, tmp_path: Path) -> None:
    results = [measure(device, Case("int8", 4, 64, n), repetitions=1) for n in (32, 64)]
    path = tmp_path / "results.csv"
    path.write_text(as_csv(Record(describe_machine(device), [row_of(result) for result in results])))
    assert parse_shapes(str(path)) == [(4, 64, 32), (4, 64, 64)]
    assert parse_shapes(";".join(result.case.label.split()[1] for result in results)) == [(4, 64, 32), (4, 64, 64)]


def test_what_is_beyond_the_run_is_told_of_equal_cores_only() -> None:
    seconds = {step: [1.0] for step in Step} | {Step.RUN: [0.25]}

    def beyond(cores: int, used: int) -> object:
        measured = Measurement(Case("int8", 1, 64, 96, cores=cores), seconds, None, True, "sim:rk3588", used)
        return row_of(measured).flat()["beyond_run_us"]

    assert beyond(1, 1) == beyond(3, 3) == 750_000
    assert beyond(3, 1) is beyond(1, 2) is None


@pytest.mark.parametrize("cores", [1, 3])
def test_products_are_timed_on_the_cores_of_their_case(fresh_device: npu.Device, cores: int) -> None:
    result = measure(fresh_device, Case("int8", 4, 2048, 2048, cores=cores), repetitions=1, warmup=0)
    assert result.matmul_cores == cores
    assert result.beyond_run_seconds is not None


def test_progress_counts_repetitions(device: npu.Device) -> None:
    calls: list[tuple[int, int]] = []
    measure(device, Case("int8", 1, 64, 32), 2, 1, progress=lambda *call: calls.append(call))
    assert calls == [(done, 6) for done in range(1, 7)]


def roofs(record: Record) -> dict[object, Any]:
    """Lines of the roofline by what they are called."""
    return {line.get_label(): line for line in drawn(record, "roofline").figure.axes[0].get_lines()}


def measured_on(soc: str, *cases: Case) -> Record:
    seconds = {step: [1e-3] for step in Step}
    with npu.Device(f"sim:{soc}") as other:
        machine = describe_machine(other)
    return Record(machine, [row_of(Measurement(case, seconds, None, True, f"sim:{soc}", case.cores)) for case in cases])


@pytest.mark.parametrize("soc", TIMINGS)
def test_every_chip_has_a_roof(soc: str) -> None:
    model = TIMINGS[soc]
    for name in ("fp16", "int8"):
        roof = roofs(measured_on(soc, Case(name, 64, 1024, 1024)))[f"{name}, modelled roof of {soc}"].get_ydata()
        assert roof[-1] == pytest.approx(model.peak[TYPES[name].a] / 1e9)
        assert roof[0] == pytest.approx(0.5 * model.bandwidth(1) / 1e9)


def test_roofs_are_of_as_many_cores_as_points() -> None:
    lines = roofs(measured_on("rk3588", *(Case("int8", m, 1024, 1024, cores=c) for c in (1, 3) for m in (1, 64))))
    model = TIMINGS["rk3588"]
    for cores, name in ((1, "int8"), (3, "int8 3 cores")):
        assert len(lines[f"{name}, measured"].get_ydata()) == 2
        roof = lines[f"{name}, modelled roof of rk3588"]
        x, y = np.asarray(roof.get_xdata(), float), np.asarray(roof.get_ydata(), float)
        expected = np.minimum(cores * model.peak[ElementType.INT8], x * model.bandwidth(cores)) / 1e9
        np.testing.assert_allclose(y, expected)
    assert len(lines) == 4


def bench_matmul(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    given = ["--types", "int8", "--repetitions", "2", "--device", "sim", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "bench", "matmul", *given],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def test_command(tmp_path: Path) -> None:
    saved = tmp_path / "out.json"
    done = bench_matmul("--shapes", "64,32;100,32", "--rows", "1,4", "--json", saved)
    assert done.returncode == 0, done.stderr
    assert "timed on: CPU simulation" in done.stdout
    assert "modelled" in done.stdout
    assert done.stderr == "left out int8 1x100x32 native, int8 4x100x32 native: K = 100 is not a multiple of 32\n"
    assert [(row.case["m"], row.case["k"]) for row in read_record(saved).rows] == [(1, 64), (4, 64)]
    table, _, machine = done.stdout.rpartition("┘\n")
    assert len(table.splitlines()[-1]) > 100  # whole lines where no terminal looks on
    assert [line.split("  ")[0] for line in machine.splitlines()] == [
        "timed on", "runtime", "CPU", "versions", "clocks", "temperature", "load", "time",
    ]  # fmt: skip


def test_a_dash_is_standard_output() -> None:
    done = bench_matmul("--shapes", "1x64x32", "--csv", "-", COLUMNS="80")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["m"], row["k"], row["n"]) == ("1", "64", "32")
    assert "int8 1x64x32" in done.stderr  # the table gives way


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--csv", "{tmp}/none/x.csv"], "there is no folder {tmp}/none"),
        (["--json", "{tmp}"], "Is a directory"),
        (["--plot", "{tmp}/x.docx"], "x.docx: pictures are png"),
        (["--plot", "{tmp}/x.png", "--plot-kind", "pie"], "--plot-kind: 'pie' is no plot; there are batch, roofline"),
        (["--plot-kind", "heat"], "--plot-kind goes with --plot"),
        (["--csv", "-", "--json", "-"], "--csv and --json are both -; each needs a file of its own"),
        (["--csv", "{tmp}/x", "--json", "{tmp}/./x"], "--csv and --json are both"),
        (["--cores", "1,4"], "--cores is 1,4; rk3588 has 3"),
        (["--rows", "0"], "--rows: '0' has a value below 1"),
    ],
)
def test_what_cannot_end_well_is_told_before_anything_is_measured(
    tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benching, "measure", lambda *arguments, **named: pytest.fail("it was measured"))
    given = [option.format(tmp=tmp_path) for option in options]
    with pytest.raises((ValueError, OSError), match=re.escape(message.format(tmp=tmp_path))):
        CliRunner().invoke(app, ["bench", "matmul", "--device", "sim", *given], catch_exceptions=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_measured_survives_what_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: type[BaseException]
) -> None:
    """An interrupt, or a case that fails."""
    count = itertools.count(1)

    def some(*arguments: Any, **named: Any) -> Measurement:
        if next(count) == 3:
            raise error
        return measure(*arguments, **named)

    monkeypatch.setattr(benching, "measure", some)
    saved = tmp_path / "out.csv"
    request = benching.Request("int8", "64,32", "1,4,8,12", repetitions=1, device="sim", outputs=Outputs(csv=saved))
    with pytest.raises(error):
        benching.run(request)
    shown = capfd.readouterr()
    assert shown.out.count("int8 ") == 2
    assert "2 of 4 cases were measured" in shown.err
    assert len(list(csv.DictReader(io.StringIO(saved.read_text())))) == 2


@pytest.mark.parametrize("name", TYPES)
def test_cores_share_the_columns(fresh_device: npu.Device, name: str) -> None:
    """The result of all cores together is checked by `measure` itself, and each has a context of its own."""
    (case,) = cases_from([name], [(4, 96, 320)], cores=[3])
    shares = case.shares(64)
    assert [share.stop - share.start for share in shares] == [128, 128, 64]
    assert (shares[0].start, shares[-1].stop) == (0, 320)
    result = measure(fresh_device, case, repetitions=3)
    assert str(case).endswith("3 cores")
    assert len(result.seconds[Step.RUN]) == 3


def test_cores_that_are_not_there(device: npu.Device) -> None:
    with pytest.raises(ValueError, match=r"4 cores: rk3588 has 3"):
        measure(device, Case("int8", 4, 64, 320, cores=4))
    with pytest.raises(ValueError, match=r"N = 64 is too small for 3 cores"):
        measure(device, Case("int8", 4, 64, 64, cores=3))
