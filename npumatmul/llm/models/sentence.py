"""What sentence-transformers writes beside a model: how states become an embedding, and what precedes texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.llm.files.folder import FolderSource
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.models.settings import Settings

__all__ = ["SentenceConfig", "sentence_config_of"]

_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_NOT_COMPUTED = ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")
_BY_NAME = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
_OF_GGUF = {1: "mean", 2: "cls", 3: "last"}
_MODULES = ("Transformer", "Pooling", "Normalize")
_LONGEST_PROMPT, _MOST_PROMPTS = 1 << 14, 256
_NO_LIMIT = 1 << 24  # tokenizers without a limit say 1e30


@dataclass(frozen=True)
class SentenceConfig:
    """How embeddings are made.

    Attributes
    ----------
    pooling : str or None
        As for `npumatmul.nn.pool`; None where the model does not say.
    normalize : bool
        Whether embeddings are divided by their length.
    longest : int or None
        Tokens of a text that are read at most.
    lower_case : bool
        Whether texts become lower case before they are tokens.
    prompts : mapping of str to str
        What precedes texts, by names of kinds of texts.
    default_prompt : str or None
        Which of them precedes all texts of which nothing else is said.
    """

    pooling: str | None = None
    normalize: bool = False
    longest: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def sentence_config_of(source: ModelSource) -> SentenceConfig:
    """Read how a model's embeddings are made, from the files of sentence-transformers or a GGUF file's metadata.

    Parameters
    ----------
    source : ModelSource
        The open model.

    Returns
    -------
    SentenceConfig
        Of a model that says nothing, one without a pooling.

    Raises
    ------
    npumatmul.errors.ModelError
        If a file is damaged, or has something whose meaning is not known.
    """
    if not isinstance(source, FolderSource):
        return SentenceConfig(pooling=_OF_GGUF.get(source.config.get(f"{source.architecture}.pooling_type", 0)))
    described = _settings(source, "sentence_bert_config.json")
    prompts = _settings(source, "config_sentence_transformers.json")
    found: dict[str, Any] = {}
    if described is not None:
        found["longest"] = described.integer("max_seq_length", None)
        found["lower_case"] = described.flag("do_lower_case", False)
        described.finish()
    if found.get("longest") is None:
        known = _settings(source, "tokenizer_config.json")
        limit = None if known is None else known.number("model_max_length", None)
        found["longest"] = None if limit is None or limit > _NO_LIMIT else int(limit)
    if found["longest"] is not None and found["longest"] < 1:
        raise source.error(f"its texts have at most {found['longest']} tokens; that must be 1 or more")
    if prompts is not None:
        found["prompts"] = _prompts(prompts, source.error)
        found["default_prompt"] = prompts.text("default_prompt_name", None)
        if found["default_prompt"] not in (None, *found["prompts"]):
            raise source.error(f"its default prompt, {shown(found['default_prompt'])}, is none of its prompts")
    modules = source.beside("modules.json")
    if modules is not None:
        found.update(_modules(source, modules, bool(found.get("prompts"))))
    return SentenceConfig(**found)


def _settings(source: FolderSource, name: str) -> Settings | None:
    content = source.beside(name)
    if content is None:
        return None
    if not isinstance(content, dict):
        raise source.error(f"its {name} is {shown(content)}; an object is needed")
    return Settings(content, lambda problem: source.error(f"{name}: {problem}"))


def _prompts(settings: Settings, error: Callable[[str], ModelError]) -> dict[str, str]:
    given = settings.group("prompts")
    names = [] if given is None else list(given.names)
    if len(names) > _MOST_PROMPTS:
        raise error(f"it has {len(names)} prompts; at most {_MOST_PROMPTS} are read")
    found = {}
    for name in names:
        assert given is not None
        found[name] = given.text(name, "")
        if len(found[name]) > _LONGEST_PROMPT:
            raise error(f"its prompt {shown(name)} has {len(found[name])} characters; {_LONGEST_PROMPT} are too many")
    return found


def _modules(source: FolderSource, modules: object, has_prompts: bool) -> dict[str, Any]:
    """What follows the model: pooling, then perhaps division by the length."""
    kinds = []
    for each in modules if isinstance(modules, list) else [modules]:
        kind, path = (each.get("type"), each.get("path")) if isinstance(each, dict) else (None, None)
        if not isinstance(kind, str) or not isinstance(path, str):
            raise source.error(f"its modules.json has {shown(each)}, which is no module with a type and a path")
        package, _, name = kind.rpartition(".")
        if package.partition(".")[0] != "sentence_transformers" or name not in _MODULES:
            raise source.error(
                f"its modules.json has a module {shown(kind)}, which is not supported; supported: {', '.join(_MODULES)}"
            )
        kinds.append((name, path))
    names = [name for name, _ in kinds]
    if names not in (list(_MODULES[:2]), list(_MODULES)):
        raise source.error(
            f"its modules.json has {', '.join(names) or 'no modules'}; supported: Transformer, Pooling, and perhaps "
            "Normalize, in this order"
        )
    if kinds[0][1]:
        raise source.error(f"its modules.json says that the model is in {shown(kinds[0][1])}: give that folder")
    name = f"{kinds[1][1]}/config.json"
    settings = _settings(source, name)
    if settings is None:
        raise source.error(f"it has no {name}, which its modules.json names")
    return {"pooling": _pooling(settings, has_prompts), "normalize": len(kinds) == 3}


def _pooling(settings: Settings, has_prompts: bool) -> str:
    settings.ignore(["word_embedding_dimension", "embedding_dimension"])
    if not settings.flag("include_prompt", True) and has_prompts:
        raise settings.error("'include_prompt' is False, so prompts do not count in the mean; that is not supported")
    named = settings.text("pooling_mode", None)
    chosen = [] if named is None else [_BY_NAME.get(named)]
    if None in chosen:
        raise settings.error(f"'pooling_mode' is {shown(named)}; supported: {', '.join(_BY_NAME)}")
    chosen += [how for name, how in _POOLINGS.items() if settings.flag(name, False)]
    for name in _NOT_COMPUTED:
        settings.must_be(name, False)
    settings.finish()
    if len(set(chosen)) != 1:
        several = " and ".join(sorted(str(each) for each in set(chosen))) or "none"
        raise settings.error(f"its ways to pool are {several}; one is needed")
    return str(chosen[0])
