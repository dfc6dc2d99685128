"""`Finding`: one thing that a check has found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Finding", "Level"]


class Level(IntEnum):
    """How bad a finding is."""

    OK = 0
    NOTE = 1
    WARNING = 2
    ERROR = 3


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes
    ----------
    level : Level
        OK: as it should be. NOTE: worth knowing. WARNING: makes things slow, or may break them. ERROR: does break them.
    subject : str
        What it is about, in a word or two.
    what : str
        What is so.
    why : str
        Why it matters; empty where all is well.
    command : str
        What to type, or to do; empty where nothing is to be done.

    Examples
    --------
    >>> Finding(Level.OK, "chip", "this is an RK3588").as_dict()["level"]
    'ok'
    """

    level: Level
    subject: str
    what: str
    why: str = ""
    command: str = ""

    def as_dict(self) -> dict[str, str]:
        """The same with names for JSON; the level as a word."""
        return {
            "level": self.level.name.lower(),
            "subject": self.subject,
            "what": self.what,
            "why": self.why,
            "command": self.command,
        }
