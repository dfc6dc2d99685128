"""Epilogues in the pass that stores a result, beside the same product and numpy's functions after it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import npumatmul as npu
from targets.lines import Turns, line


@line(
    "{0}x64 @ 64x4096 with {1}",
    "product, then numpy",
    least=1.0,
    over=[(rows, step) for step in ("bias", "bias, silu, multiply") for rows in (1, 256)],
)
def epilogue(rows: int, step: str) -> Iterator[Turns]:
    """A thin product, so that the steps after it are a large part."""
    rng = np.random.default_rng(0)
    k, n = 64, 4096
    a, b = rng.standard_normal((rows, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    bias, up = rng.standard_normal(n).astype(np.float32), rng.standard_normal((rows, n)).astype(np.float32)
    out = np.empty((rows, n), np.float32)
    swiglu = step != "bias"
    done_with = npu.Epilogue(bias=bias, activation="silu", multiply=up) if swiglu else npu.Epilogue(bias=bias)
    with npu.pack(b) as packed:

        def afterwards() -> np.ndarray:
            y = npu.matmul(a, packed, out)
            y += bias
            return y / (1 + np.exp(-y)) * up if swiglu else y

        yield Turns(lambda: npu.matmul(a, packed, out, epilogue=done_with), afterwards)
