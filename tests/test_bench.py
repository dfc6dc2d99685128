"""The microbenchmarks: what is measured, that results are checked, and what is written down. No time is asserted."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul.bench import Case, Step, as_csv, as_json, cases_from, describe_machine, measure, parse_shapes
from npumatmul.bench.cases import LLM_LAYERS, SQUARES, TYPES
from npumatmul.bench.roofline import roofline
from npumatmul.chips import CHIPS, NEWEST_RUNTIME


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
    assert len(parse_shapes("llm", rows=(1, 8))) == 2 * len(LLM_LAYERS)
    assert parse_shapes("square")[0] == (SQUARES[0],) * 3
    table = tmp_path / "shapes.csv"
    table.write_text("N,M,K,remark\n32,4,64,first\n64,1,32,second\n")
    assert parse_shapes(str(table)) == [(4, 64, 32), (1, 32, 64)]


@pytest.mark.parametrize(
    ("text", "message"),
    [("4,x,3", "'4,x,3' is not a list"), ("4", "neither M,K,N nor K,N"), ("1,2,0", "below 1"), ("", "not a list")],
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


def test_reports_label_what_is_measured_and_what_is_modelled(device: npu.Device, tmp_path: Path) -> None:
    results = [measure(device, case, repetitions=2) for case in cases_from(["fp16", "int8"], [(1, 64, 32)])]
    rows = list(csv.DictReader(io.StringIO(as_csv(results))))
    assert [row["type"] for row in rows] == ["fp16", "int8"]
    assert {row["timed_on"] for row in rows} == {"CPU simulation"}
    assert float(rows[0]["modelled run on the chip [us]"]) > 30  # the fixed cost of a run alone is 33 us
    content = json.loads(as_json(results, describe_machine(device)))
    assert content["machine"]["timed_on"] == "CPU simulation of rk3588"
    assert {"runtime", "driver", "npumatmul", "cpu", "kernel"} <= set(content["machine"])
    assert len(content["cases"][0]["seconds"]["run"]) == 2
    assert roofline(results, "rk3588").startswith(b"\x89PNG")


def test_command(tmp_path: Path) -> None:
    saved = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "bench", "matmul", "--types", "int8", "--shapes", "64,32;100,32",
         "--rows", "1,4", "--repetitions", "2", "--device", "sim", "--json", str(saved)],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "timed on: CPU simulation" in done.stdout
    assert "modelled run" in done.stdout
    assert "left out int8 1x100x32 native: K = 100" in done.stderr
    assert [(case["M"], case["K"]) for case in json.loads(saved.read_text())["cases"]] == [(1, 64), (4, 64)]


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
