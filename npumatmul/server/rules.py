"""What is done to scores before a token is chosen: penalties, biases, and formats."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm import FormatConstraint

__all__ = ["Penalties", "Rules", "rules"]

Float32 = NDArray[np.float32]


@dataclass(frozen=True)
class Penalties:
    """How tokens are treated that came before, by OpenAI's and llama.cpp's formulas.

    Attributes
    ----------
    presence, frequency : float
        Subtracted from the score of each token of the answer: once, and for each time that it came.
    repetition : float
        Positive scores of the last tokens, those of the prompt among them, are divided by it, negative ones multiplied.
    window : int or None
        How many of the last tokens; None is all.
    """

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    window: int | None = None

    def __bool__(self) -> bool:
        return self.presence != 0 or self.frequency != 0 or self.repetition != 1


class Rules:
    """The constraint of one answer, made of several.

    Parameters
    ----------
    penalties : Penalties
        For tokens that came before.
    bias : mapping of int to float
        What is added to scores of tokens.
    form : FormatConstraint, optional
        What the answer keeps to.
    """

    def __init__(self, penalties: Penalties, bias: Mapping[int, float], form: FormatConstraint | None) -> None:
        self._penalties, self._form = penalties, form
        self._biased = np.array(list(bias), np.int64)
        self._bias = np.array(list(bias.values()), np.float32)
        self._counts: dict[int, int] = {}
        self._seen: deque[int] = deque(maxlen=penalties.window)

    def read(self, prompt: Iterable[int]) -> None:
        """Know the prompt, whose tokens count for repetitions."""
        if self._penalties.repetition != 1:
            self._seen.extend(prompt)

    def allowed(self, logits: Float32) -> None:
        """Change scores in place."""
        repetition = np.float32(self._penalties.repetition)
        if repetition != 1 and self._seen:
            seen = np.unique(np.fromiter(self._seen, np.int64))
            values = logits[seen]
            logits[seen] = np.where(values < 0, values * repetition, values / repetition)
        if len(self._biased):
            logits[self._biased] += self._bias
        if self._penalties and self._counts:
            tokens = np.array(list(self._counts), np.int64)
            counts = np.array(list(self._counts.values()), np.float32)
            logits[tokens] -= np.float32(self._penalties.presence) + np.float32(self._penalties.frequency) * counts
        if self._form is not None:
            self._form.allowed(logits)

    def accept(self, token: int) -> None:
        """Go on by a token that was chosen."""
        if self._penalties.repetition != 1:
            self._seen.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._form is not None:
            self._form.accept(token)


def rules(penalties: Penalties, bias: Mapping[int, float], form: FormatConstraint | None) -> Rules | None:
    """The constraint that is needed; None if none is."""
    return Rules(penalties, bias, form) if penalties or bias or form is not None else None
