"""Quantization parameters, and weights quantized with them: values without an opinion on how they were found.

A code q stands for the value ``scale * (q - zero_point)`` (facts 5.5). How parameters are chosen is the matter of
`npumatmul.quant`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.quant.given import given_array
from npumatmul.rknn.constants import QuantType

__all__ = ["Granularity", "InputTransform", "QuantParams", "QuantizedWeight"]


class Granularity(str, Enum):
    """Which elements share one scale and zero point.

    ``LAYER``: all of them. ``CHANNEL``: those with the same index along one axis. ``GROUP``: runs of `group_size`
    neighbours along one axis. ``TOKEN``: those of one row, that is with the same index along every axis but the last.
    """

    LAYER = "layer"
    CHANNEL = "channel"
    GROUP = "group"
    TOKEN = "token"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, eq=False)
class QuantParams:
    """Scales and zero points of a quantized array.

    Checked when made, and immutable: its arrays are read-only copies.

    Parameters
    ----------
    scale : array_like
        Positive and finite; kept as float32. Its shape depends on the granularity: () for a layer, (n,) for a channel
        axis of n, the array's shape with the axis replaced by the number of groups, the array's shape without its last
        axis for tokens.
    zero_point : array_like of int, optional
        The code of the value 0: of the shape of `scale` or a scalar; kept as int32. 0 by default.
    granularity : Granularity or str
    bits : int
        2 to 8. Codes lie in -2**(bits-1) .. 2**(bits-1) - 1.
    axis : int, optional
        Of channels (0 by default: the rows of a weight (N, K)) or groups (-1 by default).
    group_size : int, optional
        Elements per group; the last group along an axis may have fewer.
    levels : int, optional
        Where it is given, codes lie in -levels .. levels: 127 and 7 make the range symmetric, 119 is what int8 codes
        that are split into two int4 take.

    Attributes
    ----------
    scale : ndarray of float32, read-only
    zero_point : ndarray of int32, read-only, of the same shape

    Raises
    ------
    ValueError
        If parts do not fit together, a scale is not positive and finite, or a zero point is not a code.
    TypeError
        If a zero point is not an integer.

    Examples
    --------
    >>> QuantParams(0.5)
    QuantParams(layer, int8, symmetric, scale=0.5)
    >>> params = QuantParams(np.ones((4, 3)), granularity="group", bits=4, group_size=32)
    >>> params, params.symmetric, params.qmin, params.qmax
    (QuantParams(group of 32 along axis -1, int4, symmetric, scale of shape (4, 3)), True, -8, 7)
    """

    scale: NDArray[np.float32]
    zero_point: NDArray[np.int32]
    granularity: Granularity
    bits: int
    axis: int | None
    group_size: int | None
    levels: int | None

    def __init__(
        self,
        scale: ArrayLike,
        zero_point: ArrayLike = 0,
        granularity: Granularity | str = Granularity.LAYER,
        *,
        bits: int = 8,
        axis: int | None = None,
        group_size: int | None = None,
        levels: int | None = None,
    ) -> None:
        kind = _granularity(granularity)
        _check_range(bits, levels)
        if axis is None:
            axis = {Granularity.CHANNEL: 0, Granularity.GROUP: -1}.get(kind)
        elif kind in (Granularity.LAYER, Granularity.TOKEN):
            raise ValueError(f"QuantParams: parameters per {kind} have no axis, but axis={axis} was given")
        if kind is Granularity.GROUP:
            if group_size is None or group_size < 1:
                raise ValueError(f"QuantParams: parameters per group need a group_size of 1 or more, not {group_size}")
        elif group_size is not None:
            raise ValueError(f"QuantParams: group_size={group_size} was given for parameters per {kind}")
        scales = _scales(scale, kind)
        fields = {
            "scale": scales,
            "zero_point": _zero_points(zero_point, scales.shape),
            "granularity": kind,
            "bits": int(bits),
            "axis": axis,
            "group_size": group_size,
            "levels": levels,
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        bad = self.zero_point[(self.zero_point < self.qmin) | (self.zero_point > self.qmax)]
        if bad.size:
            raise ValueError(
                f"QuantParams: the zero point {int(bad[0])} is not a code; codes of these parameters lie in "
                f"{self.qmin}..{self.qmax}"
            )

    def __repr__(self) -> str:
        place = {
            Granularity.CHANNEL: f" along axis {self.axis}",
            Granularity.GROUP: f" of {self.group_size} along axis {self.axis}",
        }.get(self.granularity, "")
        scale = f"={float(self.scale):g}" if self.scale.ndim == 0 else f" of shape {self.scale.shape}"
        levels = "" if self.levels is None else f" within ±{self.levels}"
        symmetry = "symmetric" if self.symmetric else "asymmetric"
        return f"QuantParams({self.granularity}{place}, int{self.bits}{levels}, {symmetry}, scale{scale})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantParams) and self.as_dict() == other.as_dict()

    def __hash__(self) -> int:
        return hash((self.granularity, self.bits, self.axis, self.group_size, self.levels, self.scale.tobytes()))

    def __getstate__(self) -> dict[str, Any]:
        return self.as_dict()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def symmetric(self) -> bool:
        """Whether every zero point is 0."""
        return not self.zero_point.any()

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return -(1 << (self.bits - 1)) if self.levels is None else -self.levels

    @property
    def qmax(self) -> int:
        """Largest code."""
        return (1 << (self.bits - 1)) - 1 if self.levels is None else self.levels

    @property
    def quant_type(self) -> QuantType:
        """The same as the matmul API calls it.

        Raises
        ------
        ValueError
            For parameters per token, which the API does not know.
        """
        if self.granularity is Granularity.TOKEN:
            raise ValueError("QuantParams: the matmul API has no parameters per token; they are applied on the host")
        symmetry = "SYM" if self.symmetric else "ASYM"
        return QuantType[f"PER_{self.granularity.name}_{symmetry}"]

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """See that an array of this shape can have these parameters.

        Raises
        ------
        ValueError
            If it cannot; the message says which shape of scales belongs to it.
        """
        wanted = self._scale_shape(shape)
        if self.scale.shape != wanted:
            raise ValueError(
                f"an array of shape {shape} quantized per {self.granularity} has scales of shape {wanted}, "
                f"but these are of shape {self.scale.shape}"
            )

    def expanded(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Scale and zero point of each element of an array of this shape.

        Returns
        -------
        scale : ndarray of float32
        zero_point : ndarray of int32
            Both such that they broadcast to `shape`.

        Raises
        ------
        ValueError
            If the shape does not fit.

        Examples
        --------
        >>> scale, zero_point = QuantParams([1, 2], granularity="channel").expanded((2, 5))
        >>> scale.shape, zero_point.shape
        ((2, 1), (2, 1))
        """
        self.check_shape(shape)
        return self._expand(self.scale, shape), self._expand(self.zero_point, shape)

    def as_dict(self) -> dict[str, Any]:
        """The arguments that make it again, as values that JSON can hold; float32 scales survive exactly.

        Examples
        --------
        >>> params = QuantParams([0.25, 0.5], [1, -1], "channel", bits=4)
        >>> QuantParams(**params.as_dict()) == params
        True
        """
        return {
            "scale": self.scale.tolist(),
            "zero_point": 0 if self.symmetric else self.zero_point.tolist(),
            **self.description(),
        }

    def description(self) -> dict[str, Any]:
        """`as_dict` without the arrays, for those who store them otherwise."""
        return {
            "granularity": self.granularity.value,
            "bits": self.bits,
            "axis": self.axis,
            "group_size": self.group_size,
            "levels": self.levels,
        }

    def _scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.granularity is Granularity.LAYER:
            return ()
        if self.granularity is Granularity.TOKEN:
            if not shape:
                raise ValueError("a 0-dimensional array has no tokens")
            return shape[:-1]
        axis = self.axis or 0
        if not -len(shape) <= axis < len(shape):
            raise ValueError(f"an array of shape {shape} has no axis {axis}")
        if self.granularity is Granularity.CHANNEL:
            return (shape[axis],)
        groups = -(-shape[axis] // (self.group_size or 1))
        return tuple(groups if i == axis % len(shape) else extent for i, extent in enumerate(shape))

    def _expand(self, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        if self.granularity is Granularity.LAYER:
            return values
        if self.granularity is Granularity.TOKEN:
            return values[..., np.newaxis]
        axis = (self.axis or 0) % len(shape)
        if self.granularity is Granularity.CHANNEL:
            return values.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        repeated = np.repeat(values, self.group_size or 1, axis=axis)
        return repeated[(slice(None),) * axis + (slice(shape[axis]),)]


@runtime_checkable
class InputTransform(Protocol):
    """What is done to activations before they are quantized, and to the weight that meets them.

    The float result stays what it was: ``activation(x) @ weight(w).T`` is ``x @ w.T``. `npumatmul.quant.transforms`
    has those that there are, and makes them again of their descriptions.
    """

    @property
    def features(self) -> int:
        """K: extent of the last axis of activations and weights."""

    def activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Transform activations of shape (..., K)."""

    def inverse_activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Undo `activation`."""

    def weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Transform a weight of shape (N, K)."""

    def inverse_weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Undo `weight`."""

    def describe(self) -> dict[str, Any]:
        """All that makes it again, as values that JSON can hold."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight as codes: what quantizers make and `pack` takes.

    Parameters
    ----------
    codes : ndarray of int8, shape (N, K)
        Row n makes column n of B; int4 codes stand one per element. Not copied; a read-only view is kept.
    params : QuantParams
        Per layer, channel (axis 0) or group (along K).
    input_transform : InputTransform, optional
        Has to be applied to activations before they meet this weight.

    Raises
    ------
    TypeError
        If codes are not an array of int8, or params no `QuantParams`.
    ValueError
        If codes are not 2-D or lie outside the range of `params`, or `params` or `input_transform` do not fit them.

    Examples
    --------
    >>> weight = QuantizedWeight(np.array([[1, -2], [3, 4]], np.int8), QuantParams([0.5, 2], granularity="channel"))
    >>> weight
    QuantizedWeight(shape=(2, 2), QuantParams(channel along axis 0, int8, symmetric, scale of shape (2,)))
    >>> weight.dequantize()
    array([[ 0.5, -1. ],
           [ 6. ,  8. ]], dtype=float32)
    """

    codes: NDArray[np.int8]
    params: QuantParams
    input_transform: InputTransform | None = None

    def __post_init__(self) -> None:
        codes, params = self.codes, self.params
        if not isinstance(codes, np.ndarray):
            raise TypeError(f"QuantizedWeight: codes are an array of int8, not {type(codes).__name__}")
        if not isinstance(params, QuantParams):
            raise TypeError(f"QuantizedWeight: params are QuantParams, not {type(params).__name__}")
        if codes.dtype != np.int8:
            raise TypeError(f"QuantizedWeight: codes are int8, not {codes.dtype}")
        if codes.ndim != 2:
            raise ValueError(f"QuantizedWeight: codes have 2 dimensions, (N, K); these have shape {codes.shape}")
        axes = {Granularity.CHANNEL: (0, -2), Granularity.GROUP: (1, -1)}.get(params.granularity)
        if params.granularity is Granularity.TOKEN or (axes is not None and params.axis not in axes):
            raise ValueError(
                f"QuantizedWeight: a weight has parameters per layer, per channel along axis 0 or per group along "
                f"axis 1, not {params}"
            )
        params.check_shape(codes.shape)
        if codes.size and not params.qmin <= int(codes.min()) <= int(codes.max()) <= params.qmax:
            raise ValueError(
                f"QuantizedWeight: codes lie in {int(codes.min())}..{int(codes.max())}, but {params} has "
                f"{params.qmin}..{params.qmax}"
            )
        transform = self.input_transform
        if transform is not None and transform.features != codes.shape[1]:
            raise ValueError(
                f"QuantizedWeight: the transform is for K={transform.features}, the codes have K={codes.shape[1]}"
            )
        view = codes.view()
        view.flags.writeable = False
        object.__setattr__(self, "codes", view)

    def __repr__(self) -> str:
        transform = "" if self.input_transform is None else f", input_transform={self.input_transform}"
        return f"QuantizedWeight(shape={self.shape}, {self.params}{transform})"

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def groups(self) -> int:
        """Groups along K; 1 unless parameters are per group."""
        return self.params.scale.shape[1] if self.params.granularity is Granularity.GROUP else 1

    def dequantize(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The values that the codes stand for: what meets transformed activations.

        Parameters
        ----------
        dtype : dtype
            float32 (one rounding per value) or float64 (exact).

        Returns
        -------
        ndarray, shape (N, K)
        """
        scale, zero_point = self.params.expanded(self.shape)
        values: NDArray[Any] = (self.codes.astype(np.int32) - zero_point).astype(dtype)
        values *= scale
        return values

    def restored(self, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """`dequantize` with the transform undone: what meets activations as they are.

        Returns
        -------
        ndarray, shape (N, K)
        """
        values = self.dequantize(dtype)
        return values if self.input_transform is None else self.input_transform.inverse_weight(values)

    def description(self) -> Mapping[str, Any]:
        """Everything but the arrays, as values that JSON can hold."""
        transform = self.input_transform
        return {
            "params": self.params.description(),
            "input_transform": None if transform is None else transform.describe(),
        }


def _granularity(value: Granularity | str) -> Granularity:
    try:
        return Granularity(value)
    except ValueError:
        names = ", ".join(repr(g.value) for g in Granularity)
        raise ValueError(f"QuantParams: no granularity is called {value!r}; there are {names}") from None


def _check_range(bits: int, levels: int | None) -> None:
    if isinstance(bits, bool) or not 2 <= bits <= 8 or bits != int(bits):
        raise ValueError(f"QuantParams: bits is a whole number from 2 to 8, not {bits}")
    largest = (1 << (int(bits) - 1)) - 1
    if levels is not None and not 1 <= levels <= largest:
        raise ValueError(f"QuantParams: levels of int{bits} codes lie in 1..{largest}, not {levels}")


def _scales(scale: ArrayLike, kind: Granularity) -> NDArray[np.float32]:
    given = given_array(scale, "QuantParams", "scale")
    if given.dtype.kind not in "fiu" and given.dtype.name != "bfloat16":
        raise TypeError(f"QuantParams: scales are floats, not {given.dtype}")
    with np.errstate(over="ignore"):
        scales = np.array(given, np.float32, order="C")
    wrong = ~(np.isfinite(scales) & (scales > 0))
    if wrong.any():
        raise ValueError(
            f"QuantParams: scales are positive and finite in float32, but one is {float(given[wrong].flat[0])}"
        )
    if kind is Granularity.LAYER:
        if scales.size != 1:
            raise ValueError(f"QuantParams: a layer has one scale, not {scales.shape}")
        scales = scales.reshape(())
    elif kind is Granularity.CHANNEL and scales.ndim != 1:
        raise ValueError(f"QuantParams: channels have scales of shape (n,), not {scales.shape}")
    elif kind is Granularity.GROUP and scales.ndim == 0:
        raise ValueError("QuantParams: groups have scales of as many dimensions as the array, not a single scale")
    scales.flags.writeable = False
    return scales


def _zero_points(zero_point: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.int32]:
    given = given_array(zero_point, "QuantParams", "zero_point")
    if given.dtype.kind not in "iu":
        raise TypeError(f"QuantParams: zero points are integers, not {given.dtype}")
    if given.ndim and given.size != 1 and given.shape != shape:
        raise ValueError(f"QuantParams: zero points of shape {given.shape} do not belong to scales of shape {shape}")
    clamped = np.clip(given, np.iinfo(np.int32).min, np.iinfo(np.int32).max)  # the caller names what is out of range
    points = np.array(np.broadcast_to(clamped.reshape(shape if given.size != 1 else ()), shape), np.int32, order="C")
    points.flags.writeable = False
    return points
