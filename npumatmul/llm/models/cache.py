"""The cache of a decoder: keys and values, and the tokens that they are of."""

from __future__ import annotations

from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.nn import cache as nn_cache

__all__ = ["ContextFullError", "KVCache"]

CHUNK = 256


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
    dtype : {"float32", "float16"}
        As what keys and values are kept.

    Attributes
    ----------
    tokens : list of int
        The tokens seen.
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
        self._config = config
        self._kept_as = dtype
        self.capacity = capacity
        self.tokens: list[int] = []
        self._empty()

    def _empty(self) -> None:
        c = self._config
        super().__init__(
            c.n_layers,
            c.n_kv_heads,
            c.head_dim,
            dtype=self._kept_as,
            window=[layer.window for layer in c.layers],
            chunk=min(CHUNK, self.capacity),
            limit=self.capacity,
        )
        self.is_long = False

    def __repr__(self) -> str:
        """Return how full the cache is."""
        return f"<KVCache: {self.length} of {self.capacity} tokens>"

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    def settle(self) -> None:
        """Forget keys and values of tokens that did not come to be part of the cache: an interrupt ended their run."""
        if self.offset > len(self.tokens):
            self.trim(self.offset - len(self.tokens))

    def truncate(self, length: int) -> int:
        """Forget all tokens but the first `length`.

        Parameters
        ----------
        length : int
            Tokens to keep.

        Returns
        -------
        int
            How many are left: none where a layer with a sliding window has given up what they would look at.

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
        except ValueError:  # it is of windows, and they are of no use without what came before
            length = 0
            self._empty()
        del self.tokens[length:]
        return length
