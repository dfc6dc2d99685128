"""Transforms of activations and weights that leave their product what it was.

Each object (`npumatmul.quant.params.InputTransform`) says what it does to activations and to weights, undoes both, and
describes itself in values that JSON can hold; `transform_from` makes it again. `Hadamard` has a module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.host import kernels
from npumatmul.quant.functions import float_array
from npumatmul.quant.given import given_array
from npumatmul.quant.hadamard import Hadamard
from npumatmul.quant.params import InputTransform

__all__ = ["Chain", "ChannelScale", "Permutation", "kernel_of", "transform_from"]


class Permutation:
    """Reorder features: ``activation(x) = x[..., order]``, and the same for weights.

    Parameters
    ----------
    order : array_like of int, shape (K,)
        Every index once.

    Attributes
    ----------
    order : ndarray of int64, read-only

    Raises
    ------
    ValueError
        If `order` is no permutation.

    Examples
    --------
    >>> Permutation([2, 0, 1]).activation(np.array([[10.0, 11.0, 12.0]]))
    array([[12., 10., 11.]])
    """

    def __init__(self, order: ArrayLike) -> None:
        given = given_array(order, "Permutation", "order")
        if given.ndim != 1 or given.dtype.kind not in "iu" or not np.array_equal(np.sort(given), np.arange(given.size)):
            raise ValueError("Permutation: order has to hold each of 0 .. K - 1 once")
        self.order: NDArray[np.int64] = given.astype(np.int64)
        self.order.flags.writeable = False
        self._back = np.argsort(self.order)

    def __repr__(self) -> str:
        return f"Permutation({self.features})"

    @property
    def features(self) -> int:
        """K."""
        return self.order.size

    def activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Reorder the last axis."""
        return np.take(_checked(x, self, "activation"), self.order, axis=-1)

    def inverse_activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Put the last axis back in order."""
        return np.take(_checked(x, self, "inverse_activation"), self._back, axis=-1)

    def weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Reorder the columns of a weight (N, K)."""
        return self.activation(w)

    def inverse_weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Put the columns back in order."""
        return self.inverse_activation(w)

    def describe(self) -> dict[str, Any]:
        """All that makes it again, as values that JSON can hold."""
        return {"kind": "permutation", "order": self.order.tolist()}


class ChannelScale:
    """Divide features of activations by scales and multiply those of weights with them, as SmoothQuant and AWQ do.

    Parameters
    ----------
    scale : array_like, shape (K,)
        Positive and finite; kept as float32.

    Attributes
    ----------
    scale : ndarray of float32, read-only

    Raises
    ------
    ValueError
        If a scale is not positive and finite.

    Examples
    --------
    >>> transform = ChannelScale([2.0, 0.5])
    >>> transform.activation(np.array([[8.0, 1.0]])), transform.weight(np.array([[1.0, 1.0]]))
    (array([[4., 2.]]), array([[2. , 0.5]]))
    """

    def __init__(self, scale: ArrayLike) -> None:
        with np.errstate(over="ignore"):  # what is too large is infinite then, and refused
            self.scale: NDArray[np.float32] = np.array(given_array(scale, "ChannelScale", "scale"), np.float32)
        if self.scale.ndim != 1 or not (np.isfinite(self.scale) & (self.scale > 0)).all():
            raise ValueError("ChannelScale: scale has to be of shape (K,), positive and finite in float32")
        self.scale.flags.writeable = False

    def __repr__(self) -> str:
        return f"ChannelScale({self.features})"

    @property
    def features(self) -> int:
        """K."""
        return self.scale.size

    def activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Divide the last axis by the scales."""
        result: NDArray[Any] = _checked(x, self, "activation") / self.scale
        return result

    def inverse_activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Multiply the last axis by the scales."""
        result: NDArray[Any] = _checked(x, self, "inverse_activation") * self.scale
        return result

    def weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Multiply the columns of a weight (N, K) by the scales."""
        return self.inverse_activation(w)

    def inverse_weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Divide the columns of a weight by the scales."""
        return self.activation(w)

    def describe(self) -> dict[str, Any]:
        """All that makes it again, as values that JSON can hold."""
        return {"kind": "channel_scale", "scale": self.scale.tolist()}


class Chain:
    """Several transforms, one after the other.

    Parameters
    ----------
    transforms : sequence of InputTransform
        The first is applied to activations first.

    Raises
    ------
    ValueError
        If there are none, or they are for different K.

    Examples
    --------
    >>> chain = Chain([ChannelScale([2.0, 0.5, 1.0, 1.0]), Hadamard(4, seed=None)])
    >>> chain.activation(np.array([[8.0, 0.0, 0.0, 0.0]]))
    array([[2., 2., 2., 2.]])
    """

    def __init__(self, transforms: Sequence[InputTransform]) -> None:
        self.transforms = tuple(transforms)
        if not self.transforms:
            raise ValueError("Chain: needs one transform or more")
        if len({t.features for t in self.transforms}) > 1:
            raise ValueError(f"Chain: transforms for different K cannot follow each other: {list(self.transforms)}")

    def __repr__(self) -> str:
        return f"Chain({list(self.transforms)})"

    @property
    def features(self) -> int:
        """K."""
        return self.transforms[0].features

    def activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Transform activations (..., K)."""
        for transform in self.transforms:
            x = transform.activation(x)
        return x

    def inverse_activation(self, x: NDArray[Any]) -> NDArray[Any]:
        """Undo `activation`."""
        for transform in reversed(self.transforms):
            x = transform.inverse_activation(x)
        return x

    def weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Transform a weight (N, K)."""
        for transform in self.transforms:
            w = transform.weight(w)
        return w

    def inverse_weight(self, w: NDArray[Any]) -> NDArray[Any]:
        """Undo `weight`."""
        for transform in reversed(self.transforms):
            w = transform.inverse_weight(w)
        return w

    def describe(self) -> dict[str, Any]:
        """All that makes it again, as values that JSON can hold."""
        return {"kind": "chain", "transforms": [t.describe() for t in self.transforms]}


_MAKERS: Mapping[str, Callable[[Mapping[str, Any]], InputTransform]] = {
    "hadamard": lambda d: Hadamard(d["features"], d["block"], d["seed"]),
    "permutation": lambda d: Permutation(d["order"]),
    "channel_scale": lambda d: ChannelScale(d["scale"]),
    "chain": lambda d: Chain([transform_from(part) for part in d["transforms"]]),
}


def kernel_of(transform: InputTransform) -> kernels.Hadamard | None:
    """What the C kernel does in one pass ahead of packing, with the same bits as ``transform.activation`` in float32.

    Parameters
    ----------
    transform : InputTransform

    Returns
    -------
    kernels.Hadamard or None
        None for what it cannot do: anything but a `ChannelScale`, a `Hadamard` or the one before the other.

    Examples
    --------
    >>> kernel_of(Chain([ChannelScale([2.0, 0.5]), Hadamard(2)])).features
    2
    >>> kernel_of(Permutation([1, 0])) is None
    True
    """
    # subclasses may do something else
    steps = list(transform.transforms) if type(transform) is Chain else [transform]
    divisor = None
    if type(steps[0]) is ChannelScale:
        divisor = steps[0].scale
        if len(steps) == 1:
            return kernels.hadamard((), 1, None, divisor)
        steps = steps[1:]
    if len(steps) == 1 and type(steps[0]) is Hadamard:
        return steps[0].kernel if divisor is None else steps[0].kernel_after(divisor)
    return None


def transform_from(description: Mapping[str, Any]) -> InputTransform:
    """Make a transform of what its `describe` gave.

    Parameters
    ----------
    description : mapping

    Returns
    -------
    InputTransform

    Raises
    ------
    ValueError
        If the description is not one of a transform here; the message says what is wrong with it.

    Examples
    --------
    >>> transform_from(Hadamard(64).describe())
    Hadamard(64, block=64, seed=0)
    """
    kind = description.get("kind") if isinstance(description, Mapping) else None
    if not isinstance(kind, str) or kind not in _MAKERS:
        raise ValueError(f"transform_from: kind is {kind!r}; there are {', '.join(map(repr, _MAKERS))}")
    try:
        return _MAKERS[kind](description)
    except (KeyError, TypeError) as error:
        raise ValueError(f"transform_from: the description of a {kind} is incomplete or of wrong types: {error}") from (
            error
        )


def _checked(x: NDArray[Any], transform: InputTransform, method: str) -> NDArray[Any]:
    values = float_array(x, f"{type(transform).__name__}.{method}")
    if values.ndim == 0 or values.shape[-1] != transform.features:
        raise ValueError(
            f"{type(transform).__name__}.{method}: the last axis has to be the {transform.features} features; "
            f"the shape is {values.shape}"
        )
    return values
