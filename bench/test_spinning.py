"""Products on the simulator while two threads of the program spin, beside the same products without them.

Fair shares of two CPUs would be a ratio of 0.67 for one core's thread and 0.6 for three; below one half the simulator
or the executor would be starved, or would starve the others by waiting. ``tests/test_native.py`` has a test that
whoever waits sleeps.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import npumatmul as npu
from conftest import Beside


@pytest.fixture(scope="module")
def spinners(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The threads, which hold no lock of Python's."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "this measurement needs a C compiler"
    library = tmp_path_factory.mktemp("spinning") / "spinning.so"
    source = Path(__file__).parent / "spinning.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-lpthread"], check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("cores", [1, 3])
def test_two_threads_spin(beside: Beside, spinners: ctypes.CDLL, cores: int) -> None:
    """Ten products of some milliseconds each, so that starting the threads does not count."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((64, 2048), (2048, 2048)))
    with npu.Matmul(x, w, scheme="int8", options={"cores": cores}) as product:

        def alone() -> None:
            for _ in range(10):
                product.execute()

        def beside_two() -> None:
            spinners.spin_start(2)
            try:
                alone()
            finally:
                spinners.spin_stop()

        beside(f"64x2048 @ 2048x2048, {cores} cores, 2 threads spin", beside_two, "nobody spins", alone)
