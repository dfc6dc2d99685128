"""Measure which lines of Python and C the tests run, and print both (make coverage).

    python tools/measure_coverage.py [options of pytest]      with the interpreter of the project's environment

The C libraries are built with counters beside the installed ones, and `instrumented` has the package load those; the C
tests are compiled with counters too. A line of C counts as run where any of these ran it. Programs that tests start use
the installed libraries, whose lines are not counted; their Python is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import c_tests
import packages

FOLDER = c_tests.ROOT / "build" / "coverage"
FLAGS = ("-O1", "--coverage", "-fprofile-update=atomic")
#: What is measured; tests are not.
MEASURED = ("kernels", "layers", "executor", "program", "simulator")


def build_libraries() -> Path:
    """Build the package's libraries with counters; the folder that stands for the package."""
    packages.ensure("measuring coverage", {"cmake": "cmake", "gcov": "gcc"})
    build, stage = FOLDER / "libraries", FOLDER / "stage"
    configure = (
        "cmake",
        "-S",
        c_tests.ROOT,
        "-B",
        build,
        "-DCMAKE_BUILD_TYPE=None",
        f"-DCMAKE_C_FLAGS={' '.join(FLAGS)}",
    )
    for command in (configure, ("cmake", "--build", build, "-j2"), ("cmake", "--install", build, "--prefix", stage)):
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return stage / "npumatmul"


def run_c_tests() -> None:
    """Run every C test with counters."""
    c_tests.WAYS["coverage"] = (FLAGS, ())
    workshop = c_tests.Workshop(FOLDER / "c_tests", FLAGS)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        problems = list(pool.map(lambda each: c_tests.check(each, workshop, "coverage"), c_tests.programs().values()))
    if any(problems):
        sys.exit("\n".join(filter(None, problems)))


def run_python_tests(stage: Path, arguments: list[str]) -> None:
    """Run the Python tests with counted lines and the counting libraries, in as many processes as there are cores."""
    environment = {**os.environ, "PYTHONPATH": str(c_tests.ROOT / "tools"), "INSTRUMENTED_PACKAGE": str(stage)}
    # what these compare are paths of the libraries, of this process and of one that has the installed ones
    other = ["tests/test_linking.py::test_the_command_prints_what_the_functions_return", "tests/test_sim.py::test_path"]
    arguments = [*arguments, *(f"--deselect={name}" for name in other)]
    options = ["-q", "-p", "instrumented", "-n", str(os.cpu_count() or 1), "--dist", "worksteal"]
    report = ["--cov=npumatmul", "--cov-report=term:skip-covered"]
    subprocess.run([sys.executable, "-m", "pytest", *options, *report, *arguments], cwd=c_tests.ROOT, env=environment)


def counted_lines() -> dict[Path, dict[int, int]]:
    """How often each line of C ran, over all builds."""
    counts: dict[Path, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for data in FOLDER.rglob("*.gcda"):
        command = ["gcov", "--json-format", "--stdout", str(data)]
        told = subprocess.run(command, cwd=data.parent, check=True, capture_output=True, text=True).stdout
        for file in json.loads(told)["files"]:
            path = (data.parent / file["file"]).resolve()
            if path.is_relative_to(c_tests.NATIVE) and path.relative_to(c_tests.NATIVE).parts[0] in MEASURED:
                for line in file["lines"]:
                    counts[path][line["line_number"]] += line["count"]
    return counts


def report(counts: dict[Path, dict[int, int]]) -> str:
    """A table: file, lines, percentage, the first lines that nothing ran."""
    lines = [f"{'C file':38} {'lines':>6} {'run':>7}  not run"]
    every = run = 0
    for path, of in sorted(counts.items()):
        missed = sorted(line for line, count in of.items() if count == 0)
        every, run = every + len(of), run + len(of) - len(missed)
        if missed:
            some = ", ".join(map(str, missed[:8])) + (", ..." if len(missed) > 8 else "")
            name = str(path.relative_to(c_tests.NATIVE))
            lines.append(f"{name:38} {len(of):6} {100 - 100 * len(missed) / len(of):6.1f}%  {some}")
    lines.append(f"{'all ' + str(len(counts)) + ' files':38} {every:6} {100 * run / max(every, 1):6.1f}%")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print both tables."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    stage = build_libraries()
    run_c_tests()
    run_python_tests(stage, sys.argv[1:])
    print(report(counted_lines()))


if __name__ == "__main__":
    main()
