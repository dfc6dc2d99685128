"""What a call costs beyond its product: the smallest one, beside numpy's smallest one."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import Beside

import npumatmul as npu


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_smallest_product(beside: Beside, scheme: str) -> None:
    """One row by one tile: Python, packing, binding and storing are nearly all of it."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((1, 32)).astype(np.float32), rng.standard_normal((32, 32)).astype(np.float32)
    out = np.empty((1, 32), np.float32)
    with npu.pack(b, scheme) as packed:
        what = f"dispatch 1x32 @ 32x32, {scheme}"
        beside(what, lambda: npu.matmul(a, packed), "numpy float32 @", lambda: np.matmul(a, b, out=out))
