"""The language models of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: Qwen 2 and Qwen 3 with positions on three axes.

Their vision encoders are not computed: rows that they, or others, make of pictures are given from outside
(`npumatmul.llm.Embedded`). Qwen3-VL adds features of inner layers of its encoder behind the first blocks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from npumatmul.llm.models import from_folder, from_gguf
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig, Rotation
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.qwen import window_layers
from npumatmul.llm.models.settings import Settings

__all__ = ["QWEN2_5_VL", "QWEN2_VL", "QWEN3_VL"]

PICTURE, VIDEO = 151655, 151656
PADS = ("<|image_pad|>", "<|video_pad|>")
AROUND = ("vision_start_token_id", "vision_end_token_id", "vision_token_id")
SECTIONS_2, SECTIONS_3 = (16, 24, 24), (24, 20, 20)
WINDOWS_FROM, DEEP_LAYERS = 80, 3
LEFT_OUT = ("visual.", "model.visual.")


def _whole(settings: Settings, read: Callable[[Settings, dict[str, Any]], DecoderConfig]) -> DecoderConfig:
    """Read the configuration of a whole model, or of its language model alone."""
    vision = settings.group("vision_config")
    deep = None if vision is None else vision.sequence("deepstack_visual_indexes", int)
    settings.ignore(AROUND)
    tokens = settings.integer("image_token_id", PICTURE), settings.integer("video_token_id", VIDEO)
    text = settings.group("text_config")
    tied = settings.flag("tie_word_embeddings", False)
    outside: dict[str, Any] = {"deep_layers": DEEP_LAYERS if deep is None else len(deep)}
    if text is None:
        if settings.text("model_type", None) == "qwen3_vl":
            raise settings.error("'text_config' is missing, which describes its language model")
        return read(settings, {**outside, "tied": tied, "placeholders": _within(settings, tokens)})
    settings.finish(ignored=from_folder.IGNORED)
    tied = text.flag("tie_word_embeddings", False) or tied
    return read(text, {**outside, "tied": tied, "placeholders": _within(text, tokens)})


def _within(settings: Settings, tokens: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(each for each in tokens if 0 <= each < settings.size("vocab_size"))


def _rotation(settings: Settings, sizes: dict[str, Any], theta: float, usual: tuple[int, ...], **how: Any) -> Rotation:
    beside = ("mrope_section", "mrope_interleaved")
    given = settings.group("rope_scaling") or settings.group("rope_parameters")
    sections = None
    if given is not None:
        sections = given.sequence("mrope_section", int, 3)
        given.must_be("mrope_interleaved", how["alternate"])
    turned = from_folder.rotation(
        settings, sizes["head_dim"], sizes["context_length"], theta, aliases={"mrope": "default"}, beside=beside
    )
    try:
        return dataclasses.replace(turned, sections=tuple(sections or usual), **how)
    except ValueError as error:
        raise settings.error(f"'mrope_section' does not fit its heads: {error}") from error


def _qwen2(settings: Settings, outside: dict[str, Any], name: str) -> DecoderConfig:
    sizes = from_folder.sizes(settings, n_kv_heads=8)
    turned = _rotation(settings, sizes, 1e6, SECTIONS_2, alternate=False)
    windows = window_layers(settings, sizes["n_layers"], WINDOWS_FROM)
    return from_folder.decoder_config(
        settings,
        **sizes,
        **{**outside, "deep_layers": 0},
        architecture=name,
        layers=from_folder.alike(turned, windows),
        norm_eps=settings.number("rms_norm_eps", 1e-5),
        activation=from_folder.activation(settings),
        qkv_bias=True,
    )


def _qwen3(settings: Settings, outside: dict[str, Any]) -> DecoderConfig:
    sizes = from_folder.sizes(settings, head_dim=128, n_kv_heads=32)
    turned = _rotation(settings, sizes, 5e5, SECTIONS_3, alternate=True)
    bias = settings.flag("attention_bias", False)
    windows = from_folder.no_windows(settings, sizes["n_layers"])
    return from_folder.decoder_config(
        settings,
        **sizes,
        **outside,
        architecture="qwen3_vl",
        layers=from_folder.alike(turned, windows),
        norm_eps=settings.number("rms_norm_eps", 1e-6),
        qk_norm="head",
        activation=from_folder.activation(settings),
        qkv_bias=bias,
        out_bias=bias,
    )


def _from_gguf(settings: GGUFSettings, name: str) -> DecoderConfig:
    sizes = from_gguf.sizes(settings)
    turned = from_gguf.rotation(settings, sizes["head_dim"], sizes["context_length"])
    given = settings.sequence("rope.dimension_sections", int) or list(SECTIONS_3 if name == "qwen3_vl" else SECTIONS_2)
    if len(given) < 3 or any(given[3:]):
        raise settings.error(f"'rope.dimension_sections' is {given}; three axes of positions are known")
    try:
        sections = tuple(given[:3])
        turned = dataclasses.replace(turned, sections=sections, alternate=name == "qwen3_vl")
    except ValueError as error:
        raise settings.error(f"'rope.dimension_sections' does not fit its heads: {error}") from error
    deep = settings.integer("n_deepstack_layers", 0)
    return from_gguf.decoder_config(
        settings,
        **sizes,
        **from_gguf.biases(settings),
        architecture=name,
        layers=(LayerConfig(turned),),
        qk_norm="head" if name == "qwen3_vl" else None,
        deep_layers=deep,
        placeholders=tuple(i for i, each in enumerate(settings.tokens) if each in PADS),
    )


QWEN2_VL = Architecture(
    "qwen2_vl",
    model_types=("qwen2_vl", "qwen2_vl_text"),
    classes=("Qwen2VLForConditionalGeneration", "Qwen2VLModel", "Qwen2VLTextModel"),
    from_config=lambda settings: _whole(settings, lambda text, outside: _qwen2(text, outside, "qwen2_vl")),
    gguf=("qwen2vl",),
    from_gguf=lambda settings: _from_gguf(settings, "qwen2_vl"),
    models="Qwen2-VL (language model)",
    left_out=LEFT_OUT,
)
QWEN2_5_VL = Architecture(
    "qwen2_5_vl",
    model_types=("qwen2_5_vl", "qwen2_5_vl_text"),
    classes=("Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLModel", "Qwen2_5_VLTextModel"),
    from_config=lambda settings: _whole(settings, lambda text, outside: _qwen2(text, outside, "qwen2_5_vl")),
    models="Qwen2.5-VL (language model; GGUF files as Qwen2-VL)",
    left_out=LEFT_OUT,
)
QWEN3_VL = Architecture(
    "qwen3_vl",
    model_types=("qwen3_vl", "qwen3_vl_text"),
    classes=("Qwen3VLForConditionalGeneration", "Qwen3VLModel", "Qwen3VLTextModel"),
    from_config=lambda settings: _whole(settings, _qwen3),
    gguf=("qwen3vl",),
    from_gguf=lambda settings: _from_gguf(settings, "qwen3_vl"),
    models="Qwen3-VL (dense, language model)",
    left_out=LEFT_OUT,
)
