"""The C test programs: which there are, what each is made of, building and running them.

    python3 tools/c_tests.py plain address thread valgrind     every program, in these ways

A program is a ``native/tests/test_*.c``. Its further sources are those that the compile line in its first comment names
(``simulator/products_*.c``), or all of the simulator's where it includes ``check.h``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
}
#: Longest time of one program, in seconds: valgrind takes about thirty times as long as the machine.
TIMEOUT = 900


def programs() -> dict[str, list[Path]]:
    """The sources of every test program, by its name."""
    return {file.stem: [file, *_further_sources(file)] for file in sorted((NATIVE / "tests").glob("test_*.c"))}


def _further_sources(file: Path) -> list[Path]:
    text = file.read_text()
    comment = text.partition("*/")[0]
    patterns = re.findall(r"(?:native/)?((?:kernels|simulator|executor)/\S*\.c)\b", comment)
    if not patterns and '#include "check.h"' in text:
        patterns = ["simulator/[a-z]*.c"]
    found = [source for pattern in patterns for source in sorted(NATIVE.glob(pattern))]
    if not found:
        raise ValueError(f"{file}: its first comment must have the line that compiles it, with the sources it needs")
    return found


def compile_program(output: Path, sources: Sequence[Path], *flags: str, compiler: str = "") -> None:
    """Compile and link; raises where the compiler complains."""
    command = [compiler or default_compiler(), *FLAGS, *flags, "-o", str(output), *map(str, sources), *LIBRARIES]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")


def default_compiler() -> str:
    """The C compiler of this machine."""
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise RuntimeError("the checks need a C compiler")
    return found


def check(name: str, sources: Sequence[Path], way: str, folder: Path, runner: Sequence[str] = ()) -> str:
    """Compile and run one program; what went wrong, or an empty string."""
    flags, under = WAYS[way]
    program = folder / f"{name}-{way}"
    started = time.monotonic()
    try:
        compile_program(program, sources, *flags)
        done = subprocess.run([*under, *runner, str(program)], capture_output=True, text=True, timeout=TIMEOUT)
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"{name}, {way}: {error}"
    line = (done.stdout.strip().splitlines() or ["it printed nothing"])[-1]
    print(f"{way:9} {time.monotonic() - started:6.1f} s  {line}", flush=True)
    if done.returncode != 0 or not re.search(r"\b[1-9]\d* passed, 0 failed", line):
        return f"{name}, {way}: ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return ""


def main() -> None:
    """Check every program in the ways that are named."""
    parser = argparse.ArgumentParser(description="Compile and run the C tests.")
    parser.add_argument("ways", nargs="+", choices=WAYS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if "valgrind" in options.ways:
        packages.ensure("checking with valgrind", {"valgrind": "valgrind"})
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        results = [
            pool.submit(check, name, sources, way, Path(folder))
            for way in options.ways
            for name, sources in programs().items()
        ]
        problems = [problem for problem in (result.result() for result in results) if problem]
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(programs())} programs passed in {len(options.ways)} ways")


if __name__ == "__main__":
    main()
