"""From ranges of values to scales and zero points; and those of each row of activations."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.quant.functions import float_array
from npumatmul.quant.params import Granularity, QuantParams

__all__ = ["range_params", "token_params"]


def range_params(
    low: NDArray[np.float64], high: NDArray[np.float64], qmin: int, qmax: int, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scales and zero points whose codes cover low .. high, which is widened to hold 0.

    Symmetric: scale = max(-low, high) / qmax. Else scale = (high - low) / (qmax - qmin), the zero point rounded
    (facts 5.5). Ranges of nothing get scale 1.
    """
    low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    reach = np.maximum(-low, high) / qmax if symmetric else (high - low) / (qmax - qmin)
    tiny = float(np.finfo(np.float32).tiny)
    scale = np.where(reach > 0, np.clip(reach, tiny, float(np.finfo(np.float32).max)), 1.0).astype(np.float32)
    if symmetric:
        return scale, np.zeros(scale.shape, np.int32)
    zero_point = np.clip(np.rint(qmin - low / scale), qmin, qmax).astype(np.int32)
    return scale, zero_point


def token_params(
    x: ArrayLike, *, bits: int = 8, symmetric: bool = True, levels: int | None = None, clip: float = 1.0
) -> QuantParams:
    """Parameters of each row of activations, from what the row holds: dynamic quantization per token.

    Parameters
    ----------
    x : array_like, shape (..., K)
    bits : int
        2 to 8.
    symmetric : bool
        Whether zero points are 0.
    levels : int, optional
        Largest magnitude of a code; ``2**(bits-1) - 1`` by default where zero points are 0.
    clip : float
        The range is shrunk by this, above 0 and at most 1.

    Returns
    -------
    QuantParams

    Raises
    ------
    NotFiniteError
        If `x` holds an inf or nan.
    ValueError
        If `x` has no rows' axis or an argument is out of range.

    Examples
    --------
    >>> token_params([[1.27, -0.2], [0.0, 0.0]]).scale
    array([0.01, 1.  ], dtype=float32)
    """
    values = float_array(x, "token_params")
    if values.ndim == 0:
        raise ValueError("token_params: a single number has no tokens")
    if not 0 < clip <= 1:
        raise ValueError(f"token_params: clip lies above 0 and is at most 1, not {clip}")
    if not np.isfinite(values).all():
        raise NotFiniteError("token_params: the array holds an inf or nan, which cannot be quantized")
    if levels is None and symmetric:
        levels = (1 << (int(bits) - 1)) - 1 if 2 <= bits <= 8 else None
    codes = QuantParams(1.0, bits=bits, levels=levels)
    low, high = (f(values, axis=-1, initial=0.0).astype(np.float64) * clip for f in (np.min, np.max))
    scale, zero_point = range_params(low, high, codes.qmin, codes.qmax, symmetric)
    return QuantParams(scale, zero_point, Granularity.TOKEN, bits=bits, levels=levels)
