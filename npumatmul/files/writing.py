"""Writing files as a whole: beside their place first, then moved there at one stroke.

Whatever ends a save half-way, what stood there before still does. What is not moved is removed; where nothing can be
removed any more, because the process was killed, the next save in the same folder does it. A file being written is
locked, and the lock goes with its process, so that it is known which ones nobody writes any more.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from npumatmul.errors import UnusableFileError
from npumatmul.files.descriptors import open_into

__all__ = ["check_output", "check_target", "replacing", "said_of", "scratch_folder", "write_bytes", "write_text"]

#: Names of what the process has open; the shell may have opened a file there, and goes on to write to it.
_DESCRIPTORS = ("/dev/std", "/dev/fd/", "/proc/")
_PREFIX, _SUFFIX, _LOCK = ".npumatmul-", ".part", ".lock"


def check_target(path: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse to write where that cannot end well; to be called before the work that is to be saved.

    Parameters
    ----------
    path : str or os.PathLike
        What is to be written.
    sources : iterable of str or os.PathLike
        Files that it is made of.

    Raises
    ------
    OSError
        If its folder is missing, or it is a folder.
    UnusableFileError
        If it is one of its sources, by whatever name, or no regular file.
    """
    target = _target(path)
    for source in sources:
        if _same(path, source):
            raise UnusableFileError(
                f"{os.fspath(path)} cannot be written: it is made of {os.fspath(source)}, which is the same file; "
                "give another name"
            )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent}")
    _existing(target)


def check_output(path: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]] = ()) -> None:
    """As `check_target`, for what `write_text` and `write_bytes` are going to write, to devices and pipes, too."""
    if not _is_stream(path):
        check_target(path, sources)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], sources: Iterable[str | os.PathLike[str]] = ()) -> Iterator[BinaryIO]:
    """A new file, which takes its place at the end of a ``with`` block that nothing leaves early.

    A symbolic link stays, and what it refers to is replaced. The file has the permissions of the one before.

    Raises
    ------
    OSError, UnusableFileError
        As `check_target`; or if there is no room.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(folder + "/f") as file:
    ...         _ = file.write(b"some")
    ...     os.listdir(folder), Path(folder + "/f").read_bytes()
    (['f'], b'some')
    """
    check_target(path, sources)
    target = _target(path)
    before = _existing(target)
    _clear(target.parent)
    with said_of(path):
        passing, file = _locked_new(target.parent)
    try:
        with said_of(path, passing), file:
            if before is not None:
                with contextlib.suppress(OSError):  # somebody else's, or a file system without permissions
                    os.fchmod(file.fileno(), before.st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(passing, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(passing)
        raise


@contextlib.contextmanager
def said_of(path: str | os.PathLike[str], passing: Path | None = None) -> Iterator[None]:
    """Have errors of the system name the file that was asked for, instead of one that it is for a while, or none.

    Parameters
    ----------
    path : str or os.PathLike
        What was asked for.
    passing : Path, optional
        What it is for a while; by default all errors are about that.

    Raises
    ------
    OSError
    """
    try:
        yield
    except UnusableFileError:
        raise
    except OSError as error:
        if error.errno is None or (passing is not None and error.filename not in (None, str(passing))):
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder for what is needed for the duration of a ``with`` block.

    Raises
    ------
    OSError
        If it cannot be made.
    """
    _clear(parent)
    folder, lock = _locked_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.close()


def write_bytes(path: str | os.PathLike[str], data: bytes, sources: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Write a file as a whole; devices and pipes, such as ``/dev/stdout``, are written to as they are.

    Raises
    ------
    OSError, UnusableFileError
        As `replacing`; or if nobody reads a pipe.
    """
    if not _is_stream(path):
        with replacing(path, sources) as file:
            file.write(data)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC)  # not to wait for a reader
    os.set_blocking(descriptor, True)
    with said_of(path), os.fdopen(descriptor, "wb") as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str, sources: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Write a text in UTF-8, as `write_bytes`."""
    write_bytes(path, text.encode("utf-8"), sources)


def _same(path: str | os.PathLike[str], source: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(path, source)
    except OSError:  # one of them is not there
        return False


def _is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether writing goes to somebody, and there is nothing to be replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode) or os.path.abspath(path).startswith(_DESCRIPTORS)


def _target(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(path))


def _existing(target: Path) -> os.stat_result | None:
    """What stands there; an error if it cannot be replaced."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFileError(f"{target} cannot be written: it is a device, a pipe or a socket; give another name")
    return status


def _locked_new(parent: Path) -> tuple[Path, BinaryIO]:
    """A new file, which is locked for as long as it is open; an object, so that no interrupt leaves it open."""
    while True:
        path = parent / f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}"
        try:
            file = path.open("x+b")
            _lock(file)
            if _is_still(path, file.fileno()):  # else another process cleared it before it was locked
                return path, file
            file.close()
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise


def _locked_folder(parent: Path) -> tuple[Path, BinaryIO]:
    """A new folder, locked by a file in it."""
    while True:
        folder = parent / f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}"
        try:
            folder.mkdir()
            lock = (folder / _LOCK).open("x+b")
            _lock(lock)
            if _is_still(folder / _LOCK, lock.fileno()):
                return folder, lock
            lock.close()
        except FileNotFoundError:
            if not parent.is_dir():
                raise
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _lock(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # file systems without locks: then nobody else can take it either
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def _clear(folder: Path) -> None:
    """Remove what processes that are no more left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(_PREFIX) and entry.name.endswith(_SUFFIX):
                with contextlib.suppress(OSError):
                    _clear_one(Path(entry.path))


def _clear_one(path: Path) -> None:
    mode = path.lstat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return  # none of ours
    locked = path / _LOCK if stat.S_ISDIR(mode) else path
    held: list[int] = []
    try:
        descriptor = open_into(held, locked, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is being written
        if _is_still(locked, descriptor):
            shutil.rmtree(path) if stat.S_ISDIR(mode) else path.unlink()
    except FileNotFoundError:  # a folder that is not locked yet, or not any more; who has just made it makes another
        shutil.rmtree(path, ignore_errors=True)
    finally:
        for each in held:
            os.close(each)
