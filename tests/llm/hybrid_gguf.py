"""GGUF files of models with linear attention or short convolutions, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

DELTA = ("qwen35", "qwen35moe", "qwen3next")
CONV = ("lfm2", "lfm2moe")
INTERVAL = 4


def write_hybrid_metadata(writer: gguf.GGUFWriter, arch: str, c: Any) -> None:
    """What only these architectures have; heads of keys are said of each layer where some have none."""
    if arch in CONV:
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
    if arch in CONV:
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
