"""LFM2: short convolutions, and attention in some layers; with experts, too.

Experts are chosen by the sigmoid of their score, to which a bias is added for the choice alone.
"""

from __future__ import annotations

import dataclasses
import math

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, Experts, LayerConfig, Rotation
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.mixers import ShortConv
from npumatmul.llm.models.settings import Settings

__all__ = ["LFM2", "LFM2_MOE"]

CONV, FULL = "conv", "full_attention"
THETA = 1e6
NAMES = {
    "self_attn.o_proj": "self_attn.out_proj",
    "q_norm": "q_layernorm",
    "k_norm": "k_layernorm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "mlp": "feed_forward",
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.norm": "model.embedding_norm",
}


def _layers(
    kinds: list[str], rotation: Rotation, mixer: ShortConv, experts: Experts | None = None, dense: int = 0
) -> tuple[LayerConfig, ...]:
    return tuple(
        LayerConfig(
            None if kind == CONV else rotation,
            experts=None if i < dense else experts,
            mixer=mixer if kind == CONV else None,
        )
        for i, kind in enumerate(kinds)
    )


def _from_config(settings: Settings, name: str) -> DecoderConfig:
    if "block_ff_dim" in settings:  # what the first models call it
        settings = settings.with_default("intermediate_size", settings.size("block_ff_dim"))
    sizes = from_folder.sizes(settings)
    n_layers, hidden = sizes["n_layers"], sizes["hidden_size"]
    for same in ("block_dim", "conv_dim", "conv_dim_out"):
        settings.must_be(same, hidden)
    settings.must_be("num_heads", sizes["n_heads"])
    theta = settings.number("theta", THETA)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"], theta)
    if "theta" in settings and turned.theta != theta:
        raise settings.error(f"'theta' is {theta}, and the base of its rotations elsewhere {turned.theta}")
    full = settings.sequence("full_attn_idxs", int)
    rule = [FULL if full is None or i in full else CONV for i in range(n_layers)]
    kinds = from_folder.layer_kinds(settings, n_layers, rule, (CONV, FULL))
    mixer = ShortConv(settings.size("conv_L_cache", 3), settings.flag("conv_bias", False))
    eps = settings.number("norm_eps", 1e-5)
    experts, dense = None, n_layers
    if name == "lfm2":
        sizes["ffn_size"] = _ffn_size(settings, sizes["ffn_size"])
    else:
        experts, dense = _experts(settings)
    settings.must_be("hidden_act", "silu", "swish")
    settings.must_be("block_use_swiglu", True)
    settings.must_be("use_pos_enc", True)
    settings.must_be("block_norm_eps", eps)
    settings.ignore(
        (
            "block_mlp_init_scale",
            "block_out_init_scale",
            "block_use_xavier_init",
            "conv_use_xavier_init",
        )
    )
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture=name,
        layers=_layers(kinds, turned, mixer, experts, dense),
        norm_eps=eps,
        qk_norm="head",
        tied=settings.flag("tie_embedding", settings.flag("tie_word_embeddings", True)),
    )


def _ffn_size(settings: Settings, size: int) -> int:
    """What the width inside the network is made of the one in the file."""
    adjusted, times = settings.flag("block_auto_adjust_ff_dim", True), settings.number("block_ffn_dim_multiplier", 1.0)
    multiple = settings.size("block_multiple_of", 256)
    if not adjusted:
        return size
    return int(multiple * math.ceil(int(times * int(2 * size / 3)) / multiple))


def _experts(settings: Settings) -> tuple[Experts, int]:
    """The experts, and how many layers come before the first that has them."""
    made = from_folder.experts(
        settings,
        32,
        4,
        ("moe_intermediate_size", 1792),
        softmax=None,
        normalize=settings.flag("norm_topk_prob", True),
    )
    scale = settings.positive("routed_scaling_factor", 1.0)
    preferred = settings.flag("use_expert_bias", True)
    return dataclasses.replace(made, scale=scale, preferred=preferred), settings.integer("num_dense_layers", 2)


def _from_gguf(settings: GGUFSettings, name: str) -> DecoderConfig:
    n_layers = settings.layers("block_count")
    heads = settings.sequence("attention.head_count_kv", int, n_layers)
    if heads is None or len(set(heads)) > 2 or not set(heads) > {0}:
        raise settings.error(
            "'lfm2.attention.head_count_kv' must say of each layer how many heads of keys it has: 0, or else one number"
        )
    has_experts = name == "lfm2_moe"
    sizes = from_gguf.sizes(settings, has_experts=has_experts, n_kv_heads=max(heads))
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    kinds = [FULL if each else CONV for each in heads]
    mixer = ShortConv(settings.size("shortconv.l_cache"))
    experts, dense = None, n_layers
    if has_experts:
        experts = from_gguf.experts(settings, size="expert_feed_forward_length", softmax=None, normalize=True)
        experts = dataclasses.replace(experts, preferred=True)
        dense = settings.integer("leading_dense_block_count")
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture=name,
        layers=_layers(kinds, turned, mixer, experts, dense),
        qk_norm="head",
    )


LFM2 = Architecture(
    "lfm2",
    model_types=("lfm2",),
    classes=("Lfm2ForCausalLM", "LFM2ForCausalLM", "Lfm2Model"),
    from_config=lambda settings: _from_config(settings, "lfm2"),
    gguf=("lfm2",),
    from_gguf=lambda settings: _from_gguf(settings, "lfm2"),
    names=NAMES,
    models="LFM2, LFM2.5 (text)",
)
LFM2_MOE = Architecture(
    "lfm2_moe",
    model_types=("lfm2_moe",),
    classes=("Lfm2MoeForCausalLM", "Lfm2MoeModel"),
    from_config=lambda settings: _from_config(settings, "lfm2_moe"),
    gguf=("lfm2moe",),
    from_gguf=lambda settings: _from_gguf(settings, "lfm2_moe"),
    names=NAMES,
    models="LFM2 (experts: 8B-A1B)",
)
