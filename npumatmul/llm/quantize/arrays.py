"""What a recipe does to one product of arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.measure.analysis import ErrorSums
from npumatmul.llm.quantize.build import quantize_layer
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.llm.quantize.emulation import emulate
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.recipe import LayerRecipe
from npumatmul.nn.product import Float32, Product
from npumatmul.quant.meter import Share

__all__ = ["ProductError", "analyze_product"]


@dataclass(frozen=True)
class ProductError:
    """The error of a quantized product.

    Attributes
    ----------
    recipe : LayerRecipe
        What was done.
    bits_per_weight : float
        Stored bits for each value of the weight, scales included.
    weight : ErrorSums
        Of the product where only the weight is quantized.
    product : ErrorSums
        Of the product as it is computed.
    """

    recipe: LayerRecipe
    bits_per_weight: float
    weight: ErrorSums
    product: ErrorSums


def analyze_product(
    activations: Float32,
    weight: Float32,
    recipe: LayerRecipe,
    make: Callable[[QuantizedLayer, str], Product] = emulate,
    progress: Share | None = None,
) -> ProductError:
    """Quantize a weight, multiply, and compare with the product in float64.

    Parameters
    ----------
    activations : ndarray of float32, shape (M, K)
        Where the recipe calibrates, it does so on these.
    weight : ndarray of float32, shape (N, K)
        The weight, as PyTorch stores it.
    recipe : LayerRecipe
        What to do.
    make : callable
        What computes: `emulate` (the default), or what `npumatmul.llm.npu_layers` makes.
    progress : callable, optional
        Called with the share that is done, 0 to 1, about every second.

    Returns
    -------
    ProductError
        Errors against ``activations @ weight.T`` in float64.

    Raises
    ------
    ValueError
        If the shapes do not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm.quantize import LayerRecipe, analyze_product
    >>> rng = np.random.default_rng(0)
    >>> x, w = (rng.standard_normal((n, 256)).astype(np.float32) for n in (64, 96))
    >>> error = analyze_product(x, w, LayerRecipe("w8a8"))
    >>> 35 < error.product.snr_db < error.weight.snr_db < 50
    True
    """
    if activations.ndim != 2 or weight.ndim != 2 or activations.shape[1] != weight.shape[1]:
        raise ValueError(
            f"activations of shape {activations.shape} and a weight of shape {weight.shape} do not multiply; "
            "(M, K) and (N, K) are needed"
        )
    x = np.ascontiguousarray(activations, np.float32)
    statistics = LayerStatistics(x.shape[1])
    statistics.add(x)
    layer = quantize_layer(np.ascontiguousarray(weight, np.float32), recipe, statistics, progress=progress)
    exact: NDArray[np.float64] = x.astype(np.float64) @ weight.astype(np.float64).T
    restored = layer.restored().astype(np.float64)
    centred = x if layer.centre is None else x.astype(np.float64) - layer.centre
    rounded = centred @ restored.T + (0 if layer.bias is None else layer.bias)
    by_weight, whole = ErrorSums(), ErrorSums()
    by_weight.add(exact, rounded)
    whole.add(exact, make(layer, "weight")(x))
    return ProductError(recipe, layer.bits_per_weight, by_weight, whole)
