"""The C tests, compiled here and run plainly and under the sanitizers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from compiling import NATIVE, build_simulators, compile_c, compile_objects, run

TESTS = NATIVE / "tests"
SIMULATOR = sorted((NATIVE / "simulator").glob("*.c"))
KERNELS = sorted((NATIVE / "kernels").glob("*.c"))

PROGRAMS = {
    "test_kernels": KERNELS,
    "test_products": [file for file in SIMULATOR if file.name.startswith("products_")],
}
SIMULATOR_PROGRAMS = (
    "test_simulator",
    "test_chips",
    "test_quant",
    "test_dynamic",
    "test_strict",
    "test_control",
    "test_random_calls",
)
SANITIZERS = {
    "plain": ["-O2"],
    "address+undefined": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}
FOLDERS = [f"-I{NATIVE / 'kernels'}", f"-I{NATIVE / 'simulator'}", "-ffp-contract=off"]


@pytest.fixture(scope="session")
def simulator(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """The simulator's object files, compiled once for each sanitizer."""

    @functools.cache
    def build(sanitizer: str) -> list[Path]:
        return compile_objects(tmp_path_factory.mktemp("simulator"), SIMULATOR, *FOLDERS, *SANITIZERS[sanitizer])

    return build


def check_program(name: str, sources: list[Path], sanitizer: str, folder: Path) -> None:
    built = compile_c(folder / name, [TESTS / f"{name}.c", *sources], *FOLDERS, *SANITIZERS[sanitizer])
    output = run(built)
    assert " passed, 0 failed" in output
    assert not output.startswith("0 passed")


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_c_program(program: str, sanitizer: str, tmp_path: Path) -> None:
    check_program(program, PROGRAMS[program], sanitizer, tmp_path)


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("program", SIMULATOR_PROGRAMS)
def test_simulator(program: str, sanitizer: str, simulator: Callable[[str], list[Path]], tmp_path: Path) -> None:
    check_program(program, simulator(sanitizer), sanitizer, tmp_path)


def test_libraries_of_all_versions(tmp_path: Path) -> None:
    built = compile_c(tmp_path / "test_versions", [TESTS / "test_versions.c"], "-O2", "-ldl")
    output = run(built, str(build_simulators(tmp_path)))
    assert " passed, 0 failed" in output


def test_every_c_file_is_clean_by_itself(tmp_path: Path) -> None:
    """Each file compiles without a warning, also with the conversions that -Wall leaves out."""
    files = [*KERNELS, *SIMULATOR, *(NATIVE / "executor").glob("*.c")]
    assert len(files) > 10
    compile_c(tmp_path / "all.so", list(files), "-shared", "-fPIC", "-O2", "-Wshadow", "-Wvla", "-ffp-contract=off")


def test_the_simulator_shares_no_code_with_the_kernels() -> None:
    """A layout bug must not cancel itself, so the two know nothing of each other."""
    for file in SIMULATOR:
        assert "kernels" not in file.read_text(), file
    for file in [*KERNELS, *(NATIVE / "executor").glob("*.c")]:
        assert "simulator" not in file.read_text().replace("the simulator", ""), file
