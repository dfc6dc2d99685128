"""Typed binding of `libnpumm.so`: caches of keys and values, and attention (`native/include/npumatmul_attention.h`)."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterable, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.arrays import address_of
from npumatmul.host.kernels import NO_MEMORY, library
from npumatmul.host.processors import fast_processors

__all__ = [
    "NO_ROOM",
    "OUT_OF_RANGE",
    "AttentionOptions",
    "KvLayer",
    "KvRows",
    "KvSegment",
    "KvType",
    "append",
    "attend",
    "describe",
    "evenly",
    "layers",
    "segments",
    "tell",
]

NO_ROOM = -106
OUT_OF_RANGE = -107

#: Multiply-accumulates that are worth waking another thread.
_WORTH_A_THREAD = 1 << 22


class KvType(IntEnum):
    """`npumm_kv_type`: as what keys and values are kept."""

    NONE = 0
    FLOAT32 = 1
    FLOAT16 = 2
    INT8 = 3


class KvRows(C.Structure):
    """`npumm_kv_rows`: where keys or values stand, and their scales."""

    _fields_ = (
        ("data", C.c_void_p),
        ("head_stride", C.c_int64),
        ("row_stride", C.c_int64),
        ("scales", C.c_void_p),
        ("scale_head_stride", C.c_int64),
        ("scale_row_stride", C.c_int64),
    )


class KvSegment(C.Structure):
    """`npumm_kv_segment`: rows that several caches read."""

    _fields_ = (("keys", KvRows), ("values", KvRows), ("rows", C.c_int64))


class KvLayer(C.Structure):
    """`npumm_kv_layer`: keys and values of a layer. Who makes it keeps the memory alive that it tells of."""

    _fields_ = (
        ("type", C.c_int32),
        ("before_count", C.c_int32),
        ("heads", C.c_int64),
        ("key_dim", C.c_int64),
        ("value_dim", C.c_int64),
        ("window", C.c_int64),
        ("base", C.c_int64),
        ("shared", C.c_int64),
        ("capacity", C.c_int64),
        ("keys", KvRows),
        ("values", KvRows),
        ("before", C.POINTER(KvSegment)),
    )


class AttentionOptions(C.Structure):
    """`npumm_attention`: how queries attend."""

    alive: NDArray[np.float32]

    _fields_ = (
        ("heads", C.c_int64),
        ("window", C.c_int64),
        ("scale", C.c_float),
        ("softcap", C.c_float),
        ("sinks", C.c_void_p),
        ("causal", C.c_int32),
        ("keys", C.c_int64),
    )


_ROWS = (C.c_void_p, C.c_int64, C.c_int64)


@lru_cache(maxsize=1)
def _functions() -> tuple[Any, Any]:
    layer = C.POINTER(KvLayer)
    append, attend = library().npumm_kv_append, library().npumm_attend_all
    append.argtypes, append.restype = (layer, C.c_int64, C.c_int64, *_ROWS, *_ROWS), C.c_int
    attend.argtypes = (C.POINTER(AttentionOptions), layer, C.c_int64, C.c_int64, *_ROWS, *_ROWS, C.c_int32)
    attend.restype = C.c_int
    return append, attend


def evenly(x: NDArray[Any]) -> tuple[NDArray[Any], int, int]:
    """Rows of ``(batch, heads, rows, width)``, copied only where C could not read them, with strides of heads and rows.

    All sequences of a batch count as heads. numpy's strides of axes of length 1 may be anything.
    """
    batch, heads, _, width = x.shape
    further, head, row, value = x.strides
    if (value == x.itemsize or width == 1) and (batch == 1 or heads == 1 or further == head * heads):
        return x, further if heads == 1 else head, row
    x = np.ascontiguousarray(x)
    return x, x.shape[2] * width * x.itemsize, width * x.itemsize


def describe(parts: Sequence[NDArray[Any]], start: int = 0) -> KvRows:
    """Where rows from `start` on stand, of floats, or of codes and of their scales; `evenly` makes no copy of them."""
    data, head, row = evenly(parts[0])
    made = KvRows(address_of(data) + start * row, head, row)
    if len(parts) > 1:
        scales, head, row = evenly(parts[1])
        made.scales, made.scale_head_stride, made.scale_row_stride = address_of(scales) + start * row, head, row
    return made


def segments(pairs: Sequence[tuple[KvRows, KvRows, int]]) -> C.Array[KvSegment]:
    """Keys, values and how many rows of each."""
    made = (KvSegment * len(pairs))()
    for i, (keys, values, rows) in enumerate(pairs):
        made[i] = KvSegment(keys, values, rows)
    return made


def layers(count: int) -> C.Array[KvLayer]:
    """Structs of as many layers, which have no keys and values yet."""
    return (KvLayer * count)()


def tell(made: KvLayer, structs: Iterable[KvLayer]) -> None:
    """Copy a struct; what it tells of is kept alive by the caller."""
    for each in structs:
        C.memmove(C.addressof(each), C.addressof(made), C.sizeof(KvLayer))


def append(layer: KvLayer, offset: int, k: NDArray[np.float32], v: NDArray[np.float32]) -> int:
    """Store keys and values of shape (batch, heads, T, dim); return the code of `npumm_kv_append`."""
    k, *of_k = evenly(k)
    v, *of_v = evenly(v)
    code: int = _functions()[0](layer, offset, k.shape[2], address_of(k), *of_k, address_of(v), *of_v)
    return code


def attend(
    how: AttentionOptions, layer: KvLayer, offset: int, q: NDArray[np.float32], threads: int | None = None
) -> NDArray[np.float32]:
    """Attention of queries (batch, heads, T, dim), the tokens from number `offset` on.

    Parameters
    ----------
    how : AttentionOptions
        Its heads are those of all sequences.
    layer : KvLayer
    offset : int
    q : ndarray of float32
    threads : int, optional
        At most; by default one, or all fast processors where there is much to do.

    Returns
    -------
    ndarray of float32, shape (batch, heads, T, value dim)
        With one sequence, heads of a token stand next to each other.
    """
    batch, heads, count, _ = q.shape
    q, *of_q = evenly(q)
    dim: int = layer.value_dim
    y: NDArray[np.float32]
    if batch == 1:
        y = np.empty((1, count, heads, dim), np.float32).swapaxes(1, 2)
        of_y = dim * 4, heads * dim * 4
    else:
        y = np.empty((batch, heads, count, dim), np.float32)
        of_y = count * dim * 4, dim * 4
    if not y.size:
        return y
    if threads is None:
        keys = max(offset + count, 0) if how.causal else how.keys
        work = batch * heads * count * keys * (layer.key_dim + dim)
        threads = 1 if work < _WORTH_A_THREAD else fast_processors()
    code = _functions()[1](how, layer, offset, count, address_of(q), *of_q, address_of(y), *of_y, threads)
    if code == NO_MEMORY:
        raise MemoryError("attention: there is no memory for scratch")
    if code:
        raise ValueError(f"attention: npumm_attend_all refuses queries of shape {q.shape} from {offset} on ({code})")
    return y
