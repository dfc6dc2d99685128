"""`CacheBatch`: caches of several sequences whose new tokens are rows of one array."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.layers import RECORDER, scale
from npumatmul.nn.cache import KVCache

__all__ = ["CacheBatch"]


class CacheBatch:
    """Caches of sequences that go through a model together, each with a length of its own.

    Layers are given the new tokens of all of them, one sequence after the other, as rows of one array: a product reads
    its weight once for all rows, and each sequence attends to its own cache, token by token: what comes out is, but for
    products that depend on the number of their rows, what each token gives that comes alone.

    Parameters
    ----------
    caches : sequence of KVCache
        Of one sequence each; none comes twice.
    counts : sequence of int
        New tokens of each.

    Attributes
    ----------
    caches : tuple of KVCache
    counts : tuple of int

    Raises
    ------
    ValueError
        If there is not one count for each cache, one is not positive, or a cache comes twice.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> attention = nn.Attention(8, 2, rope=nn.RoPE(4), scheme="float32")
    >>> rng = np.random.default_rng(0)
    >>> shapes = attention.parameter_shapes()
    >>> _ = attention.load_state_dict({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    >>> one, other = (nn.KVCache(1, 2, 4, dtype="float32") for _ in range(2))
    >>> x = rng.standard_normal((5, 8), np.float32)
    >>> attention(x, cache=nn.CacheBatch([one, other], [2, 3])).shape, one.offset, other.offset
    ((5, 8), 2, 3)
    """

    def __init__(self, caches: Sequence[KVCache], counts: Sequence[int]) -> None:
        self.caches, self.counts = tuple(caches), tuple(counts)
        if len(self.caches) != len(self.counts) or not self.counts or min(self.counts) < 1:
            raise ValueError("CacheBatch: each cache needs a number of new tokens, 1 or more")
        if len({id(each) for each in self.caches}) != len(self.caches):
            raise ValueError("CacheBatch: a cache comes twice; a sequence has one place in a batch")

    def __repr__(self) -> str:
        return f"<CacheBatch: {sum(self.counts)} tokens of {len(self.caches)} sequences>"

    def each(self, rows: int, compute: Callable[[KVCache, slice], NDArray[Any]]) -> NDArray[Any]:
        """What is computed of each cache and its rows, one after the other.

        Raises
        ------
        ValueError
            If there are not as many rows as new tokens.
        """
        recorder = RECORDER.get()
        if recorder is None:
            return np.concatenate([compute(cache, own) for cache, own in self._parts(rows)])
        whole: NDArray[Any] | None = None
        for number, (cache, own) in enumerate(self._parts(rows)):
            recorder.sequence = number
            part = compute(cache, own)
            if whole is None:
                whole = np.empty((rows, *part.shape[1:]), part.dtype)
            scale(part, 1.0, whole[own])
        recorder.sequence = 0
        assert whole is not None
        return whole

    def _parts(self, rows: int) -> Iterator[tuple[KVCache, slice]]:
        if rows != sum(self.counts):
            raise ValueError(f"there are {rows} rows, but {sum(self.counts)} new tokens in {self!r}")
        start = 0
        for cache, count in zip(self.caches, self.counts, strict=True):
            yield cache, slice(start, start + count)
            start += count
