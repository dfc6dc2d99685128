"""From a float weight and a recipe to a quantized layer."""

from __future__ import annotations

import dataclasses
import zlib

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.host import kernels
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.recipe import GGUF_SCHEME, LayerRecipe
from npumatmul.quant.gptq import IndefiniteError, gptq
from npumatmul.quant.hadamard import Hadamard
from npumatmul.quant.hessian import Hessian
from npumatmul.quant.meter import Share
from npumatmul.quant.params import Granularity, InputTransform, QuantizedWeight, QuantParams
from npumatmul.quant.transforms import Chain, ChannelScale
from npumatmul.quant.weight_scales import Clip, round_weight

__all__ = ["quantize_layer"]


def quantize_layer(
    weight: NDArray[np.float32],
    recipe: LayerRecipe,
    statistics: LayerStatistics | None = None,
    *,
    name: str = "",
    seed: int = 0,
    progress: Share | None = None,
) -> QuantizedLayer:
    """Quantize the weight of one layer.

    Parameters
    ----------
    weight : ndarray of float32, shape (N, K)
        The weight.
    recipe : LayerRecipe
        What to do.
    statistics : LayerStatistics, optional
        Of the activations that meet it; needed where the recipe calibrates.
    name : str
        For error messages, and so that layers get different random signs.
    seed : int
        Of random signs.
    progress : callable, optional
        Called with the share that is done, 0 to 1, about every second.

    Returns
    -------
    QuantizedLayer
        The layer.

    Raises
    ------
    ValueError
        If the recipe needs statistics and there are none, or none to speak of, or is ``gguf``, for which blocks of a
        file are needed.
    npumatmul.errors.NotFiniteError
        If the weight holds an inf or nan, or activations did.
    """
    if recipe.scheme == GGUF_SCHEME:
        raise ValueError(f"layer {name!r}: scheme 'gguf' takes blocks over from a file and has no use for floats")
    if recipe.needs_calibration and statistics is None:
        raise ValueError(f"layer {name!r}: its recipe needs a calibration text")
    if not np.isfinite(weight).all():
        raise NotFiniteError(f"layer {name!r}: its weight holds an inf or nan")
    if statistics is not None and statistics.features != weight.shape[1]:
        raise ValueError(f"layer {name!r}: statistics of {statistics.features} features, a weight of {weight.shape}")
    if recipe.needs_calibration and statistics is not None and not _is_finite(statistics):
        raise NotFiniteError(
            f"layer {name!r}: what came into it holds an inf or nan, or is so large that its squares overflow float32"
        )
    if recipe.parts.weight_bits == 16:
        return _half_layer(weight, recipe)
    transform = _transform(weight, recipe, statistics, zlib.crc32(name.encode()) ^ seed)
    clip: Clip = "mse" if recipe.clip_search else "absmax"
    parts = recipe.parts
    if recipe.rounding == "gptq":
        assert statistics is not None
        alike = (
            f"layer {name!r}: what came into it, {statistics.rows} rows, is too little or too much alike to round "
            f"its weight by (GPTQ); calibrate with more, or leave this layer out"
        )
        if not _varies(statistics, recipe.centre):
            raise ValueError(alike)
        try:
            quantized = gptq(
                weight,
                _hessian(statistics, transform, centred=recipe.centre),
                bits=parts.weight_bits,
                group_size=parts.group_size,
                symmetric=recipe.symmetric,
                act_order=recipe.act_order,
                clip=clip,
                strength=recipe.correction,
                rounds=recipe.refine,
                input_transform=transform,
                progress=progress,
            )
        except IndefiniteError as error:  # sums are in float32
            raise ValueError(alike) from error
    else:
        quantized = round_weight(
            weight,
            bits=parts.weight_bits,
            granularity=parts.granularity,
            group_size=parts.group_size,
            symmetric=recipe.symmetric,
            clip=clip,
            importance=None if statistics is None or clip == "absmax" else _importance(statistics, transform, recipe),
            input_transform=transform,
            progress=progress,
        )
    return centred_layer(QuantizedLayer(recipe, _with_half_scales(quantized)), weight, statistics)


def _with_half_scales(weight: QuantizedWeight) -> QuantizedWeight:
    """Round scales of groups to float16, as blocks of files have them: next to nothing beside a step of the codes."""
    params = weight.params
    if params.granularity is not Granularity.GROUP:
        return weight
    with np.errstate(over="ignore"):
        scale = params.scale.astype(np.float16).astype(np.float32)
    if not np.allclose(scale, params.scale, rtol=2.0**-11, atol=0):
        return weight  # of a size that float16 does not hold
    rounded = QuantParams(scale, params.zero_point, **params.description())
    return QuantizedWeight(weight.codes, rounded, weight.input_transform)


def centred_layer(
    layer: QuantizedLayer, weight: NDArray[np.float32], statistics: LayerStatistics | None
) -> QuantizedLayer:
    """Give a layer the centre that its recipe asks for, and the bias that makes up for it.

    Parameters
    ----------
    layer : QuantizedLayer
        Without a centre.
    weight : ndarray of float32, shape (N, K)
        The float weight.
    statistics : LayerStatistics or None
        Of the activations; needed where the recipe centres.

    Returns
    -------
    QuantizedLayer
        The layer itself if its recipe does not centre.
    """
    if not layer.recipe.centre:
        return layer
    assert statistics is not None
    centre = statistics.mean.astype(np.float32)
    # A correction takes off the mean error of the layers before. Without one it stays with the tokens that have it:
    # a first token whose features are a hundred times as large would have it spread over all others.
    towards = statistics.mean + layer.recipe.correction * (statistics.reference_mean - statistics.mean)
    bias = weight @ towards.astype(np.float32)
    bias = bias if layer.bias is None else bias + layer.bias
    return dataclasses.replace(layer, centre=centre, bias=bias)


def _half_layer(weight: NDArray[np.float32], recipe: LayerRecipe) -> QuantizedLayer:
    scale = kernels.power_of_two_scales(np.ascontiguousarray(weight))
    if bool((scale == 1).all()):
        return QuantizedLayer(recipe, weight.astype(np.float16))
    return QuantizedLayer(recipe, (weight * scale[:, np.newaxis]).astype(np.float16), row_scale=np.reciprocal(scale))


def _transform(
    weight: NDArray[np.float32], recipe: LayerRecipe, statistics: LayerStatistics | None, seed: int
) -> InputTransform | None:
    steps: list[InputTransform] = []
    if "smooth" in recipe.transform:
        assert statistics is not None
        steps.append(ChannelScale(_smoothing(weight, statistics.absmax, recipe.smooth_strength)))
    if "balance" in recipe.transform:
        assert statistics is not None
        steps.append(ChannelScale(_balance(weight, statistics, recipe.centre)))
    if "hadamard" in recipe.transform:
        steps.append(Hadamard(weight.shape[1], seed=seed))
    if len(steps) > 1:
        return Chain(steps)
    return steps[0] if steps else None


def _smoothing(weight: NDArray[np.float32], absmax: NDArray[np.float32], strength: float) -> NDArray[np.float32]:
    """SmoothQuant's scales: max |x|^a / max |w|^(1 - a) of each feature, their geometric mean brought to 1."""
    x = np.maximum(absmax.astype(np.float64), 1e-5)
    w = np.maximum(np.abs(weight).max(axis=0).astype(np.float64), 1e-5)
    logs = strength * np.log(x) - (1 - strength) * np.log(w)
    scale: NDArray[np.float32] = np.exp(np.clip(logs - logs.mean(), -20, 20)).astype(np.float32)
    return scale


def _balance(weight: NDArray[np.float32], statistics: LayerStatistics, centred: bool) -> NDArray[np.float32]:
    """Scales that minimize ``E|x / s|**2 * |W * s|**2``, whose product errors follow once a rotation has spread them.

    By the inequality of Cauchy and Schwarz that is ``s**2 = rms(x_j) / rms(W[:, j])``; geometric mean 1.
    """
    moment = statistics.second_moment.diagonal()
    x = np.sqrt(np.maximum(moment - statistics.mean**2 if centred else moment, 0))
    w = np.sqrt(np.mean(np.square(weight, dtype=np.float64), axis=0))
    usual = [float(np.median(part[part > 0])) if (part > 0).any() else 1.0 for part in (x, w)]
    # a feature that never varied, or meets no weight, has no say: a thousandth of the usual keeps scales finite
    logs = 0.5 * (np.log(np.maximum(x, 1e-3 * usual[0])) - np.log(np.maximum(w, 1e-3 * usual[1])))
    scale: NDArray[np.float32] = np.exp(logs - logs.mean()).astype(np.float32)
    return scale


def _is_finite(statistics: LayerStatistics) -> bool:
    sums = statistics.products if statistics.products is not None else statistics.total
    return bool(np.isfinite(statistics.absmax).all() and np.isfinite(sums).all())


def _varies(statistics: LayerStatistics, centred: bool) -> bool:
    """Whether activations have more in them than rounding errors of their sums in float32."""
    moment = statistics.second_moment.diagonal()
    rest = moment - statistics.mean**2 if centred else moment
    return bool(rest.sum() > 1e-6 * moment.sum())


def _hessian(statistics: LayerStatistics, transform: InputTransform | None, *, centred: bool) -> Hessian:
    """Second moments of activations as they meet the codes: transforms are linear, so they pass through the sums."""
    assert statistics.products is not None
    mean, drift = statistics.mean, None
    products = statistics.products.astype(np.float64)
    if statistics.drift is not None:
        drift = statistics.drift.astype(np.float64)
    if centred:
        products -= statistics.rows * np.outer(mean, mean)
        if drift is not None:
            drift -= statistics.rows * np.outer(statistics.reference_mean - mean, mean)
    if transform is not None:
        products = _transformed(products, transform)
        drift = None if drift is None else _transformed(drift, transform)
    return Hessian.from_sums(products, statistics.rows, drift)


def _transformed(sums: NDArray[np.float64], transform: InputTransform) -> NDArray[np.float64]:
    """From the sum of outer products of rows to that of transformed rows."""
    right = transform.activation(sums)
    return np.ascontiguousarray(transform.activation(np.ascontiguousarray(right.T)).T)


def _importance(
    statistics: LayerStatistics, transform: InputTransform | None, recipe: LayerRecipe
) -> NDArray[np.float64] | None:
    """Mean squares of the features that meet the codes, up to a factor."""
    if statistics.products is None:
        return None
    diagonal: NDArray[np.float64] = np.maximum(
        _hessian(statistics, transform, centred=recipe.centre).matrix.diagonal(), 0
    )
    return diagonal
