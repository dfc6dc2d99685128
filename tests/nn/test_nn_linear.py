"""Linear layers, groups of them and embeddings, against torch and against each other."""

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

U, V = 2.0**-11, 2.0**-24  # half a unit of float16 and of float32


def bound(x: np.ndarray, w: np.ndarray, dtype: Any = np.float32) -> np.ndarray:
    """Of `matmul`, for two operands that are rounded to float16, with two more roundings for bias and result."""
    k = x.shape[-1]
    x, w = np.abs(x.astype(np.float64)), np.abs(w.astype(np.float64))
    each = ((1 + U) ** 2 * (1 + V) ** (k + 1) - 1) * (x @ w.T)
    tiny = 2.0**-21 * k * x.max(axis=-1, keepdims=True, initial=0) * w.max(axis=1, initial=0)
    return each + tiny + (U if dtype == np.float16 else 0) * 1.01 * (x @ w.T + 4) + 2 * V * (x @ w.T + 4)


@given(
    lead=st.lists(st.integers(0, 3), max_size=3),
    k=st.integers(1, 70),
    n=st.integers(1, 40),
    bias=st.booleans(),
    half=st.booleans(),
    scheme=st.sampled_from(["w16a16", FLOAT32]),
    seed=st.integers(0, 9),
)
def test_linear_is_torchs(lead: list[int], k: int, n: int, bias: bool, half: bool, scheme: str, seed: int) -> None:
    torch.manual_seed(seed)
    theirs = torch.nn.Linear(k, n, bias)
    ours = nn.Linear(k, n, bias, scheme=scheme, device="sim:rk3588")
    ours.load_state_dict(theirs.state_dict())
    dtype = np.float16 if half else np.float32
    x = np.random.default_rng(seed).standard_normal((*lead, k)).astype(dtype)
    y = ours(x)
    wanted = theirs.double()(torch.from_numpy(x).double()).detach().numpy()
    assert y.shape == (*lead, n)
    assert y.dtype == dtype
    w = theirs.weight.detach().numpy()
    assert (np.abs(y - wanted) <= bound(x, w, dtype)).all()


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8", FLOAT32])
def test_a_group_is_its_layers(scheme: str) -> None:
    rng = np.random.default_rng(3)
    sizes = {"q_proj": 24, "k_proj": 8, "v_proj": 8}
    state = {f"{name}.weight": rng.standard_normal((n, 32), np.float32) for name, n in sizes.items()}
    state |= {f"{name}.bias": rng.standard_normal(n, np.float32) for name, n in sizes.items()}
    group = nn.LinearGroup(32, sizes, bias=True, scheme=scheme)
    group.load_state_dict(state)
    x = rng.standard_normal((2, 3, 32), np.float32)
    results = group(x)
    assert all(np.shares_memory(results[0].base, each) for each in results)
    for (name, n), y in zip(sizes.items(), results, strict=True):
        alone = nn.Linear(32, n, scheme=scheme)
        alone.load_state_dict(state, strict=False, prefix=f"{name}.")
        assert y.shape == (2, 3, n)
        if scheme == FLOAT32:
            np.testing.assert_allclose(y, alone(x), atol=1e-5)
        else:
            np.testing.assert_array_equal(y, alone(x))


def test_one_tensor_can_hold_a_group() -> None:
    rng = np.random.default_rng(4)
    weight = rng.standard_normal((12, 8), np.float32)
    group = nn.LinearGroup(8, {"gate_proj": 6, "up_proj": 6}, fused="gate_up_proj", scheme=FLOAT32)
    assert group.parameter_shapes() == {"gate_up_proj.weight": (12, 8)}
    group.load_state_dict({"gate_up_proj.weight": weight})
    x = rng.standard_normal((3, 8), np.float32)
    gate, up = group(x)
    np.testing.assert_allclose(gate, x @ weight[:6].T, atol=1e-5)
    np.testing.assert_allclose(up, x @ weight[6:].T, atol=1e-5)
    np.testing.assert_array_equal(group.state_dict()["gate_up_proj.weight"], weight)


def test_weights_of_a_group_may_differ_in_width() -> None:
    values = {"a": np.float16(0.1), "b": np.float32(0.1)}
    group = nn.LinearGroup(1, {"a": 1, "b": 1}, scheme=FLOAT32)
    group.load_state_dict({f"{name}.weight": np.array([[value]]) for name, value in values.items()})
    a, b = group(np.ones((1, 1), np.float32))
    assert a.item() == np.float32(np.float16(0.1))
    assert b.item() == np.float32(0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_an_npu_array_gives_an_npu_array(dtype: Any) -> None:
    rng = np.random.default_rng(5)
    device = npu.Device("sim:rk3588")
    w, bias = rng.standard_normal((16, 32), np.float32), rng.standard_normal(16, np.float32)
    x = rng.standard_normal((3, 32)).astype(dtype)
    for scheme in ("w16a16", FLOAT32):
        layer = nn.Linear.from_arrays(w, bias, scheme=scheme, device=device)
        y = layer(npu.asarray(x, device=device))
        assert isinstance(y, npu.NpuArray)
        assert y.dtype == dtype
        np.testing.assert_array_equal(np.asarray(y), layer(x))
    group = nn.LinearGroup(32, {"a": 8, "b": 8}, device=device)
    group.load_state_dict({"a.weight": w[:8], "b.weight": w[8:]})
    parts = group(npu.asarray(x, device=device))
    assert all(isinstance(part, npu.NpuArray) for part in parts)
    np.testing.assert_array_equal(np.asarray(parts[1]), group(x)[1])


def test_a_packed_weight_and_any_product_make_a_layer() -> None:
    rng = np.random.default_rng(6)
    w, x = rng.standard_normal((8, 32), np.float32), rng.standard_normal((2, 32), np.float32)
    bias = rng.standard_normal(8, np.float32)
    packed = npu.pack(w, "w8a8", transposed=True)
    layer = nn.Linear.from_packed(packed, bias)
    np.testing.assert_array_equal(layer(x), npu.matmul(x, packed, bias=bias))
    own = nn.Linear.from_product(nn.FloatProduct(w), bias)
    np.testing.assert_allclose(own(x), x @ w.T + bias, atol=1e-5)
    other = own.with_product(layer.product)
    np.testing.assert_array_equal(other(x), layer(x))
    np.testing.assert_allclose(own(x), x @ w.T + bias, atol=1e-5)


class Unbiased(nn.PackedProduct):
    """One that does something else with its bias."""

    def __call__(self, x: Any) -> Any:
        assert x.ndim == 2
        return npu.matmul(x, self.weight)


def test_a_bias_is_added_whoever_multiplies() -> None:
    w, bias = np.eye(32, dtype=np.float32), np.arange(32, dtype=np.float32)
    layer = nn.Linear.from_product(Unbiased(npu.pack(w)), bias)
    np.testing.assert_array_equal(layer(np.zeros((1, 1, 32), np.float32)), bias[None, None])


def test_what_does_not_fit_is_explained() -> None:
    layer = nn.Linear.from_arrays(np.ones((2, 3), np.float32))
    with pytest.raises(
        ValueError, match=r"Linear\(3, 2, bias=False\) takes \(\.\.\., 3\); the input has shape \(1, 2\)"
    ):
        layer(np.ones((1, 2), np.float32))
    with pytest.raises(ValueError, match=r"the input has shape \(\)"):
        layer(np.float32(1))
    for scheme in ("w16a16", FLOAT32):
        layer = nn.Linear.from_arrays(np.ones((2, 3), np.float32), scheme=scheme)
        for x in (np.ones((1, 3)), np.ones((1, 3), np.int32), np.ones((1, 3), complex)):
            with pytest.raises(TypeError, match=str(x.dtype)):
                layer(x)
    with pytest.raises(ValueError, match="in_features is 0"):
        nn.Linear(0, 1)
    with pytest.raises(ValueError, match=r"out_features is 2\.5"):
        nn.Linear(1, 2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="w9a9"):
        nn.Linear(1, 1, scheme="w9a9")
    with pytest.raises(TypeError, match="int8"):
        nn.Linear(1, 1, scheme="int8")
    with pytest.raises(TypeError, match="results of scheme 'w8a8o8' are int8; layers give floats"):
        nn.Linear(1, 1, scheme="w8a8o8")
    with pytest.raises(ValueError, match=r"bias has shape \(3,\); the weight has N = 2"):
        nn.Linear.from_arrays(np.ones((2, 3)), np.ones(3))
    with pytest.raises(ValueError, match=r"\(N, K\)"):
        nn.Linear.from_arrays(np.ones(3))
    with pytest.raises(TypeError, match="no PackedWeight"):
        nn.Linear.from_packed(np.ones((2, 2)))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"scheme 'int8' gives int32 and takes no floats"):
        nn.Linear.from_packed(npu.pack(np.ones((32, 32), np.int8)))
    with pytest.raises(TypeError, match="mask"):
        layer(np.ma.masked_array(np.ones((1, 3), np.float32), True))


def test_lists_and_tensors_are_taken() -> None:
    layer = nn.Linear.from_arrays(np.eye(2, dtype=np.float32), scheme=FLOAT32)
    np.testing.assert_array_equal(layer([[1.0, 2.0]]), [[1, 2]])
    np.testing.assert_array_equal(layer(torch.tensor([1.0, 2.0])), [1, 2])


@given(
    rows=st.integers(1, 9), dim=st.integers(1, 9), shape=st.lists(st.integers(0, 3), max_size=3), seed=st.integers(0, 5)
)
def test_embedding_is_torchs(rows: int, dim: int, shape: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    theirs, ours = torch.nn.Embedding(rows, dim), nn.Embedding(rows, dim)
    ours.load_state_dict(theirs.state_dict())
    ids = np.random.default_rng(seed).integers(0, rows, shape)
    np.testing.assert_array_equal(ours(ids), theirs(torch.from_numpy(ids)).detach().numpy())


def test_rows_that_there_are_not_are_named() -> None:
    table = nn.Embedding.from_array(np.ones((3, 2), np.float16))
    assert table([0]).dtype == np.float32
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"there is no row {wrong}; rows are 0 to 2"):
            table([0, wrong])
    with pytest.raises(TypeError, match="float64"):
        table([0.5])


def test_a_tied_head_multiplies_with_the_table() -> None:
    rng = np.random.default_rng(8)
    values = rng.standard_normal((7, 32), np.float32)
    x = rng.standard_normal((2, 32), np.float32)
    for table in (nn.Embedding.from_array(values), nn.Embedding.from_rows(7, 32, lambda ids: values[ids])):
        np.testing.assert_allclose(table.as_linear(scheme=FLOAT32)(x), x @ values.T, atol=1e-4)
        packed = table.as_linear(scheme="w8a8")
        np.testing.assert_array_equal(packed(x), npu.matmul(x, npu.pack(values, "w8a8", transposed=True)))
        own = table.as_linear(pack=lambda w, name: nn.FloatProduct(w if name == "lm_head" else -w))
        np.testing.assert_allclose(own(x), x @ values.T, atol=1e-4)


def test_a_chain_of_float16_layers_copies_nothing() -> None:
    """The NPU reads what it wrote, as in products without layers."""
    rng = np.random.default_rng(9)
    with npu.Device("sim:rk3588") as device:
        weights = [(rng.standard_normal((64, 64)) / 8).astype(np.float16) for _ in range(3)]
        layers = [nn.Linear.from_arrays(each, device=device) for each in weights]
        x = npu.asarray(rng.standard_normal((32, 64)).astype(np.float16), device=device)

        def chained() -> npu.NpuArray:
            y = x
            for layer in layers:
                y = layer(y)
            return y

        y = chained()
        before = device.stats().conversions
        again = chained()
        assert device.stats().conversions == before
        np.testing.assert_array_equal(np.asarray(again), np.asarray(y))
