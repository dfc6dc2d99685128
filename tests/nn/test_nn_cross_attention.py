"""Attention to another sequence, against torch; keys and values are made once."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import npumatmul as npu
from npumatmul import nn
from npumatmul.nn.product import FLOAT32


def made(
    hidden: int, heads: int, kv_size: int, bias: bool, **how: Any
) -> tuple[nn.CrossAttention, dict[str, np.ndarray]]:
    layer = nn.CrossAttention(hidden, heads, kv_size=kv_size, bias=bias, **how)
    rng = np.random.default_rng(hidden + kv_size)
    state = {n: rng.standard_normal(s).astype(np.float32) / 4 for n, s in layer.parameter_shapes().items()}
    layer.load_state_dict(state)
    return layer, state


def torchs(state: dict[str, np.ndarray], heads: int, x: np.ndarray, states: np.ndarray) -> np.ndarray:
    """What `torch.nn.functional` makes of it in float64."""
    w = {name: torch.from_numpy(value).double() for name, value in state.items()}

    def project(name: str, rows: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(rows, w[f"{name}_proj.weight"], w.get(f"{name}_proj.bias"))
        return y.unflatten(-1, (heads, -1)).transpose(-3, -2)

    a, b = torch.from_numpy(x).double(), torch.from_numpy(states).double()
    y = torch.nn.functional.scaled_dot_product_attention(project("q", a), project("k", b), project("v", b))
    y = y.transpose(-3, -2).flatten(-2)
    return torch.nn.functional.linear(y, w["o_proj.weight"], w.get("o_proj.bias")).numpy()


@given(
    heads=st.integers(1, 4),
    dim=st.integers(1, 9),
    kv_size=st.integers(1, 20),
    lengths=st.tuples(st.integers(1, 7), st.integers(1, 11)),
    batch=st.sampled_from([None, 1, 3]),
    bias=st.booleans(),
    scheme=st.sampled_from([FLOAT32, "w16a16"]),
)
def test_it_is_torchs(
    heads: int, dim: int, kv_size: int, lengths: tuple[int, int], batch: int | None, bias: bool, scheme: str
) -> None:
    layer, state = made(heads * dim, heads, kv_size, bias, scheme=scheme, device="sim:rk3588")
    lead = () if batch is None else (batch,)
    rng = np.random.default_rng(dim)
    x = rng.standard_normal((*lead, lengths[0], heads * dim)).astype(np.float32)
    states = rng.standard_normal((*lead, lengths[1], kv_size)).astype(np.float32)
    wanted = torchs(state, heads, x, states)
    y = layer(x, layer.keep(states))
    assert y.shape == x.shape
    error = float(np.abs(y - wanted).max())
    assert error <= (2e-5 if scheme == FLOAT32 else 2e-2) * max(1.0, float(np.abs(wanted).max()))
    each = np.concatenate([layer(x[..., i : i + 1, :], layer.keep(states)) for i in range(lengths[0])], axis=-2)
    np.testing.assert_allclose(each, y, rtol=1e-3, atol=1e-3)


def test_keys_and_values_are_one_product_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = made(32, 4, 32, True)
    states = np.random.default_rng(0).standard_normal((1, 20, 32)).astype(np.float32)
    calls: list[tuple[int, int]] = []
    multiply = nn.PackedProduct.__call__

    def counted(self: nn.PackedProduct, x: Any) -> Any:
        calls.append(self.shape)
        return multiply(self, x)

    monkeypatch.setattr(nn.PackedProduct, "__call__", counted)
    kept = layer.keep(states, np.float16)
    assert calls == [(32, 64)]
    assert kept.keys.shape == kept.values.shape == (1, 4, 20, 8)
    assert kept.nbytes == 2 * 20 * 32 * 2
    for _ in range(3):
        layer(states[:, :1], kept)
    assert calls[1:] == [(32, 32)] * 6


def test_several_may_attend_to_one_and_masks_hide() -> None:
    layer, _ = made(16, 2, 8, False, scheme=FLOAT32)
    rng = np.random.default_rng(1)
    x, states = rng.standard_normal((3, 4, 16)).astype(np.float32), rng.standard_normal((6, 8)).astype(np.float32)
    kept = layer.keep(states)
    y = layer(x, kept)
    for i in range(3):
        np.testing.assert_allclose(y[i], layer(x[i], kept), atol=1e-6)
    seen = np.arange(6) < 4
    np.testing.assert_allclose(layer(x, kept, mask=seen), layer(x, layer.keep(states[:4])), atol=1e-6)
    assert layer(x[:0], kept).shape == (0, 4, 16)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_types_and_npu_arrays(dtype: Any) -> None:
    device = npu.Device("sim:rk3588")
    layer, _ = made(16, 2, 8, True, device=device)
    rng = np.random.default_rng(2)
    x, states = rng.standard_normal((2, 4, 16)).astype(dtype), rng.standard_normal((2, 6, 8)).astype(dtype)
    y = layer(x, layer.keep(states))
    assert y.dtype == dtype
    other = layer(npu.asarray(x, device=device), layer.keep(npu.asarray(states, device=device)))
    assert isinstance(other, npu.NpuArray)
    np.testing.assert_array_equal(np.asarray(other), y)
    near = layer(x, layer.keep(states, np.float16)).astype(np.float32)
    np.testing.assert_allclose(near, y.astype(np.float32), atol=0.03)


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match="hidden_size 10 is no multiple of 4 heads"):
        nn.CrossAttention(10, 4)
    with pytest.raises(ValueError, match="4 heads cannot share 3 heads"):
        nn.CrossAttention(8, 4, 3)
    layer, _ = made(16, 2, 8, True, scheme=FLOAT32)
    with pytest.raises(ValueError, match=r"states have shape \(0, 8\)"):
        layer.keep(np.ones((0, 8), np.float32))
    with pytest.raises(ValueError, match=r"takes \(\.\.\., 8\); the input has shape \(3, 7\)"):
        layer.keep(np.ones((3, 7), np.float32))
    with pytest.raises(TypeError, match="int8"):
        layer.keep(np.ones((3, 8), np.float32), np.int8)
    with pytest.raises(ValueError, match="there are 2"):
        layer(np.ones((3, 1, 16), np.float32), layer.keep(np.ones((2, 3, 8), np.float32)))
