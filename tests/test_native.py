"""The C tests, compiled here and run plainly and under the sanitizers."""

from __future__ import annotations

from pathlib import Path

import pytest
from compiling import NATIVE, build_simulators, compile_c, run

TESTS = NATIVE / "tests"
SIMULATOR = sorted((NATIVE / "simulator").glob("*.c"))
KERNELS = sorted((NATIVE / "kernels").glob("*.c"))

PROGRAMS = {
    "test_kernels": [TESTS / "test_kernels.c", *KERNELS],
    "test_products": [TESTS / "test_products.c", *(NATIVE / "simulator").glob("products_*.c")],
    **{
        name: [TESTS / f"{name}.c", *SIMULATOR]
        for name in ("test_simulator", "test_chips", "test_quant", "test_dynamic", "test_strict", "test_control")
    },
}
SANITIZERS = {
    "plain": ["-O2"],
    "address+undefined": ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O1", "-g", "-fsanitize=thread"],
}
FOLDERS = [f"-I{NATIVE / 'kernels'}", f"-I{NATIVE / 'simulator'}", "-ffp-contract=off"]


@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_c_program(program: str, sanitizer: str, tmp_path: Path) -> None:
    built = compile_c(tmp_path / program, PROGRAMS[program], *FOLDERS, *SANITIZERS[sanitizer])
    output = run(built)
    assert " passed, 0 failed" in output
    assert not output.startswith("0 passed")


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
