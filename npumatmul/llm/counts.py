"""Counts that people give: of tokens, of texts."""

from __future__ import annotations

import operator

__all__ = ["count_from_one"]


def count_from_one(value: object, name: str, call: str) -> int:
    """A count of at least one as a plain int.

    Raises
    ------
    TypeError
        If it is no whole number; a bool is none.
    ValueError
        If it is below 1.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{call}: {name} is a whole number, 1 or more, not {value!r}") from None
    if count < 1:
        raise ValueError(f"{call}: {name} is {count}; it must be 1 or more")
    return count
