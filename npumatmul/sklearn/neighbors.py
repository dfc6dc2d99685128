"""Nearest neighbours and clusters, exactly those of float64, and maps of kernels."""

from __future__ import annotations

import operator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.sklearn.computation import Computation, Way
from npumatmul.sklearn.distances import Nearest, SquaredDistances
from npumatmul.sklearn.kernels import PAIRWISE, pairwise_kernel
from npumatmul.sklearn.ranges import Float64
from npumatmul.sklearn.schemes import HIGH

__all__ = ["Clusters", "KernelMap", "NeighborsClassifier", "NeighborsRegressor", "RandomFeatures", "Searching"]


#: What a kernel of twice float16 is off about, and what maps of it, rows of length 1, may be off.
_KERNEL_ERROR, _MOST_ERROR = 2.0**-20, 0.01


class Searching(Computation):
    """The nearest of the rows that an estimator was fitted to."""

    methods: ClassVar[tuple[str, ...]] = ("kneighbors",)

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        e = estimator
        points = e._fit_X
        if hasattr(points, "toarray"):
            raise TypeError(f"{type(e).__name__} was fitted to a sparse matrix; fit it to an array")
        metric, p = e.effective_metric_, (e.effective_metric_params_ or {}).get("p", 2)
        if metric == "minkowski" and p == 2:
            metric = "euclidean"
        if (
            metric not in ("euclidean", "l2", "sqeuclidean", "cosine")
            or (e.effective_metric_params_ or {}).get("w") is not None
        ):
            raise TypeError(
                f"{type(e).__name__} has the metric {metric!r}; distances of products are 'euclidean', 'sqeuclidean' "
                "and 'cosine'"
            )
        self._metric = metric
        self._points = np.asarray(points, np.float64)
        self._nearest = Nearest("_fit_X", self._placed(self._points, 0), device=way.device)
        self.products = [self._nearest.distances.product]

    def _placed(self, rows: NDArray[Any], side: int) -> Float64:
        """Rows whose Euclidean distances order as the metric does."""
        rows = np.asarray(rows, np.float64)
        if self._metric != "cosine":
            return rows
        lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        made = np.zeros((len(rows), rows.shape[1] + 2))
        made[:, :-2] = rows / np.where(lengths > 0, lengths, 1.0)
        made[lengths[:, 0] == 0, side - 2] = 1.0  # has no direction: as far from all as what is orthogonal to them
        return made

    def kneighbors(
        self, rows: NDArray[Any] | None = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> Any:
        itself = rows is None
        count = self._count(n_neighbors, itself, 0 if rows is None else len(rows))
        squares, found = self._nearest.find(self._placed(self._points if rows is None else rows, not itself), count)
        if itself:
            squares, found = _without_itself(squares, found)
        if not return_distance:
            return found
        if self._metric == "cosine":
            return squares / 2, found
        return (squares if self._metric == "sqeuclidean" else np.sqrt(squares)), found

    def _count(self, n_neighbors: int | None, itself: bool, rows: int) -> int:
        if n_neighbors is None:
            n_neighbors = self.estimator.n_neighbors
        elif not isinstance(n_neighbors, int | np.integer) or isinstance(n_neighbors, bool):
            raise TypeError(f"n_neighbors does not take {type(n_neighbors)} value, enter integer value")
        elif n_neighbors <= 0:
            raise ValueError(f"Expected n_neighbors > 0. Got {n_neighbors}")
        count = operator.index(n_neighbors) + itself
        if count > len(self._points):
            relation = "<" if itself else "<="
            raise ValueError(
                f"Expected n_neighbors {relation} n_samples_fit, but n_neighbors = {n_neighbors}, "
                f"n_samples_fit = {len(self._points)}, n_samples = {len(self._points) if itself else rows}"
            )
        return count

    def weighted(self, rows: NDArray[Any] | None) -> tuple[NDArray[np.intp], Float64 | None]:
        """Neighbours, and how much each of them says; None where all say the same."""
        weights = self.estimator.weights
        if weights in (None, "uniform"):
            return self.kneighbors(rows, return_distance=False), None
        distances, found = self.kneighbors(rows)
        if callable(weights):
            return found, np.asarray(weights(distances), np.float64)
        with np.errstate(divide="ignore"):
            made = 1.0 / distances
        infinite = np.isinf(made)
        some = infinite.any(axis=1)
        made[some] = infinite[some]
        return found, made


def _without_itself(squares: Float64, found: NDArray[np.intp]) -> tuple[Float64, NDArray[np.intp]]:
    """Take each row out of its own neighbours; where so many are equal to it that it is none of them, the first."""
    others = found != np.arange(len(found))[:, None]
    others[others.all(axis=1), 0] = False
    shape = len(found), found.shape[1] - 1
    return squares[others].reshape(shape), found[others].reshape(shape)


class NeighborsClassifier(Searching):
    """Classes by the votes of neighbours."""

    methods: ClassVar[tuple[str, ...]] = ("kneighbors", "predict", "predict_proba")

    def _probabilities(self, rows: NDArray[Any] | None) -> list[Float64]:
        found, weights = self.weighted(rows)
        if weights is None:
            weights = np.ones(found.shape)
        elif not weights.any(axis=1).all():
            raise ValueError("All neighbors of some sample is getting zero weights. Please modify 'weights'.")
        labels = self.estimator._y.reshape(len(self._points), -1)
        made, every = [], np.arange(len(found))
        for column, classes in enumerate(self._classes()):
            votes = np.zeros((len(found), len(classes)))
            for each, weight in zip(labels[:, column][found].T, weights.T, strict=True):
                votes[every, each] += weight
            made.append(votes / votes.sum(axis=1, keepdims=True))
        return made

    def _classes(self) -> list[NDArray[Any]]:
        e = self.estimator
        return list(e.classes_) if e.outputs_2d_ else [e.classes_]

    def predict_proba(self, rows: NDArray[Any] | None) -> Any:
        made = self._probabilities(rows)
        return made if self.estimator.outputs_2d_ else made[0]

    def predict(self, rows: NDArray[Any] | None) -> NDArray[Any]:
        pairs = zip(self._classes(), self._probabilities(rows), strict=True)
        made = [classes[votes.argmax(axis=1)] for classes, votes in pairs]
        return np.stack(made, axis=1) if self.estimator.outputs_2d_ else made[0]


class NeighborsRegressor(Searching):
    """Means of what neighbours have."""

    methods: ClassVar[tuple[str, ...]] = ("kneighbors", "predict")

    def predict(self, rows: NDArray[Any] | None) -> NDArray[Any]:
        found, weights = self.weighted(rows)
        values = self.estimator._y
        near = values.reshape(len(values), -1)[found]
        if weights is None:
            made: NDArray[Any] = near.mean(axis=1)
        else:
            made = (near * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1)[:, None]
        return made.ravel() if values.ndim == 1 else made


class Clusters(Computation):
    """K-means: the nearest centre exactly, and distances to all."""

    methods: ClassVar[tuple[str, ...]] = ("predict", "transform")

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        centers = np.asarray(estimator.cluster_centers_)
        self._nearest = Nearest("cluster_centers_", centers, device=way.device)
        self._squares = SquaredDistances("cluster_centers_, distances", centers, device=way.device)
        self.products = [self._nearest.distances.product, self._squares.product]

    def predict(self, rows: NDArray[Any]) -> NDArray[Any]:
        return self._nearest.find(rows, 1)[1][:, 0].astype(np.int32)

    def transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        return np.sqrt(self._squares.of(self._squares.centred(rows)))


class RandomFeatures(Computation):
    """`RBFSampler`: cosines of a product."""

    methods: ClassVar[tuple[str, ...]] = ("transform",)

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        # angles of many turns need more than 11 bits
        self._product = Way(HIGH, way.device).first(
            "random_weights_", estimator.random_weights_, estimator.random_offset_
        )
        self.products = [self._product]

    def transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        made: NDArray[Any] = np.cos(self._product(rows).astype(np.float64))
        made *= np.sqrt(2.0 / self.estimator.n_components)
        return made


class KernelMap(Computation):
    """`Nystroem`: a kernel, and a product with it."""

    methods: ClassVar[tuple[str, ...]] = ("transform",)

    def __init__(self, estimator: Any, way: Way) -> None:
        super().__init__(estimator, way)
        e = estimator
        if not isinstance(e.kernel, str) or e.kernel not in PAIRWISE:
            raise TypeError(f"Nystroem has the kernel {e.kernel!r}; those of products are {', '.join(PAIRWISE)}")
        given = {"gamma": e.gamma, "coef0": e.coef0, "degree": e.degree, **(e.kernel_params or {})}
        options = {name: value for name, value in given.items() if value is not None}
        points = e.components_.toarray() if hasattr(e.components_, "toarray") else e.components_
        self._kernel = pairwise_kernel(e.kernel, points, way.device, **options)
        growth = float(np.linalg.norm(e.normalization_, 2))
        if growth * _KERNEL_ERROR > _MOST_ERROR:
            raise ValueError(
                f"Nystroem: components are so much alike that normalization_ makes errors of the kernel {growth:.3g} "
                f"times larger, too much for products of float16; fit fewer components, or a larger gamma"
            )
        # its values are large and cancel
        self._last = Way(HIGH, way.device).later("normalization_", np.asarray(e.normalization_).T)
        self.products = [*self._kernel.products, self._last]

    def transform(self, rows: NDArray[Any]) -> NDArray[Any]:
        return self._last(self._kernel(rows))
