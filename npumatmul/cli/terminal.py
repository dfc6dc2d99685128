"""Where commands write: results to standard output, so that they can be piped on, all else to standard error."""

from __future__ import annotations

import io
import logging
import os
import sys

from rich.console import Console

__all__ = ["Once", "notes", "prepare_streams", "results", "say"]

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
