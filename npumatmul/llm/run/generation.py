"""A generation: tokens chosen one after the other, until something ends it."""

from __future__ import annotations

import inspect
import operator
import threading
from collections.abc import Collection, Generator, Iterable, Iterator, Sequence

import numpy as np

from npumatmul.files.reading import shown
from npumatmul.files.uncopied import Uncopied
from npumatmul.llm.arguments import check_progress
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.models.cache import ContextFullError, KVCache
from npumatmul.llm.models.decoder import Decoder, PromptProgress
from npumatmul.llm.models.embedded import EmbeddedRows, FilledPrompt
from npumatmul.llm.run.full import OnFull, check_window, slid
from npumatmul.llm.run.pieces import Constraint, GenerationStats, Piece, StopReason, check_constraint
from npumatmul.llm.run.sampling import Sampler, SamplingOptions, log_probabilities, most_probable
from npumatmul.llm.run.speculation import Draft, Drafts
from npumatmul.llm.run.steps import Cancelled, Host, Step, shared_length
from npumatmul.llm.run.stopping import StopTexts
from npumatmul.llm.tokenizers.protocol import Tokenizer, token_numbers
from npumatmul.llm.tokenizers.streaming import StreamDecoder
from npumatmul.nn.product import Float32

__all__ = ["Generation", "checked_ids"]

MOST_LOGPROBS = 1024


class Generation(Uncopied, Iterator[Piece]):
    """A running generation: an iterator over pieces. Made by `generate` and `Model.generate`.

    Attributes
    ----------
    stats : GenerationStats
        Counts and times so far; complete when the iteration has ended.
    cache : KVCache
        The cache in use, from the first piece on. It holds the prompt and all generated tokens but the last.
    ids : list of int
        Tokens generated so far.
    driven : bool
        Whether somebody else computes its steps, which `advance` gives.
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
        on_full: OnFull = "error",
        keep: int = 0,
        drafts: Drafts | None = None,
    ) -> None:
        if isinstance(prompt_ids, (str, bytes)):
            raise TypeError(
                "generate: prompt_ids are token numbers; tokenizer.encode and encode_chat make them of text"
            )
        if sampling is not None and not isinstance(sampling, SamplingOptions):
            raise TypeError(f"generate: sampling is a SamplingOptions, not {type(sampling).__name__}")
        check_progress("generate", progress)
        check_constraint(constraint)
        self._max_new_tokens = count_from_one(max_new_tokens, "max_new_tokens", "generate")
        self._embeddings: EmbeddedRows | None = None
        if isinstance(prompt_ids, FilledPrompt):  # its tokens were checked before it got numbers of rows
            self._prompt, self._embeddings = list(prompt_ids), prompt_ids.rows
            if on_full != "error":
                raise ValueError("on_full='window': a window does not slide over embeddings; let it be 'error'")
        else:
            self._prompt = checked_ids(prompt_ids, model.config.vocab_size, "the prompt")
        self._logprobs = _checked_logprobs(logprobs)
        self._sampler = Sampler(sampling)
        self._decoder = StreamDecoder(tokenizer, continues=continues)
        self._stop_ids = frozenset(tokenizer.stop_ids if stop_ids is None else token_numbers(stop_ids, "stop_ids"))
        self._stop_texts = StopTexts(stop)
        self._progress = progress
        self._constraint = constraint
        self._host = host
        self._keep = check_window(on_full, keep, context)
        self._drafts = drafts
        self.driven = False
        self._cancelled = threading.Event()
        self._cache: KVCache | None = None
        self._step: Step | None = None
        #: Tokens that the cache holds the beginning of: all, but for those that a full context made no room for.
        self._context = context
        self._sequence = self._fitting(list(self._prompt), context - 1)
        if len(self._sequence) > context:
            raise ContextFullError(f"the prompt has {len(self._prompt)} tokens, but there is room for {context}")
        self._history = [each for each in self._prompt if each >= 0]
        self._produced = 0
        self.ids: list[int] = []
        self.stats = GenerationStats(
            prompt_tokens=len(self._sequence), dropped_tokens=len(self._prompt) - len(self._sequence)
        )
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
        piece = self.advance()
        assert isinstance(piece, Piece), "who drives a generation computes its steps"
        return piece

    def advance(self) -> Piece | Step:
        """The next piece; of a generation that is driven, also a step that has to be computed before the next call."""
        try:
            piece = next(self._steps)
        except ValueError as error:
            self._refuse_two(error)
            raise
        if isinstance(piece, Piece) and piece.stats is not None:  # the last one: the cache is free even if nobody asks
            self._steps.close()
        return piece

    def served_by(self, host: Host) -> None:
        """Have another host from the start."""
        self._host = host

    @property
    def cache(self) -> KVCache:
        """The cache in use; there is one from the first piece on.

        Raises
        ------
        RuntimeError
            If there was no piece yet.
        """
        if self._cache is None:
            raise RuntimeError("a generation has a cache from its first piece on: ask for that first")
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

    def _run(self) -> Generator[Piece | Step, None, None]:
        try:
            yield from self._pieces()
        except Cancelled:
            pass
        finally:
            if self.stats.stop_reason is None:  # GeneratorExit and KeyboardInterrupt too
                self.stats.stop_reason = StopReason.INTERRUPTED
            self._give()

    def _give(self) -> None:
        """Give the cache back, unless another thread is at work with it, whose wait here an interrupt has ended."""
        step = self._step
        if step is not None:
            step.withdrawn = True
        if step is not None and step.claimed:
            self._host.ended(id(self))
        elif self._cache is not None:
            self._host.give(self._cache, id(self))

    def _pieces(self) -> Generator[Piece | Step, None, None]:
        stats = self.stats
        draft = Draft()
        while True:
            self._check_cancelled()
            wanted = self._sequence if not draft.tokens else [*self._sequence, *draft.tokens]
            before = None if self._may_go_back(draft) else self._forked()
            cache = self.cache if self._produced else self._first_cache
            step = self._step = Step(wanted, 1 + len(draft.tokens), cache, self._told, id(self), self._embeddings)
            if self.driven:
                yield step
            else:
                self._host.compute([step], self._cancelled.is_set)
            if not step.done:
                raise Cancelled
            if step.error is not None:
                raise step.error
            stats.steps += 1
            stats.shared_steps += step.shared
            pieces = self._taken(step, draft)
            self._step = None
            if before is not None and self.cache.length >= len(self._sequence):
                self._cache = before  # what was proposed in vain is in the other one's states
            elif self.cache.length >= len(self._sequence):
                self._cut(self.cache, len(self._sequence) - 1)
            for piece in pieces:
                self._check_cancelled()
                self.ids.append(piece.token)
                stats.generated_tokens += 1
                if piece.stats is not None:
                    stats.stop_reason, stats.stop_text = self._reason, self._stop_texts.found
                yield piece
            if pieces[-1].stats is not None:
                return
            self._sequence = self._fitting(self._sequence, self._context)
            draft = self._proposed()

    def _first_cache(self) -> KVCache:
        """The cache of the prompt, cut to what it shares with it; at least one token is left to be computed.

        It is taken when the model is there for this sequence: others' caches that are forked for it rest then.
        """
        if self._cache is None:
            self._cache = self._host.take(self._sequence, len(self._sequence) + self._max_new_tokens)
        cache = self._cache
        self.stats.cached_tokens = self._cut(cache, shared_length(cache.tokens, self._sequence[:-1]))
        return cache

    def _forked(self) -> KVCache:
        with self._host.unseen():
            return self.cache.fork()

    def _cut(self, cache: KVCache, length: int) -> int:
        """Forget tokens, while nobody forks the cache."""
        with self._host.unseen():
            return cache.truncate(length)

    def _fitting(self, sequence: list[int], most: int) -> list[int]:
        """The sequence, or what is left of it where it has more tokens and a window slides."""
        if self._keep is None or len(sequence) <= most:
            return sequence
        left = slid(sequence, self._keep, self._context, most)
        if self._cache is not None:
            self.stats.dropped_tokens += len(sequence) - len(left)
            self._cut(self._cache, shared_length(self._cache.tokens, left[:-1]))
        return left

    def _may_go_back(self, draft: Draft) -> bool:
        """Whether proposed tokens can be forgotten again."""
        return not draft.tokens or self.cache.trimmable

    def _proposed(self) -> Draft:
        """Tokens that are checked with the next step, as many as there is room for."""
        if self._drafts is None:
            return Draft()
        room = min(self._max_new_tokens - self._produced - 1, self.cache.capacity - len(self._sequence))
        return self._drafts.propose(self._sequence, room, self._sampler.options) if room > 0 else Draft()

    def _taken(self, step: Step, draft: Draft) -> list[Piece]:
        """Pieces of the tokens that a step gives: one, and as many more as were proposed rightly."""
        assert step.logits is not None
        pieces: list[Piece] = []
        stats = self.stats
        for i in range(step.rows):
            token, piece = self._piece(step.logits[i], draft, i)
            pieces.append(piece)
            if piece.stats is not None or i == len(draft.tokens) or token != draft.tokens[i]:
                break
        accepted = sum(piece.token == token for piece, token in zip(pieces, draft.tokens, strict=False))
        stats.drafted_tokens += len(draft.tokens)
        stats.accepted_tokens += accepted
        if self._drafts is not None:
            self._drafts.told(draft, accepted, step)
        if step.is_prompt:
            stats.prompt_seconds = step.seconds
        else:
            stats.generate_seconds += step.seconds
        return pieces

    def _piece(self, logits: Float32, draft: Draft, i: int) -> tuple[int, Piece]:
        logs = None if self._logprobs is None else log_probabilities(logits)
        token = self._chosen(logits, draft, i)
        logprob: float | None = None
        top: tuple[tuple[int, float], ...] = ()
        if logs is not None and self._logprobs is not None:
            logprob, top = float(logs[token]), most_probable(logs, self._logprobs)
        self._history.append(token)
        self._produced += 1
        self._sequence.append(token)
        text, self._reason = self._text(token)
        return token, Piece(token, text, logprob, top, None if self._reason is None else self.stats)

    def _chosen(self, logits: Float32, draft: Draft, i: int) -> int:
        """The next token, among those that the constraint allows."""
        if self._constraint is not None:
            self._constraint.allowed(logits)
            if logits.max() == -np.inf:
                raise ValueError(
                    "the constraint allows no token; where nothing may follow, it has to allow one that ends the answer"
                )
        if i < len(draft.distributions):
            token = self._sampler.checked(logits, self._history, draft.tokens[i], draft.distributions[i])
        else:
            token = self._sampler.sample(logits, self._history)
        if self._constraint is not None:
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
        if self._produced >= self._max_new_tokens:
            return StopReason.MAX_TOKENS
        if self._keep is None and len(self._sequence) > self.cache.capacity:
            return StopReason.CONTEXT_FULL
        return None

    def _told(self, done: int, total: int) -> None:
        """Pass progress of the prompt on, and look whether somebody wants it to end."""
        self._check_cancelled()
        if self._progress is not None and not self._produced:
            self._progress(done, total)

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled


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
