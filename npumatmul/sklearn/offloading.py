"""`offload`: from a fitted estimator to one whose products run on the NPU."""

from __future__ import annotations

import copy
from typing import Any

from sklearn.base import is_classifier, is_regressor
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from npumatmul.sklearn.estimators import (
    NpuClassifier,
    NpuDiscriminant,
    NpuEstimator,
    NpuNeighbors,
    NpuRegressor,
    NpuTransformer,
)
from npumatmul.sklearn.families import family_of
from npumatmul.sklearn.linear import Discriminant
from npumatmul.sklearn.schemes import check_estimator_scheme

__all__ = ["offload", "with_steps", "wrapper_of"]


def offload(estimator: Any, scheme: str = "w16a16", example_input: Any = None, *, device: Any = None) -> Any:
    """Put the products of a fitted estimator onto the NPU.

    Parameters
    ----------
    estimator : estimator or Pipeline
        A fitted one of scikit-learn. Of a pipeline all steps that have products are offloaded and the others stay; of
        a `GridSearchCV` or `RandomizedSearchCV` the best estimator is taken. It is not changed, and not copied.
    scheme : {"w16a16", "w16a16_high", "w8a8"}
        As what rows and weights are multiplied: float16, twice float16 for results close to float32, or int8.
        Distances and kernels are computed as ``"w16a16_high"`` in any of them, since they cancel, and what is nearest
        is computed once more in float64 on the CPU.
    example_input : array_like, shape (n, features), optional
        With ``"w8a8"``: some rows as the estimator will be given, such as 100 of those that it was fitted to. The
        ranges of features are folded into the weights, so that no feature is lost beside larger ones. Rows that are
        unlike the example are multiplied in two terms, which takes longer.
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    NpuEstimator, or Pipeline
        With the methods of the estimator that multiply.

    Raises
    ------
    TypeError
        If it has no products, or one of its settings is none of those that can be offloaded.
    sklearn.exceptions.NotFittedError
        If it is not fitted.
    ValueError
        If there is no such scheme, or `example_input` does not fit. Later, `predict` raises `ValueError` if a row is
        not fit for eight bits, and there was no example.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neural_network import MLPClassifier
    >>> from npumatmul.sklearn import offload
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((60, 4))
    >>> mlp = MLPClassifier((8,), max_iter=500, random_state=0, solver="lbfgs").fit(x, x[:, 0] > 0)
    >>> model = offload(mlp, "w8a8", x)
    >>> bool((model.predict(x) == mlp.predict(x)).mean() > 0.9)
    True
    """
    check_estimator_scheme(scheme)
    if isinstance(estimator, GridSearchCV | RandomizedSearchCV):
        check_is_fitted(estimator)
        if not hasattr(estimator, "best_estimator_"):
            raise TypeError(f"{type(estimator).__name__} with refit=False has no fitted estimator to offload")
        estimator = estimator.best_estimator_
    if isinstance(estimator, NpuEstimator):
        raise TypeError(f"{estimator!r} is offloaded already")
    if isinstance(estimator, Pipeline):
        return _pipeline(estimator, scheme, example_input, device)
    family_of(estimator, refuses=True)
    check_is_fitted(estimator)
    return wrapper_of(estimator).of_fitted(estimator, scheme=scheme, device=device, example_input=example_input)


def wrapper_of(estimator: Any) -> type[NpuEstimator]:
    """The class of the wrapper of an estimator."""
    if family_of(estimator) is Discriminant:
        return NpuDiscriminant
    if is_classifier(estimator):
        return NpuClassifier
    if is_regressor(estimator):
        return NpuRegressor
    return NpuTransformer if hasattr(estimator, "transform") else NpuNeighbors


def _pipeline(pipeline: Pipeline, scheme: str, example: Any, device: Any) -> Pipeline:
    check_is_fitted(pipeline)
    steps: list[tuple[str, Any]] = []
    count = 0
    for name, step in pipeline.steps:
        if isinstance(step, NpuEstimator):
            raise TypeError(f"the step {name!r} of the pipeline, {step!r}, is offloaded already")
    for name, step in pipeline.steps:
        made = step
        if isinstance(step, Pipeline) or (not isinstance(step, str) and step is not None and family_of(step)):
            made = offload(step, scheme, example, device=device)
            count += 1
        steps.append((name, made))
        last = len(steps) == len(pipeline.steps)
        if example is not None and not last and hasattr(step, "transform"):
            example = step.transform(example)
    if not count:
        names = ", ".join(type(step).__name__ for _, step in pipeline.steps)
        raise TypeError(f"no step of the pipeline has products that can be offloaded; it has {names}")
    return with_steps(pipeline, steps)


def with_steps(pipeline: Pipeline, steps: list[tuple[str, Any]]) -> Pipeline:
    """The same pipeline with other steps."""
    made = copy.copy(pipeline)
    made.steps = steps
    return made
