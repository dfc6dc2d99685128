"""Chains of products of NpuArrays beside the same of ndarrays: one pass between two products instead of two."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from conftest import Beside


@pytest.mark.parametrize("reference", ["ndarrays", "NpuArrays, each read"])
@pytest.mark.parametrize("scheme", ["w8a8", "w16a16"])
@pytest.mark.parametrize("rows", [1, 8, 64, 512])
@pytest.mark.parametrize(
    "widths", [(1024, 1024, 1024, 1024), (64, 4096, 64, 64)], ids=["square", "wide between narrow"]
)
def test_chain_of_three(beside: Beside, reference: str, scheme: str, rows: int, widths: tuple[int, ...]) -> None:
    """The last result is read in all cases. Narrow products leave most of the time to the passes over the wide result.

    A result that is read before it goes on is stored in NPU memory of its own and packed from there: two passes.
    """
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, widths[0])).astype(np.float32)
    packed = [npu.pack(rng.standard_normal((k, n)).astype(np.float32), scheme) for k, n in pairwise(widths)]
    x = npu.asarray(a)

    def chain(start: Any, between: Callable[[Any], object] = id) -> Any:
        for weight in packed:
            start = npu.matmul(start, weight)
            between(start)
        return start

    what = f"{rows} rows through {'-'.join(map(str, widths))}, {scheme}, NpuArrays"
    others = {"ndarrays": lambda: chain(a), "NpuArrays, each read": lambda: chain(x, np.asarray)}
    beside(what, lambda: np.asarray(chain(x)), reference, others[reference])
    for weight in packed:
        weight.close()
