"""Chains of products of NpuArrays beside the same of ndarrays: one pass between two products instead of two."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import Beside

import npumatmul as npu


@pytest.mark.parametrize("scheme", ["w8a8", "w16a16"])
@pytest.mark.parametrize("rows", [1, 64, 512])
@pytest.mark.parametrize("widths", [(1024, 1024, 1024, 1024), (64, 4096, 64, 4096)], ids=["square", "narrow and wide"])
def test_chain_of_three(beside: Beside, scheme: str, rows: int, widths: tuple[int, ...]) -> None:
    """The last result is read as an ndarray in both cases. Narrow products leave most of the time to the passes."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, widths[0])).astype(np.float32)
    packed = [npu.pack(rng.standard_normal((k, n)).astype(np.float32), scheme) for k, n in itertools.pairwise(widths)]
    x = npu.asarray(a)

    def chain(start: object) -> object:
        for weight in packed:
            start = npu.matmul(start, weight)
        return start

    what = f"{rows} rows through {'-'.join(map(str, widths))}, {scheme}, NpuArrays"
    beside(what, lambda: np.asarray(chain(x)), "ndarrays", lambda: chain(a))
    for weight in packed:
        weight.close()
