"""GGUF files: metadata as Python values, tensors dequantized one at a time from a memory map."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, overload

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.llm.files.gguf_header import GGUFValue, HeaderError, TensorInfo, parse_header, subset

T = TypeVar("T", bool, int, float, str, list[Any])

DEQUANTIZE_ROW_BYTES = 1 << 14  # rows are joined up to about this size: dequantize() works on 16 rows at a time


class GGUFFile:
    """An open GGUF file.

    The file is memory-mapped. Opening it reads the header only; a tensor is read and dequantized when it is asked
    for, so no more than one tensor needs to be in memory. Arrays handed out stay valid after `close`.

    Parameters
    ----------
    path : str or os.PathLike
        Path of a GGUF file, version 2 or 3, little-endian.

    Attributes
    ----------
    path : pathlib.Path
        Path of the file.
    metadata : dict
        Metadata by key; arrays are lists, all values are plain Python objects.
    tensors : dict of str to TensorInfo
        Name, shape (numpy's order, slowest dimension first), storage type and place of every tensor.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    npumatmul.errors.ModelError
        If the file is damaged or is not a GGUF file.

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
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"there is no model file {self.path}")
        if not self.path.is_file():
            raise self.error("it is a folder or a device; give the path of a .gguf file")
        if self.path.stat().st_size == 0:
            raise self.error("it is empty; fetch it again")
        self._parse(np.memmap(self.path, dtype=np.uint8, mode="r").view(np.ndarray))

    def _parse(self, data: NDArray[np.uint8]) -> None:
        try:
            header = parse_header(data.data)
        except HeaderError as error:
            raise self.error(f"{error}; fetch or convert it again") from error
        self._data: NDArray[np.uint8] | None = data
        self._header = header
        self.metadata: dict[str, GGUFValue] = header.metadata
        self.tensors: dict[str, TensorInfo] = header.tensors

    @classmethod
    def of_bytes(cls, data: NDArray[np.uint8], path: str | os.PathLike[str]) -> GGUFFile:
        """Read a GGUF file that stands inside another file.

        Parameters
        ----------
        data : ndarray of uint8, 1-D
            Its bytes; not copied.
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
        file._parse(data)
        return file

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
        return subset(self._mapped().data, self._header, names)

    def __repr__(self) -> str:
        """Return path and counts."""
        state = "closed" if self._data is None else f"{len(self.metadata)} values, {len(self.tensors)} tensors"
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
        """Let go of the memory map. Row readers made by `rows` keep their own hold on it."""
        self._data = None

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
        info = self._info(name, shape)
        if info.nbytes == 0:
            return np.zeros(info.shape, np.float32)
        blocks = self._blocks(info)
        rows = len(blocks)
        joined = min(rows, max(1, DEQUANTIZE_ROW_BYTES // blocks.shape[1]))
        while rows % joined:  # block formats know no rows: several rows can be dequantized as one long row
            joined -= 1
        values = self._dequantize(info, blocks.reshape(rows // joined, -1)).reshape(info.shape)
        if not (np.isfinite(values.min()) and np.isfinite(values.max())):
            raise self.error(f"tensor {name!r} holds NaN or infinity; fetch or convert the file again")
        return values

    def stored(self, name: str, shape: Iterable[int] | None = None) -> tuple[GGMLQuantizationType, NDArray[np.uint8]]:
        """Return a tensor as it is stored.

        Parameters
        ----------
        name : str
            Name of the tensor.
        shape : iterable of int, optional
            The shape it must have, slowest dimension first.

        Returns
        -------
        kind : GGMLQuantizationType
            Storage type.
        blocks : ndarray of uint8, shape (rows, bytes per row)
            The stored bytes: a read-only view of the file.

        Raises
        ------
        npumatmul.errors.ModelError
            If there is no such tensor, or its shape is another one.
        """
        info = self._info(name, shape)
        return info.kind, self._blocks(info)

    def rows(self, name: str, shape: Iterable[int] | None = None) -> RowReader:
        """Return a reader that dequantizes single rows of a two-dimensional tensor, straight from the file.

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
        blocks = self._blocks(info)
        self._dequantize(info, blocks[:1])  # an unsupported type is found now, not at the first token
        return RowReader(blocks, info)

    def _info(self, name: str, shape: Iterable[int] | None) -> TensorInfo:
        info = self.tensors.get(name)
        if info is None:
            raise self.error(f"tensor {name!r} is missing")
        if shape is not None and info.shape != tuple(shape):
            raise self.error(f"tensor {name!r} has shape {info.shape}, its metadata asks for {tuple(shape)}")
        return info

    def _blocks(self, info: TensorInfo) -> NDArray[np.uint8]:
        """Return the stored bytes of a tensor, one row for each row of values."""
        raw = self._mapped()[info.offset : info.offset + info.nbytes]
        rows = 1
        for length in info.shape[:-1]:
            rows *= length
        return raw.reshape(rows, -1)

    def _mapped(self) -> NDArray[np.uint8]:
        if self._data is None:
            raise ValueError(f"the model file {self.path} has been closed")
        return self._data

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
    blocks : ndarray of uint8, shape (rows, bytes per row)
        The stored bytes.
    info : TensorInfo
        Shape and storage type.

    Attributes
    ----------
    shape : tuple of int
        ``(rows, columns)``.
    """

    def __init__(self, blocks: NDArray[np.uint8], info: TensorInfo) -> None:
        self.shape: tuple[int, int] = (info.shape[0], info.shape[1])
        self._blocks = blocks
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
        """
        return _float32(self._blocks[indices], self._kind).reshape(len(indices), self.shape[1])


def _float32(blocks: NDArray[np.uint8], kind: GGMLQuantizationType) -> NDArray[np.float32]:
    """Dequantize stored bytes into an array of their own."""
    with np.errstate(all="ignore"):  # damaged scales overflow; GGUFFile.tensor looks at the result
        values = dequantize(np.ascontiguousarray(blocks), kind)
    return np.array(values, dtype=np.float32, copy=True) if kind == GGMLQuantizationType.F32 else values
