"""`segments_of`: what was written about a window, cut at its times, and where the next window begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["STEP", "Cut", "segments_of"]

#: Seconds from one time to the next: those of two frames.
STEP = 0.02
_FRAMES = 2


class Cut(NamedTuple):
    """A segment within a window: steps at which it starts and ends, and its tokens, times included."""

    start: float
    end: float
    tokens: list[int]


def segments_of(tokens: Sequence[int], first_time: int, frames: int) -> tuple[list[Cut], int]:
    """Cut what was written about a window.

    Two times in a row end a segment and begin the next one. Where the last words have no time behind them the window
    cut them off: they are left out, and the next window begins where they do.

    Parameters
    ----------
    tokens : sequence of int
        Without the one that ends them.
    first_time : int
        The token of 0.00 seconds.
    frames : int
        Frames of the window that hold samples.

    Returns
    -------
    cuts : list of Cut
    frames : int
        How much further the next window begins.

    Examples
    --------
    >>> segments_of([100, 7, 8, 110, 110, 9], 100, 3000)  # words, a pair of times, and more words
    ([Cut(start=0, end=10, tokens=[100, 7, 8, 110])], 20)
    """
    is_time = [each >= first_time for each in tokens]
    ends = [i for i in range(1, len(tokens)) if is_time[i - 1] and is_time[i]]
    if not ends:
        times = [each - first_time for each in tokens if each >= first_time]
        end = times[-1] if times and times[-1] else frames // _FRAMES
        return [Cut(0, end, list(tokens))], frames
    closed = is_time[-2:] == [False, True]  # one time at the end: no speech behind it
    if closed:
        ends.append(len(tokens))
    cuts = []
    for start, stop in zip([0, *ends], ends, strict=False):
        part = list(tokens[start:stop])
        cuts.append(Cut(part[0] - first_time, part[-1] - first_time, part))
    return cuts, frames if closed else max(1, _FRAMES * (tokens[ends[-1] - 1] - first_time))
