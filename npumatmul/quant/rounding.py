"""Plain quantization of weights: scales by the largest magnitude, codes by rounding to nearest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul import _kernels
from npumatmul._kernels import Conversion, Tiling
from npumatmul.qparams import Granularity, QuantizedWeight, QuantParams

__all__ = ["quantize_weight"]


def quantize_weight(
    w: NDArray[Any],
    bits: int,
    granularity: Granularity | str = Granularity.CHANNEL,
    group_size: int | None = None,
    symmetric: bool = True,
) -> QuantizedWeight:
    """Quantize a weight by its largest magnitudes, or by its ranges where it may have zero points.

    Parameters
    ----------
    w : ndarray of float, shape (N, K)
    bits : int
        4 or 8. Symmetric codes lie within ±7 or ±127.
    granularity : Granularity or str
        ``"layer"``, ``"channel"`` or ``"group"``.
    group_size : int, optional
        Along K; the last group may have fewer.
    symmetric : bool

    Raises
    ------
    NotFiniteError
        If the weight holds an inf or nan.

    Examples
    --------
    >>> quantize_weight(np.array([[1.0, -2.0], [0.0, 127.0]], np.float32), 8).codes
    array([[  64, -127],
           [   0,  127]], dtype=int8)
    """
    kind = Granularity(granularity)
    rows = np.ascontiguousarray(w, np.float32)
    n, k = rows.shape
    levels = (1 << (bits - 1)) - 1
    if kind is Granularity.GROUP:
        size = min(group_size or k, k)
        whole = k // size * size
        parts = [rows[:, :whole].reshape(-1, size), *([rows[:, whole:]] if whole < k else [])]
    else:
        parts = [rows]
    found = [_parameters(part, kind, levels, symmetric) for part in parts]
    codes = np.empty((n, k), np.int8)
    places = [codes[:, :whole], codes[:, whole:]] if kind is Granularity.GROUP else [codes]
    for part, (scale, zero), place in zip(parts, found, places, strict=False):
        place[...] = _codes(part, scale, None if symmetric else zero, levels).reshape(place.shape)
    scales, zeros = (np.concatenate([pair[i].reshape(n, -1) for pair in found], axis=1) for i in (0, 1))
    shape: dict[Granularity, Any] = {Granularity.LAYER: (), Granularity.CHANNEL: (n,)}
    if kind is Granularity.LAYER:
        scales, zeros = scales[:1, :1], zeros[:1, :1]
    params = QuantParams(
        scales.reshape(shape.get(kind, scales.shape)),
        zeros.reshape(shape.get(kind, zeros.shape)),
        kind,
        bits=bits,
        axis={Granularity.CHANNEL: 0, Granularity.GROUP: 1}.get(kind),
        group_size=group_size if kind is Granularity.GROUP else None,
        levels=levels if symmetric else None,
    )
    return QuantizedWeight(codes, params)


def _parameters(
    rows: NDArray[np.float32], kind: Granularity, levels: int, symmetric: bool
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scale and zero point of each row; all the same for a layer."""
    measured = rows.reshape(1, -1) if kind is Granularity.LAYER else rows
    if symmetric:
        scale = _kernels.symmetric_scales(measured, levels)
        zero = np.zeros(scale.shape, np.int32)
    else:
        scale, zero = _kernels.asymmetric_scales(measured, levels)
    count = rows.shape[0]
    return (np.repeat(scale, count), np.repeat(zero, count)) if kind is Granularity.LAYER else (scale, zero)


def _codes(
    rows: NDArray[np.float32], scale: NDArray[np.float32], zero: NDArray[np.int32] | None, levels: int
) -> NDArray[np.int8]:
    count, cols = rows.shape
    codes = np.empty((count, cols), np.int8)
    if codes.size:
        tiling = Tiling(count, cols, count, cols, count, cols)  # row-major
        _kernels.pack(tiling, Conversion.F32_TO_I8, rows, codes.ctypes.data, codes.nbytes, scale, zero)
    lowest = -levels if zero is None else -levels - 1
    return codes if levels == 127 else np.clip(codes, lowest, levels, out=codes)
