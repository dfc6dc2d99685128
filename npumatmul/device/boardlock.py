"""One process at a time on a board: two that use the NPU at once can take the board down (peers C7, facts 7.4).

An advisory lock of the kernel on a file that all users of the machine share. The kernel releases it when the process
ends, however it ends. A forked child does not inherit it. Programs that do not use npumatmul know nothing of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from npumatmul.errors import BoardInUseError
from npumatmul.files.descriptors import Descriptor

__all__ = ["BoardLock", "lock_path", "wants_lock"]

logger = logging.getLogger(__name__)

#: Directories that every user can write to, the first one that is there: the name must not depend on who asks.
_DIRECTORIES = ("/run/lock", "/var/lock", "/tmp")
_NAME = "npumatmul.lock"
#: How a lock that is held begins, and its most bytes.
_FIRST, _MOST = b"process ", 1000


def wants_lock(simulated: bool, environment: Mapping[str, str] | None = None) -> bool:
    """Whether a device takes the lock: those of a board, unless ``NPUMATMUL_SHARE_BOARD=1``.

    ``NPUMATMUL_LOCK_SIMULATOR=1`` has simulated devices take it too.

    Examples
    --------
    >>> wants_lock(False, {}), wants_lock(True, {}), wants_lock(False, {"NPUMATMUL_SHARE_BOARD": "1"})
    (True, False, False)
    """
    environment = os.environ if environment is None else environment
    if environment.get("NPUMATMUL_SHARE_BOARD", "0") not in ("", "0"):
        return False
    return not simulated or environment.get("NPUMATMUL_LOCK_SIMULATOR", "0") not in ("", "0")


def lock_path(environment: Mapping[str, str] | None = None) -> Path:
    """The lock's file: ``NPUMATMUL_LOCK_FILE``, else one that all users of the machine share."""
    environment = os.environ if environment is None else environment
    named = environment.get("NPUMATMUL_LOCK_FILE")
    if named:
        return Path(named)
    places = [place for place in _DIRECTORIES if os.path.isdir(place) and os.access(place, os.W_OK)]
    return Path(places[0] if places else _DIRECTORIES[-1]) / _NAME


@dataclass
class _Held:
    """A lock that this process holds: the kernel counts processes, this counts the devices of one."""

    descriptor: Descriptor
    count: int


_held: dict[Path, _Held] = {}
_guard = threading.Lock()


def _forget() -> None:
    """In a forked child: the locks are the parent's, and so may be the guard."""
    global _guard
    _guard = threading.Lock()
    for held in _held.values():
        with contextlib.suppress(OSError):
            held.descriptor.close()  # gives up nothing of the parent's: such locks belong to a process
    _held.clear()


os.register_at_fork(after_in_child=_forget)


class BoardLock:
    """A share of this process in the board's lock, taken when it is made.

    Parameters
    ----------
    path : Path, optional
        `lock_path` by default.

    Raises
    ------
    BoardInUseError
        If another process holds it; the message names that process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = lock_path() if path is None else path
        self._pid: int | None = None
        with _guard:
            held = _held.get(self.path)
            if held is None or not held.descriptor.is_open():  # a program that closes all descriptors gives it up
                descriptor = _taken(self.path)
                if descriptor is None:
                    return
                held = _held[self.path] = _Held(Descriptor.of(descriptor), held.count if held else 0)
            held.count += 1
            self._pid = os.getpid()

    def release(self) -> None:
        """Give this share up; the lock goes with the last one. Twice is allowed."""
        if self._pid != os.getpid():  # never taken, given up, or the parent's
            return
        self._pid = None
        with _guard:
            held = _held[self.path]
            held.count -= 1
            if not held.count:
                del _held[self.path]
                if held.descriptor.is_open():
                    with contextlib.suppress(OSError):
                        os.ftruncate(held.descriptor.number, 0)
                    held.descriptor.close()


def _taken(path: Path) -> int | None:
    """Descriptor of the file, locked; None where there can be no such file, which is no reason not to work."""
    try:
        descriptor = _opened(path)
    except OSError as error:
        logger.warning("no lock can be taken at %s (%s): nothing keeps other processes off the NPU", path, error)
        return None
    if not _is_lock(descriptor):
        os.close(descriptor)
        logger.warning("%s is no lock of npumatmul: nothing keeps other processes off the NPU", path)
        return None
    try:
        # of a process and not of the descriptor (flock), so that a forked child does not keep it for its dead parent
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        with contextlib.suppress(OSError):
            holder = " ".join(os.pread(descriptor, _MOST, 0).decode("utf-8", "replace").split())
        os.close(descriptor)
        if not isinstance(error, (BlockingIOError, PermissionError)):
            logger.warning("%s cannot be locked (%s): nothing keeps other processes off the NPU", path, error)
            return None
        raise BoardInUseError(
            f"the NPU of this board is in use by {holder or 'another process'}, and two processes on it can take the "
            f"board down. End that process, or set NPUMATMUL_SHARE_BOARD=1 (or Device(share_board=True)) to use the "
            f"NPU all the same. The lock is {path}."
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (_FIRST + f"{os.getpid()} ({_command()})\n".encode())[:_MOST], 0)
    return descriptor


def _is_lock(descriptor: int) -> bool:
    """Whether it may be overwritten: not if ``NPUMATMUL_LOCK_FILE`` names something else by mistake."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST:
        return False
    return status.st_size == 0 or os.pread(descriptor, len(_FIRST), 0) == _FIRST


def _opened(path: Path) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        # without O_CREAT: kernels refuse that for files of others in directories that everybody can write to
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, flags)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o666)  # whatever the umask: other users must be able to lock it
    return descriptor


def _command() -> str:
    try:
        words = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        return _one_line(b" ".join(words).decode("utf-8", "replace"))
    except OSError:
        return _one_line(" ".join(sys.argv))


def _one_line(text: str) -> str:
    """A text without line breaks, such as the program of ``python -c``, and not too long to be read."""
    words = " ".join(text.split())
    return words if len(words) <= 200 else f"{words[:200]}..."
