"""Compile C programs and libraries inside the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

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


def run(program: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, env={**os.environ, **environment}, timeout=300
    )
    assert done.returncode == 0, f"{program.name} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
