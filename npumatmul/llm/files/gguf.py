"""GGUF files: metadata as Python values, tensors read and dequantized one at a time."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from npumatmul.errors import ModelError, UnusableFileError
from npumatmul.files.reading import RegularFile, shown
from npumatmul.llm.files.gguf_header import MAGIC, GGUFValue, HeaderError, TensorInfo, parse_header, subset
from npumatmul.llm.files.paths import KINDS, missing, model_path
from npumatmul.llm.files.source import CheckedSource, FileSource, JoinedSource, Part, Source, sha256
from npumatmul.llm.files.split import part_number, part_paths

T = TypeVar("T", bool, int, float, str, list[Any])

DEQUANTIZE_ROW_BYTES = 1 << 14
PIECE_BYTES = 1 << 22


class GGUFFile:
    """An open GGUF file.

    Opening it reads the header only; a tensor is read and dequantized when it is asked for, so no more than one tensor
    needs to be in memory. Arrays handed out stay valid after `close`. A file that somebody writes to after it was
    opened is refused when it is read again.

    Parameters
    ----------
    path : str or os.PathLike
        Path of a GGUF file, version 2 or 3, little-endian; of a model that is split over several, any one, with the
        others beside it.

    Attributes
    ----------
    path : pathlib.Path
        Path of the file; the first one's of several.
    paths : tuple of pathlib.Path
        Of all parts of the model.
    metadata : dict
        Metadata by key; arrays are lists, all values are plain Python objects.
    tensors : dict of str to TensorInfo
        Name, shape (numpy's order, slowest dimension first), storage type and place of every tensor.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    npumatmul.errors.ModelError
        If the file is damaged or is not a GGUF file, no regular file, or sparse; or if it is a part of a model and
        another part is missing or does not belong to it.

    Examples
    --------
    >>> import gguf, numpy as np, tempfile, os
    >>> from npumatmul.llm import GGUFFile
    >>> path = os.path.join(tempfile.mkdtemp(), "tiny.gguf")
    >>> writer = gguf.GGUFWriter(path, "llama")
    >>> writer.add_tensor("output_norm.weight", np.ones(4, np.float32))
    >>> writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
    >>> with GGUFFile(path) as file:
    ...     file.metadata["general.architecture"], file.tensor("output_norm.weight")
    ('llama', array([1., 1., 1., 1.], dtype=float32))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = model_path(path, "GGUFFile")
        self._parse(self._open())
        try:
            part = part_number(self.metadata)
            if part is not None:
                self._join(part_paths(self.path, *part))
        except HeaderError as error:
            raise self.error(str(error)) from error

    def _open(self) -> FileSource:
        try:
            file = RegularFile(self.path)
        except FileNotFoundError:
            raise missing(self.path) from None
        except IsADirectoryError:
            raise self.error("it is a folder, and only a GGUF file is read here: give the path of one") from None
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        if file.size == 0:
            raise self.error("it is empty; fetch it again")
        start = file.read(0, min(9, file.size)).tobytes()
        if start[:4] != MAGIC and start[8:] == b"{":
            raise self.error("it is a safetensors file; give the GGUF file that the model was made of, or its folder")
        return FileSource(file)

    def _parse(self, source: Source) -> None:
        self.paths: tuple[Path, ...] = (self.path,)
        self._source: Source | None = source
        try:
            header = parse_header(source)
        except HeaderError as error:
            advice = "fetch or convert it again" if self.path.suffix == ".gguf" else f"a model is {KINDS}"
            raise self.error(f"{error}; {advice}") from error
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        self._header = header
        self.metadata: dict[str, GGUFValue] = header.metadata
        self.tensors: dict[str, TensorInfo] = header.tensors

    def _join(self, paths: Sequence[Path]) -> None:
        """Become all parts of a model, the first of which has its metadata."""
        parts = [GGUFFile._part(path, number, len(paths)) for number, path in enumerate(paths, 1)]
        joined = JoinedSource([part._file for part in parts])
        tensors: dict[str, TensorInfo] = {}
        for part, first in zip(parts, joined.starts, strict=True):
            for name, info in part.tensors.items():
                if name in tensors:
                    raise part.error(f"tensor {shown(name)} is in an earlier part of the model, too")
                tensors[name] = replace(info, offset=info.offset + first)
        self.path, self.paths = paths[0], tuple(paths)
        self._source, self.metadata, self.tensors = joined, parts[0].metadata, tensors
        self._header = replace(parts[0]._header, tensors=tensors)
        wanted = self.get("split.tensors.count", int, len(tensors))
        if wanted != len(tensors):
            raise self.error(f"its {len(paths)} parts have {len(tensors)} tensors together, it announces {wanted}")

    @classmethod
    def _part(cls, path: Path, number: int, count: int) -> GGUFFile:
        file = cls.__new__(cls)
        file.path = path
        file._parse(file._open())
        if part_number(file.metadata) != (number, count):
            raise file.error(f"by its name it is part {number} of {count} of a split model, by its contents it is not")
        return file

    @property
    def _file(self) -> FileSource:
        assert isinstance(self._source, FileSource)
        return self._source

    @classmethod
    def within(cls, source: Source, path: str | os.PathLike[str]) -> GGUFFile:
        """Read a GGUF file that stands inside another file.

        Parameters
        ----------
        source : Source
            Its bytes.
        path : str or os.PathLike
            The file it stands in, for error messages.

        Returns
        -------
        GGUFFile
            The file within the file.

        Raises
        ------
        npumatmul.errors.ModelError
            If it is damaged.
        """
        file = cls.__new__(cls)
        file.path = Path(path)
        file._parse(source)
        return file

    def sha256(self, progress: Callable[[int, int], object] = lambda done, total: None) -> str:
        """Digest of all bytes of the file that is open, of all parts in turn, whatever has its name by now.

        Parameters
        ----------
        progress : callable, optional
            Called with (bytes done, bytes in all).

        Returns
        -------
        str
            SHA-256 in hexadecimal digits.

        Raises
        ------
        npumatmul.errors.ModelError
            If somebody wrote to it since it was opened.
        """
        source = self._opened()
        assert isinstance(source, (FileSource, JoinedSource)), "a file within a file has no digest of its own"
        try:
            return sha256(source, progress)
        except UnusableFileError as error:
            raise ModelError(str(error)) from error

    def regular_files(self) -> tuple[RegularFile, ...]:
        """The open files that it is read from.

        Returns
        -------
        tuple of RegularFile
            One, or those of all parts in turn.
        """
        source = self._opened()
        assert isinstance(source, (FileSource, JoinedSource)), "a file within a file is none of its own"
        return tuple(each.file for each in (source.files if isinstance(source, JoinedSource) else (source,)))

    def subset(self, names: Collection[str]) -> bytes:
        """Make a GGUF file with all the metadata and some of the tensors.

        Parameters
        ----------
        names : collection of str
            Tensors to keep.

        Returns
        -------
        bytes
            The file.
        """
        try:
            return subset(self._opened(), self._header, names)
        except UnusableFileError as error:
            raise ModelError(str(error)) from error

    def __repr__(self) -> str:
        """Return path and counts."""
        state = "closed" if self._source is None else f"{len(self.metadata)} values, {len(self.tensors)} tensors"
        return f"<GGUFFile {str(self.path)!r}: {state}>"

    def __enter__(self) -> GGUFFile:
        """Return the file itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Let go of the file. Row readers made by `rows` keep their own hold on it."""
        self._source = None

    def error(self, problem: str) -> ModelError:
        """Make the exception for a problem with this file.

        Parameters
        ----------
        problem : str
            What is wrong, and what to do.

        Returns
        -------
        npumatmul.errors.ModelError
            The exception; its message names the file. The caller raises it.
        """
        return ModelError(f"cannot use the model file {self.path}: {problem}")

    @overload
    def get(self, key: str, kind: type[T]) -> T | None: ...
    @overload
    def get(self, key: str, kind: type[T], default: T) -> T: ...
    def get(self, key: str, kind: type[T], default: T | None = None) -> T | None:
        """Look up a metadata value of a known type.

        Parameters
        ----------
        key : str
            Metadata key.
        kind : type
            ``bool``, ``int``, ``float`` (integers are converted), ``str`` or ``list``.
        default : optional
            What to return if the key is missing.

        Returns
        -------
        kind or None
            The value, or `default`.

        Raises
        ------
        npumatmul.errors.ModelError
            If the value has another type.
        """
        value = self.metadata.get(key)
        if value is None:
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(f"metadata {key!r} is a {type(value).__name__}, a {kind.__name__} is needed")
        return value

    def require(self, key: str, kind: type[T]) -> T:
        """Look up a metadata value that has to be there.

        Parameters
        ----------
        key : str
            Metadata key.
        kind : type
            As for `get`.

        Returns
        -------
        kind
            The value.

        Raises
        ------
        npumatmul.errors.ModelError
            If the key is missing or the value has another type.
        """
        value = self.get(key, kind)
        if value is None:
            raise self.error(f"metadata {key!r} is missing")
        return value

    def tensor(self, name: str, shape: Iterable[int] | None = None) -> NDArray[np.float32]:
        """Read and dequantize a tensor.

        Parameters
        ----------
        name : str
            Name of the tensor.
        shape : iterable of int, optional
            The shape it must have, slowest dimension first.

        Returns
        -------
        ndarray of float32
            The values, C-contiguous, writable, not shared with the file.

        Raises
        ------
        npumatmul.errors.ModelError
            If there is no such tensor, its shape is another one, its storage type cannot be dequantized, or it holds
            NaN or infinity.
        """
        return self._values(self._info(name, shape))

    def matrix(self, name: str, number: int, start: int, stop: int) -> NDArray[np.float32]:
        """Read and dequantize rows of one matrix of a stack, and nothing else of it.

        Parameters
        ----------
        name : str
            Name of the tensor, which has three dimensions.
        number : int
            Of the matrix.
        start, stop : int
            Its rows.

        Returns
        -------
        ndarray of float32, shape (stop - start, columns)
            As of `tensor`.

        Raises
        ------
        npumatmul.errors.ModelError
            As `tensor`.
        """
        info = self._info(name, None)
        count, rows, columns = info.shape
        if not (0 <= number < count and 0 <= start <= stop <= rows):
            raise ValueError(f"rows {start} to {stop} of matrix {number} are not in a stack of shape {info.shape}")
        row_bytes = info.nbytes // (count * rows)
        offset = info.offset + (number * rows + start) * row_bytes
        shape = (stop - start, columns)
        return self._values(dataclasses.replace(info, shape=shape, offset=offset, nbytes=shape[0] * row_bytes))

    def _values(self, info: TensorInfo) -> NDArray[np.float32]:
        values = np.empty(info.shape, np.float32)
        if info.nbytes == 0:
            return values
        block, block_bytes = GGML_QUANT_SIZES[info.kind]
        flat, blocks, done = values.reshape(-1), info.nbytes // block_bytes, 0
        while done < blocks:  # in pieces, so that no more than the values themselves is in memory
            count = min(blocks - done, max(1, PIECE_BYTES // block_bytes))
            piece = self._read(info.offset + done * block_bytes, count * block_bytes)
            part = flat[done * block : (done + count) * block]
            part[:] = self._dequantize(info, _joined(piece, count, block_bytes)).reshape(-1)
            if not (np.isfinite(part.min()) and np.isfinite(part.max())):
                raise self.error(f"tensor {info.name!r} holds NaN or infinity; fetch or convert the file again")
            done += count
        return values

    def stored(
        self, name: str, shape: Iterable[int] | None = None, *, rows: slice | None = None
    ) -> tuple[GGMLQuantizationType, NDArray[np.uint8]]:
        """Return a tensor as it is stored.

        Parameters
        ----------
        name : str
            Name of the tensor.
        shape : iterable of int, optional
            The shape it must have, slowest dimension first.
        rows : slice, optional
            Which of its rows to read, matrices of a stack one below the other; all by default.

        Returns
        -------
        kind : GGMLQuantizationType
            Storage type.
        blocks : ndarray of uint8, shape (rows, bytes per row)
            The stored bytes.

        Raises
        ------
        npumatmul.errors.ModelError
            If there is no such tensor, or its shape is another one.
        """
        info = self._info(name, shape)
        count = math.prod(info.shape[:-1])
        each = info.nbytes // max(1, count)
        start, stop, step = (0, count, 1) if rows is None else rows.indices(count)
        read = self._read(info.offset + start * each, max(0, stop - start) * each).reshape(max(0, stop - start), -1)
        return info.kind, np.ascontiguousarray(read[::step]) if step != 1 else read

    def rows(self, name: str, shape: Iterable[int] | None = None) -> RowReader:
        """Return a reader that dequantizes single rows of a two-dimensional tensor, straight from the file.

        Rows that differ from what they were when they were read first are refused, and so are rows of a file that was
        changed before.

        Parameters
        ----------
        name : str
            Name of the tensor.
        shape : iterable of int, optional
            The shape it must have, ``(rows, columns)``.

        Returns
        -------
        RowReader
            A callable from row numbers to rows.

        Raises
        ------
        npumatmul.errors.ModelError
            As `tensor`; NaN is not looked for.
        """
        info = self._info(name, shape)
        if len(info.shape) != 2 or info.nbytes == 0:
            raise self.error(f"tensor {name!r} has shape {info.shape}, a matrix is needed")
        row_bytes = info.nbytes // info.shape[0]
        self._dequantize(info, self._read(info.offset, row_bytes).reshape(1, -1))  # an unsupported type is found now
        return RowReader(self._checked(info), info)

    def _checked(self, info: TensorInfo) -> Source:
        """The bytes of a tensor, which stay what they are now."""
        source = self._opened()
        if isinstance(source, (FileSource, JoinedSource)):
            try:
                return CheckedSource(source.part(info.offset, info.nbytes))
            except UnusableFileError as error:
                raise ModelError(str(error)) from error
        return Part(source, info.offset, info.nbytes)

    def _info(self, name: str, shape: Iterable[int] | None) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise self.error(f"tensor {name!r} is missing")
        if shape is not None and info.shape != tuple(shape):
            raise self.error(f"tensor {name!r} has shape {info.shape}, its metadata asks for {tuple(shape)}")
        return info

    def _read(self, start: int, count: int) -> NDArray[np.uint8]:
        source = self._opened()
        try:
            data = source.read(start, count)
            source.check_unchanged()
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        return data

    def _opened(self) -> Source:
        if self._source is None:
            raise ValueError(f"the model file {self.path} has been closed")
        return self._source

    def _dequantize(self, info: TensorInfo, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
        try:
            return _float32(blocks, info.kind)
        except NotImplementedError as error:
            raise self.error(
                f"tensor {info.name!r} is stored as {info.kind.name}, which cannot be dequantized; "
                f"use a file in another quantization, such as Q8_0 or Q4_K"
            ) from error


class RowReader:
    """Rows of a matrix in a GGUF file, dequantized when asked for; exact, and without a float copy of the matrix.

    Parameters
    ----------
    source : Source
        The stored bytes of the matrix.
    info : TensorInfo
        Shape and storage type.

    Attributes
    ----------
    shape : tuple of int
        ``(rows, columns)``.
    """

    def __init__(self, source: Source, info: TensorInfo) -> None:
        self.shape: tuple[int, int] = (info.shape[0], info.shape[1])
        self._source = source
        self._row_bytes = info.nbytes // info.shape[0]
        self._kind = info.kind

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows with these numbers.

        Parameters
        ----------
        indices : ndarray of int64, shape (T,)
            Row numbers, each in ``0 .. rows - 1``.

        Returns
        -------
        ndarray of float32, shape (T, columns)
            The rows, in the order of `indices`.

        Raises
        ------
        npumatmul.errors.ModelError
            If the file was changed since it was opened.
        """
        size = self._row_bytes
        blocks = np.empty((len(indices), size), np.uint8)
        try:
            for row, index in zip(blocks, indices.tolist(), strict=True):
                row[:] = self._source.read(index * size, size)
        except UnusableFileError as error:
            raise ModelError(str(error)) from error
        return _float32(blocks, self._kind).reshape(len(indices), self.shape[1])


def _joined(piece: NDArray[np.uint8], blocks: int, block_bytes: int) -> NDArray[np.uint8]:
    """Blocks in rows of some kilobytes: `dequantize` works on 16 rows at a time, and knows no rows of the matrix."""
    joined = min(blocks, max(1, DEQUANTIZE_ROW_BYTES // block_bytes))
    while blocks % joined:
        joined -= 1
    return piece.reshape(blocks // joined, -1)


def _float32(blocks: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """Dequantize stored bytes into an array of their own."""
    with np.errstate(all="ignore"):  # damaged scales overflow; GGUFFile.tensor looks at the result
        values = dequantize(np.ascontiguousarray(blocks), kind)
    return np.array(values, dtype=np.float32, copy=True) if kind == GGMLQuantizationType.F32 else values
