"""Files that commands are given: texts, matrices, and pictures to be."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from npumatmul.files.reading import RegularFile
from npumatmul.files.reading import read_text as read_any_text

__all__ = ["picture_format", "read_matrix", "read_text"]

#: Longer texts than any evaluation takes; and what an array may have: four gigabytes, as the largest domain of an NPU.
_TEXT_BYTES, _ARRAY_BYTES = 1 << 30, 1 << 32
#: An archive may become so much longer than it is, and so many bytes besides.
_EXPANSION, _EXPANSION_BYTES = 16, 1 << 26
_PICTURES = ("png", "pdf", "svg", "jpg", "jpeg", "webp", "tif", "tiff", "eps", "ps")


def read_text(path: Path) -> str:
    """Read a text file.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is not UTF-8.
    """
    try:
        return read_any_text(path, _TEXT_BYTES)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}") from error


def read_matrix(path: Path, name: str) -> NDArray[np.float32]:
    """Read a matrix of a .npy file, or the one of that name in a .npz file.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is something else.
    """
    with RegularFile(path, _ARRAY_BYTES) as file:
        data = file.read(0, file.size)
    stream = io.BytesIO(data.data)
    try:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            return _matrix(stream, len(data))
        with zipfile.ZipFile(stream) as archive:
            sizes = {each.filename.removesuffix(".npy"): each.file_size for each in archive.infolist()}
            if name not in sizes:
                raise ValueError(f"it holds {', '.join(sizes)[:200]}; an array named {name!r} is needed")
            if sizes[name] > _EXPANSION * len(data) + _EXPANSION_BYTES:
                raise ValueError(f"its array {name!r} would have {sizes[name]} bytes, the file has {len(data)}")
            with archive.open(f"{name}.npy") as member:
                return _matrix(io.BytesIO(member.read(sizes[name])), sizes[name])
    except (ValueError, EOFError, OSError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is not a matrix in numpy's .npy or .npz format: {error}") from error


def _matrix(stream: BinaryIO, size: int) -> NDArray[np.float32]:
    """The matrix of a .npy file, whose header says no more than there is."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has version {version} of the format")
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, column_major, dtype = read(stream)
    if len(shape) != 2 or dtype.kind not in "fiu":
        raise ValueError(f"it holds {dtype} of shape {shape}; a matrix of real numbers is needed")
    if math.prod(shape) * dtype.itemsize > size - stream.tell():
        raise ValueError(f"it has {size - stream.tell()} bytes of values, too few for the shape {shape}")
    values = np.frombuffer(stream.read(math.prod(shape) * dtype.itemsize), dtype)
    matrix: NDArray[Any] = values.reshape(shape, order="F" if column_major else "C")
    return np.ascontiguousarray(matrix, np.float32)


def picture_format(path: Path) -> str:
    """What the ending of a picture's name asks for.

    Raises
    ------
    ValueError
        If no picture can be made of it.
    """
    kind = path.suffix[1:].lower() or "png"
    if kind not in _PICTURES:
        raise ValueError(f"{path}: pictures are {', '.join(_PICTURES)}")
    return kind
