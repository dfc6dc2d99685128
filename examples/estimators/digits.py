"""An estimator of scikit-learn, fitted on the CPU, with its products on the NPU: ``python digits.py --small``."""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import numpy as np
from sklearn.datasets import load_digits, load_iris
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from npumatmul.sklearn import load, offload, report, save


def fitted(small: bool) -> tuple[Any, Any, Any, Any]:
    """A pipeline, rows that it was fitted to, and rows and labels to test it with."""
    x, y = (load_iris if small else load_digits)(return_X_y=True)
    x_fit, x_test, y_fit, y_test = train_test_split(x, y, test_size=1 / 3, random_state=0)
    steps = StandardScaler(), PCA(3 if small else 40), MLPClassifier((64,), max_iter=500, random_state=0)
    return make_pipeline(*steps).fit(x_fit, y_fit), x_fit, x_test, y_test


def main() -> None:
    """Fit, offload in two schemes, compare, save and load."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--small", action="store_true", help="iris in the place of digits")
    model, x_fit, x_test, y_test = fitted(parser.parse_args().small)
    labels = model.predict(x_test)
    print(f"scikit-learn: {100 * model.score(x_test, y_test):.1f} % of {len(y_test)} rows")
    for scheme in ("w16a16", "w8a8"):
        made = offload(model, scheme, x_fit[:100])  # 100 rows say the ranges of features, for w8a8
        same = np.mean(made.predict(x_test) == labels)
        print(f"{scheme}: {100 * made.score(x_test, y_test):.1f} %, {100 * same:.1f} % of labels as before")
    for row in report(made):
        what = f"{row.product}, {row.k} x {row.n} in {row.scheme}" if row.product else "no products"
        print(f"  {row.step}: {what}, on {row.where}")
    with tempfile.TemporaryDirectory() as folder:
        save(made, folder)
        again = load(folder)
        print(f"saved and loaded: the same = {bool((again.predict(x_test) == made.predict(x_test)).all())}")


if __name__ == "__main__":
    main()
