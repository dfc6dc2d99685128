"""The dimensions of a model out of what describes it: a GGUF file, a config.json, or a name of the table."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.files.reading import read_json, shown
from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.modelled.shape import SHAPES, ModelShape

__all__ = ["shape_of"]

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
    ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt", "nemotron", "opt", "phi", "phi2",
     "starcoder2")
)  # fmt: skip
#: Families that read texts and write none.
_ENCODERS = frozenset(
    ("albert", "bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "nomic_bert",
     "roberta", "xlm-roberta")
)  # fmt: skip
#: Families that share the table of embeddings unless a configuration says otherwise.
_TIED = ("gemma",)
_MOE_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def shape_of(what: str | os.PathLike[str]) -> ModelShape:
    """Dimensions of a model; no weights are read.

    Parameters
    ----------
    what : str or os.PathLike
        A GGUF file, a config.json, a folder with one, or a name of `SHAPES`.

    Raises
    ------
    FileNotFoundError
        If it is neither a file nor a name.
    npumatmul.errors.ModelError
        If the file is damaged, or the model is built otherwise than is modelled here.

    Examples
    --------
    >>> shape_of("qwen3-0.6b").ffn
    3072
    """
    if what == "":
        raise FileNotFoundError("the name of a model is empty; give a GGUF file, a folder or a name")
    path = Path(what)
    if path.is_dir():
        path = path / "config.json"
        if not path.exists():
            raise ModelError(f"the folder {path.parent} has no config.json; give a GGUF file, or a folder with one")
    if path.exists():
        return _of_config(path) if path.suffix == ".json" else _of_gguf(path)
    names = {name.lower(): name for name in SHAPES}
    found = names.get(os.fspath(what).lower())
    if found is not None:
        return SHAPES[found]
    near = difflib.get_close_matches(os.fspath(what).lower(), names, n=3)
    meant = f"did you mean {', '.join(names[name] for name in near)}? " if near else ""
    raise FileNotFoundError(
        f"{os.fspath(what)!r} is neither a file nor a model that is known by name; {meant}known are {', '.join(SHAPES)}"
    )


def _of_config(path: Path) -> ModelShape:
    def wrong(problem: str) -> ModelError:
        return ModelError(f"{path}: {problem}")

    try:
        config = read_json(path)
    except ValueError as error:
        raise wrong(f"it is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise wrong("it is no configuration of a model")
    text = config.get("text_config")  # of models that see, too
    if isinstance(text, dict):
        config = {**text, "tie_word_embeddings": text.get("tie_word_embeddings", config.get("tie_word_embeddings"))}
    family = config.get("model_type")
    if family is not None and not isinstance(family, str):
        raise wrong(f"its model_type is {shown(family)}, which is no name")
    _refuse_family(str(family), wrong)
    experts = next((config[key] for key in _MOE_KEYS if config.get(key)), None)
    kinds = config.get("layer_types")
    _refuse(experts not in (None, 1), isinstance(kinds, list) and "linear_attention" in kinds, wrong)
    sizes = {name: _whole(_first(config, keys), keys[0], wrong) for name, keys in _KEYS.items()}
    heads = sizes["heads"]
    kv_heads = _first(config, ("num_key_value_heads", "multi_query_group_num"))
    sizes["kv_heads"] = heads if kv_heads is None else _whole(kv_heads, "num_key_value_heads", wrong)
    head_dim = _first(config, ("head_dim", "kv_channels"))
    if head_dim is None and config.get("qk_nope_head_dim") is None:
        head_dim = _divided(sizes["hidden"], heads, wrong)
    if config.get("kv_lora_rank") is not None:
        latent = ("q_lora_rank", "kv_lora_rank", "qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim")
        q_rank, kv_rank, rope, value, nope = (_whole(config.get(key), key, wrong) for key in latent)
        sizes |= {"q_rank": q_rank, "kv_rank": kv_rank, "rope_dim": rope, "value_dim": value}
        head_dim = rope + nope
    sizes["head_dim"] = _whole(head_dim, "head_dim", wrong)
    tied = config.get("tie_word_embeddings")
    if tied is None:
        tied = str(family).startswith(_TIED)
    name = path.parent.name if path.name == "config.json" else path.stem
    return _checked(name or str(family), str(family), sizes, bool(tied), wrong)


def _of_gguf(path: Path) -> ModelShape:
    with GGUFFile(path) as file:
        family = file.require("general.architecture", str)
        _refuse_family(family, file.error)

        def optional(key: str) -> int | None:
            return file.get(f"{family}.{key}", int)

        _refuse((optional("expert_count") or 1) > 1, optional("ssm.state_size") is not None, file.error)
        names = {"layers": "block_count", "hidden": "embedding_length", "heads": "attention.head_count",
                 "ffn": "feed_forward_length"}  # fmt: skip
        sizes = {name: file.require(f"{family}.{key}", int) for name, key in names.items()}
        vocab = optional("vocab_size")
        sizes["vocab"] = len(file.require("tokenizer.ggml.tokens", list)) if vocab is None else vocab
        kv_heads = optional("attention.head_count_kv")
        sizes["kv_heads"] = sizes["heads"] if kv_heads is None else kv_heads
        head_dim = optional("attention.key_length")
        sizes["head_dim"] = _divided(sizes["hidden"], sizes["heads"], file.error) if head_dim is None else head_dim
        kv_rank = optional("attention.kv_lora_rank")
        if kv_rank is not None:
            latent = {"q_rank": "attention.q_lora_rank", "rope_dim": "rope.dimension_count",
                      "value_dim": "attention.value_length"}  # fmt: skip
            sizes |= {"kv_rank": kv_rank, **{n: file.require(f"{family}.{key}", int) for n, key in latent.items()}}
        named = file.get("general.name", str) or path.stem
        return _checked(named, family, sizes, "output.weight" not in file.tensors, file.error)


def _refuse_family(family: str, wrong: Any) -> None:
    if family in _ENCODERS:
        raise wrong(f"{family} is an encoder, which generates nothing; docs/embeddings.md has modelled times of some")
    if family in _WITHOUT_GATE:
        raise wrong(f"models of the kind {family} have no gate in their feed-forward network, which is not modelled")


def _refuse(experts: bool, recurrent: bool, wrong: Any) -> None:
    if experts:
        raise wrong("it is a mixture of experts; only dense models are modelled")
    if recurrent:
        raise wrong("it has layers with a recurrent state; only attention is modelled")


def _checked(name: str, family: str, sizes: Mapping[str, int], tied: bool, wrong: Any) -> ModelShape:
    kind = family.replace("_", "").lower()
    try:
        return ModelShape(
            name=name,
            tied=tied,
            norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
            qk_norm=kind.startswith(("qwen3", "gemma3")),
            **sizes,
        )
    except ValueError as error:
        raise wrong(str(error)) from error


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((config[key] for key in keys if config.get(key) is not None), None)


def _whole(value: Any, key: str, wrong: Any) -> int:
    if value is None:
        raise wrong(f"it does not say {key}")
    if type(value) is not int:
        raise wrong(f"its {key} is {shown(value)}, which is no size")
    return value


def _divided(hidden: int, heads: int, wrong: Any) -> int:
    if heads < 1 or hidden % heads:
        raise wrong(f"its width {hidden} cannot be divided among {heads} heads")
    return hidden // heads
