"""A step: what a generation wants of its model, and who computes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from npumatmul.llm.models.cache import KVCache
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.embedded import EmbeddedRows
from npumatmul.llm.models.together import forward_together, is_long
from npumatmul.nn.product import Float32

__all__ = ["Alone", "Cancelled", "Host", "Step", "compute_alone", "compute_together", "shared_length"]


class Cancelled(Exception):
    """Ends a prompt that is being read."""


class Step:
    """Logits that are wanted: after the last tokens of a sequence, whose beginning a cache may hold.

    Parameters
    ----------
    sequence : list of int
        All tokens, those in the cache among them.
    rows : int
        After how many of the last tokens logits are wanted.
    cache : KVCache or callable
        The cache, or what gets it when the model is there for this step.
    told : callable
        Called with (tokens done, tokens in all) between layers; what it raises ends the step.
    owner : int
        Whose step it is; steps of one owner follow each other.
    embeddings : EmbeddedRows, optional
        What negative numbers among the tokens stand for.

    Attributes
    ----------
    logits : ndarray of float32, shape (rows, vocab), or None
        Once they are there.
    error : Exception or None
        What came instead.
    seconds : float
        What it took, without waiting; of a step with others, what all of them took.
    shared : bool
        Whether it was computed with others.
    alone : bool
        Whether it has to be computed without others: with them there was an error.
    claimed : bool
        Whether another thread is at work on it, and with its cache.
    withdrawn : bool
        Whether nobody wants it any more.
    """

    def __init__(
        self,
        sequence: list[int],
        rows: int,
        cache: KVCache | Callable[[], KVCache],
        told: Callable[[int, int], object],
        owner: int,
        embeddings: EmbeddedRows | None = None,
    ) -> None:
        self.sequence, self.rows, self.told, self.owner, self.embeddings = sequence, rows, told, owner, embeddings
        self.is_prompt = not isinstance(cache, KVCache)
        self._cache = cache
        self.thread = threading.get_ident()
        self.logits: Float32 | None = None
        self.error: Exception | None = None
        self.seconds = 0.0
        self.shared = self.alone = self.claimed = self.withdrawn = False

    @property
    def done(self) -> bool:
        """Whether there are logits or an error."""
        return self.logits is not None or self.error is not None

    @property
    def cache(self) -> KVCache:
        """The cache of the sequence; of a prompt it is got at the first use."""
        if not isinstance(self._cache, KVCache):
            self._cache = self._cache()
        return self._cache

    def tokens(self) -> list[int]:
        """What is left to be computed.

        Tokens whose logits nobody got, as an interrupt or an error came, are computed anew.
        """
        cache = self.cache
        cache.settle()
        most = len(self.sequence) - self.rows
        if cache.length > most:
            cache.truncate(most)
        return self.sequence[cache.length :]


class Host(Protocol):
    """Where a generation gets its cache and its steps."""

    def take(self, prompt: Sequence[int], room: int) -> KVCache:
        """A cache for a prompt, which may hold the beginning of it, with room for `room` tokens if that many fit."""
        ...

    def give(self, cache: KVCache, owner: int) -> None:
        """Take back a cache, when the generation has ended."""
        ...

    def unseen(self) -> AbstractContextManager[object]:
        """While it lasts nobody forks caches in use: for changes of one outside of steps."""
        ...

    def ended(self, owner: int) -> None:
        """A generation has ended whose cache somebody is still at work with."""
        ...

    def compute(self, steps: Sequence[Step], unwanted: Callable[[], bool]) -> None:
        """Compute steps, each of which then has logits or an error, unless they are unwanted meanwhile."""
        ...


class Alone:
    """A generation that shares its model with nobody."""

    def __init__(self, model: Decoder, cache: KVCache | None) -> None:
        self._model, self._cache = model, cache

    def take(self, prompt: Sequence[int], room: int) -> KVCache:
        """A new cache, or that of the caller."""
        return self._model.new_cache(room) if self._cache is None else self._cache

    def give(self, cache: KVCache, owner: int) -> None:
        """Nobody else wants it."""

    def unseen(self) -> AbstractContextManager[object]:
        """Nobody else sees it."""
        return nullcontext()

    def ended(self, owner: int) -> None:
        """Nobody else waits for it."""

    def compute(self, steps: Sequence[Step], unwanted: Callable[[], bool]) -> None:
        """There is no one to wait for."""
        for step in steps:
            compute_alone(self._model, step)


def compute_alone(model: Decoder, step: Step, rest: Callable[[], object] | None = None) -> None:
    """Compute one step, as its own thread or another; `rest` is called between layers, and its time is none of it."""
    waited = 0.0

    def told(done: int, total: int) -> None:
        nonlocal waited
        step.told(done, total)
        if rest is not None:
            before = time.perf_counter()
            rest()
            waited += time.perf_counter() - before

    started = time.perf_counter()
    try:
        tokens = step.tokens()
        if step.rows == 1:
            step.logits = model.forward(tokens, step.cache, progress=told, embeddings=step.embeddings)[None]
        elif min(tokens) < 0 or is_long(model, step.cache, len(tokens)) is None:
            step.logits = model.forward(tokens, step.cache, True, told, step.embeddings)[-step.rows :]
        else:  # tokens attend one by one, as those that come alone do
            step.logits = forward_together(model, [tokens], [step.cache], [step.rows])[0]
    except Exception as error:
        step.error = error
    step.seconds = time.perf_counter() - started - waited


def compute_together(model: Decoder, steps: Sequence[Step]) -> None:
    """Compute steps at once; what goes wrong is raised, and no step is done then."""
    started = time.perf_counter()
    found = forward_together(
        model, [each.tokens() for each in steps], [each.cache for each in steps], [each.rows for each in steps]
    )
    seconds = time.perf_counter() - started
    for step, logits in zip(steps, found, strict=True):
        step.logits, step.seconds, step.shared = logits, seconds, True


def shared_length(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    shared = 0
    for one, other in zip(cached, prompt, strict=False):
        if one != other:
            break
        shared += 1
    return shared
