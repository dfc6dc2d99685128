"""What profiles call products: numbers that the executor tells with each event, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from weakref import WeakValueDictionary

from npumatmul.rknn.runtime import Runtime

__all__ = ["Multiplied", "keep", "kept", "number"]


@dataclass(eq=False)
class Multiplied:
    """A product that was prepared.

    Attributes
    ----------
    layer : str
        The path of its layer in a model; empty for others.
    scheme : str
        Of its weight.
    m, k, n : int
    on_cpu : bool
        Whether the CPU computes it instead of the NPU.
    simulator : Runtime, optional
        Which simulates its runs, so that they take the CPU's time.
    """

    layer: str
    scheme: str
    m: int
    k: int
    n: int
    on_cpu: bool
    simulator: Runtime | None


_numbers = count(1)
_known: WeakValueDictionary[int, Multiplied] = WeakValueDictionary()
#: While a profile is on: what was prepared since then, whether it is still there or not.
_kept: dict[int, Multiplied] | None = None


def number(product: Multiplied) -> int:
    """The number of a product from now on, as long as it lives."""
    new = next(_numbers)
    _known[new] = product
    if (every := _kept) is not None:
        every[new] = product
    return new


def keep() -> None:
    """Remember all products that there are and that are prepared from now on, until `kept`."""
    global _kept
    _kept = {}
    for ref in _known.valuerefs():
        product = ref()
        if product is not None:
            _kept[ref.key] = product


def kept() -> dict[int, Multiplied]:
    """By their numbers, what was remembered."""
    global _kept
    every, _kept = _kept or {}, None
    return every
