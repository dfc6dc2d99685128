"""Contexts with their buffers, for the tests of objects with a lifetime."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import Buffer, MatmulContext, MatmulLayout, MatmulType

I8 = MatmulType.INT8_INT8_INT32
NORM, NATIVE, TP_NORM = MatmulLayout
M, K, N = 4, 64, 32
PAGE = 4096


def operands(seed: int = 0, m: int = M, k: int = K, n: int = N) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-99, 99, (m, k), dtype=np.int8), rng.integers(-99, 99, (k, n), dtype=np.int8)
    return a, b, a.astype(np.int32) @ b.astype(np.int32)


def bound(device: npu.Device, **options: Any) -> tuple[MatmulContext, tuple[Buffer, Buffer, Buffer]]:
    context = device.context(I8, M, K, N, **options)
    buffers = tuple(device.buffer(attr.size) for attr in (context.a, context.b, context.c))
    context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
    return context, buffers


def fill(context: MatmulContext, buffers: tuple[Buffer, ...], seed: int) -> NDArray[Any]:
    a, b, c = operands(seed)
    buffers[0].put(context.a, a)
    buffers[1].put(context.b, b)
    return c
