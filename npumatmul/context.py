"""A matmul context of the runtime: created for one shape of tile, checked against the capability table."""

from __future__ import annotations

import ctypes as C
import logging
from dataclasses import dataclass

from npumatmul import _kernels, layout
from npumatmul.capabilities import Chip
from npumatmul.errors import LayoutMismatchError
from npumatmul.layout import TileLayout
from npumatmul.mmtype import MatmulType
from npumatmul.rknn import CoreMask, MatmulInfo, MatmulLayout, MatmulTensorAttr, Runtime

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ContextKey:
    """What makes two contexts the same: weights of equal shape share one.

    Attributes
    ----------
    mm_type : MatmulType
    m, k, n : int
        Padded extents.
    ac_native : bool
        Whether A and C are in native layout; B always is.
    """

    mm_type: MatmulType
    m: int
    k: int
    n: int
    ac_native: bool

    def __str__(self) -> str:
        return f"{self.mm_type.name} {self.m}x{self.k}x{self.n}{' native A, C' if self.ac_native else ''}"


class MatmulContext:
    """A living context, on one NPU core.

    Parameters
    ----------
    runtime : Runtime
    chip : Chip
    key : ContextKey

    Raises
    ------
    RknnError
        If the runtime refuses it.
    LayoutMismatchError
        If the runtime's attributes differ from the capability table. No memory was touched then.
    """

    def __init__(self, runtime: Runtime, chip: Chip, key: ContextKey) -> None:
        self.key = key
        self._runtime = runtime
        info = MatmulInfo(
            M=key.m,
            K=key.k,
            N=key.n,
            type=key.mm_type.code,
            B_layout=MatmulLayout.NATIVE,
            AC_layout=MatmulLayout.NATIVE if key.ac_native else MatmulLayout.NORM,
        )
        self.handle, self.io_attr = runtime.matmul_create(info)
        self.closed = False
        try:
            self._check_attributes(chip)
            if chip.has_core_mask:
                runtime.matmul_set_core_mask(self.handle, CoreMask.CORE_0)
        except BaseException:
            self.close()
            raise
        mm_type = key.mm_type
        self.struct = _kernels.ExecutorContext(
            self.handle,
            key.m,
            key.k,
            key.n,
            chip.native.a[mm_type.a] if key.ac_native else 0,
            chip.native.c[mm_type.c] if key.ac_native else 0,
            self.io_attr,
        )
        self.pointer = C.pointer(self.struct)
        logger.debug("created context %s", key)

    def __repr__(self) -> str:
        return f"MatmulContext({self.key}{', closed' if self.closed else ''})"

    @property
    def a_bytes(self) -> int:
        """Bytes of A, as the runtime says."""
        return int(self.io_attr.A.size)

    @property
    def c_bytes(self) -> int:
        """Bytes of C, as the runtime says."""
        return int(self.io_attr.C.size)

    def _check_attributes(self, chip: Chip) -> None:
        key, mm_type = self.key, self.key.mm_type
        if key.ac_native:
            a = layout.a_native(key.m, key.k, mm_type.a, chip)
            c = layout.c_native(key.m, key.n, mm_type.c, chip)
        else:
            a = layout.normal(key.m, key.k, mm_type.a)
            c = layout.normal(key.m, key.n, mm_type.c)
        b = layout.b_native(key.k, key.n, mm_type.b, chip)
        self._check("A", self.io_attr.A, a, _dims_grouped(a) if key.ac_native else a.shape)
        self._check("B", self.io_attr.B, b, _dims_tiled(b))
        self._check("C", self.io_attr.C, c, _dims_grouped(c) if key.ac_native else c.shape)

    def _check(self, name: str, attr: MatmulTensorAttr, expected: TileLayout, dims: tuple[int, ...]) -> None:
        if attr.shape != dims or attr.size != expected.nbytes or attr.type != expected.element.tensor_type:
            raise LayoutMismatchError(
                f"{self.key}: the runtime says that {name} has dims {attr.shape}, {attr.size} bytes, tensor type "
                f"{attr.type}; the capability table says {dims}, {expected.nbytes} bytes, type "
                f"{int(expected.element.tensor_type)}. This runtime is not one that npumatmul knows: please report it."
            )

    def close(self) -> None:
        """Destroy the context. Closing twice is allowed."""
        if not self.closed:
            self.closed = True
            self._runtime.matmul_destroy(self.handle)


def _dims_grouped(of: TileLayout) -> tuple[int, ...]:
    return (of.padded_cols // of.tile_cols, of.padded_rows, of.tile_cols)


def _dims_tiled(of: TileLayout) -> tuple[int, ...]:
    return (of.padded_rows // of.tile_rows, of.padded_cols // of.tile_cols, of.tile_rows, of.tile_cols)
