"""Digests of large files, which are noted so that a file that nobody touched is read for its digest once."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from npumatmul.errors import UnusableFileError
from npumatmul.files.folders import cache_folder
from npumatmul.files.locking import locked
from npumatmul.files.reading import RegularFile, read_json
from npumatmul.files.writing import write_text
from npumatmul.llm.files.model_source import Digested

__all__ = ["digest_of", "notes_path"]

logger = logging.getLogger(__name__)

#: Files that were written to this many seconds ago may be written to again within the resolution of their times.
_SETTLED = 2.0
_MOST_NOTES = 1024
_DIGEST = re.compile(r"[0-9a-f]{64}")


def notes_path() -> Path:
    """The file in which digests are noted."""
    return cache_folder("digests.json")


def digest_of(files: Sequence[RegularFile], progress: Digested = lambda done, total: None) -> str:
    """SHA-256 of the digests of all files, in their order.

    Parameters
    ----------
    files : sequence of RegularFile
        Open files; those whose number, length and times of change are as they were when they were digested before are
        not read.
    progress : callable, optional
        Called with bytes done and bytes in all.

    Returns
    -------
    str
        Hexadecimal digits.

    Raises
    ------
    UnusableFileError
        If a file was changed since it was opened.
    """
    known, new = _notes(), {}
    total = sum(each.size for each in files)
    before = 0
    whole = hashlib.sha256()
    for file in files:
        file.check_unchanged()
        identity = file.identity
        key = ":".join(map(str, identity))
        digest = known.get(key)
        if digest is None:
            start = before
            digest = file.sha256(lambda done, start=start: progress(start + done, total))  # type: ignore[misc]
            if time.time() - max(identity[-2:]) / 1e9 > _SETTLED:
                new[key] = digest
        before += file.size
        progress(before, total)
        whole.update(bytes.fromhex(digest))
    if new:
        _note(new)
    return whole.hexdigest()


def _notes() -> dict[str, str]:
    try:
        content: Any = read_json(notes_path())
    except (OSError, ValueError, UnusableFileError):  # there are none yet, or none that can be used
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str) and _DIGEST.fullmatch(value)}


def _note(new: dict[str, str]) -> None:
    """Add digests; a folder that cannot be written costs the next digest, and nothing else."""
    try:
        path = notes_path()
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            notes = {**_notes(), **new}
            kept = dict(list(notes.items())[-_MOST_NOTES:])
            write_text(path, json.dumps(kept, indent=0))
    except (OSError, UnusableFileError) as error:
        logger.info("digests are not noted: %s", error)
