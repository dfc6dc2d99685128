"""Linear models, discriminant analysis and projections: one product each."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.sklearn.computation import Computation, Way, probabilities_of_scores
from npumatmul.sklearn.ranges import Float64, Ranges

__all__ = ["Discriminant", "LinearClassifier", "LinearRegressor", "LogisticClassifier", "Projection"]


class LinearRegressor(Computation):
    """``X @ coef_.T + intercept_``."""

    methods: ClassVar[tuple[str, ...]] = ("predict",)

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        coef = np.atleast_2d(np.asarray(estimator.coef_))
        intercept = np.broadcast_to(np.asarray(estimator.intercept_, np.float64).ravel(), (len(coef),))
        self._flat = np.ndim(estimator.coef_) == 1
        self._product = way.first("coef_", coef.T, intercept)
        self.products = [self._product]

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        made = self._product(rows)
        return made[:, 0] if self._flat else made


class LinearClassifier(Computation):
    """Classes by the signs or the largest of ``X @ coef_.T + intercept_``."""

    methods: ClassVar[tuple[str, ...]] = ("predict", "decision_function")

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        coef = np.atleast_2d(np.asarray(estimator.coef_))
        binarizer = getattr(estimator, "_label_binarizer", None)
        if binarizer is not None and binarizer.y_type_.startswith("multilabel"):
            raise TypeError(f"{type(estimator).__name__} was fitted to several labels at once, which is not supported")
        intercept = np.broadcast_to(np.asarray(estimator.intercept_, np.float64).ravel(), (len(coef),))
        self._product = way.first("coef_", coef.T, intercept)
        self.products = [self._product]

    def decision_function(self, rows: NDArray[Any]) -> NDArray[Any]:
        made = self._product(rows)
        return made[:, 0] if made.shape[1] == 1 else made

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        return self.labels_of_scores(self.decision_function(rows))


class LogisticClassifier(LinearClassifier):
    """A linear classifier that knows probabilities."""

    methods: ClassVar[tuple[str, ...]] = ("predict", "decision_function", "predict_proba")

    def predict_proba(self, rows: NDArray[Any]) -> NDArray[Any]:
        e = self.estimator
        rest = getattr(e, "multi_class", None) == "ovr" or getattr(e, "solver", None) == "liblinear"
        return probabilities_of_scores(self.decision_function(rows).astype(np.float64), rest)


class Projection(Computation):
    """PCA and truncated SVD: ``(X - mean_) @ components_.T``."""

    methods: ClassVar[tuple[str, ...]] = ("transform", "inverse_transform")

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        forward, back = _ways_of(estimator)
        self._mean = getattr(estimator, "mean_", None)
        self._forward = way.first("components_", forward.T, center=self._mean)
        self._back = way.later("components_, back", back, number=1)
        self.products = [self._forward, self._back]

    @classmethod
    def ranges_of(cls, estimator: Any, rows: NDArray[Any]) -> tuple[Ranges, ...]:
        """Of the features, and of components."""
        mean = getattr(estimator, "mean_", None)
        centred = np.asarray(rows, np.float64) - (0.0 if mean is None else mean)
        return Ranges.of(rows), Ranges.of(centred @ _ways_of(estimator)[0].T)

    def transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        return self._forward(rows)

    def inverse_transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        made: NDArray[Any] = self._back(rows)
        return made if self._mean is None else made.astype(np.float64) + self._mean


def _ways_of(estimator: Any) -> tuple[Float64, Float64]:
    """What rows and components are multiplied by, ``(components, features)``."""
    components = np.asarray(estimator.components_, np.float64)
    if not getattr(estimator, "whiten", False):
        return components, components
    scale = np.sqrt(np.maximum(estimator.explained_variance_, np.finfo(np.float64).tiny))[:, None]
    return components / scale, components * scale


class Discriminant(LinearClassifier):
    """Linear discriminant analysis: a classifier, and a projection."""

    methods: ClassVar[tuple[str, ...]] = ("predict", "decision_function", "predict_proba", "transform")

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        self._scalings = None
        if estimator.solver != "lsqr":
            kept = np.asarray(estimator.scalings_)[:, : estimator._max_components]
            self._scalings = way.first("scalings_", kept, center=getattr(estimator, "xbar_", None))
            self.products.append(self._scalings)

    def predict_proba(self, rows: NDArray[Any]) -> NDArray[Any]:
        return probabilities_of_scores(self.decision_function(rows).astype(np.float64), False)

    def transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        if self._scalings is None:
            raise NotImplementedError("transform not implemented for 'lsqr' solver (use 'svd' or 'eigen').")
        return self._scalings(rows)
