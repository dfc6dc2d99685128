"""What a question is and what an answer is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from npumatmul.probe.instrument import Instrument

__all__ = ["Answer", "Question", "question"]


@dataclass(frozen=True)
class Answer:
    """What a question's function found.

    Attributes
    ----------
    text : str
        The answer, one line.
    details : mapping
        What it rests on, as JSON can hold it.
    cells : mapping of str to object
        Cells of the capability table that it settles, named as `Capabilities.cells` names them.
    """

    text: str
    details: Mapping[str, Any] = field(default_factory=dict)
    cells: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """One open question.

    Attributes
    ----------
    number : str
        ``"Q8"`` as in docs/hardware.md; those that begin with X are the probe's own.
    text : str
        What is asked.
    possible : str
        What answers are possible.
    ask : callable or None
        Finds the answer; None where software cannot.
    dangerous : bool
        Whether a board may crash or hang, so that it is asked with ``--all`` only.
    reason : str
        Why software cannot answer it.
    """

    number: str
    text: str
    possible: str = ""
    ask: Callable[[Instrument], Answer] | None = None
    dangerous: bool = False
    reason: str = ""

    @property
    def how(self) -> str:
        """How the answer is found."""
        return self.reason if self.ask is None else inspect.getdoc(self.ask) or ""


def question(
    number: str, text: str, possible: str, *, dangerous: bool = False
) -> Callable[[Callable[[Instrument], Answer]], Question]:
    """Make a question of the function that answers it; the function's docstring says how."""
    return lambda ask: Question(number, text, possible, ask, dangerous)
