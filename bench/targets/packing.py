"""Host kernels: packing into native layouts, with and without conversion, and what is done to results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import chip, layout
from npumatmul.chips.types import ElementType
from targets.lines import Turns, line

STORED = ("(K, N)", "(N, K)")


def packer(matrix: NDArray[Any], where: layout.TileLayout) -> Callable[[], None]:
    """Pack into memory that is there already, as a weight does that goes into NPU memory."""
    memory = np.zeros(where.nbytes, np.uint8)
    return lambda: layout.pack_into(matrix, where, memory.ctypes.data, memory.nbytes)


def copier(source: NDArray[Any]) -> Callable[[], None]:
    """Copy a contiguous array into memory that is there already."""
    copy = np.zeros_like(source)
    return lambda: np.copyto(copy, source)


def weight(dtype: str, size: int, stored: str) -> NDArray[Any]:
    """A square (K, N) matrix that is stored in one order or the other."""
    b = np.random.default_rng(0).integers(-99, 99, (size, size), np.int8).astype(dtype)
    return b if stored == "(K, N)" else b.T


@line(
    "pack B {0} {1}x{1} stored {2}",
    "memcpy",
    least=0.6,
    over=product(("int8", "float16"), (2048, 4096), STORED),
    counted="npumm_pack_rows",
)
def pack_b(dtype: str, size: int, stored: str) -> Iterator[Turns]:
    """The best that packing can be is a copy."""
    b = weight(dtype, size, stored)
    work = packer(b, layout.b_native(size, size, ElementType.of(b.dtype), "rk3588"))
    yield Turns(work, copier(b if stored == "(K, N)" else b.T))


@line("pack B {0} 2048x2048 stored (K, N)", "numpy transposition", over=[("float16",), ("int8",)])
def pack_b_by_numpy(dtype: str) -> Iterator[Turns]:
    """What one would write without this library."""
    b = weight(dtype, 2048, "(K, N)")
    tile_n, tile_k = chip("rk3588").native.b[ElementType.of(b.dtype)]
    tiles = b.reshape(2048 // tile_k, tile_k, 2048 // tile_n, tile_n).transpose(2, 0, 3, 1)
    copy = np.zeros(tiles.shape, dtype)
    yield Turns(
        packer(b, layout.b_native(2048, 2048, ElementType.of(b.dtype), "rk3588")), lambda: np.copyto(copy, tiles)
    )
