"""Rotary positions against transformers, and against complex numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

import npumatmul as npu
from npumatmul import nn

V = 2.0**-24
LONG = {"short_factor": [1.0 + i / 7 for i in range(16)], "long_factor": [2.0 + i for i in range(16)]}
SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, all of it": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 128, "beta_fast": 16.0,
        "beta_slow": 2.0, "mscale": 0.9, "mscale_all_dim": 0.7, "truncate": False,
    },
    "yarn with a factor for attention": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.25,
    },
    "longrope": {"rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 64, **LONG},
    "longrope by lengths": {"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG},
}  # fmt: skip


def config_of(scaling: dict[str, Any], base: float, dim: int = 32) -> LlamaConfig:
    given = {**scaling, "rope_theta": base}
    return LlamaConfig(hidden_size=dim * 2, num_attention_heads=2, max_position_embeddings=256, rope_parameters=given)


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str, base: float) -> None:
    scaling = SCALINGS[name]
    config = config_of(scaling, base)
    kind = scaling["rope_type"]
    if kind == "default":
        wanted, attention = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        wanted, attention = ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    rope = nn.RoPE(32, base=base, scaling=scaling, max_position=256)
    np.testing.assert_allclose(rope.frequencies, wanted.numpy(), rtol=1e-5)
    assert rope.attention_factor == pytest.approx(attention, rel=1e-12)
    if kind == "longrope":
        wanted, _ = ROPE_INIT_FUNCTIONS[kind](config, "cpu", seq_len=65)
        rope = nn.RoPE(32, base=base, scaling=scaling, max_position=256, length=65)
        np.testing.assert_allclose(rope.frequencies, wanted.numpy(), rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 37])
@pytest.mark.parametrize("name", SCALINGS)
def test_rotations_are_those_of_transformers(name: str, offset: int) -> None:
    scaling = SCALINGS[name]
    q, k = np.random.default_rng(1).standard_normal((2, 2, 2, 40, 32), np.float32)
    theirs = LlamaRotaryEmbedding(config_of(scaling, 10000.0))
    cos, sin = theirs(torch.from_numpy(q), torch.arange(offset, offset + 40)[None])
    wanted = apply_rotary_pos_emb(torch.from_numpy(q), torch.from_numpy(k), cos, sin)
    rope = nn.RoPE(32, scaling=scaling, max_position=256)
    for ours, each in zip((rope(q, offset), rope(k, offset)), wanted, strict=True):
        # their angles are products in float32 of float32 frequencies
        np.testing.assert_allclose(ours, each.numpy(), atol=8 * 80 * V * 4)


def exact(x: np.ndarray, frequencies: np.ndarray, positions: np.ndarray, interleaved: bool) -> np.ndarray:
    """Rotation as multiplication of complex numbers, in float64."""
    x = x.astype(np.float64)
    dim = 2 * len(frequencies)
    half = dim // 2
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(0, half), slice(half, dim))
    turned = (x[..., first] + 1j * x[..., second]) * np.exp(1j * positions[..., None] * frequencies)
    y = x.copy()
    y[..., first], y[..., second] = turned.real, turned.imag
    return y


@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    t=st.integers(0, 9),
    half=st.integers(1, 8),
    extra=st.integers(0, 5),
    interleaved=st.booleans(),
    narrow=st.booleans(),
    offset=st.integers(0, 3000),
    seed=st.integers(0, 9),
)
def test_pairs_are_rotated_and_the_rest_stays(
    lead: list[int], t: int, half: int, extra: int, interleaved: bool, narrow: bool, offset: int, seed: int
) -> None:
    dtype = np.float16 if narrow else np.float32
    x = np.random.default_rng(seed).standard_normal((*lead, t, 2 * half + extra)).astype(dtype)
    rope = nn.RoPE(2 * half, interleaved=interleaved)
    y = rope(x, offset)
    wanted = exact(x, rope.frequencies, np.arange(offset, offset + t), interleaved)
    assert y.dtype == dtype
    largest = 2 * np.abs(x.astype(np.float64)).max(initial=0)  # no pair is larger
    error = 5 * V * largest + ((2.0**-11 * np.abs(wanted) + 2.0**-25) * 1.01 if narrow else 0)
    assert (np.abs(y - wanted) <= error).all()
    np.testing.assert_array_equal(y[..., 2 * half :], x[..., 2 * half :])


def test_positions_can_be_of_any_order_and_of_each_sequence() -> None:
    x = np.random.default_rng(2).standard_normal((2, 3, 4, 8), np.float32)
    rope = nn.RoPE(8)
    order = np.array([5, 0, 2000, 7])
    np.testing.assert_allclose(rope(x, positions=order), exact(x, rope.frequencies, order, False), atol=1e-6)
    each = np.array([order, order + 1])[:, None]
    np.testing.assert_allclose(rope(x, positions=each), exact(x, rope.frequencies, each, False), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_place_can_be_given(dtype: Any) -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 8), np.float32)
    rope = nn.RoPE(6)
    room = np.zeros((2, 5, 8), dtype)
    assert rope(x, 4, out=room[:, 1:4]).base is room
    np.testing.assert_array_equal(room[:, 1:4], rope(x, 4).astype(dtype))
    assert not room[:, 0].any()
    assert not room[:, 4].any()


def test_factors_of_a_gguf_file_divide_frequencies() -> None:
    factors = np.linspace(1, 4, 8)
    np.testing.assert_array_equal(
        nn.RoPE(16, factors=factors.astype(np.float32)).frequencies,
        nn.RoPE(16).frequencies / factors.astype(np.float32),
    )


def test_longrope_changes_with_the_length_of_a_call_unless_it_is_said() -> None:
    scaling = {"type": "longrope", "original_max_position_embeddings": 4, "factor": 1.0, "short_factor": [1.0],
               "long_factor": [2.0]}  # fmt: skip
    x = np.ones((5, 2), np.float32)
    rope = nn.RoPE(2, scaling=scaling)
    np.testing.assert_allclose(rope(x[:4])[:, 0], np.cos(np.arange(4)) - np.sin(np.arange(4)), atol=1e-6)
    np.testing.assert_allclose(rope(x)[:, 0], np.cos(np.arange(5) / 2) - np.sin(np.arange(5) / 2), atol=1e-6)
    fixed = nn.RoPE(2, scaling=scaling, length=8)
    np.testing.assert_array_equal(fixed(x[:4]), rope(x)[:4])


def test_npu_arrays_give_npu_arrays() -> None:
    x = np.random.default_rng(3).standard_normal((2, 3, 8), np.float32)
    rope = nn.RoPE(8)
    y = rope(npu.asarray(x, device="sim:rk3588"), offset=2)
    assert isinstance(y, npu.NpuArray)
    np.testing.assert_array_equal(np.asarray(y), rope(x, 2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"base": 10**400}, "base is 1000"),
        ({"base": 5e-324}, "radians per position"),
        ({"factors": [1e-320] * 4}, "up to inf radians per position"),
        ({"factors": [10**400] * 4}, "factors are 4 positive numbers"),
        ({"scaling": {"rope_type": "linear", "factor": 1e-320}}, "up to inf radians per position"),
        ({"scaling": {"rope_type": "linear", "factor": 10**400}}, "factor of linear scaling is 1000"),
        ({"scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1e300}}, "attention_factor of yarn"),
        ({"scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1e-300}}, "attention_factor of yarn"),
        ({"scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 1e308}}, "do not fit together: a length of 64"),
        ({"base": 1.0, "scaling": {"rope_type": "yarn", "factor": 2.0}}, "do not fit together"),
    ],
    ids=str,
)
def test_absurd_numbers_are_refused_without_warnings(options: dict[str, Any], named: str) -> None:
    if options.get("scaling", {}).get("rope_type") == "yarn":
        options["scaling"]["original_max_position_embeddings"] = 64
    with pytest.raises(ValueError, match=named):
        nn.RoPE(8, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 3}, "dim is 3"),
        ({"base": 0.0}, "base 0"),
        ({"scaling": {"rope_type": "dynamic", "factor": 2.0}}, "no kind of scaling is called 'dynamic'"),
        ({"scaling": {"rope_type": "spiral"}}, "'spiral'; there are 'default', 'linear'"),
        ({"scaling": {"factor": 2.0}}, "called None"),
        ({"scaling": {"type": "linear"}}, "linear scaling needs factor"),
        ({"scaling": {"type": "linear", "factor": -1}}, "factor of linear scaling is -1"),
        ({"scaling": {"type": "linear", "factor": "2"}}, "'2'"),
        ({"scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, "linear scaling has no 'beta_fast'"),
        ({"scaling": {"type": "linear", "factor": 2.0, "rope_theta": 5.0}}, "rope_theta 5.0"),
        ({"scaling": {"type": "yarn", "original_max_position_embeddings": 8}}, "needs factor, or else max_position"),
        ({"scaling": {"type": "longrope", "factor": 2.0, "original_max_position_embeddings": 8, "short_factor": [1.0],
                      "long_factor": [1.0]}}, "short_factor of longrope scaling has to be 2 numbers, not 1 values"),
        ({"scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "truncate": 1}},
         "truncate of yarn scaling is 1"),
        ({"scaling": {"type": "longrope", "factor": 2.0, "original_max_position_embeddings": 8,
                      "short_factor": [1.0, -1.0], "long_factor": [1.0, 1.0]}}, "has to be 2 positive numbers"),
        ({"scaling": {"type": "llama3", "factor": 2.0, "original_max_position_embeddings": 8, "low_freq_factor": 4.0,
                      "high_freq_factor": 4.0}}, "high_freq_factor of llama3 scaling is 4, not above"),
        ({"factors": np.ones(3)}, "2 positive numbers"),
        ({"factors": np.array([1.0, 0.0])}, "2 positive numbers"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.RoPE(**{"dim": 4, **options})


def test_inputs_that_do_not_fit_are_explained() -> None:
    rope = nn.RoPE(4)
    for shape in ((4,), (3, 2)):
        with pytest.raises(ValueError, match=r"with D of 4 or more"):
            rope(np.ones(shape, np.float32))
    with pytest.raises(ValueError, match="position -1 is negative"):
        rope(np.ones((2, 4), np.float32), -1)
    with pytest.raises(ValueError, match="positions are integers"):
        rope(np.ones((2, 4), np.float32), positions=[0.5, 1])
    with pytest.raises(TypeError, match="float64"):
        rope(np.ones((2, 4)))


def test_far_positions_take_no_table() -> None:
    x = np.random.default_rng(4).standard_normal((3, 8), np.float32)
    rope = nn.RoPE(8)
    far = (1 << 40) + np.arange(3)
    wanted = exact(x, rope.frequencies, far, False)
    np.testing.assert_allclose(rope(x, 1 << 40), wanted, atol=1e-3)  # angles of float64 are that exact there
    np.testing.assert_array_equal(rope(x, positions=far), rope(x, 1 << 40))
    assert not rope._tables
    near = np.array([5, 1 << 40, 2])
    np.testing.assert_allclose(
        rope(x, positions=near)[[0, 2]], exact(x, rope.frequencies, near, False)[[0, 2]], atol=1e-6
    )


def test_places_and_positions_that_do_not_fit_are_explained() -> None:
    rope = nn.RoPE(4)
    x = np.ones((2, 3, 5, 4), np.float32)
    for positions in (np.arange(4), np.zeros((3, 1, 5), int), np.zeros((1, 2, 3, 5), int), 3):
        with pytest.raises(ValueError, match=r"can be broadcast to \(2, 3, 5\)"):
            rope(x, positions=positions)
    with pytest.raises(ValueError, match=r"out has shape \(2, 3, 4, 4\); the input has \(2, 3, 5, 4\)"):
        rope(x, out=np.empty((2, 3, 4, 4), np.float32))


@pytest.mark.parametrize(
    ("kind", "sections"), [("qwen2_vl", (2, 3, 3)), ("qwen3_vl", (4, 2, 2)), ("qwen3_vl", (2, 3, 3))]
)
def test_positions_on_three_axes_turn_as_in_transformers(kind: str, sections: tuple[int, int, int]) -> None:
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRotaryEmbedding, Qwen2VLTextConfig
    from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding

    rng = np.random.default_rng(4)
    given = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": list(sections)}
    made = {
        "qwen2_vl": (Qwen2VLTextConfig, Qwen2VLRotaryEmbedding, {"hidden_size": 64, "num_attention_heads": 4}),
        "qwen3_vl": (Qwen3VLTextConfig, Qwen3VLTextRotaryEmbedding, {"head_dim": 16}),
    }
    config, module, sizes = made[kind]
    positions = rng.integers(0, 50, (3, 9))
    x = rng.standard_normal((1, 2, 9, 16)).astype(np.float32)
    cos, sin = module(config(**sizes, rope_parameters=given))(torch.from_numpy(x), torch.from_numpy(positions)[:, None])
    turned = np.concatenate([-x[..., 8:], x[..., :8]], axis=-1)
    expected = x * cos.numpy()[:, None] + turned * sin.numpy()[:, None]
    rope = nn.RoPE(16, base=100.0, sections=sections, alternate=kind == "qwen3_vl")
    np.testing.assert_allclose(rope(x, positions=positions), expected, rtol=0, atol=1e-5)
    batched = rope(np.concatenate([x, x]), positions=np.stack([positions, positions + 1], axis=1)[:, :, None])
    np.testing.assert_array_equal(batched[0], rope(x, positions=positions)[0])
    np.testing.assert_array_equal(batched[1], rope(x, positions=positions + 1)[0])
    same = np.tile(np.arange(3, 12), (3, 1))
    np.testing.assert_array_equal(rope(x, 3), rope(x, positions=same))
    far = rope(x, positions=positions + (1 << 19))  # beyond all tables
    angles = ((positions + (1 << 19))[..., None] * rope.frequencies)[rope._axes, :, np.arange(8)].T
    np.testing.assert_allclose(
        far[..., :8], x[..., :8] * np.cos(angles) - x[..., 8:] * np.sin(angles), rtol=0, atol=1e-5
    )


def test_sections_that_are_none_are_refused() -> None:
    for sections in ((2, 3), (2, 3, 4), (9, -1, 0), (2.0, 3, 3)):
        with pytest.raises(ValueError, match="three numbers that add up to 8"):
            nn.RoPE(16, sections=sections)  # type: ignore[arg-type]
    rope = nn.RoPE(16, sections=(2, 3, 3))
    for positions in (np.arange(5), np.zeros((2, 5), int)):
        with pytest.raises(ValueError, match="three axes"):
            rope(np.zeros((1, 5, 16), np.float32), positions=positions)
    with pytest.raises(ValueError, match="broadcast"):
        rope(np.zeros((1, 5, 16), np.float32), positions=np.zeros((3, 4), int))
    with pytest.raises(ValueError, match="negative"):
        rope(np.zeros((1, 5, 16), np.float32), positions=np.full((3, 5), -1))


def test_proportional_scaling_turns_the_fastest_frequencies_alone() -> None:
    scaling = {"rope_type": "proportional", "partial_rotary_factor": 0.25, "factor": 2.0}
    rope = nn.RoPE(16, base=100.0, scaling=scaling)
    expected = np.where(np.arange(8) < 2, 100.0 ** -(np.arange(8) / 8) / 2, 0)
    np.testing.assert_allclose(rope.frequencies, expected, rtol=1e-15)
    with pytest.raises(ValueError, match="partial_rotary_factor"):
        nn.RoPE(16, scaling={**scaling, "partial_rotary_factor": 1.5})
