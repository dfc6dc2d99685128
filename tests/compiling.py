"""Compile C programs and libraries inside the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"
INCLUDE = NATIVE / "include"
WARNINGS = ("-std=c17", "-Wall", "-Wextra", "-Werror")


def compiler() -> str:
    found = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert found, "the tests need a C compiler"
    return found


def compile_c(output: Path, sources: list[Path | str], *flags: str) -> Path:
    command = [compiler(), *WARNINGS, f"-I{INCLUDE}", *flags, "-o", str(output), *map(str, sources), "-lm", "-lpthread"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return output


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, the same one in all of its processes."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def run(program: Path, *arguments: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NPUMATMUL_")}
    done = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, env={**clean, **environment}, timeout=300
    )
    assert done.returncode == 0, f"{program.name} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_examples(place: Path, **environment: str) -> Path:
    """Build examples/c in `place`, where nothing else of the project is."""
    folder = place / "examples"
    shutil.copytree(ROOT / "examples" / "c", folder, ignore=shutil.ignore_patterns("matmul_static", "matmul_dynamic"))
    flags = " ".join((*WARNINGS, "-Wshadow", "-O2"))
    make = ["make", "-C", str(folder), f"CC={compiler()}", f"CFLAGS={flags}"]
    done = subprocess.run(make, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder
