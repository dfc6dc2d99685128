"""`KVCache`: keys and values of the tokens that a model has seen, and states of layers that have these instead."""

from __future__ import annotations

import copy
import operator
import os
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from npumatmul.host.attention import AttentionOptions, attend
from npumatmul.host.attention import layers as structs_of
from npumatmul.host.layers import RECORDER
from npumatmul.nn.cache_file import read_cache, write_cache
from npumatmul.nn.cache_rows import FORMATS, LayerRows, LayerShared
from npumatmul.nn.cache_state import LayerState, Shapes, check_shapes
from npumatmul.nn.module import check_size
from npumatmul.nn.product import Float32

__all__ = ["CacheFullError", "KVCache"]

_Cache = TypeVar("_Cache", bound="KVCache")


class CacheFullError(ValueError):
    """More tokens than a cache may hold."""


class KVCache:
    """Keys and values of the tokens so far, of all layers of a model.

    Memory grows by `chunk` tokens. Of a layer with a sliding window no more than that window and a chunk are kept. A
    layer such as `GatedDeltaNet` has a state instead: it is kept as of the last token, and as of before the last call.

    Parameters
    ----------
    layers : int
    kv_heads, head_dim : int, or sequence of int
        Heads of keys and values, and values of each: of all layers, or of each.
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
    states : sequence of None or of sequences of tuples of int, optional
        For each layer None, or the shapes of the float32 arrays that it keeps of each sequence instead of keys and
        values.
    follows : sequence of int or None, optional
        For each layer None, or the number of one before it whose keys and values it looks at: `shared` gives them.

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
    followed : bool
        Whether a layer looks at keys and values of another.
    limit : int or None
    structs : ctypes array of KvLayer
        Where keys and values of each layer stand, for C (`native/include/npumatmul_attention.h`). It stays the same
        array while the cache lives, and is up to date after each call. What others store there counts when `offset`
        grows.
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
        kv_heads: int | Sequence[int],
        head_dim: int | Sequence[int],
        *,
        dtype: str = "float16",
        window: int | Sequence[int | None] | None = None,
        chunk: int = 256,
        batch: int = 1,
        limit: int | None = None,
        states: Sequence[Shapes | None] | None = None,
        follows: Sequence[int | None] | None = None,
    ) -> None:
        check_size("KVCache", layers=layers, chunk=chunk, batch=batch)
        heads, dims = (tuple(x) if isinstance(x, Sequence) else (x,) * layers for x in (kv_heads, head_dim))
        if not len(heads) == len(dims) == layers:
            raise ValueError(f"KVCache: there are {layers} layers, but sizes for {len(heads)} and {len(dims)}")
        for each_heads, each_dim in {*zip(heads, dims, strict=True)}:
            check_size("KVCache", kv_heads=each_heads, head_dim=each_dim)
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
        given = [None] * layers if states is None else list(states)
        if len(given) != layers:
            raise ValueError(f"KVCache: there are {layers} layers, but states for {len(given)}")
        self.shift = 0
        self.windows = windows
        self.limit = limit
        self.notes: dict[str, str] = {}
        self._dtype, self._last, self._chunk, self._batch = dtype, layers - 1, chunk, batch
        self._rows = tuple((batch, *each) for each in zip(heads, dims, strict=True))
        self._follows = (None,) * layers if follows is None else tuple(follows)
        self._sources = frozenset(self._follows)
        self.followed = self._sources != frozenset({None})
        self._states = tuple(None if each is None else check_shapes(each, "KVCache") for each in given)
        self._check_follows()
        self.structs = structs_of(layers)
        self.clear()

    def _check_follows(self) -> None:
        if len(self._follows) != len(self._rows):
            raise ValueError(f"KVCache: there are {len(self._rows)} layers, but follows for {len(self._follows)}")
        for i, source in enumerate(self._follows):
            if source is None:
                continue
            if type(source) is not int or not 0 <= source < i or self._follows[source] is not None:
                raise ValueError(f"KVCache: layer {i} cannot follow {source!r}, which is no layer of its own before it")
            if self._states[i] is not None or self._states[source] is not None or self._rows[i] != self._rows[source]:
                raise ValueError(f"KVCache: layer {i} follows {source}, whose keys and values are of another size")
            if self.windows[i] != self.windows[source]:
                raise ValueError(f"KVCache: layer {i} follows {source}, which has another window")

    def clear(self) -> None:
        """Forget all tokens, and give their memory back."""
        self.offset = 0
        #: Layers that others follow and that were given the tokens of this run.
        self._given: set[int | None] = set()
        self._layers: list[LayerRows | LayerState | LayerShared] = [self._made(i) for i in range(len(self._rows))]
        self._tell()

    def _tell(self) -> None:
        for i, layer in enumerate(self._layers):
            if isinstance(layer, LayerRows):
                layer.tell_in(
                    self.structs[i], [self.structs[j] for j, source in enumerate(self._follows) if source == i]
                )

    def _made(self, i: int) -> LayerRows | LayerState | LayerShared:
        shapes, source = self._states[i], self._follows[i]
        if source is not None:
            return LayerShared(source)
        if shapes is not None:
            return LayerState(self._batch, shapes)
        return LayerRows(self._rows[i], FORMATS[self._dtype], self.windows[i], self._chunk)

    def __repr__(self) -> str:
        _, heads, dim = self._rows[0]
        return f"<KVCache: {self.offset} tokens, {len(self._layers)} layers of {heads} x {dim}, {self._dtype}>"

    @property
    def position(self) -> int:
        """Position of the next token: `offset` and `shift`."""
        return self.offset + self.shift

    @property
    def nbytes(self) -> int:
        """Bytes of memory of its own; what it shares belongs to the cache that it was forked from."""
        return sum(layer.nbytes for layer in self._layers)

    def memory(self) -> dict[int, int]:
        """Bytes of each array that keys and values stand in, also of those that other caches share, by its identity."""
        return {id(part): part.nbytes for layer in self._layers for part in layer.parts()}

    @property
    def layout(self) -> tuple[object, ...]:
        """What tells caches of different models apart: sizes, dtype, and windows and states of layers."""
        return self._rows, self._dtype, self.windows, self._states, self._follows

    @property
    def trimmable(self) -> bool:
        """Whether any number of the last tokens can be forgotten.

        They cannot where a layer has a state, or where one with a window has given up what it looked at before. Who may
        want to go back forks the cache first.
        """
        return not any(
            isinstance(layer, LayerState) or (isinstance(layer, LayerRows) and layer.window and layer.base)
            for layer in self._layers
        )

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
        offset, count = self.offset, k.shape[2] if k.ndim == 4 else 0
        return self._stored(layer, k, v).looked_at(offset, count)

    def _stored(self, layer: int, k: NDArray[Any], v: NDArray[Any]) -> LayerRows:
        """Store keys and values, and return the layer that has them."""
        rows = self._layer(layer, "KVCache.update")
        if not isinstance(rows, LayerRows):
            what, other = ("a state", "set_state") if isinstance(rows, LayerState) else ("keys of another", "shared")
            raise ValueError(f"KVCache.update: layer {layer} has {what}, and no keys of its own; {other} is for it")
        batch, heads, dim = self._rows[layer]
        if k.ndim != 4 or k.shape != v.shape or k.shape[:2] != (batch, heads) or k.shape[3] != dim:
            raise ValueError(
                f"KVCache.update: k of shape {k.shape} and v of {v.shape} have to be {(batch, heads, 'T', dim)}"
            )
        count = k.shape[2]
        self._check_room(count, "KVCache.update")
        rows.put(self.offset, k, v)
        if layer in self._sources:
            self._given.add(layer)
        if layer == self._last:
            self.offset += count
        return rows

    def attend(
        self, layer: int, how: AttentionOptions, q: Float32, k: NDArray[Any] | None, v: NDArray[Any] | None
    ) -> Float32:
        """Store keys and values of the tokens after `offset`, and attend to what the layer has then, in one call of C.

        Parameters
        ----------
        layer : int
            As for `update`, or with None for `k` as for `shared`.
        how : AttentionOptions
            Causal (`npumatmul.nn.attend.options`).
        q : ndarray of float32, shape (batch, heads, T, head dim)
        k, v : ndarray of float, shape (batch, kv heads, T, head dim), or None

        Returns
        -------
        ndarray of float32, of the shape of `q`
            The bits of a token's row do not depend on T. Those of `scaled_dot_product_attention` of what `update` gives
            are the same, but with a window, where they may be rounded differently.

        Raises
        ------
        CacheFullError, ValueError, NotFiniteError, OverflowError
            As `update`.
        """
        offset = self.offset
        if k is None or v is None:
            rows = self._followed(layer, q.shape[2], "KVCache.attend")
        else:
            rows = self._stored(layer, k, v)
        y = attend(how, rows.struct, offset, q)
        if (recorder := RECORDER.get()) is not None:
            recorder.attended(layer, how, q, k, v, y)
        return y

    def make_room(self, count: int, layers: Iterable[int] | None = None) -> None:
        """Have memory for tokens after `offset`, so that they can be stored where `structs` says.

        Parameters
        ----------
        count : int
        layers : iterable of int, optional
            All by default.

        Raises
        ------
        CacheFullError
            If there would be more than `limit` tokens.
        """
        self._check_room(count, "KVCache.make_room")
        for i in range(len(self._layers)) if layers is None else layers:
            layer = self._layers[i]
            if type(layer) is LayerRows:
                layer.make_room(self.offset, count)

    def stored(self, layers: Iterable[int] | None) -> None:
        """Say whose keys and values others store where `structs` says, so that layers which follow these find them.

        Parameters
        ----------
        layers : iterable of int, or None
            None: all layers have their tokens.
        """
        self._given = set() if layers is None else self._given | self._sources.intersection(layers)

    def shared(self, layer: int, count: int) -> tuple[Any, Any]:
        """Keys and values that a layer looks at which has none of its own.

        Parameters
        ----------
        layer : int
            One that follows another, which was given the same tokens before.
        count : int
            Of tokens.

        Returns
        -------
        k, v : ndarray or CachedRows
            As `update` gave them to the other layer.

        Raises
        ------
        ValueError
            If the layer has keys of its own, or the other one was given none.
        """
        offset = self.offset
        return self._followed(layer, count, "KVCache.shared").looked_at(offset, count)

    def _followed(self, layer: int, count: int, called: str) -> LayerRows:
        """The layer that another one follows, which was given as many tokens."""
        own = self._layer(layer, called)
        if not isinstance(own, LayerShared) or own.source not in self._given:
            raise ValueError(f"{called}: layer {layer} follows none that was given keys; update is for its own")
        rows = self._layers[own.source]
        assert isinstance(rows, LayerRows)
        if layer == self._last:
            self.offset += count
            self._given = set()
        return rows

    def state(self, layer: int) -> tuple[Float32, ...]:
        """The state of a layer after the tokens so far.

        Parameters
        ----------
        layer : int
            One that has a state.

        Returns
        -------
        tuple of ndarray of float32
            Arrays of the shapes that the cache was made with, with the batch first; zeros before the first token. They
            are not to be written to.

        Raises
        ------
        ValueError
            If the layer has no state, or was not given one with the last tokens.
        """
        kept = self._state(layer, "KVCache.state")
        if not kept.has(self.offset):
            raise ValueError(f"KVCache.state: layer {layer} was given no state after {self.offset} tokens")
        return kept.get(self.offset)

    def set_state(self, layer: int, count: int, arrays: Sequence[Float32]) -> None:
        """Store the state of a layer after more tokens.

        Parameters
        ----------
        layer : int
            Layers come in order; with the last one the tokens belong to the cache.
        count : int
            How many tokens follow those before `offset`.
        arrays : sequence of ndarray of float32
            As `state` gives them. They belong to the cache from now on, and cannot be written to any more.

        Raises
        ------
        CacheFullError
            If there would be more than `limit` tokens; nothing has changed then.
        ValueError
            If the layer has no state, or shapes do not fit.
        """
        kept = self._state(layer, "KVCache.set_state")
        check_size("KVCache.set_state", count=count)
        self._check_room(count, "KVCache.set_state")
        kept.put(self.offset, count, arrays)
        if layer == self._last:
            self.offset += count

    def _layer(self, layer: int, called: str) -> LayerRows | LayerState | LayerShared:
        if not 0 <= layer <= self._last:
            raise ValueError(f"{called}: there is no layer {layer}; layers are 0 to {self._last}")
        return self._layers[layer]

    def _state(self, layer: int, called: str) -> LayerState:
        kept = self._layer(layer, called)
        if not isinstance(kept, LayerState):
            raise ValueError(f"{called}: layer {layer} has keys and values, and no state; make the cache with states")
        return kept

    def _check_room(self, count: int, called: str) -> None:
        if self.limit is not None and self.offset + count > self.limit:
            raise CacheFullError(
                f"{called}: {count} more tokens do not fit: there are {self.offset}, and may be {self.limit}"
            )

    def trim(self, count: int) -> None:
        """Forget the last tokens.

        Parameters
        ----------
        count : int
            How many.

        Raises
        ------
        ValueError
            If there are fewer, or a layer with a window has given up what it would have to look at then, or one has a
            state: it can only go back to where the last call began.
        """
        if isinstance(count, bool):
            raise ValueError(f"KVCache.trim: count is {count}; it has to be a number of tokens")
        count = operator.index(count)
        if not 0 <= count <= self.offset:
            raise ValueError(f"KVCache.trim: {count} of {self.offset} tokens cannot be forgotten")
        length = self.offset - count
        for i, layer in enumerate(self._layers):
            if isinstance(layer, LayerState):
                if count and not layer.has(length):
                    raise ValueError(
                        f"KVCache.trim: layer {i} has a state, which cannot forget single tokens; fork the cache before"
                        " tokens that may have to be forgotten are added"
                    )
            elif isinstance(layer, LayerRows) and layer.window is not None and layer.needs(length) < layer.base:
                raise ValueError(
                    f"KVCache.trim: a layer with a window of {layer.window} keeps the last tokens only, from number "
                    f"{layer.base} on; {count} cannot be forgotten any more"
                )
        self.offset = length

    def fork(self: _Cache) -> _Cache:
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
        made._given = set()
        made.structs = structs_of(len(self._layers))
        made._tell()
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
        batch, heads, dim = self._rows[0]
        content: dict[str, Any] = {
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
        if any(self._states):
            content["states"] = self._states
        if len({*self._rows, *self._follows}) > 2:  # one size, and none that follows another
            content["sizes"] = [each[1:] for each in self._rows]
            content["follows"] = self._follows
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
            for i, layer in enumerate(made._layers):
                layer.restore(offset, file.arrays(i, layer.wanted(offset)))
        made.offset, made.notes = offset, notes
        return made
