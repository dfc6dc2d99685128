"""`scaled_dot_product_attention`: softmax of scores of queries and keys, times values."""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.host.arrays import address_of
from npumatmul.host.attention import AttentionOptions, KvLayer, KvRows, KvType, attend, evenly
from npumatmul.nn.cache_rows import CachedRows
from npumatmul.nn.halves import widened
from npumatmul.nn.module import as_floats, check_number, float32_of, rounded_to
from npumatmul.nn.prefill import NpuProducts
from npumatmul.nn.product import Float32
from npumatmul.ops import NpuArray
from npumatmul.ops.array.array import unread

__all__ = ["Blocks", "Mask", "scaled_dot_product_attention"]

Mask = Literal["causal"] | NDArray[Any] | None

_F32 = np.dtype(np.float32)
#: Floats that scores of a block of keys take at most.
_BLOCK_FLOATS = 1 << 21
#: Keys of a block that have to be converted, or values, at most: they stay in the caches of a core.
_COPIED_FLOATS = 1 << 18
_LEAST_KEYS = 64
#: With ``"causal"`` so many queries are worked on at once, so that little is computed to be hidden.
_QUERIES = 256


class Blocks(Protocol):
    """Keys or values that are not one array of floats, such as those of a cache in int8."""

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array, ``(..., heads, S, D)``."""
        ...

    def block(self, start: int, stop: int) -> NDArray[Any]:
        """Those of positions start to stop, ``(..., heads, stop - start, D)``, as floats."""
        ...


def scaled_dot_product_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    scale: float | None = None,
    mask: Mask = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: ArrayLike | None = None,
    device: Device | str | None = None,
) -> Any:
    """Attention: ``softmax(scale * q @ k.T + mask) @ v`` for each head.

    Parameters
    ----------
    q : ndarray or NpuArray, shape (..., H, T, D)
        Queries of T tokens.
    k, v : ndarray or NpuArray, shapes (..., G, S, D) and (..., G, S, E)
        Keys and values of S tokens. H is a multiple of G: query heads ``h * (H / G)`` and those after it share head h
        of the keys, without its being repeated.
    scale : float, optional
        ``1 / sqrt(D)`` by default.
    mask : None, "causal" or ndarray, optional
        None: all queries see all keys. ``"causal"``: the last query sees all keys, the one before it all but the last,
        and so on. An array that can be broadcast to (..., H, T, S): of bool, True where a query sees a key; or of
        floats that are added to scores.
    window : int, optional
        With ``"causal"``: queries see so many keys at most, the last of those that they would see. Otherwise: those
        that are fewer than so many positions before or behind them, the last query being where the last key is.
    softcap : float, optional
        Scores become ``softcap * tanh(score / softcap)`` before the mask.
    sinks : array_like, shape (H,), optional
        For each head a score of a key that has no value: what goes to it is lost.
    device : Device or str, optional
        An NPU that makes both products, as float16 with sums in float32, whether or not that is faster
        (`plan_attention`). By default the CPU makes them.

    Returns
    -------
    ndarray or NpuArray, shape (..., H, T, E)
        Of the dtype of `q`; zeros for queries that see no key.

    Raises
    ------
    ValueError
        If shapes do not fit, or options do not go together.
    TypeError
        If an array is not of floats.

    Notes
    -----
    Computed in float32, by blocks of keys, so that memory does not grow with T times S. Where the CPU attends and the
    mask is no array, the bits of a query's result do not depend on which other queries and heads there are. With
    v = 2**-24, P the largest
    ``scale * (|q| @ |k|)`` and V the largest ``|v|``, results are off by at most::

        (2 (D + 4) v P + 8 v softcap + (2 S + 16) v) V

    to first order in v; a float16 result is rounded once more. With `device`, u = 2**-11, A the largest
    ``|scale * q|`` and B the largest ``|k|``, they are off by at most::

        (2 (2 u + (D + 2) v) P + 2**-20 D A B + 8 v softcap + 2 u + (2 S + 16) v + 2**-21 S) V

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> rng = np.random.default_rng(1)
    >>> q = rng.standard_normal((1, 4, 3, 8), np.float32)
    >>> k, v = rng.standard_normal((2, 1, 2, 5, 8), np.float32)
    >>> nn.scaled_dot_product_attention(q, k, v, mask="causal").shape
    (1, 4, 3, 8)
    """
    if type(q) is not np.ndarray:
        how: dict[str, Any] = {"scale": scale, "mask": mask, "window": window, "softcap": softcap, "sinks": sinks}
        return _of_other(q, k, v, device=device, **how)
    if type(k) is not np.ndarray or k.dtype != _F32:
        k = _operand(k)
    if type(v) is not np.ndarray or v.dtype != _F32:
        v = _operand(v)
    heads, t, kv_heads, s = _sizes(q, k, v, mask, window)
    if softcap is not None:
        check_softcap(_CALLED, softcap)
    sinks = None if sinks is None else _sinks(sinks, heads)
    if t == 0:
        return np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    if device is None and not isinstance(mask, np.ndarray):
        found = _in_c(q, k, v, scale, mask is not None, window, softcap, sinks)
        if found is not None:
            return found
    npu = None if device is None or s == 0 else NpuProducts.of(current_device(device), q.shape, k.shape)
    factor = np.float32(1 / math.sqrt(q.shape[-1] or 1) if scale is None else scale)
    causal = type(mask) is str
    if t <= _QUERIES or not (causal or window):
        return _attend(q, k, v, s, 0, kv_heads, factor, mask, window, softcap, sinks, npu)
    y = np.empty((*q.shape[:-1], v.shape[-1]), q.dtype)
    for first in range(0, t, _QUERIES):  # each part sees keys up to its own last one, or a window behind that
        stop = min(first + _QUERIES, t)
        part, own = q[..., first:stop, :], s - t + stop  # none where there are more queries than keys
        seen = max(0, own if causal or window is None else min(own + window - 1, s))
        rows = mask
        if isinstance(mask, np.ndarray) and mask.ndim > 1 and mask.shape[-2] > 1:
            rows = mask[..., first:stop, :]
        y[..., first:stop, :] = _attend(
            part, k, v, seen, seen - own, kv_heads, factor, rows, window, softcap, sinks, npu
        )
    return y


def options(
    heads: int,
    dim: int,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float32 | None = None,
    batch: int = 1,
    keys: int | None = None,
) -> AttentionOptions:
    """What C is told of an attention: causal, unless there is a number of keys, which all queries see then.

    Parameters
    ----------
    heads, dim : int
    scale, window, softcap, sinks
        As for `scaled_dot_product_attention`, and checked.
    batch : int
        Sequences, whose heads count as further ones.
    keys : int, optional
    """
    factor = 1 / math.sqrt(dim) if scale is None else scale
    made = AttentionOptions(batch * heads, window or 0, factor, softcap or 0, None, keys is None, keys or 0)
    if sinks is not None:
        made.alive = np.ascontiguousarray(np.tile(sinks, batch) if batch > 1 else sinks, _F32)
        made.sinks = address_of(made.alive)
    return made


def _in_c(
    q: NDArray[Any],
    k: Any,
    v: Any,
    scale: float | None,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sinks: Float32 | None,
) -> NDArray[Any] | None:
    """Attention by `npumm_attend`; None where that cannot read keys and values."""
    (heads, t, dim), s = q.shape[-3:], k.shape[-2]
    if dim == 0 or v.shape[-1] == 0:
        return None
    batch = math.prod(q.shape[:-3])
    made: KvLayer
    if isinstance(k, CachedRows) and isinstance(v, CachedRows):
        told = k.as_segments(v)
        if told is None:
            return None
        made = KvLayer(told[0], len(told[1]), batch * k.shape[-3], dim, v.shape[-1], 0, s)
        made.before = told[1]
    elif type(k) is np.ndarray and type(v) is np.ndarray:
        if k.dtype != v.dtype:
            k, v = float32_of(k, _CALLED), float32_of(v, _CALLED)
        k, *of_k = evenly(k.reshape(batch, *k.shape[-3:]))
        v, *of_v = evenly(v.reshape(batch, *v.shape[-3:]))
        kind = KvType.FLOAT32 if k.dtype == _F32 else KvType.FLOAT16
        keys, values = KvRows(address_of(k), *of_k), KvRows(address_of(v), *of_v)
        made = KvLayer(kind, 0, batch * k.shape[1], dim, v.shape[-1], 0, 0, 0, s, keys, values)
    else:
        return None
    rows = (q if q.dtype == _F32 else float32_of(q, _CALLED)).reshape(batch, heads, t, dim)
    how = options(
        heads, dim, scale=scale, window=window, softcap=softcap, sinks=sinks, batch=batch, keys=None if causal else s
    )
    y = attend(how, made, s - t, rows).reshape(*q.shape[:-1], v.shape[-1])
    return y if q.dtype == _F32 else rounded_to(y, q.dtype)


def _attend(
    q: NDArray[Any],
    k: Any,
    v: Any,
    s: int,
    ahead: int,
    kv_heads: int,
    factor: np.float32,
    mask: Mask,
    window: int | None,
    softcap: float | None,
    sinks: Float32 | None,
    npu: NpuProducts | None,
) -> NDArray[Any]:
    """Attention to the first `s` keys, of which `ahead` are behind that of the last query."""
    heads, t, dim = q.shape[-3:]
    group = heads // kv_heads
    rows = q if q.dtype == _F32 else float32_of(q, _CALLED)
    rows = rows * factor
    rows = rows.reshape(*q.shape[:-3], kv_heads, group * t, dim)
    start = 0
    if window is not None:
        start = max(0, s - ahead - t - window + 1)
        window = None if s - start <= window and t == 1 else window
    if t == 1 and type(mask) is str:
        mask = None
    #: The largest score so far, the sum of exponentials of all others less that, and the sum of their values.
    state: tuple[Any, Any, Any] | None = None if sinks is None else _of_sinks(sinks, rows, v.shape[-1], group, t)
    rooms: tuple[list[Float32], list[Float32]] = [], []
    for first, stop in _blocks(start, s, rows, k, v, npu):
        if npu is None:
            keys, values = _read(k, first, stop, rooms[0]), _read(v, first, stop, rooms[1])
            scores = np.matmul(rows, keys.swapaxes(-1, -2))
        else:
            values = _part(v, first, stop)
            scores = npu.multiply(rows, _part(k, first, stop).swapaxes(-1, -2))
        if softcap is not None:
            scores /= np.float32(softcap)
            np.tanh(scores, out=scores)
            scores *= np.float32(softcap)
        if mask is not None or window is not None:
            _hide(scores.reshape(*q.shape[:-2], t, stop - first), mask, window, first, stop, s - ahead)
        base = high = np.maximum.reduce(scores, axis=-1, keepdims=True)
        if state is not None:
            np.maximum(high, state[0], out=high)
        if mask is not None or window is not None:  # there may be queries that have seen no key yet
            base = np.where(high == -np.inf, np.float32(0), high)
        scores -= base
        np.exp(scores, out=scores)
        total = np.add.reduce(scores, axis=-1, keepdims=True)
        result = np.matmul(scores, values) if npu is None else npu.multiply(scores, values)
        if state is not None:
            before = np.exp(state[0] - base)
            total += before * state[1]
            result += before * state[2]
        state = high, total, result
    if state is None:
        return np.zeros((*q.shape[:-1], v.shape[-1]), q.dtype)
    _, total, y = state
    if mask is not None or window is not None or s == 0:
        total[total == 0] = 1
    y /= total
    y = y.reshape(*q.shape[:-1], v.shape[-1])
    return y if q.dtype == _F32 else rounded_to(y, q.dtype)


_CALLED = "scaled_dot_product_attention"


def _operand(x: Any) -> Any:
    if type(x) is np.ndarray:
        return x if x.dtype == np.float16 else float32_of(x, _CALLED)
    if hasattr(x, "block"):
        return x
    return as_floats(x.numpy(writable=False) if isinstance(x, NpuArray) else x, _CALLED)


def _of_other(q: Any, k: Any, v: Any, **options: Any) -> Any:
    if not isinstance(q, NpuArray):
        return scaled_dot_product_attention(as_floats(q, _CALLED), k, v, **options)
    y = scaled_dot_product_attention(q.numpy(writable=False), k, v, **options)
    return unread(np.ascontiguousarray(y), y.shape, q.device)


def _sizes(q: Any, k: Any, v: Any, mask: Mask, window: int | None) -> tuple[int, int, int, int]:
    """Heads and tokens of queries and of keys; mistakes are explained."""
    a, b, c = q.shape, k.shape, v.shape
    fits = len(a) >= 3 and len(a) == len(b) and b[:-1] == c[:-1] and a[:-3] == b[:-3] and a[-1] == b[-1]
    if not (fits and b[-3] and a[-3] % b[-3] == 0):
        raise ValueError(
            f"{_CALLED}: q of shape {a}, k of {b} and v of {c} do not fit: they are (..., H, T, D), (..., G, S, D) and "
            "(..., G, S, E), H a multiple of G"
        )
    t, s = a[-2], b[-2]
    if type(mask) is str and mask != "causal":
        raise ValueError(f"{_CALLED}: mask is {mask!r}; it can be None, 'causal' or an array")
    if isinstance(mask, np.ndarray):
        wanted = (*a[:-1], s)
        shape = (1,) * (len(wanted) - mask.ndim) + mask.shape
        if len(shape) != len(wanted) or any(m not in (1, w) for m, w in zip(shape, wanted, strict=True)):
            raise ValueError(
                f"{_CALLED}: a mask of shape {mask.shape} cannot be broadcast to (..., H, T, S) = {wanted}"
            )
        if mask.dtype != bool and mask.dtype.kind != "f":
            raise TypeError(f"{_CALLED}: a mask is of bool or floats, not {mask.dtype}")
    elif mask is not None and type(mask) is not str:
        raise TypeError(f"{_CALLED}: mask is a {type(mask).__name__}; it can be None, 'causal' or an ndarray")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int | np.integer) or window < 1):
        raise ValueError(f"{_CALLED}: window is {window!r}; it has to be an integer of 1 or more")
    return a[-3], t, b[-3], s


def _blocks(start: int, stop: int, rows: Float32, k: Any, v: Any, npu: NpuProducts | None) -> list[tuple[int, int]]:
    """Ranges of keys whose scores, and whose float32 copies, have room."""
    if npu is None:
        size = _BLOCK_FLOATS * rows.shape[-1] // max(rows.size, 1)
        for each in (k, v):
            if type(each) is not np.ndarray or each.dtype != _F32:
                size = min(size, _COPIED_FLOATS * each.shape[-2] // max(math.prod(each.shape), 1))
        size = max(_LEAST_KEYS, size)
    else:
        size = npu.keys
    cuts: tuple[int, ...] = getattr(k, "cuts", ())
    if stop - start <= size and len(cuts) < 2:
        return [(start, stop)] if stop > start else []
    found = []
    first = start
    while first < stop:
        end = min(first + size, stop)
        for cut in cuts:
            if first < cut < end:
                end = cut
                break
        found.append((first, end))
        first = end
    return found


def _read(x: Any, first: int, stop: int, room: list[Float32]) -> Float32:
    """A block of keys or values as float32; float16 becomes that in `room`, which the next block takes again."""
    part: NDArray[Any] = x[..., first:stop, :] if type(x) is np.ndarray else x.block(first, stop)
    if part.dtype == _F32:
        return part
    if part.dtype != np.float16:
        return part.astype(_F32)
    if not room or room[0].shape[-2] < stop - first:
        room[:] = [np.empty(part.shape, _F32)]
    return widened(part, room[0][..., : stop - first, :])


def _part(x: Any, first: int, stop: int) -> NDArray[Any]:
    """A block of keys or values as it stands."""
    part: NDArray[Any] = x[..., first:stop, :] if type(x) is np.ndarray else x.block(first, stop)
    return part


def _hide(scores: Float32, mask: Mask, window: int | None, first: int, stop: int, s: int) -> None:
    """Apply a mask to scores ``(..., H, T, stop - first)``."""
    t = scores.shape[-2]
    if type(mask) is not str:
        if isinstance(mask, np.ndarray):
            part = mask if mask.shape[-1] == 1 else mask[..., first:stop]
            if mask.dtype == bool:
                np.copyto(scores, -np.inf, where=~part)
            else:
                scores += part.astype(_F32, copy=False)
        if window is not None:
            far = np.abs(np.arange(first, stop) - np.arange(s - t, s)[:, None]) >= window
            np.copyto(scores, -np.inf, where=far)
        return
    last = s - t  # the last key that the first query sees
    if stop > last + 1:
        keys, seen = np.arange(first, stop), np.arange(last, s)[:, None]
        hidden = keys > seen
        if window is not None:
            hidden |= keys <= seen - window
    elif window is not None and first <= s - 1 - window:
        hidden = np.arange(first, stop) <= np.arange(last, s)[:, None] - window
    else:
        return
    np.copyto(scores, -np.inf, where=hidden)


def _sinks(sinks: ArrayLike, heads: int) -> Float32:
    scores = np.asarray(sinks, np.float32)
    if scores.shape != (heads,):
        raise ValueError(f"{_CALLED}: sinks has shape {scores.shape}; there are {heads} heads")
    return scores


def _of_sinks(sinks: Float32, rows: Float32, width: int, group: int, t: int) -> tuple[Float32, Float32, Float32]:
    """The state of a softmax that has seen one key for each head, without a value."""
    each = np.repeat(sinks, t).reshape(-1, group * t, 1)
    high = np.broadcast_to(each, (*rows.shape[:-1], 1)).copy()
    return high, np.ones_like(high), np.zeros((*rows.shape[:-1], width), np.float32)


def check_softcap(called: str, softcap: float | None) -> None:
    """Raise if it is no positive number."""
    if softcap is not None:
        check_number(called, softcap=softcap)
        if softcap <= 0:
            raise ValueError(f"{called}: softcap is {softcap}; it has to be positive")
