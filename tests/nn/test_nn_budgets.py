"""What layers cost in Python for one token: calls of functions, beyond those of the products themselves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import nn

RNG = np.random.default_rng(2)
PACKAGE, NUMPY = (f"{Path(module.__file__ or '').parent}/" for module in (npu, np))
X = RNG.standard_normal((1, 64)).astype(np.float32)


def calls_of(work: Callable[[], object], of_layers: bool = False) -> int:
    """Calls of functions written in Python, after a few that may prepare something; that of `work` is not counted.

    With `of_layers` those below `matmul` are not, either.
    """
    for _ in range(3):
        work()
    calls = -1

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal calls
        file = frame.f_code.co_filename
        below = of_layers and file.startswith(PACKAGE) and not file.startswith(f"{PACKAGE}nn/")
        below = below or file.startswith(NUMPY)  # some of numpy is written in Python, in each version other parts
        calls += event == "call" and not below

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def loaded(layer: Any) -> Any:
    state = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in layer.parameter_shapes().items()}
    layer.load_state_dict(state)
    return layer


def test_a_linear_layer_adds_little_to_its_product() -> None:
    for scheme in ("w16a16", "w8a8"):
        layer = loaded(nn.Linear(64, 64, scheme=scheme, device="sim:rk3588"))
        weight, bias = layer.product.weight, layer.bias
        above = calls_of(lambda: layer(X)) - calls_of(lambda: npu.matmul(X, weight, bias=bias))  # noqa: B023
        assert above <= 3
    assert calls_of(lambda: loaded_reference(X)) <= 3


loaded_reference = loaded(nn.Linear(64, 64, scheme="float32"))


@pytest.mark.parametrize(
    ("layer", "most"),
    [(nn.RMSNorm(64), 8), (nn.LayerNorm(64), 10), (loaded(nn.LinearGroup(64, {"a": 8, "b": 8}, scheme="float32")), 5)],
    ids=repr,
)
def test_layers_take_few_calls(layer: Any, most: int) -> None:
    assert calls_of(lambda: layer(X)) <= most


def test_rotation_and_attention_take_few_calls() -> None:
    q, k = RNG.standard_normal((2, 1, 4, 1, 16), np.float32)
    rope = nn.RoPE(16)
    assert calls_of(lambda: rope(q, 5)) <= 7
    assert calls_of(lambda: nn.scaled_dot_product_attention(q, k, k, mask="causal")) <= 13


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_attention_of_one_token_takes_few_calls(dtype: str) -> None:
    """Two products among them, which take one call each here."""
    rope = nn.RoPE(16)
    attention = loaded(nn.Attention(64, 4, 2, rope=rope, qk_norm="head", bias=True, scheme="float32"))
    cache = nn.KVCache(1, 2, 16, dtype=dtype)
    assert calls_of(lambda: attention(X, cache=cache)) <= 62


def test_attention_to_another_sequence_takes_few_calls() -> None:
    attention = loaded(nn.CrossAttention(64, 4, kv_size=32, bias=True, scheme="float32"))
    kept = attention.keep(RNG.standard_normal((1, 9, 32)).astype(np.float32))
    assert calls_of(lambda: attention(X, kept)) <= 24


def test_convolutions_take_few_calls() -> None:
    x = RNG.standard_normal((1, 8, 16)).astype(np.float32)
    for layer in (nn.Conv1d(8, 4, 3, padding=1, scheme="float32"), nn.ConvTranspose1d(8, 4, 3, scheme="float32")):
        assert calls_of(lambda: loaded(layer)(x)) - calls_of(lambda: loaded(layer)) <= 48  # noqa: B023


def test_a_block_of_one_token_takes_few_calls_beside_its_products() -> None:
    how: dict[str, Any] = {"scheme": "w8a8", "device": "sim:rk3588"}
    attention = nn.Attention(64, 4, 2, rope=nn.RoPE(16), qk_norm="head", **how)
    block = loaded(nn.TransformerBlock(attention, nn.MLP(64, 128, **how)))
    cache = nn.KVCache(1, 2, 16)
    assert calls_of(lambda: block(X, cache=cache), of_layers=True) <= 60


def test_programs_that_need_no_layers_do_not_load_them() -> None:
    code = "import npumatmul, sys; raise SystemExit(any(name.startswith('npumatmul.nn') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
