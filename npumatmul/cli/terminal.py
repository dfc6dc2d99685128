"""Where commands write: results to standard output, so that they can be piped on, all else to standard error."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console

from npumatmul.errors import NpuError

__all__ = [
    "Once",
    "ended_by_signals",
    "in_words",
    "is_watched",
    "notes",
    "prepare_streams",
    "results",
    "say",
    "stream",
    "visible",
]

#: Notes, figures and progress. What is printed is taken as it is: names of files may look like markup.
notes = Console(stderr=True, highlight=False, markup=False, emoji=False)

#: Columns of output that nobody looks at: as many as it needs.
_UNLIMITED = 10_000


def is_watched() -> bool:
    """Whether standard output is a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def results() -> Console:
    """Standard output: as wide as the terminal, or as ``COLUMNS`` says; else whole lines, however long they are."""
    width = None if is_watched() or "COLUMNS" in os.environ else _UNLIMITED
    return Console(highlight=False, markup=False, emoji=False, width=width)


def prepare_streams() -> None:
    """Have what a terminal or a pipe cannot encode replaced by ``?``, instead of ending the command half-way."""
    for stream, handler in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=handler)


#: What a terminal would obey instead of showing it: all control characters but tabs and ends of lines.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    """A text that others may have written, with control characters as escapes: a terminal obeys none of them."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


def say(text: str) -> None:
    """Write a note in whole lines, which a terminal wraps where it likes."""
    notes.print(visible(text), soft_wrap=True)


def stream(text: str) -> None:
    """Write a piece of a result at once: as it is to files and pipes, as it can be looked at to a terminal."""
    print(visible(text) if is_watched() else text, end="", flush=True)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that was closed, end the program by `SystemExit`, so that work is saved."""
    numbers = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None]
    before = {number: signal.signal(number, _end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


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
