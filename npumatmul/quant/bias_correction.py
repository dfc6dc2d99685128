"""Bias correction: what quantization changes on average is taken out of the bias."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.quant.functions import float_array
from npumatmul.quant.hessian import Hessian
from npumatmul.quant.params import QuantizedWeight

__all__ = ["bias_correction"]


def bias_correction(
    w: ArrayLike,
    quantized: QuantizedWeight,
    mean: ArrayLike | Hessian,
    reference_mean: ArrayLike | None = None,
    bias: ArrayLike | None = None,
) -> NDArray[Any]:
    """Bias with which the quantized layer's mean output is that of the float layer.

    Parameters
    ----------
    w : array_like, shape (N, K)
        As it meets activations after the transform of `quantized`, if that has one.
    quantized : QuantizedWeight
    mean : array_like, shape (K,), or Hessian
        Mean activation as it meets the codes. A `Hessian` knows this and the mean of its references.
    reference_mean : array_like, shape (K,), optional
        Mean activation without quantization; `mean` by default.
    bias : array_like, shape (N,), optional
        Of the float layer; zeros by default.

    Returns
    -------
    ndarray of float32, shape (N,)
        ``bias + w @ reference_mean - quantized @ mean``.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> from npumatmul.quant.params import QuantParams
    >>> quantized = QuantizedWeight(np.array([[2, 0]], np.int8), QuantParams(0.5))
    >>> bias_correction([[1.25, 0.0]], quantized, [4.0, 1.0])
    array([1.], dtype=float32)
    """
    if isinstance(mean, Hessian):
        reference_mean = mean.reference_mean if reference_mean is None else reference_mean
        mean = mean.mean
    weight = float_array(w, "bias_correction").astype(np.float64)
    average = float_array(mean, "bias_correction").astype(np.float64)
    reference = average if reference_mean is None else float_array(reference_mean, "bias_correction").astype(np.float64)
    n, k = quantized.shape
    if weight.shape != (n, k) or average.shape != (k,) or reference.shape != (k,):
        raise ValueError(
            f"bias_correction: the quantized weight has shape {(n, k)}, but the weight has {weight.shape}, "
            f"the means {average.shape} and {reference.shape}"
        )
    start = np.zeros(n) if bias is None else float_array(bias, "bias_correction").astype(np.float64)
    if start.shape != (n,):
        raise ValueError(f"bias_correction: the bias of {n} rows has shape {start.shape}")
    return (start + weight @ reference - quantized.dequantize(np.float64) @ average).astype(np.float32)
