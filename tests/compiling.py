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
    clean = {name: value for name, value in os.environ.items() if not name.startswith("NPUMATMUL_")}
    done = subprocess.run(
        [str(program), *arguments], capture_output=True, text=True, env={**clean, **environment}, timeout=300
    )
    assert done.returncode == 0, f"{program.name} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_examples(place: Path, **environment: str) -> Path:
    """Build examples/c in `place`, where nothing else of the project is but the header that they include."""
    source = ROOT / "examples" / "c"
    shutil.copytree(source, place / "examples" / "c", ignore=shutil.ignore_patterns("matmul_static", "matmul_dynamic"))
    (place / "native" / "include").mkdir(parents=True)
    shutil.copy(INCLUDE / "rknn_abi.h", place / "native" / "include")
    flags = " ".join((*WARNINGS, "-Wshadow", "-O2"))
    make = ["make", "-C", str(place / "examples" / "c"), f"CC={compiler()}", f"CFLAGS={flags}"]
    done = subprocess.run(make, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "examples" / "c"


# Version of the vendor's runtime and the number that exports.c knows it by; "" is libnpumm_sim.so.
SIMULATOR_VERSIONS = {"": 0, "1.5.2": 152, "1.6.0": 160, "2.0.0b0": 200, "2.1.0": 210, "2.3.0": 230, "2.3.2": 232}


def compile_objects(folder: Path, sources: list[Path], *flags: str) -> list[Path]:
    """Compile each source into an object file in `folder`."""
    command = [compiler(), *WARNINGS, f"-I{INCLUDE}", *flags, "-c", *map(str, sources)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return [folder / f"{source.stem}.o" for source in sources]


def build_simulators(folder: Path) -> Path:
    """Build the simulator's libraries as CMakeLists.txt does: all but exports.c once, exports.c once per version."""
    flags = ["-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off"]
    core = sorted(file for file in (NATIVE / "simulator").glob("*.c") if file.name != "exports.c")
    objects = compile_objects(folder, core, *flags)
    exports = NATIVE / "simulator" / "exports.c"
    for version, number in SIMULATOR_VERSIONS.items():
        name = f"libnpumm_sim_{version}.so" if version else "libnpumm_sim.so"
        defines = [f"-DSIM_VERSION={number}", f'-DSIM_VERSION_NAME="{version}"'] if version else []
        compile_c(folder / name, [exports, *objects], "-shared", *flags, *defines)
    return folder
