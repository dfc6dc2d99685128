"""Qwen 3.5, dense and with experts, and Qwen3-Next: three layers of linear attention to each one of attention.

Attention has a gate on what it gives, rotates a quarter of each head, and normalizes heads as gemma does, by weights to
which 1 is added. All tokens pass one more expert, with a gate of its own.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, Experts, LayerConfig, Rotation
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.mixers import DeltaNet
from npumatmul.llm.models.settings import Settings

__all__ = ["QWEN3_5", "QWEN3_5_MOE", "QWEN3_NEXT"]

LINEAR, FULL = "linear_attention", "full_attention"
TOGETHER = ("qkvz", "ba")
"""Projections of linear attention that Qwen3-Next has in one matrix each."""
GUESSING = ("mtp.", "model.mtp.")
"""What names of layers begin with that guess tokens after the next one; they are left out."""
INTERVAL = 4
"""Every so many layers have attention where a file does not say it."""


def _delta_net(settings: Settings, name: str) -> DeltaNet:
    return DeltaNet(
        settings.size("linear_num_key_heads", 16),
        settings.size("linear_num_value_heads", 32),
        settings.size("linear_key_head_dim", 128),
        settings.size("linear_value_head_dim", 128),
        settings.size("linear_conv_kernel_dim", 4),
        fused=TOGETHER if name == "qwen3_next" else (),
    )


def _layers(kinds: list[str], rotation: Rotation, mixer: DeltaNet, experts: list[Experts | None]) -> Any:
    return tuple(
        LayerConfig(experts=each, **({"mixer": mixer} if kind == LINEAR else {"rotation": rotation}))
        for kind, each in zip(kinds, experts, strict=True)
    )


def _from_config(settings: Settings, name: str) -> DecoderConfig:
    has_experts = name != "qwen3_5"
    if has_experts:  # layers without experts, which Qwen3-Next can have, need their width
        settings = settings.with_default("intermediate_size", 5632)
    sizes = from_folder.sizes(settings, head_dim=256, n_kv_heads=4 if name == "qwen3_5" else 2)
    n_layers = sizes["n_layers"]
    turned = from_folder.rotation(
        settings.with_default("partial_rotary_factor", 0.25),
        sizes["head_dim"],
        sizes["context_length"],
        beside=("mrope_section", "mrope_interleaved"),  # of images; a text has the same position three times
    )
    interval = settings.size("full_attention_interval", INTERVAL)
    rule = [LINEAR if (i + 1) % interval else FULL for i in range(n_layers)]
    kinds = from_folder.layer_kinds(settings, n_layers, rule, (LINEAR, FULL))
    settings.must_be("attn_output_gate", True)
    settings.ignore(
        (
            "mamba_ssm_dtype",  # that of the state, which is float32 here
            "mtp_num_hidden_layers",  # of layers that guess further tokens, which are left out
            "mtp_use_dedicated_embeddings",
        )
    )
    bias = settings.flag("attention_bias", False)
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture=name,
        layers=_layers(kinds, turned, _delta_net(settings, name), _experts(settings, name, n_layers)),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        qk_norm="head",
        attention_gate="sigmoid",
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
        tied=settings.flag("tie_word_embeddings", False),
    )


def _experts(settings: Settings, name: str, n_layers: int) -> list[Experts | None]:
    """What takes the place of the feed-forward network of each layer."""
    if name == "qwen3_5":
        return [None] * n_layers
    count, chosen = (512, 10) if name == "qwen3_next" else (256, 8)
    normalize = True
    step, dense = 1, []
    if name == "qwen3_next":
        normalize = settings.flag("norm_topk_prob", True)
        step, dense = settings.size("decoder_sparse_step", 1), settings.sequence("mlp_only_layers", int) or []
    made = from_folder.experts(settings, count, chosen, ("moe_intermediate_size", 512), normalize=normalize)
    made = dataclasses.replace(made, shared_size=settings.size("shared_expert_intermediate_size", 512))
    return [None if i in dense or (i + 1) % step else made for i in range(n_layers)]


def _kinds(settings: GGUFSettings, blocks: int) -> list[str]:
    """Where there is a list it counts, as in llama.cpp: converters write a usual interval beside it."""
    interval = settings.size("full_attention_interval", INTERVAL)
    recurrent = [(i + 1) % interval != 0 for i in range(blocks)]
    if "attention.recurrent_layers" in settings:
        recurrent = settings.flags("attention.recurrent_layers", blocks)
    return [LINEAR if each else FULL for each in recurrent]


def _from_gguf(settings: GGUFSettings, name: str) -> DecoderConfig:
    """llama.cpp has experts in every layer, and divides weights by their sum always."""
    has_experts = name != "qwen3_5"
    experts = None
    if has_experts:
        experts = from_gguf.experts(settings, size="expert_feed_forward_length", normalize=True)
        shared = settings.size("expert_shared_feed_forward_length", experts.size)
        experts = dataclasses.replace(experts, shared_size=shared)
    sizes = from_gguf.sizes(settings, has_experts=has_experts, ffn_size=None if experts is None else experts.size)
    kinds = _kinds(settings, sizes["n_layers"])
    sizes["n_layers"] -= settings.guessing_layers()
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    settings.ignore(("rope.dimension_sections",))
    key_heads, value_heads = settings.size("ssm.group_count"), settings.size("ssm.time_step_rank")
    inner = settings.size("ssm.inner_size")
    if inner % value_heads:
        raise settings.error(f"linear attention is {inner} wide, which cannot be divided among {value_heads} heads")
    mixer = DeltaNet(
        key_heads,
        value_heads,
        settings.size("ssm.state_size"),
        inner // value_heads,
        settings.size("ssm.conv_kernel"),
        fused=TOGETHER[1:] if name == "qwen3_next" else (),
        tiled=name != "qwen3_next",
    )
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture=name,
        layers=_layers(kinds[: sizes["n_layers"]], turned, mixer, [experts] * sizes["n_layers"]),
        norm_offset=0.0 if settings.norms_include_one else 1.0,
        qk_norm="head",
        attention_gate="sigmoid",
    )


QWEN3_5 = Architecture(
    "qwen3_5",
    model_types=("qwen3_5_text",),
    classes=("Qwen3_5ForCausalLM", "Qwen3_5TextModel"),
    from_config=lambda settings: _from_config(settings, "qwen3_5"),
    gguf=("qwen35",),
    from_gguf=lambda settings: _from_gguf(settings, "qwen3_5"),
    models="Qwen 3.5 (dense, text)",
    left_out=GUESSING,
)
QWEN3_5_MOE = Architecture(
    "qwen3_5_moe",
    model_types=("qwen3_5_moe_text",),
    classes=("Qwen3_5MoeForCausalLM", "Qwen3_5MoeTextModel"),
    from_config=lambda settings: _from_config(settings, "qwen3_5_moe"),
    gguf=("qwen35moe",),
    from_gguf=lambda settings: _from_gguf(settings, "qwen3_5_moe"),
    models="Qwen 3.5 (experts, text)",
    left_out=GUESSING,
)
QWEN3_NEXT = Architecture(
    "qwen3_next",
    model_types=("qwen3_next",),
    classes=("Qwen3NextForCausalLM", "Qwen3NextModel"),
    from_config=lambda settings: _from_config(settings, "qwen3_next"),
    gguf=("qwen3next",),
    from_gguf=lambda settings: _from_gguf(settings, "qwen3_next"),
    models="Qwen3-Next, Qwen3-Coder-Next",
    left_out=GUESSING,
)
