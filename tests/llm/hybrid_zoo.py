"""Models with linear attention or short convolutions: configurations, and what llama.cpp's converter makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

DELTA_ARCHES = ("qwen35", "qwen35moe", "qwen3next")
CONV_ARCHES = ("lfm2", "lfm2moe")
ARCHES = (*DELTA_ARCHES, *CONV_ARCHES)
INTERVAL = 4

DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,  # as that of keys, as llama.cpp has it
}
SHARED = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 48,
}
CHOSEN = {"num_experts": 8, "num_experts_per_tok": 2}
CONV = {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]}


def _published_lfm2(config: dict[str, Any]) -> None:
    """As the first models say it: other names, and values that say the same twice."""
    config["block_ff_dim"] = config.pop("intermediate_size")
    config["full_attn_idxs"] = [i for i, kind in enumerate(config.pop("layer_types")) if kind == "full_attention"]
    config["theta"] = config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["tie_embedding"] = config.pop("tie_word_embeddings")
    config |= {"block_dim": 64, "conv_dim": 64, "conv_dim_out": 64, "num_heads": 4, "block_norm_eps": 1e-5}
    config |= {
        "block_use_swiglu": True,
        "use_pos_enc": True,
        "block_use_xavier_init": True,
        "block_mlp_init_scale": 1.0,
    }


def _published_qwen3_5(config: dict[str, Any]) -> None:
    """With values that change nothing of a text, and the interval instead of a list."""
    del config["layer_types"]
    config |= {"full_attention_interval": 2, "attn_output_gate": True, "mamba_ssm_dtype": "float32"}
    config |= {"mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False}
    config["rope_parameters"] |= {"mrope_interleaved": True, "mrope_section": [2, 1, 1]}


def _without_width(config: dict[str, Any]) -> None:
    """A model without layers without experts need not say how wide their networks would be."""
    del config["intermediate_size"]


def _without_lists(config: dict[str, Any]) -> None:
    """Kinds of layers by the rule of the architecture."""
    del config["layer_types"]


#: Arguments of `Variant`.
VARIANTS: list[tuple[Any, ...]] = [
    ("qwen3_5_text", "plain", {**DELTA, "intermediate_size": 96}, "qwen35"),
    (
        "qwen3_5_text",
        "published-tied-biases",
        {
            **DELTA,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 48,
            "linear_conv_kernel_dim": 2,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
            "attention_bias": True,
        },
        None,
        True,
        _published_qwen3_5,
    ),
    ("qwen3_5_moe_text", "plain", {**DELTA, **SHARED, "moe_intermediate_size": 36}, "qwen35moe"),
    ("qwen3_5_moe_text", "published", {**DELTA, **SHARED, "moe_intermediate_size": 36}, None, True, _without_width),
    ("qwen3_next", "plain", {**DELTA, **SHARED, "moe_intermediate_size": 48}, "qwen3next"),
    (
        "qwen3_next",
        "dense-layers",
        {**DELTA, **SHARED, "decoder_sparse_step": 2, "mlp_only_layers": [3], "norm_topk_prob": False},
        None,
        True,
        _without_lists,
    ),
    ("lfm2", "plain", {**CONV, "block_multiple_of": 32}, "lfm2"),
    ("lfm2", "published", {**CONV, "conv_bias": True, "conv_L_cache": 4}, None, True, _published_lfm2),
    (
        "lfm2",
        "untied-plain-width",
        {
            **CONV,
            "layer_types": ["full_attention", "conv", "conv", "conv"],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": False,
        },
        "lfm2",
    ),
    ("lfm2_moe", "plain", {**CONV, **CHOSEN, "moe_intermediate_size": 32, "num_dense_layers": 1}, "lfm2moe"),
    (
        "lfm2_moe",
        "scaled",
        {
            **CONV,
            **CHOSEN,
            "moe_intermediate_size": 32,
            "num_dense_layers": 0,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 2.5,
        },
    ),
]


def write_hybrid_metadata(writer: gguf.GGUFWriter, arch: str, c: Any) -> None:
    """What only these architectures have; heads of keys are said of each layer where some have none."""
    if arch in CONV_ARCHES:
        writer.add_head_count_kv([c.num_key_value_heads if kind != "conv" else 0 for kind in c.layer_types])
        writer.add_layer_norm_rms_eps(c.norm_eps)
        writer.add_vocab_size(c.vocab_size)
        writer.add_shortconv_l_cache(c.conv_L_cache)
    else:
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
        writer.add_ssm_conv_kernel(c.linear_conv_kernel_dim)
        writer.add_ssm_state_size(c.linear_key_head_dim)
        writer.add_ssm_group_count(c.linear_num_key_heads)
        writer.add_ssm_time_step_rank(c.linear_num_value_heads)
        writer.add_ssm_inner_size(c.linear_value_head_dim * c.linear_num_value_heads)
        writer.add_full_attention_interval(INTERVAL)
        writer.add_rope_dimension_count(int(c.head_dim * c.rope_parameters["partial_rotary_factor"]))
    if arch in ("qwen35", "qwen35moe"):
        writer.add_rope_dimension_sections([11, 11, 10, 0])
    if arch in ("qwen35moe", "qwen3next"):
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
        writer.add_expert_shared_feed_forward_length(c.shared_expert_intermediate_size)
    if arch == "lfm2moe":
        writer.add_expert_feed_forward_length(c.moe_intermediate_size)
        writer.add_leading_dense_block_count(c.num_dense_layers)
        writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)


def feed_forward_length(arch: str, c: Any) -> int:
    """Of LFM2 it is the one that follows from the configuration."""
    size: int = c.intermediate_size
    if arch != "lfm2" or not c.block_auto_adjust_ff_dim:
        return size
    size = int(c.block_ffn_dim_multiplier * int(2 * size / 3))
    return c.block_multiple_of * ((size + c.block_multiple_of - 1) // c.block_multiple_of)


def hybrid_tensors(arch: str, c: Any, name: str, value: Array) -> Iterator[tuple[str, Array]]:
    """A parameter as the tensors that stand for it, by names that `gguf` translates."""
    if arch in CONV_ARCHES:
        if "conv.conv" in name:
            value = value.squeeze(1)
        yield name.replace(".expert_bias", ".expert_bias.bias"), value
        return
    if "linear_attn." in name and arch != "qwen3next":
        value = _tiled(c, name, value)
    if name.endswith(".A_log"):
        value = -np.exp(value)
    elif name.endswith(".dt_bias"):
        name = name.replace(".dt_bias", ".dt_proj.bias")
    elif "conv1d" in name:
        value = value.squeeze()
    elif name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        value = value + np.float32(1)
    if "in_proj_qkvz.weight" in name:
        yield from _apart(c, name, value)
    else:
        yield name, value


def _tiled(c: Any, name: str, value: Array) -> Array:
    """Value heads of one key head apart from each other: first one of each key head, then the next one of each."""
    keys, values, dim = c.linear_num_key_heads, c.linear_num_value_heads, c.linear_value_head_dim
    order = np.arange(values).reshape(keys, values // keys).T.reshape(-1)
    wide = (order[:, None] * dim + np.arange(dim)).reshape(-1)
    before = 2 * keys * c.linear_key_head_dim
    if ".in_proj_qkv." in name or ".conv1d." in name:
        return np.concatenate([value[:before], value[before:][wide]])
    if ".in_proj_z." in name:
        return value[wide]
    if ".out_proj." in name:
        return value[:, wide]
    return value if ".norm." in name else value[order]


def _apart(c: Any, name: str, value: Array) -> Iterator[tuple[str, Array]]:
    """Queries, keys and values of all heads in one matrix, and their gates in another."""
    keys, shared = c.linear_num_key_heads, c.linear_num_value_heads // c.linear_num_key_heads
    each = value.reshape(keys, -1, value.shape[1])
    dim = c.linear_key_head_dim
    stops = (dim, 2 * dim, 2 * dim + shared * c.linear_value_head_dim)
    q, k, v, z = (part.reshape(-1, value.shape[1]) for part in np.split(each, stops, axis=1))
    yield name.replace("in_proj_qkvz", "in_proj_qkv"), np.concatenate([q, k, v])
    yield name.replace("in_proj_qkvz", "in_proj_z"), z
