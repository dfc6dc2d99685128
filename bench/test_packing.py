"""Packing into native layouts, beside a copy of the same bytes and beside numpy's transposition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Beside
from npumatmul.chips import chip, layout
from npumatmul.chips.types import ElementType

K = N = 2048


def _packer(matrix: NDArray[Any], where: layout.TileLayout) -> Callable[[], None]:
    """Pack into memory that is there already, as a weight does that goes into NPU memory."""
    memory = np.zeros(where.nbytes, np.uint8)
    return lambda: layout.pack_into(matrix, where, memory.ctypes.data, memory.nbytes)


def _native_b(b: NDArray[Any]) -> layout.TileLayout:
    return layout.b_native(K, N, ElementType.of(b.dtype), "rk3588")


def _weight(dtype: str) -> NDArray[Any]:
    return np.random.default_rng(0).integers(-99, 99, (K, N)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("stored", ["(K, N)", "(N, K)"])
def test_pack_b_beside_memcpy(beside: Beside, dtype: str, stored: str) -> None:
    """The best that packing can be is a copy."""
    b = _weight(dtype) if stored == "(K, N)" else np.ascontiguousarray(_weight(dtype).T).T
    source = np.ascontiguousarray(b)
    copy = np.zeros_like(source)
    what = f"pack B {dtype} {K}x{N} stored {stored}"
    beside(what, _packer(b, _native_b(b)), "memcpy", lambda: np.copyto(copy, source))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_pack_b_beside_numpy(beside: Beside, dtype: str) -> None:
    """What one would write without this library."""
    b = _weight(dtype)
    tile_n, tile_k = chip("rk3588").native.b[ElementType.of(b.dtype)]

    tiles = b.reshape(K // tile_k, tile_k, N // tile_n, tile_n).transpose(2, 0, 3, 1)
    copy = np.zeros(tiles.shape, dtype)
    np.copyto(copy, tiles)
    assert (layout.pack_b(b, "rk3588").view(dtype) == copy.reshape(-1)).all()
    what = f"pack B {dtype} {K}x{N} stored (K, N)"
    beside(what, _packer(b, _native_b(b)), "numpy transposition", lambda: np.copyto(copy, tiles))


@pytest.mark.parametrize("rows", [1, 128])
def test_pack_a_beside_memcpy(beside: Beside, rows: int) -> None:
    """Activations are packed on every call."""
    a = np.random.default_rng(0).standard_normal((rows, K)).astype(np.float16)
    copy = np.zeros_like(a)
    where = layout.a_native(rows, K, ElementType.FLOAT16, "rk3588")
    beside(f"pack A float16 {rows}x{K}", _packer(a, where), "memcpy", lambda: np.copyto(copy, a))
