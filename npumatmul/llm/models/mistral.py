"""Mistral, the first Ministral and Ministral 3.

Llama with windows, on all layers or on those that ``layer_types`` names. GGUF files of Mistral are those of Llama,
which have no windows: llama.cpp writes them so, and computes without. Ministral 3 has none; its queries grow with their
position, and its frequencies are scaled as YaRN does.
"""

from __future__ import annotations

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["MINISTRAL", "MINISTRAL3", "MISTRAL"]


def _from_config(settings: Settings, name: str) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    n_layers = sizes["n_layers"]
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    window = settings.window("sliding_window", None)
    if window is None and "sliding_window" not in settings.names:
        window = 4096  # what both architectures take a missing value for; null means none
    sliding = [window is not None] * n_layers
    if name == "mistral":
        settings.must_be("layer_types", None, [f"{'sliding' if window else 'full'}_attention"] * n_layers)
        windows = [window] * n_layers
    else:
        windows = from_folder.layer_windows(settings, n_layers, sliding, window)
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture=name,
        layers=from_folder.alike(turned, windows),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=from_folder.activation(settings),
        tied=settings.flag("tie_word_embeddings", False),
    )


MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""What the architecture takes a missing value for."""


def _ministral3_from_config(settings: Settings) -> DecoderConfig:
    sizes = from_folder.sizes(settings, head_dim=128)
    if "rope_parameters" not in settings and "rope_scaling" not in settings:
        settings = settings.with_default("rope_parameters", MINISTRAL3_ROPE)
    turned = from_folder.rotation(
        settings,
        sizes["head_dim"],
        sizes["context_length"],
        beside=("llama_4_scaling_beta", "max_position_embeddings"),
    )
    if turned.scaling is None or turned.scaling["rope_type"] != "yarn":
        raise settings.error("'rope_parameters.rope_type' must be 'yarn' in this architecture")
    given = settings.group("rope_scaling") or settings.group("rope_parameters")
    assert given is not None
    beta = given.number("llama_4_scaling_beta")
    return from_folder.decoder_config(
        settings,
        **sizes,
        architecture="ministral3",
        layers=from_folder.alike(turned, from_folder.no_windows(settings, sizes["n_layers"])),
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        activation=from_folder.activation(settings),
        tied=settings.flag("tie_word_embeddings", False),
        query_growth=_growth(beta, turned.scaling["original_max_position_embeddings"]),
    )


def _ministral3_from_gguf(settings: GGUFSettings) -> DecoderConfig:
    sizes = from_gguf.sizes(settings)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    before = settings.size("rope.scaling.original_context_length", sizes["context_length"])
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture="ministral3",
        layers=(LayerConfig(turned),),
        query_growth=_growth(settings.number("attention.temperature_scale", 0.0), before),
    )


def _growth(beta: float, length: int) -> tuple[float, int] | None:
    return (beta, length) if beta else None


MISTRAL = Architecture(
    "mistral",
    model_types=("mistral",),
    classes=("MistralForCausalLM", "MistralModel"),
    from_config=lambda settings: _from_config(settings, "mistral"),
    models="Mistral 7B, Mistral Nemo, Mistral Small (text)",
)
MINISTRAL = Architecture(
    "ministral",
    model_types=("ministral",),
    classes=("MinistralForCausalLM", "MinistralModel"),
    from_config=lambda settings: _from_config(settings, "ministral"),
    models="Ministral 8B",
)
MINISTRAL3 = Architecture(
    "ministral3",
    model_types=("ministral3",),
    classes=("Ministral3ForCausalLM", "Ministral3Model"),
    from_config=_ministral3_from_config,
    gguf=("mistral3",),
    from_gguf=_ministral3_from_gguf,
    models="Ministral 3 (text)",
)
