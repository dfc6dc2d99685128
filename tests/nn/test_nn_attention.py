"""Attention and blocks against the layers of transformers, at once and token by token."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    GptOssConfig,
    GraniteConfig,
    LlamaConfig,
    NemotronConfig,
    Olmo2Config,
    Qwen3Config,
    Qwen3NextConfig,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer, Gemma2RotaryEmbedding
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssAttention, GptOssRotaryEmbedding
from transformers.models.granite.modeling_granite import GraniteDecoderLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding
from transformers.models.nemotron.modeling_nemotron import NemotronMLP
from transformers.models.olmo2.modeling_olmo2 import Olmo2Attention, Olmo2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention, Qwen3NextRotaryEmbedding

import npumatmul as npu
from npumatmul import nn

SIZES = {
    "hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 80,
    "num_hidden_layers": 2, "max_position_embeddings": 128, "vocab_size": 32, "attn_implementation": "eager",
}  # fmt: skip
ATTENTION: dict[str, Any] = {"hidden_size": 48, "heads": 6, "kv_heads": 2, "head_dim": 16}
T = 11


def llama() -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    config = LlamaConfig(**SIZES, attention_bias=True)
    return LlamaDecoderLayer(config, 0), config, {"bias": True}, {}


def qwen3() -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    config = Qwen3Config(**SIZES)
    return Qwen3DecoderLayer(config, 0), config, {"qk_norm": "head", "eps": config.rms_norm_eps}, {}


def granite() -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    config = GraniteConfig(**SIZES, attention_multiplier=0.3, residual_multiplier=0.22)
    return GraniteDecoderLayer(config, 0), config, {"scale": 0.3}, {"residual_multiplier": 0.22}


def gemma2() -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    config = Gemma2Config(**SIZES, sliding_window=4, attn_logit_softcapping=5.0, query_pre_attn_scalar=20)
    block = {"post_norms": True, "norm_offset": 1.0}
    return Gemma2DecoderLayer(config, 0), config, {"window": 4, "softcap": 5.0, "scale": 20**-0.5}, block


def theirs_of(layer: Any, config: Any, x: np.ndarray, window: int | None) -> np.ndarray:
    torch.manual_seed(2)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.2)
            if "norm" in name:
                parameter += 1.0
        rotary = Gemma2RotaryEmbedding if isinstance(config, Gemma2Config) else LlamaRotaryEmbedding
        given = torch.from_numpy(x)
        positions = rotary(config)(given, torch.arange(x.shape[1])[None])
        at = torch.arange(x.shape[1])
        hidden = at[None] > at[:, None]
        if window is not None:
            hidden |= at[None] <= at[:, None] - window
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[None, None]
        y = layer(given, attention_mask=mask, position_embeddings=positions)
        return (y[0] if isinstance(y, tuple) else y).numpy()


@pytest.mark.parametrize("architecture", [llama, qwen3, granite, gemma2])
def test_a_block_is_that_of_transformers(architecture: Any) -> None:
    layer, config, attention, block = architecture()
    x = np.random.default_rng(1).standard_normal((2, T, 48), np.float32)
    wanted = theirs_of(layer, config, x, attention.get("window"))
    act = "gelu_tanh" if architecture is gemma2 else "silu"
    ours = nn.TransformerBlock(
        nn.Attention(**ATTENTION, rope=nn.RoPE(16), scheme="float32", **attention),
        nn.MLP(48, 80, act, scheme="float32"),
        eps=config.rms_norm_eps,
        **block,
    )
    ours.load_state_dict(layer.state_dict())
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(ours(x), wanted, atol=1e-5 * scale)
    np.testing.assert_allclose(ours(x[0]), wanted[0], atol=1e-5 * scale)
    half = ours(x.astype(np.float16))
    assert half.dtype == np.float16
    np.testing.assert_allclose(half, wanted, atol=1e-2 * scale)
    for window in {None, attention.get("window")}:
        cache = nn.KVCache(1, 2, 16, dtype="float32", batch=2, window=window, chunk=4)
        parts = [ours(x[:, i:j], cache=cache) for i, j in ((0, 3), (3, 4), (4, 9), (9, 10), (10, T))]
        np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=1e-5 * scale)


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_on_the_npu_it_is_close(scheme: str) -> None:
    layer, config, attention, _ = qwen3()
    x = np.random.default_rng(1).standard_normal((2, T, 48), np.float32)
    wanted = theirs_of(layer, config, x, None)
    device = npu.Device("sim:rk3588")
    how: dict[str, Any] = {"scheme": scheme, "device": device}
    ours = nn.TransformerBlock(nn.Attention(**ATTENTION, rope=nn.RoPE(16), **attention, **how), nn.MLP(48, 80, **how))
    ours.load_state_dict(layer.state_dict())
    y = ours(x)
    cosine = (y * wanted).sum() / np.sqrt((y * y).sum() * (wanted * wanted).sum())
    assert cosine > (0.99999 if scheme == "w16a16" else 0.999)
    z = ours(npu.asarray(x, device=device))
    assert isinstance(z, npu.NpuArray)
    np.testing.assert_allclose(np.asarray(z), y, atol=1e-5)
    attended = ours.self_attn(npu.asarray(x, device=device))
    assert isinstance(attended, npu.NpuArray)
    np.testing.assert_allclose(np.asarray(attended), ours.self_attn(x), atol=1e-5)
    assert isinstance(ours.mlp(npu.asarray(x, device=device)), npu.NpuArray)


@given(heads=st.integers(1, 4), group=st.integers(1, 3), t=st.integers(1, 6), seed=st.integers(0, 20))
def test_without_groups_it_is_torchs_multi_head_attention(heads: int, group: int, t: int, seed: int) -> None:
    torch.manual_seed(seed)
    width = 4 * heads * group
    theirs = torch.nn.MultiheadAttention(width, heads * group, batch_first=True)
    ours = nn.Attention(width, heads * group, bias=True, scheme="float32")
    state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
    given_ = {"o_proj.weight": state["out_proj.weight"], "o_proj.bias": state["out_proj.bias"]}
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        given_[f"{name}.weight"] = np.split(state["in_proj_weight"], 3)[i]
        given_[f"{name}.bias"] = np.split(state["in_proj_bias"], 3)[i]
    ours.load_state_dict(given_)
    x = np.random.default_rng(seed).standard_normal((2, t, width), np.float32)
    given_x = torch.from_numpy(x)
    wanted = theirs(given_x, given_x, given_x, need_weights=False)[0].detach().numpy()
    np.testing.assert_allclose(ours(x, mask=None), wanted, atol=2e-6)


def test_a_gate_and_sinks_and_one_tensor() -> None:
    rng = np.random.default_rng(4)
    ours = nn.Attention(
        8, 2, 1, 4, gate="sigmoid", sinks=True, qk_norm="all", eps=1e-6, rope=nn.RoPE(2), scheme="float32"
    )
    state = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in ours.parameter_shapes().items()}
    assert state["q_proj.weight"].shape == (16, 8)
    ours.load_state_dict(state)
    x = rng.standard_normal((1, 5, 8), np.float32)

    def normed(y: np.ndarray, name: str) -> np.ndarray:
        return y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-6) * state[f"{name}.weight"]

    both = (x @ state["q_proj.weight"].T).reshape(1, 5, 2, 8)  # of each head the query, then the gate
    q = normed(both[..., :4].reshape(1, 5, 8), "q_norm").reshape(1, 5, 2, 4).transpose(0, 2, 1, 3)
    k = normed(x @ state["k_proj.weight"].T, "k_norm")[:, None]
    v = (x @ state["v_proj.weight"].T)[:, None]
    rope = nn.RoPE(2)
    y = nn.scaled_dot_product_attention(rope(q), rope(k), v, mask="causal", sinks=state["sinks"])
    y = y.transpose(0, 2, 1, 3) / (1 + np.exp(-both[..., 4:]))
    np.testing.assert_allclose(ours(x), y.reshape(1, 5, 8) @ state["o_proj.weight"].T, atol=1e-5)

    fused = nn.Attention(
        8, 2, 1, 4, gate="sigmoid", sinks=True, qk_norm="all", rope=rope, fused="qkv_proj", scheme="float32"
    )
    rows = np.concatenate([state.pop(f"{name}_proj.weight") for name in "qkv"])
    fused.load_state_dict({**state, "qkv_proj.weight": rows})
    np.testing.assert_allclose(fused(x), ours(x), atol=1e-6)


def test_positions_may_be_given() -> None:
    rng = np.random.default_rng(5)
    ours = nn.Attention(8, 2, rope=nn.RoPE(4), scheme="float32")
    ours.load_state_dict({name: rng.standard_normal(shape) for name, shape in ours.parameter_shapes().items()})
    x = rng.standard_normal((2, 5, 8), np.float32)
    np.testing.assert_allclose(ours(x, positions=np.arange(7, 12)), ours(x), atol=1e-5)  # only distances matter
    assert not np.allclose(ours(x, positions=2 * np.arange(5)), ours(x), atol=1e-2)


@pytest.mark.parametrize("act", ["silu", "gelu", "gelu_tanh", "relu", "relu2"])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_networks_are_those_of_torch(act: str, gated: bool, dtype: Any) -> None:
    rng = np.random.default_rng(6)
    ours = nn.MLP(8, 24, act, gated=gated, bias=True, scheme="float32")
    ours.load_state_dict({name: rng.standard_normal(shape) for name, shape in ours.parameter_shapes().items()})
    w = {name: torch.from_numpy(value).double() for name, value in ours.state_dict().items()}
    x = rng.standard_normal((2, 3, 8)).astype(dtype)
    functions = {
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        "relu": torch.nn.functional.relu,
        "relu2": lambda x: torch.nn.functional.relu(x) ** 2,
    }

    def linear(x: Any, name: str) -> Any:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    given_ = torch.from_numpy(x).double()
    y = functions[act](linear(given_, "gate_proj")) * linear(given_, "up_proj") if gated else None
    y = functions[act](linear(given_, "up_proj")) if y is None else y
    wanted = linear(y, "down_proj").numpy()
    result = ours(x)
    assert result.dtype == dtype
    np.testing.assert_allclose(result, wanted, atol=(1e-6 if dtype == np.float32 else 4e-3) * np.abs(wanted).max())


def test_a_network_without_a_gate_has_nemotrons_names() -> None:
    config = NemotronConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2, hidden_act="relu2")
    theirs = NemotronMLP(config)
    ours = nn.MLP(8, 12, "relu2", gated=False, scheme="float32")
    ours.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(7).standard_normal((3, 8), np.float32)
    np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


def test_large_gates_do_not_overflow() -> None:
    x = np.array([-1e4, -200, 0, 200, 1e4], np.float32)
    np.testing.assert_allclose(nn.activate(x, "silu"), [0, 0, 0, 200, 1e4], atol=1e-6)


def test_what_does_not_go_is_explained() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"heads": 5}, "no multiple of 5 heads"),
        ({"kv_heads": 3}, "4 heads cannot share 3 heads of keys evenly"),
        ({"qk_norm": "both"}, "qk_norm is 'both'"),
        ({"gate": "relu"}, "gate is 'relu'"),
        ({"softcap": -1.0}, "softcap is -1"),
        ({"window": 0}, "window is 0"),
        ({"rope": nn.RoPE(4)}, "rope rotates 4 values, but a head has 2"),
        ({"scale": float("inf")}, "scale is inf"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            nn.Attention(**{"hidden_size": 8, "heads": 4, **options})
    attention = nn.Attention(8, 4, 2, window=6, scheme="float32")
    attention.load_state_dict({name: np.ones(shape) for name, shape in attention.parameter_shapes().items()})
    x = np.ones((1, 3, 8), np.float32)
    with pytest.raises(ValueError, match="the cache keeps 4 tokens of layer 0, but 6 are seen"):
        attention(x, cache=nn.KVCache(1, 2, 2, window=4))
    with pytest.raises(ValueError, match=r"\(T, hidden\) or \(B, T, hidden\)"):
        attention(x[None])
    with pytest.raises(ValueError, match=r"takes \(\.\.\., 8\)"):
        attention(x[..., :7])
    with pytest.raises(ValueError, match="no activation is called 'swish'"):
        nn.MLP(8, 8, "swish")
    with pytest.raises(ValueError, match="nothing to be fused"):
        nn.MLP(8, 8, gated=False, fused="x")
    with pytest.raises(ValueError, match="no activation is called 'swish'"):
        nn.activate(x, "swish")


def test_sequences_of_different_lengths_go_together_with_positions_and_a_mask() -> None:
    """Padding on the left, as batches of prompts have it: what is padding is not seen, and does not move positions."""
    rng = np.random.default_rng(8)
    ours = nn.Attention(16, 4, 2, rope=nn.RoPE(4), scheme="float32")
    ours.load_state_dict({name: rng.standard_normal(shape) for name, shape in ours.parameter_shapes().items()})
    long, short = rng.standard_normal((1, 6, 16), np.float32), rng.standard_normal((1, 4, 16), np.float32)
    padded = np.concatenate([rng.standard_normal((1, 2, 16), np.float32), short], axis=1)
    both = np.concatenate([long, padded])
    positions = np.stack([np.arange(6), np.maximum(np.arange(6) - 2, 0)])[:, None]
    seen = np.tril(np.ones((6, 6), bool)) & np.array([[1] * 6, [0, 0, 1, 1, 1, 1]], bool)[:, None, None]
    y = ours(both, mask=seen, positions=positions)
    np.testing.assert_allclose(y[:1], ours(long), atol=1e-5)
    np.testing.assert_allclose(y[1:, 2:], ours(short), atol=1e-5)
    cache = nn.KVCache(1, 2, 4, dtype="float32", batch=2)
    parts = [
        ours(both[:, i:j], cache=cache, mask=seen[:, :, i:j, :j], positions=positions[..., i:j])
        for i, j in ((0, 3), (3, 5), (5, 6))
    ]
    np.testing.assert_allclose(np.concatenate(parts, axis=1)[1:, 2:], y[1:, 2:], atol=1e-5)


def attended_by(layer: Any, x: np.ndarray, rotary: Any, window: int | None = None) -> np.ndarray:
    """What an attention of transformers gives, with random parameters."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, 0.0, 0.3)
        at = torch.arange(x.shape[1])
        hidden = at[None] > at[:, None]
        if window is not None:
            hidden |= at[None] <= at[:, None] - window
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)[None, None]
        given_x = torch.from_numpy(x)
        return layer(given_x, position_embeddings=rotary(given_x, at[None]), attention_mask=mask)[0].numpy()


def qwen3_next() -> tuple[Any, Any, dict[str, Any]]:
    config = Qwen3NextConfig(**SIZES, partial_rotary_factor=0.25)
    options = {"qk_norm": "head", "eps": config.rms_norm_eps, "norm_offset": 1.0, "gate": "sigmoid", "rope": nn.RoPE(4)}
    return Qwen3NextAttention(config, 0), Qwen3NextRotaryEmbedding(config), options


def gpt_oss() -> tuple[Any, Any, dict[str, Any]]:
    config = GptOssConfig(**SIZES, sliding_window=4, rope_parameters={"rope_type": "default", "rope_theta": 150000.0})
    options = {"bias": True, "sinks": True, "window": 4, "rope": nn.RoPE(16, base=150000.0)}
    return GptOssAttention(config, 0), GptOssRotaryEmbedding(config), options


def olmo2() -> tuple[Any, Any, dict[str, Any]]:
    config = Olmo2Config(**SIZES)
    options = {"qk_norm": "all", "eps": config.rms_norm_eps, "rope": nn.RoPE(16, base=10000.0)}
    return Olmo2Attention(config, 0), Olmo2RotaryEmbedding(config), options


@pytest.mark.parametrize("architecture", [qwen3_next, gpt_oss, olmo2])
def test_gates_sinks_and_norms_are_those_of_transformers(architecture: Any) -> None:
    layer, rotary, options = architecture()
    x = np.random.default_rng(1).standard_normal((2, T, 48), np.float32)
    wanted = attended_by(layer, x, rotary, options.get("window"))
    ours = nn.Attention(**ATTENTION, scheme="float32", **options)
    ours.load_state_dict(layer.state_dict())
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(ours(x), wanted, atol=2e-5 * scale)
    cache = nn.KVCache(1, 2, 16, dtype="float32", batch=2, window=options.get("window"), chunk=4)
    parts = [ours(x[:, i:j], cache=cache) for i, j in ((0, 3), (3, 4), (4, 9), (9, 10), (10, T))]
    np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=2e-5 * scale)


@pytest.mark.parametrize("scheme", ["float32", "w16a16"])
def test_bfloat16_stays_bfloat16(scheme: str) -> None:
    rng = np.random.default_rng(9)
    how: dict[str, Any] = {"scheme": scheme, "device": "sim:rk3588"}
    attention = nn.Attention(16, 4, 2, rope=nn.RoPE(4), qk_norm="head", gate="sigmoid", sinks=True, **how)
    block = nn.TransformerBlock(attention, nn.MLP(16, 32, **how), post_norms=True, residual_multiplier=0.5)
    block.load_state_dict({name: rng.standard_normal(shape) / 2 for name, shape in block.parameter_shapes().items()})
    x = rng.standard_normal((2, 5, 16)).astype(ml_dtypes.bfloat16)
    y, wanted = block(x), block(x.astype(np.float32))
    assert y.dtype == ml_dtypes.bfloat16
    np.testing.assert_allclose(y.astype(np.float32), wanted, atol=2.0**-5 * np.abs(wanted).max())
    cache = nn.KVCache(1, 2, 4, batch=2)
    parts = [block(x[:, i : i + 1], cache=cache) for i in range(5)]
    assert all(part.dtype == ml_dtypes.bfloat16 for part in parts)
    steps = np.concatenate(parts, axis=1).astype(np.float32)
    np.testing.assert_allclose(steps, wanted, atol=2.0**-5 * np.abs(wanted).max())


@settings(max_examples=40)
@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 4),
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    window=st.none() | st.integers(1, 9),
    qk_norm=st.sampled_from([None, "head", "all"]),
    gate=st.sampled_from([None, "sigmoid"]),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    softcap=st.none() | st.just(3.0),
    seed=st.integers(0, 99),
)
def test_a_block_gives_the_same_for_a_prompt_at_once_and_in_any_parts(
    kv_heads: int, group: int, half: int, cuts: list[int], window: int | None, qk_norm: Any, gate: Any,
    flags: tuple[bool, ...], softcap: float | None, seed: int,
) -> None:  # fmt: skip
    interleaved, sinks, gated, post_norms = flags
    rng = np.random.default_rng(seed)
    attention = nn.Attention(
        12, kv_heads * group, kv_heads, 2 * half, rope=nn.RoPE(2 * half, interleaved=interleaved), window=window,
        softcap=softcap, qk_norm=qk_norm, gate=gate, sinks=sinks, bias=True, scheme="float32",
    )  # fmt: skip
    mlp = nn.MLP(12, 20, "gelu_tanh", gated=gated, bias=True, scheme="float32")
    block = nn.TransformerBlock(attention, mlp, post_norms=post_norms)
    block.load_state_dict({name: rng.standard_normal(shape) / 2 for name, shape in block.parameter_shapes().items()})
    x = rng.standard_normal((2, sum(cuts), 12), np.float32)
    wanted = block(x)
    for kept in {None, window}:
        cache = nn.KVCache(1, kv_heads, 2 * half, dtype="float32", batch=2, window=kept, chunk=3)
        parts, start = [], 0
        for count in cuts:
            parts.append(block(x[:, start : start + count], cache=cache))
            start += count
        np.testing.assert_allclose(np.concatenate(parts, axis=1), wanted, atol=2e-5 * np.abs(wanted).max())


def test_threads_with_caches_of_their_own_share_a_block() -> None:
    rng = np.random.default_rng(10)
    how: dict[str, Any] = {"scheme": "w8a8", "device": npu.Device("sim:rk3588")}
    attention = nn.Attention(32, 4, 2, rope=nn.RoPE(8), qk_norm="head", **how)
    block = nn.TransformerBlock(attention, nn.MLP(32, 64, **how))
    block.load_state_dict({name: rng.standard_normal(shape) / 4 for name, shape in block.parameter_shapes().items()})
    inputs = rng.standard_normal((6, 1, 40, 32), np.float32)

    def answer(x: np.ndarray) -> np.ndarray:
        cache = nn.KVCache(1, 2, 8)
        parts = [block(x[:, :25], cache=cache), *(block(x[:, i : i + 1], cache=cache) for i in range(25, 40))]
        return np.concatenate(parts, axis=1)

    attention.rope = nn.RoPE(8)  # whose table nobody has made yet
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(answer, inputs))
    for x, y in zip(inputs, found, strict=True):
        wanted = answer(x)  # sums of numpy may come in another order, and a code be another one for that
        np.testing.assert_allclose(y, wanted, atol=0.02 * np.abs(wanted).max())


@pytest.mark.parametrize("scheme", ["float32", "w8a8"])
@pytest.mark.parametrize("options", [{}, {"qk_norm": "head", "gate": "sigmoid", "sinks": True}, {"qk_norm": "all"}])
def test_no_tokens_and_no_sequences_give_nothing(scheme: str, options: dict[str, Any]) -> None:
    rng = np.random.default_rng(13)
    how: dict[str, Any] = {"scheme": scheme, "device": "sim:rk3588"}
    for act, gated in (("silu", True), ("gelu", False)):
        attention = nn.Attention(16, 4, 2, rope=nn.RoPE(4), window=3, **options, **how)
        block = nn.TransformerBlock(attention, nn.MLP(16, 24, act, gated=gated, **how), post_norms=True)
        block.load_state_dict({name: rng.standard_normal(shape) for name, shape in block.parameter_shapes().items()})
        for shape in ((0, 16), (2, 0, 16), (0, 3, 16)):
            assert block(np.ones(shape, np.float32)).shape == shape
        cache = nn.KVCache(1, 2, 4, batch=2)
        x = rng.standard_normal((2, 3, 16), np.float32)
        block(x[:, :2], cache=cache)
        assert block(x[:, :0], cache=cache).shape == (2, 0, 16)
        np.testing.assert_allclose(block(x[:, 2:], cache=cache), block(x)[:, 2:], rtol=0.05, atol=0.1)


def test_values_that_are_keys_and_keys_of_another_layer() -> None:
    """Against the same sums by numpy: values are keys before their norm, divided by their root mean square."""
    rng = np.random.default_rng(9)
    how: dict[str, Any] = {"scheme": "float32", "qk_norm": "head", "value_norm": True, "scale": 1.0}
    first = nn.Attention(8, 2, 1, 4, values="keys", **how)
    second = nn.Attention(8, 2, 1, 4, values="shared", **how)
    for each in (first, second):
        each.load_state_dict({name: rng.standard_normal(shape) for name, shape in each.parameter_shapes().items()})
    assert "v_proj.weight" not in first.parameter_shapes()
    assert sorted(second.parameter_shapes()) == ["o_proj.weight", "q_norm.weight", "q_proj.weight"]
    x = rng.standard_normal((2, 5, 8)).astype(np.float32)
    cache = nn.KVCache(2, 1, 4, dtype="float32", follows=[None, 0])
    y = second(first(x[0], cache=cache, layer=0), cache=cache, layer=1)

    def weights(module: nn.Attention) -> dict[str, Any]:
        return {name: np.asarray(value, np.float64) for name, value in module.named_parameters()}

    def normed(a: Any, weight: Any = 1.0) -> Any:
        return a / np.sqrt((a * a).mean(axis=-1, keepdims=True) + 1e-6) * weight

    def attended(module: nn.Attention, x: Any, k: Any, v: Any) -> Any:
        w = weights(module)
        q = normed((x @ w["q_proj.weight"].T).reshape(5, 2, 4).swapaxes(0, 1), w["q_norm.weight"])
        scores = np.where(np.tril(np.ones((5, 5), bool)), q @ k.T, -np.inf)
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = shares / shares.sum(axis=-1, keepdims=True) @ v
        return mixed.swapaxes(0, 1).reshape(5, 8) @ w["o_proj.weight"].T

    w = weights(first)
    keys = x[0].astype(np.float64) @ w["k_proj.weight"].T
    k, v = normed(keys, w["k_norm.weight"]), normed(keys)
    np.testing.assert_allclose(y, attended(second, attended(first, x[0], k, v), k, v), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="give a cache that has them"):
        second(x[0])
    for options, problem in (
        ({"values": "none"}, "values is 'none'"),
        ({"values": "keys", "fused": "qkv_proj"}, "no fused projections"),
    ):
        with pytest.raises(ValueError, match=problem):
            nn.Attention(8, 2, **options)
