"""The language models of Gemma 4 (dense): Gemma 3's blocks, and what they have beyond these.

Layers that attend to everything have wider heads, of which a part is rotated, and perhaps values that are keys. In the
small models the last layers look at keys and values of those before them, and each layer has embeddings of tokens.
"""

from __future__ import annotations

import math
from typing import Any

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig, Rotation
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import Settings

__all__ = ["GEMMA4"]

EVERY = 6  # of so many layers, the last attends to everything
GLOBAL_THETA, LOCAL_THETA = 1e6, 1e4
ROTATIONS = {
    "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL_THETA},
    "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": GLOBAL_THETA},
}
#: Tokens and sizes of a whole model that the language model does not need.
AROUND = (
    "audio_token_id", "boa_token_id", "boi_token_id", "eoa_token_id", "eoa_token_index", "eoi_token_id",
    "image_token_id", "video_token_id", "vision_soft_tokens_per_image",
)  # fmt: skip


def _from_config(settings: Settings) -> DecoderConfig:
    text = settings.group("text_config")
    if text is None:
        if settings.text("model_type", None) == "gemma4":
            raise settings.error("'text_config' is missing, which describes its language model")
        return _language(settings, settings.flag("tie_word_embeddings", True))
    for encoder in ("vision_config", "audio_config"):
        settings.group(encoder)
    settings.ignore(AROUND)
    tied = settings.flag("tie_word_embeddings", True)
    settings.finish(ignored=from_folder.IGNORED)
    text.flag("tie_word_embeddings", tied)
    return _language(text, tied)


def _language(settings: Settings, tied: bool) -> DecoderConfig:
    settings.must_be("use_bidirectional_attention", None, "vision")  # which text does not have
    settings.must_be("enable_moe_block", False)
    settings.ignore(("num_experts", "top_k_experts", "moe_intermediate_size"))
    if "rope_scaling" not in settings:
        settings = settings.with_default("rope_parameters", ROTATIONS)
    sizes = from_folder.sizes(settings, head_dim=256, n_kv_heads=4)
    n_layers, context = sizes["n_layers"], sizes["context_length"]
    window = settings.window("sliding_window", 512)
    rule = [(layer + 1) % EVERY != 0 for layer in range(n_layers)]
    windows = from_folder.layer_windows(settings, n_layers, rule, window)
    windows[-1] = None
    keys = settings.flag("attention_k_eq_v", False)
    own = _own_sizes(settings, windows, keys)
    wide = settings.flag("use_double_wide_mlp", False)
    follows = _followed(settings, windows, settings.integer("num_kv_shared_layers", 0))
    layers = []
    for i, (each, source) in enumerate(zip(windows, follows, strict=True)):
        head_dim = own[i].get("head_dim", sizes["head_dim"])
        kind, theta = ("full_attention", GLOBAL_THETA) if each is None else ("sliding_attention", LOCAL_THETA)
        layers.append(
            LayerConfig(
                from_folder.rotation(settings, head_dim, context, theta, kind=kind),
                each,
                **own[i],
                ffn_size=2 * sizes["ffn_size"] if wide and source is not None else None,
                values="keys" if keys and each is None else "own",
                follows=source,
            )
        )
    bias = settings.flag("attention_bias", False)
    width = settings.integer("hidden_size_per_layer_input", 256)
    rows = settings.size("vocab_size_per_layer_input", 262144)
    return from_folder.decoder_config(
        settings,
        **sizes,
        **_parts(sizes["hidden_size"]),
        layers=tuple(layers),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        activation=from_folder.activation(settings, "hidden_activation", "gelu_pytorch_tanh"),
        qkv_bias=bias,
        out_bias=bias,
        tied=tied,
        logit_softcap=settings.number("final_logit_softcapping", None),
        layer_embedding=width,
        layer_vocab=rows if width else 0,
    )


def _own_sizes(settings: Settings, windows: list[int | None], keys: bool) -> list[dict[str, Any]]:
    """Sizes of layers that attend to everything, as they were published or as transformers writes them."""
    wide = settings.size("global_head_dim", 512)
    heads = settings.size("num_global_key_value_heads", None)
    given = settings.group("per_layer_config")
    if given is None:
        of_full = {"head_dim": wide, **({"n_kv_heads": heads} if keys and heads is not None else {})}
        return [of_full if each is None else {} for each in windows]
    found: list[dict[str, Any]] = []
    for i in range(len(windows)):
        own = given.group(str(i))
        found.append({})
        if own is not None:
            names = {"head_dim": own.size("head_dim", None), "n_kv_heads": own.size("num_key_value_heads", None)}
            found[i] = {name: value for name, value in names.items() if value is not None}
            own.finish()
    given.finish()
    return found


def _followed(settings: Settings, windows: list[int | None], shared: int) -> list[int | None]:
    """For each layer, which one's keys and values it looks at; None for its own."""
    first = len(windows) - shared
    if not 0 < first <= len(windows):
        raise settings.error(f"{shared} of its {len(windows)} layers look at keys of layers before them")
    found: list[int | None] = [None] * first
    for each in windows[first:]:
        alike = [i for i in range(first) if (windows[i] is None) == (each is None)]
        if not alike:
            raise settings.error(
                f"the last {shared} layers look at keys of others, and none before them is of their kind"
            )
        found.append(alike[-1])
    return found


def _parts(hidden_size: int) -> dict[str, Any]:
    return {
        "architecture": "gemma4",
        "norm_places": "around",
        "qk_norm": "head",
        "value_norm": True,
        "query_scale": 1.0,
        "embedding_scale": math.sqrt(hidden_size),
        "layer_scalar": True,
    }


def _from_gguf(settings: GGUFSettings) -> DecoderConfig:
    count = settings.layers("block_count")
    width = settings.size("attention.key_length_swa", settings.size("attention.key_length", 256))
    settings.size("attention.value_length_swa", width)
    per_layer = settings.is_list("attention.head_count_kv")
    kv_heads, ffn = _each(settings, "attention.head_count_kv", count), _each(settings, "feed_forward_length", count)
    settings = settings.replaced({"attention.head_count_kv": kv_heads[0], "feed_forward_length": ffn[0]})
    sizes = from_gguf.sizes(settings)
    full = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    local_dim = settings.size("rope.dimension_count_swa", width)
    local = Rotation(local_dim, settings.number("rope.freq_base_swa", LOCAL_THETA))
    slides = settings.flags("attention.sliding_window_pattern", count)
    window = settings.window("attention.sliding_window")
    windows = [window if each else None for each in slides]
    follows = _followed(settings, windows, settings.integer("attention.shared_kv_layers", 0))
    layers = tuple(
        LayerConfig(
            full if each is None else local,
            each,
            head_dim=sizes["head_dim"] if each is None else width,
            n_kv_heads=kv_heads[i],
            ffn_size=ffn[i],
            values="keys" if _has_keys_alone(settings, i, each is None and per_layer) else "own",
            follows=follows[i],
        )
        for i, each in enumerate(windows)
    )
    beside = settings.integer("embedding_length_per_layer_input", 0)
    return from_gguf.decoder_config(
        settings,
        **{**sizes, "head_dim": width},
        **from_gguf.biases(settings),
        **_parts(sizes["hidden_size"]),
        layers=layers,
        activation="gelu_tanh",
        logit_softcap=settings.number("final_logit_softcapping", None),
        layer_embedding=beside,
        layer_vocab=sizes["vocab_size"] if beside else 0,
    )


def _has_keys_alone(settings: GGUFSettings, layer: int, usual: bool) -> bool:
    """Whether a layer has no projection of values.

    A quantized file has neither here; there it is as usual, and what it has instead of both would not fit otherwise.
    """
    keys, values = (f"model.layers.{layer}.self_attn.{each}_proj.weight" in settings.parameters for each in "kv")
    return not values if keys or values else usual


def _each(settings: GGUFSettings, name: str, count: int) -> list[int]:
    """A size of each layer: one number, or a list of them."""
    if not settings.is_list(name):
        return [settings.size(name)] * count
    found = settings.sequence(name, int, count)
    assert found is not None
    if min(found) < 1:
        raise settings.error(f"{name!r} has sizes that are none")
    return found


GEMMA4 = Architecture(
    "gemma4",
    model_types=("gemma4", "gemma4_text"),
    classes=("Gemma4ForConditionalGeneration", "Gemma4Model", "Gemma4ForCausalLM", "Gemma4TextModel"),
    from_config=_from_config,
    gguf=("gemma4",),
    from_gguf=_from_gguf,
    models="Gemma 4 (dense, language model: E2B, E4B, 31B)",
    left_out=("model.vision_tower.", "model.audio_tower.", "model.embed_vision.", "model.embed_audio."),
)
