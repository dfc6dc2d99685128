"""A line of the table: what is measured, beside what, and which value is to be reached."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

Work = Callable[[], object]


@dataclass(frozen=True)
class Turns:
    """Two works to be timed in turns.

    `share` is how many times the reference's worth the work does in one call. Works that use one thread alone are timed
    by its CPU time if `one_thread` says so: what others run meanwhile does not count.
    """

    work: Work
    reference: Work
    share: float = 1.0
    one_thread: bool = False


@dataclass(frozen=True)
class Count:
    """A value that does not depend on the mood of the machine (calls, passes, bytes), or a ratio timed elsewhere."""

    value: float


class UnavailableError(Exception):
    """What the line needs is not on this machine; the message says what."""


Prepare = Callable[[], Iterator["Turns | Count"]]


@dataclass(frozen=True)
class Line:
    """One line. Its value is a speed, reference over work, if `least` or nothing is to be reached, else a time."""

    subject: str  # the module that it is from
    what: str
    measure: str  # beside what
    prepare: Prepare
    least: float | None
    most: float | None
    counted: str | None  # C function whose instructions are counted
    long: bool  # left out by --quick

    @property
    def name(self) -> str:
        """What stored runs know it by."""
        return f"{self.subject}: {self.what} / {self.measure}"

    @property
    def target(self) -> str:
        """As the table prints it."""
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}" if self.most is not None else ""

    def verdict(self, value: float) -> str:
        """Whether a value reaches the target; empty where there is none."""
        if self.least is None and self.most is None:
            return ""
        missed = (self.least is not None and value < self.least) or (self.most is not None and value > self.most)
        return "MISS" if missed else "ok"


_LINES: list[Line] = []
Function = TypeVar("Function", bound=Callable[..., Iterator["Turns | Count"]])


def line(
    what: str,
    measure: str,
    *,
    least: float | None = None,
    most: float | None = None,
    over: Iterable[tuple[Any, ...]] = ((),),
    counted: str | None = None,
    long: bool = False,
) -> Callable[[Function], Function]:
    """Register a generator function as lines of the table.

    Parameters
    ----------
    what, measure : str
        What is measured, and beside what; format strings of the function's arguments.
    least, most : float, optional
        The target. With `most` the value is the work's time over the reference's, else the reference's over the work's.
    over : iterable of tuple
        Arguments of the function: a line for each.
    counted : str, optional
        C function whose instructions ``--instructions`` counts, with those that it calls, per call of the work. It has
        to be one that is called, not jumped to at the end of another, and does not call itself.
    long : bool
        Whether even one call of it takes so long that ``--quick`` leaves the line out.
    """

    def register(function: Function) -> Function:
        for arguments in over:
            made = Line(
                function.__module__.rpartition(".")[2],
                what.format(*arguments),
                measure.format(*arguments),
                lambda arguments=arguments: function(*arguments),
                least,
                most,
                counted,
                long,
            )
            if any(made.name == other.name for other in _LINES):
                raise ValueError(f"two lines are called {made.name!r}")
            _LINES.append(made)
        return function

    return register


def all_lines() -> list[Line]:
    """Every line of every module of this folder."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        import_module(f"{__package__}.{module.name}")
    return list(_LINES)
