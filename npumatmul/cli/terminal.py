"""Where commands write: results to standard output, so that they can be piped on, all else to standard error."""

from __future__ import annotations

import io
import logging
import os
import sys

from rich.console import Console

from npumatmul.errors import NpuError

__all__ = ["Once", "in_words", "notes", "prepare_streams", "results", "say"]

#: Notes, figures and progress. What is printed is taken as it is: names of files may look like markup.
notes = Console(stderr=True, highlight=False, markup=False, emoji=False)

#: Columns of output that nobody looks at: as many as it needs.
_UNLIMITED = 10_000


def results() -> Console:
    """Standard output: as wide as the terminal, or as ``COLUMNS`` says; else whole lines, however long they are."""
    watched = sys.stdout is not None and sys.stdout.isatty()
    width = None if watched or "COLUMNS" in os.environ else _UNLIMITED
    return Console(highlight=False, markup=False, emoji=False, width=width)


def prepare_streams() -> None:
    """Have what a terminal or a pipe cannot encode replaced by ``?``, instead of ending the command half-way."""
    for stream, handler in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=handler)


def say(text: str) -> None:
    """Write a note in whole lines, which a terminal wraps where it likes."""
    notes.print(text, soft_wrap=True)


def in_words(error: Exception) -> str:
    """What an error says; of the system's own, file and reason without their number."""
    if isinstance(error, OSError) and not isinstance(error, NpuError) and error.strerror:
        names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, (str, bytes))]
        return f"{' and '.join(names)}: {error.strerror}" if names else error.strerror
    return str(error) or type(error).__name__


class Once(logging.Filter):
    """Passes each message a single time: files are opened more than once, and advice is not for repeating."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[tuple[str, int, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        key = (record.name, record.levelno, record.getMessage())
        if record.levelno >= logging.WARNING and key in self._seen:
            return False
        self._seen.add(key)
        return True
