"""gpt-oss: experts with biases and a bounded gate, attention that may go to a sink, windows on every second layer."""

from __future__ import annotations

import dataclasses
from typing import Any

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["GPT_OSS"]

THETA = 150000.0
YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
ALPHA, LIMIT = 1.702, 7.0


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings, head_dim=64, n_kv_heads=8)
    n_layers = sizes["n_layers"]
    if "rope_scaling" not in settings:
        settings = settings.with_default("rope_parameters", YARN)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"], THETA)
    window = settings.window("sliding_window", 128)
    windows = from_folder.layer_windows(settings, n_layers, _sliding(n_layers), window)
    clamp = settings.positive("swiglu_alpha", ALPHA), settings.positive("swiglu_limit", LIMIT)
    width = ("intermediate_size", None)
    experts = from_folder.experts(settings, 128, 4, width, softmax="chosen", bias=True, clamp=clamp)
    settings.must_be("experts_per_token", experts.chosen)
    settings.must_be("hidden_act", "silu")
    settings.ignore(("initial_context_length",))  # the scaling has it
    bias = settings.flag("attention_bias", True)
    return from_folder.decoder_config(
        settings,
        quantized="mxfp4",
        **sizes,
        **_parts(),
        layers=tuple(LayerConfig(turned, each, experts) for each in windows),
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        qkv_bias=bias,
        out_bias=bias,
        tied=settings.flag("tie_word_embeddings", False),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    """llama.cpp rounds where yarn begins and ends; the model was trained without that, and is computed so here."""
    sizes = from_gguf.sizes(settings, has_experts=True)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    if turned.scaling is not None and turned.scaling["rope_type"] == "yarn":
        turned = dataclasses.replace(turned, scaling={**turned.scaling, "truncate": False})
    window = settings.window("attention.sliding_window", 0)
    size = "expert_feed_forward_length"
    experts = from_gguf.experts(settings, size=size, softmax="chosen", bias=True, clamp=(ALPHA, LIMIT))
    slides = _sliding(sizes["n_layers"])
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        **_parts(),
        layers=tuple(LayerConfig(turned, window if window and each else None, experts) for each in slides),
    )


def _sliding(n_layers: int) -> list[bool]:
    return [layer % 2 == 0 for layer in range(n_layers)]


def _parts() -> dict[str, Any]:
    return {"architecture": "gpt_oss", "sinks": True}


GPT_OSS = Architecture(
    "gpt_oss",
    model_types=("gpt_oss",),
    classes=("GptOssForCausalLM", "GptOssModel"),
    from_config=_from_config,
    gguf=("gpt-oss",),
    from_gguf=_from_gguf,
    models="gpt-oss (20B, 120B)",
)
