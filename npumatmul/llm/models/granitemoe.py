"""Granite 3 with experts: Granite, and in every layer experts with a softmax over the scores of the chosen ones."""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.granite import factors_of_config, factors_of_gguf
from npumatmul.llm.models.settings import Settings

__all__ = ["GRANITEMOE"]


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    bias = settings.flag("attention_bias", False)
    experts = from_folder.experts(settings, 8, 2, ("intermediate_size", None), softmax="chosen")
    from_folder.no_windows(settings, sizes["n_layers"])
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="granitemoe",
        layers=(LayerConfig(turned, experts=experts),),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
        tied=settings.flag("tie_word_embeddings", False),
        **factors_of_config(settings),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    sizes = from_gguf.sizes(settings, has_experts=True)
    settings.must_be("rope.scaling.finetuned", True)  # of Granite: whether positions are rotated at all
    settings.must_be("expert_shared_feed_forward_length", 0)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    experts = from_gguf.experts(settings, size="feed_forward_length", softmax="chosen")
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture="granitemoe",
        layers=(LayerConfig(turned, experts=experts),),
        **factors_of_gguf(settings),
    )


GRANITEMOE = Architecture(
    "granitemoe",
    model_types=("granitemoe",),
    classes=("GraniteMoeForCausalLM", "GraniteMoeModel"),
    from_config=_from_config,
    gguf=("granitemoe",),
    from_gguf=_from_gguf,
    models="Granite 3.0 and 3.1 (experts: 1B-A400M, 3B-A800M)",
)
