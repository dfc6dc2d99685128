"""What a product of NpuArrays costs once it was made before: calls of Python functions, and allocations."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import sim

RNG = np.random.default_rng(3)
#: Python functions that one product may call, dropping the result of the one before included.
BUDGET = 25


@pytest.fixture(autouse=True)
def _here(fresh_device: npu.Device) -> Iterator[None]:
    with npu.use_device(fresh_device):
        yield


def calls_of(work: Callable[[], Any]) -> int:
    """Python functions that are called."""
    count = 0

    def see(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count - 1  # the work itself


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


#: Scheme of the weight, dtype of the operand, and options of the product.
WAYS: dict[str, tuple[str | None, Any, dict[str, Any]]] = {
    "quantized": ("w8a8", np.float32, {}),
    "quantized, with a bias": ("w8a8", np.float32, {"bias": floats(64)}),
    "float16 in place": (None, np.float16, {"dtype": np.float16}),
    "sums in place": (None, np.float16, {}),
}


@pytest.mark.parametrize("m", [1, 8, 512])
@pytest.mark.parametrize("way", WAYS)
def test_a_product_of_arrays_calls_few_functions(way: str, m: int) -> None:
    scheme, dtype, options = WAYS[way]
    w = floats(64, 64, dtype=np.float16 if scheme is None else np.float32)
    packed = npu.pack(w) if scheme is None else npu.pack(w, scheme)
    rows = npu.asarray(floats(m, 64, dtype=dtype))
    result = npu.matmul(rows, packed, **options)
    operands = {"array": rows}
    if result.dtype == rows.dtype:
        operands["result of a product"] = result
    for what, operand in operands.items():
        for _ in range(3):  # the memory of the result before serves again
            result = npu.matmul(operand, packed, **options)
        held = [result]

        def product(operand: npu.NpuArray = operand, held: list[npu.NpuArray] = held) -> None:
            held[0] = npu.matmul(operand, packed, **options)

        assert calls_of(product) <= BUDGET, what


@pytest.mark.parametrize("way", ["quantized", "sums in place"])
def test_the_operator_costs_two_calls_more_at_most(way: str) -> None:
    scheme, dtype, _ = WAYS[way]
    w = floats(64, 64, dtype=np.float16 if scheme is None else np.float32)
    packed = npu.pack(w) if scheme is None else npu.pack(w, scheme)
    x = npu.asarray(floats(1, 64, dtype=dtype))
    for _ in range(3):
        x @ packed
        npu.matmul(x, packed)
    assert calls_of(lambda: x @ packed) <= calls_of(lambda: npu.matmul(x, packed)) + 2


@pytest.mark.parametrize("m", [1, 64, 600])
def test_chains_allocate_nothing_once_they_were_run(fresh_device: npu.Device, tmp_path: Path, m: int) -> None:
    """Neither for results that stay in C, nor for those that are written in place, read, or bound in parts."""
    half = [npu.pack(floats(64, 64, dtype=np.float16)) for _ in range(2)]
    quantized = [npu.pack(floats(64, 64), "w8a8") for _ in range(2)]
    x, y = npu.asarray(floats(m, 64, dtype=np.float16)), npu.asarray(floats(m, 64))

    def chain() -> None:
        in_place = npu.matmul(npu.matmul(x, half[0], dtype=np.float16), half[1], dtype=np.float16)
        deferred = npu.matmul(npu.matmul(y, quantized[0]), quantized[1])
        in_place.numpy()
        deferred.numpy()

    chain()
    chain()
    with sim.trace(tmp_path / "trace.json", fresh_device):
        chain()
    events = json.loads((tmp_path / "trace.json").read_text())
    called = {event["name"] for event in events if event.get("cat") == "rknn"}
    assert called <= {
        "rknn_matmul_set_io_mem", "rknn_matmul_run", "rknn_mem_sync", "rknn_matmul_set_dynamic_shape",
    }  # fmt: skip


def test_what_a_product_costs_does_not_grow_with_results_that_live() -> None:
    packed = npu.pack(floats(64, 64), "w8a8")
    x = npu.asarray(floats(1, 64))
    held = [npu.matmul(x, packed) for _ in range(5)]
    few = calls_of(lambda: npu.matmul(x, packed))
    held += [npu.matmul(x, packed) for _ in range(100)]
    npu.matmul(x, packed)
    assert calls_of(lambda: npu.matmul(x, packed)) <= few + 2
    assert len(held) == 105
