"""Progress of long work: a bar on a terminal, a line now and then elsewhere; both say how long the rest may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from npumatmul.cli.terminal import notes

__all__ = ["LINE_SECONDS", "Pace", "ProgressCallback", "working"]

ProgressCallback = Callable[[int, int, str], None]
"""Called with what is done, what there is to do, and what is being done."""

LINE_SECONDS = 10.0
"""Where no terminal looks on, a line is written after so many seconds without one."""


class Pace:
    """How far a step of some work is, and how long its rest takes at the pace of what was done so far.

    Parameters
    ----------
    clock : callable
        Seconds.

    Examples
    --------
    >>> times = iter([0, 0, 30, 30])
    >>> pace = Pace(lambda: next(times))
    >>> pace.note(0, 90)
    >>> pace.note(30, 90)
    >>> pace.text()
    '33 %, 0:30, about 60 s left'
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._first = self._done = self._total = 0
        self._at = self._since

    def note(self, done: int, total: int) -> None:
        """Take in how much is done; a step that has another extent, or begins anew, is another one."""
        now = self._clock()
        if total != self._total or done < self._done:
            self._since, self._first, self._total = now, done, total
        self._done, self._at = done, now

    def text(self) -> str:
        """What there is to say."""
        elapsed = self._clock() - self._since
        spent = f"{int(elapsed) // 60}:{int(elapsed) % 60:02}"
        if not self._total:
            return spent
        share = f"{100 * self._done // self._total} %"
        gained = self._done - self._first
        if gained <= 0 or self._done >= self._total:
            return f"{share}, {spent}"
        each = (self._at - self._since) / gained
        left = max(0.0, each * (self._total - self._done) - (elapsed - (self._at - self._since)))
        return f"{share}, {spent}, about {_rounded(left)} left"


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"


class _PaceColumn(ProgressColumn):
    """The pace, which goes on while a step takes long."""

    def __init__(self, pace: Pace) -> None:
        super().__init__(Column(no_wrap=True))
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(self._pace.text(), no_wrap=True)


@contextmanager
def working(
    *, lines: bool = True, console: Console = notes, clock: Callable[[], float] = time.monotonic
) -> Iterator[ProgressCallback]:
    """Show the progress of what happens in a ``with`` block.

    Parameters
    ----------
    lines : bool
        Whether lines are written where no terminal looks on.
    console : Console
    clock : callable
        Seconds.

    Yields
    ------
    callable
        To be called with how far it is.
    """
    pace = Pace(clock)
    if not console.is_terminal:
        yield _lines(console, pace, clock) if lines else lambda done, total, what: None
        return
    columns = (  # on a narrow terminal the name gives way, and never what is left
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        _PaceColumn(pace),
    )
    with Progress(*columns, console=console, transient=True, expand=True) as bar:
        task = bar.add_task("preparing", total=None)

        def show(done: int, total: int, what: str) -> None:
            pace.note(done, total)
            bar.update(task, completed=done, total=total, description=what)

        yield show


def _lines(console: Console, pace: Pace, clock: Callable[[], float]) -> ProgressCallback:
    written = clock()

    def write(done: int, total: int, what: str) -> None:
        nonlocal written
        pace.note(done, total)
        now = clock()
        if now - written >= LINE_SECONDS:
            written = now
            console.print(f"{what}: {pace.text()}", soft_wrap=True)

    return write
