"""How rows of the left operand become rows of A."""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from npumatmul.host import executor
from npumatmul.host.kernels import Conversion, Hadamard, RowScaling

__all__ = ["Activation"]


@dataclass(frozen=True)
class Activation:
    """What happens to activations on their way to the NPU.

    Attributes
    ----------
    read_as : numpy.dtype
        What the kernel reads; a conversion to it is exact (float16 to float32) or none at all.
    conversion : Conversion
        What becomes of a value.
    scaling : RowScaling
        Where the scale of a row comes from: the power of two that keeps it in float16's range, its largest magnitude
        (ABSMAX), its smallest and largest value (MINMAX), or `static_scale` and `static_zero`. With ABSMAX_GROUPS and
        MINMAX_GROUPS each group of K (`KSlice.group`) has its own.
    levels : int
        Largest magnitude of a quantized value, `Conversion.levels`.
    clip : float
        Factor on the largest magnitude of a row: what lies beyond saturates.
    static_scale : float
        With STATIC: float value of one quantized step. Also of integers that are taken as they are, where the runtime
        itself scales their products (C of int8).
    static_zero : int
        With STATIC, and with UNSCALED int8: the quantized value that stands for 0.
    transform : Hadamard, optional
        What is done to float32 rows before their scales are found. Two activations with one each are equal only where
        it is the same object.

    Examples
    --------
    >>> Activation(np.dtype(np.float32), Conversion.F32_TO_I8, RowScaling.ABSMAX).levels
    127
    """

    read_as: np.dtype[Any]
    conversion: Conversion
    scaling: RowScaling = RowScaling.UNSCALED
    levels: int = 127
    clip: float = 1.0
    static_scale: float = 1.0
    static_zero: int = 0
    transform: Hadamard | None = None
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not (self.levels > 0 and 0 < self.clip <= 1 and 0 < self.static_scale < np.inf):
            raise ValueError(
                f"Activation: levels ({self.levels}) and static_scale ({self.static_scale}) have to be positive, "
                f"clip ({self.clip}) above 0 and at most 1"
            )
        if self.transform is not None and self.read_as != np.float32:
            raise ValueError(f"Activation: only float32 rows are transformed, not {self.read_as}")
        values = (self.conversion, self.scaling, self.levels, self.clip, self.static_scale, self.static_zero)
        object.__setattr__(
            self, "_hash", hash((*values, id(self.transform)))
        )  # computed once: it is looked up on every matmul

    def __hash__(self) -> int:
        return self._hash

    def struct(self, conversion: Conversion) -> executor.ActivationStruct:
        """For the executor, with the conversion that suits the runtime's order of int4 in a byte."""
        return executor.ActivationStruct(
            conversion,
            self.scaling,
            self.levels,
            self.clip,
            self.static_scale,
            self.static_zero,
            None if self.transform is None else C.pointer(self.transform),
        )
