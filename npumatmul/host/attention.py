"""Typed binding of `libnpumm.so`: caches of keys and values, and attention (`native/include/npumatmul_attention.h`)."""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence
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
    "is_even",
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


def describe(parts: Sequence[NDArray[Any]], start: int = 0) -> KvRows:
    """Where rows from `start` on stand: ``(batch, heads, rows, width)`` of floats, or of codes and of their scales.

    All sequences of a batch count as heads, so the strides of both have to go together (`is_even`).
    """
    data = parts[0]
    _, head, row, _ = data.strides
    made = KvRows(address_of(data) + start * row, head, row)
    if len(parts) > 1:
        _, head, row, _ = parts[1].strides
        made.scales, made.scale_head_stride, made.scale_row_stride = address_of(parts[1]) + start * row, head, row
    return made


def is_even(x: NDArray[Any]) -> bool:
    """Whether the rows of ``(batch, heads, rows, width)`` stand whole, and heads of all sequences equally far apart."""
    batch, head, _, value = x.strides
    return value == x.itemsize and (x.shape[0] == 1 or batch == head * x.shape[1])


def append(layer: KvLayer, offset: int, k: NDArray[np.float32], v: NDArray[np.float32]) -> int:
    """Store keys and values of shape (batch, heads, T, dim); return the code of `npumm_kv_append`."""
    k, v = (x if is_even(x) else np.ascontiguousarray(x) for x in (k, v))
    code: int = _functions()[0](
        layer, offset, k.shape[2], address_of(k), *k.strides[1:3], address_of(v), *v.strides[1:3]
    )
    return code


def attend(how: AttentionOptions, layer: KvLayer, offset: int, q: NDArray[np.float32]) -> NDArray[np.float32]:
    """Attention of queries (batch, heads, T, dim), the tokens from number `offset` on.

    Parameters
    ----------
    how : AttentionOptions
        Its heads are those of all sequences.
    layer : KvLayer
    offset : int
    q : ndarray of float32

    Returns
    -------
    ndarray of float32, shape (batch, heads, T, value dim)
        With one sequence, heads of a token stand next to each other.
    """
    batch, heads, count, _ = q.shape
    if not is_even(q):
        q = np.ascontiguousarray(q)
    dim = layer.value_dim
    if batch == 1:
        y = np.empty((1, count, heads, dim), np.float32).swapaxes(1, 2)
    else:
        y = np.empty((batch, heads, count, dim), np.float32)
    if not y.size:
        return y
    keys = max(offset + count, 0) if how.causal else how.keys
    work = batch * heads * count * keys * (layer.key_dim + dim)
    threads = 1 if work < _WORTH_A_THREAD else fast_processors()
    code = _functions()[1](
        how, layer, offset, count, address_of(q), *q.strides[1:3], address_of(y), *y.strides[1:3], threads
    )
    if code == NO_MEMORY:
        raise MemoryError("attention: there is no memory for scratch")
    if code:
        raise ValueError(f"attention: npumm_attend_all refuses queries of shape {q.shape} from {offset} on ({code})")
    return y
