"""The dimensions of a model out of a config.json, or out of metadata of a GGUF file.

Architectures that `npumatmul.llm.load` knows are read as it reads them. Of others those that are built as Llama is, or
with latent attention, are read here: to know how fast they would be, little of a configuration has to be understood.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.llm.modelled.built import decoder_shape, encoder_shape, llama_shape, speech_shape
from npumatmul.llm.modelled.shape import ModelShape
from npumatmul.llm.models.class_names import check_classes
from npumatmul.llm.models.encoders import ENCODER_TYPES
from npumatmul.llm.models.registry import MODEL_TYPES, config_from
from npumatmul.llm.models.settings import Settings
from npumatmul.llm.models.whisper_config import SPEECH_TYPES, whisper_config_from
from npumatmul.llm.models.wholes import WHOLES

__all__ = ["divided", "other_shape", "refuse_family", "refuse_parts", "shape_of_config"]

Wrong = Callable[[str], ModelError]

#: What a configuration calls a dimension: Hugging Face's name first, then ChatGLM's.
_KEYS = {
    "layers": ("num_hidden_layers", "num_layers"),
    "hidden": ("hidden_size",),
    "heads": ("num_attention_heads",),
    "ffn": ("intermediate_size", "ffn_hidden_size"),
    "vocab": ("vocab_size", "padded_vocab_size"),
}
#: Families whose feed-forward network has no gate: two matrices, not three.
_WITHOUT_GATE = frozenset(
    ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "nemotron", "opt", "phi", "phi2")
)
#: Families that read texts and write none.
_ENCODERS = frozenset(("albert", "deberta-v2", "distilbert", "electra", "mpnet", "nomic_bert"))
#: Families that share the table of embeddings unless a configuration says otherwise.
_TIED = ("gemma",)
_MOE_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: How weights of a folder are stored says nothing of a model's dimensions.
_STORED = "quantization_config"


def shape_of_config(name: str, config: Mapping[str, Any], wrong: Wrong) -> ModelShape:
    """Dimensions of a model by the contents of its config.json.

    Parameters
    ----------
    name : str
        What the model is called; where it is empty, its family's name.
    config : mapping
    wrong : callable
        Makes the exception of a message.

    Raises
    ------
    npumatmul.errors.ModelError
        If a value is missing or not understood, or the model is built otherwise than is modelled.
    """
    text = config.get("text_config")  # of models that see, too
    if isinstance(text, Mapping) and config.get("model_type") not in {*MODEL_TYPES, *WHOLES}:
        config = {**text, "tie_word_embeddings": text.get("tie_word_embeddings", config.get("tie_word_embeddings"))}
    config = {key: value for key, value in config.items() if key != _STORED}
    family = config.get("model_type")
    if family is not None and not isinstance(family, str):
        raise wrong(f"its model_type is {shown(family)}, which is no name")
    name = name or str(family)
    try:
        if isinstance(family, str) and family in ENCODER_TYPES:
            settings = Settings(config, wrong)
            check_classes(settings, ENCODER_TYPES[family].classes)
            return encoder_shape(name, ENCODER_TYPES[family].from_config(settings))
        if family in SPEECH_TYPES:
            return speech_shape(name, whisper_config_from(Settings(config, wrong)))
        if family in MODEL_TYPES or family in WHOLES:
            return decoder_shape(name, config_from(config, wrong))
    except ValueError as error:
        raise wrong(f"its configuration makes no model: {error}") from error
    return _other(name, str(family), config, wrong)


def _other(name: str, family: str, config: Mapping[str, Any], wrong: Wrong) -> ModelShape:
    refuse_family(family, wrong)
    experts = next((config[key] for key in _MOE_KEYS if config.get(key)), None)
    kinds = config.get("layer_types")
    refuse_parts(experts not in (None, 1), isinstance(kinds, list) and "linear_attention" in kinds, wrong)
    sizes = {size: _whole(_first(config, keys), keys[0], wrong) for size, keys in _KEYS.items()}
    heads = sizes["heads"]
    kv_heads = _first(config, ("num_key_value_heads", "multi_query_group_num"))
    sizes["kv_heads"] = heads if kv_heads is None else _whole(kv_heads, "num_key_value_heads", wrong)
    head_dim = _first(config, ("head_dim", "kv_channels"))
    if head_dim is None and config.get("qk_nope_head_dim") is None:
        head_dim = divided(sizes["hidden"], heads, wrong)
    if config.get("kv_lora_rank") is not None:
        latent = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim")
        q_rank, kv_rank, rope, value, nope = (_whole(config.get(key), key, wrong) for key in latent)
        sizes |= {"q_rank": q_rank, "kv_rank": kv_rank, "rope_dim": rope, "value_dim": value}
        head_dim = rope + nope
    sizes["head_dim"] = _whole(head_dim, "head_dim", wrong)
    tied = config.get("tie_word_embeddings")
    if tied is None:
        tied = family.startswith(_TIED)
    return other_shape(name, sizes, bool(tied), wrong)


def other_shape(name: str, sizes: Mapping[str, int], tied: bool, wrong: Wrong) -> ModelShape:
    """Dimensions of a decoder that is not known otherwise."""
    try:
        return llama_shape(name, tied=tied, **sizes)
    except ValueError as error:
        raise wrong(str(error)) from error


def refuse_family(family: str, wrong: Wrong) -> None:
    """Refuse what is known to be built otherwise."""
    if family in _ENCODERS:
        raise wrong(f"{family} is an encoder that is not known; known are {', '.join(ENCODER_TYPES)}")
    if family in _WITHOUT_GATE:
        raise wrong(f"models of the kind {family} have no gate in their feed-forward network, which is not modelled")


def refuse_parts(experts: bool, recurrent: bool, wrong: Wrong) -> None:
    """Refuse parts whose arrangement is not known."""
    if experts:
        raise wrong("it is a mixture of experts, of an architecture that is not known")
    if recurrent:
        raise wrong("it has layers with a recurrent state, of an architecture that is not known")


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _whole(value: Any, key: str, wrong: Wrong) -> int:
    if value is None:
        raise wrong(f"it does not say {key}")
    if type(value) is not int:
        raise wrong(f"its {key} is {shown(value)}, which is no size")
    return value


def divided(hidden: int, heads: int, wrong: Wrong) -> int:
    """The width of a head where nothing is said of it."""
    if heads < 1 or hidden % heads:
        raise wrong(f"its width {hidden} cannot be divided among {heads} heads")
    return hidden // heads
