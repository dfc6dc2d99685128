"""The Hadamard transform of rows ahead of packing, beside the product with the dense matrix that it stands for."""

from __future__ import annotations

import ctypes as C
from collections.abc import Iterator
from itertools import product

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
    counted="npumm_quantize_rows",
)
def hadamard_and_pack(rows: int, k: int) -> Iterator[Turns]:
    """Rows are rotated, measured, quantized and packed by one call of C, as the executor does."""
    x = np.random.default_rng(0).standard_normal((rows, k)).astype(np.float32)
    transform, copy = Hadamard(k), np.empty_like(x)
    where = layout.a_native(rows, k, ElementType.INT8, "rk3588")
    memory, scale = npu_memory(where.nbytes), np.zeros(rows, np.float32)
    tiling, kernel, function = where.tiling(), transform.kernel, kernels.library().npumm_quantize_rows
    arguments = (
        C.byref(kernel), C.byref(tiling), Conversion.F32_TO_I8, 127, 1.0, 0, rows, x.ctypes.data, *x.strides,
        memory.ctypes.data, memory.nbytes, scale.ctypes.data, None,
    )  # fmt: skip
    keep = (x, memory, scale, tiling, kernel)
    yield Turns(lambda keep=keep: function(*arguments), lambda: np.copyto(copy, x), one_thread=True)
