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
from npumatmul import sim
from npumatmul.bench import (
    Case,
    Record,
    Row,
    Sampling,
    as_csv,
    cases_from,
    describe_machine,
    measure,
    parse_shapes,
    read_record,
)
from npumatmul.bench import matmul_bench as matmul_module
from npumatmul.bench import operands as operands_module
from npumatmul.bench.cases import TYPES
from npumatmul.bench.contexts import BoundTiles
from npumatmul.bench.matmul_bench import MatmulBenchmark
from npumatmul.bench.measure import Caches
from npumatmul.bench.plots import drawn, picture
from npumatmul.bench.shapes import LLM_LAYERS, SQUARES, parse_numbers
from npumatmul.board.slowdown import SlowdownWatch
from npumatmul.chips import CHIPS, NEWEST_RUNTIME
from npumatmul.chips.timing import TIMINGS
from npumatmul.chips.types import ElementType
from npumatmul.cli import benching
from npumatmul.cli.app import app
from npumatmul.cli.bench_outputs import Outputs
from npumatmul.llm.modelled.published import SHAPES

ONCE = Sampling.exactly(1, warmup=0)
#: Types that an rk3588 has.
OWN_TYPES = [name for name in TYPES if TYPES[name] in CHIPS["rk3588"].limits]
STEPS = ("pack_a", "sync_a", "bind", "run", "sync_c", "unpack_c")


@pytest.mark.parametrize("layout", ["native", "normal"])
@pytest.mark.parametrize("name", OWN_TYPES)
def test_every_step_is_timed_as_often_as_asked(device: npu.Device, name: str, layout: str) -> None:
    (case,) = cases_from([name], [(4, 96, 128)], [layout])
    row = measure(device, case, Sampling.exactly(7, warmup=2))
    counts = {step: len(times) for step, times in row.seconds.items()}
    assert counts == {"create": 5, "matmul": 7, "executor": 7, "host": 7, **dict.fromkeys(STEPS, 7)}
    assert all(seconds > 0 for times in row.seconds.values() for seconds in times)
    assert (row.what, row.main, dict(row.case)) == ("matmul", "run", case.fields)
    median = np.median(row.seconds["run"])
    assert row.figures["gops"] == pytest.approx(2 * 4 * 96 * 128 / median / 1e9)
    assert row.figures["checked"] is True


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [("fp16", 4 * 96 * 2 + 96 * 128 * 2 + 4 * 128 * 4), ("int4", 4 * 96 // 2 + 96 * 128 // 2 + 4 * 128 * 2)],
)
def test_bytes_are_those_of_the_matrices(device: npu.Device, name: str, nbytes: int) -> None:
    row = measure(device, Case(name, 4, 96, 128), ONCE)
    assert row.figures["gb_per_s"] == pytest.approx(nbytes / row.seconds["run"][0] / 1e9)
    assert row.figures["ops_per_byte"] == pytest.approx(2 * 4 * 96 * 128 / nbytes)


def test_nothing_is_left_allocated(fresh_device: npu.Device) -> None:
    cases = [Case("int8", 4, 64, 32), Case("w4a8_g32", 5, 100, 33)]
    stats = []
    for _ in range(2):
        for case in cases:
            measure(fresh_device, case, Sampling.exactly(2), caches=Caches(1 << 10))
        after = fresh_device.stats()
        stats.append((after.contexts, after.descriptors, after.npu_bytes))
    assert stats[0] == stats[1]


@pytest.mark.parametrize("name", OWN_TYPES)
def test_wrong_results_of_contexts_are_noticed(device: npu.Device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    get = npu.Buffer.get

    def wrong(self: npu.Buffer, attr: npu.TensorAttr) -> Any:
        values = get(self, attr)
        values[1, 2] += 1
        return values

    monkeypatch.setattr(npu.Buffer, "get", wrong)
    with pytest.raises(RuntimeError, match=rf"{name} 4x96x128 native: wrong result, 1 of 512 elements; at \(1, 2\)"):
        measure(device, Case(name, 4, 96, 128), ONCE)
    assert measure(device, Case(name, 4, 96, 128), ONCE, check=False).figures["checked"] is False


@pytest.mark.parametrize("name", ["int8", "w8a8", "w4a8_g32_wasym", "w16a16"])
def test_wrong_results_of_products_are_noticed(device: npu.Device, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = npu.Matmul.execute

    def wrong(self: npu.Matmul[Any], out: Any = None) -> Any:
        values = execute(self, out)
        values[3, 0] += 1
        return values

    monkeypatch.setattr(npu.Matmul, "execute", wrong)
    with pytest.raises(RuntimeError, match=r"Matmul.execute of .*: wrong result, 1 of 512 elements; at \(3, 0\)"):
        measure(device, Case(name, 4, 96, 128), ONCE)


@pytest.mark.parametrize("soc", ["rk3588", "rk3576", "rk3562"])
def test_products_of_schemes_are_exact(soc: str) -> None:
    """Operands are such that quantization changes nothing, so that whatever is off by one is found."""
    names = [
        "w16a16", "w16a16_high", "w8a8", "w4a8", "w4a4", "w8a16", "w4a16", "w8a8_layer", "w8a8_g64", "w4a8_g32",
        "w8a8_wasym", "w8a8_aasym", "w4a8_g32_wasym_aasym", "w4a4_g32_agroup", "w8a8_g96_wasym_aasym",
    ]  # fmt: skip
    with npu.Device(f"sim:{soc}") as other:
        done = 0
        for name, shape in zip(names, itertools.cycle([(5, 300, 70), (1, 64, 32), (12, 1, 100)]), strict=False):
            case = Case(name, *shape)
            if case.problem(other.chip, other.runtime_version) is None:
                row = measure(other, case, ONCE)
                assert "pack_b" in row.seconds
                assert "pack_a" not in row.seconds
                assert row.figures["runs"] == npu.Matmul(
                    *(np.ones(each, np.float32) for each in (shape[:2], shape[1:])), scheme=case.scheme, device=other
                ).plan().runs * (3 if name == "w16a16_high" else 1)  # type: ignore[union-attr] # it has elements
                done += 1
        assert done >= 8


@pytest.mark.parametrize(
    ("case", "runs_as"),
    [
        (Case("int8", 5, 100, 33), "8x128x64"),
        (Case("int8", 5, 100, 33, ac_native=False), "5x128x64"),
        (Case("fp16", 1, 33, 17), "1x64x32"),
        (Case("int4", 3, 64, 64, cores=1), "4x64x64"),
        (Case("int8", 4, 64, 64), None),
    ],
)
def test_sizes_that_are_not_aligned_are_filled_up_and_told(device: npu.Device, case: Case, runs_as: str | None) -> None:
    row = measure(device, case, ONCE)
    assert row.figures.get("runs_as") == runs_as
    assert (row.case["m"], row.case["k"], row.case["n"]) == (case.m, case.k, case.n)


def test_cold_runs_meet_another_copy_and_empty_caches(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = itertools.count()
    monkeypatch.setattr(Caches, "drop", lambda self: next(dropped))
    allocated = itertools.count()
    allocate = npu.Device.buffer

    def counted(self: npu.Device, nbytes: int, **how: Any) -> npu.Buffer:
        next(allocated)
        return allocate(self, nbytes, **how)

    monkeypatch.setattr(npu.Device, "buffer", counted)
    measure(device, Case("int8", 4, 64, 32), Sampling.exactly(3), caches=None)
    assert next(allocated) == 3  # A, B, C
    row = measure(device, Case("int8", 4, 64, 32), Sampling.exactly(3, warmup=1), caches=Caches(8))
    assert next(allocated) == 4 + 4  # and a second B
    assert [len(row.seconds[name]) for name in ("run_cold", "matmul_cold")] == [3, 3]
    assert next(dropped) == 2 * (1 + 3)


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        (Case("int8", 4, 8224, 32), "K = 8224 is above"),
        (Case("fp16", 4, 64, 8192), "N = 8192 is above"),
        (Case("int4", 256, 2048, 64), r"M = 256 is above 124, the most that is safe"),
        (Case("int8xint4", 4, 64, 64), "rk3588 has no matmul type INT8_INT4_INT32"),
        (Case("w8a16", 4, 64, 64), "scheme 'w8a16' needs the matmul type FLOAT16_INT8_FLOAT32"),
        (Case("w8a8_static", 4, 64, 64), "w8a8_static needs a calibration"),
        (Case("w8a8", 4, 64, 64, cores=4), "4 cores: rk3588 has 3"),
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


def test_ranges_of_shapes_and_numbers() -> None:
    assert parse_numbers("1-64*4") == [1, 4, 16, 64]
    assert parse_numbers("10-31+10, 3") == [10, 20, 30, 3]
    assert parse_numbers("2-4") == [2, 3, 4]
    assert parse_shapes("1-4*2x64x32-64+32") == [(m, 64, n) for m in (1, 2, 4) for n in (32, 64)]
    assert parse_shapes("64-128*2,32;128,32", rows=(1,)) == [(1, 64, 32), (1, 128, 32)]  # each once


def test_models_by_name_are_their_linear_layers() -> None:
    assert parse_shapes("qwen2.5-0.5b", rows=(3,)) == [(3, each.k, each.n) for each in SHAPES["Qwen2.5-0.5B"].whole]
    several = parse_shapes("all-MiniLM-L6-v2;Qwen3-30B-A3B;whisper-tiny;64,64", rows=(1,))
    assert (1, 2048, 768 * 2) in several  # gate and up of an expert
    assert several[-1] == (1, 64, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,x,3", "'4,x,3' is none of what shapes can be: 'M,K,N', 'MxKxN' or 'K,N', each a number or a range"),
        ("4", "neither M,K,N nor K,N"),
        ("1,2,0", "below 1"),
        ("", "'' is none of what shapes can be"),
        ("qwen2.5-0.5", "did you mean Qwen2.5-0.5B or"),
        ("64-32x1x1", "the range '64-32' begins behind its end"),
        ("1-64*1,2,3", "the range '1-64*1' does not get on"),
        ("1-64+0,2,3", "the range '1-64+0' does not get on"),
        ("0-64*2,2,3", "begins at 1 or more"),
        ("1-99999999,2,3", "has more than 100000 numbers"),
        ("1-1000,1-1000,1-10", "there are more than 100000"),
        ("4-,3,2", "'4-' is neither a number nor a range such as"),
    ],
)
def test_wrong_notation(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_shapes(text)


def test_wrong_tables_of_shapes(tmp_path: Path) -> None:
    table = tmp_path / "bad.csv"
    table.write_text("M,K\n1,2\n")
    with pytest.raises(ValueError, match="no column N"):
        parse_shapes(str(table))
    table.write_text("M,K,N\n1,2,3\n1,two,3\n")
    with pytest.raises(ValueError, match=r"bad\.csv: line 3, K: 'two' is neither a number nor a range"):
        parse_shapes(str(table))


def test_unknown_types_and_layouts() -> None:
    with pytest.raises(
        ValueError, match=r"types: 'fp8' is no type \(fp16, int8, int4, int8xint4\), and as a scheme: no"
    ):
        cases_from(["fp8"], [(1, 32, 32)])
    with pytest.raises(ValueError, match="'diagonal' is not known"):
        cases_from(["int8"], [(1, 32, 32)], ["diagonal"])


def test_reports_label_what_is_measured_and_what_is_modelled(device: npu.Device) -> None:
    results = [measure(device, case, Sampling.exactly(2)) for case in cases_from(["fp16", "int8"], [(1, 64, 32)])]
    record = Record(describe_machine(device), results)
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
    results = [measure(device, Case("int8", 4, 64, n), ONCE) for n in (32, 64)]
    path = tmp_path / "results.csv"
    path.write_text(as_csv(Record(describe_machine(device), results)))
    assert parse_shapes(str(path)) == [(4, 64, 32), (4, 64, 64)]
    assert parse_shapes(";".join(result.label.split()[1] for result in results)) == [(4, 64, 32), (4, 64, 64)]


@pytest.mark.parametrize("cores", [1, 3])
def test_products_are_timed_on_the_cores_of_their_case(fresh_device: npu.Device, cores: int) -> None:
    row = measure(fresh_device, Case("int8", 4, 2048, 2048, cores=cores), ONCE)
    assert row.figures["matmul_cores"] == cores
    seconds = {name: times[0] for name, times in row.seconds.items()}
    assert row.figures["beyond_run_us"] == pytest.approx(1e6 * (seconds["matmul"] - seconds["run"]))
    assert row.figures["python_us"] == pytest.approx(1e6 * (seconds["matmul"] - seconds["executor"]))


def test_what_is_beyond_the_run_is_told_of_equal_cores_and_types_only(device: npu.Device) -> None:
    row = measure(device, Case("int8", 4, 64, 96, cores=3), ONCE)  # one core is modelled to be best
    assert (row.figures["matmul_cores"], row.figures["beyond_run_us"]) == (1, None)
    with npu.Device("sim:rk3576") as other:  # the product of these operands is one of int8
        assert measure(other, Case("int8xint4", 4, 64, 96), ONCE).figures["beyond_run_us"] is None


def roofs(record: Record) -> dict[object, Any]:
    """Lines of the roofline by what they are called."""
    return {line.get_label(): line for line in drawn(record, "roofline").figure.axes[0].get_lines()}


def measured_on(soc: str, *cases: Case) -> Record:
    with npu.Device(f"sim:{soc}") as other:
        machine = describe_machine(other)
        rows = []
        for case in cases:
            mm_type = TYPES[case.type_name]
            nbytes = sum(
                element.nbytes(size)
                for element, size in zip(
                    (mm_type.a, mm_type.b, mm_type.c), (case.m * case.k, case.k * case.n, case.m * case.n), strict=True
                )
            )
            figures = {"gops": 2 * case.macs / 1e-3 / 1e9, "ops_per_byte": 2 * case.macs / nbytes}
            rows.append(Row("matmul", case.fields, {"run": [1e-3]}, figures))
    return Record(machine, rows)


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
    given = ["--types", "int8", "--repetitions", "2", "--warm", "--device", "sim", *map(str, arguments)]
    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "bench", "matmul", *given],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def test_command(tmp_path: Path) -> None:
    saved = tmp_path / "out.json"
    done = bench_matmul("--shapes", "64,32;10000,32", "--rows", "1,4", "--json", saved)
    assert done.returncode == 0, done.stderr
    assert "timed on: CPU simulation" in done.stdout
    assert "modelled" in done.stdout
    reason = "K = 10016 is above 8192, the largest that is given to one context"
    assert done.stderr == f"left out int8 1x10000x32 native, int8 4x10000x32 native: {reason}\n"
    record = read_record(saved)
    assert [(row.what, row.case["m"], row.case["k"]) for row in record.rows[:2]] == [("matmul", m, 64) for m in (1, 4)]
    assert record.rows[2].what == "drift"  # one of both once more
    assert (record.settings["repetitions"], record.settings["cold"]) == (2, False)
    table, _, machine = done.stdout.rpartition("┘\n")
    assert max(map(len, table.splitlines())) > 200  # whole lines where no terminal looks on
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
        (["--plot", "{tmp}/x.png", "--plot-kind", "pie"], "--plot-kind: 'pie' is no plot; there are batch, bandwidth"),
        (["--plot-kind", "heat"], "--plot-kind goes with --plot"),
        (["--csv", "-", "--json", "-"], "--csv and --json are both -; each needs a file of its own"),
        (["--csv", "{tmp}/x", "--json", "{tmp}/./x"], "--csv and --json are both"),
        (["--cores", "1,4"], "cores: 4 are asked for; rk3588 has 3"),
        (["--rows", "0"], "rows: '0' has a value below 1"),
        (["--types", "int8,fp9"], "types: 'fp9' is no type"),
        (["--schemes", "w9a9"], "types: 'w9a9' is no type"),
        (["--types", "int8,"], "types: a name is missing in 'int8,'"),
        (["--layouts", "odd"], "layouts: 'odd' is not known"),
        (["--shapes", "1x90000x32"], "nothing is left to measure on rk3588: K = 90016 is above"),
        (["--min-time", "2s"], "the shortest time, 2 s, is above the time limit, 1 s"),
    ],
)
def test_what_cannot_end_well_is_told_before_anything_is_measured(
    tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul_module, "measure", lambda *arguments, **named: pytest.fail("it was measured"))
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

    def some(*arguments: Any, **named: Any) -> Row:
        if next(count) == 3:
            raise error
        return measure(*arguments, **named)

    monkeypatch.setattr(matmul_module, "measure", some)
    saved = tmp_path / "out.csv"
    benchmark = MatmulBenchmark(types="int8", shapes="64,32", rows="1,4,8,12", repetitions=1, cold=False)
    with pytest.raises(error):
        benching.run(benchmark, "sim", Outputs(csv=saved))
    shown = capfd.readouterr()
    assert shown.out.count("int8 ") == 2
    assert "it ended early; 2 rows were measured until then" in shown.err
    assert len(list(csv.DictReader(io.StringIO(saved.read_text())))) == 2


@pytest.mark.parametrize("name", OWN_TYPES)
def test_cores_share_the_columns(fresh_device: npu.Device, name: str) -> None:
    """The result of all cores together is checked by `measure` itself, and each has a context of its own."""
    (case,) = cases_from([name], [(4, 96, 320)], cores=[3])
    shares = case.shares(64)
    assert [share.stop - share.start for share in shares] == [128, 128, 64]
    assert (shares[0].start, shares[-1].stop) == (0, 320)
    row = measure(fresh_device, case, Sampling.exactly(3))
    assert str(case).endswith("3 cores")
    assert len(row.seconds["run"]) == 3


def test_cores_that_are_not_there(device: npu.Device) -> None:
    with pytest.raises(ValueError, match=r"4 cores: rk3588 has 3"):
        measure(device, Case("int8", 4, 64, 320, cores=4))
    with pytest.raises(ValueError, match=r"N = 64 is too small for 3 cores"):
        measure(device, Case("int8", 4, 64, 64, cores=3))


def test_a_board_is_looked_at_just_after_the_runs(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before products and cold runs, in which clocks fall; what is said then is marked."""
    events: list[str] = []
    run, drop = BoundTiles.run, Caches.drop
    monkeypatch.setattr(BoundTiles, "run", lambda self: events.append("run") or run(self))  # type: ignore[func-returns-value]
    monkeypatch.setattr(Caches, "drop", lambda self: events.append("cold") or drop(self))  # type: ignore[func-returns-value]

    class Watch(SlowdownWatch):
        def reasons(self) -> list[str]:
            events.append("look")
            return ["it is slow"]

    for name in ("int8", "w8a8"):
        events.clear()
        row = measure(device, Case(name, 4, 64, 32), Sampling.exactly(2, warmup=0), caches=Caches(8), watch=Watch())
        runs = [event for event in events if event != "cold"]
        assert runs == ["run", "run", "look", "run", "run"]
        assert row.marks == ["it is slow"]


@pytest.mark.parametrize("columns", [1, 3, 1000])
def test_results_are_checked_in_parts(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operands_module, "_CHECKED", 4 * columns)
    a, b = np.arange(8.0).reshape(2, 4), np.arange(40.0).reshape(4, 10)
    operands = operands_module.Operands(a, b, 0)
    result = a @ b
    operands.check(result, "it")
    result[1, 7] += 1
    result[0, 9] -= 1
    with pytest.raises(RuntimeError, match=r"it: wrong result, 2 of 20 elements; at \((0, 9|1, 7)\)"):
        operands.check(result, "it")
    result[1, 7] = np.nan
    with pytest.raises(RuntimeError, match="2 of 20 elements"):
        operands.check(result, "it")


@pytest.mark.parametrize("name", ["int8", "w8a8", "w4a8_g32", "w16a16_high"])
def test_calls_of_the_executor_run_as_often_as_they_say(fresh_device: npu.Device, name: str) -> None:
    """A bare call makes the product's runs, and one without runs makes none: both are counted by the simulator."""
    w = np.arange(-60, 60).reshape(60, 2) % 7 - 3
    x = np.ones((5, 60))
    dtype = np.int8 if name == "int8" else np.float32
    with npu.pack(w.astype(dtype), npu.Scheme.parse(name), device=fresh_device) as packed:
        product = npu.Matmul(x.astype(dtype), packed)
        result = product.execute()
        expected = result.copy()
        assert product.prepared is not None
        assert product.prepared.program is not None
        result[...] = 0
        before = sim.counters(fresh_device).run_calls
        assert product.prepared.program.bare_call()() == 0
        runs = sim.counters(fresh_device).run_calls - before
        assert runs >= 1
        assert (result == expected).all()
        assert product.prepared.program.bare_call(runs=False)() == 0
        assert sim.counters(fresh_device).run_calls - before == runs
        assert (product.execute() == expected).all()
