"""`KVCache`: keys and values of the tokens that a model has seen."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.nn.module import check_size

__all__ = ["CacheFullError", "KVCache"]

_DTYPES = {name: np.dtype(name) for name in ("float16", "float32")}


class CacheFullError(ValueError):
    """More tokens than a cache may hold."""


class KVCache:
    """Keys and values of the tokens so far, of all layers of a model.

    Memory grows by `chunk` tokens. Of a layer with a sliding window no more than that window and a chunk are kept.

    Parameters
    ----------
    layers : int
    kv_heads, head_dim : int
        Heads of keys and values, and values of each.
    dtype : str
        As what they are kept: ``"float16"`` or ``"float32"``.
    window : int, or sequence of int or None, optional
        How many tokens a layer looks back at most: one number for all layers, or one for each.
    chunk : int
        By how many tokens memory grows.
    batch : int
        Sequences, all of the same length.
    limit : int, optional
        Tokens that there may be.

    Attributes
    ----------
    offset : int
        Tokens that all layers have seen. It grows when the last layer is given its keys, so that whatever ends a model
        half-way leaves the cache as it was.
    windows : tuple of int or None
        Of each layer.

    Raises
    ------
    ValueError
        If a size is not positive, or there is no such dtype.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> cache = nn.KVCache(1, 2, 4)
    >>> k, v = cache.update(0, np.ones((1, 2, 3, 4), np.float32), np.ones((1, 2, 3, 4), np.float32))
    >>> k.shape, k.dtype, cache
    ((1, 2, 3, 4), dtype('float16'), <KVCache: 3 tokens, 1 layers of 2 x 4, float16>)
    >>> cache.trim(2)
    >>> cache.offset
    1
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        *,
        dtype: str = "float16",
        window: int | Sequence[int | None] | None = None,
        chunk: int = 256,
        batch: int = 1,
        limit: int | None = None,
    ) -> None:
        check_size("KVCache", layers=layers, kv_heads=kv_heads, head_dim=head_dim, chunk=chunk, batch=batch)
        if dtype not in _DTYPES:
            raise ValueError(f"KVCache: dtype is {dtype!r}; it can be {', '.join(map(repr, _DTYPES))}")
        if limit is not None:
            check_size("KVCache", limit=limit)
        windows = tuple(window) if isinstance(window, Sequence) else (window,) * layers
        if len(windows) != layers:
            raise ValueError(f"KVCache: there are {layers} layers, but windows for {len(windows)}")
        for each in windows:
            if each is not None:
                check_size("KVCache", window=each)
        self.offset = 0
        self.windows = windows
        self.limit = limit
        self._dtype, self._rows, self._last = dtype, (batch, kv_heads, head_dim), layers - 1
        self._layers = [_Layer((batch, kv_heads, head_dim), _DTYPES[dtype], each, chunk) for each in windows]

    def __repr__(self) -> str:
        _, heads, dim = self._rows
        return f"<KVCache: {self.offset} tokens, {len(self._layers)} layers of {heads} x {dim}, {self._dtype}>"

    @property
    def nbytes(self) -> int:
        """Bytes of memory that are taken."""
        return sum(layer.nbytes for layer in self._layers)

    def update(self, layer: int, k: NDArray[Any], v: NDArray[Any]) -> tuple[Any, Any]:
        """Store keys and values of the tokens after `offset`, and return what the layer's queries look at.

        Parameters
        ----------
        layer : int
            Layers come in order; with the last one the tokens belong to the cache.
        k, v : ndarray of float, shape (batch, kv heads, T, head dim)
            Keys as they are looked at, so rotated.

        Returns
        -------
        k, v : ndarray, shape (batch, kv heads, S, head dim)
            Views of all tokens up to the new ones, until the next update: of a layer with a window, of at least those
            that the window of the first new token reaches.

        Raises
        ------
        CacheFullError
            If there would be more than `limit` tokens; nothing has changed then.
        ValueError
            If shapes do not fit.
        """
        batch, heads, dim = self._rows
        if k.ndim != 4 or k.shape != v.shape or k.shape[:2] != (batch, heads) or k.shape[3] != dim:
            raise ValueError(
                f"KVCache.update: k of shape {k.shape} and v of {v.shape} have to be {(batch, heads, 'T', dim)}"
            )
        count = k.shape[2]
        if self.limit is not None and self.offset + count > self.limit:
            raise CacheFullError(
                f"KVCache.update: {count} more tokens do not fit: there are {self.offset}, and may be {self.limit}"
            )
        seen = self._layers[layer].update(self.offset, k, v)
        if layer == self._last:
            self.offset += count
        return seen

    def trim(self, count: int) -> None:
        """Forget the last tokens.

        Parameters
        ----------
        count : int
            How many.

        Raises
        ------
        ValueError
            If there are fewer, or a layer with a window has given up what it would have to look at then.
        """
        count = operator.index(count)
        if not 0 <= count <= self.offset:
            raise ValueError(f"KVCache.trim: {count} of {self.offset} tokens cannot be forgotten")
        length = self.offset - count
        for layer in self._layers:
            if layer.needs(length) < layer.base:
                raise ValueError(
                    f"KVCache.trim: a layer with a window of {layer.window} keeps the last tokens only, from number "
                    f"{layer.base} on; {count} cannot be forgotten any more"
                )
        self.offset = length


class _Layer:
    """Keys and values of one layer, of tokens from number `base` on."""

    def __init__(self, rows: tuple[int, int, int], dtype: np.dtype[Any], window: int | None, chunk: int) -> None:
        self.base, self.window = 0, window
        self._chunk, self._capacity = chunk, 0
        batch, heads, dim = rows
        self._keys: NDArray[Any] = np.empty((batch, heads, 0, dim), dtype)
        self._values: NDArray[Any] = np.empty((batch, heads, 0, dim), dtype)

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def needs(self, offset: int) -> int:
        """Number of the first token that a token of number `offset` looks at."""
        return 0 if self.window is None else max(0, offset - self.window + 1)

    def update(self, offset: int, k: NDArray[Any], v: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        start = offset - self.base
        stop = start + k.shape[2]
        if stop > self._capacity:
            self._make_room(offset, k.shape[2])
            start = offset - self.base
            stop = start + k.shape[2]
        self._keys[:, :, start:stop] = k
        self._values[:, :, start:stop] = v
        first = 0 if self.window is None else max(0, start - self.window + 1)
        return self._keys[:, :, first:stop], self._values[:, :, first:stop]

    def _make_room(self, offset: int, count: int) -> None:
        """Move to the front what is still looked at; if that is not enough, into longer arrays."""
        first = self.needs(offset)
        kept, drop = offset - first, first - self.base
        wanted = kept + count
        if self.window is not None:
            wanted = max(wanted, min(self.window + self._chunk, offset + count))
        if wanted > self._capacity:
            capacity = -(-wanted // self._chunk) * self._chunk
            for name in ("_keys", "_values"):
                before = getattr(self, name)
                longer = np.empty((*before.shape[:2], capacity, before.shape[3]), before.dtype)
                longer[:, :, :kept] = before[:, :, drop : drop + kept]
                setattr(self, name, longer)
            self._capacity = capacity
        elif drop:
            for array in (self._keys, self._values):
                array[:, :, :kept] = array[:, :, drop : drop + kept]
        self.base = first
