"""Generating text, token by token."""

from __future__ import annotations

import operator
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from npumatmul.llm.models.cache import ContextFullError, KVCache
from npumatmul.llm.models.decoder import Decoder, PromptProgress
from npumatmul.llm.run.sampling import Sampler, SamplingOptions
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.llm.tokenizers.streaming import StreamDecoder


class StopReason(str, Enum):
    """Why a generation ended."""

    STOP_TOKEN = "stop_token"
    """The model chose a token that ends its answer."""
    MAX_TOKENS = "max_tokens"
    """As many tokens were generated as had been asked for."""
    CONTEXT_FULL = "context_full"
    """The cache has no room for another token."""
    INTERRUPTED = "interrupted"
    """The iteration was given up: a keyboard interrupt, an error, or `Generation.close`."""


class Token(NamedTuple):
    """A generated token.

    Attributes
    ----------
    id : int
        Token number.
    text : str
        The text that is complete with it: whole characters, possibly none. Empty for control tokens.
    """

    id: int
    text: str


@dataclass
class GenerationStats:
    """What a generation did. Times are those of the model and sampler, not of whoever reads the tokens.

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
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    stop_reason: StopReason | None = None

    @property
    def prompt_tokens_per_second(self) -> float:
        """Speed of the prompt, tokens found in the cache not counted; 0 if unknown."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Speed of the tokens after the first; 0 if there are none."""
        later = self.generated_tokens - 1
        return later / self.generate_seconds if later > 0 and self.generate_seconds else 0.0


class Generation(Iterator[Token]):
    """A running generation: an iterator over tokens. Made by `generate`.

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
        cache: KVCache | None,
        progress: PromptProgress | None,
    ) -> None:
        if isinstance(prompt_ids, (str, bytes)):
            raise TypeError(
                "generate: prompt_ids are token numbers; tokenizer.encode and encode_chat make them of text"
            )
        if sampling is not None and not isinstance(sampling, SamplingOptions):
            raise TypeError(f"generate: sampling is a SamplingOptions, not {type(sampling).__name__}")
        max_new_tokens = operator.index(max_new_tokens)
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; it must be 1 or more")
        if not len(prompt_ids):
            raise ValueError("the prompt is empty; a model needs at least one token to start from")
        self._prompt = [int(i) for i in prompt_ids]
        self._model = model
        self._sampler = Sampler(sampling)
        self._decoder = StreamDecoder(tokenizer)
        self._stop_ids = frozenset(tokenizer.stop_ids if stop_ids is None else stop_ids)
        self._max_new_tokens = max_new_tokens
        self._progress = progress
        self.cache = model.new_cache(len(self._prompt) + max_new_tokens) if cache is None else cache
        if len(self._prompt) > self.cache.capacity:
            raise ContextFullError(
                f"the prompt has {len(self._prompt)} tokens, but there is room for {self.cache.capacity}"
            )
        self.ids: list[int] = []
        self.stats = GenerationStats(prompt_tokens=len(self._prompt))
        self._steps = self._run()

    def __iter__(self) -> Generation:
        """Return the generation itself."""
        return self

    def __next__(self) -> Token:
        """Generate a token."""
        return next(self._steps)

    def close(self) -> None:
        """End the generation early; the cache can be used on."""
        self._steps.close()
        if self.stats.stop_reason is None:
            self.stats.stop_reason = StopReason.INTERRUPTED

    def _run(self) -> Generator[Token, None, None]:
        try:
            yield from self._tokens()
        except BaseException:  # GeneratorExit and KeyboardInterrupt too: it is only noted, and goes on
            self.stats.stop_reason = StopReason.INTERRUPTED
            raise

    def _tokens(self) -> Generator[Token, None, None]:
        stats = self.stats
        started = time.perf_counter()
        stats.cached_tokens = _reuse(self.cache, self._prompt)
        logits = self._model.forward(self._prompt[stats.cached_tokens :], self.cache, progress=self._progress)
        history = list(self._prompt)
        while True:
            token_id = self._sampler.sample(logits, history)
            history.append(token_id)
            self.ids.append(token_id)
            stats.generated_tokens += 1
            reason = self._end(token_id)
            text = "" if reason is StopReason.STOP_TOKEN else self._decoder.push(token_id)
            if reason is not None:
                text += self._decoder.finish()
            elapsed = time.perf_counter() - started
            if stats.generated_tokens == 1:
                stats.prompt_seconds = elapsed
            else:
                stats.generate_seconds += elapsed
            stats.stop_reason = reason
            yield Token(token_id, text)
            if reason is not None:
                return
            started = time.perf_counter()
            logits = self._model.forward([token_id], self.cache)

    def _end(self, token_id: int) -> StopReason | None:
        if token_id in self._stop_ids:
            return StopReason.STOP_TOKEN
        if len(self.ids) >= self._max_new_tokens:
            return StopReason.MAX_TOKENS
        if self.cache.length >= self.cache.capacity:
            return StopReason.CONTEXT_FULL
        return None


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int = 256,
    sampling: SamplingOptions | None = None,
    stop_ids: Collection[int] | None = None,
    cache: KVCache | None = None,
    progress: PromptProgress | None = None,
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
    cache : KVCache, optional
        A cache from an earlier call. The tokens at the start of the prompt that it holds already are not computed
        again; the rest of it is forgotten. By default a new one with just enough room.
    progress : callable, optional
        Called with (tokens read, tokens to read) now and then while the prompt is read, before the first token.

    Returns
    -------
    Generation
        An iterator over `Token`, with ``stats`` about counts, times and the reason it stopped.

    Raises
    ------
    ContextFullError
        If the prompt alone does not fit.
    TypeError
        If the prompt is a text, or `sampling` something else.
    ValueError
        If the prompt is empty or `max_new_tokens` is not positive.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model, generate, load_model, numpy_pack
    >>> loaded = load_model(fetch_demo_model(), pack=numpy_pack)
    >>> ids = loaded.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    >>> "".join(token.text for token in generate(loaded.model, loaded.tokenizer, ids))
    'The capital of France is Paris.'
    """
    return Generation(
        model,
        tokenizer,
        prompt_ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        stop_ids=stop_ids,
        cache=cache,
        progress=progress,
    )


def _reuse(cache: KVCache, prompt: Sequence[int]) -> int:
    """Cut the cache to what it shares with the prompt, and leave at least one token to be computed."""
    shared = 0
    for cached, wanted in zip(cache.tokens, prompt[:-1], strict=False):
        if cached != wanted:
            break
        shared += 1
    return cache.truncate(shared)
