"""The example of an ONNX session, run as its users run it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import onnx
from test_onnx import simple

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_session" / "run.py"


def run(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, "NPUMATMUL_DEVICE": "sim:rk3588"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_lengths_and_schemes_of_its_own_model() -> None:
    shown = run()
    assert re.findall(r"^  (\w+): (\w+),", shown, re.M) == [
        ("first", "Conv"), ("second", "Conv"), ("recurrent", "GRU"), ("wide", "MatMul"), ("last", "MatMul")
    ]  # fmt: skip
    lengths = re.findall(r"length (\d+): (\S+)", shown)
    assert [int(length) for length, _ in lengths] == [1, 7, 64, 200]
    assert all(float(error) < 5e-3 for _, error in lengths)
    found = {
        name: (int(size), float(error)) for name, size, error in re.findall(r"  (w.*): (\d+) KiB.* by (\S+)", shown)
    }
    assert list(found) == ["w8a8", "w8a8, calibrated", "w4a8", "w4a8, calibrated"]
    assert found["w4a8"][0] < found["w8a8"][0]
    assert found["w8a8"][1] < found["w4a8"][1]


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    onnx.save(simple(64, 40), tmp_path / "model.onnx")
    shown = run(tmp_path / "model.onnx", "--size", "m=9")
    assert "product: MatMul, 64 x 40" in shown
    assert "m 9: " in shown
