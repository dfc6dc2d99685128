"""How far long computations are, told every second or so."""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["Meter", "Share"]

Share = Callable[[float], object]
"""Called with the share of a computation that is done, 0 to 1."""

_STEP = 1 << 34
"""Multiply-accumulates between two calls, at most: about a second of a small board."""


class Meter:
    """Adds up what is done of a computation of several parts.

    Parameters
    ----------
    progress : callable or None
        Who is told.
    total : float
        What all parts cost together, in multiply-accumulates.

    Examples
    --------
    >>> meter = Meter(lambda share: print(f"{share:.0%}"), total=200)
    >>> meter.add(50)
    25%
    >>> for part in meter.slices(3, 50):
    ...     print(part)
    slice(0, 3, None)
    100%
    """

    def __init__(self, progress: Share | None, total: float) -> None:
        self._progress, self._total, self._done = progress, total, 0.0

    def add(self, cost: float) -> None:
        """Something is done."""
        self._done += cost
        if self._progress is not None:
            self._progress(min(1.0, self._done / self._total) if self._total else 1.0)

    def slices(self, extent: int, each: float) -> Iterator[slice]:
        """Parts of a range, none of which takes long; `each` is what one index costs."""
        step = max(1, int(_STEP / max(each, 1)))
        for start in range(0, extent, step):
            part = slice(start, min(start + step, extent))
            yield part
            self.add((part.stop - part.start) * each)

    def part(self, cost: float) -> Share:
        """For a part of this cost that tells its own share."""
        told = 0.0

        def tell(share: float) -> None:
            nonlocal told
            self.add((share - told) * cost)
            told = share

        return tell
