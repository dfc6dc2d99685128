"""The tile algebra: how A, B and C stand in NPU memory, and packing into and out of it (facts 4).

Every layout is one formula over (rows, columns), padded extents and a tile; `native/include/npumatmul_kernels.h`
states it. This module says which rows, columns and tiles make which matrix of which chip, and packs host arrays.

Packed matrices are one-dimensional ``uint8`` arrays: exactly the bytes that the NPU reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import Chip, chip
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.errors import DeviceError
from npumatmul.host import kernels

__all__ = [
    "TileLayout",
    "a_native",
    "b_native",
    "b_native_of",
    "b_normal",
    "b_transposed",
    "c_native",
    "in_nibble_order",
    "normal",
    "pack",
    "pack_a",
    "pack_b",
    "pack_c",
    "pack_into",
    "round_up",
    "unpack",
    "unpack_a",
    "unpack_b",
    "unpack_c",
]


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is not below `value`.

    Raises
    ------
    ValueError
        If `multiple` is below 1.

    Examples
    --------
    >>> round_up(33, 32)
    64
    """
    if multiple < 1:
        raise ValueError(f"round_up: there are no multiples of {multiple} to round to")
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class TileLayout:
    """Where the elements of a matrix stand.

    Attributes
    ----------
    rows, cols : int
        Extents of the data.
    padded_rows, padded_cols : int
        Extents in memory; what exceeds the data is zeros.
    tile_rows, tile_cols : int
        A tile; the column index is the fastest inside it, then the row, then tiles along the columns.
    element : ElementType
        Type of the elements.
    transposed : bool
        Whether the rows here are the columns of the matrix that the user sees (B: rows are N, columns K).
    int4_low_first : bool
        Whether the even one of two int4 in a byte is its low half, as from runtime 2.0.0b0 on (facts 4.6).
    """

    rows: int
    cols: int
    padded_rows: int
    padded_cols: int
    tile_rows: int
    tile_cols: int
    element: ElementType
    transposed: bool = False
    int4_low_first: bool = True

    def __post_init__(self) -> None:
        if (
            self.padded_rows % self.tile_rows
            or self.padded_cols % self.tile_cols
            or not 0 <= self.rows <= self.padded_rows
            or not 0 <= self.cols <= self.padded_cols
        ):
            raise ValueError(f"extents and tiles do not fit together: {self}")

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the matrix as the user sees it: (M, K), (K, N) or (M, N)."""
        return (self.cols, self.rows) if self.transposed else (self.rows, self.cols)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed matrix."""
        return self.element.nbytes(self.padded_rows * self.padded_cols)

    def in_nibble_order(self, int4_low_first: bool) -> TileLayout:
        """The same for a runtime with that order of int4 (`Runtime.int4_low_nibble_first`)."""
        return self if int4_low_first == self.int4_low_first else replace(self, int4_low_first=int4_low_first)

    @property
    def copying(self) -> kernels.Conversion:
        """The conversion of the C kernels that keeps values as they are."""
        return in_nibble_order(_COPY[self.element], self.int4_low_first)

    def tiling(self) -> kernels.Tiling:
        """The same for the C kernels."""
        return kernels.Tiling(self.rows, self.cols, self.padded_rows, self.padded_cols, self.tile_rows, self.tile_cols)


_HIGH_FIRST = {
    kernels.Conversion.INT4: kernels.Conversion.INT4_HIGH_FIRST,
    kernels.Conversion.F32_TO_I4: kernels.Conversion.F32_TO_I4_HIGH_FIRST,
    kernels.Conversion.F32_TO_I4_SPLIT: kernels.Conversion.F32_TO_I4_SPLIT_HIGH_FIRST,
}


def in_nibble_order(conversion: kernels.Conversion, int4_low_first: bool) -> kernels.Conversion:
    """A conversion of the C kernels in the order of int4 that a runtime has (`Runtime.int4_low_nibble_first`).

    This is the one place that knows of the order: whoever packs for a device takes its conversion from here.
    """
    return conversion if int4_low_first else _HIGH_FIRST.get(conversion, conversion)


def normal(rows: int, cols: int, element: ElementType, padded: tuple[int, int] | None = None) -> TileLayout:
    """Row-major layout of A or C (facts 4.1)."""
    padded_rows, padded_cols = padded or (rows, cols)
    return TileLayout(rows, cols, padded_rows, padded_cols, max(padded_rows, 1), max(padded_cols, 1), element)


def b_normal(k: int, n: int, element: ElementType) -> TileLayout:
    """Row-major [K, N] layout of B."""
    return normal(k, n, element)


def b_transposed(k: int, n: int, element: ElementType) -> TileLayout:
    """Row-major [N, K] layout of B (TP_NORM)."""
    return TileLayout(n, k, n, k, max(n, 1), max(k, 1), element, transposed=True)


def _grouped(rows: int, cols: int, group: int, element: ElementType, padded: tuple[int, int] | None) -> TileLayout:
    padded_rows, padded_cols = padded or (rows, round_up(cols, group))
    return TileLayout(rows, cols, padded_rows, padded_cols, max(padded_rows, 1), group, element)


def a_native(m: int, k: int, element: ElementType, on: Chip | str, padded: tuple[int, int] | None = None) -> TileLayout:
    """Native layout of A, ``[K/g, M, g]``; `padded` gives M and K in memory.

    Examples
    --------
    >>> a_native(4, 64, ElementType.INT8, "rk3588").tile_cols
    16
    """
    return _grouped(m, k, _tile(_chip(on).native.a, element, "A", on), element, padded)


def c_native(m: int, n: int, element: ElementType, on: Chip | str, padded: tuple[int, int] | None = None) -> TileLayout:
    """Native layout of C, ``[N/g, M, g]``; `padded` gives M and N in memory."""
    return _grouped(m, n, _tile(_chip(on).native.c, element, "C", on), element, padded)


def b_native(k: int, n: int, element: ElementType, on: Chip | str, padded: tuple[int, int] | None = None) -> TileLayout:
    """Native layout of B, ``[N/n, K/k, n, k]``, one segment; `padded` gives K and N in memory.

    Examples
    --------
    >>> b_native(64, 48, ElementType.FLOAT16, "rk3588").nbytes
    6144
    """
    tile_n, tile_k = _tile(_chip(on).native.b, element, "B", on)
    padded_k, padded_n = padded or (round_up(k, tile_k), round_up(n, tile_n))
    return TileLayout(n, k, padded_n, padded_k, tile_n, tile_k, element, transposed=True)


def b_native_of(
    k: int, n: int, mm_type: MatmulType, on: Chip | str, padded: tuple[int, int] | None = None
) -> TileLayout:
    """Native layout of B in a matmul type: with A of another type, B has the tile of A's type (facts 4.5).

    Examples
    --------
    >>> b_native_of(64, 64, MatmulType.FLOAT16_INT4_FLOAT32, "rk3576").tile_rows
    16
    """
    of_a_type = b_native(k, n, mm_type.a, on, padded)
    return of_a_type if mm_type.b is mm_type.a else replace(of_a_type, element=mm_type.b)


def _chip(on: Chip | str) -> Chip:
    if isinstance(on, Chip):
        return on
    if not isinstance(on, str):
        raise TypeError(f"a chip is needed, such as chip('rk3588') or its name, not {type(on).__name__}")
    return chip(on)


_Tile = TypeVar("_Tile")


def _tile(table: Mapping[ElementType, _Tile], element: ElementType, matrix: str, on: Chip | str) -> _Tile:
    if element not in table:
        raise DeviceError(
            f"no source documents a native layout of {matrix} in {element.label} on {_chip(on).soc}; "
            f"documented are {', '.join(e.label for e in table)}"
        )
    return table[element]


def pack(matrix: NDArray[np.generic], layout: TileLayout) -> NDArray[np.uint8]:
    """Pack a matrix of any strides.

    Parameters
    ----------
    matrix : ndarray
        Of ``layout.shape`` and ``layout.element.dtype`` (int4: one value per byte, as `ml_dtypes` has it).
    layout : TileLayout
        Where its elements go.

    Returns
    -------
    ndarray of uint8, shape (layout.nbytes,)

    Raises
    ------
    TypeError, ValueError
        If dtype or shape differ from the layout's.

    Examples
    --------
    >>> b = np.arange(64 * 32, dtype=np.int8).reshape(64, 32)
    >>> packed = pack(b, b_native(64, 32, ElementType.INT8, "rk3588"))
    >>> bool((packed[:32].view(np.int8) == b[:32, 0]).all())  # k is the fastest index
    True
    """
    packed = np.empty(layout.nbytes, np.uint8)
    pack_into(matrix, layout, packed.ctypes.data, packed.nbytes)
    return packed


def pack_into(matrix: NDArray[np.generic], layout: TileLayout, address: int, nbytes: int) -> None:
    """`pack` into memory at an address.

    Raises
    ------
    TypeError, ValueError
        If dtype or shape differ from the layout's, or the memory is too small; nothing was written.
    """
    matrix = _checked(matrix, layout, "pack")
    source = matrix.T if layout.transposed else matrix
    kernels.pack(layout.tiling(), layout.copying, source, address, nbytes)


def unpack(packed: NDArray[np.uint8], layout: TileLayout) -> NDArray[np.generic]:
    """Undo `pack`.

    Parameters
    ----------
    packed : ndarray of uint8, shape (layout.nbytes,)
    layout : TileLayout

    Returns
    -------
    ndarray of ``layout.shape``

    Raises
    ------
    ValueError
        If `packed` has another size.

    Examples
    --------
    >>> layout = a_native(2, 16, ElementType.INT8, "rk3588")
    >>> a = np.ones((2, 16), np.int8)
    >>> bool((unpack(pack(a, layout), layout) == a).all())
    True
    """
    if packed.dtype != np.uint8 or packed.shape != (layout.nbytes,):
        raise ValueError(
            f"unpack: expected {layout.nbytes} bytes as a 1-D uint8 array, got {packed.dtype} of {packed.shape}"
        )
    packed = np.ascontiguousarray(packed)
    matrix = np.empty(layout.shape, layout.element.dtype)
    destination = matrix.T if layout.transposed else matrix
    kernels.unpack(layout.tiling(), layout.copying, packed.ctypes.data, packed.nbytes, destination)
    return matrix


def pack_a(a: NDArray[np.generic], on: Chip | str) -> NDArray[np.uint8]:
    """Pack A of shape (M, K) into the native layout of a chip."""
    return pack(a, a_native(*_two(a, "pack_a"), ElementType.of(a.dtype), on))


def pack_b(b: NDArray[np.generic], on: Chip | str) -> NDArray[np.uint8]:
    """Pack B of shape (K, N) into the native layout of a chip, one segment."""
    return pack(b, b_native(*_two(b, "pack_b"), ElementType.of(b.dtype), on))


def pack_c(c: NDArray[np.generic], on: Chip | str) -> NDArray[np.uint8]:
    """Pack C of shape (M, N) into the native layout of a chip."""
    return pack(c, c_native(*_two(c, "pack_c"), ElementType.of(c.dtype), on))


def unpack_a(packed: NDArray[np.uint8], m: int, k: int, element: ElementType, on: Chip | str) -> NDArray[np.generic]:
    """Undo `pack_a`: A of shape (M, K)."""
    return unpack(packed, a_native(m, k, element, on))


def unpack_b(packed: NDArray[np.uint8], k: int, n: int, element: ElementType, on: Chip | str) -> NDArray[np.generic]:
    """Undo `pack_b`: B of shape (K, N)."""
    return unpack(packed, b_native(k, n, element, on))


def unpack_c(packed: NDArray[np.uint8], m: int, n: int, element: ElementType, on: Chip | str) -> NDArray[np.generic]:
    """Undo `pack_c`: C of shape (M, N)."""
    return unpack(packed, c_native(m, n, element, on))


#: The copying conversion of each element type.
_COPY = {
    element: kernels.Conversion.INT4
    if element is ElementType.INT4
    else {8: kernels.Conversion.COPY_8, 16: kernels.Conversion.COPY_16, 32: kernels.Conversion.COPY_32}[element.bits]
    for element in ElementType
}


def _two(matrix: NDArray[np.generic], function: str) -> tuple[int, int]:
    if matrix.ndim != 2:
        raise ValueError(f"{function}: a matrix has 2 dimensions, this array has {matrix.ndim}")
    return matrix.shape[0], matrix.shape[1]


def _checked(matrix: NDArray[np.generic], layout: TileLayout, function: str) -> NDArray[np.generic]:
    if matrix.dtype.newbyteorder("=") != layout.element.dtype:
        raise TypeError(f"{function}: the layout holds {layout.element.label}, the array is {matrix.dtype}")
    if matrix.shape != layout.shape:
        raise ValueError(f"{function}: the layout is for shape {layout.shape}, the array has {matrix.shape}")
    return matrix if matrix.dtype.isnative else matrix.astype(matrix.dtype.newbyteorder("="))
