"""Schemes: how a weight and the activations that meet it are represented on the NPU.

A scheme is a row of `SCHEMES`: the matmul type, how the weight becomes B, how rows of A are converted, and the type of
the result. `matmul` and `pack` look everything up here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul import _kernels
from npumatmul._kernels import Conversion, RowScaling
from npumatmul.activation import Activation
from npumatmul.mmtype import MatmulType
from npumatmul.plan import WeightPlan

__all__ = ["SCHEMES", "Scheme", "WeightValues", "scheme_for"]


@dataclass(frozen=True)
class WeightValues:
    """A weight ready to be packed.

    Attributes
    ----------
    values : ndarray, shape (N, K)
    conversion : Conversion
    row_scale : ndarray of float32, shape (N,), or None
        For the conversion.
    column_scale : ndarray of float32, shape (N,), or None
        For the columns of results.
    """

    values: NDArray[Any]
    conversion: Conversion
    row_scale: NDArray[np.float32] | None = None
    column_scale: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Scheme:
    """One way to represent a matmul on the NPU.

    Attributes
    ----------
    name : str
    mm_type : MatmulType
    weights : tuple of numpy.dtype
        What `pack` takes.
    activations : mapping of numpy.dtype to Activation
        What `matmul` takes on the left.
    result : numpy.dtype
        What `matmul` returns.
    """

    name: str
    mm_type: MatmulType
    weights: tuple[np.dtype[Any], ...]
    activations: Mapping[np.dtype[Any], Activation]
    result: np.dtype[Any]

    def weight_values(self, weight: NDArray[Any]) -> WeightValues:
        """Scales and conversion of a weight.

        Parameters
        ----------
        weight : ndarray, shape (N, K)
            Of one of the dtypes in `weights`.

        Raises
        ------
        NotFiniteError
            If a weight that has to be quantized holds an inf or nan.
        """
        if weight.dtype == np.int8:
            return WeightValues(weight, Conversion.COPY_8)
        if weight.dtype == _I4:
            return WeightValues(weight, Conversion.INT4)
        if self.mm_type is MatmulType.INT8_INT8_INT32:
            weight = weight.astype(np.float32, copy=False)
            # s = absmax / 127 per output channel, symmetric (facts 5.5 with z = 0); a channel of zeros keeps s = 1.
            scale = _kernels.absmax_rows(weight) / np.float32(127)
            scale[scale == 0] = 1
            return WeightValues(weight, Conversion.F32_TO_I8, scale, scale)
        if weight.dtype == np.float16:
            return WeightValues(weight, Conversion.COPY_16)
        weight = weight.astype(np.float32, copy=False)
        scale = _kernels.power_of_two_scales(weight)
        if bool((scale == 1).all()):
            return WeightValues(weight, Conversion.F32_TO_F16)
        return WeightValues(weight, Conversion.F32_TO_F16, scale, np.reciprocal(scale))

    def k_parts(self, weight: NDArray[Any], plan: WeightPlan) -> int:
        """How many slices K has to be cut into at least, so that no partial sum leaves the result's type.

        Only int4 products need it: their sums are int16 on the device, and what it does beyond is not documented
        (Q20). A slice is safe if 8 times the sum of its magnitudes stays within int16 in every column, since 8 is the
        largest magnitude of an int4. The packed weight decides, not the worst case.

        Parameters
        ----------
        weight : ndarray, shape (N, K)
        plan : WeightPlan
            As cut without this.

        Returns
        -------
        int
            Number of slices, at least; more than the present ones where they are too long.
        """
        if self.mm_type is not MatmulType.INT4_INT4_INT16:
            return 1
        largest = np.iinfo(np.int16).max // 8
        sums = np.cumsum(np.abs(weight.astype(np.int32)), axis=1)
        edges = [span.start + span.length - 1 for span in plan.k_spans]
        totals = np.diff(sums[:, edges], axis=1, prepend=0)
        excess = int(totals.max()) / largest
        return len(plan.k_spans) if excess <= 1 else len(plan.k_spans) + 1


_F16, _F32, _I8, _I32 = (np.dtype(t) for t in (np.float16, np.float32, np.int8, np.int32))
_BF16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
_I4: np.dtype[Any] = np.dtype(ml_dtypes.int4)

#: The schemes by name.
SCHEMES: Mapping[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "w16a16",
            MatmulType.FLOAT16_FLOAT16_FLOAT32,
            (_F16, _F32, _BF16),
            {
                _F16: Activation(_F16, Conversion.COPY_16, RowScaling.UNSCALED),
                _F32: Activation(_F32, Conversion.F32_TO_F16, RowScaling.POWER_OF_TWO),
                _BF16: Activation(_F32, Conversion.F32_TO_F16, RowScaling.POWER_OF_TWO),
            },
            _F32,
        ),
        Scheme(
            "w8a8",
            MatmulType.INT8_INT8_INT32,
            (_F16, _F32, _BF16),
            {dtype: Activation(_F32, Conversion.F32_TO_I8, RowScaling.ABSMAX) for dtype in (_F16, _F32, _BF16)},
            _F32,
        ),
        Scheme(
            "int8",
            MatmulType.INT8_INT8_INT32,
            (_I8,),
            {
                _I8: Activation(_I8, Conversion.COPY_8, RowScaling.UNSCALED),
                _I4: Activation(_I8, Conversion.COPY_8, RowScaling.UNSCALED),
            },
            _I32,
        ),
        Scheme(
            "int4",
            MatmulType.INT4_INT4_INT16,
            (_I4,),
            {_I4: Activation(_I4, Conversion.INT4, RowScaling.UNSCALED)},
            _I32,
        ),
    )
}

_BY_DTYPE = {_F16: "w16a16", _F32: "w16a16", _BF16: "w16a16", _I8: "int8", _I4: "int4"}


def scheme_for(dtype: np.dtype[Any], name: str | None, function: str) -> Scheme:
    """Scheme of a weight.

    Parameters
    ----------
    dtype : numpy.dtype
        Of the weight.
    name : str or None
        A name in `SCHEMES`; None takes what loses least: ``w16a16`` for floats, the exact ``int8`` and ``int4``
        for integers.
    function : str
        For error messages.

    Raises
    ------
    ValueError
        If there is no scheme of that name.
    TypeError
        If the NPU cannot represent the dtype without losing information, or the scheme does not take it.

    Examples
    --------
    >>> scheme_for(np.dtype(np.float32), None, "pack").name
    'w16a16'
    """
    dtype = dtype.newbyteorder("=")
    if name is not None and name not in SCHEMES:
        raise ValueError(f"{function}: no scheme is called {name!r}; there are {', '.join(map(repr, SCHEMES))}")
    if name is None and dtype not in _BY_DTYPE:
        raise TypeError(f"{function}: {cast_advice(dtype)}")
    scheme = SCHEMES[name or _BY_DTYPE[dtype]]
    if dtype not in scheme.weights:
        raise TypeError(
            f"{function}: scheme {scheme.name!r} takes weights of {' or '.join(map(str, scheme.weights))}, not {dtype}"
        )
    return scheme


def cast_advice(dtype: np.dtype[Any]) -> str:
    """Why a dtype is refused, and what to cast to."""
    text = f"the NPU multiplies float16, int8 and int4 and cannot take {dtype} without losing information"
    if dtype.kind == "f":
        return f"{text}; cast to float32 (products of float16, sums of float32) if that precision is enough"
    if dtype.kind in "iub":
        return f"{text}; cast to int8 if the values fit, else to float32 (exact up to 2**11 in magnitude)"
    return f"{text}; cast to float32 or int8 first"
