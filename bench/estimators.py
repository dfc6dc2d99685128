"""What offloading scikit-learn's estimators costs in agreement and score: ``python bench/estimators.py``.

Five-fold cross-validation over ten seeds on the data sets that come with scikit-learn, as they are and scaled; every
row is predicted once in each seed, and rows of all seeds are pooled. "agree" is the share of rows for which the
offloaded estimator predicts what scikit-learn's own does; "beyond" counts rows that differ although scikit-learn's own
margin is larger than what the documented bound of products allows (linear classifiers);
"refused" rows are of folds whose estimator `offload` would not take. Devices are simulated; nothing
here is a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import sklearn
from calls import calls_of
from sklearn import datasets
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

import npumatmul as npu
from npumatmul.sklearn import offload

CLASSIFIERS: dict[str, Callable[[int], Any]] = {
    "MLPClassifier": lambda seed: MLPClassifier(random_state=seed, max_iter=300),
    "LogisticRegression": lambda seed: LogisticRegression(max_iter=300),
    "LinearSVC": lambda seed: LinearSVC(random_state=seed),
    "LDA": lambda seed: LinearDiscriminantAnalysis(),
    "SVC (rbf)": lambda seed: SVC(random_state=seed),
    "KNeighbors": lambda seed: KNeighborsClassifier(),
    "KNeighbors (cosine)": lambda seed: KNeighborsClassifier(metric="cosine", weights="distance"),
    "scaler, Nystroem, LogisticRegression": lambda seed: make_pipeline(
        StandardScaler(), Nystroem(n_components=20, random_state=seed), LogisticRegression(max_iter=300)
    ),
}
REGRESSORS: dict[str, Callable[[int], Any]] = {
    "LinearRegression": lambda seed: LinearRegression(),
    "Ridge": lambda seed: Ridge(),
    "MLPRegressor": lambda seed: MLPRegressor(random_state=seed, max_iter=300),
    "KNeighborsRegressor": lambda seed: KNeighborsRegressor(),
    "GaussianProcess": lambda seed: GaussianProcessRegressor(
        ConstantKernel() * RBF() + WhiteKernel(), normalize_y=True, random_state=seed
    ),
}
DATA = {"iris": "load_iris", "digits": "load_digits", "wine": "load_wine", "breast_cancer": "load_breast_cancer"}


@dataclass
class Pooled:
    """What is known of an estimator in a scheme, over all rows."""

    rows: int = 0
    same: int = 0
    right: int = 0
    right_before: int = 0
    beyond: int = 0
    refused: int = 0
    truth: list[Any] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)
    before: list[Any] = field(default_factory=list)


def margin_bound(estimator: Any, rows: Any) -> Any:
    """What products in w16a16 may be off at most, for each row: by the bound that `npumatmul.matmul` documents."""
    u, v, k = 2.0**-11, 2.0**-24, rows.shape[1]
    a, w = np.abs(rows), np.abs(np.atleast_2d(estimator.coef_).T)
    bound = ((1 + u) ** 2 * (1 + v) ** (k + 3) - 1) * (a @ w)
    bound += 2.0**-21 * k * a.max(axis=1)[:, None] * w.max(axis=0) + 2.0**-22 * np.abs(estimator.intercept_)
    return bound.max(axis=1)


def margins(scores: Any) -> Any:
    """By how much scikit-learn's own choice wins: half the distance of the two best, which both may be off."""
    if scores.ndim == 1:
        return np.abs(scores)
    best = np.partition(scores, -2, axis=1)[:, -2:]
    return np.abs(best[:, 1] - best[:, 0]) / 2


def folds(seeds: int, regression: bool, x: Any, y: Any) -> Iterator[tuple[int, Any, Any]]:
    """Seeds, and rows for fitting and for testing."""
    for seed in range(seeds):
        split = (KFold if regression else StratifiedKFold)(5, shuffle=True, random_state=seed)
        for fit, test in split.split(x, y):
            yield seed, fit, test


def measure(seeds: int, schemes: tuple[str, ...], only: str) -> dict[tuple[str, str, str, bool], Pooled]:
    """Pool predictions by (estimator, data, scheme, scaled)."""
    pooled: dict[tuple[str, str, str, bool], Pooled] = {}
    for data in (*DATA, "diabetes"):
        for scaled in (False, True):
            regression = data == "diabetes"
            load = datasets.load_diabetes if regression else getattr(datasets, DATA[data])
            x, y = load(return_X_y=True, **({"scaled": False} if regression else {}))
            for name, make in (REGRESSORS if regression else CLASSIFIERS).items():
                if only not in name:
                    continue
                for seed, fit, test in folds(seeds, regression, x, y):
                    scaler = StandardScaler().fit(x[fit]) if scaled else None
                    rows = x if scaler is None else scaler.transform(x)
                    estimator = make(seed).fit(rows[fit], y[fit])
                    for scheme in schemes:
                        part = pooled.setdefault((name, data, scheme, scaled), Pooled())
                        try:
                            made = offload(estimator, scheme, rows[fit][:100] if scheme == "w8a8" else None)
                        except ValueError:  # it says that products would be too far off
                            part.refused += len(test)
                        else:
                            add(part, estimator, made, rows[test], y[test])
    return pooled


def add(pooled: Pooled, estimator: Any, made: Any, rows: Any, y: Any) -> None:
    """Predict some rows both ways."""
    before, after = estimator.predict(rows), made.predict(rows)
    pooled.rows += len(y)
    pooled.same += int((before == after).sum())
    pooled.right += int((after == y).sum())
    pooled.right_before += int((before == y).sum())
    if hasattr(estimator, "coef_") and hasattr(estimator, "decision_function") and made.scheme == "w16a16":
        sure = margins(estimator.decision_function(rows)) > margin_bound(estimator, rows)
        pooled.beyond += int((sure & (before != after)).sum())
    pooled.truth.append(y)
    pooled.made.append(after)
    pooled.before.append(before)


def print_costs(rounds: int = 301) -> None:
    """What a prediction of one row costs on this host: medians of calls that take turns, and Python calls."""
    x, y = datasets.load_digits(return_X_y=True)
    x, row = x / 16, x[:1] / 16
    print(
        f"{'one row of digits, microseconds':<32}{'scikit-learn':>14}{'offloaded':>11}{'products':>10}"
        f"{'Python calls':>22}"
    )
    for name in ("LogisticRegression", "MLPClassifier", "SVC (rbf)", "KNeighbors"):
        estimator = CLASSIFIERS[name](0).fit(x, y)
        made = offload(estimator)
        ready = [(each.packed, np.ones((1, each.shape[0]), np.float32)) for each in made.computation.products]
        functions: list[Callable[[], object]] = [
            partial(estimator.predict, row),
            partial(made.predict, row),
            lambda ready=ready: [npu.matmul(a, weight) for weight, a in ready],
        ]
        times: list[list[float]] = [[] for _ in functions]
        for _ in range(rounds):
            for each, found in zip(functions, times, strict=True):
                start = time.perf_counter()
                each()
                found.append(time.perf_counter() - start)
        micros = [1e6 * statistics.median(found) for found in times]
        counts = " / ".join(str(calls_of(each)) for each in functions)
        print(f"{name:<32}{micros[0]:>14.0f}{micros[1]:>11.0f}{micros[2]:>10.0f}{counts:>22}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--schemes", default="w16a16,w8a8")
    parser.add_argument("--only", default="", help="part of an estimator's name")
    parser.add_argument("--costs", action="store_true", help="only what a call costs")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.costs:
        print_costs()
        return
    schemes = tuple(given.schemes.split(","))
    pooled = measure(given.seeds, schemes, given.only)
    print(f"scikit-learn {sklearn.__version__}, numpy {np.__version__}; {given.seeds} seeds x 5 folds, rows pooled\n")
    for scheme in schemes:
        print(f"{scheme:<32}{'rows':>8}{'agree %':>10}{'accuracy %':>12}{'difference':>12}{'beyond':>8}{'refused':>9}")
        for name in CLASSIFIERS:
            for scaled in (False, True):
                parts = [each for (n, _, s, k), each in pooled.items() if (n, s, k) == (name, scheme, scaled)]
                if sum(each.rows for each in parts):
                    rows = sum(each.rows for each in parts)
                    same, right, before, beyond, refused = (
                        sum(getattr(each, part) for each in parts)
                        for part in ("same", "right", "right_before", "beyond", "refused")
                    )
                    print(
                        f"{name + (', scaled' if scaled else ''):<32.32}{rows:>8}{100 * same / rows:>10.2f}"
                        f"{100 * right / rows:>12.2f}{100 * (right - before) / rows:>+12.3f}{beyond:>8}{refused:>9}"
                    )
        print(f"{'':<32}{'rows':>8}{'R2 before':>12}{'difference':>12}")
        for name in REGRESSORS:
            for scaled in (False, True):
                each = pooled.get((name, "diabetes", scheme, scaled))
                if each is not None:
                    truth, made, before = (np.concatenate(part) for part in (each.truth, each.made, each.before))
                    first = r2_score(truth, before)
                    label = name + (", scaled" if scaled else "")
                    print(f"{label:<32.32}{each.rows:>8}{first:>12.4f}{r2_score(truth, made) - first:>+12.5f}")
        print()


if __name__ == "__main__":
    main()
