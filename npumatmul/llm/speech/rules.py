"""`Rules`: which tokens may follow, so that times come in pairs and in order, and what is never written is not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.run.sampling import log_probabilities
from npumatmul.llm.speech.tokens import SpeechTokens

__all__ = ["Rules"]


class Rules:
    """Hides tokens that must not follow.

    Parameters
    ----------
    tokens : SpeechTokens
    timestamps : bool
        Whether times are written.

    Examples
    --------
    >>> import numpy as np
    >>> rules = Rules(SpeechTokens(10, start=4, end=5, no_timestamps=6, first_within=1), True)
    >>> logits = np.zeros(10, np.float32)
    >>> rules.hide(logits, [])
    >>> np.flatnonzero(logits == 0).tolist()  # a time within a step
    [7, 8]
    """

    def __init__(self, tokens: SpeechTokens, timestamps: bool) -> None:
        self._tokens, self._timestamps = tokens, timestamps and tokens.no_timestamps is not None
        self._never = np.array(tokens.suppressed, np.int64)
        self._not_first = np.array(tokens.suppressed_first, np.int64)

    def hide(self, logits: NDArray[np.float32], written: Sequence[int]) -> None:
        """Set logits ``(vocab_size,)`` of tokens that must not follow those that were written to -inf."""
        logits[self._never] = -np.inf
        if not written:
            logits[self._not_first] = -np.inf
        if self._timestamps:
            self._hide_times(logits, written)

    def _hide_times(self, logits: NDArray[np.float32], written: Sequence[int]) -> None:
        tokens, first = self._tokens, self._tokens.first_time
        logits[first - 1] = -np.inf  # that there are no times
        was_time = bool(written) and written[-1] >= first
        was_time_before = len(written) < 2 or written[-2] >= first
        if was_time and was_time_before:  # a pair: words follow
            logits[first:] = -np.inf
        elif was_time:  # the end of a segment: its pair follows, or the end of all
            logits[: tokens.end] = -np.inf
        times = [each for each in written if each >= first]
        if times:  # none goes back, and a segment has a length
            logits[first : times[-1] + (0 if was_time and not was_time_before else 1)] = -np.inf
        if not written:
            logits[:first] = -np.inf
            logits[first + tokens.first_within + 1 :] = -np.inf
        if self._is_time(logits, first):
            logits[:first] = -np.inf

    @staticmethod
    def _is_time(logits: NDArray[np.float32], first: int) -> bool:
        """Whether some time is likelier than the likeliest of all other tokens."""
        if not np.isfinite(logits).any():
            return False
        logs = log_probabilities(logits)
        return bool(np.logaddexp.reduce(logs[first:]) > logs[:first].max())
