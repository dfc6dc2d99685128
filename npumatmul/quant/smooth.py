"""SmoothQuant: move the outliers of activations into the weights that they meet, and fold that away.

The transform itself is `ChannelScale`. Where what comes before is a norm or a linear layer, its weight takes the
division over (`fold_into_norm`, `fold_into_linear`) and activations cost nothing more; else they are divided.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.quant.functions import fake_quantize, float_array
from npumatmul.quant.ranges import token_params
from npumatmul.quant.transforms import ChannelScale
from npumatmul.quant.weight_scales import Clip, round_weight, weight_2d

__all__ = ["fold_into_linear", "fold_into_norm", "search_smooth", "smooth"]


def smooth(
    activation_absmax: ArrayLike, weights: Sequence[ArrayLike], alpha: float = 0.5, *, power_of_two: bool = False
) -> ChannelScale:
    """Choose scales by SmoothQuant's rule: ``absmax(x)**alpha / absmax(w)**(1 - alpha)`` per feature.

    Parameters
    ----------
    activation_absmax : array_like, shape (K,)
        Largest magnitude of each feature over calibration activations.
    weights : sequence of array_like, shapes (N, K)
        All that the activations meet: query, key and value, say.
    alpha : float
        0 to 1: how much of the difficulty moves from activations to weights.
    power_of_two : bool
        Round scales to powers of two. Folding is exact then.

    Returns
    -------
    ChannelScale
        1 for features that activations or weights lack. Divided by their geometric mean, so that nothing grows.

    Raises
    ------
    ValueError
        If shapes do not fit, or an argument is out of range.

    Examples
    --------
    >>> smooth([256.0, 1.0], [np.ones((3, 2))], power_of_two=True).scale
    array([4.  , 0.25], dtype=float32)
    """
    largest = float_array(activation_absmax, "smooth").astype(np.float64)
    if largest.ndim != 1 or not (np.isfinite(largest) & (largest >= 0)).all():
        raise ValueError("smooth: activation_absmax has to be of shape (K,), finite and not negative")
    if not 0 <= alpha <= 1:
        raise ValueError(f"smooth: alpha lies in 0..1, not {alpha}")
    arrays = [weight_2d(w, "smooth") for w in weights]
    if not arrays or any(w.shape[1] != largest.size for w in arrays):
        raise ValueError(f"smooth: needs weights with K={largest.size}; these are {[w.shape for w in arrays]}")
    reach = np.max([np.abs(w).max(axis=0, initial=0) for w in arrays], axis=0).astype(np.float64)
    usable = (largest > 0) & (reach > 0)
    scale = np.ones(largest.size)
    scale[usable] = np.exp(alpha * np.log(largest[usable]) - (1 - alpha) * np.log(reach[usable]))
    if usable.any():
        scale[usable] /= np.exp(np.log(scale[usable]).mean())
    scale = np.clip(scale, 2.0**-20, 2.0**20)
    return ChannelScale(np.exp2(np.rint(np.log2(scale))) if power_of_two else scale)


def search_smooth(
    x: ArrayLike,
    weights: Sequence[ArrayLike],
    *,
    weight_bits: int = 8,
    activation_bits: int | None = 8,
    group_size: int | None = None,
    clip: Clip = "absmax",
    alphas: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    power_of_two: bool = False,
) -> ChannelScale:
    """Try values of alpha and take the one with the least error of the quantized products.

    Parameters
    ----------
    x : array_like, shape (..., K)
        Some calibration activations: a few hundred rows.
    weights : sequence of array_like, shapes (N, K)
    weight_bits : int
        Weights are rounded symmetrically, per channel or group.
    activation_bits : int or None
        Activations are rounded symmetrically per token; None leaves them as they are (as AWQ does).
    group_size, clip
        As for `round_weight`.
    alphas : sequence of float
    power_of_two : bool
        As for `smooth`.

    Returns
    -------
    ChannelScale
        Scales of ones if no alpha is better than that.

    Raises
    ------
    NotFiniteError, ValueError
        As `smooth` and `round_weight`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x, w = rng.normal(size=(64, 32)), rng.normal(size=(16, 32))
    >>> x[:, 3] *= 100
    >>> found = search_smooth(x, [w])
    >>> bool(found.scale[3] > 3 * np.median(found.scale))
    True
    """
    arrays = [weight_2d(w, "search_smooth") for w in weights]
    values = float_array(x, "search_smooth")
    rows = values.reshape(-1, values.shape[-1] if values.ndim else 1)
    largest = np.abs(rows).max(axis=0, initial=0)
    granularity = "channel" if group_size is None else "group"

    def error(transform: ChannelScale) -> float:
        moved = transform.activation(rows)
        if activation_bits is not None:
            moved = fake_quantize(moved, token_params(moved, bits=activation_bits))
        total = 0.0
        for w in arrays:
            rounded = round_weight(
                w,
                bits=weight_bits,
                granularity=granularity,
                group_size=group_size,
                clip=clip,
                input_transform=transform,
            )
            total += float(np.square(rows @ w.T - moved @ rounded.dequantize(moved.dtype).T, dtype=np.float64).sum())
        return total

    trials = [ChannelScale(np.ones(rows.shape[1]))]
    trials += [smooth(largest, arrays, alpha, power_of_two=power_of_two) for alpha in alphas]
    errors = [error(trial) for trial in trials]
    return trials[int(np.argmin(errors))]


def fold_into_norm(
    transform: ChannelScale, weight: ArrayLike, bias: ArrayLike | None = None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Weight and bias of the norm before, such that its output comes divided by the scales.

    Parameters
    ----------
    transform : ChannelScale
    weight : array_like, shape (K,)
        Of an RMSNorm or LayerNorm.
    bias : array_like, shape (K,), optional

    Returns
    -------
    weight : ndarray
    bias : ndarray or None

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> fold_into_norm(ChannelScale([2.0, 0.5]), [1.0, 1.0])
    (array([0.5, 2. ]), None)
    """
    gain = float_array(weight, "fold_into_norm")
    if gain.ndim != 1:
        raise ValueError(f"fold_into_norm: the weight of a norm is of shape (K,), not {gain.shape}")
    return transform.activation(gain), None if bias is None else transform.activation(
        float_array(bias, "fold_into_norm")
    )


def fold_into_linear(
    transform: ChannelScale, weight: ArrayLike, bias: ArrayLike | None = None
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Weight and bias of the linear layer before, such that its output comes divided by the scales.

    Only where nothing but linear operations on each feature lies between: the value before the output projection of
    attention, or the ``up`` half of a gated feed-forward layer.

    Parameters
    ----------
    transform : ChannelScale
    weight : array_like, shape (K, J)
        Row k makes feature k.
    bias : array_like, shape (K,), optional

    Returns
    -------
    weight : ndarray, shape (K, J)
    bias : ndarray or None

    Raises
    ------
    ValueError
        If shapes do not fit.

    Examples
    --------
    >>> fold_into_linear(ChannelScale([2.0, 0.5]), [[1.0, 3.0], [1.0, 1.0]], [1.0, 1.0])
    (array([[0.5, 1.5],
           [2. , 2. ]]), array([0.5, 2. ]))
    """
    before = weight_2d(weight, "fold_into_linear")
    folded = np.ascontiguousarray(transform.activation(before.T).T)
    return folded, None if bias is None else transform.activation(float_array(bias, "fold_into_linear"))
