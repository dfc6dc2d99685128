"""What a call costs beyond its product: the smallest one, beside numpy's smallest one, and beside the executor's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

import npumatmul as npu
from conftest import Beside
from npumatmul.host.executor import Call, Executor, Report

#: So many calls are timed as one, for a clock that is read in a tenth of the time of one.
CALLS = 100


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_smallest_product(beside: Beside, scheme: str) -> None:
    """One row by one tile: Python, packing, binding and storing are nearly all of it."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((1, 32)).astype(np.float32), rng.standard_normal((32, 32)).astype(np.float32)
    out = np.empty((1, 32), np.float32)
    with npu.pack(b, scheme) as packed:
        what = f"dispatch 1x32 @ 32x32, {scheme}"
        beside(what, lambda: npu.matmul(a, packed), "numpy float32 @", lambda: np.matmul(a, b, out=out))


def bare_call(product: Callable[[], Any]) -> Callable[[], None]:
    """The call of the executor that a product makes, with its arguments ready: nothing of Python but ctypes."""
    made: list[tuple[Executor, Any, Call]] = []
    execute = Executor.execute

    def noted(self: Executor, placed: Any, call: Call, proven: bool = False) -> int:
        made.append((self, placed, Call.from_buffer_copy(call)))
        return execute(self, placed, call, proven)

    product()  # what there is to prepare
    with patch.object(Executor, "execute", noted):
        result = product()
    ((executor, placed, call),) = made
    function, address, report = executor._execute, executor._address, Report()

    def bare(keep: Any = result) -> None:  # the call refers to its memory
        for _ in range(CALLS):
            function(address, placed, call, report)

    return bare


@pytest.mark.parametrize("way", ["matmul", "@", "Matmul.execute", "linear", "out"])
def test_above_the_executor(beside: Beside, way: str) -> None:
    """By whichever way it goes, the time above the bare call is to be at most twice that of the call itself.

    A speed ratio of 0.33 says just that.
    """
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 64)).astype(np.float32), rng.standard_normal((64, 64)).astype(np.float32)
    bias, out = rng.standard_normal(64).astype(np.float32), np.empty((1, 64), np.float32)
    with npu.pack(w, "w8a8") as packed:
        execute = npu.Matmul(x, packed).execute
        ways: dict[str, Callable[[], Any]] = {
            "matmul": lambda: npu.matmul(x, packed),
            "@": lambda: x @ packed,
            "Matmul.execute": execute,
            "linear": lambda: npu.linear(x, packed, bias, "silu"),
            "out": lambda: npu.matmul(x, packed, out=out),
        }
        product = ways[way]

        def products() -> None:
            for _ in range(CALLS):
                product()

        beside(f"{CALLS} x 1x64 @ 64x64 by {way}, w8a8", products, "the executor's calls", bare_call(product))
