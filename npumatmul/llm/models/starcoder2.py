"""StarCoder2: LayerNorm, biases everywhere, a network of GELU without a gate, and in some of them a window."""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["STARCODER2"]


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    window = settings.window("sliding_window", None)
    bias = settings.flag("use_bias", True)
    settings.must_be("norm_type", "layer_norm")
    settings.must_be("mlp_type", "default")
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="starcoder2",
        layers=(LayerConfig(turned, window),),
        norm="layer",
        norm_eps=settings.number("norm_epsilon", 1e-5),
        activation=from_folder.activation(settings, default="gelu_pytorch_tanh"),
        gated=False,
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=bias,
        tied=settings.flag("tie_word_embeddings", True),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    sizes = from_gguf.sizes(settings, eps="attention.layer_norm_epsilon")
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    bias = from_gguf.biases(settings)
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **{**bias, "mlp_bias": bias["out_bias"]},
        architecture="starcoder2",
        layers=(LayerConfig(turned),),
        norm="layer",
        activation="gelu_tanh",
        gated=False,
    )


STARCODER2 = Architecture(
    "starcoder2",
    model_types=("starcoder2",),
    classes=("Starcoder2ForCausalLM", "Starcoder2Model"),
    from_config=_from_config,
    gguf=("starcoder2",),
    from_gguf=_from_gguf,
    names={"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
    models="StarCoder2",
)
