"""The examples of models of other frameworks, run as their users run them, in a small size."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / program), *map(str, arguments)], capture_output=True, text=True,
        env={**os.environ, "NPUMATMUL_DEVICE": "sim:rk3588"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_text_of_a_model_of_transformers() -> None:
    printed = run("torch_offload/generate.py", "--small", "--scheme", "w16a16", "--tokens", 6, "--prompt", "hello")
    assert re.match(r"14 layers, \d+\.\d MB of weights in w16a16 on sim:rk3588\n", printed)
    before, after = re.findall(r"(?:as it was|offloaded): \[(.*)\]", printed)
    assert before == after
    assert len(before.split(",")) == len("hello") + 6
    worst = [float(each) for each in re.findall(r"([\d.]+) dB", printed)]
    assert len(worst) == 3
    assert worst == sorted(worst)
    assert worst[0] > 40


@pytest.mark.long
def test_a_pipeline_of_scikit_learn() -> None:
    printed = run("estimators/digits.py", "--small")
    score, half, eight = (float(each) for each in re.findall(r": ([\d.]+) %", printed))
    assert score == half > 85
    assert abs(eight - score) <= 2.1  # a row of fifty
    assert "standardscaler: no products, on cpu" in printed
    assert "pca: components_, 4 x 3 in w8a8, on sim:rk3588" in printed
    assert printed.endswith("saved and loaded: the same = True\n")
