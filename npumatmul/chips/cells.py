"""A cell of the capability table: a value, how it is known, and from where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

__all__ = ["Cell", "Provenance", "broken", "documented", "observed", "unsettled"]

_Value = TypeVar("_Value", covariant=True)


class Provenance(Enum):
    """How a figure is known."""

    DOCUMENTED = "documented"
    OBSERVED = "observed"  # recorded from a vendor runtime, or reported from boards in use
    BROKEN = "reported broken"
    PROBED = "probed here"
    UNSETTLED = "unsettled"  # no source decides: the value is the careful choice, what may not work is off


@dataclass(frozen=True)
class Cell(Generic[_Value]):
    """One figure.

    Attributes
    ----------
    value : object
        What the library takes.
    provenance : Provenance
    source : str
        Sections, disagreements (D) and questions (Q) of docs/hardware.md.

    Examples
    --------
    >>> print(documented(32, "guide 3-14"))
    32 (documented: guide 3-14)
    """

    value: _Value
    provenance: Provenance
    source: str

    def __str__(self) -> str:
        return f"{self.value} ({self.provenance.value}: {self.source})"


_New = TypeVar("_New")


def documented(value: _New, source: str) -> Cell[_New]:
    """Cell of a figure that the vendor's documents state."""
    return Cell(value, Provenance.DOCUMENTED, source)


def observed(value: _New, source: str) -> Cell[_New]:
    """Cell of a figure that was recorded or is reported from boards."""
    return Cell(value, Provenance.OBSERVED, source)


def broken(value: _New, source: str) -> Cell[_New]:
    """Cell of something documented that is reported not to work."""
    return Cell(value, Provenance.BROKEN, source)


def unsettled(value: _New, source: str) -> Cell[_New]:
    """Cell that no source decides."""
    return Cell(value, Provenance.UNSETTLED, source)
