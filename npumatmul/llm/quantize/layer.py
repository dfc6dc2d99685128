"""One quantized layer: codes with scales, or float16, and what belongs to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.kernels import Conversion
from npumatmul.llm.quantize.recipe import LayerRecipe
from npumatmul.quant.params import Granularity, QuantizedWeight

__all__ = ["QuantizedLayer"]


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """The weight of a linear layer as a recipe made it.

    With ``y = t(x - centre)``, the layer computes ``q(y) @ w.T + sums(y) @ offset.T + bias``: ``t`` is the weight's
    input transform, ``q`` the quantization of activations that the scheme names, ``w`` what the codes stand for, and
    ``sums`` the sums of activations over each group along K.

    Attributes
    ----------
    recipe : LayerRecipe
        How it was made, and how activations are quantized.
    weight : QuantizedWeight or ndarray of float16, shape (N, K)
        Codes with parameters; float16 values for ``w16a16``.
    row_scale : ndarray of float32, shape (N,), or None
        What rows of float16 values are multiplied with: powers of two, where a row would leave float16's range.
    offset : ndarray of float32, shape (N, groups), or None
        What is added to every value of a group of the weight: minima of blocks that were taken over from a file. Its
        share of the product is computed on the host in float32, from activations that are not quantized.
    bias : ndarray of float32, shape (N,), or None
        Added to results.
    centre : ndarray of float32, shape (K,), or None
        Subtracted from activations; `bias` holds its product with the float weight.

    Raises
    ------
    ValueError
        If parts do not fit together.
    """

    recipe: LayerRecipe
    weight: QuantizedWeight | NDArray[np.float16]
    offset: NDArray[np.float32] | None = None
    bias: NDArray[np.float32] | None = None
    row_scale: NDArray[np.float32] | None = None
    centre: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        """Check the shapes."""
        weight = self.weight
        if isinstance(weight, np.ndarray) and (weight.dtype != np.float16 or weight.ndim != 2):
            raise ValueError(f"a weight of {weight.dtype} with {weight.ndim} dimensions; float16 and 2 are needed")
        n = self.shape[0]
        if self.offset is not None:
            groups = weight.groups if isinstance(weight, QuantizedWeight) else 0
            if not isinstance(weight, QuantizedWeight) or weight.params.granularity is not Granularity.GROUP:
                raise ValueError("offsets belong to weights that are quantized in groups")
            if self.offset.shape != (n, groups) or self.offset.dtype != np.float32:
                raise ValueError(
                    f"offsets are float32 of shape {(n, groups)}, not {self.offset.dtype} {self.offset.shape}"
                )
        if self.row_scale is not None and (isinstance(weight, QuantizedWeight) or self.row_scale.shape != (n,)):
            raise ValueError(f"row scales belong to float16 weights, one for each of the {n} rows")
        if self.bias is not None and (self.bias.shape != (n,) or self.bias.dtype != np.float32):
            raise ValueError(f"a bias is float32 of shape {(n,)}, not {self.bias.dtype} of shape {self.bias.shape}")
        if self.centre is not None and (self.centre.shape != self.shape[1:] or self.centre.dtype != np.float32):
            raise ValueError(f"a centre is float32 of shape {self.shape[1:]}, not of shape {self.centre.shape}")

    def __repr__(self) -> str:
        """Return scheme, shape and bits."""
        return f"<QuantizedLayer {self.recipe.scheme} {self.shape}: {self.bits_per_weight:.2f} bits per weight>"

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)``."""
        return self.weight.shape[0], self.weight.shape[1]

    @property
    def activation_levels(self) -> int | None:
        """Largest magnitude of a quantized activation; None where activations are float16.

        Int8 beside int4 codes has fewer, since each value a is split into two int4 with a = 16 h + l. (Chips without
        int4 products store int4 codes as int8, and have all.)
        """
        bits = self.recipe.parts.activation_bits
        if isinstance(self.weight, np.ndarray) or bits == 16:
            return None
        if bits == 4:
            return Conversion.F32_TO_I4.levels
        split = self.weight.params.bits <= 4
        return (Conversion.F32_TO_I4_SPLIT if split else Conversion.F32_TO_I8).levels

    @property
    def group_size(self) -> int:
        """Values along K that share a scale; K where there are no groups."""
        weight = self.weight
        if isinstance(weight, QuantizedWeight) and weight.params.group_size is not None:
            return weight.params.group_size
        return self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as it is stored: int4 codes two to a byte, scales, int8 zero points, offsets and bias."""
        weight = self.weight
        half = self.half_groups()
        arrays = (None if half else self.offset, self.bias, self.row_scale, self.centre)
        extra = sum(each.nbytes for each in arrays if each is not None)
        if isinstance(weight, np.ndarray):
            return weight.nbytes + extra
        codes = weight.codes.size if weight.params.bits > 4 else -(-weight.shape[1] // 2) * weight.shape[0]
        zero_points = 0 if weight.params.symmetric else weight.params.zero_point.size
        scales = sum(part.nbytes for part in half if part is not None) if half else weight.params.scale.nbytes
        return codes + scales + zero_points + extra

    def half_groups(self) -> tuple[NDArray[np.float16], NDArray[np.float16] | None] | None:
        """Scales and minima of groups in float16, if they stand for scales and offsets exactly.

        Blocks of files hold them so. The minimum is the value of the smallest code.

        Returns
        -------
        tuple or None
            Scales and minima ``(N, groups)``, the latter None where there are no offsets; None if they are not exact.
        """
        if not isinstance(self.weight, QuantizedWeight) or self.weight.params.granularity is not Granularity.GROUP:
            return None
        params = self.weight.params
        with np.errstate(over="ignore"):
            scale = params.scale.astype(np.float16)
            if not np.array_equal(scale, params.scale):
                return None
            if self.offset is None:
                return scale, None
            minimum = (self.offset + params.qmin * params.scale).astype(np.float16)
        exact = np.array_equal(offset_of(scale, minimum, params.qmin), self.offset)
        return (scale, minimum) if exact else None

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each value of the weight, scales included."""
        return 8 * self.nbytes / max(1, self.shape[0] * self.shape[1])

    def restored(self) -> NDArray[np.float32]:
        """The float weight that the layer stands for, transforms undone; with the bias added, what it computes.

        Returns
        -------
        ndarray of float32, shape (N, K)
            It meets activations as they are.
        """
        if isinstance(self.weight, np.ndarray):
            values = self.weight.astype(np.float32)
            return values if self.row_scale is None else values * self.row_scale[:, np.newaxis]
        values = np.asarray(self.weight.dequantize(), np.float32)
        if self.offset is not None:
            values = values + np.repeat(self.offset, self.group_size, axis=1)[:, : self.shape[1]]
        transform = self.weight.input_transform
        return values if transform is None else np.asarray(transform.inverse_weight(values), np.float32)


def offset_of(scale: NDArray[np.float16], minimum: NDArray[np.float16], qmin: int) -> NDArray[np.float32]:
    """Offsets of groups from what `QuantizedLayer.half_groups` returned.

    Parameters
    ----------
    scale, minimum : ndarray of float16, shape (N, groups)
        Scales and minima.
    qmin : int
        The smallest code.

    Returns
    -------
    ndarray of float32, shape (N, groups)
        ``minimum - qmin * scale``.
    """
    offset: NDArray[np.float32] = minimum.astype(np.float32) - np.float32(qmin) * scale.astype(np.float32)
    return offset
