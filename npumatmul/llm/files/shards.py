"""Weights in safetensors files: floats of 16 or 32 bits, made float32 one tensor, or one row, at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError, UnusableFileError
from npumatmul.files.reading import RegularFile, shown
from npumatmul.llm.files.model_source import Float32
from npumatmul.llm.files.source import CheckedSource, FileSource
from npumatmul.ops.packed.files.reader import TensorFile, WrongTensorFile

__all__ = ["FloatRows", "ShardedWeights"]

_PIECE = 1 << 22
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
#: Buffers that old checkpoints stored, and that every model computes: no parameters.
_COMPUTED = ("rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias")
#: Models of embeddings are saved without the head, and then without what names of all but the head begin with.
_BODY, _BODY_ALONE, _BESIDE = "model.", "embed_tokens.weight", ("lm_head.weight",)


class ShardedWeights(Mapping[str, Float32]):
    """Tensors of one or several safetensors files; see `Weights`.

    Parameters
    ----------
    shards : mapping of str to list of str or None
        Names of files, with the tensors that have to be in each; None where nothing says which.
    locate : callable
        From the name of a file to where it is.
    error : callable
        From a problem to the exception for it.

    Raises
    ------
    npumatmul.errors.ModelError
        If a file is damaged, or has not what it has to have.
    """

    def __init__(
        self,
        shards: Mapping[str, Sequence[str] | None],
        locate: Callable[[str], Path],
        error: Callable[[str], ModelError],
    ) -> None:
        self._error = error
        self._files: list[TensorFile] = []
        self._held: dict[str, TensorFile] = {}
        try:
            for shard, listed in shards.items():
                self._add(shard, locate(shard), listed)
        except BaseException:
            self.close()
            raise
        self._stored = {name: name for name in self._held}
        if _BODY_ALONE in self._held and f"{_BODY}{_BODY_ALONE}" not in self._held:
            self._stored = {name if name in _BESIDE else _BODY + name: name for name in self._held}

    def _add(self, shard: str, path: Path, listed: Sequence[str] | None) -> None:
        try:
            file = TensorFile(path)
        except WrongTensorFile as error:
            raise self._error(f"{shard} is damaged, or no safetensors file ({error}); fetch it again") from error
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        except OSError as error:
            raise self._error(f"{shard} cannot be opened: {error}") from error
        self._files.append(file)
        for name in listed or ():
            if name not in file.names:
                raise self._error(f"tensor {shown(name)} is not in {shard}, where the index says that it is")
        for name in file.in_order():
            if name in self._held:
                raise self._error(
                    f"tensor {shown(name)} is in {shard} and in {os.path.basename(self._held[name].path)}"
                )
            if not name.endswith(_COMPUTED):
                self._held[name] = file

    def __len__(self) -> int:
        return len(self._stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def tensor_name(self, name: str) -> str:
        """What the file calls a tensor."""
        return self._stored[name]

    def __getitem__(self, name: str) -> Float32:
        """As `Weights.__getitem__`."""
        source, kind = self._source(name)
        return self._values(name, source, kind, self.shape(name))

    def matrix(self, name: str, number: int, start: int, stop: int) -> Float32:
        """Read rows of one matrix of a tensor of three dimensions, and nothing else of it."""
        source, kind = self._source(name)
        count, rows, columns = self.shape(name)
        if not (0 <= number < count and 0 <= start <= stop <= rows):
            raise ValueError(
                f"rows {start} to {stop} of matrix {number} are not in a stack of {(count, rows, columns)}"
            )
        row_bytes = columns * _BYTES[kind]
        part = source.part((number * rows + start) * row_bytes, (stop - start) * row_bytes)
        return self._values(name, part, kind, (stop - start, columns))

    def _values(self, name: str, source: FileSource, kind: str, shape: tuple[int, ...]) -> Float32:
        values = np.empty(shape, np.float32)
        flat, width = values.reshape(-1), _BYTES[kind]
        try:
            for start in range(0, source.size, _PIECE):  # no more than the values themselves is in memory
                piece = source.read(start, min(_PIECE, source.size - start))
                part = flat[start // width : start // width + len(piece) // width]
                part[:] = _float32(piece, kind)
                if not (np.isfinite(part.min()) and np.isfinite(part.max())):
                    raise self._error(f"tensor {shown(name)} holds NaN or infinity; fetch or convert the model again")
            source.check_unchanged()
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        return values

    def shape(self, name: str) -> tuple[int, ...]:
        """As `Weights.shape`."""
        stored = self._stored[name]
        return self._held[stored].shape(stored)

    def stored_as(self, name: str) -> str:
        """As `Weights.stored_as`."""
        stored = self._stored[name]
        return self._held[stored].stored_as(stored)

    def rows(self, name: str) -> FloatRows:
        """As `Weights.rows`; rows that differ from what they were when they were read first are refused."""
        source, kind = self._source(name)
        shape = self.shape(name)
        if len(shape) != 2 or not source.size:
            raise self._error(f"tensor {shown(name)} has shape {shape}, a matrix is needed")
        try:
            return FloatRows(CheckedSource(source), (shape[0], shape[1]), kind)
        except UnusableFileError as error:
            raise ModelError(str(error)) from error

    def regular_files(self) -> list[RegularFile]:
        """The open files."""
        return [each.file for each in self._files]

    def close(self) -> None:
        """Close the files for all but those that read rows."""
        self._files, self._held, self._stored = [], {}, {}

    def _source(self, name: str) -> tuple[FileSource, str]:
        stored = self._stored[name]
        file = self._held[stored]
        kind = file.stored_as(stored)
        if kind not in _BYTES:
            raise self._error(
                f"tensor {shown(name)} is stored as {kind}; F32, F16 and BF16 are read. Use the model before it was "
                "quantized, or a GGUF file"
            )
        return FileSource(file.file, *file.place(stored)), kind


class FloatRows:
    """Rows of a matrix in a safetensors file; see `Rows`.

    Parameters
    ----------
    source : CheckedSource
        Its bytes.
    shape : tuple of int
    kind : str
        ``F32``, ``F16`` or ``BF16``.
    """

    def __init__(self, source: CheckedSource, shape: tuple[int, int], kind: str) -> None:
        self.shape = shape
        self._source, self._kind = source, kind

    def __call__(self, indices: NDArray[np.int64]) -> Float32:
        """As `Rows.__call__`."""
        size = self._source.size // self.shape[0]
        stored = np.empty((len(indices), size), np.uint8)
        try:
            for row, index in zip(stored, indices.tolist(), strict=True):
                row[:] = self._source.read(index * size, size)
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        return np.array(_float32(stored.reshape(-1), self._kind), np.float32).reshape(len(indices), self.shape[1])


def _float32(stored: NDArray[np.uint8], kind: str) -> NDArray[Any]:
    """Values of little-endian floats; of F32 and F16 in their own type, as a view."""
    if kind == "BF16":  # the upper half of a float32
        return (stored.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return stored.view("<f4" if kind == "F32" else "<f2")
