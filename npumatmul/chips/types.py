"""Element types of the matmul API and the numpy types that stand for them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from npumatmul.rknn.constants import MatmulTypeCode, TensorType

__all__ = ["ElementType", "MatmulType"]


class ElementType(Enum):
    """An element type as it stands in NPU memory: name, bits, `rknn_tensor_type`."""

    FLOAT32 = ("float32", 32, TensorType.FLOAT32)
    FLOAT16 = ("float16", 16, TensorType.FLOAT16)
    BFLOAT16 = ("bfloat16", 16, TensorType.BFLOAT16)
    INT32 = ("int32", 32, TensorType.INT32)
    INT16 = ("int16", 16, TensorType.INT16)
    INT8 = ("int8", 8, TensorType.INT8)
    INT4 = ("int4", 4, TensorType.INT4)

    def __init__(self, label: str, bits: int, tensor_type: TensorType) -> None:
        self.label = label
        self.bits = bits
        self.tensor_type = tensor_type

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The numpy dtype; `ml_dtypes.int4` and `bfloat16` for those that numpy lacks.

        Examples
        --------
        >>> ElementType.INT4.dtype
        dtype(int4)
        """
        extended: dict[ElementType, type] = {
            ElementType.INT4: ml_dtypes.int4,
            ElementType.BFLOAT16: ml_dtypes.bfloat16,
        }
        dtype: np.dtype[np.generic] = np.dtype(extended.get(self, self.label))
        return dtype

    def nbytes(self, elements: int) -> int:
        """Bytes that `elements` packed elements take; two int4 share a byte."""
        return (elements * self.bits + 7) // 8

    @classmethod
    def of(cls, dtype: DTypeLike) -> ElementType:
        """Element type of a numpy dtype.

        Raises
        ------
        TypeError
            If the NPU has no such type.
        """
        wanted = np.dtype(dtype).newbyteorder("=")
        for element in cls:
            if element.dtype == wanted:
                return element
        raise TypeError(f"the NPU has no {wanted} elements; it has {', '.join(e.label for e in cls)}")


@dataclass(frozen=True)
class _Operands:
    code: MatmulTypeCode
    a: ElementType
    b: ElementType
    c: ElementType


_F32, _F16, _BF16 = ElementType.FLOAT32, ElementType.FLOAT16, ElementType.BFLOAT16
_I32, _I16, _I8, _I4 = ElementType.INT32, ElementType.INT16, ElementType.INT8, ElementType.INT4


class MatmulType(Enum):
    """`rknn_matmul_type` with the element types of A, B and C (facts 1.4).

    Examples
    --------
    >>> MatmulType.INT8_INT8_INT32.code
    <MatmulTypeCode.INT8_MM_INT8_TO_INT32: 2>
    """

    FLOAT16_FLOAT16_FLOAT32 = _Operands(MatmulTypeCode.FLOAT16_MM_FLOAT16_TO_FLOAT32, _F16, _F16, _F32)
    INT8_INT8_INT32 = _Operands(MatmulTypeCode.INT8_MM_INT8_TO_INT32, _I8, _I8, _I32)
    INT8_INT8_INT8 = _Operands(MatmulTypeCode.INT8_MM_INT8_TO_INT8, _I8, _I8, _I8)
    FLOAT16_FLOAT16_FLOAT16 = _Operands(MatmulTypeCode.FLOAT16_MM_FLOAT16_TO_FLOAT16, _F16, _F16, _F16)
    FLOAT16_INT8_FLOAT32 = _Operands(MatmulTypeCode.FLOAT16_MM_INT8_TO_FLOAT32, _F16, _I8, _F32)
    FLOAT16_INT8_FLOAT16 = _Operands(MatmulTypeCode.FLOAT16_MM_INT8_TO_FLOAT16, _F16, _I8, _F16)
    FLOAT16_INT4_FLOAT32 = _Operands(MatmulTypeCode.FLOAT16_MM_INT4_TO_FLOAT32, _F16, _I4, _F32)
    FLOAT16_INT4_FLOAT16 = _Operands(MatmulTypeCode.FLOAT16_MM_INT4_TO_FLOAT16, _F16, _I4, _F16)
    INT8_INT8_FLOAT32 = _Operands(MatmulTypeCode.INT8_MM_INT8_TO_FLOAT32, _I8, _I8, _F32)
    INT4_INT4_INT16 = _Operands(MatmulTypeCode.INT4_MM_INT4_TO_INT16, _I4, _I4, _I16)
    INT8_INT4_INT32 = _Operands(MatmulTypeCode.INT8_MM_INT4_TO_INT32, _I8, _I4, _I32)
    FLOAT16_INT4_BFLOAT16 = _Operands(MatmulTypeCode.FLOAT16_MM_INT4_TO_BFLOAT16, _F16, _I4, _BF16)
    INT8_INT4_FLOAT16 = _Operands(MatmulTypeCode.INT8_MM_INT4_TO_FLOAT16, _I8, _I4, _F16)

    @property
    def code(self) -> MatmulTypeCode:
        """Number of the type in the C API."""
        return self.value.code

    @property
    def a(self) -> ElementType:
        """Element type of A."""
        return self.value.a

    @property
    def b(self) -> ElementType:
        """Element type of B."""
        return self.value.b

    @property
    def c(self) -> ElementType:
        """Element type of C."""
        return self.value.c
