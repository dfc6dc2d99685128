"""What a fitted estimator computes from rows, with its products on the NPU: one class for each family.

A `Computation` is given rows that were checked already. Its methods are named as scikit-learn's; a wrapper has those
methods that its computation has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.sklearn.affine import Affine
from npumatmul.sklearn.ranges import Ranges

__all__ = ["Computation", "Way", "probabilities_of_scores", "sigmoid", "softmax"]


@dataclass(frozen=True)
class Way:
    """How products are made.

    Attributes
    ----------
    scheme : str
    device : Device or str or None
    ranges : tuple of Ranges
        As `Computation.ranges_of` found them in an example; empty without one.
    """

    scheme: str
    device: Any = None
    ranges: tuple[Ranges, ...] = ()

    def first(self, name: str, weight: NDArray[Any], bias: NDArray[Any] | None = None, **more: Any) -> Affine:
        """A product with the features themselves."""
        return self.later(name, weight, bias, number=0, guards=True, **more)

    def later(
        self, name: str, weight: NDArray[Any], bias: NDArray[Any] | None = None, *, number: int | None = None,
        **more: Any,
    ) -> Affine:  # fmt: skip
        """A product with what was computed before, whose ranges are those of a number, if it has any."""
        known = bool(self.ranges) and self.scheme == "w8a8" and number is not None
        ranges = self.ranges[number] if known and number is not None else None
        return Affine(name, weight, bias, scheme=self.scheme, device=self.device, ranges=ranges, **more)


class Computation:
    """Base of all.

    Attributes
    ----------
    methods : tuple of str
        What it computes: names of scikit-learn's methods.
    products : list of Affine
        What the NPU multiplies.
    """

    methods: ClassVar[tuple[str, ...]] = ()

    def __init__(self, estimator: Any, way: Way) -> None:
        self.estimator = estimator
        self.products: list[Affine] = []

    @classmethod
    def ranges_of(cls, estimator: Any, rows: NDArray[Any]) -> tuple[Ranges, ...]:
        """The ranges of what products are given where the estimator is given some rows: the features, then others."""
        return (Ranges.of(rows),)

    @property
    def classes(self) -> NDArray[Any]:
        """Labels of the classes."""
        found: NDArray[Any] = self.estimator.classes_
        return found

    def labels_of_scores(self, scores: NDArray[Any]) -> NDArray[Any]:
        """The classes that decision functions choose."""
        chosen = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.labels(chosen)

    def labels(self, chosen: NDArray[Any]) -> NDArray[Any]:
        """Labels of the classes of some numbers."""
        found: NDArray[Any] = self.classes[chosen if len(self.classes) > 1 else np.zeros_like(chosen)]
        return found


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    """The logistic function, without overflow."""
    small = np.exp(-np.abs(x))
    made: NDArray[Any] = np.where(x >= 0, 1 / (1 + small), small / (1 + small))
    return made


def softmax(x: NDArray[Any]) -> NDArray[Any]:
    """The softmax of each row."""
    made: NDArray[Any] = np.exp(x - x.max(axis=1, keepdims=True))
    made /= made.sum(axis=1, keepdims=True)
    return made


def probabilities_of_scores(scores: NDArray[Any], one_against_rest: bool) -> NDArray[Any]:
    """Probabilities of logistic models."""
    if scores.ndim == 1:
        positive = sigmoid(scores)
        return np.stack([1 - positive, positive], axis=1)
    if not one_against_rest:
        return softmax(scores)
    made = sigmoid(scores)
    made /= made.sum(axis=1, keepdims=True)
    return made


FUNCTIONS: Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "identity": lambda x: x,
    "tanh": np.tanh,
    "logistic": sigmoid,
    "relu": lambda x: np.maximum(x, 0),
    "softmax": softmax,
    "exp": np.exp,
}
