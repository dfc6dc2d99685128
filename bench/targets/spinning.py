"""Products on the simulator while two threads of the program spin, beside the same products without them.

Fair shares of two CPUs would be a ratio of 0.67 for one core's thread and 0.6 for three; below one half the simulator
or the executor would be starved, or would starve the others by waiting. ``native/tests/test_waits.c`` tests
that whoever waits sleeps, after a number of spins that is bounded.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import npumatmul as npu
from targets.lines import Turns, UnavailableError, line


def spinners(folder: Path) -> ctypes.CDLL:
    """The threads, which hold no lock of Python's."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise UnavailableError("needs a C compiler")
    library, source = folder / "spinning.so", Path(__file__).parent.parent / "spinning.c"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-lpthread"], check=True)
    return ctypes.CDLL(str(library))


@line("64x2048 @ 2048x2048, {0} cores, 2 threads spin", "nobody spins", least=0.5, over=[(1,), (3,)])
def two_threads_spin(cores: int) -> Iterator[Turns]:
    """Ten products of some milliseconds each, so that starting the threads does not count."""
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((64, 2048), (2048, 2048)))
    with (
        tempfile.TemporaryDirectory() as folder,
        npu.Matmul(x, w, scheme="int8", options={"cores": cores}) as product,
    ):
        threads = spinners(Path(folder))

        def alone() -> None:
            for _ in range(10):
                product.execute()

        def beside_two() -> None:
            threads.spin_start(2)
            try:
                alone()
            finally:
                threads.spin_stop()

        yield Turns(beside_two, alone)
