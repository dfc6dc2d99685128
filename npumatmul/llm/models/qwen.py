"""Qwen 2 and 2.5, distills of DeepSeek-R1 that were made of them, and Qwen 3.

Llama with biases of queries, keys and values in Qwen 2; in Qwen 3 without, but with each head of queries and keys
normalized. Both can slide a window in the layers from ``max_window_layers`` on, which no published model does.
"""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["QWEN2", "QWEN3", "window_layers"]


def window_layers(settings: Settings, n_layers: int, usual: int = 28) -> list[int | None]:
    """Which layers slide a window; `usual` is what a missing ``max_window_layers`` means."""
    window = settings.window("sliding_window", 4096)
    if not settings.flag("use_sliding_window", False):
        window = None
    first = settings.integer("max_window_layers", usual)
    rule = [window is not None and layer >= first for layer in range(n_layers)]
    return from_folder.layer_windows(settings, n_layers, rule, window)


def _qwen2_from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="qwen2",
        layers=from_folder.alike(turned, window_layers(settings, sizes["n_layers"])),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=from_folder.activation(settings),
        qkv_bias=True,
        tied=settings.flag("tie_word_embeddings", False),
    )


def _qwen3_from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings, head_dim=128)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    bias = settings.flag("attention_bias", False)
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="qwen3",
        layers=from_folder.alike(turned, window_layers(settings, sizes["n_layers"])),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        qk_norm="head",
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
        tied=settings.flag("tie_word_embeddings", False),
    )


def _from_gguf(settings: GGUFSettings, name: str) -> DecoderConfig:
    sizes = from_gguf.sizes(settings)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    settings.ignore(("pooling_type",))  # of embedding models: how the last states are put together
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture=name,
        layers=(LayerConfig(turned),),
        qk_norm="head" if name == "qwen3" else None,
    )


QWEN2 = Architecture(
    "qwen2",
    model_types=("qwen2",),
    classes=("Qwen2ForCausalLM", "Qwen2Model"),
    from_config=_qwen2_from_config,
    gguf=("qwen2",),
    from_gguf=lambda settings: _from_gguf(settings, "qwen2"),
    models="Qwen 2 and 2.5, DeepSeek-R1-Distill-Qwen",
)
QWEN3 = Architecture(
    "qwen3",
    model_types=("qwen3",),
    classes=("Qwen3ForCausalLM", "Qwen3Model"),
    from_config=_qwen3_from_config,
    gguf=("qwen3",),
    from_gguf=lambda settings: _from_gguf(settings, "qwen3"),
    models="Qwen 3 (dense)",
)
