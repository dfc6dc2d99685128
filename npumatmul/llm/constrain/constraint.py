"""A grammar over the tokens of a vocabulary, and one answer that keeps to it."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.llm.constrain.automaton import Automaton, State
from npumatmul.llm.constrain.expressions import Expression
from npumatmul.llm.constrain.vocabulary import Vocabulary
from npumatmul.llm.tokenizers.protocol import Tokenizer

__all__ = ["Format", "FormatConstraint"]

MOST_MASKS = 512  # of a bit for each token

_vocabularies: weakref.WeakKeyDictionary[Tokenizer, Vocabulary] = weakref.WeakKeyDictionary()
_making = threading.Lock()


class Format:
    """A form that answers keep to.

    What may follow is worked out for all tokens at once, when a state of the grammar is reached for the first time, and
    kept for all answers of this form.

    Parameters
    ----------
    grammar : Expression
        What the answers are, as bytes.
    tokenizer : Tokenizer
        That of the model.

    Raises
    ------
    npumatmul.errors.ModelError
        If the model has no token that ends an answer.
    ValueError
        If the grammar has no text at all.
    """

    def __init__(self, grammar: Expression, tokenizer: Tokenizer) -> None:
        if not tokenizer.stop_ids:
            raise ModelError("the model has no token that ends an answer, so no answer can keep to a format")
        self._automaton = Automaton(grammar)
        self._tokenizer = tokenizer
        with _making:
            vocabulary = _vocabularies.get(tokenizer)
            if vocabulary is None:
                vocabulary = _vocabularies[tokenizer] = Vocabulary(tokenizer)
        self._vocabulary = vocabulary
        self._stops = np.array(sorted(tokenizer.stop_ids), np.int64)
        self._masks: OrderedDict[State, NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def constraint(self) -> FormatConstraint:
        """The constraint of one answer, to be given to `Model.generate` or `Model.chat`.

        Returns
        -------
        FormatConstraint
            With nothing chosen yet.
        """
        return FormatConstraint(self)

    @property
    def start(self) -> State:
        """The state of an answer in which nothing is chosen yet."""
        return self._automaton.start

    def mask(self, state: State) -> NDArray[np.bool_]:
        """Which tokens may follow in a state; stop tokens where the answer may end."""
        with self._lock:
            packed = self._masks.get(state)
            if packed is not None:
                self._masks.move_to_end(state)
                return np.unpackbits(packed, count=self._vocabulary.size).view(bool)
            made = self._vocabulary.allowed(self._automaton, state)
            made[self._stops] = None in state
            self._masks[state] = np.packbits(made)
            if len(self._masks) > MOST_MASKS:
                self._masks.popitem(last=False)
            return made

    def after(self, state: State, token: int) -> State:
        """The state after a token; the empty one where it is not allowed."""
        text = self._tokenizer.token_bytes(token)
        if not text:
            return frozenset()
        with self._lock:
            return self._automaton.after(state, text)

    def is_stop(self, token: int) -> bool:
        """Whether a token ends answers."""
        return token in self._tokenizer.stop_ids


class FormatConstraint:
    """Which tokens an answer may have next, so that it keeps to a `Format`.

    Attributes
    ----------
    finished : bool
        Whether nothing but the end may follow.
    complete : bool
        Whether what was chosen so far is an answer of this form.
    """

    def __init__(self, form: Format) -> None:
        self._form = form
        self._state = form.start
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow."""
        return self._ended or self._state == {None}

    @property
    def complete(self) -> bool:
        """Whether what was chosen so far is an answer of this form."""
        return None in self._state

    def allowed(self, logits: NDArray[np.float32]) -> None:
        """Take the tokens out that must not follow: their logits become ``-inf``.

        Parameters
        ----------
        logits : ndarray of float32, shape (vocab,)
            Scores, changed in place.

        Raises
        ------
        npumatmul.errors.ModelError
            If the vocabulary has no token to go on with.
        """
        mask = self._form.mask(self._state)
        if not mask.any():
            raise ModelError("the model's vocabulary has no token that the format of the answer could go on with")
        logits[: len(mask)][~mask] = -np.inf
        logits[len(mask) :] = -np.inf

    def accept(self, token: int) -> None:
        """Go on by a token that was chosen.

        Parameters
        ----------
        token : int
            Its number.

        Raises
        ------
        ValueError
            If it must not follow.
        """
        if self._ended:
            raise ValueError("the answer has ended, and no token follows")
        if self._form.is_stop(token) and None in self._state:
            self._ended = True
            return
        state = self._form.after(self._state, token)
        if not state:
            raise ValueError(f"token {token} must not follow: the answer would not keep to its format")
        self._state = state
