"""What type checkers know of products: operands, options and places for results."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.device.device import Device
from npumatmul.host.epilogue import Epilogue
from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.quant.names import Precision, SchemeName
from npumatmul.quant.schemes import Scheme

if TYPE_CHECKING:
    from typing_extensions import Unpack  # which type checkers have for all versions of Python
else:
    Unpack = getattr(typing, "Unpack", None)  # of Python 3.11

__all__ = ["How", "HowMatmul", "Into", "Operand", "Place", "Unpack"]

#: What is multiplied.
Operand = ArrayLike | PackedWeight
#: Where a result goes, which is then what the function gives.
Place = TypeVar("Place", bound=NDArray[Any] | NpuArray)
#: What functions take as `out`.
Into = NDArray[Any] | NpuArray | tuple[NDArray[Any] | NpuArray] | None


class How(TypedDict, total=False):
    """Options of ours that all products take."""

    scheme: Scheme | SchemeName | None
    precision: Precision | None
    device: Device | str | None


class HowMatmul(How, total=False):
    """Options of `matmul`."""

    dtype: DTypeLike | None
    epilogue: Epilogue | None
    bias: ArrayLike | None
