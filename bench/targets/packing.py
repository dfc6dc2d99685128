"""Host kernels: packing into native layouts, and storing results. Layouts are the RK3588's."""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul.chips import chip, layout
from npumatmul.chips.types import ElementType
from npumatmul.host import kernels
from npumatmul.host.executor import Element, EpilogueStruct, Function, Matrix, Result, ResultType, Term, _store
from npumatmul.host.kernels import Conversion
from targets.lines import Turns, line

STORED = ("(K, N)", "(N, K)")
RNG = np.random.default_rng(0)


def npu_memory(nbytes: int) -> NDArray[np.uint8]:
    """Memory that begins a page, as the NPU's does."""
    memory = np.zeros(nbytes + 4096, np.uint8)
    start = -memory.ctypes.data % 4096
    return memory[start : start + nbytes]


def packer(matrix: NDArray[Any], where: layout.TileLayout) -> Callable[[], None]:
    """Pack into memory that is there already, as a weight does that goes into NPU memory."""
    memory = npu_memory(where.nbytes)
    return lambda: layout.pack_into(matrix, where, memory.ctypes.data, memory.nbytes)


def copier(source: NDArray[Any]) -> Callable[[], None]:
    """Copy a contiguous array into memory that is there already."""
    copy = np.zeros_like(source)
    return lambda: np.copyto(copy, source)


def stored_as(b: NDArray[Any], stored: str) -> NDArray[Any]:
    """A (K, N) matrix that is stored in one order or the other."""
    return b if stored == "(K, N)" else np.ascontiguousarray(b.T).T


def integers(size: int, least: int, beyond: int) -> NDArray[np.int8]:
    """A square matrix."""
    return RNG.integers(least, beyond, (size, size), np.int8)


@line(
    "pack B {0} {1}x{1} stored {2}",
    "memcpy",
    least=0.6,
    over=product(("int8", "float16"), (2048, 4096), STORED),
    counted="npumm_pack_rows",
)
def pack_b(dtype: str, size: int, stored: str) -> Iterator[Turns]:
    """The best that packing can be is a copy."""
    b = stored_as(integers(size, -99, 99).astype(dtype), stored)
    work = packer(b, layout.b_native(size, size, ElementType.of(b.dtype), "rk3588"))
    yield Turns(work, copier(b if stored == "(K, N)" else b.T), one_thread=True)


@line("pack B {0} 2048x2048 stored (K, N)", "numpy transposition", over=[("float16",), ("int8",)])
def pack_b_by_numpy(dtype: str) -> Iterator[Turns]:
    """What one would write without this library."""
    b = integers(2048, -99, 99).astype(dtype)
    tile_n, tile_k = chip("rk3588").native.b[ElementType.of(b.dtype)]
    tiles = b.reshape(2048 // tile_k, tile_k, 2048 // tile_n, tile_n).transpose(2, 0, 3, 1)
    copy = np.zeros(tiles.shape, dtype)
    where = layout.b_native(2048, 2048, ElementType.of(b.dtype), "rk3588")
    yield Turns(packer(b, where), lambda: np.copyto(copy, tiles), one_thread=True)


@line(
    "pack B int4 {0}x{0} stored {1}",
    "memcpy of the source, a byte per value",
    least=0.5,
    over=product((2048, 4096), STORED),
    counted="npumm_pack_rows",
)
def pack_b_int4(size: int, stored: str) -> Iterator[Turns]:
    """Two values per byte of what is written."""
    b = stored_as(integers(size, -7, 8), stored)
    where = layout.b_native(size, size, ElementType.INT4, "rk3588")
    memory = npu_memory(where.nbytes)
    yield Turns(
        lambda: kernels.pack(where.tiling(), Conversion.INT4, b.T, memory.ctypes.data, memory.nbytes),
        copier(b if stored == "(K, N)" else b.T),
        one_thread=True,
    )


@line(
    "quantize B float32 to {0} per channel and pack, {1}x{1} stored {2}",
    "memcpy of the source",
    least=0.5,
    over=product(("int8", "int4"), (2048, 4096), STORED),
    counted="npumm_quantize_rows",
)
def quantize_b(to: str, size: int, stored: str) -> Iterator[Turns]:
    """Largest magnitudes of the channels, scales, codes, tiles."""
    b = stored_as(RNG.standard_normal((size, size), np.float32), stored)
    element, conversion = (
        (ElementType.INT8, Conversion.F32_TO_I8) if to == "int8" else (ElementType.INT4, Conversion.F32_TO_I4)
    )
    where = layout.b_native(size, size, element, "rk3588")
    memory = npu_memory(where.nbytes)
    yield Turns(
        lambda: kernels.quantize(where.tiling(), conversion, b.T, memory.ctypes.data, memory.nbytes),
        copier(b if stored == "(K, N)" else b.T),
        one_thread=True,
    )


@line(
    "pack float32 {0}x{0} stored {1} by npumatmul.pack, w8a8",
    "memcpy of the source",
    over=product((2048, 4096), STORED),
)
def pack_whole(size: int, stored: str) -> Iterator[Turns]:
    """The whole call: plan, memory that is new each time, scales, codes, tiles; the simulator has the weight then."""
    b = stored_as(RNG.standard_normal((size, size), np.float32), stored)
    yield Turns(lambda: npu.pack(b, "w8a8").close(), copier(b if stored == "(K, N)" else b.T), one_thread=True)


def of_a(rows: int, k: int, element: ElementType) -> layout.TileLayout:
    """A as a context for so many rows has it."""
    return layout.a_native(rows, k, element, "rk3588")


@line(
    "pack A float32 to float16, {0}x{1}",
    "memcpy of the source",
    least=0.5,
    over=product((16, 64, 256), (2048, 4096)),
    counted="npumm_pack_rows",
)
def pack_a_float16(rows: int, k: int) -> Iterator[Turns]:
    """Activations are converted on every call; their scales are 1."""
    yield _a_float16(rows, k)


@line(
    "pack A float32 to float16, 1x4096, the call included", "memcpy of the source", least=0.2, counted="npumm_pack_rows"
)
def pack_one_row_float16() -> Iterator[Turns]:
    """One token."""
    yield _a_float16(1, 4096)


def _a_float16(rows: int, k: int) -> Turns:
    a = RNG.standard_normal((rows, k), np.float32)
    where = of_a(rows, k, ElementType.FLOAT16)
    memory = npu_memory(where.nbytes)
    values = kernels.Values(Conversion.F32_TO_F16)
    keep = (a, memory, where.tiling(), values)
    arguments = (C.byref(keep[2]), C.byref(values), a.ctypes.data, *a.strides, memory.ctypes.data, memory.nbytes)
    function = kernels.library().npumm_pack
    return Turns(lambda keep=keep: function(*arguments), copier(a), one_thread=True)


@line(
    "quantize A float32 to int8 per token and pack, {0}x{1}",
    "memcpy of the source",
    least=0.5,
    over=product((16, 64, 256), (2048, 4096)),
    counted="npumm_quantize_rows",
)
def quantize_a(rows: int, k: int) -> Iterator[Turns]:
    """Largest magnitude, scale, codes, tiles."""
    yield _a_int8(rows, k)


@line(
    "quantize A float32 to int8 per token and pack, 1x4096, the call included",
    "memcpy of the source",
    least=0.2,
    counted="npumm_quantize_rows",
)
def quantize_one_row() -> Iterator[Turns]:
    """One token."""
    yield _a_int8(1, 4096)


def _a_int8(rows: int, k: int) -> Turns:
    a = RNG.standard_normal((rows, k), np.float32)
    where = of_a(rows, k, ElementType.INT8)
    memory, scale = npu_memory(where.nbytes), np.zeros(rows, np.float32)
    tiling = where.tiling()
    arguments = (
        C.byref(tiling), Conversion.F32_TO_I8, C.c_float(1.0), a.ctypes.data, *a.strides, memory.ctypes.data,
        memory.nbytes, scale.ctypes.data, None,
    )  # fmt: skip
    function = kernels.library().npumm_quantize
    return Turns(lambda keep=(a, memory, scale, tiling): function(*arguments), copier(a), one_thread=True)


@line(
    "store C int32 to float32, {0}x4096, {1}",
    "memcpy of C",
    least=0.5,
    over=product((16, 128, 512), ("scales", "scales, bias", "scales, bias, residual", "scales, bias, silu, multiply")),
    counted="npumm_store",
)
def store_c(rows: int, steps: str) -> Iterator[Turns]:
    """Scales per row and column, and what is done in the same pass."""
    n = 4096
    where = layout.c_native(rows, n, ElementType.INT32, "rk3588")
    c, out = RNG.integers(-(10**6), 10**6, where.nbytes // 4, np.int32), np.empty((rows, n), np.float32)
    bias, scale = RNG.standard_normal((2, n), np.float32)
    factor, other = RNG.random(rows), RNG.standard_normal((rows, n), np.float32)
    matrix = Matrix(other.ctypes.data, other.strides[0], Element.FLOAT32)
    epilogue = EpilogueStruct(scale=1.0, low=-np.inf, high=np.inf)
    if "bias" in steps:
        epilogue.bias = bias.ctypes.data
    if "silu" in steps:
        epilogue.function, epilogue.multiply = Function.SILU, matrix
    if "residual" in steps:
        epilogue.residual = matrix
    result = Result(
        data=out.ctypes.data, row_stride=out.strides[0], type=Element.FLOAT32, row_factor=factor.ctypes.data,
        column_scale=scale.ctypes.data, epilogue=C.pointer(epilogue) if "bias" in steps else None,
    )  # fmt: skip
    term, tiling, function = Term(type=ResultType.INT32, row_images=1), where.tiling(), _store()
    keep = (bias, scale, factor, other, out)
    yield Turns(
        lambda keep=keep: function(tiling, term, c.ctypes.data, c.nbytes, None, result), copier(c), one_thread=True
    )
