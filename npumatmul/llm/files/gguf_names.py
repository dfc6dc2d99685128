"""What tensors of GGUF files are called as parameters of Hugging Face's models, and how llama.cpp changed their values.

Its converters (conversion/llama.py, gemma.py, phi.py of llama.cpp) permute rows of query and key projections of the
llama family, add 1 to weights of gemma's norms, and write tables of rotary factors as tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["ARCHITECTURES", "COMPUTED", "ROPE_FACTORS", "Layout", "parameter_name"]

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
_GPT_OSS = {**_EXPERTS, "post_attention_norm": "post_attention_layernorm", "attn_sinks": "self_attn.sinks"}
del _GPT_OSS["ffn_norm"]
#: Tensors of parameters whose names end without ``weight``.
_BARE = frozenset({"attn_sinks", "layer_output_scale"})
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
    "layer_output_scale": "layer_scalar",
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

_BLOCK = re.compile(r"blk\.(?P<layer>0|[1-9]\d{0,5})\.(?P<stem>\w+)\.(?P<ending>weight|bias)")
_WHOLE = re.compile(r"(?P<stem>\w+)\.(?P<ending>weight|bias)")


@dataclass(frozen=True)
class Layout:
    """How the converters of llama.cpp write an architecture.

    Attributes
    ----------
    block : mapping of str to str
        From what tensors of a block are called to what its parameters are.
    interleaved_rope : bool
        Whether rows of query and key are permuted.
    norms_include_one : bool
        Whether 1 was added to weights of norms.
    outside : mapping of str to str
        As `block`, for what belongs to no block.
    blocks : str
        What names of parameters of blocks begin with.
    """

    block: Mapping[str, str]
    interleaved_rope: bool = False
    norms_include_one: bool = False
    outside: Mapping[str, str] = field(default_factory=lambda: _OUTSIDE)
    blocks: str = "model.layers"


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
        stem = layout.block.get(found["stem"])
        ending = "" if found["stem"] in _BARE else f".{found['ending']}"
        return None if stem is None else f"{layout.blocks}.{found['layer']}.{stem}{ending}"
    found = _WHOLE.fullmatch(tensor)
    stem = None if found is None else layout.outside.get(found["stem"])
    return None if found is None or stem is None else f"{stem}.{found['ending']}"
