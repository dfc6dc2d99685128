"""Opening files that somebody else may have made: regular ones only, nothing longer than it may be, never a map.

A map of a file that becomes shorter ends the process with SIGBUS, and what a map shows changes when the file does. So
bytes are read: what was checked is then what is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import reprlib
import stat
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import UnusableFileError
from npumatmul.files.descriptors import Descriptor, open_into
from npumatmul.files.uncopied import Uncopied

__all__ = ["JSON_BYTES", "RegularFile", "parse_json", "read_bytes", "read_json", "read_text", "shown"]

#: Most bytes of a file of settings, choices or results: a hundred times what any of ours has.
JSON_BYTES = 1 << 22
#: Files with holes of fewer bytes cost nothing.
_HARMLESS_HOLES = 1 << 24
#: How many stretches of data are looked at; a file with more is none that was made to look large.
_STRETCHES = 4096
_PIECE = 1 << 22
#: Most bytes that are read by one call, after which signals are looked at.
_AT_ONCE = 1 << 25


class RegularFile(Uncopied):
    """A file that is open for reading, through a descriptor of its own; a lock or a new file of its name do not matter.

    Parameters
    ----------
    path : str or os.PathLike
    most : int, optional
        Most bytes that it may have.

    Attributes
    ----------
    path : str
    size : int
        Bytes, when it was opened.
    identity : tuple of int
        Device, number, length and both times of change (nanoseconds) then: of a file that has the same ones later, the
        bytes are the same.

    Raises
    ------
    OSError
        If it cannot be opened.
    UnusableFileError
        If it is no regular file, has more bytes than `most`, or consists mostly of holes.
    """

    def __init__(self, path: str | os.PathLike[str], most: int | None = None) -> None:
        self._descriptor: Descriptor | None = None  # first: `close` is called of a file that never came to be, too
        self.path = os.fspath(path)
        _check_kind(self.path, os.stat(self.path))  # before it is opened: opening some devices has consequences
        # O_NONBLOCK: what takes its place in between cannot make us wait either
        held: list[int] = []
        try:
            number = open_into(held, self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._descriptor = Descriptor.of(number)
            status = os.fstat(self._descriptor.number)
            _check_kind(self.path, status)
            self.size = status.st_size
            self._state = _state(status)
            self.identity = (
                status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
            )  # fmt: skip
            if most is not None and self.size > most:
                raise self.error(f"it has {self.size} bytes; at most {most} are read")
            _check_holes(self)
        except BaseException:
            if self._descriptor is None and held:
                os.close(held[0])
            self.close()
            raise

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor. Twice is allowed."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            descriptor.close()

    @property
    def closed(self) -> bool:
        return self._descriptor is None

    def error(self, problem: str) -> UnusableFileError:
        """The error that names the file and what is wrong with it."""
        return UnusableFileError(f"{self.path} cannot be used: {problem}")

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """Bytes of the file, in memory of their own, that nobody else writes.

        Raises
        ------
        UnusableFileError
            If it has become shorter, or somebody closed its descriptor.
        """
        self._check_range(start, count)
        data = np.empty(count, np.uint8)
        self.read_into(start, data)
        return data

    def read_into(
        self,
        start: int,
        memory: NDArray[np.uint8],
        read: Callable[[int, NDArray[np.uint8], int], int] = lambda number, part, at: os.preadv(
            number, [part.data], at
        ),
    ) -> None:
        """Read as many bytes as there are in contiguous memory.

        Parameters
        ----------
        start : int
        memory : ndarray of uint8
        read : callable
            Reads from a descriptor into a part of the memory, from an offset on, and tells how many bytes it got: none
            where the file ends.

        Raises
        ------
        UnusableFileError
            As for `read`.
        """
        count = memory.size
        self._check_range(start, count)
        done = 0
        while done < count:
            got = read(self._open(), memory[done : done + _AT_ONCE], start + done)
            if not got:
                raise self.error(f"it became shorter while it was read: {self.size} bytes, then {start + done}")
            done += got

    def _check_range(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.size:
            raise self.error(f"{count} bytes at {start} are asked for; it has {self.size}")

    def check_unchanged(self) -> None:
        """Refuse a file that somebody wrote to since it was opened.

        Raises
        ------
        UnusableFileError
            If its length or time of change differs.
        """
        if _state(os.fstat(self._open())) != self._state:
            raise self.error("it was changed while it was read; open it again")

    def sha256(self, progress: Callable[[int], object] = lambda done: None) -> str:
        """Digest of all bytes.

        Raises
        ------
        UnusableFileError
            If it changes meanwhile.
        """
        digest = hashlib.sha256()
        for start in range(0, self.size, _PIECE):
            digest.update(self.read(start, min(_PIECE, self.size - start)).data)
            progress(min(start + _PIECE, self.size))
        self.check_unchanged()
        return digest.hexdigest()

    def _open(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} has been closed")
        if not self._descriptor.is_open():
            raise self.error("the program closed its descriptor; open it again")
        return self._descriptor.number


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _check_kind(path: str, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))
    kind = next((name for test, name in kinds if test(status.st_mode)), "a device")
    raise UnusableFileError(f"{path} cannot be used: it is {kind}, and a file is needed")


def _check_holes(file: RegularFile) -> None:
    """Refuse a file that looks large and is empty: reading it would cost memory that nobody paid for on disk."""
    status = os.fstat(file._open())
    if file.size - status.st_blocks * 512 < _HARMLESS_HOLES or not hasattr(os, "SEEK_DATA"):
        return
    data = end = 0
    try:
        for _ in range(_STRETCHES):
            start = os.lseek(file._open(), end, os.SEEK_DATA)
            end = os.lseek(file._open(), start, os.SEEK_HOLE)
            data += end - start
            if end >= file.size:
                break
        else:
            return
    except OSError as error:
        if error.errno != errno.ENXIO:  # which says that there is no data behind; else holes are not known here
            return
    if data < file.size // 2:
        raise file.error(f"it is sparse: {file.size - data} of its {file.size} bytes are holes; fetch or make it again")


def read_bytes(path: str | os.PathLike[str], most: int = JSON_BYTES) -> bytes:
    """All bytes of a regular file.

    Raises
    ------
    OSError, UnusableFileError
        As `RegularFile`.
    """
    with RegularFile(path, most) as file:
        return file.read(0, file.size).tobytes()


def read_text(path: str | os.PathLike[str], most: int = JSON_BYTES) -> str:
    """A regular file's text, in UTF-8.

    Raises
    ------
    OSError, UnusableFileError
        As `RegularFile`.
    UnicodeDecodeError
        If it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def read_json(path: str | os.PathLike[str], most: int = JSON_BYTES) -> Any:
    """What a JSON file holds.

    Raises
    ------
    OSError, UnusableFileError
        As `RegularFile`.
    ValueError
        If it is not JSON in UTF-8.
    """
    return parse_json(read_text(path, most))


def parse_json(text: str | bytes) -> Any:
    """What a JSON text stands for.

    Raises
    ------
    ValueError
        If it is no JSON, nested too deeply, or names a key of an object twice.

    Examples
    --------
    >>> parse_json('{"rows": [1, 4]}')
    {'rows': [1, 4]}
    >>> parse_json("[" * 100000)
    Traceback (most recent call last):
        ...
    ValueError: it is nested too deeply
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"an object says {shown(name)} twice")
            seen.add(name)
    return found


def shown(value: object) -> str:
    """A value for a message, cut where it is long or deep.

    Examples
    --------
    >>> shown("a" * 1000)
    "'aaaaaaaaaaaaaaaaaaaaaaaaaaa...aaaaaaaaaaaaaaaaaaaaaaaaaaaa'"
    """
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3
