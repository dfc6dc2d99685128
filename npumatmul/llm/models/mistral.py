"""Mistral and the first Ministral: Llama with windows, on all layers or on those that ``layer_types`` names.

Their GGUF files are those of Llama, which have no windows: llama.cpp writes them so, and computes without.
"""

from __future__ import annotations

from npumatmul.llm.models import from_folder
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.llm.models.settings import Settings

__all__ = ["MINISTRAL", "MISTRAL"]


def _from_config(settings: Settings, name: str) -> DecoderConfig:
    sizes = from_folder.sizes(settings)
    n_layers = sizes["n_layers"]
    turned = from_folder.rotation(settings, sizes["head_dim"], sizes["context_length"])
    window = settings.integer("sliding_window", None)
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


MISTRAL = Architecture(
    "mistral",
    model_types=("mistral",),
    from_config=lambda settings: _from_config(settings, "mistral"),
    models="Mistral 7B, Mistral Nemo, Mistral Small (text)",
)
MINISTRAL = Architecture(
    "ministral",
    model_types=("ministral",),
    from_config=lambda settings: _from_config(settings, "ministral"),
    models="Ministral 8B",
)
