"""Product layers on the NPU: what puts a model's weights there, floats or quantized ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.llm.quantize.emulation import group_sums
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.packed_layer import PackedLayer, pack_layer
from npumatmul.nn.product import Float32, Pack, PackedProduct, Product, named
from npumatmul.ops import PackedWeight, matmul, pack
from npumatmul.quant.schemes import scheme_for

__all__ = ["EXTRAS", "NpuLinear", "NpuQuantizedLinear", "npu_layers", "npu_pack", "product_of_parts"]

#: What a layer may have beside its packed weight, float32, by the names of attributes.
EXTRAS = ("offset", "bias", "centre")


NpuLinear: TypeAlias = PackedProduct
"""A `Product` whose weight stays on the NPU."""


class NpuQuantizedLinear:
    """A quantized layer whose codes stay on the NPU.

    Offsets and biases are the host's: for blocks of 32 that were taken over with minima, sums of activations over each
    block are multiplied with the minima in float32, 1/32 of the layer's multiply-accumulates.

    Parameters
    ----------
    weight : PackedWeight
        Its codes.
    offset, bias, centre : ndarray of float32, optional
        As in `QuantizedLayer`.
    """

    #: It may be called again for the same rows.
    recordable: ClassVar[bool] = False

    def __init__(
        self,
        weight: PackedWeight,
        offset: Float32 | None = None,
        bias: Float32 | None = None,
        centre: Float32 | None = None,
    ) -> None:
        self.weight, self.bias = weight, bias
        params = weight.params
        self._transform = weight.input_transform
        self._group_size = self.shape[0] if params is None or params.group_size is None else params.group_size
        self.offset, self.centre = offset, centre

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        return self.weight.shape

    @staticmethod
    def of_layer(layer: QuantizedLayer | PackedLayer, device: Device) -> Product:
        """Put a layer onto a device; tiles of a packed one are copied as they are."""
        weight = layer.on(device) if isinstance(layer, PackedLayer) else pack_layer(layer, device)
        extras = {part: array for part in EXTRAS if (array := getattr(layer, part)) is not None}
        return product_of_parts(weight, extras)

    def __call__(self, x: Float32) -> Float32:
        """Multiply ``(M, K)`` to ``(M, N)``."""
        if self.centre is not None:
            x = x - self.centre
        y: Float32 = matmul(x, self.weight)
        if self.offset is not None:
            given = x if self._transform is None else np.asarray(self._transform.activation(x), np.float32)
            y += group_sums(given, self._group_size) @ self.offset.T
        if self.bias is not None:
            y += self.bias
        return y


def product_of_parts(weight: PackedWeight, extras: Mapping[str, Float32]) -> Product:
    """The product of a layer from its packed weight and those of `EXTRAS` that it has."""
    return NpuQuantizedLinear(weight, **extras) if extras else PackedProduct(weight)


def npu_layers(device: Device | str | None = None) -> Callable[[QuantizedLayer | PackedLayer, str], Product]:
    """Make the function that uploads each layer of a quantized model to a device.

    Parameters
    ----------
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    callable
        From a `QuantizedLayer` or `PackedLayer` and its name to a `Product`; what `QuantizedModel.load` takes.
        Nothing is rounded again.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm.quantize import LayerRecipe, quantize_layer
    >>> layer = quantize_layer(np.eye(32, dtype=np.float32), LayerRecipe("w8a8"))
    >>> npu_layers("sim:rk3588")(layer, "head").shape
    (32, 32)
    """
    target = current_device(device)

    def upload(layer: QuantizedLayer | PackedLayer, name: str) -> Product:
        return named(NpuQuantizedLinear.of_layer(layer, target), name)

    return upload


def npu_pack(scheme: str = "w16a16", device: Device | str | None = None) -> Pack:
    """Make the function that packs each weight of a model and uploads it to a device.

    Parameters
    ----------
    scheme : str
        Name of any scheme that takes floats. ``"w16a16"``: float16, sums in float32. ``"w8a8"``: int8 weights with a
        scale per output channel and int8 activations with a scale per token. ``"w4a8_g32"``: int4 weights with a scale
        per 32 values. `npumatmul.quant.schemes` says how names are made.
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    callable
        From a float32 weight ``(N, K)`` and the name of its layer to a `Product`.

    Raises
    ------
    ValueError
        If there is no such scheme.
    TypeError
        If the scheme does not take float32 weights.

    Examples
    --------
    >>> import numpy as np
    >>> linear = npu_pack("w8a8", "sim:rk3588")(np.eye(32, dtype=np.float32))
    >>> linear.shape
    (32, 32)
    """
    chosen = scheme_for(np.dtype(np.float32), scheme, "npu_pack")  # a wrong name is told before a model is opened
    target = current_device(device)

    def pack_weight(weight: NDArray[np.float32], name: str = "") -> Product:
        return named(NpuLinear(pack(weight, chosen, transposed=True, device=target)), name)

    return pack_weight
