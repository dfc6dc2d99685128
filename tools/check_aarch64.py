"""Build for 64-bit ARM and run it here: C tests and libraries, under qemu's user-mode emulation.

    python3 tools/check_aarch64.py                    the C tests and the libraries, cross-built
    python3 tools/check_aarch64.py --wheel FILE       the libraries of a wheel

Programs run on an emulated Cortex-A76 (RK3588), which has dot product instructions; those about inner loops, and the
libraries, also on a Cortex-A53 (RK3562), which has none.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import c_tests
import packages

PREFIX = "aarch64-linux-gnu"
CORES = ("cortex-a76", "cortex-a53")
ON_ALL_CORES = ("test_kernels", "test_multiply", "test_pack", "test_products", "load_libraries")
NEEDED = {
    f"{PREFIX}-gcc": f"gcc-{PREFIX}",
    f"/usr/{PREFIX}/include/stdio.h": "libc6-dev-arm64-cross",
    "qemu-aarch64": "qemu-user",
    "cmake": "cmake",
}


def emulated(core: str) -> list[str]:
    """The command before a program that runs it on an emulated core."""
    return ["qemu-aarch64", "-cpu", core, "-L", f"/usr/{PREFIX}"]


def run(name: str, program: Path, *arguments: str) -> None:
    """Run a program on the cores that are for it; it has to end with a line of passed checks and no failed one."""
    for core in CORES if name in ON_ALL_CORES else CORES[:1]:
        started = time.monotonic()
        command = [*emulated(core), str(program), *arguments]
        # For programs that run themselves: without support in the kernel they cannot be started as they are.
        environment = {**os.environ, "EMULATOR": shlex.join(emulated(core))}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=c_tests.TIMEOUT)
        line = (done.stdout.strip().splitlines() or ["it printed nothing"])[-1]
        print(f"{name:18} {core} {time.monotonic() - started:6.1f} s  {line}", flush=True)
        if done.returncode != 0 or not re.search(r"\b[1-9]\d* passed, 0 failed", line):
            raise RuntimeError(f"{name} on {core}: ended with {done.returncode}\n{done.stdout}\n{done.stderr}")


def check_program(program: c_tests.Program, workshop: c_tests.Workshop, libraries: Path) -> None:
    """Cross-build and run one C test."""
    run(program.name, workshop.build(program), *([str(libraries)] if program.needs_libraries else []))


def build_libraries(folder: Path) -> list[Path]:
    """Cross-build the libraries as CMake builds them for the package."""
    toolchain = c_tests.ROOT / "cmake" / f"{PREFIX}.cmake"
    configure = ["cmake", "-S", str(c_tests.ROOT), "-B", str(folder), f"-DCMAKE_TOOLCHAIN_FILE={toolchain}"]
    for command in (
        [*configure, "-DNPUMATMUL_WERROR=ON"],
        ["cmake", "--build", str(folder), "--parallel", str(os.cpu_count() or 1)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
    return sorted(folder.glob("lib*.so"))


def libraries_of_wheel(wheel: Path, folder: Path) -> list[Path]:
    """The libraries that a wheel installs."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(folder, names)
    return sorted(folder / name for name in names)


def check_libraries(libraries: list[Path], folder: Path) -> None:
    """Load the libraries, and multiply through the executor with every simulator."""
    host = [file for file in libraries if file.name == "libnpumm.so"]
    simulators = [file for file in libraries if file.name.startswith("libnpumm_sim")]
    if len(host) != 1 or not simulators:
        raise RuntimeError(
            f"libnpumm.so and simulators are expected, not {', '.join(map(str, libraries)) or 'nothing'}"
        )
    program = folder / "load_libraries"
    sources = [c_tests.NATIVE / "checks" / "load_libraries.c"]
    c_tests.compile_program(program, sources, "-O2", compiler=f"{PREFIX}-gcc")
    run("load_libraries", program, str(host[0]), *map(str, simulators))


def check(wheel: Path | None = None) -> None:
    """Run the C tests with cross-built libraries, or what concerns those of a wheel; `SystemExit` on failure."""
    packages.ensure("checking for aarch64", NEEDED)
    try:
        with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            folder = Path(name)
            libraries = libraries_of_wheel(wheel, folder / "wheel") if wheel else build_libraries(folder / "build")
            workshop = c_tests.Workshop(folder / "tests", ["-O2"], f"{PREFIX}-gcc")
            tests = [
                pool.submit(check_program, program, workshop, libraries[0].parent)
                for program in c_tests.programs().values()
                if program.needs_libraries or not wheel  # the others are made of sources, not of what a wheel has
            ]
            check_libraries(libraries, folder)
            for test in tests:
                test.result()
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        sys.exit(str(error))
    print("aarch64: all passed")


def main() -> None:
    """Check what was asked for."""
    parser = argparse.ArgumentParser(description="Build for 64-bit ARM and run under qemu.")
    parser.add_argument("--wheel", type=Path, help="check the libraries of this wheel instead of building them")
    check(parser.parse_args().wheel)


if __name__ == "__main__":
    main()
