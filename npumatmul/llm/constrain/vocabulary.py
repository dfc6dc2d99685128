"""The tokens of a vocabulary as a tree, so that all of them are followed through an automaton at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.constrain.automaton import DEAD, Automaton, State
from npumatmul.llm.tokenizers.protocol import Tokenizer

__all__ = ["Vocabulary"]

LONGEST = 256  # bytes of a token; longer ones are not chosen


@dataclass(frozen=True)
class _Level:
    """What tokens have as their n-th byte: one entry for all tokens that begin alike."""

    parents: NDArray[np.int32]
    """Which entry of the level before each one goes on from."""
    bytes: NDArray[np.uint8]
    tokens: NDArray[np.int32]
    """Tokens that end here,"""
    at: NDArray[np.int32]
    """and at which entries."""


class Vocabulary:
    """The texts of all tokens that have one.

    Parameters
    ----------
    tokenizer : Tokenizer
        Whose tokens they are. Control tokens have no text.

    Attributes
    ----------
    size : int
        How many tokens there are, with those that have none.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
        self.size = len(texts)
        self._levels = _levels(texts)

    def allowed(self, automaton: Automaton, state: State) -> NDArray[np.bool_]:
        """Which tokens may follow, shape (size,)."""
        automaton.begin()
        made = np.zeros(self.size, bool)
        states = np.array([automaton.number(state)], np.int32)
        for level in self._levels:
            automaton.fill(states)
            before = states[level.parents]
            alive = np.flatnonzero(before != DEAD)
            if not len(alive):
                break
            states = np.zeros(len(before), np.int32)
            states[alive] = automaton.table[before[alive], level.bytes[alive]]
            made[level.tokens] = states[level.at] != DEAD
        return made


def _levels(texts: list[bytes]) -> list[_Level]:
    lengths = np.array([len(text) for text in texts], np.int64)
    lengths[lengths > LONGEST] = 0
    starts = np.concatenate([[0], np.cumsum([len(text) for text in texts])[:-1]]).astype(np.int64)
    data = np.frombuffer(b"".join(texts), np.uint8)
    tokens = np.flatnonzero(lengths)
    entries = np.zeros(len(tokens), np.int64)
    levels = []
    for depth in range(int(lengths.max(initial=0))):
        kept = lengths[tokens] > depth
        tokens, entries = tokens[kept], entries[kept]
        keys, entries = np.unique(entries * 256 + data[starts[tokens] + depth], return_inverse=True)
        ends = lengths[tokens] == depth + 1
        levels.append(
            _Level(
                (keys // 256).astype(np.int32),
                (keys % 256).astype(np.uint8),
                tokens[ends].astype(np.int32),
                entries[ends].astype(np.int32),
            )
        )
    return levels
