"""Several sequences at once, all equally long: each step reads every weight once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.models.attention import Float32, attention
from npumatmul.llm.models.decoder import ContextFullError, LlamaModel

__all__ = ["Lockstep"]


class Lockstep:
    """Sequences that grow together by a token each.

    Parameters
    ----------
    model : LlamaModel
        The model.
    count : int
        Sequences.
    capacity : int
        Tokens of each that there is room for.

    Attributes
    ----------
    length : int
        Tokens of each so far.

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

    def __init__(self, model: LlamaModel, count: int, capacity: int) -> None:
        c = model.config
        if count < 1 or not 1 <= capacity <= c.context_length:
            raise ValueError(f"{count} sequences of {capacity} tokens; the model reads 1 to {c.context_length}")
        self._model = model
        shape = (c.n_layers, count, c.n_kv_heads, capacity, c.head_dim)
        self._keys: Float32 = np.empty(shape, np.float32)
        self._values: Float32 = np.empty(shape, np.float32)
        self._count, self._capacity = count, capacity
        self.length = 0

    @staticmethod
    def bytes_per_token(model: LlamaModel) -> int:
        """Bytes that a token of one sequence takes."""
        c = model.config
        return 2 * 4 * c.n_layers * c.n_kv_heads * c.head_dim

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
        x = self._model.embed(ids)
        rotation = self._model.rope.rows(self.length, self.length + 1)
        for layer in range(self._model.config.n_layers):
            x = self._model.run_block_with(layer, x, partial(self._attend, layer, rotation))
        self.length += 1
        return self._model.logits(x)

    def _attend(self, layer: int, rotation: NDArray[np.complex64], qkv: Float32) -> Float32:
        """Each row attends to its own sequence."""
        keys, values = self._keys[layer], self._values[layer]
        return attention(qkv, rotation, keys, values, self.length, self._model.config)
