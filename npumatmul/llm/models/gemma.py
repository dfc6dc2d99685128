"""Gemma 2, and the text model of Gemma 3.

RMSNorm, whose weights are added to 1, before and after attention and network; GeGLU; scaled embeddings; windows on all
layers but every second (Gemma 2) or sixth (Gemma 3). Gemma 2 bounds scores and logits; Gemma 3 normalizes queries and
keys, and rotates them by another base where a window slides.
"""

from __future__ import annotations

import math
from typing import Any

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig, Rotation
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["GEMMA2", "GEMMA3"]

GEMMA2_EVERY, GEMMA3_EVERY = 2, 6  # of so many layers, the last attends to everything
LOCAL_THETA = 10000.0
LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of the 27B models, where the scores have a factor of their own
GEMMA3_SIZES = {"vocab_size": 262208, "num_attention_heads": 8, "max_position_embeddings": 131072}
"""What the architecture takes missing sizes for."""


def _sliding(n_layers: int, every: int) -> list[bool]:
    return [(layer + 1) % every != 0 for layer in range(n_layers)]


def _common(settings: Settings, sizes: dict[str, Any]) -> dict[str, Any]:
    settings.must_be("use_bidirectional_attention", False)
    settings.ignore(("hidden_act",) if "hidden_activation" in settings else ())
    bias = settings.flag("attention_bias", False)
    name = "hidden_activation" if "hidden_activation" in settings else "hidden_act"
    return {
        "norm_eps": settings.number("rms_norm_eps", 1e-6),
        "norm_offset": 1.0,
        "norm_places": "around",
        "activation": from_folder.activation(settings, name, "gelu_pytorch_tanh"),
        "qkv_bias": bias,
        "out_bias": bias,
        "tied": settings.flag("tie_word_embeddings", True),
        "query_scale": settings.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        "embedding_scale": math.sqrt(sizes["hidden_size"]),
    }


def _gemma2_from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings, head_dim=256, n_kv_heads=4)
    n_layers = sizes["n_layers"]
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    window = settings.window("sliding_window", 4096)
    windows = from_folder.layer_windows(settings, n_layers, _sliding(n_layers, GEMMA2_EVERY), window)
    return from_folder.decoder_config(
        settings,
        **sizes,
        **_common(settings, sizes),
        architecture="gemma2",
        layers=from_folder.alike(turned, windows),
        attention_softcap=from_folder.number_or_none(settings, "attn_logit_softcapping", 50.0),
        logit_softcap=from_folder.number_or_none(settings, "final_logit_softcapping", 30.0),
    )


def _gemma3_from_config(settings: Settings) -> DecoderConfig:
    for name, value in GEMMA3_SIZES.items():  # files of models that see say them only where they are others
        settings = settings.with_default(name, value)
    sizes = from_folder.sizes(settings, head_dim=256, n_kv_heads=4)
    n_layers, head_dim = sizes["n_layers"], sizes["head_dim"]
    every = settings.size("sliding_window_pattern", settings.size("_sliding_window_pattern", GEMMA3_EVERY))
    window = settings.window("sliding_window", 4096)
    windows = from_folder.layer_windows(settings, n_layers, _sliding(n_layers, every), window)
    whole = from_folder.rotation(settings, head_dim, sizes["context_length"], 1e6, kind="full_attention")
    theta = settings.number("rope_local_base_freq", LOCAL_THETA)
    local = from_folder.rotation_of_kind(settings, head_dim, sizes["context_length"], theta, "sliding_attention")
    return from_folder.decoder_config(
        settings,
        **sizes,
        **_common(settings, sizes),
        architecture="gemma3",
        qk_norm="head",
        layers=_by_window(whole, local, windows),
        attention_softcap=settings.number("attn_logit_softcapping", None),
        logit_softcap=settings.number("final_logit_softcapping", None),
    )


def _from_gguf(settings: GGUFSettings, name: str) -> DecoderConfig:
    sizes = from_gguf.sizes(settings)
    n_layers, head_dim, heads = sizes["n_layers"], sizes["head_dim"], sizes["n_heads"]
    whole = from_gguf.rotation(settings, head_dim, sizes["context_length"])
    window = settings.window("attention.sliding_window", 4096 if name == "gemma2" else 0)
    every = settings.size("attention.sliding_window_pattern", GEMMA2_EVERY if name == "gemma2" else GEMMA3_EVERY)
    windows = [window if window and slides else None for slides in _sliding(n_layers, every)]
    theta = settings.number("rope.freq_base_swa", whole.theta if name == "gemma2" else LOCAL_THETA)
    same = whole.scaling if name == "gemma2" else None
    largest = n_layers == LARGEST[name]
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture=name,
        norm_offset=0.0 if settings.norms_include_one else 1.0,
        norm_places="around",
        qk_norm="head" if name == "gemma3" else None,
        activation="gelu_tanh",
        query_scale=(sizes["hidden_size"] // heads if largest and sizes["hidden_size"] >= heads else head_dim) ** -0.5,
        embedding_scale=math.sqrt(sizes["hidden_size"]),
        attention_softcap=settings.number("attn_logit_softcapping", 50.0 if name == "gemma2" else None),
        logit_softcap=settings.number("final_logit_softcapping", 30.0 if name == "gemma2" else None),
        layers=_by_window(whole, Rotation(whole.dim, theta, same, factors=whole.factors), windows),
    )


def _by_window(whole: Rotation, local: Rotation, windows: list[int | None]) -> tuple[LayerConfig, ...]:
    return tuple(LayerConfig(whole if window is None else local, window) for window in windows)


GEMMA2 = Architecture(
    "gemma2",
    model_types=("gemma2",),
    classes=("Gemma2ForCausalLM", "Gemma2Model"),
    from_config=_gemma2_from_config,
    gguf=("gemma2",),
    from_gguf=lambda settings: _from_gguf(settings, "gemma2"),
    models="Gemma 2",
)
GEMMA3 = Architecture(
    "gemma3",
    model_types=("gemma3_text",),
    classes=("Gemma3ForCausalLM", "Gemma3TextModel"),
    from_config=_gemma3_from_config,
    gguf=("gemma3",),
    from_gguf=lambda settings: _from_gguf(settings, "gemma3"),
    models="Gemma 3 (text: 270M, 1B)",
)
