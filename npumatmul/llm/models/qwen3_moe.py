"""Qwen 3 with experts: Qwen 3 whose feed-forward networks, or every so many of them, are mixtures of experts."""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["QWEN3_MOE"]


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    n_layers = sizes["n_layers"]
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    bias = settings.flag("attention_bias", False)
    normalize = settings.flag("norm_topk_prob", False)
    experts = from_folder.experts(settings, 128, 8, ("moe_intermediate_size", 768), normalize=normalize)
    step, dense = settings.size("decoder_sparse_step", 1), settings.sequence("mlp_only_layers", int) or []
    window = settings.window("sliding_window", 4096)
    if not settings.flag("use_sliding_window", False):
        window = None
    windows = from_folder.layer_windows(settings, n_layers, [window is not None] * n_layers, window)
    layers = tuple(
        LayerConfig(turned, each, None if i in dense or (i + 1) % step else experts) for i, each in enumerate(windows)
    )
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="qwen3_moe",
        layers=layers,
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        qk_norm="head",
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
        tied=settings.flag("tie_word_embeddings", False),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    """llama.cpp has experts in every layer, and divides weights by their sum always."""
    sizes = from_gguf.sizes(settings, has_experts=True)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    experts = from_gguf.experts(settings, size="expert_feed_forward_length", normalize=True)
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture="qwen3_moe",
        layers=(LayerConfig(turned, experts=experts),),
        qk_norm="head",
    )


QWEN3_MOE = Architecture(
    "qwen3_moe",
    model_types=("qwen3_moe",),
    classes=("Qwen3MoeForCausalLM", "Qwen3MoeModel"),
    from_config=_from_config,
    gguf=("qwen3moe",),
    from_gguf=_from_gguf,
    models="Qwen 3 (experts: 30B-A3B), Qwen3-Coder",
)
