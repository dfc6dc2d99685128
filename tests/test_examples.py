"""The C examples, built with nothing but a C compiler and -lrknnrt, on the simulator as their librknnrt.so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from compiling import ROOT, build_examples

from npumatmul import sim

EXAMPLES = ROOT / "examples" / "c"

#: Facts 3.2, written down again: which chip has which types.
TYPES = {
    "rk3588": (1, 2, 3, 4, 9, 10),
    "rk3576": (1, 2, 4, 5, 7, 8, 11),
    "rk3568": (1, 2),
    "rk3566": (1, 2),
    "rk3562": (1, 2),
}
ALL_TYPES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15)


def variables(soc: str = "rk3588", runtime: str = "2.3.2", **settings: str | bool) -> dict[str, str]:
    return {**os.environ, **sim.environment(soc, runtime, **settings)}


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_examples(tmp_path_factory.mktemp("project"), **variables())


def call(program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=100
    )


def layouts(soc: str) -> Iterator[tuple[int, int]]:
    """All layouts of B and of A and C; TP_NORM is not for RK3566 and RK3568 (facts 4.1)."""
    for b_layout in (0, 1) if soc in ("rk3566", "rk3568") else (0, 1, 2):
        for ac_layout in (0, 1):
            yield b_layout, ac_layout


@pytest.mark.parametrize("runtime", ["2.1.0", "2.3.0", "2.3.2"])
@pytest.mark.parametrize("soc", TYPES)
def test_every_type_and_layout(programs: Path, soc: str, runtime: str) -> None:
    environment = variables(soc, runtime, strict=True)
    for number in TYPES[soc]:
        for b_layout, ac_layout in layouts(soc):
            static = call(programs / "matmul_static", number, "4,128,64", b_layout, ac_layout, 2, 1, 0, **environment)
            assert static.returncode == 0, (number, b_layout, ac_layout, static.stdout, static.stderr)
            assert (
                f"is correct M x K x N is 4 x 128 x 64 AC_layout is {ac_layout} B_layout is {b_layout}" in static.stdout
            )
            shapes = "4,128,64#12,64,128#1,128,64" if b_layout == 2 else "4,128,64#12,128,64#1,128,64"
            dynamic = call(programs / "matmul_dynamic", number, shapes, b_layout, ac_layout, 2, 1, 0, **environment)
            assert dynamic.returncode == 0, (number, b_layout, ac_layout, dynamic.stdout, dynamic.stderr)
            assert dynamic.stdout.count(" matmul result is correct ") == 3


@pytest.mark.parametrize(("runtime", "numbers"), [("1.6.0", (1, 2)), ("2.0.0b0", (1, 2, 3, 4, 10))])
def test_older_runtimes_as_far_as_their_functions_go(programs: Path, runtime: str, numbers: tuple[int, ...]) -> None:
    for number in numbers:
        for ac_layout in (0, 1):
            done = call(
                programs / "matmul_static", number, "4,128,64", 0, ac_layout, 1, 0, 0, **variables("rk3588", runtime)
            )
            assert done.returncode == 0, (number, done.stdout, done.stderr)


@pytest.mark.parametrize("soc", TYPES)
def test_types_that_a_chip_lacks(programs: Path, soc: str) -> None:
    for number in set(ALL_TYPES) - set(TYPES[soc]):
        for program, shape in (("matmul_static", "4,128,64"), ("matmul_dynamic", "4,128,64#8,128,64")):
            done = call(programs / program, number, shape, 0, 0, 1, 0, 0, **variables(soc))
            assert done.returncode == 255
            assert "failed: -5" in done.stderr
            assert "result is" not in done.stdout


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("ac_layout", [0, 1])
@pytest.mark.parametrize(("soc", "k"), [("rk3588", 8192 + 64), ("rk3576", 4096 + 4096 + 32)])
def test_deep_k_in_segments(programs: Path, soc: str, k: int, ac_layout: int, number: int) -> None:
    """Only the library's helper knows how segments are stored (facts 4.4); the sums say whether it was right."""
    done = call(programs / "matmul_static", number, f"4,{k},32", 1, ac_layout, 1, 0, 0, **variables(soc))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_static_example_prints(programs: Path) -> None:
    """Facts 10.3, line by line."""
    done = call(programs / "matmul_static", 2, "4,64,32", 0, 0, 3, 1, 0, **variables())
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "MatMul matmul_type = RKNN_INT8_MM_INT8_TO_INT32, M = 4, K = 64, N = 32, B_layout = 0, AC_layout = 0, "
        "loop_count = 3, core_mask = 1, iommu_domain_id = 0"
    )
    assert lines[2:5] == [
        "  name=A, dims=(4, 64), size=256, type=INT8",
        "  name=B, dims=(64, 32), size=2048, type=INT8",
        "  name=C, dims=(4, 32), size=512, type=INT32",
    ]
    assert lines[5] == "Begin perf ..."
    for index, line in enumerate(lines[6:9]):
        assert re.fullmatch(rf"   {index}: Elapse Time = \d+\.\d\dms, FPS = \d+\.\d\d", line)
    assert re.fullmatch(r"Average Time = \d+\.\d\dms, Average FPS = \d+\.\d\d", lines[9])
    verdict = "INT8_MM_INT8_TO_INT32 matmul result is correct M x K x N is 4 x 64 x 32 AC_layout is 0 B_layout is 0"
    assert lines[10:] == [verdict]


def test_what_is_printed_of_the_tensors(programs: Path) -> None:
    done = call(programs / "matmul_static", 2, "2,32,32", 0, 0, **variables())
    before, _, tensors = done.stdout.partition("matmul tensors:\n")
    assert before.count("Elapse Time") == 10
    names = re.findall(r"^  (\w+):$", tensors, re.MULTILINE)
    assert names == ["A", "B", "C"]
    rows = [line.split() for line in tensors.splitlines() if not line.startswith("  ") or ":" not in line]
    a = [[int(value) for value in row] for row in rows[:2]]
    b = [[int(value) for value in row] for row in rows[2:34]]
    c = [[int(value) for value in row] for row in rows[34:36]]
    assert c == [[sum(x * y for x, y in zip(row, column, strict=True)) for column in zip(*b, strict=True)] for row in a]


def test_what_the_dynamic_example_prints(programs: Path) -> None:
    done = call(programs / "matmul_dynamic", 2, "4,64,32#8,64,32", 0, 0, 2, 0, 0, **variables())
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "MatMul matmul_type = RKNN_INT8_MM_INT8_TO_INT32, MKNs = 4,64,32#8,64,32, B_layout = 0, AC_layout = 0, "
        "loop_count = 2, core_mask = 0"
    )
    assert lines.count("  name=A, dims=(4, 64), size=256, type=INT8") == 2
    assert lines.count("  name=A, dims=(8, 64), size=512, type=INT8") == 2
    assert "Average" not in done.stdout
    assert [line for line in lines if "result is" in line] == [
        f"INT8_MM_INT8_TO_INT32 matmul result is correct M x K x N is {m} x 64 x 32 AC_layout is 0 B_layout is 0"
        for m in (4, 8)
    ]


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        ("matmul_static", [], "usage: "),
        ("matmul_static", ["2"], "usage: "),
        ("matmul_static", ["2", "4,64,32", "0", "0", "1", "0", "0", "0", "0"], "usage: "),
        ("matmul_static", ["13", "4,64,32"], "13 is no matmul type"),
        ("matmul_static", ["two", "4,64,32"], "type must be a whole number, not 'two'"),
        ("matmul_static", ["2", "4 64 32"], "three numbers"),
        ("matmul_static", ["2", "4,64"], "three numbers"),
        ("matmul_static", ["2", "4,64,32", "3"], "usage: "),
        ("matmul_static", ["2", "4,63,32"], "rknn_matmul_create failed: -5"),
        ("matmul_static", ["2", "4,64,32", "0", "0", "-1"], "loop must be"),
        ("matmul_dynamic", ["2", "4,64,32#"], "M,K,N between '#'"),
        ("matmul_dynamic", ["2", "4,64,32#8,96,32", "1"], "with B_layout 2 only"),
        ("matmul_dynamic", ["2", "4,64,32#8,63,32", "2"], "rknn_matmul_create_dynamic_shape failed: -5"),
    ],
)
def test_mistakes(programs: Path, program: str, arguments: list[str], message: str) -> None:
    done = call(programs / program, *arguments, **variables())
    assert done.returncode == 255
    assert message in done.stderr


def test_failures_of_calls_are_reported_and_nothing_is_kept(programs: Path) -> None:
    for call_name, function in (("set_io_mem", "rknn_matmul_set_io_mem"), ("run", "rknn_matmul_run")):
        environment = variables(faults=f"{call_name}:after=1:code=-1")
        done = call(programs / "matmul_static", 2, "4,64,32", 0, 0, 3, 0, 0, **environment)
        assert done.returncode == 255
        assert function in done.stderr
        assert "failed: -1" in done.stderr


def test_a_wrong_result_is_called_wrong(programs: Path) -> None:
    """Runtime 1.6.0 reads the other half of a byte first (facts 4.6), so int4 values of these programs are swapped."""
    done = call(programs / "matmul_static", 10, "4,128,64", 0, 0, 1, 0, 0, **variables(runtime="1.6.0"))
    assert done.returncode == 255
    assert " matmul result is wrong " in done.stdout


def test_they_are_cplusplus_as_well(tmp_path: Path) -> None:
    cplusplus = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if cplusplus is None:
        pytest.skip("no C++ compiler on this machine")
    sources = [str(EXAMPLES / f"{name}.c") for name in ("matmul_static", "matmul_example")]
    flags = ["-Wall", "-Wextra", "-Werror", "-O2", "-o", str(tmp_path / "static")]
    command = [cplusplus, *flags, "-x", "c++", *sources, "-x", "none", "-lrknnrt", "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, env=variables())
    assert done.returncode == 0, done.stderr
    assert call(tmp_path / "static", 2, "4,64,32", **variables()).returncode == 0


def test_they_know_nothing_of_npumatmul() -> None:
    for file in EXAMPLES.glob("*.[ch]"):
        text = file.read_text()
        assert "npumm" not in text
        assert set(re.findall(r'#include "(.*?)"', text)) <= {"matmul_example.h", "rknn_matmul_api.h"}
