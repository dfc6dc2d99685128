"""safetensors files larger than memory: read through a map, written tensor by tensor.

The package safetensors checks what is read. It cannot do either of these: its reader copies each tensor, and its writer
wants all of them at once, and copies them.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

__all__ = ["TensorFile", "TensorWriter", "WrongTensorFile"]

_DTYPES: dict[str, type[np.generic]] = {
    "U8": np.uint8,
    "I8": np.int8,
    "I32": np.int32,
    "F16": np.float16,
    "F32": np.float32,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}

#: Tensors begin at multiples of this, so that views of the map are aligned and copies of tiles are fast.
_ALIGNMENT = 64

_COPIED = 1 << 24


class WrongTensorFile(ValueError):
    """A file that is damaged, or no safetensors file."""


class TensorFile:
    """A safetensors file that is mapped: reading a tensor copies nothing.

    Parameters
    ----------
    path : str or os.PathLike

    Attributes
    ----------
    path : str
    metadata : dict of str to str
    names : frozenset of str
        Of its tensors.

    Raises
    ------
    ImportError
        If the package safetensors is missing: install ``npumatmul[save]``.
    OSError
        If the file cannot be read.
    WrongTensorFile
        If it is damaged, or no safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        library = safetensors()
        self.path = os.fspath(path)
        with open(
            self.path, "rb"
        ) as file:  # a file that cannot be opened is an OSError, whatever the library makes of it
            try:
                with library.safe_open(self.path, "np") as opened:  # checks every length and offset
                    self.metadata: dict[str, str] = opened.metadata() or {}
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (library.SafetensorError, ValueError) as error:
                raise WrongTensorFile(f"{error}") from error
        self._data: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        length = int.from_bytes(self._map[:8], "little")
        try:
            entries = json.loads(self._map[8 : 8 + length])
            entries.pop("__metadata__", None)
            self._places = {name: _place(name, entry, 8 + length, len(self._data)) for name, entry in entries.items()}
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
            raise WrongTensorFile(f"its header cannot be read: {error}") from error
        self.names = frozenset(self._places)
        self._under: dict[str, list[str]] = {}
        for name in self._places:
            if "/" in name:
                self._under.setdefault(name.partition("/")[0], []).append(name)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A tensor: a read-only view of the map.

        Raises
        ------
        KeyError
            If there is none of this name.
        WrongTensorFile
            If it is of a type that nothing here is stored in.
        """
        start, stop, dtype, shape = self._places[name]
        if dtype not in _DTYPES:
            raise WrongTensorFile(f"tensor {name!r} is of type {dtype}, which nothing here is stored in")
        values: NDArray[Any] = self._data[start:stop].view(_DTYPES[dtype]).reshape(shape)
        return values

    def under(self, prefix: str) -> tuple[str, ...]:
        """Names of all tensors called ``<prefix>/...``."""
        return tuple(self._under.get(prefix, ()))

    def nbytes(self, names: Iterable[str]) -> int:
        """Bytes of some tensors."""
        return sum(self._places[name][1] - self._places[name][0] for name in names)

    def forget(self, names: Iterable[str]) -> None:
        """Let go of the pages of tensors that were read; views of them stay valid, and read the file again."""
        if hasattr(mmap, "MADV_DONTNEED"):  # where it is missing, memory is only given back later
            for name in names:
                start, stop, *_ = self._places[name]
                first = start // mmap.PAGESIZE * mmap.PAGESIZE
                if stop > first:
                    with contextlib.suppress(OSError):
                        self._map.madvise(mmap.MADV_DONTNEED, first, stop - first)


def _place(name: str, entry: Any, first: int, end: int) -> tuple[int, int, str, tuple[int, ...]]:
    """Where a tensor begins and ends, its type and its shape."""
    offsets, shape = entry["data_offsets"], entry["shape"]
    if not all(type(number) is int and number >= 0 for number in (*offsets, *shape)) or len(offsets) != 2:
        raise ValueError(f"tensor {name!r} has no place")
    start, stop = (first + offset for offset in offsets)
    dtype = entry["dtype"]
    if dtype in _DTYPES and (stop - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize or stop > end):
        raise ValueError(f"tensor {name!r} has {stop - start} bytes, not those of its shape")
    return start, stop, dtype, tuple(shape)


class TensorWriter:
    """Writes a safetensors file tensor by tensor; the file appears when `finish` is called, as a whole.

    The header stands first and says what follows, so tensors are collected in a file beside it: there has to be room
    for two.

    Parameters
    ----------
    path : str or os.PathLike
        A file that exists is replaced.

    Raises
    ------
    ImportError
        If the package safetensors is missing, with which the file is to be read.
    OSError
        If it cannot be written.

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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        safetensors()
        self._target = Path(path)
        self._entries: dict[str, dict[str, Any]] = {}
        self._size = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> TensorWriter:
        self._folder = tempfile.TemporaryDirectory(dir=self._target.parent, prefix=".npumatmul-")
        try:
            self._data: BinaryIO = (Path(self._folder.name) / "data").open("w+b")
        except BaseException:
            self._folder.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Remove what is not finished."""
        assert self._folder is not None
        try:
            self._data.close()
        finally:
            self._folder.cleanup()

    def add(self, name: str, values: NDArray[Any]) -> None:
        """Write a tensor.

        Parameters
        ----------
        name : str
            Not used yet, and not beginning with ``padding/``.
        values : ndarray of uint8, int8, int32, float16 or float32
        """
        if name in self._entries:
            raise ValueError(f"there is a tensor {name!r} already")
        if self._size % _ALIGNMENT:  # the format allows no gaps
            missing = _ALIGNMENT - self._size % _ALIGNMENT
            self._append(f"padding/{len(self._entries)}", np.zeros(missing, np.uint8))
        self._append(name, values)

    def _append(self, name: str, values: NDArray[Any]) -> None:
        self._data.write(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        end = self._size + values.nbytes
        self._entries[name] = {
            "dtype": _NAMES[values.dtype], "shape": list(values.shape), "data_offsets": [self._size, end],
        }  # fmt: skip
        self._size = end

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Put header and tensors together, and the file in its place."""
        assert self._folder is not None
        header = json.dumps({"__metadata__": dict(metadata), **self._entries}, separators=(",", ":")).encode()
        header += b" " * (-(8 + len(header)) % _ALIGNMENT)
        complete = Path(self._folder.name) / "complete"
        self._data.seek(0)
        with complete.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            shutil.copyfileobj(self._data, file, _COPIED)
        os.replace(complete, self._target)


def safetensors() -> ModuleType:
    """The package safetensors.

    Raises
    ------
    ImportError
        If it is missing; the message says what to install.
    """
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise ModuleNotFoundError(
            "packed weights are saved in the format of the package safetensors, which is missing: "
            "pip install 'npumatmul[save]'",
            name="safetensors",
        ) from error
    return safetensors
