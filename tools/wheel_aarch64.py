"""Cross-build a wheel for 64-bit ARM into dist/, check its tags, and run its libraries under emulation.

It asks for the glibc of this machine, so it is for boards that are as new; cibuildwheel builds those for older ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import c_tests
import check_aarch64
import check_wheel
import packages


def build() -> Path:
    """Build the wheel and check its tags; with the interpreter of an environment that has pip."""
    packages.ensure("cross-building for aarch64", check_aarch64.NEEDED)
    dist = c_tests.ROOT / "dist"
    for old in dist.glob("*linux_aarch64.whl"):
        old.unlink()
    toolchain = c_tests.ROOT / "cmake" / f"{check_aarch64.PREFIX}.cmake"
    command = [
        *(sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"),
        f"--config-settings=cmake.define.CMAKE_TOOLCHAIN_FILE={toolchain}",
        "--config-settings=build-dir=build/wheel-aarch64",
        *("--wheel-dir", str(dist), str(c_tests.ROOT)),
    ]
    # What sysconfig says of the machine decides the wheel's tag.
    subprocess.run(command, check=True, env={**os.environ, "_PYTHON_HOST_PLATFORM": "linux-aarch64"})
    (wheel,) = dist.glob("*linux_aarch64.whl")
    problems = check_wheel.problems_of(wheel)
    if problems:
        sys.exit("\n".join(problems))
    return wheel


def main() -> None:
    """Build and check."""
    wheel = build()
    print(f"{wheel.name}: tags, libraries and their machine are right")
    check_aarch64.check(wheel)


if __name__ == "__main__":
    main()
