"""Randomized Hadamard transform: spreads outliers of activations and weights over all features."""

from __future__ import annotations

from functools import cached_property
from math import prod, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host import kernels
from npumatmul.quant.functions import float_array
from npumatmul.quant.hadamard_matrices import factor_matrix, hadamard_factors, largest_hadamard_block

__all__ = ["Hadamard"]

MOST_FEATURES = 1 << 31

#: A power of two is cut into factors of at most this, each a small matrix product.
_CHUNK = 64


class Hadamard:
    """Multiply features by random signs and an orthonormal Hadamard matrix.

    ``activation(x) = (x * signs) @ H.T / sqrt(block)``, and the same for weights: H is orthogonal, so products stay
    what they were. A value that stands out is spread over its whole block, so that rounding has less to represent.

    Parameters
    ----------
    features : int
        K.
    block : int, optional
        Features that are mixed with each other: a divisor of K for which a Hadamard matrix is known. The largest by
        default, which is K itself for most widths of language models.
    seed : int or None
        Of the signs, which are the same on every machine and version; None for no signs.

    Attributes
    ----------
    features, block, seed
    factors : tuple of int
        Orders whose Kronecker product is the matrix, the power of two last.
    signs : ndarray of float32, shape (K,)
        1 and -1; read-only.

    Raises
    ------
    ValueError
        If the block does not divide K, or no Hadamard matrix of that order is known here.

    Examples
    --------
    >>> transform = Hadamard(576)
    >>> transform
    Hadamard(576, block=576=12*12*4, seed=0)
    >>> x = np.zeros((1, 576)); x[0, 5] = 24
    >>> np.unique(np.abs(transform.activation(x)))
    array([1.])
    """

    def __init__(self, features: int, block: int | None = None, seed: int | None = 0) -> None:
        if not 1 <= features <= MOST_FEATURES:  # beyond, looking for divisors takes for ever
            raise ValueError(f"Hadamard: features is from 1 to {MOST_FEATURES}, not {features}")
        self.features = int(features)
        self.block = int(block) if block is not None else largest_hadamard_block(features)
        self.seed = None if seed is None else int(seed)
        if self.block < 1 or self.features % self.block:
            raise ValueError(f"Hadamard: block={self.block} does not divide the {self.features} features")
        factors = hadamard_factors(self.block)
        if factors is None:
            raise ValueError(
                f"Hadamard: no Hadamard matrix of order {self.block} is known here; the largest one that divides "
                f"{self.features} is {largest_hadamard_block(self.features)}"
            )
        self.factors = factors

    def __repr__(self) -> str:
        product = "*".join(map(str, (f for f in self.factors if f > 1)))
        shown = f"={product}" if "*" in product else ""
        return f"Hadamard({self.features}, block={self.block}{shown}, seed={self.seed})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hadamard) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash((self.features, self.block, self.seed))

    def __reduce__(self) -> tuple[Any, ...]:
        return Hadamard, (self.features, self.block, self.seed)

    @cached_property
    def signs(self) -> NDArray[np.float32]:
        """1 or -1 per feature."""
        signs = np.ones(self.features, np.float32)
        if self.seed is not None:
            signs[_random_bits(self.features, self.seed)] = -1
        signs.flags.writeable = False
        return signs

    @cached_property
    def kernel(self) -> kernels.Hadamard:
        """The same for the C kernel, which transforms rows ahead of packing."""
        return self.kernel_after(None)

    def kernel_after(self, divisor: NDArray[np.float32] | None) -> kernels.Hadamard:
        """For the C kernel: features divided by `divisor` (K,), then transformed."""
        *dense, power = self.factors
        matrices = tuple(factor_matrix(order) for order in dense)
        return kernels.hadamard(matrices, power, self._prescale(np.dtype(np.float32)), divisor)

    def activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Transform activations.

        Parameters
        ----------
        x : ndarray, shape (..., K)
            float64 and integers are transformed in float64, everything else in float32.

        Returns
        -------
        ndarray, shape (..., K)
            A new array.

        Raises
        ------
        ValueError
            If the last axis is not K.
        """
        values = self._checked(x, "activation")
        if values.dtype == np.float32:
            result = np.empty(values.shape, np.float32)
            kernels.hadamard_rows(self.kernel, values.reshape(-1, self.features), result.reshape(-1, self.features))
            return result
        return self._multiplied(values * self._prescale(values.dtype), transposed=False)

    def weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Transform a weight (N, K): the same as `activation`."""
        return self.activation(w)

    def inverse_activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Undo `activation`."""
        values = self._checked(x, "inverse_activation")
        result = self._multiplied(values, transposed=True)
        result *= self._prescale(values.dtype)
        return result

    def inverse_weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Undo `weight`."""
        return self.inverse_activation(w)

    def describe(self) -> dict[str, Any]:
        """All that makes it again, as values that JSON can hold."""
        return {"kind": "hadamard", "features": self.features, "block": self.block, "seed": self.seed}

    def _prescale(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Signs over sqrt(block), in the dtype of the values: the only rounding beside that of the sums."""
        return (self.signs.astype(np.float64) / sqrt(self.block)).astype(dtype)

    def _checked(self, x: NDArray[Any], method: str) -> NDArray[Any]:
        values = float_array(x, f"Hadamard.{method}")
        if values.ndim == 0 or values.shape[-1] != self.features:
            raise ValueError(
                f"Hadamard.{method}: the last axis has to be the {self.features} features; the shape is {values.shape}"
            )
        return values

    def _multiplied(self, values: NDArray[Any], transposed: bool) -> NDArray[Any]:
        """Multiply each block by the Kronecker product, factor by factor."""
        shape = values.shape
        result = np.ascontiguousarray(values)
        *dense, power = self.factors
        chunks: list[int] = []
        while power > 1:
            chunks.append(min(power, _CHUNK))
            power //= chunks[-1]
        orders = (*dense, *chunks)
        for i, order in enumerate(orders):
            matrix = factor_matrix(order).astype(values.dtype)
            inner = prod(orders[i + 1 :])
            parts = result.reshape(-1, order, inner)
            result = (
                parts.reshape(-1, order) @ (matrix if transposed else matrix.T)
                if inner == 1
                else np.matmul(matrix.T if transposed else matrix, parts)
            )
        result = result.reshape(shape)
        return result.copy() if np.shares_memory(result, values) else result


def _random_bits(count: int, seed: int) -> NDArray[np.bool_]:
    """One bit per index of the splitmix64 sequence: unlike numpy's generators it can never change."""
    mask = (1 << 64) - 1
    index = np.arange(1, count + 1, dtype=np.uint64)
    z = np.uint64(seed & mask) + index * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(63), np.bool_)
