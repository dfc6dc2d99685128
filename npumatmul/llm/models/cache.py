"""The cache of a decoder: keys and values, and the tokens that they are of."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

from npumatmul.errors import UnusableFileError
from npumatmul.files.reading import parse_json
from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.nn import cache as nn_cache

__all__ = ["ContextFullError", "KVCache", "Stretch"]

CHUNK = 256
MOST = 1 << 62  # of numbers of tokens and rows in files
TOKENS, LONG, STRETCHES = "tokens", "is_long", "stretches"
"""Names of notes in files."""


class Stretch(NamedTuple):
    """Where rows of a picture end, and what is added to positions from there on.

    Attributes
    ----------
    stop, shift : int
    """

    stop: int
    shift: int


class ContextFullError(ValueError):
    """More tokens than the cache has room for."""


class KVCache(nn_cache.KVCache):
    """Keys and values of the tokens seen so far.

    Parameters
    ----------
    config : DecoderConfig
        The model's configuration.
    capacity : int
        Tokens there is room for. Memory is taken as they come.
    dtype : {"float32", "float16", "int8"}
        As what keys and values are kept.

    Attributes
    ----------
    tokens : list of int
        The tokens seen; negative numbers are rows from outside (`npumatmul.llm.Embedded`).
    stretches : list of Stretch
        Pictures among them, in order.
    capacity : int
        Tokens there is room for.
    is_long : bool
        Whether keys are rotated as those of a long sequence, where a model has two ways.

    Raises
    ------
    ValueError
        If the capacity is not positive.

    Examples
    --------
    >>> from npumatmul.llm import DecoderConfig, KVCache
    >>> config = DecoderConfig(n_layers=2, hidden_size=8, n_heads=2, n_kv_heads=1, head_dim=4, ffn_size=16,
    ...                        vocab_size=32, context_length=64)
    >>> KVCache(config, 16)
    <KVCache: 0 of 16 tokens>
    """

    def __init__(self, config: DecoderConfig, capacity: int, *, dtype: str = "float32") -> None:
        if capacity < 1:
            raise ValueError(f"the capacity of a cache is {capacity}; it must be 1 or more")
        super().__init__(
            **config.cache_layers,
            dtype=dtype,
            chunk=min(CHUNK, capacity),
            limit=capacity,
        )
        self.capacity = capacity
        self.tokens: list[int] = []
        self.stretches: list[Stretch] = []
        self.is_long = False

    def save(self, path: str | os.PathLike[str]) -> None:
        """As `npumatmul.nn.KVCache.save`; the tokens are in the file, too."""
        self.settle()
        self.notes = {**self.notes, TOKENS: json.dumps(self.tokens), LONG: json.dumps(self.is_long)}
        self.notes[STRETCHES] = json.dumps(self.stretches)
        super().save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KVCache:
        """Read a cache from a file of `save`; it is of use to the model that it was saved of.

        Raises
        ------
        OSError
            If the file cannot be read.
        npumatmul.errors.UnusableFileError
            If it is none of such a cache, is damaged, or was made by a newer npumatmul.
        """
        read = nn_cache.KVCache.load(path)
        try:
            tokens, is_long = (parse_json(read.notes.pop(name)) for name in (TOKENS, LONG))
            stretches = parse_json(read.notes.pop(STRETCHES, "[]"))
        except (KeyError, ValueError) as error:
            raise UnusableFileError(f"{path} has no tokens, so it is no cache of a language model") from error
        right = isinstance(tokens, list) and all(type(each) is int and abs(each) <= MOST for each in tokens)
        if (
            not right
            or len(tokens) != read.offset
            or type(is_long) is not bool
            or read.limit is None
            or not _are_stretches(stretches, len(tokens))
        ):
            raise UnusableFileError(f"the tokens in {path} are not those of its keys")
        made = cls.__new__(cls)
        vars(made).update(vars(read))
        made.capacity, made.tokens, made.is_long = read.limit, tokens, is_long
        made.stretches = [Stretch(*each) for each in stretches]
        made.shift = made.stretches[-1].shift if made.stretches else 0
        return made

    def __repr__(self) -> str:
        """Return how full the cache is."""
        return f"<KVCache: {self.length} of {self.capacity} tokens>"

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    def extend(self, tokens: list[int], stretches: Sequence[Stretch] = ()) -> None:
        """Take tokens whose keys and values are there into the cache, and the pictures that end with them."""
        self.stretches.extend(stretches)
        self.tokens.extend(tokens)
        if stretches:
            self.shift = stretches[-1].shift

    def settle(self) -> None:
        """Forget keys and values of tokens that did not come to be part of the cache: an interrupt ended their run."""
        if self.offset > len(self.tokens):
            self.trim(self.offset - len(self.tokens))
        if self.stretches:
            self._forget_pictures()

    def truncate(self, length: int) -> int:
        """Forget all tokens but the first `length`.

        Parameters
        ----------
        length : int
            Tokens to keep.

        Returns
        -------
        int
            How many are left: none where a layer with a sliding window has given up what they would look at, or one has
            a state, which holds all tokens in one.

        Raises
        ------
        ValueError
            If there are fewer.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"the cache holds {self.length} tokens and cannot be cut to {length}")
        self.settle()
        try:
            self.trim(self.length - length)
        except ValueError:  # it has windows or states, which are of no use without what came before
            length = 0
            self.clear()
            self.is_long = False
        del self.tokens[length:]
        self._forget_pictures()
        return length

    def _forget_pictures(self) -> None:
        """Forget those whose last row is not there."""
        while self.stretches and self.stretches[-1].stop > len(self.tokens):
            self.stretches.pop()
        self.shift = self.stretches[-1].shift if self.stretches else 0


def _are_stretches(found: object, tokens: int) -> bool:
    if not isinstance(found, list) or not all(isinstance(each, list) and len(each) == 2 for each in found):
        return False
    if not all(type(number) is int and abs(number) <= MOST for each in found for number in each):
        return False
    stops = [0, *(stop for stop, _ in found)]
    return stops == sorted(stops) and stops[-1] <= tokens and all(stop + shift >= 0 for stop, shift in found)
