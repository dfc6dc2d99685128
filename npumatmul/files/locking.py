"""One process at a time, for files that are read, changed and written back."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from npumatmul.errors import UnusableFileError
from npumatmul.files.descriptors import open_into
from npumatmul.files.writing import said_of

__all__ = ["locked"]

#: What holds a lock for longer has been stopped, or is no npumatmul.
_PATIENCE = 10.0
_PAUSE = 0.01


@contextlib.contextmanager
def locked(path: Path, patience: float = _PATIENCE) -> Iterator[None]:
    """Keep other processes, and other threads, from changing a file, within a ``with`` block.

    The lock is on a file beside it, ``.<name>.lock``, which stays; the lock itself goes with the process.

    Parameters
    ----------
    path : Path
    patience : float
        Seconds to wait for who holds the lock.

    Raises
    ------
    OSError
        If that file cannot be made.
    UnusableFileError
        If another process holds the lock for longer.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder) / "choices.json"):
    ...     os.listdir(folder)
    ['.choices.json.lock']
    """
    beside = path.parent / f".{path.name}.lock"
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    held: list[int] = []
    try:
        with said_of(path):
            descriptor = open_into(held, beside, flags)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnusableFileError(f"{beside} is no regular file: {path} cannot be locked")
        _wait(descriptor, path, patience)
        try:
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child that was forked meanwhile holds the descriptor, too
    finally:
        for each in held:
            os.close(each)


def _wait(descriptor: int, path: Path, patience: float) -> None:
    end = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise UnusableFileError(
                    f"{path} cannot be changed: another process has held its lock for {patience:g} s"
                ) from None
        time.sleep(_PAUSE)
