"""Offloaded estimators in folders, and the commands that make and use them."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.datasets import load_wine
from sklearn.decomposition import PCA, TruncatedSVD
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.kernel_approximation import Nystroem, RBFSampler
from sklearn.linear_model import (
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    RidgeClassifierCV,
    RidgeCV,
)
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor, NearestNeighbors
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC, NuSVC, NuSVR
from typer.testing import CliRunner

from npumatmul.cli import app
from npumatmul.errors import UnusableFileError
from npumatmul.sklearn import load, offload, save

X, Y = load_wine(return_X_y=True)


def pipeline() -> Any:
    return make_pipeline(StandardScaler(), PCA(6), LogisticRegression()).fit(X[::2], Y[::2])


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_what_is_loaded_predicts_the_same(tmp_path: Path, scheme: str) -> None:
    for estimator in (pipeline(), KNeighborsClassifier().fit(X, Y), PCA(3).fit(X)):
        made = offload(estimator, scheme, X[:50] if scheme == "w8a8" else None)
        save(made, tmp_path / "out")
        again = load(tmp_path / "out")
        method = "predict_proba" if hasattr(made, "predict_proba") else "transform"
        np.testing.assert_array_equal(getattr(again, method)(X), getattr(made, method)(X))
    assert sorted(os.listdir(tmp_path / "out")) == ["estimator.skops", "npumatmul.json"]


ALL = [
    LinearRegression(), RidgeCV(), LogisticRegression(max_iter=9), LogisticRegressionCV(cv=2, max_iter=9), LinearSVC(),
    RidgeClassifierCV(), Perceptron(), LinearDiscriminantAnalysis(), MLPClassifier((9,), max_iter=9),
    MLPRegressor(hidden_layer_sizes=(9,), max_iter=9), PCA(2), TruncatedSVD(2), KMeans(3), MiniBatchKMeans(3),
    NearestNeighbors(algorithm="ball_tree"), KNeighborsClassifier(metric="cosine"), KNeighborsRegressor(), SVC(),
    NuSVC(), SVR(), NuSVR(), RBFSampler(), Nystroem(n_components=9), GridSearchCV(LinearSVC(), {"C": [1, 2]}, cv=2),
    GaussianProcessRegressor(ConstantKernel() * RBF() + Matern() + WhiteKernel(), optimizer=None),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("estimator", ALL, ids=lambda each: type(each).__name__)
def test_every_estimator_that_is_offered_can_be_saved(tmp_path: Path, estimator: Any) -> None:
    x = (X - X.mean(axis=0)) / X.std(axis=0)
    made = offload(estimator.fit(x, Y))
    save(made, tmp_path)
    again = load(tmp_path)
    method = next(each for each in ("predict", "transform", "kneighbors") if hasattr(made, each))
    np.testing.assert_array_equal(getattr(again, method)(x), getattr(made, method)(x))


def test_only_what_was_offloaded_is_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="save takes what offload returned"):
        save(pipeline(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Loud:
    """Says that it was made."""

    made = 0

    def __reduce__(self) -> Any:
        return _shout, ()

    def fit(self, x: Any, y: Any = None) -> Loud:
        return self

    def transform(self, x: Any) -> Any:
        return x


def _shout() -> Loud:
    Loud.made += 1
    return Loud()


def double(x: Any) -> Any:
    return 2 * x


def test_nothing_is_executed_that_nobody_said_to_trust(tmp_path: Path) -> None:
    own = make_pipeline(FunctionTransformer(double), LogisticRegression(max_iter=10_000)).fit(X[:, :2], Y)
    save(offload(own), tmp_path / "out")
    with pytest.raises(UnusableFileError, match=r"nobody said to trust: .*double"):
        load(tmp_path / "out")
    names = skops.io.get_untrusted_types(file=tmp_path / "out" / "estimator.skops")
    np.testing.assert_array_equal(
        load(tmp_path / "out", trusted=names).predict(X[:, :2]), offload(own).predict(X[:, :2])
    )


def _settings(path: Path, **changed: Any) -> None:
    file = path / "npumatmul.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: (path / "estimator.skops").write_bytes(b"nothing"),
        lambda path: (path / "estimator.skops").write_bytes((path / "estimator.skops").read_bytes()[:-700]),
        lambda path: (path / "npumatmul.json").write_text("{"),
        lambda path: (path / "npumatmul.json").write_text("[]"),
        lambda path: _settings(path, format=9),
        lambda path: _settings(path, scheme="w1a1"),
        lambda path: _settings(path, steps={"/pca": 2 * [{"middle": [1.0], "spread": [1.0]}]}),
        lambda path: _settings(path, steps={"/standardscaler": None}),
        lambda path: _settings(path, steps={"/pca": [{"middle": [1.0] * 13, "spread": [1.0] * 13}]}),
        lambda path: _settings(path, steps={"/pca": 2 * [{"middle": [[1.0]], "spread": 3}]}),
        lambda path: _settings(path, steps={"/pca": 2 * [{"middle": ["x"], "spread": ["y"]}]}),
        lambda path: _settings(path, steps={"/pca": {"middle": [1.0], "spread": [-1.0]}}),
    ],
)  # fmt: skip
def test_damaged_folders_are_refused(tmp_path: Path, harm: Any) -> None:
    save(offload(pipeline(), "w8a8", X), tmp_path)
    harm(tmp_path)
    with pytest.raises(UnusableFileError):
        load(tmp_path)


def test_a_file_that_grows_without_end_is_not_unpacked(tmp_path: Path) -> None:
    save(offload(pipeline()), tmp_path)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", "{}")
    content = bytearray(stream.getvalue())
    at = content.rindex(b"PK\x01\x02") + 24  # the size that it says
    content[at : at + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "estimator.skops").write_bytes(content)
    with pytest.raises(UnusableFileError):
        load(tmp_path)


def run(*arguments: object, given: str | None = None) -> Any:
    return CliRunner().invoke(app.app, [str(each) for each in arguments], input=given)


def test_convert_and_predict(tmp_path: Path) -> None:
    original = pipeline()
    skops.io.dump(original, tmp_path / "wine.skops")
    np.savetxt(tmp_path / "example.csv", X[:60], delimiter=",", header=",".join("abcdefghijklm"), comments="")
    np.save(tmp_path / "rows.npy", X)
    done = run(
        "sklearn",
        "convert",
        tmp_path / "wine.skops",
        tmp_path / "out",
        "--scheme",
        "w8a8",
        "--example",
        tmp_path / "example.csv",
    )
    assert done.exit_code == 0, done.output
    assert "components_" in done.output
    np.testing.assert_array_equal(
        load(tmp_path / "out")[1]._folded[0].middle, offload(original, "w8a8", X[:60])[1]._folded[0].middle
    )
    done = run("sklearn", "predict", tmp_path / "out", tmp_path / "rows.npy")
    assert done.exit_code == 0, done.output
    expected = offload(original, "w8a8", X[:60])
    assert done.stdout.split() == [str(label) for label in expected.predict(X)]
    done = run(
        "sklearn",
        "predict",
        tmp_path / "out",
        tmp_path / "example.csv",
        "--method",
        "predict_proba",
        "-o",
        tmp_path / "p.npy",
    )
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), expected.predict_proba(X[:60]))


def test_several_outputs_are_beside_each_other_in_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((30, 3))
    labels = np.stack([rng.integers(0, 2, 30), rng.integers(0, 3, 30)], axis=1)
    original = KNeighborsClassifier(3, algorithm="brute").fit(x, labels)
    save(offload(original), tmp_path / "out")
    np.save(tmp_path / "rows.npy", x[:4])
    done = run("sklearn", "predict", tmp_path / "out", tmp_path / "rows.npy", "--method", "predict_proba")
    assert done.exit_code == 0, done.output
    found = [[float(value) for value in line.split(",")] for line in done.stdout.splitlines()]
    np.testing.assert_allclose(found, np.concatenate(original.predict_proba(x[:4]), axis=1))


def test_a_pickle_is_executed_only_when_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "loud.pkl").write_bytes(
        pickle.dumps(make_pipeline(Loud(), LogisticRegression(max_iter=9)).set_params())
    )
    Loud.made = 0
    done = run("sklearn", "convert", tmp_path / "loud.pkl", tmp_path / "out")
    assert done.exit_code
    assert "--allow-pickle" in str(done.exception)
    assert Loud.made == 0
    (tmp_path / "wine.pkl").write_bytes(pickle.dumps(pipeline()))
    done = run("sklearn", "convert", tmp_path / "wine.pkl", tmp_path / "out", "--allow-pickle")
    assert done.exit_code == 0, done.output
    np.testing.assert_array_equal(load(tmp_path / "out").predict(X), offload(pipeline()).predict(X))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows of numbers"),
        ("a,b\n", "no rows of numbers"),
        ("1,2\n3\n", "line 2: it has 1 values"),
        ("a,b\n1,2\n3,x\n", "line 3: '3,x' is not all numbers"),
        (",2\n3,4\n", "line 1: ',2' is not all numbers"),  # a hole, and no line of names
        ("1,x\n3,4\n", "line 1: '1,x' is not all numbers"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    save(offload(pipeline()), tmp_path / "out")
    (tmp_path / "rows.csv").write_text(text)
    done = run("sklearn", "predict", tmp_path / "out", tmp_path / "rows.csv")
    assert done.exit_code
    assert message in str(done.exception)
