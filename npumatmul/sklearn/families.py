"""Which of scikit-learn's estimators belong to which family of computations."""

from __future__ import annotations

import importlib
from typing import Any

from npumatmul.sklearn.computation import Computation, Way
from npumatmul.sklearn.linear import Discriminant, LinearClassifier, LinearRegressor, LogisticClassifier, Projection
from npumatmul.sklearn.machines import ProcessRegressor, VectorClassifier, VectorRegressor
from npumatmul.sklearn.neighbors import (
    Clusters,
    KernelMap,
    NeighborsClassifier,
    NeighborsRegressor,
    RandomFeatures,
    Searching,
)
from npumatmul.sklearn.perceptron import PerceptronClassifier, PerceptronRegressor

__all__ = ["FAMILIES", "computation_of", "family_of"]

#: Names of estimators by their module, and what computes them.
_NAMES: dict[str, dict[str, type[Computation]]] = {
    "linear_model": {
        **dict.fromkeys(("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet"), LinearRegressor),
        **dict.fromkeys(("RidgeClassifier", "RidgeClassifierCV", "Perceptron"), LinearClassifier),
        **dict.fromkeys(("LogisticRegression", "LogisticRegressionCV"), LogisticClassifier),
    },
    "svm": {
        "LinearSVC": LinearClassifier,
        "LinearSVR": LinearRegressor,
        "SVC": VectorClassifier,
        "NuSVC": VectorClassifier,
        "SVR": VectorRegressor,
        "NuSVR": VectorRegressor,
    },
    "neural_network": {"MLPClassifier": PerceptronClassifier, "MLPRegressor": PerceptronRegressor},
    "decomposition": {"PCA": Projection, "TruncatedSVD": Projection},
    "discriminant_analysis": {"LinearDiscriminantAnalysis": Discriminant},
    "cluster": {"KMeans": Clusters, "MiniBatchKMeans": Clusters},
    "neighbors": {
        "NearestNeighbors": Searching,
        "KNeighborsClassifier": NeighborsClassifier,
        "KNeighborsRegressor": NeighborsRegressor,
    },
    "kernel_approximation": {"RBFSampler": RandomFeatures, "Nystroem": KernelMap},
    "gaussian_process": {"GaussianProcessRegressor": ProcessRegressor},
}

#: By class.
FAMILIES: dict[type, type[Computation]] = {
    getattr(importlib.import_module(f"sklearn.{module}"), name): family
    for module, names in _NAMES.items()
    for name, family in names.items()
}


def family_of(estimator: Any, refuses: bool = False) -> type[Computation] | None:
    """What computes an estimator. Subclasses may do something else, so they are none.

    Raises
    ------
    TypeError
        With `refuses`, if nothing does.
    """
    found = FAMILIES.get(type(estimator))
    if found is None and refuses:
        known = sorted(each.__name__ for each in FAMILIES)
        raise TypeError(
            f"{type(estimator).__name__} has no products that can be offloaded; those that have: {', '.join(known)}, "
            "and a Pipeline of them"
        )
    return found


def computation_of(fitted: Any, way: Way) -> Computation:
    """Put the weights of a fitted estimator onto a device.

    Raises
    ------
    TypeError
        If that is not possible.
    """
    family = family_of(fitted, refuses=True)
    assert family is not None
    return family(fitted, way)
