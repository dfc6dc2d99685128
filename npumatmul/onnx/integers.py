"""Products of 8-bit integers, exactly, in rows or over windows, and what becomes of their sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.onnx_bridge import Allocate
from npumatmul.nn.convolution import MOST
from npumatmul.nn.windows import pieces, positions, windows
from npumatmul.onnx.nodes import Computed, Given, needed
from npumatmul.ops import matmul

__all__ = ["IntegerNode", "Integers", "Rounding", "Sliding"]


@dataclass
class Integers:
    """A weight of 8-bit integers.

    Attributes
    ----------
    weight : PackedWeight
        Of int8, ``(K, N)``.
    sums : ndarray of int64, shape (N,)
        Of its columns.
    zero : ndarray of int64, shape (N,)
        What is subtracted from its columns.
    """

    weight: Any
    sums: NDArray[np.int64]
    zero: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        shape: tuple[int, int] = self.weight.shape
        return shape

    def multiplied(self, x: NDArray[Any], x_zero: NDArray[Any] | None) -> NDArray[np.int32]:
        """``(x - x_zero) @ (weight - zero)``, modulo 2**32 as it is computed in int32."""
        sums = matmul(x, self.weight).astype(np.int64)
        if self.zero.any():
            sums -= x.sum(axis=-1, dtype=np.int64)[..., None] * self.zero
        if x_zero is not None and x_zero.any():
            offset = x_zero.astype(np.int64).reshape(-1)
            rows = offset[0] if offset.size == 1 else offset[:, None]
            sums -= rows * (self.sums - self.shape[0] * self.zero)
        made: NDArray[np.int32] = sums.astype(np.int32)
        return made


@dataclass
class Sliding:
    """Windows of a convolution.

    Attributes
    ----------
    kernel, strides, dilations : sequence of int
    pads : sequence of (int, int)
    groups : int
    """

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    pads: Sequence[tuple[int, int]]
    groups: int

    def seen(self, x: NDArray[Any], zero: int) -> NDArray[Any] | None:
        """Windows of ``(B, C, *sizes)``: ``(B, *count, *kernel, C)``; what stands for 0 is around the values.

        None if there is not a single one.
        """
        sizes = [low + n + high for n, (low, high) in zip(x.shape[2:], self.pads, strict=True)]
        count = positions(sizes, self.kernel, self.strides, self.dilations)
        if min(count) < 1:
            return None
        whole = np.full((len(x), *sizes, x.shape[1]), zero, x.dtype)
        inside = tuple(slice(low, low + n) for n, (low, _) in zip(x.shape[2:], self.pads, strict=True))
        whole[(slice(None),) + inside] = np.moveaxis(x, 1, -1)  # noqa: RUF005
        return windows(whole, count, self.kernel, self.strides, self.dilations)


@dataclass
class Rounding:
    """What becomes of sums in int32.

    Attributes
    ----------
    scale : ndarray of float32, shape (1,) or (N,)
        In the order in which ONNX Runtime computes it.
    zero : ndarray or None
        Of the result, and of its type; None: the result is float32.
    """

    scale: NDArray[np.float32]
    zero: NDArray[Any] | None

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of results."""
        return np.dtype(np.float32) if self.zero is None else self.zero.dtype

    def rounded(self, sums: NDArray[np.int32]) -> NDArray[Any]:
        """Of sums: scaled in float32, rounded half to even, and kept within the type."""
        made: NDArray[Any] = sums.astype(np.float32) * self.scale
        if self.zero is None:
            return made
        limits = np.iinfo(self.zero.dtype)
        np.rint(made, out=made)
        made += self.zero.astype(np.float32)
        return np.clip(made, limits.min, limits.max, out=made).astype(self.zero.dtype)


@dataclass
class IntegerNode(Computed):
    """MatMulInteger, ConvInteger, QLinearMatMul, QLinearConv and QGemm.

    Attributes
    ----------
    weights : list of Integers
        One for each group.
    sliding : Sliding or None
        None: x has rows.
    x_zero : ndarray or None
        Zero point of x; None: it comes in with x, or is 0.
    bias : ndarray of int32, shape (N,), or None
        Of all groups, of the scale of the sums.
    rounding : Rounding or None
        None: the result is int32.
    """

    weights: list[Integers]
    sliding: Sliding | None = None
    x_zero: NDArray[Any] | None = None
    bias: NDArray[np.int32] | None = None
    rounding: Rounding | None = None

    @property
    def products(self) -> list[Any]:
        """One for each group."""
        return list(self.weights)

    def compute(self, given: Given, outputs: int, allocate: Allocate) -> None:
        """Multiply ``(..., K)`` to ``(..., N)``, or ``(B, C, *sizes)`` to ``(B, N, *sizes)``."""
        x = given[0]
        assert x is not None
        x_zero = self.x_zero if self.x_zero is not None or len(given) < 2 else given[1]
        rows = 1 if self.sliding is not None or x.ndim < 2 else x.shape[-2]
        if x_zero is not None and x_zero.size not in (1, rows):
            raise ValueError(f"node {self.name!r}: its input has {x_zero.size} zero points, and shape {x.shape}")
        dtype = np.dtype(np.int32) if self.rounding is None else self.rounding.dtype
        if self.sliding is None:
            k, n = self.weights[0].shape
            if x.ndim < 1 or x.shape[-1] != k:
                raise ValueError(f"node {self.name!r}: its input has shape {x.shape}, and its weight takes {k} values")
            y = needed(allocate(0, (*x.shape[:-1], n), dtype))
            self.rows += x.size // k
            y[...] = self._finished(self.weights[0].multiplied(x, x_zero))
            return
        y = self._convolved(x, x_zero, self.sliding)
        needed(allocate(0, y.shape, dtype))[...] = y

    def _convolved(self, x: NDArray[Any], x_zero: NDArray[Any] | None, sliding: Sliding) -> NDArray[Any]:
        k, n = self.weights[0].shape
        inputs = k // math.prod(sliding.kernel)
        if x.ndim != 2 + len(sliding.kernel) or x.shape[1] != inputs * sliding.groups:
            raise ValueError(
                f"node {self.name!r}: its input has shape {x.shape}; it takes {inputs * sliding.groups} channels and "
                f"{len(sliding.kernel)} sizes"
            )
        seen = sliding.seen(x, 0 if x_zero is None else int(x_zero.reshape(-1)[0]))
        if seen is None:
            raise ValueError(f"node {self.name!r}: its input, of shape {x.shape}, is smaller than one window")
        places = seen.shape[: x.ndim - 1]
        dtype = np.dtype(np.int32) if self.rounding is None else self.rounding.dtype
        y = np.empty((*places, n * sliding.groups), dtype)
        for piece in pieces(places, max(1, MOST // max(k, n) // sliding.groups)):
            rows = seen[piece]
            sums = np.empty((*rows.shape[: x.ndim - 1], n * sliding.groups), np.int32)
            for i, weight in enumerate(self.weights):
                part = np.ascontiguousarray(rows[..., i * inputs : (i + 1) * inputs]).reshape(-1, k)
                sums[..., i * n : (i + 1) * n] = weight.multiplied(part, x_zero).reshape(*sums.shape[:-1], n)
            y[piece] = self._finished(sums)
        self.rows += math.prod(places)
        return np.moveaxis(y, -1, 1)

    def _finished(self, sums: NDArray[np.int32]) -> NDArray[Any]:
        if self.bias is not None:
            with np.errstate(over="ignore"):  # modulo 2**32, as sums are
                sums = sums + self.bias
        return sums if self.rounding is None else self.rounding.rounded(sums)
