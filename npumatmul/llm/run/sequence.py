"""A sequence that passes through a model, or through a part of one: states in and out, for several boards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.errors import ModelError, NotFiniteError
from npumatmul.llm.models.cache import ContextFullError
from npumatmul.llm.models.decoder import PREFILL_CHUNK, Decoder
from npumatmul.llm.models.part import Part
from npumatmul.llm.run.generation import checked_ids
from npumatmul.nn.product import Float32

__all__ = ["TokenSequence"]


class TokenSequence:
    """Tokens that pass through a model, some at a time; `Model.sequence` makes it.

    Of a part of a model, the first one takes tokens and gives states, the last one takes states and gives logits. What
    comes out of a part goes into the next one as it is: then the logits are those of the whole model, to the bit.

    Parameters
    ----------
    model : Decoder
    name : str
    capacity : int
        Tokens that it may have at most.
    turn : callable
        Gives the context in which a block of tokens may be computed.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm import Policy, fetch_demo_model, load
    >>> path = fetch_demo_model()
    >>> first = load(path, "float32", policy=Policy(layers=(0, 12)))  # on one board
    >>> second = load(path, "float32", policy=Policy(layers=(12, 30)))  # on another one
    >>> ids = first.tokenizer.encode("The capital of France is")
    >>> states = first.sequence().run(ids)
    >>> states.shape
    (5, 576)
    >>> logits = second.sequence().run(states)
    >>> first.tokenizer.decode([int(logits.argmax())])
    ' Paris'
    """

    def __init__(
        self, model: Decoder, name: str, capacity: int, turn: Callable[[], AbstractContextManager[object]]
    ) -> None:
        config = model.config
        self._model, self._name, self._turn = model, name, turn
        self._part = config.part or Part(0, config.n_layers, config.n_layers)
        self._cache = model.new_cache(capacity)

    def __repr__(self) -> str:
        """Return how many tokens there are, and what they pass."""
        return f"<TokenSequence of {self._name}: {self.length} of {self._cache.capacity} tokens, {self._part}>"

    @property
    def length(self) -> int:
        """Tokens that have passed."""
        return self._cache.length

    def run(self, given: ArrayLike | Sequence[int], *, all_logits: bool = False) -> NDArray[np.float32]:
        """Pass tokens on, after those that passed before.

        Parameters
        ----------
        given : sequence of int, or ndarray of float32, shape (T, hidden)
            Token numbers for the first part, and for a whole model; for others what the part before gave of them.
        all_logits : bool, default False
            Whether the last part gives logits after every token, not only after the last.

        Returns
        -------
        ndarray of float32, shape (T, hidden), (vocab,) or (T, vocab)
            States; of the last part, logits.

        Raises
        ------
        npumatmul.llm.ContextFullError
            If there are more tokens than it may have; nothing was computed then.
        npumatmul.errors.ModelError
            If the model rotates long sequences otherwise than short ones, and this one would become long: it has to
            pass anew, as one.
        npumatmul.errors.ClosedError
            If the model is closed.
        ValueError, TypeError
            If these are no tokens, or states of another width.
        """
        rows: Any = self._tokens(given) if self._part.is_first else self._states(given)
        total = self.length + len(rows)
        self._check_length(len(rows), total)
        found: list[Float32] = []
        cache = self._cache
        for start in range(0, len(rows), PREFILL_CHUNK):
            some = rows[start : start + PREFILL_CHUNK]
            with self._turn():
                cache.settle()
                states = self._model.embed(some) if self._part.is_first else some
                beside = self._model.layer_inputs(some, states) if self._part.is_first else None
                end = len(some)
                first = 0 if all_logits else end - (start + end == len(rows))
                if self._part.is_last and first < end:
                    found.append(self._model.run_to_logits(states, cache, total, ((first, end),), beside=beside))
                else:
                    states = self._model.run_blocks(states, cache, total, beside=beside)
                    if not self._part.is_last:
                        found.append(states)
                cache.tokens.extend(some.tolist() if self._part.is_first else [0] * len(some))
        made = found[0] if len(found) == 1 else np.concatenate(found)
        return made[0] if self._part.is_last and not all_logits else made

    def truncate(self, length: int) -> int:
        """Forget all tokens but the first `length`; how many are left.

        Raises
        ------
        ValueError
            If there are fewer.
        """
        return self._cache.truncate(length)

    def _check_length(self, count: int, total: int) -> None:
        if total > self._cache.capacity:
            raise ContextFullError(
                f"{count} more tokens do not fit: the sequence has {self.length} of at most {self._cache.capacity}"
            )
        before = self._model.config.longest_short
        is_long = before is not None and total > before
        if self.length and is_long != self._cache.is_long:
            raise ModelError(
                f"sequences of more than {before} tokens are rotated otherwise in {self._name}, and this one would "
                f"become one; pass its {total} tokens at once through a new sequence"
            )
        self._cache.is_long = is_long

    def _tokens(self, given: Any) -> NDArray[np.int64]:
        numbers: Any = checked_ids(given, self._model.config.vocab_size, "the tokens of a sequence")
        return np.asarray(numbers, np.int64)

    def _states(self, given: Any) -> Float32:
        width = self._model.config.hidden_size
        states = np.asarray(given)
        if states.dtype != np.float32 or states.ndim != 2 or states.shape[1] != width or not len(states):
            raise ValueError(
                f"{self._part} of {self._name} take states of the part before, float32 of shape (T, {width}), not "
                f"{states.dtype} of shape {states.shape}"
            )
        if not np.isfinite(states).all():
            raise NotFiniteError("the states of a sequence hold an inf or nan")
        return np.ascontiguousarray(states)
