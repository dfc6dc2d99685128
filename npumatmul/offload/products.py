"""Products of offloaded modules: how their weights are quantized and packed, and read back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.current import current_device
from npumatmul.errors import NotFiniteError
from npumatmul.llm.npu import NpuQuantizedLinear
from npumatmul.llm.quantize import best_recipe, quantize_layer, quick_recipe
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.nn.product import FLOAT32, Float32, FloatProduct, Product, check_scheme
from npumatmul.ops.packed.weight import PackedWeight

__all__ = ["Way", "check_way", "make_product", "nbytes_of", "place_of", "weight_and_shift"]


@dataclass(frozen=True)
class Way:
    """How weights are put where.

    Attributes
    ----------
    scheme : str
        As of `npumatmul.pack`, or ``"float32"``: numpy computes it, as a reference.
    device : Device or str or None
        The current device by default.
    """

    scheme: str
    device: Any = None


def check_way(way: Way) -> None:
    """Tell of a scheme that is none before anything is read.

    Raises
    ------
    ValueError, TypeError
    """
    if not isinstance(way.scheme, str):
        raise TypeError(f"offload: scheme is a name, not {type(way.scheme).__name__}")
    check_scheme(way.scheme, "offload")
    if way.scheme != FLOAT32:
        quick_recipe(way.scheme)


def make_product(weight: NDArray[Any], way: Way, statistics: LayerStatistics | None = None, name: str = "") -> Product:
    """Pack a weight ``(N, K)``.

    Where activations are quantized a Hadamard rotation comes first; with statistics of what comes in, the best recipe
    that is known for the scheme.
    """
    values = np.ascontiguousarray(weight, np.float32)
    if not np.isfinite(values).all():
        raise NotFiniteError(f"{name}: the weight holds an inf or nan")
    if way.scheme == FLOAT32:
        return FloatProduct(values.copy())
    recipe = quick_recipe(way.scheme) if statistics is None else best_recipe(way.scheme).default
    layer = quantize_layer(values, recipe, statistics, name=name)
    return NpuQuantizedLinear.of_layer(layer, current_device(way.device))


def weight_and_shift(product: Any) -> tuple[Float32, Float32 | None]:
    """The weight ``(N, K)`` that a product stands for, and what it adds besides."""
    if not isinstance(product, NpuQuantizedLinear):
        return np.asarray(product.unpack(), np.float32), None
    weight = np.asarray(product.weight.unpack().T, np.float32)
    shift = product.bias
    if product.centre is not None:
        shift = (0.0 if shift is None else shift) - weight @ product.centre
    return weight, shift


def nbytes_of(product: Any) -> int:
    """Bytes of a weight."""
    weight = product.weight
    return int(weight.nbytes)


def place_of(product: Any) -> str:
    """Where a product is computed: the name of a device, or ``"cpu"``."""
    weight = getattr(product, "weight", None)
    return weight.device.name if isinstance(weight, PackedWeight) else "cpu"
