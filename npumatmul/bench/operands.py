"""Random operands whose product is known exactly, and whether a result is that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul.bench.cases import TYPES, Case
from npumatmul.chips.types import ElementType
from npumatmul.host.kernels import RowScaling
from npumatmul.quant.params import Granularity
from npumatmul.quant.routes import Route

__all__ = ["Operands"]

#: Relative error of a rounding to float32, and of one to float16.
_U32 = 2.0**-24
#: Magnitudes of integers that stand for float16 values: sums of thousands of products stay exact in float32.
_SMALL = 15
#: Values of B that are checked at once.
_CHECKED = 1 << 22


@dataclass(frozen=True)
class Operands:
    """Two matrices to multiply.

    Attributes
    ----------
    a, b : ndarray, shapes (M, K) and (K, N)
    rounding : float
        How many roundings to float32 a sum meets at most, each of a size up to that of the sum of magnitudes; 0 of
        integers, whose products are exact.
    """

    a: NDArray[Any]
    b: NDArray[Any]
    rounding: float

    @classmethod
    def of_type(cls, case: Case, rng: np.random.Generator) -> Operands:
        """For a case that is a matmul type: as it takes them."""
        mm_type = TYPES[case.type_name]
        shapes = (case.m, case.k), (case.k, case.n)
        if mm_type.a is ElementType.FLOAT16:
            a, b = (rng.standard_normal(shape, np.float32).astype(np.float16) for shape in shapes)
            return cls(a, b, case.k + 1)
        # two int4 are so small that no int16 sum overflows
        largest = {ElementType.INT8: 127, ElementType.INT4: 1 if mm_type.a is ElementType.INT4 else 7}
        made: list[NDArray[Any]] = []
        for element, shape in zip((mm_type.a, mm_type.b), shapes, strict=True):
            values = rng.integers(-largest[element], largest[element] + 1, shape, np.int8)
            made.append(values.astype(ml_dtypes.int4) if element is ElementType.INT4 else values)
        return cls(made[0], made[1], 0)

    @classmethod
    def of_scheme(cls, case: Case, route: Route, rng: np.random.Generator) -> Operands:
        """For a case that is a scheme: floats, or integers, that quantization leaves as they are.

        They are integers. Where there is a scale it comes out as 1, for its group of values has the largest code there
        is, and without zero points no other one.
        """
        scheme = route.scheme
        activation = route.activations[scheme.activations[-1]]
        if scheme.integers:
            largest = 7 if scheme.weight_bits == 4 else 127
            a = rng.integers(-largest, largest + 1, (case.m, case.k), np.int8)
            b = rng.integers(-largest, largest + 1, (case.k, case.n), np.int8)
            if scheme.weight_bits == 4:
                return cls(a.astype(ml_dtypes.int4), b.astype(ml_dtypes.int4), 0)
            return cls(a, b, 0)
        group = scheme.group_size or case.k
        levels = _SMALL if scheme.activation_bits == 16 else activation.levels
        x = _codes(rng, (case.m, case.k), levels, scheme.activation_symmetric or scheme.activation_bits == 16)
        of_groups = activation.scaling in (RowScaling.ABSMAX_GROUPS, RowScaling.MINMAX_GROUPS)
        _reach_ends(x, group if of_groups else case.k, levels, scheme.activation_symmetric)
        levels = _SMALL if scheme.weight_bits == 16 else 2 ** (scheme.weight_bits - 1) - 1
        w = _codes(rng, (case.k, case.n), levels, scheme.symmetric)
        if scheme.weight_bits != 16:
            size = group if scheme.granularity is Granularity.GROUP else case.k
            _reach_ends(w.T, size, levels, scheme.symmetric)
        runs = -(-case.k // group) + -(-case.k // 256)  # slices of K, each rounded, and their sums
        return cls(x, w, 4 + runs)

    def check(self, result: NDArray[Any], what: object) -> None:
        """Compare a result with the exact product.

        Raises
        ------
        RuntimeError
            If it is another one; the message says where.
        """
        x = self.a.astype(np.float64)
        width = max(1, _CHECKED // len(self.b))
        places, first = 0, None
        for start in range(0, self.b.shape[1], width):  # in float64 the whole of it may not fit beside everything else
            y = self.b[:, start : start + width].astype(np.float64)
            got = result[:, start : start + width]
            exact = x @ y
            allowed: NDArray[np.float64] | float = 0.0
            if self.rounding:
                allowed = ((1 + _U32) ** self.rounding - 1) * (np.abs(x) @ np.abs(y))
            wrong = np.argwhere(~(np.abs(got.astype(np.float64) - exact) <= allowed))
            places += len(wrong)
            if len(wrong) and first is None:
                row, column = wrong[0]
                first = f"at ({row}, {start + column}) {got[row, column]} instead of {exact[row, column]}"
        if first is not None:
            raise RuntimeError(f"{what}: wrong result, {places} of {result.size} elements; {first}")


def _codes(rng: np.random.Generator, shape: tuple[int, int], levels: int, symmetric: bool) -> NDArray[np.float32]:
    return rng.integers(-levels - (not symmetric), levels + 1, shape, np.int16).astype(np.float32)


def _reach_ends(rows: NDArray[np.float32], size: int, levels: int, symmetric: bool) -> None:
    """Have the largest code in every so many values of each row; with zero points the least one, too."""
    starts = np.arange(0, rows.shape[1], size)
    rows[:, starts] = levels
    if not symmetric:
        others = np.minimum(starts + 1, rows.shape[1] - 1)
        rows[:, others] = -levels - 1
