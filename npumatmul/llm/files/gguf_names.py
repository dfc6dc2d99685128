"""What tensors of GGUF files are called as parameters of Hugging Face's models, and how llama.cpp changed their values.

Its converters (conversion/llama.py, gemma.py, phi.py of llama.cpp) permute rows of query and key projections of the
llama family, add 1 to weights of gemma's norms, and write tables of rotary factors as tensors. Of linear attention they
write ``-exp(A_log)``, and order value heads so that those of one key head do not stand together (conversion/qwen.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from npumatmul.llm.files.model_source import Float32

__all__ = ["ARCHITECTURES", "COMPUTED", "ROPE_FACTORS", "Change", "Layout", "parameter_name"]

#: Tables that old converters stored, and that every model computes: no parameters.
COMPUTED = ("attn_rot_embd", "rotary_emb.inv_freq")
#: Tensors of divisors of frequencies, and what they are called in `ModelSource.rope_factors`.
ROPE_FACTORS = {
    "rope_freqs.weight": "freqs",
    "rope_factors_long.weight": "long",
    "rope_factors_short.weight": "short",
}

_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_USUAL = {**_ATTENTION, **_FEED_FORWARD, "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_EXPERTS = {
    **_ATTENTION,
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_GPT_OSS = {**_EXPERTS, "post_attention_norm": "post_attention_layernorm", "attn_sinks.weight": "self_attn.sinks"}
del _GPT_OSS["ffn_norm"]
_DELTA = {
    **_ATTENTION,
    **_HEAD_NORMS,
    "post_attention_norm": "post_attention_layernorm",
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_ba": "linear_attn.in_proj_ba",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_SHARED = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_gate_up_exps": "mlp.experts.gate_up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_LFM2 = {
    "attn_norm": "operator_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
_LFM2_EXPERTS = {
    **_LFM2,
    "ffn_gate_inp": "feed_forward.gate",
    "ffn_gate_exps": "feed_forward.experts.gate_proj",
    "ffn_up_exps": "feed_forward.experts.up_proj",
    "ffn_down_exps": "feed_forward.experts.down_proj",
    "exp_probs_b.bias": "feed_forward.expert_bias",
}
_LFM2_OUTSIDE = {"token_embd": "model.embed_tokens", "token_embd_norm": "model.embedding_norm", "output": "lm_head"}
_FOUR_NORMS = {
    **_ATTENTION,
    **_FEED_FORWARD,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA4 = {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "layer_output_scale.weight": "layer_scalar",
}
_GEMMA4_OUTSIDE = {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}

_BERT = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_BERT_OUTSIDE = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}

_BLOCK = re.compile(r"blk\.(?P<layer>0|[1-9]\d{0,5})\.(?P<rest>\w+(?:\.\w+){0,2})")
_WHOLE = re.compile(r"(?P<stem>\w+)\.(?P<ending>weight|bias)")


@dataclass(frozen=True)
class Change:
    """How a parameter follows from a tensor.

    Attributes
    ----------
    shape : callable
        From the tensor's shape to the parameter's.
    values : callable
        From the tensor's values to the parameter's, before they are given its shape.
    """

    shape: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda shape: shape
    values: Callable[[Float32], Float32] = lambda values: values


def _kernel_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[0], 1, shape[1]) if len(shape) == 2 else shape


def _logarithm(values: Float32) -> Float32:
    if not (values < 0).all():
        raise ValueError("holds a rate that is not below 0, with which states would grow without bound")
    found: Float32 = np.log(-values)
    return found


#: A kernel of each channel lacks the dimension of size 1.
_KERNEL = Change(_kernel_shape)
_DELTA_CHANGES = {
    "linear_attn.conv1d.weight": _KERNEL,
    "linear_attn.A_log": Change(values=_logarithm),
    "mlp.shared_expert_gate.weight": Change(lambda shape: (1, *shape) if len(shape) == 1 else shape),
}
_LFM2_CHANGES = {"conv.conv.weight": _KERNEL}


@dataclass(frozen=True)
class Layout:
    """How the converters of llama.cpp write an architecture.

    Attributes
    ----------
    block : mapping of str to str
        From what tensors of a block are called to what its parameters are: without ``.weight`` or ``.bias``, or as a
        whole.
    interleaved_rope : bool
        Whether rows of query and key are permuted.
    norms_include_one : bool
        Whether 1 was added to weights of norms.
    outside : mapping of str to str
        As `block`, for what belongs to no block.
    blocks : str
        What names of parameters of blocks begin with.
    changes : mapping of str to Change
        By the ends of names of parameters.
    """

    block: Mapping[str, str]
    interleaved_rope: bool = False
    norms_include_one: bool = False
    outside: Mapping[str, str] = field(default_factory=lambda: _OUTSIDE)
    blocks: str = "model.layers"
    changes: Mapping[str, Change] = field(default_factory=dict)


#: By ``general.architecture``.
ARCHITECTURES: Mapping[str, Layout] = {
    "llama": Layout(_USUAL, interleaved_rope=True),
    "mistral3": Layout(_USUAL, interleaved_rope=True),
    "smollm3": Layout(_USUAL, interleaved_rope=True),
    "granite": Layout(_USUAL, interleaved_rope=True),
    "qwen2": Layout(_USUAL),
    "qwen3": Layout({**_USUAL, **_HEAD_NORMS}),
    "qwen2vl": Layout(_USUAL),
    "qwen3vl": Layout({**_USUAL, **_HEAD_NORMS}),
    "qwen3moe": Layout({**_FEED_FORWARD, **_EXPERTS, **_HEAD_NORMS}),
    "olmoe": Layout({**_EXPERTS, **_HEAD_NORMS}),
    "granitemoe": Layout(_EXPERTS, interleaved_rope=True),
    "gpt-oss": Layout(_GPT_OSS),
    "gemma2": Layout(_FOUR_NORMS, norms_include_one=True),
    "gemma3": Layout({**_FOUR_NORMS, **_HEAD_NORMS}, norms_include_one=True),
    "gemma4": Layout({**_FOUR_NORMS, **_HEAD_NORMS, **_GEMMA4}, outside={**_OUTSIDE, **_GEMMA4_OUTSIDE}),
    "phi3": Layout(_FUSED),
    "starcoder2": Layout(
        {**_ATTENTION, "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    ),
    "qwen35": Layout({**_DELTA, **_FEED_FORWARD}, norms_include_one=True, changes=_DELTA_CHANGES),
    "qwen35moe": Layout({**_DELTA, **_SHARED}, norms_include_one=True, changes=_DELTA_CHANGES),
    "qwen3next": Layout({**_DELTA, **_SHARED}, norms_include_one=True, changes=_DELTA_CHANGES),
    "lfm2": Layout(_LFM2, outside=_LFM2_OUTSIDE, changes=_LFM2_CHANGES),
    "lfm2moe": Layout(_LFM2_EXPERTS, outside=_LFM2_OUTSIDE, changes=_LFM2_CHANGES),
    "bert": Layout(_BERT, outside=_BERT_OUTSIDE, blocks="encoder.layer"),
}


def parameter_name(tensor: str, layout: Layout) -> str | None:
    """What a tensor is called as a parameter; None if the architecture has no such tensor.

    Examples
    --------
    >>> parameter_name("blk.3.ffn_up.weight", ARCHITECTURES["phi3"])
    'model.layers.3.mlp.gate_up_proj.weight'
    >>> parameter_name("blk.3.ffn_gate_exps.weight", ARCHITECTURES["llama"]) is None
    True
    """
    found = _BLOCK.fullmatch(tensor)
    if found is not None:
        name = layout.block.get(found["rest"])
        if name is None:
            stem, _, ending = found["rest"].rpartition(".")
            name = f"{layout.block[stem]}.{ending}" if stem in layout.block and ending in ("weight", "bias") else None
        return None if name is None else f"{layout.blocks}.{found['layer']}.{name}"
    found = _WHOLE.fullmatch(tensor)
    outside = None if found is None else layout.outside.get(found["stem"])
    return None if found is None or outside is None else f"{outside}.{found['ending']}"
