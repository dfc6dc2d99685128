"""The C tests and the fuzz target's corpus, compiled here; `make check-native` runs the tests in every way."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from compiling import NATIVE, ROOT, compile_c, run, shared_folder

sys.path.insert(0, str(ROOT / "tools"))

import c_tests
import fuzz

SIMULATOR = sorted((NATIVE / "simulator").glob("*.c"))
KERNELS = sorted((NATIVE / "kernels").glob("*.c"))
PROGRAMS = c_tests.programs()

#: ThreadSanitizer makes threads ten times as slow: here it watches the programs that have some of their own.
NAMES = {
    "plain": sorted(PROGRAMS),
    "address": sorted(PROGRAMS),
    "thread": [name for name, program in PROGRAMS.items() if "pthread_create" in program.file.read_text()],
    "emulated": c_tests.in_way("emulated"),
}


@pytest.fixture(scope="module")
def workshops(tmp_path_factory: pytest.TempPathFactory) -> dict[str, c_tests.Workshop]:
    folder = shared_folder(tmp_path_factory)
    return {way: c_tests.Workshop(folder / f"c-{way}", c_tests.WAYS[way][0]) for way in NAMES}


def test_every_program_is_found() -> None:
    assert set(PROGRAMS) == {file.stem for file in (NATIVE / "tests").glob("test_*.c")} >= {"test_kernels"}
    assert all(program.sources or program.needs_libraries for program in PROGRAMS.values())
    assert NAMES["thread"]


@pytest.mark.parametrize(("way", "name"), [(way, name) for way, names in NAMES.items() for name in names])
def test_c_program(name: str, way: str, workshops: dict[str, c_tests.Workshop]) -> None:
    c_tests.ensure_installed(way)
    assert c_tests.check(PROGRAMS[name], workshops[way], way) == ""


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ('int main(void) { puts("1 passed, 1 failed"); return 1; }', "ended with 1"),
        ('int main(void) { puts("0 passed, 0 failed"); return 0; }', "ended with 0"),
        (
            'int main(void) { int *p = malloc(40); p += rand(); *p = 1; puts("1 passed, 0 failed"); }',
            "runtime error",
        ),
        ("int main(void) { return unknown; }", "unknown"),
    ],
)
def test_a_program_that_fails_is_reported(text: str, reported: str, workshops: dict[str, c_tests.Workshop]) -> None:
    source = workshops["address"].folder / "failing.c"
    source.write_text(f"#include <stdio.h>\n#include <stdlib.h>\n{text}\n")
    assert reported in c_tests.check(c_tests.Program(source, (), False), workshops["address"], "address")


def test_the_corpus_of_the_fuzz_target(tmp_path: Path, workshops: dict[str, c_tests.Workshop]) -> None:
    """What fuzzing once reached is replayed; a finding would show up as a crash or a report of a sanitizer."""
    corpus = sorted(fuzz.CORPUS.glob("*"))
    assert len(corpus) > 100
    assert sum(file.stat().st_size for file in corpus) < fuzz.CORPUS_BYTES_MOST
    assert fuzz.replay(corpus, tmp_path, workshops["address"]).endswith(f"{len(corpus)} inputs replayed\n")


def test_the_built_libraries_work_without_python(tmp_path: Path) -> None:
    """A C program loads them as they are installed and multiplies through the executor, with every simulator."""
    from npumatmul.rknn.discovery import native_directory

    libraries = Path(native_directory())
    program = compile_c(tmp_path / "load_libraries", [NATIVE / "checks" / "load_libraries.c"], "-O2", "-ldl")
    simulators = sorted(map(str, libraries.glob("libnpumm_sim*.so")))
    assert len(simulators) > 1
    output = run(program, str(libraries / "libnpumm.so"), *simulators)
    assert output.endswith(f"load_libraries: {2 * len(simulators)} passed, 0 failed\n")


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


def test_chips_and_versions_are_listed_once_in_the_simulator() -> None:
    """No other file names several of them: what belongs to a chip or a version is in its row."""
    naming: dict[str, set[str]] = {"chips.c": set(), "runtimes.c": set()}
    for file in (NATIVE / "simulator").glob("*.[ch]"):
        code = re.sub(r"/\*.*?\*/", "", file.read_text(), flags=re.S)
        for place, name in (("chips.c", r'"rk\d+"'), ("runtimes.c", r'"\d\.\d\.\d(?:b\d)?"')):
            if len(set(re.findall(name, code))) > 1:
                naming[place].add(file.name)
    assert naming == {"chips.c": {"chips.c"}, "runtimes.c": {"runtimes.c"}}
