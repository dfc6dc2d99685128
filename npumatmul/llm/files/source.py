"""Where the bytes of a model come from: a part of a file, or memory."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from npumatmul.files.reading import RegularFile

__all__ = ["CheckedSource", "FileSource", "HeldSource", "JoinedSource", "Part", "Source", "sha256"]

_PAGE = 1 << 12
_PIECE = 1 << 22


class Source(Protocol):
    """Bytes that are read as they are needed.

    Attributes
    ----------
    size : int
    """

    @property
    def size(self) -> int:
        """How many there are."""

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """Some of them, in memory that nobody else writes; `UnusableFileError` if they are not there any more."""

    def check_unchanged(self) -> None:
        """Refuse to go on, by `UnusableFileError`, where bytes are others now than those that were read."""


class FileSource:
    """A part of a file; whether it was changed is told by its time of change.

    Parameters
    ----------
    file : RegularFile
    first, size : int
        Where the part begins, and its length.
    """

    def __init__(self, file: RegularFile, first: int = 0, size: int | None = None) -> None:
        self.file, self._first = file, first
        self.size = file.size - first if size is None else size

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        if start + count > self.size:
            raise self.file.error(f"{count} bytes at {start} are asked for, of a part of {self.size}")
        return self.file.read(self._first + start, count)

    def check_unchanged(self) -> None:
        self.file.check_unchanged()

    def part(self, start: int, size: int) -> FileSource:
        return FileSource(self.file, self._first + start, size)


class JoinedSource:
    """Whole files one behind the other, as if they were one.

    Parameters
    ----------
    sources : sequence of FileSource

    Attributes
    ----------
    size : int
    files : tuple of FileSource
    starts : tuple of int
        Where each of them begins.
    """

    def __init__(self, sources: Sequence[FileSource]) -> None:
        self.files = tuple(sources)
        *starts, self.size = itertools.accumulate((each.size for each in sources), initial=0)
        self.starts = tuple(starts)

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """As `Source.read`, within one of the files."""
        source, first = self._at(start)
        return source.read(start - first, count)

    def check_unchanged(self) -> None:
        for source in self.files:
            source.check_unchanged()

    def part(self, start: int, size: int) -> FileSource:
        """A part of one of the files."""
        source, first = self._at(start)
        return source.part(start - first, size)

    def _at(self, start: int) -> tuple[FileSource, int]:
        index = bisect.bisect_right(self.starts, start) - 1
        return self.files[index], self.starts[index]


class HeldSource:
    """Bytes in memory.

    Parameters
    ----------
    data : ndarray of uint8, 1-D
    """

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self._data = data
        self.size = len(data)

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """As `Source.read`; a view."""
        return self._data[start : start + count]

    def check_unchanged(self) -> None:
        """As `Source.check_unchanged`: nobody can."""


class Part:
    """A part of another source.

    Parameters
    ----------
    source : Source
    first, size : int
    """

    def __init__(self, source: Source, first: int, size: int) -> None:
        self._source, self._first, self.size = source, first, size

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        return self._source.read(self._first + start, count)

    def check_unchanged(self) -> None:
        self._source.check_unchanged()


class CheckedSource:
    """A part of a file of which every page, once read, is the same from then on or refused, whoever writes to it.

    That costs 4 bytes of memory for each page of 4096, and reading in pages.

    Parameters
    ----------
    source : FileSource

    Attributes
    ----------
    size : int
    """

    def __init__(self, source: FileSource) -> None:
        self._source, self.size = source, source.size
        self._pages = np.zeros(-(-self.size // _PAGE), np.uint32)
        self._known = np.zeros(len(self._pages), np.bool_)

    def read(self, start: int, count: int) -> NDArray[np.uint8]:
        """As `Source.read`."""
        first, end = start // _PAGE, -(-(start + count) // _PAGE)
        data = self._source.read(first * _PAGE, min(end * _PAGE, self.size) - first * _PAGE)
        if not self._known[first:end].all():
            self._source.check_unchanged()
        pages = data.data
        for page in range(first, end):
            begin = (page - first) * _PAGE
            checksum = zlib.crc32(pages[begin : begin + _PAGE])
            if not self._known[page]:
                self._pages[page], self._known[page] = checksum, True
            elif checksum != self._pages[page]:
                raise self._source.file.error("it was changed since it was opened; open it again")
        return data[start - first * _PAGE :][:count]

    def checksum(self) -> int:
        """CRC-32 of all bytes, every one of which is read."""
        checksum = 0
        for start in range(0, self.size, _PIECE):
            checksum = zlib.crc32(self.read(start, min(_PIECE, self.size - start)).data, checksum)
        return checksum

    def check_unchanged(self) -> None:
        """As `Source.check_unchanged`: reading looks at every byte."""


def sha256(source: FileSource | JoinedSource, progress: Callable[[int, int], object] = lambda done, total: None) -> str:
    """Digest of all bytes; `progress` gets how many were read, and how many there are.

    Raises
    ------
    UnusableFileError
        If somebody wrote to a file since it was opened.
    """
    digest = hashlib.sha256()
    done = 0
    for piece in _pieces(source):
        digest.update(piece.data)
        done += len(piece)
        progress(done, source.size)
    source.check_unchanged()
    return digest.hexdigest()


def _pieces(source: FileSource | JoinedSource) -> Iterator[NDArray[np.uint8]]:
    files = source.files if isinstance(source, JoinedSource) else (source,)
    for file in files:
        for start in range(0, file.size, _PIECE):
            yield file.read(start, min(_PIECE, file.size - start))
