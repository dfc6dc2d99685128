"""`npumatmul bench demo` and `dynshape-demo`: the lines of the C examples, which print the vendor's (facts 10.3)."""

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
from npumatmul.bench.dynshape_demo import parse_dynshape_demo, run_dynshape_demo

NUMBER = re.compile(r"-?\d+\.\d\d")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    environment = {**os.environ, **sim.environment()}
    return build_examples(tmp_path_factory.mktemp("project"), **environment)


def lines_of(device: npu.Device, arguments: list[str]) -> list[str]:
    lines: list[str] = []
    assert run_demo(device, parse_demo(arguments), lines.append)
    return lines


def lines_of_example(program: Path, soc: str, arguments: list[str]) -> list[str]:
    done = subprocess.run(
        [program, *arguments], env={**os.environ, **sim.environment(soc)}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def compare(mine: list[str], theirs: list[str]) -> None:
    """Times differ and data are random, nothing else does."""
    assert len(mine) == len(theirs)
    in_tensors = False
    for ours, reference in zip(mine, theirs, strict=True):
        in_tensors = (in_tensors or ours == "matmul tensors:") and " matmul result is " not in ours
        if in_tensors and re.fullmatch(r"[-\d. ]+", ours):
            assert len(ours.split()) == len(reference.split())
        else:
            assert NUMBER.sub("#", ours) == NUMBER.sub("#", reference)


#: Matmul types that are tried, by chip.
NUMBERS = {"rk3588": (1, 2, 3, 4, 9, 10), "rk3576": (1, 2, 4, 5, 7, 8, 11)}


@pytest.mark.parametrize("soc", NUMBERS)
@pytest.mark.parametrize("layouts", [("0", "0"), ("1", "1"), ("2", "0")])
def test_the_lines_are_those_of_the_c_example(examples: Path, soc: str, layouts: tuple[str, str]) -> None:
    with npu.Device(f"sim:{soc}") as device:
        for number in NUMBERS[soc]:
            arguments = [str(number), "4,64,64", *layouts, "3", "1"]
            compare(lines_of(device, arguments), lines_of_example(examples / "matmul_static", soc, arguments))


@pytest.mark.parametrize("soc", NUMBERS)
@pytest.mark.parametrize("layouts", [("0", "0"), ("1", "1"), ("2", "0")])
def test_several_shapes_have_the_lines_of_the_c_example(examples: Path, soc: str, layouts: tuple[str, str]) -> None:
    shapes = "4,128,64#12,64,128#1,128,64" if layouts[0] == "2" else "4,128,64#12,128,64#1,128,64"
    with npu.Device(f"sim:{soc}") as device:
        for number in NUMBERS[soc]:
            arguments = [str(number), shapes, *layouts, "2", "1"]
            mine: list[str] = []
            assert run_dynshape_demo(device, parse_dynshape_demo(arguments), mine.append)
            compare(mine, lines_of_example(examples / "matmul_dynamic", soc, arguments))
            assert sum(" matmul result is correct " in line for line in mine) == 3


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["2"], "dynshape-demo: the arguments are: type M1,K1,N1#M2,K2,N2#... [B_layout]"),
        (["2", "4,64,32", *"123456"], "dynshape-demo: the arguments are"),
        (["13", "4,64,32"], "13 is no matmul type"),
        (["2", "4,64,32#"], "M,K,N has to be a whole number, not ''"),
        (["2", "4,64,32#8,96,32", "1"], "K and N may differ with B_layout 2 only"),
        (["2", "4,64,32#4,64,32"], "a shape is given twice"),
        (["2", "#".join(["4,64,32"] * 65)], "65 shapes; at most 64"),
        (["2", "4,64,32", "0", "0", "0"], "loop has to be at least 1"),
    ],
)
def test_arguments_of_several_shapes_that_make_no_sense(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_dynshape_demo(arguments)


def test_several_shapes_end_with_the_first_wrong_result(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    get = npu.Buffer.get
    monkeypatch.setattr(npu.Buffer, "get", lambda self, attr: get(self, attr) + 1)
    lines: list[str] = []
    request = parse_dynshape_demo(["2", "4,64,32#8,64,32", "0", "0", "1", "0", "0"])
    assert not run_dynshape_demo(device, request, lines.append)
    assert lines[-1].startswith("INT8_MM_INT8_TO_INT32 matmul result is wrong M x K x N is 4 x 64 x 32")


def test_an_interrupt_leaves_the_average_of_the_runs_before_it(device: npu.Device) -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if sum("Elapse" in each for each in lines) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(device, parse_demo(["2", "4,64,32", "1", "1", "1000"]), say=say)
    assert lines[-1].startswith("Average Time = ")


@pytest.mark.parametrize("name", ["demo", "dynshape-demo"])
def test_command(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "bench", name, "2", "4,64,32", "1", "1", "2", "--device", "sim"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Elapse Time") == 2
    assert "a CPU that simulates rk3588" in done.stderr
