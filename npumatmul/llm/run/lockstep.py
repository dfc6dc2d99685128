"""Several sequences at once, all equally long: each step reads every weight once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.models.cache import ContextFullError
from npumatmul.llm.models.decoder import Decoder
from npumatmul.nn.cache import KVCache
from npumatmul.nn.product import Float32

__all__ = ["Lockstep"]


class Lockstep:
    """Sequences that grow together by a token each.

    Parameters
    ----------
    model : Decoder
        The model.
    count : int
        Sequences.
    capacity : int
        Tokens of each that there is room for.

    Raises
    ------
    ValueError
        If `count` or `capacity` is not positive, or the model cannot read so many tokens.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model, load_model, numpy_pack
    >>> from npumatmul.llm.run.lockstep import Lockstep
    >>> model = load_model(fetch_demo_model(), pack=numpy_pack).model
    >>> pair = Lockstep(model, 2, 16)
    >>> pair.step([504, 338]).shape, pair.length
    ((2, 49152), 1)
    """

    def __init__(self, model: Decoder, count: int, capacity: int) -> None:
        c = model.config
        if count < 1 or not 1 <= capacity <= c.context_length:
            raise ValueError(f"{count} sequences of {capacity} tokens; the model reads 1 to {c.context_length}")
        self._model = model
        self._cache = KVCache(
            **c.cache_layers,
            dtype="float32",
            chunk=capacity,
            batch=count,
        )
        self._count, self._capacity = count, capacity

    @property
    def length(self) -> int:
        """Tokens of each so far."""
        return self._cache.offset

    @staticmethod
    def bytes_per_token(model: Decoder) -> int:
        """Bytes that a token of one sequence takes."""
        c = model.config
        own = [each for each in c.layers if each.mixer is None and each.follows is None]
        return sum(2 * 4 * (each.n_kv_heads or c.n_kv_heads) * (each.head_dim or c.head_dim) for each in own)

    def step(self, tokens: Sequence[int] | NDArray[np.int64]) -> Float32:
        """Add a token to each sequence.

        Parameters
        ----------
        tokens : sequence of int, one for each sequence
            Token numbers.

        Returns
        -------
        ndarray of float32, shape (count, vocab)
            Logits of what follows each.

        Raises
        ------
        ContextFullError
            If there is no more room.
        ValueError
            If there is not one token for each sequence, or one is not in the vocabulary.
        """
        ids = np.asarray(tokens, np.int64)
        if ids.shape != (self._count,) or ids.min() < 0 or ids.max() >= self._model.config.vocab_size:
            raise ValueError(f"a token of the vocabulary is needed for each of the {self._count} sequences")
        if self.length >= self._capacity:
            raise ContextFullError(f"the sequences have {self.length} tokens, and there is room for no more")
        x = self._model.embed(ids[:, None])
        beside = self._model.layer_inputs(ids[:, None], x)
        x = self._model.run_blocks(x, self._cache, self._capacity, beside=beside)
        return self._model.logits(x[:, 0])
