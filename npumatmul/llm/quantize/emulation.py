"""Quantized layers computed by numpy: what the NPU would answer, without one, in float32 arithmetic.

Activations are quantized per token, or token and group, as the kernels do it. Where all codes of a column share a
scale, the products are integers and their sums are exact: K is cut where a sum could reach 2**24, the end of float32's
whole numbers. With groups along K the scales are folded into the codes before the product, which differs from the
device's sums of scaled partial products by float32 rounding only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.packed_layer import PackedLayer
from npumatmul.nn.product import Float32, Product
from npumatmul.quant.params import Granularity

__all__ = ["EmulatedLinear", "emulate"]

EXACT_FLOAT32 = 1 << 24
"""Whole numbers up to this magnitude are exact in float32."""


class EmulatedLinear:
    """A quantized `Product` computed by numpy on the host; it emulates an NPU and uses none.

    Parameters
    ----------
    layer : QuantizedLayer
        The layer.
    """

    def __init__(self, layer: QuantizedLayer) -> None:
        self.layer = layer
        weight = layer.weight
        n, k = layer.shape
        self._levels = layer.activation_levels
        self._symmetric = layer.recipe.symmetric_activations
        self._clip = np.float32(layer.recipe.activation_clip)
        in_groups = layer.recipe.parts.activation_granularity is Granularity.GROUP
        self._group = layer.group_size if in_groups else None
        self._scale: NDArray[np.float32] | None = None
        self._step = k
        if isinstance(weight, np.ndarray):
            self._values: Float32 = layer.restored()
        elif weight.params.granularity is Granularity.GROUP or self._levels is None:
            self._values = weight.dequantize()
        else:
            _, zero_point = weight.params.expanded(weight.shape)
            self._values = (weight.codes - zero_point).astype(np.float32)
            self._scale = np.broadcast_to(weight.params.scale, (n,)).astype(np.float32)
            reach = self._levels if self._symmetric else 2 * self._levels + 1
            largest = max(int(np.abs(self._values).max(initial=0)), 1) * reach
            self._step = max(1, (EXACT_FLOAT32 - 1) // largest)

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        return self.layer.shape[1], self.layer.shape[0]

    def __call__(self, x: Float32) -> Float32:
        """Multiply ``(M, K)`` to ``(M, N)``."""
        layer = self.layer
        transform = None if isinstance(layer.weight, np.ndarray) else layer.weight.input_transform
        x = x if layer.centre is None else x - layer.centre
        given = x if transform is None else np.asarray(transform.activation(x), np.float32)
        if self._levels is None:
            result: Float32 = _as_float16(given) @ self._values.T
        else:
            quantized = quantize_rows if self._symmetric else quantize_rows_asymmetric
            if self._group is not None:
                grouped, scale = quantized(_in_groups(given, self._group), self._levels, self._clip)
                grouped *= scale[:, np.newaxis]
                codes = grouped.reshape(len(given), -1)[:, : given.shape[1]]
                row_scale = np.ones(len(given), np.float32)
            else:
                codes, row_scale = quantized(given, self._levels, self._clip)
            result = self._product(codes)
            result *= row_scale[:, np.newaxis] if self._scale is None else row_scale[:, np.newaxis] * self._scale
        if layer.offset is not None:
            result += group_sums(given, layer.group_size) @ layer.offset.T
        if layer.bias is not None:
            result += layer.bias
        return result

    def _product(self, codes: Float32) -> Float32:
        if self._step >= codes.shape[1]:
            exact: Float32 = codes @ self._values.T
            return exact
        total = np.zeros((len(codes), len(self._values)), np.float64)
        for start in range(0, codes.shape[1], self._step):
            total += codes[:, start : start + self._step] @ self._values[:, start : start + self._step].T
        return total.astype(np.float32)


def emulate(layer: QuantizedLayer | PackedLayer, name: str = "") -> Product:
    """Make a `Product` that numpy computes as the NPU would.

    Parameters
    ----------
    layer : QuantizedLayer or PackedLayer
        The layer; a packed one is unpacked first, on the host.
    name : str
        Its name; not used.

    Returns
    -------
    Product
        Its product.
    """
    return EmulatedLinear(layer.unpacked() if isinstance(layer, PackedLayer) else layer)


def quantize_rows(x: Float32, levels: int, clip: np.float32 | float = 1.0) -> tuple[Float32, Float32]:
    """Quantize each row symmetrically by its largest magnitude.

    Parameters
    ----------
    x : ndarray of float32, shape (M, K)
        Activations.
    levels : int
        Largest magnitude of a code.
    clip : float
        Share of the largest magnitude that `levels` stands for; what lies beyond is clamped.

    Returns
    -------
    codes : ndarray of float32, shape (M, K)
        Whole numbers in ``-levels .. levels``.
    scale : ndarray of float32, shape (M,)
        What a code of 1 stands for; 1 for rows of zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm.quantize.emulation import quantize_rows
    >>> codes, scale = quantize_rows(np.array([[1, -14, 0.9]], np.float32), 7)
    >>> codes, scale
    (array([[ 0., -7.,  0.]], dtype=float32), array([2.], dtype=float32))
    """
    scale = np.abs(x).max(axis=1, initial=0).astype(np.float32) * np.float32(clip) / np.float32(levels)
    scale[scale == 0] = 1
    codes: Float32 = x / scale[:, np.newaxis]
    np.rint(codes, out=codes)
    np.clip(codes, -levels, levels, out=codes)
    return codes, scale


def quantize_rows_asymmetric(x: Float32, levels: int, clip: np.float32 | float = 1.0) -> tuple[Float32, Float32]:
    """Quantize each row between its smallest and largest value.

    Parameters
    ----------
    x : ndarray of float32, shape (M, K)
        Activations.
    levels : int
        Codes are ``-levels - 1 .. levels``.
    clip : float
        Share of the range that they stand for; what lies beyond is clamped.

    Returns
    -------
    codes : ndarray of float32, shape (M, K)
        Whole numbers: codes less the zero point of their row.
    scale : ndarray of float32, shape (M,)
        What a step of 1 stands for; 1 for rows of zeros.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm.quantize.emulation import quantize_rows_asymmetric
    >>> quantize_rows_asymmetric(np.array([[0, 15, 0.9]], np.float32), 7)
    (array([[ 0., 15.,  1.]], dtype=float32), array([1.], dtype=float32))
    """
    low = np.minimum(x.min(axis=1, initial=0), 0).astype(np.float64) * float(clip)
    high = np.maximum(x.max(axis=1, initial=0), 0).astype(np.float64) * float(clip)
    scale = ((high - low) / (2 * levels + 1)).astype(np.float32)
    scale[scale == 0] = 1
    zero = np.minimum(-levels - 1 - np.rint(low / scale), levels).astype(np.float32)[:, np.newaxis]
    codes: Float32 = x / scale[:, np.newaxis]
    np.rint(codes, out=codes)
    np.clip(codes, -levels - 1 - zero, levels - zero, out=codes)
    return codes, scale


def _in_groups(x: Float32, size: int) -> Float32:
    """The groups of all rows as rows, the last of each filled up with zeros, which change no range."""
    missing = -x.shape[1] % size
    padded = np.pad(x, ((0, 0), (0, missing))) if missing else x
    return np.ascontiguousarray(padded).reshape(-1, size)


def group_sums(x: Float32, size: int) -> Float32:
    """Sum each run of `size` columns: ``(M, K)`` to ``(M, ceil(K / size))``."""
    sums: NDArray[Any] = np.add.reduceat(x, np.arange(0, x.shape[1], size), axis=1)
    return sums


def _as_float16(x: Float32) -> Float32:
    """Round to float16 after scaling each row by a power of two that keeps it in range."""
    largest = np.abs(x).max(axis=1, initial=0)
    _, exponent = np.frexp(largest)
    outside = (largest > 0) & ((largest < 0.25) | (largest >= 32768))
    scale = np.where(outside, np.ldexp(np.float32(1), np.minimum(1 - exponent, 127)), np.float32(1)).astype(np.float32)
    rounded: Float32 = (x * scale[:, np.newaxis]).astype(np.float16).astype(np.float32) / scale[:, np.newaxis]
    return rounded
