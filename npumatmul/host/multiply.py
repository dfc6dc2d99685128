"""Typed binding of products with native tiles of B on the CPU (`npumm_multiply`)."""

from __future__ import annotations

import ctypes as C
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host import kernels

__all__ = ["NativeB", "Operands", "instruction_sets", "multiply"]


class Operands(IntEnum):
    """`npumm_operands`: elements of A and B."""

    I8_I8 = 0
    I8_I4 = 1
    I4_I4 = 2
    F16_F16 = 3
    F16_I8 = 4
    F16_I4 = 5

    @property
    def bits(self) -> tuple[int, int]:
        """Of an element of A and of B."""
        a, b = self.name.split("_")
        return int(a[1:]), int(b[1:])


class NativeB(C.Structure):
    """`npumm_native_b`: a native tile of B, ``[n / tile_n][k / tile_k][tile_n][tile_k]``."""

    _fields_ = (
        ("operands", C.c_int),
        ("high_first", C.c_int32),
        ("k", C.c_int64),
        ("n", C.c_int64),
        ("tile_n", C.c_int64),
        ("tile_k", C.c_int64),
    )


@lru_cache(maxsize=1)
def _functions() -> tuple[Any, Any]:
    library = kernels.library()
    by, name = library.npumm_multiply_by, library.npumm_multiply_set
    by.restype, name.restype, name.argtypes = C.c_int, C.c_char_p, (C.c_int32,)
    by.argtypes = (
        C.c_int32, C.POINTER(NativeB), C.c_int64, C.c_void_p, C.c_int64, C.c_void_p, C.c_void_p, C.c_int64
    )  # fmt: skip
    return by, name


def instruction_sets() -> tuple[str, ...]:
    """Names of those that this machine has: the scalar reference first, the one that products take last.

    Examples
    --------
    >>> instruction_sets()[0]
    'scalar'
    """
    found: list[str] = []
    while (name := _functions()[1](len(found))) is not None:
        found.append(name.decode())
    return tuple(found)


def multiply(of: NativeB, a: NDArray[np.uint8], b: NDArray[np.uint8], instruction_set: str = "") -> NDArray[Any]:
    """Multiply rows of A with a native B.

    Parameters
    ----------
    of : NativeB
    a : ndarray of uint8, shape (M, bytes of a row), C-contiguous
    b : ndarray of uint8, C-contiguous
        All of B.
    instruction_set : str
        Of `instruction_sets`; by default the last one.

    Returns
    -------
    ndarray of int32 or float32, shape (M, N)

    Raises
    ------
    ValueError
        If sizes do not fit, tiles are none that there are, or the machine has no such instruction set.
    """
    operands, sets = Operands(of.operands), instruction_sets()
    a_bits, b_bits = operands.bits
    if instruction_set and instruction_set not in sets:
        raise ValueError(f"multiply: this machine has {', '.join(sets)}, not {instruction_set!r}")
    if a.dtype != np.uint8 or a.ndim != 2 or a.shape[1] * 8 != of.k * a_bits or not a.flags.c_contiguous:
        raise ValueError(f"multiply: a is {a.dtype} of shape {a.shape}; rows of {of.k * a_bits // 8} bytes are needed")
    if b.dtype != np.uint8 or b.size * 8 != of.k * of.n * b_bits or not b.flags.c_contiguous:
        raise ValueError(f"multiply: b has {b.nbytes} bytes; {of.k * of.n * b_bits // 8} are needed")
    c = np.empty((len(a), of.n), np.float32 if a_bits == 16 else np.int32)
    index = sets.index(instruction_set) if instruction_set else len(sets) - 1
    code = _functions()[0](index, of, len(a), a.ctypes.data, a.shape[1], b.ctypes.data, c.ctypes.data, c.strides[0])
    if code == kernels.NO_MEMORY:
        raise MemoryError("multiply: out of memory")
    if code:
        raise ValueError(f"multiply: tiles of {of.tile_n} x {of.tile_k}, K = {of.k} and N = {of.n} do not go together")
    return c
