"""Time of a row and NPU memory as M grows: ``python bench/rows_curve.py``, with ``--plot FILE`` as a picture.

One core of the simulator beside one thread of numpy float32, in turns, processor time, medians; so it says how the
simulator and the host's work scale, and nothing of how fast a chip is. NPU memory is what the product's buffers take
beside the weight. Where results are larger than the allocator keeps (32 MiB), the system's time for new pages is in it.
Start it with OPENBLAS_NUM_THREADS=1: processor time of numpy's other threads, which wait for each other, counts too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import npumatmul as npu

ROWS = tuple(4**i for i in range(9))  # 1 to 65536
K, N = 576, 1536


@dataclass(frozen=True)
class Point:
    """Of one M: seconds of the product and of numpy's, and bytes of NPU memory for A and C."""

    rows: int
    seconds: float
    numpy_seconds: float
    npu_bytes: int


def turns(works: Sequence[Callable[[], object]], least_seconds: float) -> list[float]:
    """Median processor time of each work, done in turns."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    end = time.perf_counter() + least_seconds
    while time.perf_counter() < end or len(times[0]) < 3:
        for work, own in zip(works, times, strict=True):
            start = time.process_time()
            work()
            own.append(time.process_time() - start)
    return [statistics.median(own) for own in times]


def measured(dtype: str, rows: int, seconds: float) -> Point:
    """One product with a new device, so that memory is its own."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 10, (rows, K)).astype(dtype), rng.integers(-9, 10, (K, N)).astype(dtype)
    wide_a, wide_b = a.astype(np.float32), b.astype(np.float32)
    with npu.Device("sim:rk3588") as device, npu.pack(b, device=device) as packed, npu.config(cores=(0,)):
        weight = device.stats().npu_bytes
        took, numpy_took = turns((lambda: npu.matmul(a, packed), lambda: wide_a @ wide_b), seconds)
        return Point(rows, took, numpy_took, device.stats().npu_bytes - weight)


def plot(curves: dict[str, list[Point]], path: Path) -> None:
    """Time of a row over M, and memory over M below it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for dtype, points in curves.items():
        rows = [point.rows for point in points]
        above.plot(rows, [point.seconds / point.rows * 1e6 for point in points], "o-", label=f"{dtype}, simulator")
        below.plot(rows, [point.npu_bytes / 1e6 for point in points], "o-", label=dtype)
    points = curves["int8"]
    above.plot(
        [point.rows for point in points], [point.numpy_seconds / point.rows * 1e6 for point in points], "s--",
        color="gray", label="numpy float32",
    )  # fmt: skip
    above.set(xscale="log", yscale="log", ylabel="us of one core per row", title=f"A[M, {K}] @ B[{K}, {N}], simulated")
    below.set(xscale="log", xlabel="M", ylabel="MB of NPU memory for A and C", ylim=(0, None))
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, and draw if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, help="a file for the picture")
    parser.add_argument("--most", type=int, default=ROWS[-1], help="largest M (%(default)s)")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long each M is timed (%(default)s)")
    asked = parser.parse_args()
    curves: dict[str, list[Point]] = {"int8": [], "float16": []}
    print("| type | M | us per row | numpy float32, us per row | NPU memory, MB |\n|---|---|---|---|---|")
    for dtype, points in curves.items():
        for rows in (each for each in ROWS if each <= asked.most):
            point = measured(dtype, rows, asked.seconds)
            points.append(point)
            per_row, numpy_per_row = point.seconds / rows * 1e6, point.numpy_seconds / rows * 1e6
            print(
                f"| {dtype} | {rows} | {per_row:.2f} | {numpy_per_row:.2f} | {point.npu_bytes / 1e6:.2f} |", flush=True
            )
    if asked.plot:
        plot(curves, asked.plot)


if __name__ == "__main__":
    main()
