"""Epilogues in the pass that stores a result, beside the same product and numpy's functions after it."""

from __future__ import annotations

import numpy as np
import pytest

import npumatmul as npu
from conftest import Beside


@pytest.mark.parametrize("step", ["bias", "bias, silu, multiply"])
@pytest.mark.parametrize("rows", [1, 256])
def test_epilogue(beside: Beside, step: str, rows: int) -> None:
    """A thin product, so that the steps after it are a large part."""
    rng = np.random.default_rng(0)
    k, n = 64, 4096
    a, b = rng.standard_normal((rows, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    bias, up = rng.standard_normal(n).astype(np.float32), rng.standard_normal((rows, n)).astype(np.float32)
    out = np.empty((rows, n), np.float32)
    swiglu = step != "bias"
    epilogue = npu.Epilogue(bias=bias, activation="silu", multiply=up) if swiglu else npu.Epilogue(bias=bias)
    with npu.pack(b) as packed:

        def afterwards() -> np.ndarray:
            y = npu.matmul(a, packed, out)
            y += bias
            return y / (1 + np.exp(-y)) * up if swiglu else y

        what = f"{rows}x{k} @ {k}x{n} with {step}"
        beside(what, lambda: npu.matmul(a, packed, out, epilogue=epilogue), "product, then numpy", afterwards)
