"""Norms against torch, within the bounds that they state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import npumatmul as npu
from npumatmul import nn

U, V = 2.0**-11, 2.0**-24


def rows(lead: list[int], dim: int, seed: int, dtype: Any) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((*lead, dim)) * 2.0 ** rng.integers(-6, 6)).astype(dtype)


SHAPES = {"lead": st.lists(st.integers(0, 4), max_size=3), "dim": st.integers(1, 300), "seed": st.integers(0, 99)}


@given(**SHAPES, half=st.booleans(), offset=st.sampled_from([0.0, 1.0]))
def test_rms_norm_is_torchs(lead: list[int], dim: int, seed: int, half: bool, offset: float) -> None:
    dtype = np.float16 if half else np.float32
    x, eps = rows(lead, dim, seed, dtype), 1e-5
    weight = np.random.default_rng(seed).standard_normal(dim).astype(np.float32)
    layer = nn.RMSNorm(dim, eps, offset=offset)
    layer.load_state_dict({"weight": weight})
    y = layer(x)
    # eps and weight as they are in float32, then in float64
    factor = torch.from_numpy(weight).double() + offset
    wanted = torch.nn.functional.rms_norm(torch.from_numpy(x).double(), (dim,), factor, float(np.float32(eps))).numpy()
    assert y.shape == x.shape
    assert y.dtype == dtype
    error = (dim / 2 + 6) * V * np.abs(wanted)
    error += V * np.abs(wanted) / np.maximum(np.abs(factor.numpy()), 1e-9) * (1 + np.abs(weight)) * bool(offset)
    assert (np.abs(y - wanted) <= error + (U * 1.01 * np.abs(wanted) + 2.0**-25 if half else 0)).all()


@given(**SHAPES, half=st.booleans(), bias=st.booleans())
def test_layer_norm_is_torchs(lead: list[int], dim: int, seed: int, half: bool, bias: bool) -> None:
    dtype = np.float16 if half else np.float32
    x, eps = rows(lead, dim, seed, dtype), 1e-5
    theirs = torch.nn.LayerNorm(dim, float(np.float32(eps)), bias=bias)
    torch.manual_seed(seed)
    for each in theirs.parameters():
        torch.nn.init.normal_(each)
    layer = nn.LayerNorm(dim, eps, bias)
    layer.load_state_dict(theirs.state_dict())
    y = layer(x)
    wanted = theirs.double()(torch.from_numpy(x).double()).detach().numpy()
    assert y.shape == x.shape
    assert y.dtype == dtype
    deviation = np.sqrt(x.astype(np.float64).var(axis=-1, keepdims=True) + eps)
    high = np.abs(x.astype(np.float64)).max(axis=-1, keepdims=True, initial=0)
    weight = np.abs(theirs.weight.detach().numpy())
    error = (dim + 8) * V * high / deviation * weight + V * np.abs(wanted)
    error += V * np.abs(theirs.bias.detach().numpy()) if bias else 0
    assert (np.abs(y - wanted) <= error + (U * 1.01 * np.abs(wanted) + 2.0**-25 if half else 0)).all()


@pytest.mark.parametrize("layer", [nn.RMSNorm(8), nn.LayerNorm(8)], ids=repr)
def test_what_is_given_stays_and_npu_arrays_give_npu_arrays(layer: Any) -> None:
    x = rows([2, 3], 8, 1, np.float32)
    before = x.copy()
    y = layer(x)
    np.testing.assert_array_equal(x, before)
    z = layer(npu.asarray(x, device="sim:rk3588"))
    assert isinstance(z, npu.NpuArray)
    np.testing.assert_array_equal(np.asarray(z), y)
    np.testing.assert_array_equal(layer(x.transpose(1, 0, 2)), y.transpose(1, 0, 2))
    np.testing.assert_array_equal(layer(x.astype(">f4")), y)


def test_new_gemma_norms_do_nothing_to_the_scale() -> None:
    x = rows([2], 8, 1, np.float32)
    np.testing.assert_array_equal(nn.RMSNorm(8, offset=1.0)(x), nn.RMSNorm(8)(x))


@pytest.mark.parametrize("layer", [nn.RMSNorm(8), nn.LayerNorm(8)], ids=repr)
def test_what_does_not_fit_is_explained(layer: Any) -> None:
    with pytest.raises(ValueError, match=r"takes \(\.\.\., 8\); the input has shape \(2, 7\)"):
        layer(np.ones((2, 7), np.float32))
    for dtype in (np.float64, np.int32):
        with pytest.raises(TypeError, match=f"the input is {np.dtype(dtype)}"):
            layer(np.ones((2, 8), dtype))
    with pytest.raises(ValueError, match="dim is -1"):
        type(layer)(-1)
    with pytest.raises(ValueError, match="eps is nan"):
        type(layer)(8, float("nan"))
