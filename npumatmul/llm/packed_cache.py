"""Packed models that are kept on disk, so that a model is quantized and laid out once.

An entry is a file of packed weights (`npumatmul.ops.packed.files.api`) in ``$XDG_CACHE_HOME/npumatmul/packed``, called
by a digest of what its tiles depend on. All entries together have a limit; what was not used for longest goes first.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import npumatmul
from npumatmul.device.device import Device
from npumatmul.errors import UnusableFileError
from npumatmul.files.folders import cache_folder, settings_folder
from npumatmul.files.locking import locked
from npumatmul.files.reading import parse_json, read_json
from npumatmul.files.writing import write_text
from npumatmul.ops.packed.files.parts import VERSION
from npumatmul.ops.packed.files.reader import TensorFile, WrongTensorFile
from npumatmul.ops.settings import settings
from npumatmul.running.autotune import tuning_cache

__all__ = ["LABEL", "Entry", "PackedCache", "key_of", "set_limit"]

logger = logging.getLogger(__name__)

#: Most bytes of all entries, unless the user says otherwise.
DEFAULT_LIMIT = 20 * 10**9
#: At most this part of what the disk has free, or would have without the entries.
_SHARE = 0.5
_SUFFIX = ".safetensors"
#: Where an entry's metadata say what it is.
LABEL = "npumatmul.cache"


def key_of(source_digest: str, how: Mapping[str, Any], device: Device) -> str:
    """What an entry is called: a digest of all that its tiles depend on.

    Parameters
    ----------
    source_digest : str
        `ModelSource.digest`.
    how : mapping
        Scheme and everything else that decides how weights are packed, as JSON.
    device : Device
        Whose chip and runtime the tiles are for.

    Returns
    -------
    str
        Hexadecimal digits.
    """
    tuned = None
    if settings().tuned:
        with contextlib.suppress(OSError):
            tuned = hashlib.sha256(tuning_cache(device).path.read_bytes()).hexdigest()
    cores = settings().cores
    depends = {
        "source": source_digest,
        "how": how,
        "soc": device.chip.soc,
        "runtime": str(device.runtime_version),
        "npumatmul": npumatmul.__version__,
        "packing": VERSION,
        "tuned": tuned,
        "cores": None if cores is None or len(cores) >= device.chip.cores else len(cores),
    }
    return hashlib.sha256(json.dumps(depends, sort_keys=True, allow_nan=False).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Entry:
    """A packed model in the cache.

    Attributes
    ----------
    key : str
    path : pathlib.Path
    nbytes : int
    used : float
        When it was made or loaded last, in seconds since 1970.
    """

    key: str
    path: Path
    nbytes: int
    used: float

    def label(self) -> dict[str, str]:
        """What its maker says of it: ``model``, ``scheme``, ``soc`` and so on; empty if it cannot be read."""
        try:
            with contextlib.closing(TensorFile(self.path)) as file:
                content = parse_json(file.metadata.get(LABEL, "{}"))
        except (OSError, WrongTensorFile, ValueError):
            return {}
        return {str(name): str(value) for name, value in content.items()} if isinstance(content, dict) else {}


class PackedCache:
    """The folder of packed models.

    Parameters
    ----------
    folder : Path, optional
        By default ``$XDG_CACHE_HOME/npumatmul/packed``. It need not exist.

    Attributes
    ----------
    folder : Path
        Raises `UnusableFileError` where the user has no home and no ``XDG_CACHE_HOME``.

    Examples
    --------
    >>> import tempfile
    >>> cache = PackedCache(Path(tempfile.mkdtemp()))
    >>> cache.entries(), cache.clear()
    ([], 0)
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where entries are."""
        return cache_folder("packed") if self._folder is None else self._folder

    def path(self, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.folder / f"{key}{_SUFFIX}"

    def entries(self) -> list[Entry]:
        """All entries; those that were used last come first."""
        found = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as listed:
            for each in listed:
                if each.name.startswith(".") or not each.name.endswith(_SUFFIX):
                    continue
                with contextlib.suppress(FileNotFoundError):  # another process removed it
                    if each.is_file(follow_symlinks=False):
                        status = each.stat(follow_symlinks=False)
                        key = each.name.removesuffix(_SUFFIX)
                        found.append(Entry(key, Path(each.path), status.st_size, status.st_mtime))
        return sorted(found, key=lambda each: (-each.used, each.key))

    def used(self, key: str) -> None:
        """Note that an entry is in use now."""
        with contextlib.suppress(OSError):  # a folder that cannot be written
            os.utime(self.path(key))

    def remove(self, key: str) -> None:
        """Remove an entry; who has it open goes on reading it. One that is not there is removed already."""
        self.path(key).unlink(missing_ok=True)

    def clear(self) -> int:
        """Remove all entries, and locks that nobody holds.

        Returns
        -------
        int
            How many bytes the entries had.
        """
        freed = 0
        for each in self.entries():
            self.remove(each.key)
            freed += each.nbytes
        for lock in self.folder.glob(f".*{_SUFFIX}.lock"):
            with contextlib.suppress(OSError), locked(self.folder / lock.name[1 : -len(".lock")], patience=0):
                lock.unlink()
        return freed

    def limit(self) -> int:
        """Most bytes that all entries together may have.

        What `set_limit` said; else 20 GB, or half of what the disk would have free without the entries if that is less.
        """
        said = _said_limit()
        if said is not None:
            return said
        return min(DEFAULT_LIMIT, int((_free(self.folder) + self.nbytes()) * _SHARE))

    def nbytes(self) -> int:
        """Bytes of all entries."""
        return sum(each.nbytes for each in self.entries())

    def prune(self, keep: str | None = None) -> list[Entry]:
        """Remove those that were not used for longest until the rest is within the limit.

        Parameters
        ----------
        keep : str, optional
            The key of an entry that stays, unless it alone is too large.

        Returns
        -------
        list of Entry
            Those that were removed.
        """
        limit, total, removed = self.limit(), self.nbytes(), []
        oldest_first = sorted(self.entries(), key=lambda each: (each.key == keep, each.used))
        for each in oldest_first:
            if total <= limit:
                break
            self.remove(each.key)
            total -= each.nbytes
            removed.append(each)
            logger.info("removed %s (%d bytes) from the cache of packed models", each.path, each.nbytes)
        return removed


def set_limit(nbytes: int | None) -> None:
    """Set the limit of the cache for this user, in ``$XDG_CONFIG_HOME/npumatmul/cache.json``; None: the usual one.

    Raises
    ------
    ValueError
        If it is negative.
    OSError
        If it cannot be written.
    """
    if nbytes is not None and nbytes < 0:
        raise ValueError(f"the cache cannot have {nbytes} bytes")
    path = _limit_path()
    if nbytes is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"limit": nbytes}) + "\n")


def _limit_path() -> Path:
    return settings_folder() / "cache.json"


def _said_limit() -> int | None:
    try:
        path = _limit_path()
    except UnusableFileError:  # a user without a home has said nothing
        return None
    try:
        said = read_json(path)["limit"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, UnusableFileError) as error:
        logger.warning("%s is ignored: %s", path, error)
        return None
    if type(said) is not int or said < 0:
        logger.warning("%s is ignored: 'limit' is no number of bytes", path)
        return None
    return said


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
