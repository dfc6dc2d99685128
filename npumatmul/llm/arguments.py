"""Arguments that many calls have: truth values, and what is told of progress."""

from __future__ import annotations

from npumatmul.files.reading import shown

__all__ = ["check_flags", "check_progress"]


def check_flags(call: str, **flags: object) -> None:
    """Raise `TypeError` where a truth value is something else: a text such as ``"no"`` would count as true."""
    for name, value in flags.items():
        if value is not True and value is not False:
            raise TypeError(f"{call}: {name} is True or False, not {shown(value)}")


def check_progress(call: str, progress: object) -> None:
    """Raise `TypeError` where progress can be told to nobody, before anything is done."""
    if progress is not None and not callable(progress):
        raise TypeError(f"{call}: progress is called with how far it is, and {shown(progress)} cannot be called")
