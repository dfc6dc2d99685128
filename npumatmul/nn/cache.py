"""`KVCache`: keys and values of the tokens that a model has seen."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from npumatmul.nn.cache_file import read_cache, write_cache
from npumatmul.nn.cache_rows import FORMATS, LayerRows
from npumatmul.nn.module import check_size

__all__ = ["CacheFullError", "KVCache"]


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
        As what they are kept: ``"float16"``, ``"float32"``, or ``"int8"`` with a scale for each token and head, so that
        values are off by at most 1/254 of the largest in their row.
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
    shift : int
        What is added to `offset` where positions of the next tokens are told: not 0 after pictures, whose rows have
        positions of their own.
    windows : tuple of int or None
        Of each layer.
    limit : int or None
    notes : dict of str to str
        What a program wants to remember with the cache, such as its tokens and the model; files have it, too.

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
        if dtype not in FORMATS:
            raise ValueError(f"KVCache: dtype is {dtype!r}; it can be {', '.join(map(repr, FORMATS))}")
        if limit is not None:
            check_size("KVCache", limit=limit)
        windows = tuple(window) if isinstance(window, Sequence) else (window,) * layers
        if len(windows) != layers:
            raise ValueError(f"KVCache: there are {layers} layers, but windows for {len(windows)}")
        for each in windows:
            if each is not None:
                check_size("KVCache", window=each)
        self.offset = 0
        self.shift = 0
        self.windows = windows
        self.limit = limit
        self.notes: dict[str, str] = {}
        self._dtype, self._rows, self._last, self._chunk = dtype, (batch, kv_heads, head_dim), layers - 1, chunk
        self._layers = [LayerRows((batch, kv_heads, head_dim), FORMATS[dtype], each, chunk) for each in windows]

    def __repr__(self) -> str:
        _, heads, dim = self._rows
        return f"<KVCache: {self.offset} tokens, {len(self._layers)} layers of {heads} x {dim}, {self._dtype}>"

    @property
    def position(self) -> int:
        """Position of the next token: `offset` and `shift`."""
        return self.offset + self.shift

    @property
    def nbytes(self) -> int:
        """Bytes of memory of its own; what it shares belongs to the cache that it was forked from."""
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
        k, v : ndarray or CachedRows, shape (batch, kv heads, S, head dim)
            All tokens up to the new ones, until the next update: of a layer with a window, those that the window of
            the first new token reaches. Floats in one piece of memory are views of it; what else there is, is read by
            `scaled_dot_product_attention` block by block, and becomes an array by ``np.asarray``.

        Raises
        ------
        CacheFullError
            If there would be more than `limit` tokens; nothing has changed then.
        ValueError
            If shapes do not fit.
        NotFiniteError
            If an inf or nan is to be kept as int8.
        OverflowError
            If a value is beyond float16's range, and is to be kept as that.
        """
        batch, heads, dim = self._rows
        if not 0 <= layer <= self._last:
            raise ValueError(f"KVCache.update: there is no layer {layer}; layers are 0 to {self._last}")
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
            if layer.window is not None and layer.needs(length) < layer.base:
                raise ValueError(
                    f"KVCache.trim: a layer with a window of {layer.window} keeps the last tokens only, from number "
                    f"{layer.base} on; {count} cannot be forgotten any more"
                )
        self.offset = length

    def fork(self) -> KVCache:
        """A cache with the same tokens, which then goes its own way: for several answers to one prompt.

        Memory of the tokens so far is shared, but for layers with a window, whose few tokens are copied.

        Examples
        --------
        >>> import numpy as np
        >>> from npumatmul import nn
        >>> cache = nn.KVCache(1, 1, 4)
        >>> _ = cache.update(0, np.ones((1, 1, 9, 4), np.float32), np.ones((1, 1, 9, 4), np.float32))
        >>> other = cache.fork()
        >>> other.nbytes, other.offset
        (0, 9)
        >>> _ = other.update(0, np.zeros((1, 1, 1, 4), np.float32), np.zeros((1, 1, 1, 4), np.float32))
        >>> cache.offset, other.offset
        (9, 10)
        """
        made = copy.copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list | dict):  # also what a class that is derived of this one has
                setattr(made, name, copy.copy(value))
        made._layers = [layer.fork(self.offset) for layer in self._layers]
        return made

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the cache into a file, in the safetensors format, with checksums.

        Parameters
        ----------
        path : str or os.PathLike
            A file that exists is replaced once all is written.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        batch, heads, dim = self._rows
        content = {
            "layers": len(self._layers),
            "kv_heads": heads,
            "head_dim": dim,
            "dtype": self._dtype,
            "window": list(self.windows),
            "chunk": self._chunk,
            "batch": batch,
            "limit": self.limit,
            "offset": self.offset,
            "notes": self.notes,
        }
        write_cache(path, content, (layer.stored(self.offset) for layer in self._layers))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> KVCache:
        """Read a cache from a file of `save`.

        Raises
        ------
        OSError
            If the file cannot be read.
        UnusableFileError
            If it is none of a cache, is damaged, or was made by a newer npumatmul.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> from npumatmul import nn
        >>> cache = nn.KVCache(1, 1, 4, dtype="int8")
        >>> _ = cache.update(0, np.ones((1, 1, 9, 4), np.float32), np.ones((1, 1, 9, 4), np.float32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache.save(folder + "/cache.safetensors")
        ...     nn.KVCache.load(folder + "/cache.safetensors")
        <KVCache: 9 tokens, 1 layers of 1 x 4, int8>
        """
        with read_cache(path) as file:
            options, offset, notes = file.content()
            made = cls(**options)
            dim, batch, heads = options["head_dim"], options["batch"], options["kv_heads"]
            for i, layer in enumerate(made._layers):
                count = offset - layer.needs(offset)
                wanted = {
                    f"{name}.{called}": ((batch, heads, count, width), dtype)
                    for called, width, dtype in FORMATS[made._dtype].columns(dim)
                    for name in ("keys", "values")
                }
                layer.restore(offset, file.arrays(i, wanted))
        made.offset, made.notes = offset, notes
        return made
