"""Plain arrays as operands: byte order, unsigned integers, and which dtypes a scheme takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.quant.schemes import SCHEMES, Scheme, cast_advice

__all__ = ["UINT8_SHIFT", "check_activation", "native_order", "shifted"]

#: What uint8 values are shifted by to become int8; the products are corrected exactly.
UINT8_SHIFT = 128


def check_activation(dtype: np.dtype[Any], scheme: Scheme, because: str) -> None:
    """Raise a `TypeError` that says what to cast, unless the scheme takes activations of a dtype."""
    if dtype not in scheme.activations:
        accepted = " or ".join(map(str, scheme.activations))
        if any(dtype in other.activations for other in SCHEMES.values()) or dtype == np.uint8:
            raise TypeError(f"matmul: {because}, so a has to be {accepted}, not {dtype}; cast one of them explicitly")
        raise TypeError(f"matmul: a: {cast_advice(dtype)}")


def shifted(array: NDArray[Any]) -> NDArray[Any]:
    """Return uint8 values less 128, as int8."""
    values: NDArray[Any] = np.bitwise_xor(array, np.uint8(UINT8_SHIFT)).view(np.int8)
    return values


def native_order(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in the byte order of the machine; a copy only where it is not."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
