"""What encoders need: blocks as torch and transformers have them, attention to both sides of a window, pooling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nn_exact import exact

from npumatmul import nn
from npumatmul.nn import attend

RNG = np.random.default_rng(3)


def block_like(layer: torch.nn.TransformerEncoderLayer, norms: Any, **options: Any) -> nn.EncoderBlock:
    """A block with the weights of one of torch."""
    how = {"bias": True, "scheme": "float32"}
    attention = nn.Attention(8, 2, fused="in_proj", **how)
    block = nn.EncoderBlock(attention, nn.MLP(8, 12, "gelu", gated=False, **how), norms=norms, eps=1e-5, **options)
    theirs = {name: value.detach().numpy() for name, value in layer.named_parameters()}
    ours = {
        "self_attn.in_proj.weight": "self_attn.in_proj_weight", "self_attn.in_proj.bias": "self_attn.in_proj_bias",
        "self_attn.o_proj.weight": "self_attn.out_proj.weight", "self_attn.o_proj.bias": "self_attn.out_proj.bias",
        "mlp.up_proj.weight": "linear1.weight", "mlp.up_proj.bias": "linear1.bias",
        "mlp.down_proj.weight": "linear2.weight", "mlp.down_proj.bias": "linear2.bias",
        "attn_norm.weight": "norm1.weight", "attn_norm.bias": "norm1.bias",
        "mlp_norm.weight": "norm2.weight", "mlp_norm.bias": "norm2.bias",
    }  # fmt: skip
    block.load_state_dict({name: theirs[other] for name, other in ours.items() if name in block.parameter_shapes()})
    return block


@pytest.mark.parametrize("norms", ["after", "before"])
def test_a_block_is_torchs_where_texts_have_different_lengths(norms: str) -> None:
    torch.manual_seed(1)
    layer = torch.nn.TransformerEncoderLayer(
        8, 2, 12, activation="gelu", batch_first=True, norm_first=norms == "before"
    )
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(torch.randn_like(value) * 0.3)
    layer.eval()
    x = RNG.standard_normal((3, 5, 8), np.float32)
    seen = np.arange(5) < np.array([5, 2, 4])[:, None]
    with torch.no_grad():
        wanted = layer(torch.from_numpy(x), src_key_padding_mask=torch.from_numpy(~seen)).numpy()
    given_x = x.copy()
    y = block_like(layer, norms)(x, mask=seen[:, None, None])
    np.testing.assert_allclose(y[seen], wanted[seen], atol=2e-5)
    np.testing.assert_array_equal(x, given_x)  # what was given is not written to
    one = block_like(layer, norms)(x[1, :2])
    np.testing.assert_allclose(one, wanted[1, :2], atol=2e-5)


def test_the_first_block_may_do_without_a_norm_before_attention() -> None:
    layer = torch.nn.TransformerEncoderLayer(8, 2, 12, activation="gelu", batch_first=True, norm_first=True).eval()
    x = RNG.standard_normal((1, 4, 8), np.float32)
    with torch.no_grad():
        rows = torch.from_numpy(x)
        rows = rows + layer.self_attn(rows, rows, rows)[0]
        wanted = (rows + layer.linear2(layer.activation(layer.linear1(layer.norm2(rows))))).numpy()
    block = block_like(layer, "before", first_norm=False)
    assert not any(name.startswith("attn_norm") for name in block.parameter_shapes())
    np.testing.assert_allclose(block(x), wanted, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"norms": "around"}, "norms is 'around'; it can be 'after' or 'before'"),
        ({"first_norm": False}, "norms are after it"),
        ({"eps": float("nan")}, "eps is nan"),
    ],
)
def test_mistakes_with_blocks_are_explained(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        nn.EncoderBlock(nn.Attention(8, 2, scheme="float32"), nn.MLP(8, 8, scheme="float32"), **options)


@given(
    t=st.integers(1, 90), more=st.integers(0, 40), window=st.integers(1, 100), block=st.sampled_from([1, 7, 64]),
    mask_rows=st.sampled_from([None, "one", "each"]), queries=st.sampled_from([1, 5, 256]), seed=st.integers(0, 99),
)  # fmt: skip
def test_windows_reach_to_both_sides(
    t: int, more: int, window: int, block: int, mask_rows: str | None, queries: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    s = t + more
    q, k, v = (rng.standard_normal((2, 2, n, 4)).astype(np.float32) for n in (t, s, s))
    seen = np.abs(np.arange(s) - np.arange(s - t, s)[:, None]) < window
    mask = None if mask_rows is None else rng.random((2, 1, 1 if mask_rows == "one" else t, s)) < 0.7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend, "_BLOCK_FLOATS", 1)
        patch.setattr(attend, "_LEAST_KEYS", block)
        patch.setattr(attend, "_QUERIES", queries)
        y = nn.scaled_dot_product_attention(q, k, v, mask=mask, window=window)
    wanted = exact(q, k, v, scale=0.5, seen=seen if mask is None else seen & mask)
    np.testing.assert_allclose(y, wanted, atol=1e-5)


POOLED = {
    "mean": lambda rows: rows.astype(np.float64).mean(0),
    "cls": lambda rows: rows[0],
    "last": lambda rows: rows[-1],
    "max": lambda rows: rows.max(0),
}


@pytest.mark.parametrize("how", POOLED)
@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4), left=st.booleans(), half=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_pooling_looks_at_tokens_alone(how: str, lengths: list[int], left: bool, half: bool, seed: int) -> None:
    dtype: Any = np.float16 if half else np.float32
    x = np.random.default_rng(seed).standard_normal((len(lengths), 6, 3)).astype(dtype)
    at = np.arange(6)[::-1] if left else np.arange(6)
    mask = at < np.array(lengths)[:, None]
    x[~mask] = np.nan
    y = nn.pool(x, mask, how)
    assert y.dtype == dtype
    wanted = np.stack([POOLED[how](each[seen]) for each, seen in zip(x, mask, strict=True)])
    np.testing.assert_allclose(y, wanted, rtol=2.0**-11 if half else 0, atol=8 * 2.0**-24 * 5)
    if all(length == 6 for length in lengths):
        np.testing.assert_array_equal(nn.pool(x, how=how), y)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"how": "median"}, "no pooling is called 'median'; there are 'mean', 'cls', 'last', 'max'"),
        ({"mask": np.ones((2, 3), bool)}, r"bool of \(2, 4\) is needed"),
        ({"mask": np.ones((2, 4))}, "mask is float64"),
        ({"mask": np.array([[True] * 4, [False] * 4])}, "text 1 has no tokens"),
        ({"x": np.ones((2, 3), np.float32)}, r"takes \(B, T, H\)"),
    ],
)
def test_mistakes_with_pooling_are_explained(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        nn.pool(**{"x": np.ones((2, 4, 3), np.float32), **arguments})


def test_scores_outside_of_a_window_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed, multiply = [], np.matmul
    monkeypatch.setattr(attend.np, "matmul", lambda a, b: computed.append(a.size * b.shape[-1]) or multiply(a, b))
    q, k, v = (RNG.standard_normal((1, 1, 2048, 4)).astype(np.float32) for _ in range(3))
    nn.scaled_dot_product_attention(q, k, v, window=9)
    assert sum(computed) <= 2 * 4 * 2048 * (attend._QUERIES + 2 * 9)  # of every query those of its part and around
