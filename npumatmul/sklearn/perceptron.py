"""Multi-layer perceptrons: a product for each layer."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from npumatmul.sklearn.computation import FUNCTIONS, Computation, Way
from npumatmul.sklearn.ranges import Ranges

__all__ = ["PerceptronClassifier", "PerceptronRegressor"]


class _Perceptron(Computation):
    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        last = len(estimator.coefs_) - 1
        for i, (weight, bias) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
            in_place: Literal["relu"] | None = "relu" if estimator.activation == "relu" and i < last else None
            self.products.append(way.later(f"coefs_[{i}]", weight, bias, number=i, guards=i == 0, activation=in_place))
        self._function = FUNCTIONS["identity" if estimator.activation == "relu" else estimator.activation]
        self._last = FUNCTIONS[estimator.out_activation_]

    @classmethod
    def ranges_of(cls, estimator: Any, rows: NDArray[Any]) -> tuple[Ranges, ...]:
        """Of what each layer is given."""
        found = [Ranges.of(rows)]
        function = FUNCTIONS[estimator.activation]
        for weight, bias in zip(estimator.coefs_[:-1], estimator.intercepts_[:-1], strict=True):
            rows = function(np.asarray(rows, np.float64) @ weight + bias)
            found.append(Ranges.of(rows))
        return tuple(found)

    def outputs(self, rows: NDArray[Any]) -> NDArray[Any]:
        """What the last layer gives, ``(M, outputs)``."""
        for product in self.products[:-1]:
            rows = self._function(product(rows))
        return self._last(self.products[-1](rows).astype(np.float64))


class PerceptronRegressor(_Perceptron):
    """A regressor."""

    methods: ClassVar[tuple[str, ...]] = ("predict",)

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        made = self.outputs(rows)
        return made[:, 0] if made.shape[1] == 1 else made


class PerceptronClassifier(_Perceptron):
    """A classifier: binary, of several classes, or of several labels at once."""

    methods: ClassVar[tuple[str, ...]] = ("predict", "predict_proba")

    def predict_proba(self, rows: NDArray[Any]) -> NDArray[Any]:
        made = self.outputs(rows)
        return np.concatenate([1 - made, made], axis=1) if made.shape[1] == 1 else made

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        made = self.outputs(rows)
        if self.estimator.out_activation_ == "softmax":
            return self.labels(made.argmax(axis=1))
        if made.shape[1] == 1:
            return self.labels((made[:, 0] > 0.5).astype(np.intp))
        return (made > 0.5).astype(int)
