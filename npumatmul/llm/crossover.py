"""Up to how many rows the CPU is faster than the NPU with a weight, by timing both on the board."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from npumatmul.ops import PackedWeight, matmul
from npumatmul.running.where import DECODE_ROWS

__all__ = ["measured_crossover"]

_ROWS = (1, 2, 4, DECODE_ROWS)
_TIMES = 5


def measured_crossover(
    weight: PackedWeight, *, rows: Sequence[int] = _ROWS, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The largest of some numbers of rows up to which products by the CPU took less time than by the NPU.

    Parameters
    ----------
    weight : PackedWeight
        In NPU memory.
    rows : sequence of int
        Ascending.
    clock : callable
        Tells seconds.

    Returns
    -------
    int
        0 where the NPU was faster with the fewest rows already. Of each the shortest of several times counts, after one
        that makes what is kept.
    """
    found = 0
    for count in rows:
        x = np.ones((count, weight.shape[0]), np.float32)
        npu, cpu = (_shortest(weight.on(processor), x, clock) for processor in ("npu", "cpu"))
        if cpu >= npu:
            break
        found = count
    return found


def _shortest(weight: PackedWeight, x: np.ndarray, clock: Callable[[], float]) -> float:
    matmul(x, weight)
    times = []
    for _ in range(_TIMES):
        start = clock()
        matmul(x, weight)
        times.append(clock() - start)
    return min(times)
