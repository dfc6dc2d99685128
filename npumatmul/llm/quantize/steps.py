"""Progress within a step of work that is counted in steps."""

from __future__ import annotations

from npumatmul.llm.models.weights import Progress
from npumatmul.quant.meter import Share

__all__ = ["Steps"]


class Steps:
    """Hands progress on, and knows how far it is, so that what happens within a step can be told too.

    Parameters
    ----------
    progress : callable or None
        Who is told.

    Examples
    --------
    >>> steps = Steps(lambda done, total, what: print(done, total, what))
    >>> steps(100, 400, "the second layer")
    100 400 the second layer
    >>> steps.within(200)(0.5)
    200 400 the second layer
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._at = 0, 0, ""

    def __call__(self, done: int, total: int, what: str) -> None:
        self._at = done, total, what
        if self._progress is not None:
            self._progress(done, total, what)

    def within(self, size: int, begin: float = 0.0, end: float = 1.0) -> Share:
        """For what makes up a part, from `begin` to `end`, of the step that was told last and counts `size`."""
        done, total, what = self._at

        def tell(share: float) -> None:
            if self._progress is not None:
                self._progress(done + int((begin + (end - begin) * share) * size), total, what)

        return tell
