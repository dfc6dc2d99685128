"""Products of the simulator, beside numpy's float32 ones: how long tests and demos wait, not how fast a chip is."""

from __future__ import annotations

import numpy as np
import pytest

import npumatmul as npu
from conftest import Beside

K = N = 2048


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
@pytest.mark.parametrize("rows", [1, 32, 256])
def test_simulated_product(beside: Beside, scheme: str, rows: int) -> None:
    """A linear layer, packed once."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((rows, K)).astype(np.float32), rng.standard_normal((K, N)).astype(np.float32)
    with npu.pack(b, scheme) as packed:
        what = f"simulated {rows}x{K} @ {K}x{N}, {scheme}"
        beside(what, lambda: npu.matmul(a, packed), "numpy float32 @, its threads", lambda: a @ b)
