"""Lower the error of a quantized weight over calibration activations further, code by code and scale by scale."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.quant.functions import float_array
from npumatmul.quant.hessian import Hessian
from npumatmul.quant.meter import Meter, Share
from npumatmul.quant.params import Granularity, QuantizedWeight, QuantParams

__all__ = ["refine", "refine_cost"]

_BLOCK = 64


def refine(
    quantized: QuantizedWeight,
    target: ArrayLike,
    hessian: Hessian,
    *,
    rounds: int = 1,
    damping: float = 0.01,
    progress: Share | None = None,
) -> QuantizedWeight:
    """Lower the error over the calibration activations.

    Each round fits the scales to the codes by least squares in the calibration metric, and then goes through the
    columns once, giving each the codes that are best while all others stay. Neither step can raise the error (with
    damping), so more rounds are never worse. Zero points stay.

    Parameters
    ----------
    quantized : QuantizedWeight
        Per channel or group. Where it has a transform, all is meant after the transform.
    target : array_like, shape (N, K)
        What the codes stand for.
    hessian : Hessian
    rounds : int
    damping : float
        As for `gptq`.
    progress : callable, optional
        Called with the share that is done, 0 to 1, about every second.

    Returns
    -------
    QuantizedWeight

    Raises
    ------
    ValueError
        If shapes do not fit, or parameters are per layer.

    Examples
    --------
    >>> from npumatmul.quant.weight_scales import round_weight
    >>> rng = np.random.default_rng(0)
    >>> w, hessian = rng.normal(size=(8, 16)), Hessian(16)
    >>> hessian.add(rng.normal(size=(99, 16)) @ rng.normal(size=(16, 16)))
    >>> rounded = round_weight(w, bits=4)
    >>> refined = refine(rounded, w, hessian)
    >>> bool(hessian.error(w - refined.dequantize()).sum() < hessian.error(w - rounded.dequantize()).sum())
    True
    """
    wanted = float_array(target, "refine").astype(np.float64, copy=False)
    if wanted.shape != quantized.shape or hessian.features != quantized.shape[1]:
        raise ValueError(
            f"refine: the weight has shape {quantized.shape}, the target {wanted.shape}, "
            f"the Hessian {hessian.features} features"
        )
    if quantized.params.granularity is Granularity.LAYER:
        raise ValueError("refine: scales are fitted per channel or group; this weight has one scale per layer")
    if not wanted.size:
        return quantized
    matrix = hessian.damped(damping)
    values = np.ascontiguousarray(wanted.T)
    codes, params = np.ascontiguousarray(quantized.codes.T), quantized.params
    meter = Meter(progress, refine_cost(wanted.shape[0], wanted.shape[1], rounds))
    for _ in range(rounds):
        params = _fitted_scales(values, codes, params, matrix, meter)
        codes = _descend(values, codes, params, matrix, meter)
    return QuantizedWeight(np.ascontiguousarray(codes.T), params, quantized.input_transform)


def refine_cost(n: int, k: int, rounds: int) -> float:
    """Of `refine`, in multiply-accumulates: products of (K, K) by (K, N)."""
    return 5.0 * rounds * n * k * k


def _product(matrix: NDArray[np.float64], values: NDArray[np.float64], meter: Meter) -> NDArray[np.float64]:
    result = np.empty((len(matrix), values.shape[1]))
    for part in meter.slices(values.shape[1], matrix.size):
        result[:, part] = matrix @ values[:, part]
    return result


def _columns(params: QuantParams, shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Scale and zero point of each element of (K, N)."""
    k, n = shape
    scale, zero_point = params.expanded((n, k))
    return np.broadcast_to(scale.T, shape).astype(np.float64), np.broadcast_to(zero_point.T, shape)


def _metric(errors: NDArray[np.float64], matrix: NDArray[np.float64], meter: Meter) -> NDArray[np.float64]:
    return np.asarray(np.einsum("kn,kn->n", _product(matrix, errors, meter), errors), np.float64)


def _fitted_scales(
    values: NDArray[np.float64],
    codes: NDArray[np.int8],
    params: QuantParams,
    matrix: NDArray[np.float64],
    meter: Meter,
) -> QuantParams:
    """Scales with the least error for these codes; rows where that gives no positive scales keep theirs."""
    k, n = values.shape
    size = params.group_size if params.granularity is Granularity.GROUP and params.group_size else k
    spans = [slice(start, min(start + size, k)) for start in range(0, k, size)]
    scale, zero_point = _columns(params, (k, n))
    steps = (codes - zero_point).astype(np.float64)
    wanted = _product(matrix, values, meter)
    right = np.stack([np.einsum("kn,kn->n", steps[span], wanted[span]) for span in spans], axis=1)
    left = np.empty((n, len(spans), len(spans)))
    for column, span in enumerate(spans):
        reach = _product(matrix[:, span], steps[span], meter)
        for row, other in enumerate(spans[: column + 1]):
            left[:, row, column] = left[:, column, row] = np.einsum("kn,kn->n", steps[other], reach[other])
    diagonal = np.einsum("ngg->ng", left)
    diagonal += np.where(diagonal > 0, 1e-9 * diagonal, 1.0)  # groups of zeros keep the systems solvable
    old = np.array(params.scale, np.float64).reshape(n, -1)
    # solved for the change, so that groups of zeros, which have no say, keep their scales
    change = np.linalg.solve(left, (right - np.einsum("ngh,nh->ng", left, old))[..., np.newaxis])[..., 0]
    dead = ~steps.any(axis=0) if len(spans) == 1 else np.stack([~steps[span].any(axis=0) for span in spans], axis=1)
    change[dead.reshape(n, -1)] = 0
    fitted = old + change
    tiny, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    usable = np.all((fitted >= tiny) & (fitted <= largest), axis=1, keepdims=True)
    new = np.where(usable, fitted, old).astype(np.float32)
    trial = QuantParams(new.reshape(params.scale.shape), params.zero_point, **params.description())
    before = _metric(values - steps * scale, matrix, meter)
    after = _metric(values - steps * _columns(trial, (k, n))[0], matrix, meter)
    worse = np.flatnonzero(after >= before)
    new[worse] = old[worse]
    return QuantParams(new.reshape(params.scale.shape), params.zero_point, **params.description())


def _descend(
    values: NDArray[np.float64],
    codes: NDArray[np.int8],
    params: QuantParams,
    matrix: NDArray[np.float64],
    meter: Meter,
) -> NDArray[np.int8]:
    """One pass of coordinate descent over the columns."""
    scale, zero_point = _columns(params, (values.shape[0], values.shape[1]))
    result: NDArray[np.int8] = codes.copy()
    errors = values - (codes - zero_point) * scale
    for start in range(0, len(values), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(values)))
        gradient = matrix[block] @ errors
        before = errors[block].copy()
        for i in range(block.start, block.stop):
            inside = slice(block.start, i)
            slope = gradient[i - start]
            if i > start:
                slope = slope + matrix[i, inside] @ (errors[inside] - before[: i - start])
            # the others' part of the slope says which error of this column would be best
            best = errors[i] - slope / matrix[i, i]
            q = np.clip(np.rint((values[i] - best) / scale[i]) + zero_point[i], params.qmin, params.qmax)
            result[i] = q
            errors[i] = values[i] - (q - zero_point[i]) * scale[i]
        meter.add(float((block.stop - block.start) * values.size))
    return result
