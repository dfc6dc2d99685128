"""Weights in safetensors files: floats of 16 or 32 bits and MXFP4, made float32 one tensor, or one row, at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError, UnusableFileError
from npumatmul.files.reading import RegularFile, shown
from npumatmul.llm.files.model_source import Float32
from npumatmul.llm.files.mxfp4 import BLOCK, BLOCK_BYTES, mxfp4_values
from npumatmul.llm.files.source import CheckedSource, FileSource
from npumatmul.ops.packed.files.reader import TensorFile, WrongTensorFile

__all__ = ["FloatRows", "ShardedWeights"]

_PIECE = 1 << 22
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
#: Buffers that old checkpoints stored, and that every model computes: no parameters.
_COMPUTED = ("rotary_emb.inv_freq", ".attn.masked_bias", ".attention.masked_bias")
#: Models that see or hear have their language model in a part of its own.
_INSIDE, _OF_WHOLE = ("model.language_model.", "language_model."), r"^(model\.)?language_model\.(model\.)?"
#: What names of MXFP4 end with, blocks and exponents.
_CODES, _SCALES = "_blocks", "_scales"
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
        elif any(name.startswith(_INSIDE) for name in self._held):
            self._stored = {_of_language_model(name): name for name in self._held}
            if len(self._stored) < len(self._held):
                raise error("parameters of its language model are there twice, under two names")
        #: Tensors in MXFP4 by the name of a weight: what has the exponents; `_stored` has the blocks.
        self._scales: dict[str, str] = {}
        for name in [each for each in self._stored if each.endswith(_CODES)]:
            stem = name.removesuffix(_CODES)
            if self._is_mxfp4(name, stem + _SCALES) and f"{stem}.weight" not in self._stored:
                self._scales[f"{stem}.weight"] = self._stored.pop(stem + _SCALES)
                self._stored[f"{stem}.weight"] = self._stored.pop(name)

    def _is_mxfp4(self, codes: str, scales: str) -> bool:
        if scales not in self._stored or {self.stored_as(codes), self.stored_as(scales)} != {"U8"}:
            return False
        shape = self.shape(codes)
        return len(shape) == 4 and shape[3] == BLOCK_BYTES and self.shape(scales) == shape[:3]

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
        if name in self._scales:
            count, rows, _ = self.shape(name)
            return np.stack([self._from_mxfp4(name, number, 0, rows) for number in range(count)])
        source, kind = self._source(name)
        return self._values(name, source, kind, self.shape(name))

    def matrix(self, name: str, number: int, start: int, stop: int) -> Float32:
        """Read rows of one matrix of a tensor of three dimensions, and nothing else of it."""
        count, rows, columns = self.shape(name)
        if not (0 <= number < count and 0 <= start <= stop <= rows):
            raise ValueError(
                f"rows {start} to {stop} of matrix {number} are not in a stack of {(count, rows, columns)}"
            )
        if name in self._scales:
            return self._from_mxfp4(name, number, start, stop)
        source, kind = self._source(name)
        row_bytes = columns * _BYTES[kind]
        part = source.part((number * rows + start) * row_bytes, (stop - start) * row_bytes)
        return self._values(name, part, kind, (stop - start, columns))

    def _from_mxfp4(self, name: str, number: int, start: int, stop: int) -> Float32:
        stored, parts = self._stored[name], []
        _, rows, each, _ = self._held[stored].shape(stored)
        try:
            for tensor, width in ((stored, BLOCK_BYTES), (self._scales[name], 1)):
                file = self._held[tensor]
                row_bytes = each * width
                source = FileSource(file.file, *file.place(tensor))
                part = source.read((number * rows + start) * row_bytes, (stop - start) * row_bytes)
                parts.append(part.reshape(stop - start, each, width))
                source.check_unchanged()
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        values = mxfp4_values(parts[0], parts[1][..., 0])
        if not np.isfinite(values).all():
            raise self._error(f"tensor {shown(self._scales[name])} holds a scale that is no number; fetch it again")
        return values

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
        shape = self._held[stored].shape(stored)
        return (*shape[:2], shape[2] * BLOCK) if name in self._scales else shape

    def stored_as(self, name: str) -> str:
        """As `Weights.stored_as`."""
        stored = self._stored[name]
        return "MXFP4" if name in self._scales else self._held[stored].stored_as(stored)

    def rows(self, name: str) -> FloatRows:
        """As `Weights.rows`; rows that differ from what they were when they were read first are refused."""
        shape = self.shape(name)
        if len(shape) != 2 or 0 in shape:
            raise self._error(f"tensor {shown(name)} has shape {shape}, a matrix is needed")
        source, kind = self._source(name)
        try:
            return FloatRows(CheckedSource(source), (shape[0], shape[1]), kind)
        except UnusableFileError as error:
            raise ModelError(str(error)) from error

    def regular_files(self) -> list[RegularFile]:
        """The open files."""
        return [each.file for each in self._files]

    def close(self) -> None:
        """Close the files for all but those that read rows."""
        self._files, self._held, self._stored, self._scales = [], {}, {}, {}

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


def _of_language_model(name: str) -> str:
    """A name of a model that sees as its language model alone would have it."""
    inside = re.sub(_OF_WHOLE, "", name)
    if inside == name:
        return name
    return inside if inside in _BESIDE else _BODY + inside
