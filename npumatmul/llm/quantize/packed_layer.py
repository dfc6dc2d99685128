"""A layer as a file holds it for one chip: tiles that go to the device byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.errors import PackedFileError
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.recipe import LayerRecipe
from npumatmul.ops import PackedWeight, pack
from npumatmul.ops.packed.files.api import StoredParts
from npumatmul.ops.packed.files.host import host_values
from npumatmul.ops.packed.files.tensors import restored
from npumatmul.quant.params import QuantParams
from npumatmul.quant.schemes import Scheme

__all__ = ["PackedLayer", "pack_layer", "stored_scheme"]


@dataclass(frozen=True, eq=False)
class PackedLayer:
    """A quantized layer in a file, laid out for a chip. Nothing of its weight is read before it is asked for.

    Attributes
    ----------
    recipe : LayerRecipe
        How it was made, and how activations are quantized.
    shape : tuple of int
        ``(N, K)``.
    description : mapping
        Of the packed weight; see `npumatmul.ops.packed.files.api`.
    parts : StoredParts
        Gives its tiles and arrays.
    offset : ndarray of float32, shape (N, groups), or None
    bias : ndarray of float32, shape (N,), or None
    centre : ndarray of float32, shape (K,), or None
        As in `QuantizedLayer`.

    Raises
    ------
    ValueError
        If the arrays do not fit the shape.
    """

    recipe: LayerRecipe
    shape: tuple[int, int]
    description: Mapping[str, Any]
    parts: StoredParts
    offset: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    centre: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        n, k = self.shape
        if list(self.description["shape"]) != [k, n]:
            raise ValueError(f"a packed weight (K, N) = {self.description['shape']}, {[k, n]} is needed")
        size = (self.description["params"] or {}).get("group_size")
        wanted = {"bias": (n,), "centre": (k,), "offset": (n, -(-k // size)) if size else None}
        for name, shape in wanted.items():
            array = getattr(self, name)
            if array is not None and (array.shape != shape or array.dtype != np.float32):
                raise ValueError(f"{name}: float32 of shape {shape} is needed, not {array.dtype} of {array.shape}")

    def __repr__(self) -> str:
        """Return scheme, shape and chip."""
        return f"<PackedLayer {self.recipe.scheme} {self.shape} for {self.soc}>"

    @property
    def soc(self) -> str:
        """The chip that it was laid out for."""
        return str(self.description["stored"]["soc"])

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as it is stored: padded tiles, scales, offsets and bias."""
        extra = (self.offset, self.bias, self.centre)
        return self.parts.nbytes + sum(each.nbytes for each in extra if each is not None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each value of the weight, scales and padding included."""
        return 8 * self.nbytes / max(1, self.shape[0] * self.shape[1])

    def on(self, device: Device) -> PackedWeight:
        """Put the weight into memory of a device: its tiles, byte for byte.

        Parameters
        ----------
        device : Device
            Of a chip and runtime with the layout of the file.

        Returns
        -------
        PackedWeight
            The weight.

        Raises
        ------
        npumatmul.errors.PackedFileError
            If the device has another layout, or the file is damaged.
        npumatmul.errors.NpuMemoryError
            If it does not fit.
        """
        again = f"lay it out anew: npumatmul quantize {self.parts.path} --chip {device.chip.soc} -o NEW_FILE"
        return restored(self.description, self.parts, device, self.parts.where, again, self.parts.read_into)

    def unpacked(self) -> QuantizedLayer:
        """The layer in plain arrays; no device is needed.

        Returns
        -------
        QuantizedLayer
            Its codes are those that were packed.

        Raises
        ------
        npumatmul.errors.PackedFileError
            If the file is damaged.
        """
        where = self.parts.where
        try:
            found = host_values(self.description, self.parts, where)
            return QuantizedLayer(
                self.recipe, found.weight, self.offset, self.bias, row_scale=found.row_scale, centre=self.centre
            )
        except PackedFileError:
            raise
        except ValueError as error:
            raise PackedFileError(f"{where} is damaged: its parts do not fit together: {error}") from error


def pack_layer(layer: QuantizedLayer, device: Device) -> PackedWeight:
    """Lay a layer's weight out for a device, in its memory. Nothing is rounded again.

    Parameters
    ----------
    layer : QuantizedLayer
        The layer.
    device : Device
        Where it goes.

    Returns
    -------
    PackedWeight
        The weight; offset, bias and centre are not in it.
    """
    if isinstance(layer.weight, np.ndarray):
        return pack(layer.restored(), "w16a16", transposed=True, device=device)
    return pack(layer.weight, _scheme_of(layer, layer.weight.params), device=device)


def stored_scheme(layer: QuantizedLayer | PackedLayer) -> str:
    """Name of the scheme that the layer's weight is stored by."""
    if isinstance(layer, PackedLayer):
        return str(layer.description["scheme"])
    return "w16a16" if isinstance(layer.weight, np.ndarray) else _scheme_of(layer, layer.weight.params).name


def _scheme_of(layer: QuantizedLayer, params: QuantParams) -> Scheme:
    """What the weight is, and how the layer's recipe quantizes activations."""
    parts = layer.recipe.parts
    activation: dict[str, Any] = {}
    if parts.activation_bits < 16:
        activation = {
            "activation_granularity": parts.activation_granularity,
            "activation_clip": layer.recipe.activation_clip,
            "activation_symmetric": layer.recipe.symmetric_activations,
        }
    return Scheme(
        4 if params.bits <= 4 else 8, parts.activation_bits, params.granularity, params.group_size,
        symmetric=params.symmetric, **activation,
    )  # fmt: skip
