"""GPTQ: round a weight column by column so that later columns make up for the errors of earlier ones.

The squared error over the calibration activations is ``e @ H @ e`` per row e of errors. With H = U @ U.T, U upper
triangular, it is the sum over columns i of ``(U[i, i] e[i] + sum over j < i of U[j, i] e[j])**2``: once the columns
before i are rounded, the term of i is smallest for the code nearest to ``w[i] + sum_j U[j, i] / U[i, i] e[j]``. This is
GPTQ (Frantar et al. 2022) as nearest-plane rounding, which needs one Cholesky factor and no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.quant.functions import quantize
from npumatmul.quant.hessian import Hessian
from npumatmul.quant.meter import Meter, Share
from npumatmul.quant.params import Granularity, InputTransform, QuantizedWeight, QuantParams
from npumatmul.quant.refinement import refine, refine_cost
from npumatmul.quant.systems import cholesky, factor_cost, solve_cost
from npumatmul.quant.weight_scales import Clip, weight_2d, weight_params

__all__ = ["IndefiniteError", "gptq"]

#: Columns that are rounded one by one before their errors reach all later ones by one matrix product.
_BLOCK = 64
#: What a search of ranges costs for each value, in multiply-accumulates of a product.
_SEARCH = 500


class IndefiniteError(ValueError):
    """The sums that a weight is to be rounded by are singular, or rounding errors are more than what is in them."""


def gptq(
    w: ArrayLike,
    hessian: Hessian,
    *,
    bits: int = 4,
    group_size: int | None = None,
    symmetric: bool = True,
    levels: int | None = None,
    act_order: bool = False,
    clip: Clip = "mse",
    damping: float = 0.01,
    strength: float = 1.0,
    rounds: int = 0,
    input_transform: InputTransform | None = None,
    progress: Share | None = None,
) -> QuantizedWeight:
    """Quantize a weight with GPTQ.

    Deterministic. A row for which plain rounding has the smaller error is rounded plainly, so that no row's error
    over the calibration activations is worse than that of `round_weight` with the same arguments.

    Parameters
    ----------
    w : array_like, shape (N, K)
        As it meets activations without the transform.
    hessian : Hessian
        Of the activations as they meet the codes: after the transform. If it has references, the weight is fitted to
        the products of those.
    bits : int
        2 to 8.
    group_size : int, optional
        Neighbours along K with a scale of their own; one scale per row by default.
    symmetric, levels, clip
        As for `weight_params`. With ``clip="mse"`` errors are weighted by what remains of them after later columns
        made up for their part.
    act_order : bool
        Round the columns with the largest activations first. Codes stay in the order of `w`, so nothing has to be
        reordered when it is used; scales of groups are chosen before anything is rounded then. With it False they are
        chosen when their group is reached, for what is to be rounded by then.
    damping : float
        Times the mean of the diagonal of the Hessian, added to it.
    strength : float
        How much of references is followed, see `Hessian.target`.
    rounds : int
        Rounds of `refine` afterwards: each costs about as much as GPTQ itself and lowers the error further.
    input_transform : InputTransform, optional
        Applied to the weight first, and kept with the result.
    progress : callable, optional
        Called with the share that is done, 0 to 1, about every second.

    Returns
    -------
    QuantizedWeight

    Raises
    ------
    NotFiniteError
        If `w` holds an inf or nan.
    ValueError
        If shapes do not fit, `damping` is negative, or the Hessian is singular without damping.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> w, x = rng.normal(size=(32, 64)), rng.normal(size=(500, 64)) @ rng.normal(size=(64, 64))
    >>> hessian = Hessian(64)
    >>> hessian.add(x)
    >>> quantized = gptq(w, hessian, bits=4)
    >>> rounded = QuantizedWeight(quantize(w, params := weight_params(w, bits=4, clip="mse")), params)
    >>> bool(hessian.error(w - quantized.dequantize()).sum() < 0.7 * hessian.error(w - rounded.dequantize()).sum())
    True
    """
    original = weight_2d(w, "gptq")
    if input_transform is not None:
        original = input_transform.weight(original)
    n, k = original.shape
    if hessian.features != k:
        raise ValueError(f"gptq: the Hessian is of {hessian.features} features, the weight of shape ({n}, {k})")
    product, search = float(n * k * k), _SEARCH * n * k
    fitting = factor_cost(k) + solve_cost(k, min(n, k)) if hessian.has_reference and strength else 0.0
    refining = refine_cost(n, k, rounds)
    meter = Meter(progress, fitting + factor_cost(k) + product / 2 + 2 * search + 3 * product + refining)
    target = hessian.target(original, damping, strength, meter.part(fitting))
    matrix = hessian.damped(damping)
    order = np.argsort(-matrix.diagonal(), kind="stable") if act_order else np.arange(k)
    upper = _upper_factor(matrix[np.ix_(order, order)], damping, meter)
    conditional = np.empty(k)
    conditional[order] = upper.diagonal() ** 2
    choice = _Choice(bits, group_size, symmetric, levels, clip, conditional)
    static = choice.params(target, progress=meter.part(search))
    if act_order or group_size is None:
        codes, params = _round_columns(target, upper, order, static, meter), static
    else:
        codes, params = _round_groups(target, upper, choice, group_size, meter)
    plain = weight_params(
        target, bits=bits, granularity=choice.granularity, group_size=group_size, symmetric=symmetric,
        levels=levels, clip=clip, progress=meter.part(search),
    )  # fmt: skip
    rounded = ((quantize(target, each), each) for each in (static, plain))
    result = _best_rows(target, hessian, meter, (codes, params), *rounded)
    quantized = QuantizedWeight(*result, input_transform)
    if not rounds:
        return quantized
    return refine(quantized, target, hessian, rounds=rounds, damping=damping, progress=meter.part(refining))


@dataclass(frozen=True)
class _Choice:
    """How parameters are chosen."""

    bits: int
    group_size: int | None
    symmetric: bool
    levels: int | None
    clip: Clip
    importance: NDArray[np.float64]

    @property
    def granularity(self) -> Granularity:
        return Granularity.CHANNEL if self.group_size is None else Granularity.GROUP

    def params(self, values: NDArray[Any], start: int = 0, progress: Share | None = None) -> QuantParams:
        """Parameters of columns from `start` on."""
        return weight_params(
            values,
            bits=self.bits,
            granularity=self.granularity,
            group_size=self.group_size,
            symmetric=self.symmetric,
            levels=self.levels,
            clip=self.clip,
            importance=self.importance[start : start + values.shape[1]],
            progress=progress,
        )


def _upper_factor(matrix: NDArray[np.float64], damping: float, meter: Meter) -> NDArray[np.float64]:
    """U, upper triangular, with ``U @ U.T == matrix``."""
    try:
        lower = cholesky(matrix[::-1, ::-1], meter)
    except np.linalg.LinAlgError:
        raise IndefiniteError(
            f"gptq: the Hessian is not positive definite with damping={damping}; add more activations or raise damping"
        ) from None
    return lower[::-1, ::-1]


def _feedback(upper: NDArray[np.float64]) -> NDArray[np.float64]:
    """Row i: what errors of columns before i add to column i."""
    return np.ascontiguousarray((upper / upper.diagonal()).T)


def _round_columns(
    target: NDArray[Any], upper: NDArray[np.float64], order: NDArray[np.intp], params: QuantParams, meter: Meter
) -> NDArray[np.int8]:
    """Codes (N, K) with parameters that are known."""
    values = np.ascontiguousarray(target.T[order], np.float64)
    scale, zero_point = (np.broadcast_to(part, target.shape).T[order] for part in params.expanded(target.shape))
    feedback, errors = _feedback(upper), np.empty_like(values)
    codes = np.empty(values.shape, np.int8)
    for start in range(0, len(values), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(values)))
        wanted = values[block] + feedback[block, :start] @ errors[:start]
        _round_block(block, values, wanted, feedback, errors, codes, (scale, zero_point), params)
        meter.add((block.stop - block.start) * block.stop * values.shape[1])
    result = np.empty(target.shape, np.int8)
    result[:, order] = codes.T
    return result


def _round_groups(
    target: NDArray[Any], upper: NDArray[np.float64], choice: _Choice, group_size: int, meter: Meter
) -> tuple[NDArray[np.int8], QuantParams]:
    """Codes and parameters, those of each group chosen when it is reached."""
    values = np.ascontiguousarray(target.T, np.float64)
    feedback, errors = _feedback(upper), np.empty_like(values)
    codes = np.empty(values.shape, np.int8)
    chosen: list[QuantParams] = []
    for group_start in range(0, len(values), group_size):
        group = slice(group_start, min(group_start + group_size, len(values)))
        wanted = values[group] + feedback[group, :group_start] @ errors[:group_start]
        params = choice.params(wanted.T, group_start)
        chosen.append(params)
        parts = tuple(np.broadcast_to(part.T, wanted.shape) for part in params.expanded(wanted.T.shape))
        for start in range(group.start, group.stop, _BLOCK):
            block = slice(start, min(start + _BLOCK, group.stop))
            inside = slice(start - group.start, block.stop - group.start)
            ready = wanted[inside] + feedback[block, group.start : start] @ errors[group.start : start]
            scale_zero = (parts[0][inside], parts[1][inside])
            _round_block(block, values, ready, feedback, errors, codes, scale_zero, params, offset=start)
            meter.add((block.stop - block.start) * block.stop * values.shape[1])
    joined = QuantParams(
        np.concatenate([p.scale for p in chosen], axis=1),
        np.concatenate([p.zero_point for p in chosen], axis=1),
        Granularity.GROUP,
        bits=choice.bits,
        axis=1,
        group_size=group_size,
        levels=choice.levels,
    )
    return np.ascontiguousarray(codes.T), joined


def _round_block(
    block: slice,
    values: NDArray[np.float64],
    wanted: NDArray[np.float64],
    feedback: NDArray[np.float64],
    errors: NDArray[np.float64],
    codes: NDArray[np.int8],
    scale_zero: tuple[NDArray[Any], NDArray[Any]],
    params: QuantParams,
    offset: int = 0,
) -> None:
    """Round the columns of a block one by one; `wanted` has the errors of all columns before it."""
    scale, zero_point = scale_zero
    for i in range(block.start, block.stop):
        value = wanted[i - block.start]
        if i > block.start:
            value = value + feedback[i, block.start : i] @ errors[block.start : i]
        s, z = scale[i - offset].astype(np.float64), zero_point[i - offset]
        q = np.clip(np.rint(value / s) + z, params.qmin, params.qmax)
        codes[i] = q
        errors[i] = values[i] - (q - z) * s


def _best_rows(
    target: NDArray[Any], hessian: Hessian, meter: Meter, *candidates: tuple[NDArray[np.int8], QuantParams]
) -> tuple[NDArray[np.int8], QuantParams]:
    """Row by row the one with the smallest error; the first of those where they are equal."""

    def error(codes: NDArray[np.int8], params: QuantParams) -> NDArray[np.float64]:
        change = target - QuantizedWeight(codes, params).dequantize(np.float64)
        return hessian.error(change, meter.part(float(change.size * hessian.features)))

    codes, params = candidates[0]
    least = error(codes, params)
    for other_codes, other_params in candidates[1:]:
        other = error(other_codes, other_params)
        worse = least > other
        if not worse.any():
            continue
        least = np.minimum(least, other)
        codes = np.where(worse[:, np.newaxis], other_codes, codes)
        rows = worse.reshape((-1,) + (1,) * (params.scale.ndim - 1))
        params = QuantParams(
            np.where(rows, other_params.scale, params.scale),
            np.where(rows, other_params.zero_point, params.zero_point),
            **params.description(),
        )
    return codes, params
