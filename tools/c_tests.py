"""The C test programs: which there are, what each is made of, building and running them.

    python3 tools/c_tests.py plain address thread valgrind     every program, in these ways
    python3 tools/c_tests.py emulated      those that compare instruction sets, AVX-512 and AMX emulated

A program is a ``native/tests/test_*.c``. The lines in its first comment that compile and run it say what it needs: its
further sources (``simulator/products_*.c``), and, where it is run with ``../build``, a folder with the libraries. One
that includes ``check.h`` and has no such lines needs all of the simulator's sources.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import packages

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
FLAGS = (
    "-std=c17",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffp-contract=off",
    *(f"-I{NATIVE / folder}" for folder in ("include", "kernels", "simulator")),
)
LIBRARIES = ("-lm", "-lpthread", "-ldl")

#: How a program is compiled, and what it is run under.
WAYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "plain": (("-O2",), ()),
    "address": (("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"), ()),
    "thread": (("-O1", "-g", "-fsanitize=thread"), ()),
    "valgrind": (("-O1", "-g"), ("valgrind", "--quiet", "--error-exitcode=99", "--leak-check=full")),
    "emulated": (
        (
            *("-Og", "-fwrapv", "-DSETS_ARE_EMULATED", "-mavx2", "-mfma", "-mf16c", "-mpclmul", "-Wno-psabi"),
            f"-I{NATIVE / 'tests' / 'emulated'}",
        ),
        (),
    ),
}
#: What is run in the way ``emulated``: what compares instruction sets. AVX-512 is computed by SIMDe, with AVX2, and AMX
#: in arrays, so that their loops are tested where no processor has them.
EMULATED = (
    *("test_attend", "test_checksum", "test_hadamard", "test_intrinsics", "test_kernels", "test_multiply", "test_pack"),
    *("test_products", "test_transpose"),
)
#: What the ways need beside a compiler, and the Debian packages that have it.
NEEDED = {
    "valgrind": {"valgrind": "valgrind"},
    "emulated": {"/usr/include/simde/x86/avx512.h": "libsimde-dev"},
}
#: Longest time of one program, in seconds: valgrind takes about thirty times as long as the machine.
TIMEOUT = 900


@dataclass(frozen=True)
class Program:
    """A test program: its file, its further sources, whether it is run with a folder of libraries, what it tells ld."""

    file: Path
    sources: tuple[Path, ...]
    needs_libraries: bool
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What it is called."""
        return self.file.stem


def programs() -> dict[str, Program]:
    """Every test program, by its name."""
    return {file.stem: _program(file) for file in sorted((NATIVE / "tests").glob("test_*.c"))}


def in_way(way: str) -> list[str]:
    """The names of the programs that are run in a way on this machine."""
    return sorted(programs()) if way != "emulated" else list(EMULATED) if can_emulate() else []


def can_emulate() -> bool:
    """Whether AVX-512 can be emulated here: where the processor has AVX2."""
    info = Path("/proc/cpuinfo")
    return info.exists() and {"avx2", "fma", "f16c", "pclmulqdq"} <= set(info.read_text().split())


def ensure_installed(way: str) -> None:
    """Install what a way needs, or end the program with a message that says what to install."""
    if in_way(way):
        packages.ensure(f"checking in the way {way}", NEEDED.get(way, {}))


def _program(file: Path) -> Program:
    text = file.read_text()
    comment = text.partition("*/")[0]
    patterns = re.findall(r"(?:native/)?((?:kernels|layers|program|simulator|executor|onnx)/\S*\.c)\b", comment)
    needs_libraries = f"./{file.stem} ../build" in comment
    if not patterns and not needs_libraries and '#include "check.h"' in text:
        patterns = ["simulator/[a-z]*.c"]
    sources = tuple(source for pattern in patterns for source in sorted(NATIVE.glob(pattern)))
    if not sources and not needs_libraries:
        raise ValueError(f"{file}: its first comment must have the line that compiles it, with the sources it needs")
    return Program(file, sources, needs_libraries, tuple(re.findall(r"-Wl,\S+", comment)))


def compile_program(output: Path, sources: Sequence[Path], *flags: str, compiler: str = "") -> None:
    """Compile and link; `RuntimeError` with what the compiler says where it complains."""
    _call([compiler or default_compiler(), *FLAGS, *flags, "-o", str(output), *map(str, sources), *LIBRARIES])


def _call(command: Sequence[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")


class Workshop:
    """Builds programs in a folder with one compiler and one set of flags; what they share is compiled once.

    Threads and processes may share the folder: who finds that another one is compiling a file goes on with the next.
    """

    def __init__(self, folder: Path, flags: Sequence[str], compiler: str = "") -> None:
        self.folder, self.flags, self.compiler = folder, tuple(flags), compiler or default_compiler()
        folder.mkdir(parents=True, exist_ok=True)

    def build(self, program: Program, *flags: str) -> Path:
        """Compile a program with further flags, and link it with what it shares with others."""
        output, shared = self.folder / program.name, self._compiled(program.sources)
        compile_program(output, [program.file, *shared], *self.flags, *program.flags, *flags, compiler=self.compiler)
        return output

    def _compiled(self, sources: Sequence[Path]) -> list[Path]:
        """The object files of sources, compiled by whoever comes first."""
        objects = {source: self.folder / source.parent.name / f"{source.stem}.o" for source in sources}
        for patient in (False, True):  # first those that nobody is at, then those of others
            for source, target in objects.items():
                if not target.exists():
                    with _locked(target.with_suffix(".lock"), wait=patient) as mine:
                        if mine and not target.exists():
                            self._compile(source, target)
        return list(objects.values())

    def _compile(self, source: Path, target: Path) -> None:
        passing = target.with_suffix(".new")  # what others see is complete
        _call([self.compiler, *FLAGS, *self.flags, "-c", str(source), "-o", str(passing)])
        passing.replace(target)

    def libraries(self) -> Path:
        """A folder with the simulator's libraries, built as CMakeLists.txt does: two files once per version."""
        place = self.folder / "libraries"
        with _locked(self.folder / "libraries.lock", wait=True):
            if not place.exists():
                self._build_libraries(self.folder / "libraries.new")
                (self.folder / "libraries.new").replace(place)
        return place

    def _build_libraries(self, place: Path) -> None:
        place.mkdir(exist_ok=True)
        flags = ("-O2", "-fPIC", "-fvisibility=hidden")
        simulator = NATIVE / "simulator"
        own = [simulator / "exports.c", simulator / "version.c"]
        core = sorted(file for file in simulator.glob("*.c") if file not in own)
        _call([self.compiler, *FLAGS, *flags, "-c", *map(str, core)], place)
        objects = [place / f"{source.stem}.o" for source in core]
        for version, number in {"": "", **_versions()}.items():
            library = place / (f"libnpumm_sim_{version}.so" if version else "libnpumm_sim.so")
            defines = [f"-DSIM_VERSION={number}", f'-DSIM_VERSION_NAME="{version}"'] if version else []
            soname = ["-Wl,-soname,librknnrt.so"] if version else []
            sources = [*own, *objects]
            compile_program(library, sources, "-shared", *flags, *defines, *soname, compiler=self.compiler)


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock between threads and processes; whether it was to be had, where it is not waited for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _versions() -> dict[str, str]:
    """The simulated versions of the runtime and their numbers, from CMakeLists.txt."""
    line = re.search(r"foreach\(version (.*?)\)", (ROOT / "CMakeLists.txt").read_text())
    assert line is not None, "CMakeLists.txt has no loop over the versions of the simulator"
    return dict(re.findall(r"(\S+)=(\d+)", line[1]))


def default_compiler() -> str:
    """The C compiler of this machine."""
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise RuntimeError("the checks need a C compiler")
    return found


def check(program: Program, workshop: Workshop, way: str, runner: Sequence[str] = ()) -> str:
    """Build and run one program; what went wrong, or an empty string."""
    started = time.monotonic()
    try:
        command = [*WAYS[way][1], *runner, str(workshop.build(program))]
        if program.needs_libraries:
            command.append(str(workshop.libraries()))
        # the tests set what they want of the simulator; what the caller's environment says must not decide
        clean = {name: value for name, value in os.environ.items() if not name.startswith("NPUMATMUL_")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=clean)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"{program.name}, {way}: {error}"
    line = (done.stdout.strip().splitlines() or ["it printed nothing"])[-1]
    print(f"{program.name:18} {way:10} {time.monotonic() - started:6.1f} s  {line}", flush=True)
    if done.returncode != 0 or not re.search(r"\b[1-9]\d* passed, 0 failed", line):
        return f"{program.name}, {way}: ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return ""


def main() -> None:
    """Check every program in the ways that are named."""
    parser = argparse.ArgumentParser(description="Compile and run the C tests.")
    parser.add_argument("ways", nargs="+", choices=WAYS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    for way in options.ways:
        ensure_installed(way)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        workshops = {way: Workshop(Path(folder) / way, WAYS[way][0]) for way in options.ways}
        results = [
            pool.submit(check, programs()[name], workshop, way)
            for way, workshop in workshops.items()
            for name in in_way(way)
        ]
        problems = [problem for problem in (result.result() for result in results) if problem]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(results)} programs passed in {len(options.ways)} ways")


if __name__ == "__main__":
    main()
