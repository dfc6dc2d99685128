"""Nodes of models that are quantized already: products of 8-bit integers, and what is done to their sums."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.onnx.candidates import Candidate, constant, geometry, input_name
from npumatmul.onnx.constants import attributes

__all__ = ["conv_integer", "matmul_integer", "qgemm", "qlinear_conv", "qlinear_matmul"]

_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
_FLOATS = (np.dtype(np.float32), np.dtype(np.float16))
_MOST_DIMENSIONS = 3


def _zero(each: Candidate, index: int, called: str) -> Any:
    """A zero point, None if it was left out, or why it cannot be used."""
    return constant(each, index, _BYTES, f"{called} zero point") if input_name(each, index) else None


def _columns(each: Candidate, weight: NDArray[Any], zero: Any) -> str | None:
    """Take a weight ``(K, N)`` whose columns may have zero points."""
    if weight.ndim != 2:
        return f"its right operand has {weight.ndim} dimensions"
    each.k, each.n = weight.shape
    if zero is not None and zero.size not in (1, each.n):
        return "its weight has zero points for other things than columns"
    each.extra.update(weight=weight, weight_zero=zero, groups=1)
    return None


def matmul_integer(each: Candidate) -> str | None:
    """``(x - x_zero) @ (weight - weight_zero)`` in int32; the zero point of x may be a result."""
    weight, zero = constant(each, 1, _BYTES, "right operand"), _zero(each, 3, "weight's")
    for value in (weight, zero):
        if isinstance(value, str):
            return value
    return _columns(each, weight, zero)


def conv_integer(each: Candidate) -> str | None:
    """The same over windows."""
    weight, zero = constant(each, 1, _BYTES), _zero(each, 3, "weight's")
    for value in (weight, zero):
        if isinstance(value, str):
            return value
    return _channels(each, weight, zero)


def _channels(each: Candidate, weight: NDArray[Any], zero: Any) -> str | None:
    why = geometry(each, weight, _MOST_DIMENSIONS)
    if why is None and zero is not None and zero.size not in (1, len(weight)):
        why = "its weight has zero points for other things than channels"
    each.extra.update(weight=weight, weight_zero=zero)
    return why


def _rounding(each: Candidate, x_scale: int, w_scale: int, y_scale: int, channels: int) -> str | None:
    """Read scales of x, the weight and y, and the zero points behind those of x and y."""
    scales = [constant(each, index, _FLOATS, f"{called} scale") for index, called in
              ((x_scale, "input's"), (w_scale, "weight's"), (y_scale, "output's"))]  # fmt: skip
    zeros = [constant(each, x_scale + 1, _BYTES, "input's zero point"),
             constant(each, y_scale + 1, _BYTES, "output's zero point")]  # fmt: skip
    why = next((value for value in (*scales, *zeros) if isinstance(value, str)), None)
    if why is not None:
        return why
    if any(value.size != 1 for value in (scales[0], scales[2], *zeros)):
        return "it has scales for each row"
    if scales[1].size not in (1, channels):
        return "its weight has scales for other things than columns or channels"
    if zeros[0].dtype != zeros[1].dtype:
        return "its input and output are of unlike types"
    x, w, y = (value.reshape(-1).astype(np.float32) for value in scales)
    # in float32 and in this order, as ONNX Runtime rounds
    each.extra.update(scale=x * w / y, x_zero=zeros[0].reshape(-1), y_zero=zeros[1].reshape(-1))
    return None


def qlinear_matmul(each: Candidate) -> str | None:
    """A product of integers, rounded to integers of another scale."""
    weight, zero = constant(each, 3, _BYTES, "right operand"), _zero(each, 5, "weight's")
    for value in (weight, zero):
        if isinstance(value, str):
            return value
    return _columns(each, weight, zero) or _rounding(each, 1, 4, 6, each.n)


def qlinear_conv(each: Candidate) -> str | None:
    """The same over windows, with a bias of the scale of the sums."""
    weight, zero = constant(each, 3, _BYTES), _zero(each, 5, "weight's")
    for value in (weight, zero):
        if isinstance(value, str):
            return value
    why = _channels(each, weight, zero) or _rounding(each, 1, 4, 6, len(weight))
    return why or _bias(each, 8, len(weight))


def _bias(each: Candidate, index: int, n: int) -> str | None:
    if not input_name(each, index):
        return None
    bias = constant(each, index, (np.dtype(np.int32),), "bias")
    if isinstance(bias, str):
        return bias
    if bias.size not in (1, n) or (bias.ndim > 1 and bias.shape[-1] != bias.size):
        return "what it adds is not one constant row"
    each.extra["sums_bias"] = np.broadcast_to(bias.reshape(-1), (n,)).copy()
    return None


def qgemm(each: Candidate) -> str | None:
    """A product of integers that becomes floats, or integers of another scale."""
    given = attributes(each.node)
    weight, zero = constant(each, 3, _BYTES), _zero(each, 5, "weight's")
    for value in (weight, zero):
        if isinstance(value, str):
            return value
    if given.get("transA", 0):
        return "its left operand is transposed"
    why = _columns(each, weight.T if given.get("transB", 0) else weight, zero) or _bias(each, 6, each.n)
    if why is not None:
        return why
    alpha = np.float32(given.get("alpha", 1.0))
    if input_name(each, 7) and input_name(each, 8):
        why = _rounding(each, 1, 4, 7, each.n)
        if why is not None:
            return why
        x, w, y = (each.scope.value(input_name(each, index)) for index in (1, 4, 7))
        assert x is not None
        assert w is not None
        assert y is not None
        each.extra["scale"] = alpha * x.reshape(-1) * w.reshape(-1) / y.reshape(-1)
        return None
    x, w, x_zero = constant(each, 1, _FLOATS, "scale"), constant(each, 4, _FLOATS, "scale"), _zero(each, 2, "input's")
    for value in (x, w, x_zero):
        if isinstance(value, str):
            return value
    if x_zero is None or x.size != 1 or x_zero.size != 1 or w.size not in (1, each.n) or input_name(each, 7):
        return "its scales are not those of its columns"
    each.extra.update(scale=alpha * x.reshape(-1) * w.reshape(-1), x_zero=x_zero.reshape(-1), y_zero=None)
    return None
