"""Offloaded estimators against scikit-learn's own: everything is computed in float64 there."""

from __future__ import annotations

import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn import datasets
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.exceptions import NotFittedError
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as gp
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.linear_model import (
    ElasticNet,
    LinearRegression,
    LogisticRegression,
    Perceptron,
    Ridge,
    RidgeClassifier,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.utils import _set_output
from sklearn.utils.estimator_checks import check_estimator

import npumatmul as npu
from npumatmul.sklearn import (
    NpuClassifier,
    NpuDiscriminant,
    NpuNeighbors,
    NpuRegressor,
    NpuTransformer,
    load,
    offload,
    report,
    save,
)
from npumatmul.sklearn.affine import UnscaledError
from npumatmul.sklearn.ranges import Ranges

U, V = 2.0**-11, 2.0**-24


def data(name: str, scaled: bool = False) -> tuple[Any, Any]:
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return (StandardScaler().fit_transform(x) if scaled else x), y


def halves(name: str, scaled: bool = False) -> tuple[Any, Any, Any, Any]:
    """Rows and labels for fitting, and for testing."""
    x, y = data(name, scaled)
    return x[::2], y[::2], x[1::2], y[1::2]


def fitted(estimator: Any, x: Any, y: Any = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # most of them do not converge, which is of no matter here
        return estimator.fit(x, y)


def product_bound(x: Any, w: Any) -> Any:
    """What `npumatmul.matmul` may be off in w16a16; rows and weights are rounded to float32 before."""
    k = x.shape[1]
    a, b = np.abs(x), np.abs(w)
    return ((1 + U) ** 2 * (1 + V) ** (k + 3) - 1) * (a @ b) + 2.0**-21 * k * a.max(1)[:, None] * b.max(0)


LINEAR = [LogisticRegression(), LinearSVC(), RidgeClassifier(), Perceptron(), LinearDiscriminantAnalysis()]


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
@pytest.mark.parametrize("estimator", LINEAR, ids=lambda e: type(e).__name__)
def test_linear_classifiers_are_off_by_no_more_than_products_may_be(estimator: Any, name: str) -> None:
    x, y, test, _ = halves(name)
    original = fitted(clone(estimator), x, y)
    made = offload(original)
    expected, bound = original.decision_function(test), product_bound(test, np.atleast_2d(original.coef_).T)
    bound += 2 * V * np.abs(original.intercept_) + V * np.abs(expected).reshape(len(test), -1)
    scores = made.decision_function(test)
    assert scores.shape == expected.shape
    assert (np.abs(scores - expected).reshape(bound.shape) <= bound).all()
    margin = np.abs(expected) if expected.ndim == 1 else np.diff(np.sort(expected, axis=1)[:, -2:])[:, 0] / 2
    sure = margin > bound.max(axis=1)
    assert sure.mean() > 0.5
    assert (made.predict(test) == original.predict(test))[sure].all()
    if hasattr(original, "predict_proba"):
        off = np.abs(made.predict_proba(test) - original.predict_proba(test))
        assert (off.max(axis=1) <= bound.max(axis=1)).all()  # neither sigmoid nor softmax is steeper than 1


def perceptrons() -> list[Any]:
    x, y = data("iris", scaled=True)
    several = np.stack([y == 0, x[:, 0] > 0, x[:, 1] > 0.5], axis=1).astype(int)
    return [
        (MLPClassifier((9,), activation=activation, max_iter=60, random_state=0), x, labels)
        for activation in ("relu", "tanh", "logistic", "identity")
        for labels in (y, np.array(["no", "yes"])[(y == 1).astype(int)], several)
    ]


@pytest.mark.parametrize("case", range(12))
def test_perceptrons_of_two_classes_of_more_and_of_several_labels(case: int) -> None:
    estimator, x, y = perceptrons()[case]
    original = fitted(estimator, x[::2], y[::2])
    made, test = offload(original), x[1::2]
    before, after = original.predict_proba(test), made.predict_proba(test)
    assert after.shape == before.shape
    np.testing.assert_allclose(after, before, atol=4e-3)
    np.testing.assert_array_equal(made.predict_log_proba(test), np.log(after))
    if y.ndim == 2 or before.shape[1] == 2:
        sure = (np.abs(before - 0.5) > 4e-3).all(axis=1)
    else:
        sure = np.diff(np.sort(before, axis=1)[:, -2:])[:, 0] > 8e-3
    assert sure.mean() > 0.5
    labels = made.predict(test)
    assert labels.dtype == original.predict(test).dtype
    np.testing.assert_array_equal(labels[sure], original.predict(test)[sure])


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize(
    "estimator", [LinearRegression(), Ridge(), ElasticNet(0.01), MLPRegressor(hidden_layer_sizes=(20,), random_state=0)]
)
def test_regressors(estimator: Any, outputs: int) -> None:
    x, y = data("diabetes")
    y = y if outputs == 1 else np.stack([y, x[:, 2] * 100], axis=1)
    original = fitted(clone(estimator), x[::2], y[::2])
    made = offload(original)
    assert made.predict(x).shape == original.predict(x).shape == y.shape
    assert abs(made.score(x, y) - original.score(x, y)) < 0.002
    with_int8 = offload(original, "w8a8", x[:100])
    assert abs(with_int8.score(x, y) - original.score(x, y)) < 0.01


@pytest.mark.parametrize(
    "estimator",
    [PCA(7), PCA(7, whiten=True), TruncatedSVD(6), RBFSampler(gamma=1e-3, random_state=0),
     KMeans(9, n_init=1, random_state=0), MiniBatchKMeans(9, n_init=1, random_state=0),
     Nystroem("rbf", gamma=1e-3, n_components=60, random_state=0),
     Nystroem("poly", degree=2, n_components=9, random_state=0), Nystroem("cosine", n_components=9, random_state=0),
     LinearDiscriminantAnalysis(), LinearDiscriminantAnalysis(solver="eigen", shrinkage=0.1)],
    ids=repr,
)  # fmt: skip
def test_transformers(estimator: Any) -> None:
    x, y = data("digits")
    original = fitted(clone(estimator), x[:600], y[:600])
    made = offload(original)
    before, after = original.transform(x), made.transform(x)
    assert after.shape == before.shape
    assert after.dtype == np.float64
    np.testing.assert_allclose(after, before, atol=1e-3 * np.abs(before).max())
    assert list(made.get_feature_names_out()) == list(original.get_feature_names_out())
    if hasattr(original, "inverse_transform"):
        back = original.inverse_transform(before)
        np.testing.assert_allclose(made.inverse_transform(before), back, atol=2e-3 * np.abs(back).max())
        with pytest.raises(ValueError, match="inverse_transform takes"):
            made.inverse_transform(x[:2, :3])
    else:
        assert not hasattr(made, "inverse_transform")


@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), points=st.integers(1, 50), width=st.integers(1, 70),
    scale=st.sampled_from([1e-6, 1.0, 1e5]), away=st.sampled_from([0.0, 1e3]), repeated=st.booleans(), data=st.data(),
)  # fmt: skip
@settings(max_examples=60)
def test_what_is_nearest_is_exactly_so(
    seed: int, rows: int, points: int, width: int, scale: float, away: float, repeated: bool, data: Any
) -> None:
    rng = np.random.default_rng(seed)
    x, p = (scale * (rng.standard_normal((n, width)) + away) for n in (rows, points))
    if repeated:
        p[points // 2 :] = p[: points - points // 2]
    count = data.draw(st.integers(1, points))
    made = offload(NearestNeighbors(n_neighbors=count, algorithm="brute").fit(p))
    distances, found = made.kneighbors(x)
    exact = np.sqrt(((x[:, None] - p[None]) ** 2).sum(axis=2))
    every = np.sort(exact, axis=1)[:, :count]
    off = 1e-9 * np.abs(p).max()  # of centring in float64
    np.testing.assert_allclose(distances, every, rtol=1e-9, atol=off)
    np.testing.assert_allclose(np.take_along_axis(exact, found, 1), every, rtol=1e-9, atol=off)
    assert all(len(set(each)) == count for each in found.tolist())


@pytest.mark.parametrize("metric", ["euclidean", "sqeuclidean", "cosine"])
@pytest.mark.parametrize("weights", ["uniform", "distance", lambda d: 1 / (2 + d)])
def test_neighbours_vote_as_in_scikit_learn(metric: str, weights: Any) -> None:
    x, y, test, _ = halves("wine")
    rng = np.random.default_rng(1)
    x, test = x + 1e-3 * rng.random(x.shape), test + 1e-3 * rng.random(test.shape)  # that no two are as far
    for kind, labels in (
        (KNeighborsClassifier, y),
        (KNeighborsClassifier, np.stack([y, y == 1], 1)),
        (KNeighborsRegressor, y),
    ):
        original = kind(7, weights=weights, metric=metric, algorithm="brute").fit(x, labels)
        made = offload(original)
        np.testing.assert_allclose(made.predict(test), original.predict(test), rtol=1e-9)
        for a, b in zip(made.kneighbors(test), original.kneighbors(test), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        for a, b in zip(made.kneighbors(n_neighbors=3), original.kneighbors(n_neighbors=3), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)
        if kind is KNeighborsClassifier:
            pair = made.predict_proba(test), original.predict_proba(test)
            for a, b in zip(*pair, strict=True):  # of several labels there is a list
                np.testing.assert_allclose(a, b, rtol=1e-6)


def test_rows_without_a_direction_are_as_far_as_scikit_learn_says() -> None:
    x = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    original = NearestNeighbors(n_neighbors=4, metric="cosine").fit(x)
    for rows in ([[0.0, 0.0]], [[3.0, 1.0]]):
        expected = original.kneighbors(rows)[0]
        np.testing.assert_allclose(offload(original).kneighbors(rows)[0], expected, atol=1e-12)


def test_few_points_are_computed_again() -> None:
    x, _ = data("digits")
    made = offload(NearestNeighbors(n_neighbors=5).fit(x))
    made.kneighbors(x[:300])
    assert made.computation._nearest.looked_at < 300 * 12


@pytest.mark.parametrize("name", ["iris", "breast_cancer"])
@pytest.mark.parametrize("kernel", ["rbf", "linear", "poly", "sigmoid"])
def test_support_vector_machines(name: str, kernel: str) -> None:
    x, y, test, _ = halves(name, scaled=True)
    for shape in ("ovr", "ovo"):
        original = SVC(kernel=kernel, decision_function_shape=shape, random_state=0).fit(x, y)
        made = offload(original)
        before, after = original.decision_function(test), made.decision_function(test)
        assert after.shape == before.shape
        off = 2e-3 * max(1.0, np.abs(before).max())
        votes = name == "iris" and shape == "ovr"  # which jump where a pair is undecided
        assert (np.abs(after - before) <= off).mean() > (0.98 if votes else 0.9999)
        assert (made.predict(test) == original.predict(test)).mean() > 0.98
        assert not hasattr(made, "predict_proba")
    regressor = SVR(kernel=kernel, C=2).fit(x, x[:, 0] + x[:, 1])
    np.testing.assert_allclose(offload(regressor).predict(test), regressor.predict(test), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_probabilities_of_pairs_are_joined_as_libsvm_does(classes: int) -> None:
    x, y = datasets.make_classification(300, 8, n_informative=6, n_classes=classes, random_state=classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        original = SVC(probability=True, random_state=0).fit(x[:200], y[:200])
    made = offload(original)
    np.testing.assert_allclose(made.predict_proba(x), original.predict_proba(x), atol=3e-3)


def test_ties_are_broken_where_that_is_asked_for() -> None:
    x, y, test, _ = halves("iris")
    original = SVC(break_ties=True).fit(x, y)
    assert (offload(original).predict(test) == original.predict(test)).all()
    wrong = SVC(break_ties=True, decision_function_shape="ovo").fit(x, y)
    with pytest.raises(ValueError, match="break_ties must be False"):
        offload(wrong).predict(test)


KERNELS = [
    gp.ConstantKernel(2.0) * gp.RBF(0.7) + gp.WhiteKernel(0.1),
    gp.Matern(1.1, nu=0.5) + gp.WhiteKernel(0.1),
    gp.Matern([0.8, 1.5, 1.0, 2.0], nu=1.5) + gp.WhiteKernel(0.1),
    gp.Matern(nu=2.5) * gp.RationalQuadratic() + gp.WhiteKernel(0.1),
    gp.DotProduct() ** 2 + gp.WhiteKernel(0.1),
    gp.Matern(nu=np.inf) + gp.WhiteKernel(0.1),
]


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_gaussian_processes(kernel: Any) -> None:
    x, _ = data("iris", scaled=True)
    y = np.sin(x[:, 0]) + x[:, 1] * x[:, 2]
    original = GaussianProcessRegressor(kernel, optimizer=None, normalize_y=True).fit(x[::2], y[::2])
    made = offload(original)
    mean, deviation = original.predict(x[1::2], return_std=True)
    np.testing.assert_allclose(made.predict(x[1::2]), mean, atol=2e-3)
    np.testing.assert_allclose(made.predict(x[1::2], return_std=True)[1], deviation)


def test_a_pipeline_keeps_what_has_no_products() -> None:
    x, y, test, right = halves("wine")
    original = make_pipeline(StandardScaler(), PCA(8), SVC()).fit(x, y)
    made = offload(original, "w8a8", x[:100])
    assert isinstance(made, Pipeline)
    assert [type(step).__name__ for step in made] == ["StandardScaler", "NpuTransformer", "NpuClassifier"]
    assert made[0] is original[0]
    assert abs(made.score(test, right) - original.score(test, right)) < 0.03
    rows = report(made)
    assert [(row.step, row.where == "cpu", row.product) for row in rows] == [
        ("standardscaler", True, ""), ("pca", False, "components_"), ("pca", False, "components_, back"),
        ("svc", False, "distances"), ("svc", False, "dual_coef_"),
    ]  # fmt: skip
    assert {row.scheme for row in rows} == {"", "w8a8", "w16a16_high"}
    inside = make_pipeline(StandardScaler(), offload(LogisticRegression().fit(StandardScaler().fit_transform(x), y)))
    assert inside.fit(x, y).score(test, right) > 0.9  # a wrapper is fitted as any estimator
    search = GridSearchCV(original, {"svc__C": [0.1, 1.0]}, cv=2).fit(x, y)
    np.testing.assert_array_equal(offload(search).predict(test), search.predict(test))


def test_set_output_decides_what_is_returned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Frames:
        def create_container(self, X_output: Any, X_original: Any, columns: Any, inplace: bool = True) -> Any:
            return list(columns() if callable(columns) else columns), np.asarray(X_output)

    monkeypatch.setitem(_set_output.ADAPTERS_MANAGER.adapters, "pandas", Frames())
    x, y, test, _ = halves("wine")
    original = make_pipeline(StandardScaler(), PCA(2)).fit(x, y)
    plain = offload(original)
    assert isinstance(plain.transform(test), np.ndarray)
    original.steps[1][1].set_output(transform="pandas")  # before, and after
    for made in (offload(original), plain):
        made[1].set_output(transform="pandas")
        names, values = made.transform(test)
        assert names == ["pca0", "pca1"]
        np.testing.assert_allclose(values, original.transform(test)[1], atol=5e-3)
    before = offload(original)
    assert before.transform(test)[0] == ["pca0", "pca1"]
    save(before, tmp_path)
    assert load(tmp_path).transform(test)[0] == ["pca0", "pca1"]
    after = offload(original[1]).set_output(transform="default")
    assert isinstance(after.transform(x), np.ndarray)
    assert isinstance(original[1].transform(x), tuple)


def test_a_pipeline_keeps_its_settings_and_says_what_is_dense() -> None:
    x, y, _, _ = halves("wine")
    original = Pipeline([("scale", StandardScaler()), ("svc", SVC())], verbose=True).fit(x, y)
    original.set_params(transform_input=["x"])
    made = offload(original)
    assert made.get_params(deep=False) == {**original.get_params(deep=False), "steps": made.steps}
    with pytest.raises(TypeError, match=r"the step 'svc' of the pipeline, .* is offloaded already"):
        offload(made)
    with pytest.raises(TypeError, match=r"OneHotEncoder\(sparse_output=False\)"):
        made[1].predict(csr_array(x))


def test_unlike_features_are_refused_in_eight_bits_unless_an_example_says_their_ranges() -> None:
    x, y, test, right = halves("wine")
    original = make_pipeline(LinearDiscriminantAnalysis()).fit(x, y)[0]
    for rows in (test, test[:1]):
        with pytest.raises(UnscaledError, match="give offload an example_input") as caught:
            offload(original, "w8a8").predict(rows)
        assert isinstance(caught.value, ValueError)
    with_ranges = offload(original, "w8a8", x[:80])
    assert abs(with_ranges.score(test, right) - original.score(test, right)) < 0.03
    scaler = StandardScaler().fit(x)
    alike = offload(LogisticRegression().fit(scaler.transform(x), y), "w8a8")
    assert alike.score(scaler.transform(test), right) > 0.9
    assert all(len(alike.predict(row[None])) == 1 for row in scaler.transform(test))


@pytest.mark.parametrize("estimator", [MLPClassifier((20,), max_iter=50, random_state=0), LogisticRegression(), PCA(3)])
def test_a_row_is_refused_or_not_whatever_comes_with_it(estimator: Any) -> None:
    x, y, test, _ = halves("wine", scaled=True)
    made = offload(fitted(clone(estimator), x, y), "w8a8")
    method = made.transform if hasattr(made, "transform") else made.predict
    assert len(method(test)) == len(test)
    raw, _ = data("wine")
    unlike = raw[1]  # with a thousand beside a half
    for others in (test[:0], test[:1], test):
        with pytest.raises(UnscaledError, match=rf"row {len(others)} of X"):
            method(np.concatenate([others, [unlike]]))
    with pytest.raises(UnscaledError, match="row 0 of X"):
        method(raw)


def test_small_features_of_large_weights_are_missed_too() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((80, 3)) * [1.0, 1.0, 1e-4]
    original = LinearRegression().fit(x, x @ [1.0, 1.0, 1e4])
    with pytest.raises(UnscaledError):
        offload(original, "w8a8").predict(x[:1])
    assert offload(original, "w8a8", x).score(x, original.predict(x)) > 0.999


def test_rows_that_are_unlike_the_example_are_as_exact_as_others() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((300, 6)) * [1.0, 30.0, 500.0, 0.01, 2.0, 1.0] + [0.0, 7.0, 9e3, 0.0, 1.0, 5.0]
    x[:40, 5] = 5.0  # it has one value in the example
    x[50, 4], x[60, 2], x[70, 5], x[80, 5] = 3e3, -4e4, 60.0, 1e5
    original = LinearRegression().fit(x, x @ [2.0, 0.1, 0.01, 80.0, 1.0, 0.02])
    made = offload(original, "w8a8", x[:40])
    whole, exact = made.predict(x), original.predict(x)
    size = np.abs((x - x[:40].mean(0)) * original.coef_).sum(axis=1)
    assert (np.abs(whole - exact) < 0.012 * size).all()
    np.testing.assert_array_equal(np.concatenate([made.predict(row[None]) for row in x]), whole)
    one = offload(original, "w8a8", x[:1]).predict(x[80:81])
    assert abs(one - exact[80]) < 0.012 * size[80]


@pytest.mark.parametrize("name", ["wine", "breast_cancer"])
def test_perceptrons_that_were_fitted_to_unscaled_rows_lose_next_to_nothing_in_eight_bits(name: str) -> None:
    x, y = data(name)
    same = right = before = count = 0
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(x))
        fit, test = order[: len(x) // 2], order[len(x) // 2 :]
        original = fitted(MLPClassifier((60,), random_state=seed, max_iter=80, batch_size=50), x[fit], y[fit])
        labels, expected = offload(original, "w8a8", x[fit][:100]).predict(x[test]), original.predict(x[test])
        same += int((labels == expected).sum())
        right += int((labels == y[test]).sum())
        before += int((expected == y[test]).sum())
        count += len(test)
    assert same / count > 0.985
    assert abs(right - before) / count < 0.006


@given(
    seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.sampled_from([1e-200, 1e-9, 1.0, 1e9, 1e307]), min_size=1),
    away=st.sampled_from([0.0, 1.0, -1e3]),
)  # fmt: skip
def test_ranges_are_means_and_deviations_of_any_size(seed: int, sizes: list[float], away: float) -> None:
    unit = np.random.default_rng(seed).uniform(-1, 1, (9, len(sizes))) + away
    unit[:, 0] = unit[0, 0]
    scale = np.array(sizes) / max(1.0, abs(away))
    found = Ranges.of(unit * scale)
    np.testing.assert_allclose(found.middle, unit.mean(0) * scale, rtol=1e-9, atol=0)
    np.testing.assert_allclose(found.spread[1:], unit.std(0)[1:] * scale[1:], rtol=1e-9)
    assert found.spread[0] == 0
    assert np.isfinite(found.units(np.ones((len(sizes), 2)))).all()


CHECKED = [
    NpuClassifier(LogisticRegression()),
    NpuRegressor(Ridge()),
    NpuTransformer(PCA()),
    NpuDiscriminant(LinearDiscriminantAnalysis()),
    NpuNeighbors(NearestNeighbors()),
    NpuTransformer(KMeans(3, n_init=1, random_state=0)),
    NpuClassifier(KNeighborsClassifier()),
    NpuRegressor(GaussianProcessRegressor()),
    NpuClassifier(MLPClassifier((20,), max_iter=100, random_state=0)),
]


#: Compares rows computed alone and together to within 1e-7: float sums may be in another order where rows are few.
FLOAT_SUMS = {"check_methods_subset_invariance"}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapper", CHECKED, ids=repr)
def test_scikit_learns_own_checks_fail_only_where_they_do_for_the_original(wrapper: Any) -> None:
    def failed(estimator: Any) -> set[str]:
        found = check_estimator(estimator, on_skip=None, on_fail=None)
        assert len(found) > 30
        return {each["check_name"] for each in found if each["status"] == "failed"}

    wrong = failed(wrapper) - FLOAT_SUMS
    assert not wrong or wrong <= failed(wrapper.estimator)


def test_clone_repr_parameters_and_kinds() -> None:
    x, y, test, _ = halves("iris")
    original = fitted(LogisticRegression(C=0.5), x, y)
    made = offload(original)
    assert repr(made) == "NpuClassifier(estimator=LogisticRegression(C=0.5))"
    assert is_classifier(made)
    assert not is_regressor(made)
    assert is_regressor(offload(LinearRegression().fit(x, y)))
    assert made.n_features_in_ == 4
    np.testing.assert_array_equal(made.classes_, [0, 1, 2])
    assert made.coef_ is original.coef_
    other = clone(made)
    with pytest.raises(NotFittedError):
        other.predict(test)
    with pytest.raises(AttributeError, match="not fitted yet"):
        _ = other.coef_
    fitted(other.set_params(estimator__C=2.0, scheme="w16a16_high"), x, y)
    assert other.estimator.C == 2.0
    assert original.C == 0.5
    again = pickle.loads(pickle.dumps(made))
    np.testing.assert_array_equal(again.predict(test), made.predict(test))


def test_float32_stays_and_any_count_of_rows_goes() -> None:
    x, y, test, _ = halves("iris")
    made = offload(LogisticRegression().fit(x, y))
    whole = made.decision_function(test)
    assert whole.dtype == np.float64
    assert made.decision_function(test.astype(np.float32)).dtype == np.float32
    for count in (1, 2, 3, 50):
        np.testing.assert_array_equal(made.decision_function(test[:count]), whole[:count])
    np.testing.assert_array_equal(made.decision_function(test.tolist()), whole)
    np.testing.assert_array_equal(made.decision_function(np.asfortranarray(test)), whole)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.full((2, 4), np.nan), "Input X contains NaN"),
        (np.full((2, 4), np.inf), "Input X contains infinity"),
        (np.zeros((2, 3)), "X has 3 features, but LogisticRegression is expecting 4 features"),
        (np.zeros(4), "Expected 2D array, got 1D array"),
        (np.zeros((0, 4)), "Found array with 0 sample"),
        ([["a", "b", "c", "d"]], "could not convert string to float"),
        (np.full((1, 4), 1e200), "beyond the range of float32"),
    ],
)
def test_wrong_rows_get_scikit_learns_own_messages(rows: Any, message: str) -> None:
    x, y, _, _ = halves("iris")
    with pytest.raises(ValueError, match=message):
        offload(LogisticRegression().fit(x, y)).predict(rows)


def _with(make: Callable[[Any, Any], Any]) -> Any:
    x, y, _, _ = halves("iris")
    return make(x, y)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda x, y: StandardScaler().fit(x), TypeError, "StandardScaler has no products"),
        (lambda x, y: make_pipeline(StandardScaler()).fit(x), TypeError, "no step of the pipeline has products"),
        (lambda x, y: LogisticRegression(), NotFittedError, "not fitted"),
        (lambda x, y: NearestNeighbors(metric="manhattan").fit(x), TypeError, "metric 'manhattan'"),
        (lambda x, y: SVC(kernel=lambda a, b: a @ b.T).fit(x, y), TypeError, "those of products are"),
        (lambda x, y: GaussianProcessRegressor(gp.ExpSineSquared(), alpha=9, optimizer=None).fit(x, y), TypeError, "E"),
        (lambda x, y: Nystroem("laplacian", n_components=5).fit(x), TypeError, "laplacian"),
        (lambda x, y: Nystroem(gamma=1e-6, n_components=60).fit(x), ValueError, "fewer components"),
        (lambda x, y: RidgeClassifier().fit(x, np.stack([y == 0, y == 1], 1)), TypeError, "several labels"),
        (lambda x, y: type("Mine", (LogisticRegression,), {})().fit(x, y), TypeError, "Mine has no products"),
        (lambda x, y: offload(LogisticRegression().fit(x, y)), TypeError, "offloaded already"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_offloaded_says_why(make: Any, kind: type[Exception], message: str) -> None:
    estimator = _with(make)
    with pytest.raises(kind, match=message):
        offload(estimator)


def test_wrong_arguments_are_named() -> None:
    x, y, _, _ = halves("iris")
    original = LogisticRegression().fit(x, y)
    for scheme in ("w4a8", "int8", 8):
        with pytest.raises(ValueError, match="scheme is"):
            offload(original, scheme)
    with pytest.raises(ValueError, match="X has 2 features"):
        offload(original, "w8a8", x[:, :2])
    with pytest.raises(ValueError, match="Expected n_neighbors <= n_samples_fit"):
        offload(NearestNeighbors().fit(x)).kneighbors(x, n_neighbors=1000)
    with pytest.raises(ValueError, match="Expected n_neighbors > 0"):
        offload(NearestNeighbors().fit(x)).kneighbors(x, n_neighbors=0)
    with pytest.raises(TypeError, match="Sparse data was passed"):
        offload(original).predict(csr_array(x))


def test_weights_leave_with_their_estimator() -> None:
    x, _, _, _ = halves("digits")
    with npu.Device("sim:rk3588") as device:
        made = offload(PCA(3).fit(x), device=device)
        made.transform(x[:5])
        weights = [each.packed for each in made.computation.products]
        gone = [weakref.ref(each) for each in weights]
        del made, weights
        gc.collect()
        assert all(each() is None for each in gone)
