"""OLMoE: experts in every layer, and queries and keys that are normalized over all heads together."""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["OLMOE"]


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    bias = settings.flag("attention_bias", False)
    normalize = settings.flag("norm_topk_prob", False)
    experts = from_folder.experts(settings, 64, 8, ("intermediate_size", None), normalize=normalize)
    from_folder.no_windows(settings, sizes["n_layers"])
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="olmoe",
        layers=(LayerConfig(turned, experts=experts),),
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        qk_norm="all",
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
        tied=settings.flag("tie_word_embeddings", False),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    """llama.cpp leaves weights of experts as the softmax gives them."""
    sizes = from_gguf.sizes(settings, has_experts=True)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    settings.must_be("attention.clamp_kqv", 0.0)
    experts = from_gguf.experts(settings, size="feed_forward_length")
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture="olmoe",
        layers=(LayerConfig(turned, experts=experts),),
        qk_norm="all",
    )


OLMOE = Architecture(
    "olmoe",
    model_types=("olmoe",),
    classes=("OlmoeForCausalLM", "OlmoeModel"),
    from_config=_from_config,
    gguf=("olmoe",),
    from_gguf=_from_gguf,
    models="OLMoE 1B-7B",
)
