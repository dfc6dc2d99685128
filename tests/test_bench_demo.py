"""`npumatmul bench demo`: the same lines as the C example, which prints those of the vendor's demo (facts 10.3)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiling import build_examples

import npumatmul as npu
from npumatmul import sim
from npumatmul.bench.demo import parse_demo, run_demo

NUMBER = re.compile(r"-?\d+\.\d\d")


@pytest.fixture(scope="module")
def static_example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = {**os.environ, **sim.environment()}
    return build_examples(tmp_path_factory.mktemp("project"), **environment) / "matmul_static"


def lines_of(device: npu.Device, arguments: list[str]) -> list[str]:
    lines: list[str] = []
    assert run_demo(device, parse_demo(arguments), lines.append)
    return lines


@pytest.mark.parametrize("soc", ["rk3588", "rk3576"])
@pytest.mark.parametrize("layouts", [("0", "0"), ("1", "1"), ("2", "0")])
def test_the_lines_are_those_of_the_c_example(static_example: Path, soc: str, layouts: tuple[str, str]) -> None:
    numbers = {"rk3588": (1, 2, 3, 4, 9, 10), "rk3576": (1, 2, 4, 5, 7, 8, 11)}[soc]
    with npu.Device(f"sim:{soc}") as device:
        for number in numbers:
            arguments = [str(number), "4,64,64", *layouts, "3", "1"]
            environment = {**os.environ, **sim.environment(soc)}
            done = subprocess.run(
                [static_example, *arguments], env=environment, capture_output=True, text=True, timeout=100
            )
            assert done.returncode == 0, done.stderr
            mine, theirs = lines_of(device, arguments), done.stdout.splitlines()
            assert len(mine) == len(theirs)
            start = theirs.index("matmul tensors:")
            for ours, reference in zip(mine[:start], theirs[:start], strict=True):  # times differ, nothing else does
                assert NUMBER.sub("#", ours) == NUMBER.sub("#", reference)
            for ours, reference in zip(mine[start:-1], theirs[start:-1], strict=True):  # the data are random
                assert len(ours.split()) == len(reference.split())
            assert mine[-1] == theirs[-1]


def test_the_tensors_that_are_shown_are_those_that_were_multiplied(device: npu.Device) -> None:
    lines = lines_of(device, ["2", "2,32,32"])
    rows = [[int(value) for value in line.split()] for line in lines if re.fullmatch(r"( *-?\d+ )+", line)]
    a, b, c = np.array(rows[:2]), np.array(rows[2:34]), np.array(rows[34:])
    assert (a @ b == c).all()


def test_a_wrong_result_is_said(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    get = npu.Buffer.get
    monkeypatch.setattr(npu.Buffer, "get", lambda self, attr: get(self, attr) + 1)
    lines: list[str] = []
    assert not run_demo(device, parse_demo(["2", "4,64,32", "0", "0", "1", "0", "0"]), lines.append)
    assert lines[-1].startswith("INT8_MM_INT8_TO_INT32 matmul result is wrong M x K x N is 4 x 64 x 32")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2"], "the arguments are: type M,K,N"),
        (["2", "4,64,32", *"1234567"], "the arguments are: type M,K,N"),
        (["13", "4,64,32"], "13 is no matmul type"),
        (["two", "4,64,32"], "type has to be a whole number, not 'two'"),
        (["2", "4,64"], "three positive numbers"),
        (["2", "4,0,32"], "three positive numbers"),
        (["2", "4,64,32", "3"], "B_layout is 3"),
        (["2", "4,64,32", "0", "2"], "AC_layout is 2"),
        (["2", "4,64,32", "0", "0", "0"], "loop has to be at least 1"),
        (["2", "4,64,32", "0", "0", "-1"], "loop is -1"),
    ],
)
def test_arguments_that_make_no_sense(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_demo(arguments)


def test_an_interrupt_leaves_the_average_of_the_runs_before_it(device: npu.Device) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if sum("Elapse" in each for each in lines) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(device, parse_demo(["2", "4,64,32", "1", "1", "1000"]), say=say)
    assert lines[-1].startswith("Average Time = ")


def test_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "bench", "demo", "2", "4,64,32", "1", "1", "2", "--device", "sim"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Elapse Time") == 2
    assert "a CPU that simulates rk3588" in done.stderr
