"""Support vector machines and Gaussian processes: a kernel, and a product with it."""

from __future__ import annotations

from itertools import combinations
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.sklearn.computation import Computation, Way, sigmoid
from npumatmul.sklearn.kernels import PAIRWISE, pairwise_kernel, process_kernel
from npumatmul.sklearn.ranges import Float64
from npumatmul.sklearn.schemes import HIGH

__all__ = ["ProcessRegressor", "VectorClassifier", "VectorRegressor"]

_LEAST = 1e-7
"""Probabilities of pairs are not nearer to 0 and 1, as in libsvm."""


class _Vectors(Computation):
    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        e = estimator
        if not isinstance(e.kernel, str) or e.kernel not in PAIRWISE:
            raise TypeError(
                f"{type(e).__name__} has the kernel {e.kernel!r}; those of products are rbf, linear, poly, sigmoid"
            )
        self._kernel = pairwise_kernel(
            e.kernel, _dense(e.support_vectors_), way.device, gamma=e._gamma, coef0=e.coef0, degree=e.degree
        )
        self.products = list(self._kernel.products)


class VectorRegressor(_Vectors):
    """Support vector regression."""

    methods: ClassVar = ("predict",)

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        # coefficients cancel: what they are multiplied with is near 1
        self._last = Way(HIGH, way.device).later("dual_coef_", _dense(estimator.dual_coef_).T, estimator.intercept_)
        self.products.append(self._last)

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        return self._last(self._kernel(rows))[:, 0]


class VectorClassifier(_Vectors):
    """Support vector classification: one decision for each pair of classes, all of them in one product."""

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        coef = _dense(estimator.dual_coef_)
        count = len(self.classes)
        self._pairs = list(combinations(range(count), 2))
        ends = np.concatenate([[0], np.cumsum(estimator.n_support_)])
        weight = np.zeros((coef.shape[1], len(self._pairs)))
        for column, (i, j) in enumerate(self._pairs):
            of_i, of_j = slice(ends[i], ends[i + 1]), slice(ends[j], ends[j + 1])
            weight[of_i, column] = coef[j - 1, of_i]
            weight[of_j, column] = coef[i, of_j]
        self._last = way.later("dual_coef_", weight, estimator.intercept_)
        self.products.append(self._last)

    @property
    def methods(self) -> tuple[str, ...]:  # type: ignore[override]
        """Probabilities, where they were fitted."""
        more = ("predict_proba",) if self.estimator.probability else ()
        return ("predict", "decision_function", *more)

    def pairs(self, rows: NDArray[Any]) -> Float64:
        """Decisions for each pair of classes, ``(M, pairs)``; positive for the first one, but where there are two."""
        made: Float64 = self._last(self._kernel(rows)).astype(np.float64)
        return made

    def decision_function(self, rows: NDArray[Any]) -> NDArray[Any]:
        made = self.pairs(rows)
        if len(self.classes) == 2:
            return made[:, 0]
        if self.estimator.decision_function_shape == "ovo":
            return made
        votes, sums = self._votes(made), np.zeros((len(made), len(self.classes)))
        for column, (i, j) in enumerate(self._pairs):
            sums[:, i] += made[:, column]
            sums[:, j] -= made[:, column]
        result: NDArray[Any] = votes + sums / (3 * (np.abs(sums) + 1))  # moves no vote past another
        return result

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        e = self.estimator
        if e.break_ties and e.decision_function_shape == "ovo":
            raise ValueError("break_ties must be False when decision_function_shape is 'ovo'")
        made = self.pairs(rows)
        if len(self.classes) == 2:
            return self.labels((made[:, 0] > 0).astype(np.intp))
        if e.break_ties:
            return self.labels(self.decision_function(rows).argmax(axis=1))
        return self.labels(self._votes(made).argmax(axis=1))

    def _votes(self, pairs: Float64) -> Float64:
        votes = np.zeros((len(pairs), len(self.classes)))
        for column, (i, j) in enumerate(self._pairs):
            votes[:, i] += pairs[:, column] > 0
            votes[:, j] += pairs[:, column] <= 0
        return votes

    def predict_proba(self, rows: NDArray[Any]) -> NDArray[Any]:
        e, count = self.estimator, len(self.classes)
        decisions = self.pairs(rows)
        if count == 2:
            decisions = -decisions  # libsvm's own sign
        pair = np.clip(sigmoid(-(decisions * e._probA + e._probB)), _LEAST, 1 - _LEAST)
        each = np.zeros((len(rows), count, count))
        for column, (i, j) in enumerate(self._pairs):
            each[:, i, j], each[:, j, i] = pair[:, column], 1 - pair[:, column]
        return _coupled(each)


class ProcessRegressor(Computation):
    """The mean that a Gaussian process predicts; standard deviations are solved for on the CPU."""

    methods: ClassVar = ("predict",)

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        if not hasattr(estimator, "X_train_"):
            raise TypeError("GaussianProcessRegressor was not fitted: its prior has no products")
        self._kernel = process_kernel(estimator.kernel_, np.asarray(estimator.X_train_, np.float64), way.device)
        alpha = np.asarray(estimator.alpha_, np.float64)
        self._flat = alpha.ndim == 1 or alpha.shape[1] == 1
        # values of alpha_ are large and cancel
        self._last = Way(HIGH, way.device).later("alpha_", alpha.reshape(len(alpha), -1))
        self.products = [*self._kernel.products, self._last]

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        e = self.estimator
        made = self._last(self._kernel(rows)).astype(np.float64)
        made *= e._y_train_std
        made += e._y_train_mean
        return made[:, 0] if self._flat else made


def _coupled(pairs: Float64) -> Float64:
    """Probabilities of classes from those of pairs, by the method of Wu, Lin and Weng (2004) that libsvm has."""
    rows, count, _ = pairs.shape
    q = -np.transpose(pairs, (0, 2, 1)) * pairs
    diagonal = (np.transpose(pairs, (0, 2, 1)) ** 2).sum(axis=2)
    q[:, np.arange(count), np.arange(count)] = diagonal
    p = np.full((rows, count), 1.0 / count)
    active = np.arange(rows)
    for _ in range(max(100, count)):
        a, x = q[active], p[active]
        given = np.einsum("rij,rj->ri", a, x)
        total = (x * given).sum(axis=1)
        left = np.abs(given - total[:, None]).max(axis=1) >= 0.005 / count
        active, a, x, given, total = active[left], a[left], x[left], given[left], total[left]
        if not active.size:
            break
        for t in range(count):
            step = (-given[:, t] + total) / a[:, t, t]
            x[:, t] += step
            total = (total + step * (step * a[:, t, t] + 2 * given[:, t])) / (1 + step) ** 2
            given = (given + step[:, None] * a[:, t, :]) / (1 + step)[:, None]
            x /= (1 + step)[:, None]
        p[active] = x
    return p


def _dense(values: Any) -> NDArray[Any]:
    made: NDArray[Any] = np.asarray(values.toarray() if hasattr(values, "toarray") else values, np.float64)
    return made
