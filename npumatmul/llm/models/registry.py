"""Which architectures there are, and from a model on disk to what it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.class_names import check_classes
from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.llm.models.encoders import ENCODER_TYPES
from npumatmul.llm.models.from_gguf import GUESSING, settings_of
from npumatmul.llm.models.gemma import GEMMA2, GEMMA3
from npumatmul.llm.models.gemma4 import GEMMA4
from npumatmul.llm.models.gpt_oss import GPT_OSS
from npumatmul.llm.models.granite import GRANITE
from npumatmul.llm.models.granitemoe import GRANITEMOE
from npumatmul.llm.models.lfm2 import LFM2, LFM2_MOE
from npumatmul.llm.models.llama import LLAMA
from npumatmul.llm.models.mistral import MINISTRAL, MINISTRAL3, MISTRAL
from npumatmul.llm.models.olmoe import OLMOE
from npumatmul.llm.models.phi3 import PHI3
from npumatmul.llm.models.qwen import QWEN2, QWEN3
from npumatmul.llm.models.qwen3_moe import QWEN3_MOE
from npumatmul.llm.models.qwen_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from npumatmul.llm.models.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from npumatmul.llm.models.settings import MAX_LAYERS, Settings
from npumatmul.llm.models.smollm3 import SMOLLM3
from npumatmul.llm.models.starcoder2 import STARCODER2
from npumatmul.llm.models.whisper_config import SPEECH_TYPES
from npumatmul.llm.models.wholes import WHOLES, language_config

__all__ = ["ARCHITECTURES", "GGUF_ARCHITECTURES", "MODEL_TYPES", "architecture_of", "config_from", "config_of"]

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAMA,
    MISTRAL,
    MINISTRAL,
    MINISTRAL3,
    SMOLLM3,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
    PHI3,
    GRANITE,
    STARCODER2,
    QWEN3_MOE,
    OLMOE,
    GRANITEMOE,
    GPT_OSS,
    QWEN3_5,
    QWEN3_5_MOE,
    QWEN3_NEXT,
    LFM2,
    LFM2_MOE,
    QWEN2_VL,
    QWEN2_5_VL,
    QWEN3_VL,
    GEMMA4,
)
HEAD = "lm_head.weight"
MODEL_TYPES: Mapping[str, Architecture] = {name: each for each in ARCHITECTURES for name in each.model_types}
GGUF_ARCHITECTURES: Mapping[str, Architecture] = {name: each for each in ARCHITECTURES for name in each.gguf}


def config_of(source: ModelSource) -> DecoderConfig:
    """Read what a model is made of.

    Parameters
    ----------
    source : ModelSource
        The open model; only its settings are read.

    Returns
    -------
    DecoderConfig
        Its sizes and parts.

    Raises
    ------
    npumatmul.errors.ModelError
        If the architecture is not known, or a value that may change the arithmetic is not.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model
    >>> from npumatmul.llm.files.opening import open_source
    >>> from npumatmul.llm.models.registry import config_of
    >>> with open_source(fetch_demo_model()) as source:
    ...     config_of(source).n_layers
    30
    """
    architecture = architecture_of(source)
    if source.kind == "folder":
        config = source.config
        if source.architecture in WHOLES:
            config = language_config(config, source.error, has_head=HEAD in source.weights)
        return _from_folder(architecture, Settings(config, source.error))
    read = architecture.from_gguf
    assert read is not None
    settings = settings_of(
        source.config,
        source.architecture,
        source.error,
        parameters=source.weights,
        rope_factors=source.rope_factors,
        interleaved_rope=source.interleaved_rope,
        norms_include_one=source.norms_include_one,
    )
    return _read(lambda: read(settings), source.error)


def architecture_of(source: ModelSource) -> Architecture:
    """Find out which architecture a model has.

    Parameters
    ----------
    source : ModelSource
        The open model.

    Returns
    -------
    Architecture
        How its configuration is read.

    Raises
    ------
    npumatmul.errors.ModelError
        If it is not known.
    """
    known = MODEL_TYPES if source.kind == "folder" else GGUF_ARCHITECTURES
    if source.kind == "folder" and source.architecture in WHOLES:
        language = MODEL_TYPES[language_config(source.config, source.error)["model_type"]]
        return dataclasses.replace(language, left_out=(*language.left_out, *WHOLES[source.architecture].left_out))
    found = known.get(source.architecture)
    if found is None:
        raise source.error(_unknown(source.architecture, known))
    return found if source.kind == "folder" else _without_guessing(source, found)


def _without_guessing(source: ModelSource, architecture: Architecture) -> Architecture:
    """The architecture of a GGUF file whose last layers may guess tokens after the next one; these are left out."""
    count, blocks = (source.config.get(f"{source.architecture}.{name}") for name in (GUESSING, "block_count"))
    if type(count) is not int or type(blocks) is not int or not 0 < count < blocks <= MAX_LAYERS:
        return architecture
    begun = [f"{stem}.{i}." for i in range(blocks - count, blocks) for stem in ("model.layers", "blk")]
    return dataclasses.replace(architecture, left_out=(*architecture.left_out, *begun))


def config_from(config: Mapping[str, Any], error: Callable[[str], ModelError] = ModelError) -> DecoderConfig:
    """Read what a model is made of from the contents of its config.json.

    Parameters
    ----------
    config : mapping
        The values.
    error : callable, optional
        Makes the exception of a message.

    Returns
    -------
    DecoderConfig
        Its sizes and parts.

    Raises
    ------
    npumatmul.errors.ModelError
        As `config_of`.
    """
    name = config.get("model_type")
    if isinstance(name, str) and name in WHOLES:
        config = language_config(config, error)
        name = config["model_type"]
    architecture = MODEL_TYPES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise error(_unknown(name, MODEL_TYPES))
    return _from_folder(architecture, Settings(config, error))


def _from_folder(architecture: Architecture, settings: Settings) -> DecoderConfig:
    check_classes(settings, architecture.classes)
    return _read(lambda: architecture.from_config(settings), settings.error)


def _read(read: Callable[[], DecoderConfig], error: Callable[[str], ModelError]) -> DecoderConfig:
    """Read a configuration; values that fit nothing are the file's fault, wherever that is noticed."""
    try:
        return read()
    except ModelError:
        raise
    except (ValueError, ArithmeticError) as problem:
        raise error(f"its configuration makes no model: {problem}") from problem


def _unknown(name: object, known: Mapping[str, Architecture]) -> str:
    if isinstance(name, str) and name in ENCODER_TYPES:
        return f"its architecture is an encoder, {name}, which continues no texts: load and npumatmul embed take it"
    if name in SPEECH_TYPES:
        return f"its architecture, {name}, turns speech into text: load and npumatmul transcribe take it"
    wholes = f", {', '.join(WHOLES)}" if known is MODEL_TYPES else ""
    encoders = ENCODER_TYPES if known is MODEL_TYPES else ("bert",)
    return (
        f"its architecture is {shown(name)}, which is not known; known: {', '.join(known)}{wholes}; and for embeddings "
        f"{', '.join(encoders)}"
    )
