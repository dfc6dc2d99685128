"""Chains of products, for the tests of results that nobody has read yet."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch

import npumatmul as npu
from npumatmul import quant
from npumatmul.quant.params import QuantizedWeight, QuantParams
from npumatmul.quant.schemes import Scheme

BF16 = ml_dtypes.bfloat16


def floats(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) * 4).astype(dtype)


Layer = tuple[npu.PackedWeight, dict[str, Any]]


def chained(x: Any, layers: list[Layer], between: Callable[[int, Any], None] = lambda *_: None) -> Any:
    """Every layer's product of the one before; `between` sees each result."""
    for index, (weight, options) in enumerate(layers):
        x = npu.matmul(x, weight, **options)
        between(index, x)
    return x


def check(device: npu.Device, a: np.ndarray[Any, Any], layers: list[Layer]) -> npu.NpuArray:
    """Bit for bit what ndarrays give, with one pass per product and one when the last one is read."""
    expected = chained(a, layers)
    x = npu.asarray(a)
    before, passes = device.stats(), []
    result = chained(x, layers, lambda *_: passes.append(device.stats().conversions))
    assert [now - before.conversions for now in passes] == list(range(1, len(layers) + 1))
    assert result.shape == expected.shape
    assert result.dtype == expected.dtype
    np.testing.assert_array_equal(result.numpy(), expected)
    assert device.stats().conversions == passes[-1] + 1
    np.testing.assert_array_equal(np.asarray(result), expected)
    assert device.stats().conversions == passes[-1] + 1
    return result


KINDS = (
    "w16a16", "w16a16_high", "w8a8", "w8a8_layer", "w8a8_g128", "w8a8_wasym_aasym", "w4a8", "w4a8_g64", "w4a4",
    "w8a8_g96_agroup", "w4a8_g32_wasym_aasym_agroup", "float16", "bfloat16", "static", "static zero", "hadamard",
    "gelu", "clip",
)  # fmt: skip


def layer(kind: str, k: int, n: int, seed: int = 0) -> Layer:
    """A layer of a kind: a scheme, or what is particular about it."""
    w = floats(k, n, seed=seed) / 4 / np.sqrt(k).astype(np.float32)
    if kind == "float16":
        return npu.pack(w, "w8a8"), {"dtype": np.float16}
    if kind == "bfloat16":
        return npu.pack(w.astype(BF16)), {"dtype": BF16}
    if kind.startswith("static"):
        zero = -33 if kind == "static zero" else 0
        params = QuantParams(0.1, zero)
        scheme = Scheme(8, 8, activation_granularity="layer", activation_symmetric=not zero, activation_params=params)
        return npu.pack(w, scheme), {}
    if kind == "hadamard":
        turn = quant.Hadamard(k, seed=seed)
        rounded = quant.round_weight(turn.weight(w.T))
        return npu.pack(QuantizedWeight(rounded.codes, rounded.params, turn)), {}
    if kind == "gelu":
        return npu.pack(w, "w8a8"), {"epilogue": npu.Epilogue(bias=floats(n, seed=9), activation="gelu")}
    if kind == "clip":
        return npu.pack(w), {"epilogue": npu.Epilogue(scale=3, activation="silu", clip=(-1, 2), dtype=BF16)}
    return npu.pack(w, kind), {}


READERS: dict[str, Callable[[npu.NpuArray], Any]] = {
    "numpy": lambda x: x.numpy(),
    "asarray": np.asarray,
    "data": lambda x: np.asarray(x.data),
    "interface": lambda x: x.__array_interface__ and np.asarray(x),
    "dlpack": lambda x: np.from_dlpack(x),
    "torch": lambda x: torch.from_dlpack(x).numpy(),
    "pickle": lambda x: pickle.loads(pickle.dumps(x)).numpy(),
    "view": lambda x: x[2:5, ::2].numpy(),
    "transpose": lambda x: x.T.numpy(),
    "element": lambda x: np.asarray(x[1, 2]),
    "fancy": lambda x: x[[3, 1]],
    "ufunc": lambda x: x + 1,
    "function": lambda x: np.concatenate([x, x]),
    "tolist": lambda x: np.asarray(x.tolist(), np.float32),
    "str": lambda x: np.asarray(len(repr(x)) + len(str(x))),
    "astype": lambda x: x.astype(np.float16).numpy(),
    "copy": lambda x: x.copy().numpy(),
    "buffer": lambda x: np.array(x.buffer.array[: x.nbytes]),
    "right operand": lambda x: npu.matmul(np.ones((3, 37), np.float32), x).numpy(),
}
