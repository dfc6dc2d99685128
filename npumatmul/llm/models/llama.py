"""Llama 2 and 3, TinyLlama, SmolLM2, distills of DeepSeek-R1 that were made of Llama: the plain decoder.

RMSNorm before attention and before a SwiGLU network; grouped heads; positions rotated, for long contexts with
frequencies divided by Llama 3's factors, which GGUF files hold as a tensor.
"""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["LLAMA"]


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    bias = settings.flag("attention_bias", False)
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="llama",
        layers=from_folder.alike(turned, from_folder.no_windows(settings, sizes["n_layers"])),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=settings.flag("mlp_bias", False),
        tied=settings.flag("tie_word_embeddings", False),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    sizes = from_gguf.sizes(settings)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    return from_gguf.decoder_config(
        settings, **sizes, **from_gguf.biases(settings), architecture="llama", layers=(LayerConfig(turned),)
    )


LLAMA = Architecture(
    "llama",
    model_types=("llama",),
    classes=("LlamaForCausalLM", "LlamaModel"),
    from_config=_from_config,
    gguf=("llama",),
    from_gguf=_from_gguf,
    models="Llama 2 and 3, TinyLlama, SmolLM2, DeepSeek-R1-Distill-Llama",
)
