"""What a product costs in Python once its like was computed: calls of functions, and instructions that do not grow."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import npumatmul as npu
from npumatmul.device import arenas
from npumatmul.host.arrays import address_of
from npumatmul.llm.npu import NpuLinear

RNG = np.random.default_rng(2)
X = RNG.standard_normal((1, 64)).astype(np.float32)
W = RNG.standard_normal((64, 64)).astype(np.float32)
BIAS = RNG.standard_normal(64).astype(np.float32)
OTHER = RNG.standard_normal((1, 64)).astype(np.float32)
OUT = np.zeros((1, 64), np.float32)
LAYER = npu.Epilogue(scale=2, bias=BIAS, activation="gelu", multiply=OTHER, residual=OTHER, clip=(-1, 1))

Work = Callable[[npu.PackedWeight], Any]


@pytest.fixture
def packed() -> Iterator[npu.PackedWeight]:
    with npu.Device("sim:rk3588") as device, npu.pack(W, "w8a8", device=device) as weight:
        yield weight


def calls_of(work: Callable[[], object]) -> int:
    """Calls of functions written in Python, after a few that may prepare something."""
    for _ in range(3):
        work()
    calls = -isinstance(work, FunctionType)  # that of a lambda is not the product's

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def instructions_of(work: Callable[[], object]) -> int:
    """Instructions of Python, which a loop without calls has too."""
    for _ in range(3):
        work()
    instructions = 0

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal instructions
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        instructions += event == "opcode"
        return trace

    before = sys.gettrace()
    gc.collect()  # what others left ends now, not meanwhile
    gc.disable()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
        gc.enable()
    return instructions


def executing(**options: Any) -> Callable[[npu.PackedWeight], Callable[[], object]]:
    return lambda packed: npu.Matmul(X, packed, **options).execute


#: By what is done: the most calls, and how it is made ready.
BUDGETS: dict[str, tuple[int, Callable[[npu.PackedWeight], Callable[[], object]]]] = {
    "matmul": (15, lambda packed: lambda: npu.matmul(X, packed)),
    "matmul on the CPU": (15, lambda packed: partial(npu.matmul, X, packed.on("cpu"))),
    "@": (15, lambda packed: lambda: X @ packed),
    "Matmul.execute": (15, executing()),
    "Matmul.execute of plain operands": (15, lambda p: npu.Matmul(X, W, scheme="w8a8", device=p.device).execute),
    "a vector": (15, lambda packed: lambda: X[0] @ packed),
    "a stack": (15, lambda packed: lambda: X[np.newaxis] @ packed),
    "bias": (20, lambda packed: lambda: npu.matmul(X, packed, bias=BIAS)),
    "epilogue": (20, lambda packed: lambda: npu.matmul(X, packed, epilogue=LAYER)),
    "linear": (20, lambda packed: lambda: npu.linear(X, packed, BIAS, "silu")),
    "Matmul.execute with an epilogue": (20, executing(epilogue=LAYER)),
    "float16": (20, lambda packed: lambda: npu.matmul(X.astype(np.float16), packed)),
    "bfloat16": (20, lambda packed: lambda: npu.matmul(X.astype(ml_dtypes.bfloat16), packed)),
    "to float16": (20, lambda packed: lambda: npu.matmul(X, packed, dtype=np.float16)),
    "out": (20, lambda packed: lambda: npu.matmul(X, packed, out=OUT)),
    "out in a tuple": (20, lambda packed: lambda: npu.matmul(X, packed, out=(OUT,))),
    "NpuLinear": (17, lambda packed: partial(NpuLinear(packed), X)),
}


@pytest.mark.parametrize("what", BUDGETS)
def test_a_product_whose_like_was_computed_takes_few_calls(packed: npu.PackedWeight, what: str) -> None:
    most, make = BUDGETS[what]
    assert calls_of(make(packed)) <= most


@pytest.mark.parametrize("what", [what for what, (_, make) in BUDGETS.items() if not what.startswith("Matmul.execute")])
def test_products_with_weights_in_turns_take_few_calls(what: str) -> None:
    """As layers of a model do: each finds the contexts and buffers as another left them."""
    most, make = BUDGETS[what]
    with npu.Device("sim:rk3588") as device:
        works = [make(npu.pack(W * sign, "w8a8", device=device)) for sign in (1, -1)]

        def in_turns() -> None:
            for work in works:
                work()

        # a lease, and to look whether what it is of is idle
        assert calls_of(in_turns) <= 2 * (most + 4)


def test_counting_finds_calls_and_loops() -> None:
    def called() -> None:
        pass

    def work() -> None:
        for _ in range(10):
            called()

    assert calls_of(work) == 10
    assert calls_of(partial(work)) == 11
    assert instructions_of(lambda: sum(range(9))) < instructions_of(work)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0),
        np.arange(12.0)[3:9:2],
        np.arange(12.0).reshape(3, 4)[::-1, ::-2],
        np.frombuffer(b"read only", np.uint8),
        np.zeros((2, 3), ml_dtypes.bfloat16).T,
        np.zeros((0, 3), np.float16),
        np.array(1, np.int8),
        np.ma.masked_array([1, 2], [True, False]),
        np.broadcast_to(np.float32(1), (4, 4)),
    ],
    ids=lambda array: f"{type(array).__name__} {array.dtype} {array.shape}",
)
def test_addresses_are_those_that_numpy_gives(array: np.ndarray) -> None:
    assert address_of(array) == array.ctypes.data


def many_arenas(device: npu.Device) -> list[Any]:
    weight = np.ones((2048, 2048), np.int8)
    packed = [npu.pack(weight, device=device) for _ in range(16)]
    assert len(device.weights.arenas) >= 16
    return packed


def many_contexts(device: npu.Device) -> list[Any]:
    weight = npu.pack(np.ones((64, 32), np.int8), device=device)
    held: list[Any] = [weight]
    for k in range(96, 32 * 24, 32):
        other = npu.pack(np.ones((k, 32), np.int8), device=device)
        np.ones((1, k), np.int8) @ other
        held.append(other)
    assert device.stats().contexts > 20
    return held


def many_shapes(device: npu.Device) -> list[Any]:
    """Of one weight, and arrays, results that nobody read, and buffers."""
    weight = npu.pack(W, "w8a8", device=device)
    held: list[Any] = [weight, device.buffer(64)]
    for m in range(1, 40):
        held.append(npu.asarray(np.ones((m, 64), np.float32), device=device))
        held.append(held[-1] @ weight)
        np.ones((m, 64), np.float32) @ weight
    return held


@pytest.mark.parametrize("hold", [many_arenas, many_contexts, many_shapes], ids=["arenas", "contexts", "shapes"])
def test_a_product_does_not_take_longer_for_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch, packed: npu.PackedWeight, hold: Callable[[npu.Device], list[Any]]
) -> None:
    """Neither arenas, nor contexts, weights, arrays or other shapes are looked at."""
    monkeypatch.setattr(arenas, "LARGEST_ARENA", arenas.SMALLEST_ARENA)
    product = npu.Matmul(X, packed)
    works: list[Callable[[], object]] = [lambda: npu.matmul(X, packed), product.execute]
    before = [(calls_of(work), instructions_of(work)) for work in works]
    held = hold(packed.device)
    assert [(calls_of(work), instructions_of(work)) for work in works] == before
    del held
