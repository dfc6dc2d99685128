"""Generating text, token by token."""

from __future__ import annotations

import contextlib
import inspect
import operator
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol

import numpy as np

from npumatmul.files.reading import shown
from npumatmul.files.uncopied import Uncopied
from npumatmul.llm.arguments import check_progress
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.models.cache import ContextFullError, KVCache
from npumatmul.llm.models.decoder import Decoder, PromptProgress
from npumatmul.llm.models.embedded import Embedded, EmbeddedRows, FilledPrompt, filled
from npumatmul.llm.run.sampling import Sampler, SamplingOptions, log_probabilities, most_probable
from npumatmul.llm.run.stopping import StopTexts
from npumatmul.llm.tokenizers.protocol import Tokenizer, token_numbers
from npumatmul.llm.tokenizers.streaming import StreamDecoder
from npumatmul.nn.product import Float32

MOST_LOGPROBS = 1024


class StopReason(str, Enum):
    """Why a generation ended."""

    STOP_TOKEN = "stop_token"
    """The model chose a token that ends its answer."""
    STOP_TEXT = "stop_text"
    """The answer came to a text that ends it; that text is no part of it."""
    MAX_TOKENS = "max_tokens"
    """As many tokens were generated as had been asked for."""
    CONTEXT_FULL = "context_full"
    """The cache has no room for another token."""
    INTERRUPTED = "interrupted"
    """It was given up: a keyboard interrupt, an error, `Generation.close` or `Generation.cancel`."""


@dataclass
class GenerationStats:
    """What a generation did. Times are those of the model and sampler, not of whoever reads the pieces.

    Attributes
    ----------
    prompt_tokens : int
        Tokens of the prompt.
    cached_tokens : int
        How many of these were in the cache already.
    generated_tokens : int
        Tokens generated, a final stop token included.
    prompt_seconds : float
        Time from the start to the first token.
    generate_seconds : float
        Time for all tokens after the first.
    stop_reason : StopReason or None
        Why it ended; None while it has not.
    stop_text : str or None
        The text that ended it, if one did.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    stop_reason: StopReason | None = None
    stop_text: str | None = None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prompt, tokens found in the cache not counted; 0 if unknown."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of the tokens after the first; 0 if there are none."""
        later = self.generated_tokens - 1
        return later / self.generate_seconds if later > 0 and self.generate_seconds else 0.0


class Piece(NamedTuple):
    """A generated token, and the text that is certain with it.

    Attributes
    ----------
    token : int
        Token number.
    text : str
        Whole characters, possibly none: a character that is not complete yet and the beginning of what may become a
        stop are held back. Empty for control tokens.
    logprob : float or None
        Natural logarithm of the probability that the model gave to the token, before temperature and all else; None
        where that was not asked for.
    top_logprobs : tuple of (int, float)
        The most probable tokens and their logarithms, best first, as many as were asked for.
    stats : GenerationStats or None
        Of the whole generation, with the last piece.
    """

    token: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    stats: GenerationStats | None = None

    @property
    def reason(self) -> StopReason | None:
        """Why the generation ended, with the last piece."""
        return None if self.stats is None else self.stats.stop_reason


class Constraint(Protocol):
    """What an answer has to obey, such as a grammar: asked before each token is chosen, told which one was."""

    def allowed(self, logits: Float32, /) -> None:
        """Set the scores of tokens that must not come next to ``-inf``, in place; shape (vocab,)."""
        ...

    def accept(self, token: int, /) -> None:
        """Go on behind a token; those that end the answer come here, too."""
        ...


class Host(Protocol):
    """Where a generation gets its cache and its turns at the model."""

    def take(self, prompt: Sequence[int], room: int) -> KVCache:
        """A cache for a prompt, which may hold the beginning of it, with room for `room` tokens if that many fit."""
        ...

    def give(self, cache: KVCache) -> None:
        """Take back a cache, when the generation has ended."""
        ...

    def turn(self, generation: Generation) -> AbstractContextManager[Callable[[], None]]:
        """Wait for the model; it is this generation's while the context lasts, or until it calls what that gives."""
        ...


class _Alone:
    """A generation that shares its model with nobody."""

    def __init__(self, model: Decoder, cache: KVCache | None) -> None:
        self._model, self._cache = model, cache

    def take(self, prompt: Sequence[int], room: int) -> KVCache:
        """A new cache, or that of the caller."""
        return self._model.new_cache(room) if self._cache is None else self._cache

    def give(self, cache: KVCache) -> None:
        """Nobody else wants it."""

    def turn(self, generation: Generation) -> AbstractContextManager[Callable[[], None]]:
        """There is no one to wait for."""
        return contextlib.nullcontext(lambda: None)


class _Cancelled(Exception):
    """Ends a prompt that is being read."""


class Generation(Uncopied, Iterator[Piece]):
    """A running generation: an iterator over pieces. Made by `generate` and `Model.generate`.

    Attributes
    ----------
    stats : GenerationStats
        Counts and times so far; complete when the iteration has ended.
    cache : KVCache
        The cache in use. It holds the prompt and all generated tokens but the last.
    ids : list of int
        Tokens generated so far.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: SamplingOptions | None,
        stop_ids: Collection[int] | None,
        stop: str | Sequence[str],
        logprobs: int | None,
        continues: bool,
        host: Host,
        context: int,
        progress: PromptProgress | None,
        constraint: Constraint | None = None,
    ) -> None:
        if isinstance(prompt_ids, (str, bytes)):
            raise TypeError(
                "generate: prompt_ids are token numbers; tokenizer.encode and encode_chat make them of text"
            )
        if sampling is not None and not isinstance(sampling, SamplingOptions):
            raise TypeError(f"generate: sampling is a SamplingOptions, not {type(sampling).__name__}")
        check_progress("generate", progress)
        check_constraint(constraint)
        max_new_tokens = count_from_one(max_new_tokens, "max_new_tokens", "generate")
        self._embeddings: EmbeddedRows | None = None
        if isinstance(prompt_ids, FilledPrompt):  # its tokens were checked before it got numbers of rows
            self._prompt, self._embeddings = list(prompt_ids), prompt_ids.rows
        else:
            self._prompt = checked_ids(prompt_ids, model.config.vocab_size, "the prompt")
        self._logprobs = _checked_logprobs(logprobs)
        self._model = model
        self._sampler = Sampler(sampling)
        self._decoder = StreamDecoder(tokenizer, continues=continues)
        self._stop_ids = frozenset(tokenizer.stop_ids if stop_ids is None else token_numbers(stop_ids, "stop_ids"))
        self._stop_texts = StopTexts(stop)
        self._max_new_tokens = max_new_tokens
        self._progress = progress
        self._constraint = constraint
        self._host = host
        self._cancelled = threading.Event()
        self._pass_on: Callable[[], None] = lambda: None
        self._waited = 0.0
        if len(self._prompt) > context:
            raise ContextFullError(f"the prompt has {len(self._prompt)} tokens, but there is room for {context}")
        self._cache: KVCache | None = None
        self.ids: list[int] = []
        self.stats = GenerationStats(prompt_tokens=len(self._prompt))
        self._steps = self._run()

    def __repr__(self) -> str:
        """Return how far it is, and why it ended."""
        reason = self.stats.stop_reason
        return f"<Generation: {len(self.ids)} tokens{', to be continued' if reason is None else f', {reason.value}'}>"

    def __iter__(self) -> Generation:
        """Return the generation itself."""
        return self

    def __next__(self) -> Piece:
        """Generate a token."""
        try:
            piece = next(self._steps)
        except ValueError as error:
            self._refuse_two(error)
            raise
        if piece.stats is not None:  # the last one: the cache is free even if nobody asks for another
            self._steps.close()
        return piece

    @property
    def cache(self) -> KVCache:
        """The cache in use; there is one from the first piece on."""
        if self._cache is None:
            self._cache = self._host.take(self._prompt, len(self._prompt) + self._max_new_tokens)
        return self._cache

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """End the generation from whatever thread, at the next token or, of a prompt, the next layer.

        Whoever iterates over it gets no more pieces; it does not raise there.
        """
        self._cancelled.set()

    def close(self) -> None:
        """End the generation early, in the thread that iterates; the cache can be used on."""
        try:
            self._steps.close()
        except ValueError as error:
            self._refuse_two(error)
            raise
        if self.stats.stop_reason is None:
            self.stats.stop_reason = StopReason.INTERRUPTED

    def _refuse_two(self, error: ValueError) -> None:
        """Say what Python says of a generator that is at work in another thread, of what people have."""
        if inspect.getgeneratorstate(self._steps) == inspect.GEN_RUNNING:
            raise RuntimeError(
                "another thread is waiting for a piece of this generation: one thread iterates over it and closes it, "
                "and any may end it by cancel()"
            ) from error

    def _run(self) -> Generator[Piece, None, None]:
        try:
            yield from self._pieces()
        except _Cancelled:
            pass
        finally:
            if self.stats.stop_reason is None:  # GeneratorExit and KeyboardInterrupt too
                self.stats.stop_reason = StopReason.INTERRUPTED
            if self._cache is not None:
                self._host.give(self._cache)

    def _pieces(self) -> Generator[Piece, None, None]:
        stats = self.stats
        history = [each for each in self._prompt if each >= 0]
        tokens = self._prompt
        while True:
            with self._host.turn(self) as self._pass_on:
                self._check_cancelled()
                started = time.perf_counter()
                self._waited = 0.0
                if not self.ids:
                    stats.cached_tokens = _reuse(self.cache, self._prompt)
                    tokens = self._prompt[stats.cached_tokens :]
                logits = self._model.forward(tokens, self.cache, progress=self._told, embeddings=self._embeddings)
            logs = None if self._logprobs is None else log_probabilities(logits)
            token = self._chosen(logits, history)
            logprob: float | None = None
            top: tuple[tuple[int, float], ...] = ()
            if logs is not None and self._logprobs is not None:
                logprob, top = float(logs[token]), most_probable(logs, self._logprobs)
            history.append(token)
            self.ids.append(token)
            stats.generated_tokens += 1
            text, reason = self._text(token)
            elapsed = time.perf_counter() - started - self._waited
            if stats.generated_tokens == 1:
                stats.prompt_seconds = elapsed
            else:
                stats.generate_seconds += elapsed
            stats.stop_reason, stats.stop_text = reason, self._stop_texts.found
            yield Piece(token, text, logprob, top, None if reason is None else stats)
            if reason is not None:
                return
            tokens = [token]

    def _chosen(self, logits: Float32, history: Sequence[int]) -> int:
        """The next token, among those that the constraint allows."""
        if self._constraint is None:
            return self._sampler.sample(logits, history)
        self._constraint.allowed(logits)
        if logits.max() == -np.inf:
            raise ValueError(
                "the constraint allows no token; where nothing may follow, it has to allow one that ends the answer"
            )
        token = self._sampler.sample(logits, history)
        self._constraint.accept(token)
        return token

    def _text(self, token: int) -> tuple[str, StopReason | None]:
        """The text that is certain with a token, and whether it is the last one."""
        reason = self._end(token)
        text = "" if reason is StopReason.STOP_TOKEN else self._decoder.push(token)
        if reason is not None:
            text += self._decoder.finish()
        text = self._stop_texts.push(text)
        if self._stop_texts.found is not None:
            return text, StopReason.STOP_TEXT
        return (text, None) if reason is None else (text + self._stop_texts.finish(), reason)

    def _end(self, token_id: int) -> StopReason | None:
        if token_id in self._stop_ids:
            return StopReason.STOP_TOKEN
        if len(self.ids) >= self._max_new_tokens:
            return StopReason.MAX_TOKENS
        if self.cache.length >= self.cache.capacity:
            return StopReason.CONTEXT_FULL
        return None

    def _told(self, done: int, total: int) -> None:
        """Pass progress of the prompt on, and look whether somebody wants it to end, or waits."""
        self._check_cancelled()
        if self.ids:
            return
        if self._progress is not None:
            self._progress(done, total)
        before = time.perf_counter()
        self._pass_on()  # between blocks of a prompt, which takes long, others may have a token
        self._waited += time.perf_counter() - before

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise _Cancelled


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int = 256,
    sampling: SamplingOptions | None = None,
    stop_ids: Collection[int] | None = None,
    stop: str | Sequence[str] = (),
    logprobs: int | None = None,
    cache: KVCache | None = None,
    progress: PromptProgress | None = None,
    constraint: Constraint | None = None,
    embeddings: Mapping[int, Embedded] | Sequence[Embedded] | None = None,
) -> Generation:
    """Continue a prompt.

    Nothing is computed until the first token is asked for. The last token may be a stop token (its text is empty), as
    in transformers.

    Parameters
    ----------
    model : Decoder
        The model.
    tokenizer : Tokenizer
        Its tokenizer.
    prompt_ids : sequence of int
        The whole prompt; in a conversation, all of it so far.
    max_new_tokens : int, default 256
        Tokens to generate at most.
    sampling : SamplingOptions, optional
        How to choose tokens; greedy by default.
    stop_ids : collection of int, optional
        Tokens that end the answer; by default the tokenizer's. Empty means none.
    stop : str or sequence of str, optional
        Texts that end the answer and are no part of it, wherever tokens begin and end in them.
    logprobs : int, optional
        Tells the logarithm of each token's probability, and those of as many of the most probable tokens.
    cache : KVCache, optional
        A cache from an earlier call. The tokens at the start of the prompt that it holds already are not computed
        again; the rest of it is forgotten. By default a new one with just enough room.
    progress : callable, optional
        Called with (tokens read, tokens to read) now and then while the prompt is read, before the first token.
    constraint : Constraint, optional
        What the answer has to obey; it serves one generation.
    embeddings : mapping of int to Embedded, or sequence of Embedded, optional
        Rows for places of the prompt, as for `Model.generate`.

    Returns
    -------
    Generation
        An iterator over `Piece`, with ``stats`` about counts, times and the reason it stopped.

    Raises
    ------
    ContextFullError
        If the prompt alone does not fit.
    TypeError
        If the prompt is a text, or an argument something else than it should be.
    ValueError
        If the prompt is empty or has a number that no token has, or an argument is out of range.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model, generate, load_model, numpy_pack
    >>> loaded = load_model(fetch_demo_model(), pack=numpy_pack)
    >>> ids = loaded.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    >>> "".join(piece.text for piece in generate(loaded.model, loaded.tokenizer, ids))
    'The capital of France is Paris.'
    """
    if embeddings is not None:
        prompt_ids = filled(checked_ids(prompt_ids, model.config.vocab_size, "the prompt"), embeddings, model.config)
    return Generation(
        model,
        tokenizer,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids,
        stop=stop,
        logprobs=logprobs,
        continues=False,
        host=_Alone(model, cache),
        context=model.config.context_length if cache is None else cache.capacity,
        progress=progress,
        constraint=constraint,
    )


def check_constraint(constraint: object) -> None:
    """Raise if it has not the methods of a `Constraint`."""
    if constraint is not None and not all(callable(getattr(constraint, name, None)) for name in ("allowed", "accept")):
        raise TypeError(
            f"constraint is a {type(constraint).__name__}; it needs methods allowed(logits), which sets scores to "
            "-inf, and accept(token)"
        )


def checked_ids(ids: Iterable[int], vocab_size: int, what: str) -> list[int]:
    """Token numbers as plain ints.

    Raises
    ------
    TypeError
        If one is no whole number.
    ValueError
        If there are none, or one is not in the vocabulary.
    """
    numbers = token_numbers(ids, what)
    if not numbers:
        raise ValueError(f"{what} is empty; a model needs at least one token to start from")
    wrong = next((i for i in numbers if not 0 <= i < vocab_size), None)
    if wrong is not None:
        raise ValueError(f"{what} has token {wrong}, but the model's vocabulary has {vocab_size} tokens")
    return numbers


def _checked_logprobs(count: int | None) -> int | None:
    if count is None:
        return None
    if isinstance(count, bool):
        raise TypeError("logprobs is how many of the most probable tokens to tell beside each, 0 or more, or None")
    try:
        count = operator.index(count)
    except TypeError:
        raise TypeError(f"logprobs is a whole number from 0 to {MOST_LOGPROBS}, or None, not {shown(count)}") from None
    if not 0 <= count <= MOST_LOGPROBS:
        raise ValueError(f"logprobs is {count}; it must be from 0 to {MOST_LOGPROBS}, or None")
    return count


def _reuse(cache: KVCache, prompt: Sequence[int]) -> int:
    """Cut the cache to what it shares with the prompt, and leave at least one token to be computed."""
    shared = shared_length(cache.tokens, prompt[:-1])
    return cache.truncate(shared)


def shared_length(cached: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    shared = 0
    for one, other in zip(cached, prompt, strict=False):
        if one != other:
            break
        shared += 1
    return shared
