"""Files that commands are given, to read and to write; ``-`` is standard input and standard output."""

from __future__ import annotations

import io
import math
import os
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from npumatmul.cli.terminal import is_watched, visible
from npumatmul.extras import check_installed
from npumatmul.files.reading import RegularFile
from npumatmul.files.reading import read_text as read_any_text
from npumatmul.files.writing import check_output, write_bytes

__all__ = [
    "STANDARD",
    "check_outputs",
    "picture_format",
    "read_matrix",
    "read_standard_input",
    "read_text",
    "write_output",
]

#: What names standard input or output instead of a file.
STANDARD = Path("-")

#: Longer texts than any evaluation takes; and what an array may have: four gigabytes, as the largest domain of an NPU.
_TEXT_BYTES, _ARRAY_BYTES = 1 << 30, 1 << 32
#: An archive may become so much longer than it is, and so many bytes besides.
_EXPANSION, _EXPANSION_BYTES = 16, 1 << 26
#: A byte order mark, which some editors put in front of UTF-8.
_MARK = "\ufeff"
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
    if path == STANDARD:
        return read_standard_input("the text")
    try:
        return read_any_text(path, _TEXT_BYTES).removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}") from error


def read_standard_input(what: str) -> str:
    """Read all of standard input as UTF-8, whatever the system takes text for: files and pipes are.

    Raises
    ------
    ValueError
        If it is something else, or too long.
    """
    stream = getattr(sys.stdin, "buffer", None)
    data = b"" if sys.stdin is None else sys.stdin.read().encode() if stream is None else stream.read(_TEXT_BYTES + 1)
    if len(data) > _TEXT_BYTES:
        raise ValueError(f"{what} on standard input is longer than {_TEXT_BYTES} bytes")
    try:
        return data.decode("utf-8").removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what} on standard input is not UTF-8: the byte 0x{data[error.start]:02x} at position {error.start} "
            "belongs to no character"
        ) from error


def check_outputs(outputs: Mapping[str, Path | None], sources: Iterable[str | Path] = ()) -> None:
    """Refuse outputs that cannot be written, before the work that is to be saved.

    Parameters
    ----------
    outputs : mapping of str to Path or None
        By the option that names them; None: not asked for.
    sources : iterable of path-like
        What they are made of.

    Raises
    ------
    OSError, UnusableFileError
        As `npumatmul.files.writing.check_output`.
    ValueError
        If two of them are the same.
    """
    sources = list(sources)
    seen: dict[str, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        if path == Path() or not str(path).strip():  # an empty name, which would be the folder that we are in
            raise ValueError(f"{option} names no file")
        name = str(path) if path == STANDARD else os.path.realpath(path)
        if name in seen:
            raise ValueError(f"{seen[name]} and {option} are both {path}; each needs a file of its own")
        seen[name] = option
        if path != STANDARD:
            check_output(path, sources)


def write_output(path: Path, content: str | bytes, sources: Iterable[str | Path] = ()) -> None:
    """Write a file as a whole, or to standard output.

    Raises
    ------
    OSError, UnusableFileError
        If it cannot be written.
    """
    if path == STANDARD and isinstance(content, str) and is_watched():
        content = visible(content)
    data = content.encode("utf-8") if isinstance(content, str) else content
    if path != STANDARD:
        write_bytes(path, data, sources)
        return
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        print(data.decode("utf-8"), end="")
        return
    stream.write(data)
    stream.flush()


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
    try:
        shape, column_major, dtype = read(stream)
    except Exception as error:  # numpy has Python read the header, which fails in more ways than it says
        raise ValueError(f"its header cannot be read: {type(error).__name__}") from error
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
    MissingPackageError
        If pictures cannot be made at all.
    """
    check_installed("matplotlib", "--plot")
    if path == STANDARD and sys.stdout is not None and sys.stdout.isatty():
        raise ValueError("--plot -: a picture is nothing for a terminal; name a file, or redirect it")
    kind = path.suffix[1:].lower() or "png"
    if kind not in _PICTURES:
        raise ValueError(f"{path}: pictures are {', '.join(_PICTURES)}")
    return kind


def path(text: str) -> Path:
    """A path on the command line, of which an empty one stays empty: pathlib takes it for the folder that we are in."""
    return Path(text or " ")
