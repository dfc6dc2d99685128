"""Where a model comes from: one protocol for GGUF files and Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError

__all__ = ["Digested", "Float32", "ModelSource", "Rows", "Weights"]

Float32 = NDArray[np.float32]
Digested = Callable[[int, int], object]
"""Called with bytes done and bytes in all."""


class Rows(Protocol):
    """Rows of a matrix that stays in its file, made float32 when they are asked for.

    Attributes
    ----------
    shape : tuple of int
        ``(rows, columns)``.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    def __call__(self, indices: NDArray[np.int64]) -> Float32:
        """The rows with these numbers, in their order; `ModelError` if the file was changed since it was opened."""


class Weights(Protocol):
    """A lazy mapping from names of parameters, as Hugging Face has them, to float32 arrays.

    Each access reads its tensor anew into memory of its own, so that no more than one has to be there.
    """

    def __getitem__(self, name: str) -> Float32:
        """Read a tensor; `KeyError` if there is none, `ModelError` if it cannot be used."""

    def __iter__(self) -> Iterator[str]:
        """All names, in the order of the file."""

    def __len__(self) -> int:
        """How many there are."""

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name."""

    def keys(self) -> Any:
        """All names, as of any mapping."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""

    def stored_as(self, name: str) -> str:
        """Name of the type that a tensor is stored in, such as ``BF16`` or ``Q4_K``."""

    def rows(self, name: str) -> Rows:
        """Single rows of a matrix, straight from the file: for embedding tables."""


class ModelSource(Protocol):
    """An open model on disk, whatever its format.

    Attributes
    ----------
    path : pathlib.Path
        The file or the folder.
    kind : str
        ``"gguf"`` or ``"folder"``.
    name : str
        What the model is called.
    architecture : str
        ``general.architecture`` of a GGUF file, ``model_type`` of a folder's config.json.
    config : mapping
        A folder's config.json; the metadata of a GGUF file.
    weights : Weights
        Its tensors by Hugging Face's names. What a format has besides parameters is not there: see `rope_factors`.
    interleaved_rope : bool
        Whether rows of query and key projections are in llama.cpp's order, in which the two values that are rotated
        together stand side by side; else they are half a head apart.
    norms_include_one : bool
        Whether the 1 that gemma adds to weights of norms is in them already.
    rope_factors : mapping of str to ndarray
        What frequencies are divided by, where a GGUF file stores that: ``"freqs"``, or ``"long"`` and ``"short"``.
    generation_config : mapping
        A folder's generation_config.json; else empty.
    tokenizer_files : mapping of str to bytes
        A folder's files of the tokenizer by name, each read when it is asked for; empty for a GGUF file, which has its
        tokenizer in its metadata.
    chat_template : str or None
        The template of that name, or the only one.
    chat_templates : mapping of str to str
        All templates by name; the usual one is called ``"default"``.
    """

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def kind(self) -> Literal["gguf", "folder"]:
        """Which format."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def architecture(self) -> str:
        """Which model it says that it is."""

    @property
    def config(self) -> Mapping[str, Any]:
        """What it says of itself."""

    @property
    def weights(self) -> Weights:
        """Its tensors."""

    @property
    def interleaved_rope(self) -> bool:
        """Order of the rows that are rotated."""

    @property
    def norms_include_one(self) -> bool:
        """What weights of norms mean."""

    @property
    def rope_factors(self) -> Mapping[str, Float32]:
        """Divisors of frequencies."""

    @property
    def generation_config(self) -> Mapping[str, Any]:
        """Defaults of sampling."""

    @property
    def tokenizer_files(self) -> Mapping[str, bytes]:
        """Contents of the tokenizer's files."""

    @property
    def chat_template(self) -> str | None:
        """The usual template."""

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """All templates."""

    def digest(self, progress: Digested = ...) -> str:
        """SHA-256 of what is in the files that weights depend on, in hexadecimal digits.

        A digest is noted beside a file's number, length and times of change, so that a file that nobody touched is not
        read a second time.
        """

    def error(self, problem: str) -> ModelError:
        """The exception for a problem with this model, whose message says where it is."""

    def close(self) -> None:
        """Let go of the files; what was read, and `Rows`, stay usable."""

    def __enter__(self) -> ModelSource:
        """The source itself."""

    def __exit__(self, *_: object) -> None:
        """Close it."""
