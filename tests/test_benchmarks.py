"""Benchmarks beside `bench matmul`, each as a function of Python and as a command. No time is asserted."""

from __future__ import annotations

import inspect
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import npumatmul as npu
from npumatmul import bench
from npumatmul.bench import Record, Row, read_record
from npumatmul.bench.batching import best_batch, go_lines
from npumatmul.bench.llm_bench import LlmBenchmark, llama_bench_table
from npumatmul.bench.running import BENCHMARKS, benchmark
from npumatmul.bench.tables import HEADINGS, tables
from npumatmul.cli import bench_commands
from npumatmul.cli.app import app
from npumatmul.cli.bench_commands import OPTIONS
from npumatmul.rknn import CoreMask

#: Quick ones of each.
SMALL: dict[str, dict[str, Any]] = {
    "matmul": {"types": "int8", "shapes": "4x64x32", "cold": False},
    "bandwidth": {"sizes": "4,16"},
    "overhead": {"size": 32, "calls": 2},
    "layout": {"k": 64, "n": 32, "rows": "1,4", "types": "int8"},
    "cores": {"shapes": "64x128", "rows": 4},
    "batch": {"k": 64, "n": 40, "rows": "1,4"},
}


def run(what: str, device: npu.Device | str = "sim:rk3588", **options: Any) -> Record:
    return bench.run(what, device=device, **{"repetitions": 2, **SMALL[what], **options})


@pytest.mark.parametrize("what", SMALL)
def test_rows_say_what_they_are_and_can_be_read_back(what: str, device: npu.Device) -> None:
    rows_into: list[Row] = []
    calls: list[tuple[int, int, str]] = []
    record = run(what, device, rows_into=rows_into, progress=lambda *call: calls.append(call))
    assert {row.what for row in record.rows} >= {what}
    assert sorted(map(repr, rows_into)) == sorted(map(repr, record.rows))
    assert len({row.key for row in record.rows}) == len(record.rows)  # so that runs can be compared
    assert Record.parse(record.to_json()).rows == [Row(**vars(row)) for row in Record.parse(record.to_json()).rows]
    assert record.machine.simulated
    for table in tables(record):
        assert "timed on: CPU simulation of rk3588" in table.title
        assert len(table.columns) >= 3
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert calls[-1][0] == calls[-1][1]
    assert record.settings["repetitions"] == 2
    assert "root" not in record.settings


def test_headings_are_of_what_there_is(device: npu.Device) -> None:
    """Each figure that a table begins with is one that rows have."""
    known: dict[str, set[str]] = {}
    for what in SMALL:
        more: dict[str, Any] = {"matmul": {"types": "int8,w8a8", "shapes": "5x64x33;8x64x33", "cold": True}}.get(
            what, {}
        )
        for row in run(what, device, **more).rows:
            known.setdefault(row.what, set()).update(row.flat())
    for what, headings in HEADINGS.items():
        if what != "llm":
            missing = {field for heading in headings for field in heading.fields} - known[what]
            missing -= known["matmul"] if what in ("cores", "layout") else set()  # tables of products are alike
            assert not missing, (what, missing)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_commands_have_options_for_the_fields_of_their_benchmark(name: str) -> None:
    own = {field.name for field in fields(BENCHMARKS[name])} - {"root", "clock"}
    common = {"precision", "min_time", "time_limit", "warmup", "repetitions", "throttle", "seed"}
    assert set(OPTIONS[name]) - common == own - common
    parameters = inspect.signature(bench_commands._command(name, OPTIONS[name])).parameters
    assert common & set(parameters) == common - set(BENCHMARKS[name].unused)


def test_unknown_benchmarks_and_options_are_named() -> None:
    with pytest.raises(ValueError, match="run: there is no benchmark 'speed'; there are matmul, llm, bandwidth"):
        bench.run("speed")
    with pytest.raises(TypeError, match="run: 'batch' has no option 'k_'; it has precision, min_time"):
        bench.run("batch", k_=3)
    for name in ("precision", "min_time", "time_limit", "warmup"):  # tests of language models go another way
        with pytest.raises(TypeError, match=rf"run: 'llm' has no option '{name}'; it has repetitions, seed"):
            benchmark("llm", {name: 1})


def test_what_is_left_out_is_warned_of(device: npu.Device) -> None:
    with pytest.warns(UserWarning, match="left out int8 4x9000x32 native: K = 9024 is above"):
        record = run("matmul", device, shapes=[(4, 64, 32), (4, 9000, 32)])
    assert [row.label for row in record.rows] == ["int8 4x64x32"]


@pytest.mark.parametrize(
    ("what", "options", "message"),
    [
        ("matmul", {"types": "int8", "precision": 2.0, "repetitions": None}, "precision is 2"),
        ("matmul", {"repetitions": 0}, "at least 0 and at most 0 rounds"),
        ("bandwidth", {"sizes": "2097152"}, "2097152 KiB are more than a gigabyte"),
        ("bandwidth", {"cores": "1,5"}, "cores: 5 are asked for; rk3588 has 3"),
        ("overhead", {"size": 0}, "size is 0 and calls 2; both are 1 or more"),
        ("overhead", {"scheme": "w8a16"}, "scheme 'w8a16' needs the matmul type"),
        ("overhead", {"scheme": "int8"}, "int8 takes integers"),
        ("layout", {"types": "w8a8"}, "'w8a8' is no matmul type; there are fp16, int8"),
        ("layout", {"rows": "0"}, "rows: '0' has a value below 1"),
        ("layout", {"k": 100_000}, "nothing is left to measure on rk3588: K = 100000 is above 8192"),
        ("cores", {"shapes": "64"}, "shapes: '64' is neither M,K,N nor K,N"),
        ("batch", {"k": 0}, "k is 0 and n 40; both are 1 or more"),
        ("batch", {"rows": "1,x"}, "rows: 'x' is neither a number nor a range"),
        ("batch", {"scheme": "w8a8_static"}, "scheme: w8a8_static needs a calibration"),
        ("batch", {"scheme": "w4a16"}, "scheme: scheme 'w4a16' needs the matmul type"),
        ("batch", {"scheme": "q8"}, "no scheme is called 'q8'"),
    ],
)
def test_options_that_make_no_sense(what: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        run(what, **options)


def test_bandwidth_is_bytes_per_time(device: npu.Device) -> None:
    rows = run("bandwidth", device, sizes="16,64", cores="1,3").rows
    of_npu = [row for row in rows if row.case["reads"] == "npu"]
    assert [(row.case["k"], row.case["n"], row.case["cores"]) for row in of_npu] == [
        (128, 128, 1), (128, 96, 3), (256, 256, 1), (256, 192, 3),
    ]  # fmt: skip
    for row in of_npu:
        nbytes = int(row.case["k"] or 0) * int(row.case["n"] or 0)
        assert row.figures["gb_per_s"] == pytest.approx(nbytes / np.median(row.seconds["run"]) / 1e9)
        assert row.figures["modelled_gb_per_s"] == pytest.approx(nbytes / row.modelled["run"] / 1e9)
    assert {row.case["reads"] for row in rows} == {"npu", "cpu read", "cpu copy"}
    assert {row.case["reads"] for row in run("bandwidth", device, host=False).rows} == {"npu"}


def test_calls_of_python_are_told_above_the_executor(device: npu.Device) -> None:
    rows = {(row.case["of"], row.case["call"]): row for row in run("overhead", device).rows}
    bare = np.median(rows["python", "executor"].seconds["call"])
    for name in ("matmul(x, packed)", "x @ packed", "Matmul.execute()", "NpuArray @ packed", "numpy: x @ w"):
        row = rows["python", name]
        assert row.figures["above_executor_us"] == pytest.approx(1e6 * (np.median(row.seconds["call"]) - bare))
    for name in ("run", "set_io_mem of A, B, C", "create context", "destroy memory", "sync of C from the device"):
        assert "above_executor_us" not in rows["c", name].figures


def test_overhead_calls_the_executor_as_often_as_it_says(fresh_device: npu.Device) -> None:
    """The bare call computes: its runs are counted by the device, too."""
    before = fresh_device.stats().run_calls
    run("overhead", fresh_device, repetitions=3, calls=2, warmup=0)
    assert fresh_device.stats().run_calls - before >= 9 * 3 * 2


def test_layouts_stand_beside_each_other(device: npu.Device) -> None:
    rows = [row for row in run("layout", device, types="int8,fp16").rows if row.what == "layout"]
    assert [row.label for row in rows] == [
        f"{kind} {m}x64x32{layout}" for kind in ("int8", "fp16") for m in (1, 4) for layout in ("", " normal")
    ]
    for native, normal in zip(rows[::2], rows[1::2], strict=True):
        steps = ("pack_a", "sync_a", "bind", "run", "sync_c", "unpack_c")
        sums = [sum(np.median(row.seconds[step]) for step in steps) for row in (native, normal)]
        assert native.figures["together_us"] == pytest.approx(1e6 * sums[0])
        assert normal.figures["normal_per_native"] == pytest.approx(sums[1] / sums[0])
        runs = [np.median(row.seconds["run"]) for row in (native, normal)]
        assert normal.figures["normal_per_native_run"] == pytest.approx(runs[1] / runs[0])
        assert "normal_per_native" not in native.figures  # whichever of both was measured first


def test_cores_are_compared_with_one(device: npu.Device) -> None:
    record = run("cores", device, types="int8,w8a8")
    rows = [row for row in record.rows if row.what == "cores"]
    assert [(row.case["type"], row.case["cores"]) for row in rows] == [
        (kind, cores) for kind in ("int8", "w8a8") for cores in (1, 2, 3)
    ]
    for row in rows:
        alone = rows[0 if row.case["type"] == "int8" else 3]
        expected = np.median(alone.seconds["run"]) / np.median(row.seconds["run"])
        assert row.figures["run_speedup"] == pytest.approx(expected)


def test_every_mask_is_tried_and_refusals_are_told(device: npu.Device) -> None:
    rows = {row.case["mask"]: row for row in run("cores", device).rows if row.what == "mask"}
    assert set(rows) == {name.lower() for name in CoreMask.__members__ if name != "CORE_UNDEFINED"}
    for name in ("core_auto", "core_0", "core_1", "core_2"):
        assert (rows[name].figures["refused"], rows[name].main) == (None, "run")
    for name in ("core_0_1", "core_0_1_2"):  # facts 8
        assert (rows[name].figures["refused"], rows[name].main) == ("RKNN_ERR_FAIL", "set_core_mask")
    assert [row for row in run("cores", device, masks=False).rows if row.what == "mask"] == []


def test_chips_of_one_core_are_measured_too() -> None:
    record = run("cores", "sim:rk3566")
    assert [row.case["cores"] for row in record.rows if row.what == "cores"] == [1]


@pytest.mark.parametrize("scheme", ["w8a8", "w16a16", "w4a8_g32", "int8", "int4"])
def test_batches_are_checked_and_counted_by_row(device: npu.Device, scheme: str) -> None:
    rows = run("batch", device, scheme=scheme, rows="3,1,8").rows
    assert [row.case["m"] for row in rows] == [1, 3, 8]
    for row in rows:
        milliseconds = 1e3 * np.median(row.seconds["batch"])
        assert row.figures["ms_per_batch"] == pytest.approx(milliseconds)
        assert row.figures["ms_per_row"] == pytest.approx(milliseconds / int(row.case["m"] or 0))


def test_a_wrong_batch_is_noticed(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    execute = npu.Matmul.execute
    monkeypatch.setattr(npu.Matmul, "execute", lambda self: execute(self) + 1)
    with pytest.raises(RuntimeError, match="a batch of 1: wrong result"):
        run("batch", device)


def batch(size: int, milliseconds: float) -> Row:
    figures = {"ms_per_batch": milliseconds, "ms_per_row": milliseconds / size}
    return Row("batch", {"m": size}, {"batch": [milliseconds / 1e3] * 3}, figures)


def test_lines_for_tools_of_go_are_those_of_its_benchmarks() -> None:
    """Those that go-rknnlite published of an RK3588, whose figures are per picture."""
    rows = [batch(1, 8.806025), batch(4, 21.555109), batch(8, 22.335645), batch(16, 40.253162)]
    expected = """
        BenchmarkBatchSize/Batch01-8 3  8806025 ns/op  8.806 ms/batch  8.806 ms/row
        BenchmarkBatchSize/Batch04-8 3 21555109 ns/op  21.56 ms/batch  5.389 ms/row
        BenchmarkBatchSize/Batch08-8 3 22335645 ns/op  22.34 ms/batch  2.792 ms/row
        BenchmarkBatchSize/Batch16-8 3 40253162 ns/op  40.25 ms/batch  2.516 ms/row
    """
    assert [line.split() for line in go_lines(rows, 8)] == [line.split() for line in expected.strip().splitlines()]


def test_the_best_batch_is_the_smallest_that_is_hard_to_beat() -> None:
    assert best_batch([batch(1, 8.8), batch(4, 21.6), batch(8, 22.3), batch(16, 43.0)]) == 8  # 2.79 and 2.69 a row
    assert best_batch([batch(1, 8.8), batch(4, 21.6), batch(8, 22.3), batch(16, 40.3)]) == 16
    assert best_batch([batch(1, 18.66), batch(4, 74.7), batch(8, 155.4), batch(16, 295.0)]) == 1  # one core: no gain
    assert best_batch([]) is None


# ---- language models ----------------------------------------------------------------------------------------------


def test_the_table_of_llama_bench_aligns() -> None:
    def row(test: str, depth: int, rate: float, modelled: float | None) -> Row:
        figures = {"tokens_per_second": rate, "plus_minus": 1.5, "modelled_tokens_per_second": modelled}
        sizes = {"weight_bytes": 172 << 20, "parameters": 134_515_008}
        return Row("llm", {"model": "SmolLM2", "type": "w8a8", "test": test, "depth": depth}, {"test": [1.0]},
                   {**figures, **sizes})  # fmt: skip

    lines = llama_bench_table([row("pp512", 0, 1234.5, 2000.0), row("tg128", 2048, 9.87, None)], "rk3588 simulated")
    assert len({len(line) for line in lines}) == 1
    assert lines[1].replace("-", "").replace("|", "").replace(":", "").strip() == ""
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        "SmolLM2 w8a8", "172.00 MiB", "134.52 M", "rk3588 simulated", "pp512", "1234.50 ± 1.50", "2000.00",
    ]  # fmt: skip
    assert "| tg128 @ d2048 |    9.87 ± 1.50 |            - |" in lines[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": "0", "generated": 0}, "nothing is left to measure"),
        ({"prompts": "x"}, "prompts: 'x' is neither a number nor a range"),
        ({"depths": "-1"}, "depths: '-1' has a value below 1"),
        ({"schemes": "w9"}, "schemes: no scheme is called 'w9'"),
        ({"repetitions": 0}, "repetitions is 0; it is 1 or more"),
        ({"models": "/nowhere/m.gguf"}, "there is no model '/nowhere/m.gguf'"),
    ],
)
def test_options_of_language_models_that_make_no_sense(
    device: npu.Device, options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        LlmBenchmark(**options).prepare(device)


# ---- commands ------------------------------------------------------------------------------------------------------


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "bench", *map(str, arguments), "--device", "sim"],
        capture_output=True, text=True, timeout=200, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip


def test_command_of_batches(tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    done = command("batch", "-K", 64, "-N", 40, "--rows", "1,4", "--repetitions", 3, "--json", saved)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"BenchmarkBatchSize/Batch01-\d+\s+3\s+\d+ ns/op\s+\S+ ms/batch\s+\S+ ms/row", lines[0])
    assert lines[2].startswith("best batch, measured on the CPU that simulates rk3588: ")
    assert lines[3].startswith("best batch, modelled on rk3588, not measured: ")
    assert max(len(line) for line in lines if line[0:1] in "┏┃┡│└") <= 80
    assert [row.case["m"] for row in read_record(saved).rows] == [1, 4]


def test_what_was_measured_survives_a_signal(tmp_path: Path) -> None:
    """As `kill` sends it to a benchmark that nobody looks at."""
    saved = tmp_path / "run.json"
    program = """
import os, signal, sys
from npumatmul.bench import matmul_bench
from npumatmul.cli.app import run

measure, count = matmul_bench.measure, iter(range(9))
def third_time_unlucky(*given, **how):
    if next(count) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    return measure(*given, **how)
matmul_bench.measure = third_time_unlucky
sys.argv = ["npumatmul", "bench", "matmul", "--types", "int8", "--shapes", "1-8*2x64x32", "--repetitions", "2",
            "--warm", "--device", "sim", "--json", sys.argv[1]]
run()
"""
    done = subprocess.run([sys.executable, "-c", program, saved], capture_output=True, text=True, timeout=100)
    assert done.returncode == 128 + signal.SIGTERM
    assert "it ended early; 2 rows were measured until then" in done.stderr
    assert len(read_record(saved).rows) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["matmul", "--precision", "200%"], "'200%' is no share above 0 and below 100%, such as 2% or 0.02"),
        (["matmul", "--min-time", "soon"], "'soon' is no time, such as 0.5s or 500ms"),
        (["batch", "-K", "0"], "Invalid value for '-K' / '--k'"),
        (["layout", "--shapes", "llm"], "No such option: --shapes"),
        (["overhead", "--plot", "calls.png"], "--plot: nothing of bench overhead can be drawn; its table says it all"),
        (["cores", "--types", "int9"], "types: 'int9' is no type"),
    ],
)
def test_mistakes_on_the_command_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments, "--device", "sim"])
    assert done.exit_code != 0
    assert message in " ".join(done.output.split()) + str(done.exception)
