"""Granite 3 (dense): Llama with factors of embeddings, scores, what blocks add, and logits."""

from __future__ import annotations

from typing import Any

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["GRANITE", "factors_of_config", "factors_of_gguf"]


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    bias = settings.flag("attention_bias", False)
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="granite",
        layers=from_folder.alike(turned, from_folder.no_windows(settings, sizes["n_layers"])),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=settings.flag("mlp_bias", False),
        tied=settings.flag("tie_word_embeddings", False),
        **factors_of_config(settings),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    sizes = from_gguf.sizes(settings)
    settings.must_be("rope.scaling.finetuned", True)  # of Granite: whether positions are rotated at all
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture="granite",
        layers=(LayerConfig(turned),),
        **factors_of_gguf(settings),
    )


def factors_of_config(settings: Settings) -> dict[str, Any]:
    """The factors in a config.json, as arguments of `DecoderConfig`."""
    return {
        "query_scale": settings.number("attention_multiplier", 1.0),
        "embedding_scale": settings.number("embedding_multiplier", 1.0),
        "residual_scale": settings.number("residual_multiplier", 1.0),
        "logit_scale": _inverse(settings, "logits_scaling", settings.number("logits_scaling", 1.0)),
    }


def factors_of_gguf(settings: GGUFSettings) -> dict[str, Any]:
    """The factors in a GGUF file, as arguments of `DecoderConfig`."""
    return {
        "query_scale": settings.number("attention.scale", 0.0) or None,
        "embedding_scale": settings.number("embedding_scale", 0.0) or 1.0,
        "residual_scale": settings.number("residual_scale", 0.0) or 1.0,
        "logit_scale": _inverse(settings, "logit_scale", settings.number("logit_scale")),
    }


def _inverse(settings: Settings, name: str, divisor: float) -> float:
    if not divisor > 0:
        raise settings.error(f"{name!r} is {divisor}; it must be a positive number")
    return 1 / divisor


GRANITE = Architecture(
    "granite",
    model_types=("granite",),
    classes=("GraniteForCausalLM", "GraniteModel"),
    from_config=_from_config,
    gguf=("granite",),
    from_gguf=_from_gguf,
    models="Granite 3.0 to 3.3 (dense)",
)
