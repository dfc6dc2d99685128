"""Scales of weights: from the largest magnitude, or searched for the least squared error; and plain rounding."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.host import kernels
from npumatmul.quant.functions import float_array, quantize
from npumatmul.quant.meter import Meter, Share
from npumatmul.quant.params import Granularity, InputTransform, QuantizedWeight, QuantParams
from npumatmul.quant.ranges import range_params

__all__ = ["Clip", "round_weight", "weight_params"]

#: ``"absmax"``: nothing is clipped. ``"mse"``: the clip ratio with the least squared error is searched.
Clip = Literal["absmax", "mse"]

#: Elements whose errors are searched at a time, which bounds the memory that it takes.
_CHUNK_ELEMENTS = 1 << 19
#: Elements of a weight that are there twice at a time, as they are and transformed.
_TRANSFORMED_ELEMENTS = 1 << 21
#: What each end of a range is tried at, times where it is.
_END_RATIOS = (1.1, 1.05, 0.95, 0.9, 0.85, 0.8)
_TINY, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


def weight_params(
    w: ArrayLike,
    *,
    bits: int = 8,
    granularity: Granularity | str = Granularity.CHANNEL,
    group_size: int | None = None,
    symmetric: bool = True,
    levels: int | None = None,
    clip: Clip = "absmax",
    importance: ArrayLike | None = None,
    progress: Share | None = None,
) -> QuantParams:
    """Choose the parameters of a weight.

    Parameters
    ----------
    w : array_like, shape (N, K)
    bits : int
        2 to 8.
    granularity : Granularity or str
        ``"layer"``, ``"channel"`` (a row of `w`), or ``"group"`` (of `group_size` neighbours along K).
    group_size : int, optional
    symmetric : bool
        Whether zero points are 0. Otherwise the range of the codes covers smallest and largest value, and 0.
    levels : int, optional
        Largest magnitude of a code; all codes of `bits` by default. The scale of symmetric parameters brings the
        largest magnitude to ``qmax``, so that -qmax - 1 is reached only where something is clipped.
    clip : {"absmax", "mse"}
        ``"mse"`` shrinks ranges by the ratio that gives the least squared error, then moves each end on its own where
        there are zero points, and fits scales to the codes by least squares. Never worse than ``"absmax"``.
    importance : array_like, shape (K,), optional
        Weights of squared errors, not negative: for instance mean squares of activations. 1 by default.
    progress : callable, optional
        Called with the share that is done, 0 to 1, about every second.

    Returns
    -------
    QuantParams

    Raises
    ------
    NotFiniteError
        If `w` holds an inf or nan.
    ValueError
        If `w` is not 2-D, or an argument does not fit.

    Examples
    --------
    >>> weight_params([[1.0, -12.7], [0.0, 0.0]]).scale.tolist()
    [0.10000000149011612, 1.0]
    """
    weight = weight_2d(w, "weight_params")
    if clip not in ("absmax", "mse"):
        raise ValueError(f"weight_params: clip is 'absmax' or 'mse', not {clip!r}")
    kind = Granularity(granularity)
    if kind is Granularity.TOKEN:
        raise ValueError("weight_params: a weight has parameters per layer, channel or group, not per token")
    n, k = weight.shape
    if kind is Granularity.GROUP and (group_size is None or group_size < 1):
        raise ValueError(f"weight_params: parameters per group need a group_size of 1 or more, not {group_size}")
    size = min(group_size or 1, max(k, 1)) if kind is Granularity.GROUP else k
    # checked by a stand-in with the arguments of the result, which also knows the range of codes
    codes = QuantParams(1.0, bits=bits, levels=levels)
    weights = _importance(importance, k)
    meter = Meter(progress, weight.size)
    if kind is Granularity.LAYER:
        rows, weights = weight.reshape(1, -1), None if weights is None else np.tile(weights, n)
        scale, zero_point = _search(rows, weights, codes, symmetric, clip, meter)
        return QuantParams(scale[0], zero_point[0], kind, bits=bits, levels=levels)
    groups = -(-k // size) if k else 0
    scales = np.ones((n, groups), np.float32)
    zero_points = np.zeros((n, groups), np.int32)
    for g in range(groups):  # each group of all rows at a time: the last may be shorter
        span = slice(g * size, min((g + 1) * size, k))
        part = None if weights is None else weights[span]
        scales[:, g], zero_points[:, g] = _search(weight[:, span], part, codes, symmetric, clip, meter)
    if kind is Granularity.CHANNEL:
        return QuantParams(
            scales[:, 0] if groups else np.ones(n),
            zero_points[:, 0] if groups else 0,
            kind,
            bits=bits,
            axis=0,
            levels=levels,
        )
    return QuantParams(scales, zero_points, kind, bits=bits, axis=1, group_size=group_size, levels=levels)


def round_weight(
    w: ArrayLike,
    *,
    bits: int = 8,
    granularity: Granularity | str = Granularity.CHANNEL,
    group_size: int | None = None,
    symmetric: bool = True,
    levels: int | None = None,
    clip: Clip = "absmax",
    importance: ArrayLike | None = None,
    input_transform: InputTransform | None = None,
    progress: Share | None = None,
) -> QuantizedWeight:
    """Quantize a weight by rounding each value to the nearest code.

    Parameters
    ----------
    w : array_like, shape (N, K)
        As it meets activations without the transform.
    bits, granularity, group_size, symmetric, levels, clip, importance, progress
        As for `weight_params`.
    input_transform : InputTransform, optional
        Applied to the weight before it is rounded, and kept with it.

    Returns
    -------
    QuantizedWeight

    Raises
    ------
    NotFiniteError, ValueError
        As `weight_params`.

    Examples
    --------
    >>> round_weight(np.eye(2) * 3, bits=4).codes
    array([[7, 0],
           [0, 7]], dtype=int8)
    """
    weight = weight_2d(w, "round_weight")
    choose = partial(
        weight_params, bits=bits, granularity=granularity, group_size=group_size, symmetric=symmetric, levels=levels,
        clip=clip, importance=importance,
    )  # fmt: skip
    if input_transform is None:
        params = choose(weight, progress=progress)
        return QuantizedWeight(quantize(weight, params), params)
    n, k = weight.shape
    step = max(1, _TRANSFORMED_ELEMENTS // max(k, 1))
    if n <= step or Granularity(granularity) is Granularity.LAYER:
        weight = input_transform.weight(weight)
        params = choose(weight, progress=progress)
        return QuantizedWeight(quantize(weight, params), params, input_transform)
    # rows have nothing to do with one another, so no more than some of them are in memory as they are transformed
    codes, found, meter = np.empty((n, k), np.int8), [], Meter(progress, n)
    for start in range(0, n, step):
        part = input_transform.weight(weight[start : start + step])
        found.append(choose(part, progress=meter.part(len(part))))
        codes[start : start + step] = quantize(part, found[-1])
    scale = np.concatenate([each.scale for each in found])
    zero_point = np.concatenate([np.broadcast_to(each.zero_point, each.scale.shape) for each in found])
    return QuantizedWeight(codes, QuantParams(scale, zero_point, **found[0].description()), input_transform)


def _search(
    values: NDArray[Any],
    importance: NDArray[Any] | None,
    codes: QuantParams,
    symmetric: bool,
    clip: Clip,
    meter: Meter,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scale and zero point of each row of (rows, columns)."""
    scale = np.ones(len(values), np.float32)
    zero_point = np.zeros(len(values), np.int32)
    step = max(1, _CHUNK_ELEMENTS // max(values.shape[1], 1))
    for start in range(0, len(values) if values.shape[1] else 0, step):
        rows = slice(start, start + step)
        part = np.ascontiguousarray(values[rows])
        low, high = part.min(axis=1).astype(np.float64), part.max(axis=1).astype(np.float64)
        scale[rows], zero_point[rows] = range_params(low, high, codes.qmin, codes.qmax, symmetric)
        if clip == "mse":
            _improve(part, importance, codes, symmetric, low, high, scale[rows], zero_point[rows])
        meter.add(part.size)
    return scale, zero_point


def _improve(
    part: NDArray[Any],
    importance: NDArray[Any] | None,
    codes: QuantParams,
    symmetric: bool,
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int32],
) -> None:
    """Replace scales and zero points, in place, where others give a smaller squared error."""
    qmin, qmax = codes.qmin, codes.qmax
    lowest, steps = (0.3, 57) if codes.bits <= 4 else (0.6, 33)
    rows = np.arange(len(part))
    values = np.clip(part, -_LARGEST, _LARGEST, dtype=part.dtype).astype(np.float32)
    weights = np.ones(part.shape[1], np.float32) if importance is None else importance.astype(np.float32)
    best = np.full((len(part), 3), np.inf)  # the sums of `rounding_sums`

    def consider(ranges: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        """Take the best of ranges (candidates, 2, rows) where it is better than what there is."""
        return take(*range_params(ranges[:, 0], ranges[:, 1], qmin, qmax, symmetric))

    def take(s: NDArray[np.float32], z: NDArray[np.int32]) -> tuple[NDArray[np.bool_], NDArray[np.intp]]:
        sums = kernels.rounding_sums(values, weights, s, z, qmin, qmax)
        choice = sums[:, :, 0].argmin(axis=0)
        found = sums[choice, rows]
        better = found[:, 0] < best[:, 0]
        scale[better], zero_point[better] = s[choice, rows][better], z[choice, rows][better]
        best[better] = found[better]
        return better, choice

    whole = np.stack([low, high])
    ratios = np.linspace(1.0, lowest, steps)
    _, choice = consider(whole * ratios[:, np.newaxis, np.newaxis])
    ends = whole * ratios[choice]  # of the best range so far
    for side in () if symmetric else (0, 1, 0, 1):  # each end on its own
        trials = np.repeat(ends[np.newaxis], len(_END_RATIOS), axis=0)
        trials[:, side] *= np.array(_END_RATIOS)[:, np.newaxis]
        better, choice = consider(trials)
        ends[:, better] = trials[choice, :, rows].T[:, better]
    for _ in range(2):  # least squares over the scale with these codes, then the codes of that scale
        usable = (best[:, 1] > 0) & (best[:, 2] > 0)
        fitted = np.where(usable, best[:, 1] / np.where(usable, best[:, 2], 1), scale)
        take(np.clip(fitted, _TINY, _LARGEST).astype(np.float32)[np.newaxis], zero_point[np.newaxis].copy())


def weight_2d(w: ArrayLike, function: str) -> NDArray[Any]:
    weight = float_array(w, function)
    if weight.ndim != 2:
        raise ValueError(f"{function}: a weight has 2 dimensions, (N, K); this array has shape {weight.shape}")
    if not np.isfinite(weight).all():
        n, k = (int(i) for i in np.argwhere(~np.isfinite(weight))[0])
        raise NotFiniteError(f"{function}: element ({n}, {k}) is {weight[n, k]}, which cannot be quantized")
    return weight


def _importance(importance: ArrayLike | None, k: int) -> NDArray[Any] | None:
    if importance is None:
        return None
    weights = float_array(importance, "weight_params").astype(np.float64)
    if weights.shape != (k,) or not (np.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"weight_params: importance has to be {k} numbers, finite and not negative")
    mean = weights.mean() if k else 0
    return (weights / mean if mean > 0 else np.ones(k)).astype(np.float32)
