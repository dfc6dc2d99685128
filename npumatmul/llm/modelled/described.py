"""The dimensions of a model out of what describes it: a GGUF file, a config.json, or a name of the table."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from npumatmul.errors import ModelError
from npumatmul.files.reading import read_json
from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.modelled.built import decoder_shape, encoder_shape
from npumatmul.llm.modelled.configured import divided, other_shape, refuse_family, refuse_parts, shape_of_config
from npumatmul.llm.modelled.published import SHAPES
from npumatmul.llm.modelled.shape import ModelShape
from npumatmul.llm.models.encoders import encoder_architecture, encoder_config_of
from npumatmul.llm.models.registry import GGUF_ARCHITECTURES, config_of

__all__ = ["shape_of"]


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
    >>> shape_of("qwen3-0.6b").hidden
    1024
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
    return shape_of_config(path.parent.name if path.name == "config.json" else path.stem, config, wrong)


def _of_gguf(path: Path) -> ModelShape:
    with GGUFFile(path) as file:
        family = file.require("general.architecture", str)
        name = file.get("general.name", str) or path.stem
        if family not in GGUF_ARCHITECTURES and family != "bert":
            return _other(name, family, file)
    with open_source(path) as source:
        try:
            if encoder_architecture(source) is not None:
                return encoder_shape(name, encoder_config_of(source))
            return decoder_shape(name, config_of(source))
        except ValueError as error:
            raise source.error(f"its configuration makes no model: {error}") from error


def _other(name: str, family: str, file: GGUFFile) -> ModelShape:
    refuse_family(family, file.error)

    def optional(key: str) -> int | None:
        return file.get(f"{family}.{key}", int)

    refuse_parts((optional("expert_count") or 1) > 1, optional("ssm.state_size") is not None, file.error)
    names = {"layers": "block_count", "hidden": "embedding_length", "heads": "attention.head_count",
             "ffn": "feed_forward_length"}  # fmt: skip
    sizes = {size: file.require(f"{family}.{key}", int) for size, key in names.items()}
    vocab = optional("vocab_size")
    sizes["vocab"] = len(file.require("tokenizer.ggml.tokens", list)) if vocab is None else vocab
    kv_heads = optional("attention.head_count_kv")
    sizes["kv_heads"] = sizes["heads"] if kv_heads is None else kv_heads
    head_dim = optional("attention.key_length")
    sizes["head_dim"] = divided(sizes["hidden"], sizes["heads"], file.error) if head_dim is None else head_dim
    kv_rank = optional("attention.kv_lora_rank")
    if kv_rank is not None:
        latent = {"q_rank": "attention.q_lora_rank", "rope_dim": "rope.dimension_count",
                  "value_dim": "attention.value_length"}  # fmt: skip
        sizes |= {"kv_rank": kv_rank, **{n: file.require(f"{family}.{key}", int) for n, key in latent.items()}}
    return other_shape(name, sizes, "output.weight" not in file.tensors, file.error)
