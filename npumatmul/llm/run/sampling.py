"""Choosing the next token from logits.

The steps, their order and their formulas are those of transformers' generation: repetition penalty, temperature,
top-k, top-p, min-p, then a draw from what is left.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.layers import kth_largest

#: Of a bound, so that what is rounded cannot exceed it.
_NEARLY = 1 - 1e-9
MOST_PENALTY = 1e4  # beyond it nothing is left of a logit, and products leave float32


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose the next token.

    Attributes
    ----------
    temperature : float, default 0
        Logits are divided by it. 0 always takes the most probable token (greedy); `top_k`, `top_p`, `min_p` and
        `seed` then have no effect.
    top_k : int, default 0
        Only this many of the most probable tokens stay (more if several are equally probable); 0 keeps all.
    top_p : float, default 1
        Only the most probable tokens stay that together reach this probability; at least one does. 1 keeps all.
    min_p : float, default 0
        Only tokens stay that have at least this share of the probability of the most probable one; 0 keeps all.
    repetition_penalty : float, default 1
        Positive logits of tokens seen before are divided by it, negative ones multiplied; 1 has no effect.
    repetition_window : int or None, default None
        How many of the last tokens count as seen; None counts all, the prompt included.
    seed : int or None, default None
        Makes the choices repeatable; None takes a new seed from the system.

    Raises
    ------
    TypeError
        If an option is no number.
    ValueError
        If an option is out of range.

    Examples
    --------
    >>> from npumatmul.llm import SamplingOptions
    >>> SamplingOptions(temperature=0.7, top_p=0.9, seed=1).top_k
    0
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check types and ranges."""
        for names, kind, wanted in (
            (("temperature", "top_p", "min_p", "repetition_penalty"), numbers.Real, "a number"),
            (("top_k", "repetition_window", "seed"), numbers.Integral, "a whole number"),
        ):
            for name in names:
                value = getattr(self, name)
                optional = name in ("repetition_window", "seed") and value is None
                if not optional and (isinstance(value, bool) or not isinstance(value, kind)):
                    raise TypeError(f"{name} is {value!r}; it must be {wanted}")
        if not (math.isfinite(_float(self.temperature)) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; it must be 0 or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p is {self.min_p}; it must be from 0 to 1")
        if not 1 / MOST_PENALTY <= self.repetition_penalty <= MOST_PENALTY:
            raise ValueError(
                f"repetition_penalty is {self.repetition_penalty}; it must be from {1 / MOST_PENALTY:g} to "
                f"{MOST_PENALTY:g}"
            )
        if self.repetition_window is not None and self.repetition_window < 1:
            raise ValueError(f"repetition_window is {self.repetition_window}; it must be 1 or more, or None")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            object.__setattr__(self, name, float(getattr(self, name)))  # fractions are nothing that numpy computes with


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf  # which no option may be


class Sampler:
    """Chooses tokens; holds the random numbers.

    Parameters
    ----------
    options : SamplingOptions, optional
        How to choose; greedy by default.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm import Sampler
    >>> Sampler().sample(np.array([0.1, 2.0, -1.0], np.float32))
    1
    """

    def __init__(self, options: SamplingOptions | None = None) -> None:
        self.options = options or SamplingOptions()
        self._random = np.random.default_rng(self.options.seed)

    def sample(self, logits: NDArray[np.float32], history: Sequence[int] = ()) -> int:
        """Choose the next token.

        Parameters
        ----------
        logits : ndarray of float32, shape (vocab,)
            Scores; ``-inf`` marks a token that must not be chosen.
        history : sequence of int
            Tokens so far, for the repetition penalty.

        Returns
        -------
        int
            A token number. Of several equally good ones, greedy choice takes the lowest.

        Raises
        ------
        ValueError
            If a logit is NaN or ``+inf``, or all are ``-inf``.
        """
        ids, probabilities = self._candidates(logits, history)
        if len(ids) == 1:
            return int(ids[0])
        cumulative = np.cumsum(probabilities)
        draw = self._random.random() * cumulative[-1]
        return int(ids[min(int(np.searchsorted(cumulative, draw, side="right")), len(ids) - 1)])

    def checked(
        self, logits: NDArray[np.float32], history: Sequence[int], draft: int, proposed: NDArray[np.float64]
    ) -> int:
        """Choose the next token where one was proposed: it, or another, with the probabilities of `sample`.

        The proposal is accepted with probability ``min(1, p / q)``; else a token is drawn from what is left of p where
        q is taken off it. So tokens have the distribution p whatever q is.

        Parameters
        ----------
        logits, history
            As for `sample`; they make p.
        draft : int
            The proposal, drawn from q.
        proposed : ndarray of float64, shape (vocab,)
            q, the distribution that it was drawn from.

        Returns
        -------
        int
            A token number.
        """
        wanted = self.distribution(logits, history)
        if self._random.random() * proposed[draft] < wanted[draft]:
            return draft
        rest = np.maximum(wanted - proposed, 0)
        if not rest.any():  # the two are alike, but for rounding
            rest = wanted
        return self.drawn(rest)

    def drawn(self, weights: NDArray[np.float64]) -> int:
        """Draw a token with probabilities in proportion to weights."""
        cumulative = np.cumsum(weights)
        found = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return min(found, int(np.flatnonzero(weights)[-1]))

    def distribution(self, logits: NDArray[np.float32], history: Sequence[int] = ()) -> NDArray[np.float64]:
        """Return the probability with which `sample` would choose each token.

        Parameters
        ----------
        logits : ndarray of float32, shape (vocab,)
            As for `sample`.
        history : sequence of int
            As for `sample`.

        Returns
        -------
        ndarray of float64, shape (vocab,)
            Probabilities; they sum to 1.

        Raises
        ------
        ValueError
            As for `sample`.
        """
        ids, probabilities = self._candidates(logits, history)
        result = np.zeros(len(logits), np.float64)
        result[ids] = probabilities
        return result

    def _candidates(
        self, logits: NDArray[np.float32], history: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the tokens that may be chosen and their probabilities."""
        scores = self._penalized(logits, history)
        best = int(np.argmax(scores))  # the first NaN, if there is one
        if not math.isfinite(scores[best]):
            raise ValueError(
                f"the logits cannot be sampled from: the largest is {scores[best]}. The model file is damaged, or the "
                f"numbers overflowed in a matrix product"
            )
        if self.options.temperature == 0:
            return np.array([best]), np.ones(1)
        ids = self._top_k(scores)
        # the largest score becomes 0 before it is divided, so that a tiny temperature cannot overflow it
        probabilities = (scores if len(ids) == len(scores) else scores[ids]).astype(np.float64)
        probabilities -= float(scores[best])
        with np.errstate(over="ignore"):  # what becomes -inf has no probability
            probabilities /= self.options.temperature
        np.exp(probabilities, out=probabilities)
        probabilities /= probabilities.sum()
        if self.options.top_p < 1:
            ids, probabilities = _top_p(ids, probabilities, self.options.top_p)
        if self.options.min_p > 0:
            kept = probabilities >= self.options.min_p * probabilities.max()
            ids, probabilities = ids[kept], probabilities[kept] / probabilities[kept].sum()
        return ids, probabilities

    def _penalized(self, logits: NDArray[np.float32], history: Sequence[int]) -> NDArray[np.float32]:
        if self.options.repetition_penalty == 1 or not len(history):
            return logits
        window = self.options.repetition_window
        seen = np.unique(np.asarray(history if window is None else history[-window:], dtype=np.int64))
        scores: NDArray[np.float32] = logits.copy()
        values = scores[seen]
        penalty = np.float32(self.options.repetition_penalty)
        scores[seen] = np.where(values < 0, values * penalty, values / penalty)
        return scores

    def _top_k(self, scores: NDArray[np.float32]) -> NDArray[np.int64]:
        k = self.options.top_k
        if not 0 < k < len(scores):
            return np.arange(len(scores))
        return np.flatnonzero(scores >= kth_largest(scores, k))


def _top_p(
    ids: NDArray[np.int64], probabilities: NDArray[np.float64], top_p: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Keep the most probable tokens that together reach `top_p`.

    All that are less probable than an equal share of what may be left away may be left away together: of a large
    vocabulary few are left to be sorted.
    """
    likely = np.flatnonzero(probabilities >= (1 - top_p) / len(ids) * _NEARLY)
    order = likely[np.argsort(probabilities[likely], kind="stable")]
    left = 0.0 if len(order) == len(ids) else probabilities.sum() - probabilities[order].sum()
    kept = left + np.cumsum(probabilities[order]) > 1 - top_p
    kept[-1] = True
    ids, probabilities = ids[order[kept]], probabilities[order[kept]]
    return ids, probabilities / probabilities.sum()


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Logarithms of the probabilities that a model gives to the next token, before anything is done to choose one.

    Parameters
    ----------
    logits : ndarray of float32, shape (vocab,)
        Scores.

    Returns
    -------
    ndarray of float64, shape (vocab,)
        Natural logarithms.

    Examples
    --------
    >>> import numpy as np
    >>> log_probabilities(np.zeros(2, np.float32)).round(3).tolist()
    [-0.693, -0.693]
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def most_probable(logs: NDArray[np.float64], count: int) -> tuple[tuple[int, float], ...]:
    """The most probable tokens and their logarithms, best first; of equal ones the lowest number comes first."""
    count = min(count, len(logs))
    if count == 0:
        return ()
    smallest = np.partition(logs, len(logs) - count)[len(logs) - count]
    ids = np.flatnonzero(logs >= smallest)
    best = ids[np.argsort(-logs[ids], kind="stable")][:count]
    return tuple((int(i), float(logs[i])) for i in best)
