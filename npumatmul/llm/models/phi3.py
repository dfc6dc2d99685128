"""Phi-3, Phi-3.5 and Phi-4 (and its mini): fused matrices, LongRoPE, and in some of them partial rotation.

The frequencies of LongRoPE depend on whether a sequence is longer than those that the model was first trained with.
"""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["PHI3"]


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    n_layers = sizes["n_layers"]
    window = settings.window("sliding_window", None)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"], aliases={"yarn": "longrope"})
    settings.must_be("full_attn_mod", 1)
    settings.must_be("interpolate_factor", 1)
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="phi3",
        layers=from_folder.alike(turned, [window] * n_layers),
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        activation=from_folder.activation(settings),
        fused=True,
        tied=settings.flag("tie_word_embeddings", False),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    sizes = from_gguf.sizes(settings)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    window = settings.window("attention.sliding_window", 0) or None
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture="phi3",
        fused=True,
        layers=(LayerConfig(turned, window),),
    )


PHI3 = Architecture(
    "phi3",
    model_types=("phi3",),
    classes=("Phi3ForCausalLM", "Phi3Model"),
    from_config=_from_config,
    gguf=("phi3",),
    from_gguf=_from_gguf,
    models="Phi-3, Phi-3.5 mini, Phi-4, Phi-4-mini",
)
