"""SmolLM3: Llama that tells no positions on every fourth layer."""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig, Rotation
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["SMOLLM3"]

INTERVAL = 4  # llama.cpp knows no other
THETA = 2_000_000.0


def _from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    n_layers = sizes["n_layers"]
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"], THETA)
    interval = settings.size("no_rope_layer_interval", INTERVAL)
    told = settings.sequence("no_rope_layers", int)  # 1 where positions are told
    if told is None:
        told = _told(n_layers, interval)
    if len(told) < n_layers or not {0, 1}.issuperset(told):
        raise settings.error(f"'no_rope_layers' must have a 0 or a 1 for each of the {n_layers} layers")
    window = settings.window("sliding_window", None)
    slides = settings.flag("use_sliding_window", False) and window is not None
    windows = from_folder.layer_windows(settings, n_layers, [slides and not each for each in told[:n_layers]], window)
    bias = settings.flag("attention_bias", False)
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="smollm3",
        layers=_layers(turned, told, windows),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
        mlp_bias=settings.flag("mlp_bias", False),
        tied=settings.flag("tie_word_embeddings", True),
    )


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    sizes = from_gguf.sizes(settings)
    n_layers = sizes["n_layers"]
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    layers = _layers(turned, _told(n_layers, INTERVAL), [None] * n_layers)
    return from_gguf.decoder_config(
        settings, **sizes, **from_gguf.biases(settings), architecture="smollm3", layers=layers
    )


def _told(n_layers: int, interval: int) -> list[int]:
    return [int((layer + 1) % interval != 0) for layer in range(n_layers)]


def _layers(turned: Rotation, told: list[int], windows: list[int | None]) -> tuple[LayerConfig, ...]:
    return tuple(LayerConfig(turned if told[i] else None, window) for i, window in enumerate(windows))


SMOLLM3 = Architecture(
    "smollm3",
    model_types=("smollm3",),
    classes=("SmolLM3ForCausalLM", "SmolLM3Model"),
    from_config=_from_config,
    gguf=("smollm3",),
    from_gguf=_from_gguf,
    models="SmolLM3",
)
