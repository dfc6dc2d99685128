"""Multi-layer perceptrons: a product for each layer."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.sklearn.computation import FUNCTIONS, Computation, Way

__all__ = ["PerceptronClassifier", "PerceptronRegressor"]


class _Perceptron(Computation):
    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        last = len(estimator.coefs_) - 1
        for i, (weight, bias) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
            make = way.first if i == 0 else way.later
            in_place = "relu" if estimator.activation == "relu" and i < last else None
            self.products.append(make(f"coefs_[{i}]", weight, bias, activation=in_place))
        self._function = FUNCTIONS["identity" if estimator.activation == "relu" else estimator.activation]
        self._last = FUNCTIONS[estimator.out_activation_]

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
