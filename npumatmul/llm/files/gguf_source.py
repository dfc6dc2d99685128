"""A GGUF file as a `ModelSource`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from npumatmul.errors import ModelError
from npumatmul.files.reading import shown
from npumatmul.llm.files.digests import digest_of
from npumatmul.llm.files.gguf import GGUFFile, RowReader
from npumatmul.llm.files.gguf_names import ARCHITECTURES, COMPUTED, ROPE_FACTORS, Change, Layout, parameter_name
from npumatmul.llm.files.model_source import Digested, Float32
from npumatmul.nn.expert_names import unstacked

__all__ = ["GGUFSource", "GGUFWeights"]

_TEMPLATE = "tokenizer.chat_template"


class GGUFSource:
    """A model in a GGUF file, or in several that belong together.

    Parameters
    ----------
    path : str or os.PathLike
        The file; of several, any one.

    Attributes
    ----------
    file : GGUFFile
        The file itself, for what only GGUF files have.
    weights : GGUFWeights or Unstacked

    Notes
    -----
    Other attributes are those of `ModelSource`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    npumatmul.errors.ModelError
        If it is damaged, or of an architecture that is not supported.
    """

    kind: Literal["gguf"] = "gguf"
    generation_config: Mapping[str, Any] = {}
    tokenizer_files: Mapping[str, bytes] = {}

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._read(GGUFFile(path))

    @classmethod
    def of(cls, file: GGUFFile) -> GGUFSource:
        """The model in a GGUF file that is open already."""
        source = cls.__new__(cls)
        source._read(file)
        return source

    def _read(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = self.file.require("general.architecture", str)
        layout = ARCHITECTURES.get(self.architecture)
        if layout is None:
            raise self.error(
                f"its architecture is {shown(self.architecture)}; supported: {', '.join(sorted(ARCHITECTURES))}"
            )
        self.interleaved_rope, self.norms_include_one = layout.interleaved_rope, layout.norms_include_one
        self.weights = unstacked(GGUFWeights(self.file, layout))

    @property
    def path(self) -> Path:
        """The file; the first one of several."""
        return self.file.path

    @property
    def name(self) -> str:
        """``general.name``, or what the file is called."""
        return self.file.get("general.name", str, self.file.path.stem)

    @property
    def config(self) -> Mapping[str, Any]:
        """The metadata."""
        return self.file.metadata

    @cached_property
    def rope_factors(self) -> Mapping[str, Float32]:
        """As `ModelSource.rope_factors`."""
        return {name: self.file.tensor(each) for each, name in ROPE_FACTORS.items() if each in self.file.tensors}

    @property
    def chat_template(self) -> str | None:
        """As `ModelSource.chat_template`."""
        return self.chat_templates.get("default")

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """As `ModelSource.chat_templates`."""
        found = {} if (usual := self.file.get(_TEMPLATE, str)) is None else {"default": usual}
        for key in self.file.metadata:
            if key.startswith(f"{_TEMPLATE}."):
                found[key.removeprefix(f"{_TEMPLATE}.")] = self.file.require(key, str)
        return found

    def digest(self, progress: Digested = lambda done, total: None) -> str:
        """As `ModelSource.digest`."""
        return digest_of(self.file.regular_files(), progress)

    def error(self, problem: str) -> ModelError:
        """As `ModelSource.error`."""
        return self.file.error(problem)

    def close(self) -> None:
        """As `ModelSource.close`."""
        self.file.close()

    def __enter__(self) -> GGUFSource:
        """Return the source itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def __repr__(self) -> str:
        """Return path and architecture."""
        return f"<GGUFSource {str(self.path)!r}: {self.architecture}, {len(self.weights)} tensors>"


class GGUFWeights(Mapping[str, Float32]):
    """Tensors of a GGUF file by the names of Hugging Face's parameters; see `Weights`.

    A tensor that the architecture does not have is there by the name that the file gives it, so that whoever takes
    parameters finds it left over.

    Parameters
    ----------
    file : GGUFFile
    layout : Layout
    """

    def __init__(self, file: GGUFFile, layout: Layout) -> None:
        self._file = file
        self._names: dict[str, str] = {}
        self._changes: dict[str, Change] = {}
        for tensor in file.tensors:
            if tensor in ROPE_FACTORS or any(part in tensor for part in COMPUTED):
                continue
            name = parameter_name(tensor, layout) or tensor
            if name in self._names:
                raise file.error(f"tensors {shown(self._names[name])} and {shown(tensor)} are the same parameter")
            self._names[name] = tensor
            for ending, change in layout.changes.items():
                if name.endswith(f".{ending}"):
                    self._changes[name] = change

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Float32:
        """As `Weights.__getitem__`."""
        values = self._file.tensor(self._names[name])
        change = self._changes.get(name)
        if change is None:
            return values
        try:
            return change.values(values).reshape(change.shape(values.shape))
        except ValueError as error:
            raise self._file.error(f"tensor {shown(self._names[name])} {error}") from error

    def matrix(self, name: str, number: int, start: int, stop: int) -> Float32:
        """Read rows of one matrix of a tensor of three dimensions, and nothing else of it."""
        return self._file.matrix(self._names[name], number, start, stop)

    def shape(self, name: str) -> tuple[int, ...]:
        """As `Weights.shape`."""
        shape = self._file.tensors[self._names[name]].shape
        change = self._changes.get(name)
        return shape if change is None else change.shape(shape)

    def stored_as(self, name: str) -> str:
        """As `Weights.stored_as`."""
        return self._file.tensors[self._names[name]].kind.name

    def rows(self, name: str) -> RowReader:
        """As `Weights.rows`."""
        return self._file.rows(self._names[name])

    def tensor_name(self, name: str) -> str:
        """What the file calls a parameter."""
        return self._names[name]
