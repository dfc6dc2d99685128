"""Shapes and types of a product, by numpy's rules, settled before anything is computed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul.host import dlpack
from npumatmul.quant.given import check_whole, way_to_ndarray
from npumatmul.quant.schemes import FLOATS, cast_advice

__all__ = ["Shapes", "npu_kind", "operand", "refusal"]

_INTEGERS: tuple[np.dtype[Any], ...] = tuple(np.dtype(t) for t in (np.int8, np.uint8, ml_dtypes.int4))


def operand(x: Any, name: str, function: str) -> NDArray[Any]:
    """An operand as an array.

    Raises
    ------
    TypeError
        If it is none, nor a number (None, a string, an object that numpy knows nothing of), or something of it would
        be lost: see `check_whole`.
    """
    array = x if type(x) is np.ndarray else dlpack.as_ndarray(x, f"{function}: {name}")
    if array is not x:
        check_whole(x, function, name)
    if array.ndim == 0 and array.dtype.kind in "OSU":
        found = "None" if x is None else f"an object of type {type(x).__name__}"
        way = way_to_ndarray(x)
        raise TypeError(f"{function}: {name} is {found}; an array of numbers is needed{f': {way}' if way else ''}")
    return array


def npu_kind(dtype: np.dtype[Any]) -> str | None:
    """Return ``"float"`` or ``"integer"`` for dtypes that the NPU multiplies, None for others."""
    dtype = dtype.newbyteorder("=")
    return "float" if dtype in FLOATS else "integer" if dtype in _INTEGERS else None


def refusal(a: np.dtype[Any], b: np.dtype[Any]) -> str:
    """Why these dtypes cannot be multiplied, and what to do."""
    for name, dtype in (("a", a), ("b", b)):
        if dtype.kind in "OSU":
            return f"matmul: {name} holds Python objects or text (dtype {dtype}); an array of numbers is needed"
        if npu_kind(dtype) is None:
            return f"matmul: {name}: {cast_advice(dtype)}, or compute it on the CPU: with npu.config(fallback='numpy')"
    return f"matmul: a is {a} and b is {b}: a float and an integer; cast one of them explicitly"


@dataclass(frozen=True)
class Shapes:
    """A product (..., M, K) @ (..., K, N), 1-D operands promoted.

    Attributes
    ----------
    m, k, n : int
    batch : tuple of int
        Stack of the result.
    stack : tuple of int
        Stack of `b` as long as `batch`: 1 where one matrix of `b` meets many of `a`.
    result : tuple of int
        Shape of the product: without M or N where an operand is 1-D.
    """

    m: int
    k: int
    n: int
    batch: tuple[int, ...]
    stack: tuple[int, ...]
    result: tuple[int, ...]

    @classmethod
    def of(cls, a: tuple[int, ...], b: tuple[int, ...]) -> Shapes:
        """Fit two shapes together; the same ones again cost nothing.

        Raises
        ------
        ValueError
            If they do not fit; the message names the dimension and, where there is one, the likely fix.

        Examples
        --------
        >>> Shapes.of((5, 1, 2, 3), (4, 3, 7)).result
        (5, 4, 2, 7)
        """
        return _fitted(a, b)

    @cached_property
    def full(self) -> tuple[int, ...]:
        """Shape of the product with M and N kept."""
        return (*self.batch, self.m, self.n)

    @cached_property
    def core(self) -> int:
        """Dimensions of the result that are not of the stack."""
        return len(self.result) - len(self.batch)

    @cached_property
    def rows(self) -> int:
        """Rows that each matrix of `b` is multiplied with."""
        return self.m * math.prod(size for size, own in zip(self.batch, self.stack, strict=True) if own == 1)

    @cached_property
    def matrices(self) -> int:
        """Matrices of `b`."""
        return math.prod(self.stack)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of the whole product."""
        return math.prod(self.batch) * self.m * self.k * self.n

    @property
    def empty(self) -> bool:
        """Whether there is nothing to multiply: no element, or sums of none."""
        return self.k == 0 or 0 in self.full

    def matrices_of(self, b: NDArray[Any]) -> NDArray[Any]:
        """`b` as (*stack, K, N), as a view."""
        return b.reshape(*self.stack, self.k, self.n)

    def indices(self) -> Iterator[tuple[int, ...]]:
        """Where the matrices of `b` are in its stack."""
        return iter(np.ndindex(self.stack))

    def rows_of(self, a: NDArray[Any]) -> Iterator[tuple[tuple[int, ...], tuple[int | slice, ...], NDArray[Any]]]:
        """For each matrix of `b`: its index, where in the batch it is used, and all rows of `a` that it meets."""
        if self.matrices == 1:
            yield (0,) * len(self.stack), (), a.reshape(self.rows, self.k)
            return
        a = np.broadcast_to(a if a.ndim > 1 else a[np.newaxis], (*self.batch, self.m, self.k))
        for index in self.indices():
            where = tuple(slice(None) if size == 1 else i for size, i in zip(self.stack, index, strict=True))
            yield index, where, a[where].reshape(self.rows, self.k)


@lru_cache(maxsize=256)
def _fitted(a: tuple[int, ...], b: tuple[int, ...]) -> Shapes:
    for name, shape in (("a", a), ("b", b)):
        if not shape:
            raise ValueError(f"matmul: {name} is a scalar; use * to multiply by it")
    k = b[-2] if len(b) > 1 else b[0]
    if a[-1] != k:
        hint = ""
        if a[-1] == b[-1] and len(b) > 1:
            hint = "; b looks transposed: use its .T, or pack(w, transposed=True) for a weight stored as (N, K)"
        raise ValueError(
            f"matmul: the last dimension of a is K = {a[-1]}, but K of b is {k} (shapes {a} and {b}){hint}"
        )
    try:
        batch = np.broadcast_shapes(a[:-2], b[:-2])
    except RuntimeError as error:  # of numpy, which has arrays of more dimensions than it can broadcast
        most = max(len(a), len(b))
        raise ValueError(
            f"matmul: an operand has {most} dimensions, more than numpy can broadcast ({error})"
        ) from error
    except ValueError as error:
        raise ValueError(
            f"matmul: the stacks of a and b cannot be broadcast together: {a[:-2]} and {b[:-2]} (shapes {a} and {b})"
        ) from error
    m = a[-2] if len(a) > 1 else 1
    n = b[-1] if len(b) > 1 else 1
    stack = (1,) * (len(batch) - len(b[:-2])) + b[:-2]
    return Shapes(m, k, n, batch, stack, (*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else ())))
