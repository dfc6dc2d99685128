"""A folder as Hugging Face has it, as a `ModelSource`: config.json, safetensors files, and those of the tokenizer."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from npumatmul.errors import ModelError, UnusableFileError
from npumatmul.files.reading import RegularFile, parse_json, shown
from npumatmul.llm.files.digests import digest_of
from npumatmul.llm.files.model_source import Digested
from npumatmul.llm.files.paths import missing
from npumatmul.llm.files.shards import ShardedWeights
from npumatmul.nn.expert_names import unstacked

__all__ = ["FolderSource"]

#: Most bytes of settings: a hundred times what any model in use has; and of those that list added tokens, four times.
_SETTINGS_BYTES, _TOKENS_BYTES = 1 << 20, 1 << 22
#: Most bytes of an index: some 150 for each tensor of the largest models, whose experts are tensors of their own.
_INDEX_BYTES = 1 << 24
#: Most bytes of a tokenizer: vocabularies of 262 thousand tokens with their merges have 33 MB.
_TOKENIZER_BYTES = 1 << 26
_TEMPLATE_BYTES = 1 << 20
_MOST_TEMPLATES = 64
_MOST_SHARDS = 1024

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)


class FolderSource:
    """A model in a folder.

    Parameters
    ----------
    path : str or os.PathLike
        The folder. Links in it may lead to files within it, and from a snapshot of Hugging Face's cache to its blobs.

    Notes
    -----
    Attributes are those of `ModelSource`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    npumatmul.errors.ModelError
        If a file is missing or damaged, or its weights are pickled.
    """

    kind: Literal["folder"] = "folder"
    interleaved_rope = False
    norms_include_one = False
    rope_factors: Mapping[str, Any] = {}

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise missing(self.path)
        self._root = Path(os.path.realpath(self.path))
        if not self._has(_CONFIG):
            raise self.error("it has no config.json: give a folder as Hugging Face has it, or the path of a GGUF file")
        self.config: Mapping[str, Any] = self._settings(_CONFIG)
        architecture = self.config.get("model_type")
        if not isinstance(architecture, str):
            raise self.error(f"model_type in its {_CONFIG} is {shown(architecture)}; it has to name the model")
        self.architecture = architecture
        self._stored = ShardedWeights(self._shards(), self._file, self.error)
        self.weights = unstacked(self._stored)

    @property
    def name(self) -> str:
        """What the folder is called; of a snapshot of Hugging Face's cache, the repository."""
        root = self._root
        if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
            return root.parent.parent.name.removeprefix("models--").replace("--", "/")
        return root.name

    @cached_property
    def generation_config(self) -> Mapping[str, Any]:
        """As `ModelSource.generation_config`."""
        return self._settings("generation_config.json") if self._has("generation_config.json") else {}

    @cached_property
    def tokenizer_files(self) -> Mapping[str, bytes]:
        """As `ModelSource.tokenizer_files`."""
        return _Files(self, [name for name in _TOKENIZER_FILES if self._has(name)])

    @property
    def chat_template(self) -> str | None:
        """As `ModelSource.chat_template`."""
        found = self.chat_templates
        return found.get("default", next(iter(found.values())) if len(found) == 1 else None)

    @cached_property
    def chat_templates(self) -> Mapping[str, str]:
        """As `ModelSource.chat_templates`: files of templates come before those in tokenizer_config.json."""
        found = self._configured_templates()
        if self._has("chat_template.jinja"):
            found["default"] = self._text("chat_template.jinja", _TEMPLATE_BYTES)
        elif self._has("chat_template.json"):
            given = self._settings("chat_template.json").get("chat_template")
            if isinstance(given, str):
                found["default"] = given
        more = self.path / "additional_chat_templates"
        if more.is_dir():
            names = sorted(each.name for each in more.iterdir() if each.suffix == ".jinja")
            if len(names) > _MOST_TEMPLATES:
                raise self.error(f"it has {len(names)} chat templates; at most {_MOST_TEMPLATES} are read")
            for name in names:
                found[name.removesuffix(".jinja")] = self._text(f"{more.name}/{name}", _TEMPLATE_BYTES)
        return found

    def beside(self, name: str) -> Any:
        """The contents of another JSON file of the folder, such as ``1_Pooling/config.json``; None if there is none.

        Raises
        ------
        npumatmul.errors.ModelError
            If it cannot be read, or leads out of the folder.
        """
        return self._json(name, _TOKENS_BYTES) if self._has(name) else None

    def digest(self, progress: Digested = lambda done, total: None) -> str:
        """As `ModelSource.digest`: of config.json and the weights."""
        with self._opened(_CONFIG, _SETTINGS_BYTES) as config:
            try:
                return digest_of([config, *self._stored.regular_files()], progress)
            except UnusableFileError as error:
                raise ModelError(str(error)) from error

    def error(self, problem: str) -> ModelError:
        """As `ModelSource.error`."""
        return ModelError(f"cannot use the model in {self.path}: {problem}")

    def close(self) -> None:
        """As `ModelSource.close`."""
        self._stored.close()

    def __enter__(self) -> FolderSource:
        """Return the source itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Return path and architecture."""
        return f"<FolderSource {str(self.path)!r}: {self.architecture}, {len(self.weights)} tensors>"

    def _configured_templates(self) -> dict[str, str]:
        if not self._has("tokenizer_config.json"):
            return {}
        given = self._settings("tokenizer_config.json", _TOKENS_BYTES).get("chat_template")
        if given is None:
            return {}
        if isinstance(given, str):
            return {"default": given}
        found: dict[str, str] = {}
        if not isinstance(given, list) or len(given) > _MOST_TEMPLATES:
            raise self.error(
                f"chat_template in its tokenizer_config.json is {shown(given)}; a text or a list is needed"
            )
        for each in given:
            name, template = (each.get("name"), each.get("template")) if isinstance(each, dict) else (None, None)
            if not isinstance(name, str) or not isinstance(template, str) or name in found:
                raise self.error(
                    f"a chat template in its tokenizer_config.json is {shown(each)}, without its own name or a text"
                )
            found[name] = template
        return found

    def _shards(self) -> dict[str, list[str] | None]:
        """Files of weights, with the tensors that an index says are in them."""
        if self._has(_WEIGHTS):
            return {_WEIGHTS: None}
        if not self._has(_INDEX):
            raise self._without_weights()
        names = self._settings(_INDEX, _INDEX_BYTES).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise self.error(f"weight_map in its {_INDEX} is {shown(names)}; it has to say which file has which tensor")
        shards: dict[str, list[str] | None] = {}
        for tensor, shard in names.items():
            if not isinstance(shard, str) or shard != os.path.basename(shard) or not shard.endswith(".safetensors"):
                raise self.error(
                    f"its {_INDEX} says that {shown(tensor)} is in {shown(shard)}, which is no name of a safetensors "
                    "file beside it"
                )
            listed = shards.setdefault(shard, [])
            assert listed is not None
            listed.append(tensor)
        if len(shards) > _MOST_SHARDS:
            raise self.error(f"its weights are in {len(shards)} files; at most {_MOST_SHARDS} are read")
        missing = [shard for shard in shards if not self._has(shard)]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise self.error(
                f"{missing[0]}{more} is missing, which its {_INDEX} names: fetch all files into one folder"
            )
        return shards

    def _without_weights(self) -> ModelError:
        here = sorted(each.name for each in self.path.iterdir())
        pickled = next((name for name in here if name.endswith(_PICKLED)), None)
        if pickled is not None:
            return self.error(
                f"its weights are pickled ({shown(pickled)}), and reading a pickle runs whatever program is in it. "
                "Fetch the model's safetensors files, or convert it where you trust it: "
                "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
            )
        other = next((name for name in here if name.endswith((".safetensors", ".gguf"))), None)
        hint = "" if other is None else f"; {shown(other)} is not named as these are"
        return self.error(f"it has neither {_WEIGHTS} nor {_INDEX}{hint}")

    def _has(self, name: str) -> bool:
        return os.path.lexists(self.path / name)

    def _settings(self, name: str, most: int = _SETTINGS_BYTES) -> dict[str, Any]:
        """The object in a JSON file."""
        content = self._json(name, most)
        if not isinstance(content, dict):
            raise self.error(f"its {name} is {shown(content)}; an object is needed")
        return content

    def _json(self, name: str, most: int) -> Any:
        try:
            return parse_json(self._text(name, most))
        except ValueError as error:
            if isinstance(error, ModelError):
                raise
            raise self.error(f"its {name} cannot be read: {error}") from error

    def _text(self, name: str, most: int) -> str:
        try:
            return self._bytes(name, most).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"its {name} is not in UTF-8: {error}") from error

    def _bytes(self, name: str, most: int) -> bytes:
        with self._opened(name, most) as file:
            try:
                return file.read(0, file.size).tobytes()
            except UnusableFileError as error:
                raise ModelError(str(error)) from error

    def _opened(self, name: str, most: int) -> RegularFile:
        try:
            return RegularFile(self._file(name), most)
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        except OSError as error:
            raise self.error(f"its {name} cannot be opened: {error}") from error

    def _file(self, name: str) -> Path:
        """Where a file is: within the folder, or among the blobs of the cache that it is a snapshot of."""
        path = Path(os.path.realpath(self.path / name))
        allowed = [self._root]
        if self._root.parent.name == "snapshots":
            allowed.append(self._root.parent.parent / "blobs")
        if not any(path.is_relative_to(each) for each in allowed):
            raise self.error(f"its {name} is a link to {path}, outside the folder: put the file itself there")
        return path


class _Files(Mapping[str, bytes]):
    """Files of a tokenizer, each read when it is asked for."""

    def __init__(self, source: FolderSource, names: list[str]) -> None:
        self._source, self._names = source, names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __getitem__(self, name: str) -> bytes:
        if name not in self._names:
            raise KeyError(name)
        return self._source._bytes(name, _TOKENIZER_BYTES)
