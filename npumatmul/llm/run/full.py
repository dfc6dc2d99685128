"""What happens where a context is full: an error, or a window that slides over the sequence."""

from __future__ import annotations

from typing import Literal

__all__ = ["OnFull", "check_window", "slid"]

OnFull = Literal["error", "window"]


def check_window(on_full: object, keep: int, context: int) -> int | None:
    """How many of the first tokens stay where a window slides; None where a full context ends an answer.

    Raises
    ------
    ValueError
        If there is no such way, or nothing is left for a window.
    """
    if on_full not in ("error", "window"):
        raise ValueError(f"on_full is {on_full!r}; it can be 'error' or 'window'")
    if on_full == "error":
        return None
    if not 0 <= keep <= context - 4:
        raise ValueError(
            f"the first {keep} tokens are to stay where the context is full, but it has {context}: that leaves no "
            "window to slide; keep fewer, or shorten what the system says"
        )
    return keep


def slid(sequence: list[int], keep: int, context: int, most: int) -> list[int]:
    """What is left of a sequence for which a context has no room: its first tokens, and the newest ones.

    Between them half a window is left out, or a multiple of that. So a conversation that goes on is not cut anew each
    time, and a cache of what was left holds the beginning of what is left.

    Parameters
    ----------
    sequence : list of int
    keep : int
        How many of the first tokens stay.
    context : int
        Tokens that there is room for.
    most : int
        How many may be left, the context or less.

    Examples
    --------
    >>> slid(list(range(11)), 2, 10, 10), slid(list(range(14)), 2, 10, 10), slid(list(range(10)), 2, 10, 9)
    ([0, 1, 6, 7, 8, 9, 10], [0, 1, 6, 7, 8, 9, 10, 11, 12, 13], [0, 1, 6, 7, 8, 9])
    """
    half = (context - keep) // 2
    dropped = half * -(-(len(sequence) - most) // half)
    return sequence[:keep] + sequence[keep + dropped :]
