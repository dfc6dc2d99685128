"""Products of the simulator, beside numpy's float32 ones: how long tests and demos wait, not how fast a chip is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

import npumatmul as npu
from targets.lines import Turns, line

K = N = 2048


@line(
    "simulated {0}x2048 @ 2048x2048, {1}",
    "numpy float32 @, its threads",
    over=product((1, 32, 256), ("w16a16", "w8a8")),
)
def simulated_product(rows: int, scheme: str) -> Iterator[Turns]:
    """A linear layer, packed once."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((rows, K)).astype(np.float32), rng.standard_normal((K, N)).astype(np.float32)
    with npu.pack(b, scheme) as packed:
        yield Turns(lambda: npu.matmul(a, packed), lambda: a @ b)
