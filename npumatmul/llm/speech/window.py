"""`WindowWriter`: what a model writes about one window, again and less certainly where it went wrong."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.llm.models.whisper import Whisper
from npumatmul.llm.run.sampling import log_probabilities
from npumatmul.llm.speech.rules import Rules
from npumatmul.llm.speech.tokens import SpeechTokens
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.cache import KVCache
from npumatmul.nn.cross_attention import KeysAndValues

__all__ = ["Thresholds", "WindowWriter", "Written", "compression_ratio"]


@dataclass(frozen=True)
class Thresholds:
    """When what was written is not believed.

    Attributes
    ----------
    temperatures : tuple of float
        To be tried one after another.
    compression_ratio : float or None
        Text that zlib makes shorter than this is one that repeats itself.
    logprob : float or None
        A mean logarithm below it is one of tokens that were guessed.
    no_speech : float or None
        A window with guessed tokens that is likelier than this to hold no speech is left out.
    """

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float | None = 2.4
    logprob: float | None = -1.0
    no_speech: float | None = 0.6


@dataclass(frozen=True)
class Written:
    """What was written about a window.

    Attributes
    ----------
    tokens : list of int
        Without the one that ends them.
    temperature, average_logprob, compression_ratio, no_speech_probability : float
        As of `Segment`.
    silent : bool
        Whether there is no speech.
    """

    tokens: list[int]
    temperature: float
    average_logprob: float
    compression_ratio: float
    no_speech_probability: float
    silent: bool


def compression_ratio(text: str) -> float:
    """Bytes of a text by those that zlib makes of them.

    Examples
    --------
    >>> compression_ratio("Hello") < 1 < compression_ratio("Hello " * 20)
    True
    """
    data = text.encode()
    return len(data) / len(zlib.compress(data))


class WindowWriter:
    """Writes about windows.

    Parameters
    ----------
    model : Whisper
    tokenizer : Tokenizer
    tokens : SpeechTokens
    timestamps : bool
        Whether times are written.
    thresholds : Thresholds
    max_tokens : int or None
        Tokens about a window at most; by default as many as there is room for.
    seed : int or None
        Of choices at temperatures above 0.
    cache_type : str
        In which keys and values are kept.
    pause : callable
        Called between tokens.
    """

    def __init__(
        self,
        model: Whisper,
        tokenizer: Tokenizer,
        tokens: SpeechTokens,
        *,
        timestamps: bool,
        thresholds: Thresholds,
        max_tokens: int | None = None,
        seed: int | None = None,
        cache_type: str = "float32",
        pause: Callable[[], object] = lambda: None,
    ) -> None:
        self._model, self._tokenizer, self._tokens = model, tokenizer, tokens
        self._rules, self._thresholds = Rules(tokens, timestamps), thresholds
        self._max_tokens, self._cache_type, self._pause = max_tokens, cache_type, pause
        self._random = np.random.default_rng(seed)

    def text(self, ids: Sequence[int]) -> str:
        """The words of tokens, without times."""
        return self._tokenizer.decode(each for each in ids if each < self._tokens.first_time)

    def language(self, heard: Sequence[KeysAndValues]) -> tuple[str, float]:
        """The likeliest language of a window, and its probability among all that the model knows."""
        tokens = self._tokens
        logits = _finite(self._model.logits([tokens.start], heard, self._model.new_cache(self._cache_type))[0])
        codes = list(tokens.languages)
        logs = log_probabilities(logits[[tokens.languages[code] for code in codes]])
        best = int(np.argmax(logs))
        return codes[best], math.exp(logs[best])

    def write(self, heard: Sequence[KeysAndValues], before: Sequence[int], prompt: Sequence[int]) -> Written:
        """Write about a window.

        Parameters
        ----------
        heard : sequence of KeysAndValues
        before : sequence of int
            What was said before; empty, or beginning with the token for that.
        prompt : sequence of int
            As `SpeechTokens.prompt` makes it.
        """
        cache = self._model.new_cache(self._cache_type)
        states = self._model.written([*before, *prompt], heard, cache)
        starts = _finite(self._model.head(states[[len(before), -1]]))
        no_speech = 0.0
        if self._tokens.no_timestamps is not None:
            no_speech = math.exp(log_probabilities(starts[0])[self._tokens.no_timestamps - 1])
        limits = self._thresholds
        made: Written | None = None
        for temperature in limits.temperatures:
            made = self._written(heard, cache.fork(), starts[1].copy(), temperature, no_speech)
            guessed = limits.logprob is not None and made.average_logprob < limits.logprob
            repeated = limits.compression_ratio is not None and made.compression_ratio > limits.compression_ratio
            if made.silent or not (guessed or repeated):
                break
        assert made is not None
        return made

    def _written(
        self,
        heard: Sequence[KeysAndValues],
        cache: KVCache,
        logits: NDArray[np.float32],
        temperature: float,
        no_speech: float,
    ) -> Written:
        """Write about a window at one temperature."""
        room = self._model.config.context_length - cache.offset
        room = room if self._max_tokens is None else min(room, self._max_tokens)
        ids: list[int] = []
        total, count = 0.0, 0
        while True:
            self._rules.hide(logits, ids)
            if not np.isfinite(logits).any():
                break  # nothing may follow
            logs = log_probabilities(logits)
            chosen = self._chosen(logs, temperature)
            total, count = total + float(logs[chosen]), count + 1
            if chosen == self._tokens.end:
                break
            ids.append(chosen)
            if len(ids) >= room:
                break
            self._pause()
            logits = _finite(self._model.logits([chosen], heard, cache)[0])
        average = total / max(count, 1)
        limits = self._thresholds
        silent = limits.no_speech is not None and no_speech > limits.no_speech
        silent = silent and (limits.logprob is None or average < limits.logprob)
        ratio = compression_ratio(self.text(ids).strip())
        return Written(ids, temperature, average, ratio, no_speech, silent)

    def _chosen(self, logs: NDArray[np.float64], temperature: float) -> int:
        """The likeliest token, or one by chance."""
        if temperature == 0:
            return int(np.argmax(logs))
        with np.errstate(over="ignore"):  # what becomes -inf has no share
            shares = np.exp((logs - logs.max()) / temperature)
        cumulative = np.cumsum(shares)
        found = int(np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right"))
        return min(found, len(logs) - 1)


def _finite(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits as a model gave them; an inf or nan would be taken for what rules hide, and end a text without a word."""
    if not np.isfinite(logits).all():
        raise NotFiniteError(
            "the logits of a window hold an inf or nan: the model is damaged, or numbers overflowed in a product"
        )
    return logits
