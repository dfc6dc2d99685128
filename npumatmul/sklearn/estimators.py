"""Estimators whose products run on the NPU, with scikit-learn's interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from scipy.sparse import issparse
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, TransformerMixin, clone
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from npumatmul.sklearn.computation import Computation, Way
from npumatmul.sklearn.families import computation_of, family_of
from npumatmul.sklearn.ranges import Ranges
from npumatmul.sklearn.schemes import check_estimator_scheme

__all__ = ["NpuClassifier", "NpuDiscriminant", "NpuEstimator", "NpuNeighbors", "NpuRegressor", "NpuTransformer"]

_Self = TypeVar("_Self", bound="NpuEstimator")
_F = TypeVar("_F", bound=Callable[..., Any])


def _where_computed(method: str) -> Callable[[_F], _F]:
    """A decorator of what an estimator has only if its products make it up, and the original has it, too."""

    def check(self: Any) -> bool:
        inner = vars(self).get("estimator_", self.estimator)
        family = family_of(inner)
        if family is None or not hasattr(inner, method):
            return False
        return isinstance(family.methods, property) or method in family.methods

    decorate: Callable[[_F], _F] = available_if(check)
    return decorate


class NpuEstimator(BaseEstimator):  # type: ignore[misc]
    """Base of estimators whose products run on the NPU; `npumatmul.sklearn.offload` makes the right one.

    Parameters
    ----------
    estimator : estimator
        One of scikit-learn's. `offload` gives a fitted one; after `clone`, `fit` fits a copy of it on the CPU, as ever,
        and puts its weights onto the NPU.
    scheme : {"w16a16", "w16a16_high", "w8a8"}
        As what weights and rows are multiplied.
    device : Device or str, optional
        The current device by default.
    example_input : array_like, shape (n, features), optional
        Rows whose ranges are folded into the weights, with scheme ``"w8a8"``; `fit` takes those that it is given.

    Attributes
    ----------
    estimator_ : estimator
        The fitted one. What it is fitted to (`classes_`, `n_features_in_`, ...) is found by its name here, too.

    Notes
    -----
    Rows are checked by scikit-learn with its own messages, but for sparse matrices, which are refused. Results are of
    the dtype of X where that is float32, else float64; what they are off is said in docs/sklearn.md.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from npumatmul.sklearn import NpuClassifier
    >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array(["low", "low", "high", "high"])
    >>> model = NpuClassifier(LogisticRegression()).fit(x, y)
    >>> model.predict([[0.5], [2.5]]), model.classes_
    (array(['low', 'high'], dtype='<U4'), array(['high', 'low'], dtype='<U4'))
    """

    def __init__(
        self, estimator: Any, *, scheme: str = "w16a16", device: Any = None, example_input: Any = None
    ) -> None:
        self.estimator = estimator
        self.scheme = scheme
        self.device = device
        self.example_input = example_input

    @classmethod
    def of_fitted(
        cls: type[_Self],
        estimator: Any,
        *,
        scheme: str,
        device: Any,
        example_input: Any,
        ranges: tuple[Ranges, ...] = (),
    ) -> _Self:
        """Wrap an estimator that is fitted."""
        made = cls(estimator, scheme=scheme, device=device, example_input=example_input)
        if hasattr(estimator, "_sklearn_output_config"):  # what set_output chose
            made._sklearn_output_config = dict(estimator._sklearn_output_config)
        made._use(estimator, ranges if example_input is None else made._ranges(estimator, example_input))
        return made

    def fit(self: _Self, X: Any, y: Any = None, **fit_params: Any) -> _Self:
        """Fit a copy of `estimator` on the CPU, and put its weights onto the NPU.

        Parameters
        ----------
        X, y, **fit_params
            As of the estimator.

        Returns
        -------
        NpuEstimator
            Itself.

        Raises
        ------
        TypeError
            If it has no products that can be offloaded.
        ValueError
            As the estimator; or if there is no such scheme.
        """
        check_estimator_scheme(self.scheme)
        family_of(self.estimator, refuses=True)
        if issparse(X):
            raise TypeError("Sparse data was passed for X, but dense data is required. Use '.toarray()' to convert it.")
        fitted = clone(self.estimator)
        fitted.fit(X, y, **fit_params)
        example = X if self.example_input is None else self.example_input
        self._use(fitted, self._ranges(fitted, example))
        return self

    def _use(self, fitted: Any, ranges: tuple[Ranges, ...]) -> None:
        computation = computation_of(fitted, Way(check_estimator_scheme(self.scheme), self.device, ranges))
        self.estimator_, self._computation, self._folded = fitted, computation, ranges

    def _ranges(self, fitted: Any, example: Any) -> tuple[Ranges, ...]:
        if self.scheme != "w8a8":
            return ()
        family = family_of(fitted, refuses=True)
        assert family is not None
        return family.ranges_of(fitted, validate_data(fitted, example, reset=False, dtype=[np.float64, np.float32]))

    def __getattr__(self, name: str) -> Any:
        if not name.endswith("_") or name.startswith("_") or name == "estimator_":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        fitted = vars(self).get("estimator_")
        if fitted is None:
            raise AttributeError(f"this {type(self).__name__} is not fitted yet, and has no {name!r}")
        return getattr(fitted, name)

    def __sklearn_is_fitted__(self) -> bool:
        return "estimator_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        tags = get_tags(self.estimator)
        tags.input_tags.sparse = False
        return tags

    def __getstate__(self) -> Any:
        state = dict(super().__getstate__())
        state.pop("_computation", None)  # it belongs to a device of this process
        return state

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        if "estimator_" in vars(self):
            self._use(self.estimator_, self._folded)

    @property
    def computation(self) -> Computation:
        """What is computed how."""
        check_is_fitted(self)
        found: Computation = self._computation
        return found

    def _run(self, method: str, X: Any, **options: Any) -> Any:
        check_is_fitted(self)  # here, since what a property raises would be taken for its absence
        computation = self.computation
        rows = X
        if method == "inverse_transform":
            rows = self._components(X)
        elif X is not None:
            if issparse(X):
                raise TypeError(
                    "Sparse data was passed for X, but dense data is required. Use '.toarray()' to convert it; in a "
                    "Pipeline have the step before make dense rows (OneHotEncoder(sparse_output=False), "
                    "ColumnTransformer(sparse_threshold=0))."
                )
            rows = validate_data(self.estimator_, X, reset=False, dtype=[np.float64, np.float32], order="C")
        made = getattr(computation, method)(rows, **options)
        return _as(made, np.float64 if rows is None else rows.dtype)

    def _components(self, X: Any) -> Any:
        from sklearn.utils import check_array

        rows = check_array(X, dtype=[np.float64, np.float32])
        wanted = self.estimator_.components_.shape[0]
        if rows.shape[1] != wanted:
            raise ValueError(
                f"X has {rows.shape[1]} features; inverse_transform takes the {wanted} that transform gives"
            )
        return rows

    @_where_computed("predict")
    def predict(self, X: Any, **options: Any) -> Any:
        """As `predict` of the estimator.

        Parameters
        ----------
        X : array_like, shape (n, features)
        **options
            Of a Gaussian process, `return_std` and `return_cov`: these are computed on the CPU, in float64.

        Returns
        -------
        ndarray, shape (n,) or (n, outputs)

        Raises
        ------
        sklearn.exceptions.NotFittedError, ValueError
            As the estimator.
        """
        if any(options.values()):
            return self._uncertain(X, options)
        return self._run("predict", X)

    def _uncertain(self, X: Any, options: dict[str, Any]) -> Any:
        if set(options) - {"return_std", "return_cov"} or not hasattr(self.estimator_, "kernel_"):
            raise TypeError(f"{type(self.estimator).__name__}.predict has no {', '.join(sorted(options))} here")
        mean = self._run("predict", X)
        return mean, self.estimator_.predict(X, **options)[1]

    @_where_computed("predict_proba")
    def predict_proba(self, X: Any) -> Any:
        """As `predict_proba` of the estimator: ``(n, classes)``."""
        return self._run("predict_proba", X)

    @_where_computed("predict_proba")
    def predict_log_proba(self, X: Any) -> Any:
        """As `predict_log_proba` of the estimator: ``(n, classes)``."""
        made = self.predict_proba(X)
        with np.errstate(divide="ignore"):
            return [np.log(each) for each in made] if isinstance(made, list) else np.log(made)

    @_where_computed("decision_function")
    def decision_function(self, X: Any) -> Any:
        """As `decision_function` of the estimator: ``(n,)`` or ``(n, classes)``."""
        return self._run("decision_function", X)

    @_where_computed("inverse_transform")
    def inverse_transform(self, X: Any) -> Any:
        """As `inverse_transform` of the estimator: ``(n, features)``."""
        return self._run("inverse_transform", X)

    @_where_computed("kneighbors")
    def kneighbors(self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True) -> Any:
        """As `kneighbors` of the estimator: distances and indices, ``(n, n_neighbors)`` each; of equals the first."""
        return self._run("kneighbors", X, n_neighbors=n_neighbors, return_distance=return_distance)


class NpuClassifier(ClassifierMixin, NpuEstimator):  # type: ignore[misc]
    """A classifier; see `NpuEstimator`."""


class NpuRegressor(RegressorMixin, NpuEstimator):  # type: ignore[misc]
    """A regressor; see `NpuEstimator`."""


class NpuTransformer(TransformerMixin, NpuEstimator):  # type: ignore[misc]
    """A transformer, or k-means; see `NpuEstimator`."""

    # scikit-learn wraps what is defined here, so that `set_output` decides what is returned
    @_where_computed("transform")
    def transform(self, X: Any) -> Any:
        """As `transform` of the estimator: ``(n, components)``, an array or what `set_output` says."""
        return self._run("transform", X)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """As `get_feature_names_out` of the estimator."""
        check_is_fitted(self)
        return self.estimator_.get_feature_names_out(input_features)


class NpuDiscriminant(ClassifierMixin, NpuTransformer):  # type: ignore[misc]
    """Linear discriminant analysis, a classifier and a transformer; see `NpuEstimator`."""


class NpuNeighbors(NpuEstimator):
    """A search for neighbours; see `NpuEstimator`."""


def _as(made: Any, dtype: Any) -> Any:
    """Floats in the dtype of what was given."""
    if isinstance(made, tuple | list):
        return type(made)(_as(each, dtype) for each in made)
    return made.astype(dtype, copy=False) if made.dtype.kind == "f" else made
