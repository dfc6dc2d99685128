"""Format and static analysis of the C code: clang-format and clang-tidy, installed where they are missing.

python3 tools/lint_c.py             check (make lint)
python3 tools/lint_c.py --format    format the files (make format)

`.clang-format` and `.clang-tidy` say what is asked for. What is right although clang-tidy cannot see it carries a
``NOLINT`` with the reason beside it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import c_tests
import packages

FOLDERS = (
    "native/include", "native/kernels", "native/layers", "native/program", "native/executor", "native/simulator",
    "native/onnx", "native/checks", "examples/c",
)  # fmt: skip
#: Tests and the fuzz target are formatted, and watched by sanitizers while they run; their tricks are not analysed.
ONLY_FORMATTED = ("native/tests", "native/tests/emulated", "native/fuzz", "tests")
#: What the files need that are compiled for one instruction set.
SETS = {"avx2": ("-mavx2", "-mfma", "-mf16c")}


def files(folders: tuple[str, ...], *suffixes: str) -> list[Path]:
    """The C files of folders."""
    found = (file for folder in folders for suffix in suffixes for file in (c_tests.ROOT / folder).glob(f"*{suffix}"))
    return sorted(file for file in found if "neon" not in file.name or suffixes != (".c",))


def analysed(file: Path) -> str:
    """What clang-tidy says of a file."""
    flags = [*c_tests.FLAGS, f"-I{c_tests.ROOT / 'native' / 'executor'}"]
    flags += [flag for name, needed in SETS.items() if name in file.name for flag in needed]
    done = subprocess.run(["clang-tidy", "--quiet", str(file), "--", *flags], capture_output=True, text=True)
    return done.stdout if done.stdout.strip() or done.returncode == 0 else done.stderr


def main() -> None:
    """Check or format; `SystemExit` with what is wrong."""
    parser = argparse.ArgumentParser(description="Format and analyse the C code.")
    parser.add_argument("--format", action="store_true", help="format the files instead of checking")
    options = parser.parse_args()
    packages.ensure("checking the C code", {"clang-format": "clang-format", "clang-tidy": "clang-tidy"})
    every = list(map(str, files(FOLDERS + ONLY_FORMATTED, ".c", ".h")))
    if options.format:
        subprocess.run(["clang-format", "-i", *every], check=True)
        return
    formatted = subprocess.run(["clang-format", "--dry-run", "--Werror", *every], capture_output=True, text=True)
    if formatted.returncode != 0:
        sys.exit(f"{formatted.stderr}\nmake format puts the format right")
    sources = files(FOLDERS, ".c")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        said = "".join(pool.map(analysed, sources))
    if said.strip():
        sys.exit(said)
    print(f"{len(every)} C files are formatted, and clang-tidy finds nothing in {len(sources)}")


if __name__ == "__main__":
    main()
