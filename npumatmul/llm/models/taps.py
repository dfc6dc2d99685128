"""Looking at what goes through a model's linear layers."""

from __future__ import annotations

from collections.abc import Callable

from npumatmul.nn.product import Float32, Pack, Product

__all__ = ["Observer", "TappedLinear", "tapped"]

Observer = Callable[[str, Float32, Float32], None]
"""Called after each product with the layer's name, its input ``(M, K)`` and its output ``(M, N)``. Both may be
overwritten later; an observer that keeps them copies them."""


class TappedLinear:
    """A `Product` whose inputs and outputs are shown to an observer.

    Parameters
    ----------
    linear : Product
        What computes.
    name : str
        Name of the layer.
    observer : callable
        What looks on.
    """

    def __init__(self, linear: Product, name: str, observer: Observer) -> None:
        self.linear = linear
        self._name = name
        self._observer = observer

    @property
    def shape(self) -> tuple[int, int]:
        return self.linear.shape

    def __call__(self, x: Float32) -> Float32:
        y = self.linear(x)
        self._observer(self._name, x, y)
        return y


def tapped(pack: Pack, observer: Observer) -> Pack:
    """Make a `Pack` whose layers show what they see.

    Parameters
    ----------
    pack : callable
        Makes the layers.
    observer : callable
        Looks on.

    Returns
    -------
    callable
        From a weight and a name to a `TappedLinear`.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm import numpy_pack
    >>> from npumatmul.llm.models.taps import tapped
    >>> linear = tapped(numpy_pack, lambda name, x, y: print(name, x, y))(np.ones((1, 2), np.float32), "head")
    >>> _ = linear(np.array([[1, 2]], np.float32))
    head [[1. 2.]] [[3.]]
    """
    return lambda weight, name: TappedLinear(pack(weight, name), name, observer)
