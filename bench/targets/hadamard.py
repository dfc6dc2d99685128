"""The Hadamard transform of rows ahead of packing, beside the product with the dense matrix that it stands for."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from npumatmul.chips import layout
from npumatmul.chips.types import ElementType
from npumatmul.host import kernels
from npumatmul.host.kernels import Conversion
from npumatmul.quant import Hadamard, hadamard_matrix
from targets.lines import Turns, line
from targets.packing import npu_memory


@line(
    "Hadamard transform of {0}x{1}",
    "numpy float32 @ dense matrix, its threads",
    over=product((1, 128), (576, 1536, 2048, 4096, 5632, 11008)),
)
def hadamard_rows(rows: int, k: int) -> Iterator[Turns]:
    """As `matmul` does it for weights with a Hadamard transform."""
    x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    transform = Hadamard(k)
    rotation = (transform.signs[:, np.newaxis] * hadamard_matrix(k).T / np.sqrt(k)).astype(np.float32)
    np.testing.assert_allclose(transform.activation(x), x @ rotation, atol=1e-4)
    yield Turns(lambda: transform.activation(x), lambda: x @ rotation)


@line(
    "Hadamard, quantize to int8 and pack A, {0}x{1}",
    "memcpy of the source",
    least=0.25,
    over=product((16, 128), (576, 1536, 4096, 11008)),
    counted="npumm_hadamard_rows",
)
def hadamard_and_pack(rows: int, k: int) -> Iterator[Turns]:
    """Rows are rotated into scratch, measured, quantized and packed by two calls of C, as the executor does."""
    x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    transform, copy = Hadamard(k), np.empty_like(x)
    where = layout.a_native(rows, k, ElementType.INT8, "rk3588")
    memory, scratch, scale = npu_memory(where.nbytes), np.empty((rows, k), np.float32), np.zeros(rows, np.float32)
    tiling, kernel, library = where.tiling(), transform.kernel, kernels.library()
    rotated = (C.byref(kernel), x.ctypes.data, rows, *x.strides, scratch.ctypes.data, scratch.strides[0])
    packed = (
        C.byref(tiling), Conversion.F32_TO_I8, C.c_float(1.0), scratch.ctypes.data, *scratch.strides,
        memory.ctypes.data, memory.nbytes, scale.ctypes.data, None,
    )  # fmt: skip

    def work(rotate: Any = library.npumm_hadamard_rows, pack: Any = library.npumm_quantize) -> None:
        rotate(*rotated)
        pack(*packed)

    yield Turns(work, lambda: np.copyto(copy, x), one_thread=True)
