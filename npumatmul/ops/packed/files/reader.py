"""safetensors files larger than memory: read and written tensor by tensor.

The package safetensors copies all tensors at once to write them, and reads through a map, which ends the process if the
file becomes shorter. So both are done here, by the rules of the format and those of `npumatmul.files`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from npumatmul.files.reading import RegularFile, parse_json, shown
from npumatmul.files.writing import check_target, replacing, said_of
from npumatmul.host.checksums import SummedReader

__all__ = ["TensorFile", "TensorWriter", "WrongTensorFile"]

_DTYPES: dict[str, type[np.generic]] = {
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "F16": np.float16,
    "F32": np.float32,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
#: Bytes of an element of every type that the format has, less those of parts of a byte.
_SIZES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

#: Tensors begin at multiples of this, so that copies of tiles are fast.
_ALIGNMENT = 64
#: The format's own limit of a header; within it, what a small file may have at all, and what larger ones have besides.
#: A header of lists becomes objects of thirty times its size.
_LONGEST_HEADER, _HEADER, _HEADER_PART = 100_000_000, 1 << 23, 16
_MOST_DIMENSIONS = 32
#: Bytes that no array can have; numpy counts them in 63 bits, also where there are none.
_LARGEST = 1 << 56

_COPIED = 1 << 24


class WrongTensorFile(ValueError):
    """A file that is damaged, or no safetensors file."""


class TensorFile:
    """A safetensors file that is open: a tensor is read when it is asked for.

    Parameters
    ----------
    path : str or os.PathLike

    Attributes
    ----------
    path : str
    file : RegularFile
        The file itself.
    metadata : dict of str to str
    names : frozenset of str
        Of its tensors.

    Raises
    ------
    OSError
        If the file cannot be read.
    UnusableFileError
        If it is no regular file, or sparse.
    WrongTensorFile
        If it is damaged, or no safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.file = RegularFile(path)
        try:
            entries, self._first = _header(self.file)
            self.metadata = _metadata(entries.pop("__metadata__", {}))
            self._places = {name: _place(name, entry) for name, entry in entries.items()}
            self._check_order()
        except BaseException as error:
            self.file.close()
            if isinstance(error, (KeyError, TypeError, AttributeError, ValueError)) and not isinstance(
                error, WrongTensorFile
            ):
                raise WrongTensorFile(f"its header cannot be read: {error!r}") from error
            raise
        self.names = frozenset(self._places)
        self._under: dict[str, list[str]] = {}
        for name in self._places:
            if "/" in name:
                self._under.setdefault(name.partition("/")[0], []).append(name)

    def _check_order(self) -> None:
        """Tensors follow each other without a gap, from the header to the end of the file."""
        end = 0
        for name, (start, stop, _, _) in sorted(self._places.items(), key=lambda each: each[1][:2]):
            if start != end:
                raise WrongTensorFile(f"tensor {shown(name)} begins at {start}, the one before it ends at {end}")
            end = stop
        if self._first + end != self.file.size:
            raise WrongTensorFile(f"its tensors end at {self._first + end}, and it has {self.file.size} bytes")

    def close(self) -> None:
        """Close the file. Twice is allowed."""
        self.file.close()

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A tensor, read now; it cannot be written.

        Raises
        ------
        KeyError
            If there is none of this name.
        UnusableFileError
            If the file has become shorter.
        WrongTensorFile
            If it is of a type that nothing here is stored in.
        """
        start, stop, _, shape = self._places[name]
        values: NDArray[Any] = self.file.read(self._first + start, stop - start).view(self.dtype(name)).reshape(shape)
        values.flags.writeable = False
        return values

    def read_into(self, name: str, memory: NDArray[np.uint8]) -> int | None:
        """Read a tensor of as many bytes into memory, and tell its checksum; None if it is of another type or shape.

        Several threads share what is large, and each sums up what it has read while that is in a cache.

        Raises
        ------
        KeyError, UnusableFileError, WrongTensorFile
            As for reading it.
        """
        start, _, _, shape = self._places[name]
        if self.dtype(name) != np.uint8 or shape != memory.shape:
            return None
        reader = SummedReader()
        self.file.read_into(self._first + start, memory, reader)
        return reader.checksum

    def dtype(self, name: str) -> np.dtype[Any]:
        """Type of a tensor's elements; errors as for reading it."""
        dtype = self._places[name][2]
        if dtype not in _DTYPES:
            raise WrongTensorFile(f"tensor {shown(name)} is of type {dtype}, which nothing here is stored in")
        return np.dtype(_DTYPES[dtype])

    def stored_as(self, name: str) -> str:
        """Name of the type that a tensor is stored in, one of the format's."""
        return self._places[name][2]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return self._places[name][3]

    def place(self, name: str) -> tuple[int, int]:
        """Where in the file the bytes of a tensor begin, and how many there are."""
        start, stop, *_ = self._places[name]
        return self._first + start, stop - start

    def in_order(self) -> tuple[str, ...]:
        """Names of all tensors as the header lists them."""
        return tuple(self._places)

    def under(self, prefix: str) -> tuple[str, ...]:
        """Names of all tensors called ``<prefix>/...``."""
        return tuple(self._under.get(prefix, ()))

    def nbytes(self, names: Iterable[str]) -> int:
        return sum(self._places[name][1] - self._places[name][0] for name in names)


_Place = tuple[int, int, str, tuple[int, ...]]
"""Where a tensor begins and ends, its type and its shape."""


def _header(file: RegularFile) -> tuple[dict[str, Any], int]:
    """What the header says, and where tensors begin."""
    if file.size < 8:
        raise WrongTensorFile(f"it has {file.size} bytes")
    length = int.from_bytes(file.read(0, 8).tobytes(), "little")
    most = min(_LONGEST_HEADER, _HEADER + file.size // _HEADER_PART, file.size - 8)
    if not 2 <= length <= most:
        raise WrongTensorFile(
            f"it is damaged or no safetensors file: its header would have {length} bytes; from 2 to {most} are possible"
        )
    text = file.read(8, length).tobytes()
    if not text.startswith(b"{"):
        raise WrongTensorFile("its header does not begin with '{'")
    try:
        entries = parse_json(text.decode("utf-8"))
    except ValueError as error:
        raise WrongTensorFile(f"its header cannot be read: {error}") from error
    return entries, 8 + length


def _metadata(entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise WrongTensorFile("its metadata are no object of texts")
    return entry


def _place(name: str, entry: Any) -> _Place:
    (start, stop), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    if (
        type(shape) is not list
        or len(shape) > _MOST_DIMENSIONS
        or not all(type(number) is int and 0 <= number < 1 << 63 for number in (start, stop, *shape))
    ):
        raise WrongTensorFile(f"tensor {shown(name)} has no place")
    if type(dtype) is not str or dtype not in _SIZES:
        raise WrongTensorFile(f"tensor {shown(name)} is of type {shown(dtype)}, which is not known")
    if math.prod(max(extent, 1) for extent in shape) * _SIZES[dtype] > _LARGEST:
        raise WrongTensorFile(f"tensor {shown(name)} has the shape {shown(shape)}, which no array can have")
    if stop - start != math.prod(shape) * _SIZES[dtype]:
        raise WrongTensorFile(f"tensor {shown(name)} has {stop - start} bytes, not those of its shape")
    return start, stop, dtype, tuple(shape)


class TensorWriter:
    """Writes a safetensors file tensor by tensor; the file appears when `finish` is called, as a whole.

    The header stands first and says what follows, so tensors are collected in a file without a name in the same
    folder: there has to be room for two. With `room`, tensors are written where they are to stand, behind as many bytes
    as the header is expected to need; only if it needs more are they copied.

    Parameters
    ----------
    path : str or os.PathLike
        A file that exists is replaced.
    sources : iterable of str or os.PathLike
        What the tensors come from, which is not replaced.
    room : int, optional
        Bytes for the header, a multiple of 64; what it does not need is filled with blanks.

    Attributes
    ----------
    size : int
        Bytes of tensors so far.

    Raises
    ------
    OSError, UnusableFileError
        If it cannot be written, or is one of `sources`.

    Examples
    --------
    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/numbers.safetensors"
    >>> with TensorWriter(path) as writer:
    ...     writer.add("some", np.arange(3, dtype=np.int32))
    ...     writer.finish({"of": "nothing"})
    >>> file = TensorFile(path)
    >>> file.metadata, file["some"].tolist()
    ({'of': 'nothing'}, [0, 1, 2])
    """

    def __init__(
        self, path: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]] = (), *, room: int = 0
    ) -> None:
        self._target, self._sources, self._room = path, tuple(sources), room
        self._places: dict[str, _Place] = {}
        self.size = 0
        self._data: BinaryIO | None = None
        self._placing: contextlib.AbstractContextManager[BinaryIO] | None = None

    def __enter__(self) -> TensorWriter:
        check_target(self._target, self._sources)
        if self._room:
            self._placing = replacing(self._target, self._sources)
            self._data = self._placing.__enter__()
            self._data.seek(self._room)
        else:
            with said_of(self._target):
                self._data = tempfile.TemporaryFile(dir=os.path.dirname(os.path.realpath(self._target)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what is not finished."""
        placing, self._placing = self._placing, None
        if placing is not None:
            unfinished = _Unfinished()
            with contextlib.suppress(_Unfinished, OSError):
                placing.__exit__(_Unfinished, unfinished, None)
        elif self._data is not None:
            with contextlib.suppress(OSError):  # what could not be written at the end is not needed
                self._data.close()

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Write a tensor.

        Parameters
        ----------
        name : str
            Not used yet, and not beginning with ``padding/``.
        values : ndarray of uint8, int8, int32, float16 or float32
        """
        if name in self._places:
            raise ValueError(f"there is a tensor {name!r} already")
        if self.size % _ALIGNMENT:  # the format allows no gaps
            missing = _ALIGNMENT - self.size % _ALIGNMENT
            self._append(f"padding/{len(self._places)}", np.zeros(missing, np.uint8))
        self._append(name, values)

    def _append(self, name: str, values: NDArray[Any]) -> None:
        assert self._data is not None, "tensors are written within a with block"
        self._data.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        end = self.size + values.nbytes
        self._places[name] = self.size, end, _NAMES[values.dtype], values.shape
        self.size = end

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Put header and tensors together, and the file in its place."""
        assert self._data is not None
        entries = {
            name: {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
            for name, (start, end, dtype, shape) in self._places.items()
        }
        header = json.dumps({"__metadata__": dict(metadata), **entries}, separators=(",", ":")).encode()
        fits = 8 + len(header) <= self._room
        header += b" " * (self._room - 8 - len(header) if fits else -(8 + len(header)) % _ALIGNMENT)
        start = len(header).to_bytes(8, "little") + header
        if fits and self._placing is not None:
            self._data.seek(0)
            self._data.write(start)
            placing, self._placing = self._placing, None
            placing.__exit__(None, None, None)
            return
        self._data.seek(self._room)
        with replacing(self._target, self._sources) as file:
            file.write(start)
            shutil.copyfileobj(self._data, file, _COPIED)


class _Unfinished(Exception):
    """Has a file that is not finished be removed."""
