"""NPUMATMUL_LOG=bench: every product of a program is a command that measures it, and nothing else is in the log."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from npumatmul.bench import read_record
from npumatmul.cli.app import app
from npumatmul.running.logged import log_file
from npumatmul.running.runs import Runs

PROGRAM = """
import numpy as np
import npumatmul as npu

x, w = np.ones((5, 96), np.float32), np.ones((96, 64), np.float32)
half, whole = x.astype(np.float16), x.astype(np.int8)
with npu.Device("sim:rk3588") as device:
    packed = npu.pack(w, "w8a8", device=device)
    x @ packed
    npu.matmul(x[0], packed, out=np.empty(64, np.float32))
    npu.matmul(x, packed.on("cpu"))
    npu.Matmul(whole, w.astype(np.int8), device=device, options={"layout": "normal"}).execute()
    np.asarray(npu.asarray(x, device=device) @ packed)
    np.asarray(npu.asarray(half, device=device) @ npu.pack(w, "w16a16", device=device))
    npu.matmul_async(x, packed).result()
    deep = npu.pack(np.ones((1024, 1024), np.float32), "w4a8", device=device)
    np.ones((64, 1024), np.float32) @ deep
"""
#: What it multiplies, in its order.
SHAPES = ["5x96x64", "1x96x64", "5x96x64", "5x96x64", "5x96x64", "5x96x64", "5x96x64", "64x1024x1024"]
TYPES = ["w8a8", "w8a8", "w8a8", "int8", "w8a8", "w16a16", "w8a8", "w4a8"]


def run(program: str, log: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
        env={**os.environ, "NPUMATMUL_LOG": log},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    return done.stderr


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return run(PROGRAM, "bench").splitlines()


def test_every_product_is_a_line_and_nothing_else_is(lines: list[str]) -> None:
    words = [shlex.split(line, comments=True) for line in lines]
    assert {tuple(each[:3]) for each in words} == {("npumatmul", "bench", "matmul")}
    options = [dict(zip(each[3::2], each[4::2], strict=True)) for each in words]
    assert [each["--shapes"] for each in options] == SHAPES
    assert [each["--types"] for each in options] == TYPES
    assert [each["--layouts"] for each in options].count("normal") >= 1
    assert options[3]["--layouts"] == "normal"
    assert options[-1]["--cores"] == "3"
    assert ["CPU" in line for line in lines] == [index == 2 for index in range(len(lines))]


def test_a_line_measures_what_it_is_about(lines: list[str], tmp_path: Path) -> None:
    saved = tmp_path / "run.json"
    for line in lines[2:4]:
        words = shlex.split(line, comments=True)
        given = [*words[1:], "--device", "sim:rk3588", "--repetitions", "1", "--json", str(saved)]
        done = CliRunner().invoke(app, given, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        row = read_record(saved).rows[0]
        asked = dict(zip(words[3::2], words[4::2], strict=True))
        assert "x".join(str(row.case[name]) for name in "mkn") == asked["--shapes"]
        assert (row.case["type"], row.case["layout"]) == (asked["--types"], asked["--layouts"])
        assert str(row.case["cores"]) == asked["--cores"]


def test_a_file_gets_the_lines_behind_those_it_has(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "products.sh"
    path.write_text("# before\n")
    assert run(PROGRAM, f"bench:{path}") == ""
    assert path.read_text().splitlines() == ["# before", *lines]


def test_what_cannot_be_logged_is_warned_of(tmp_path: Path) -> None:
    said = run("import npumatmul", f"bench:{tmp_path}/none/x")
    assert "NPUMATMUL_LOG: nothing is logged" in said
    assert "No such file" in said
    for value in ("on", "bench:", "BENCH"):
        with pytest.warns(UserWarning, match=f"NPUMATMUL_LOG is '{value}', and nothing is logged"):
            assert log_file({"NPUMATMUL_LOG": value}) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert log_file({}) is None


def test_without_it_products_know_nothing_of_logs() -> None:
    assert not hasattr(Runs.run, "__wrapped__")
