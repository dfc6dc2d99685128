"""scikit-learn's estimators with their products on the NPU.

`offload` takes a fitted estimator and returns one of the same interface. Nothing is converted, and no shape is fixed:
weights go to the NPU once, and rows come in any number.

>>> import numpy as np
>>> from sklearn.linear_model import LinearRegression
>>> from npumatmul.sklearn import offload
>>> x = np.arange(12, dtype=np.float64).reshape(6, 2)
>>> model = offload(LinearRegression().fit(x, x[:, 0] - x[:, 1]))
>>> model
NpuRegressor(estimator=LinearRegression())
>>> np.round(model.predict(x[:2]), 2)
array([-1., -1.])
"""

from npumatmul.extras import explain_missing as _explain_missing

try:
    from npumatmul.sklearn.estimators import (
        NpuClassifier,
        NpuDiscriminant,
        NpuEstimator,
        NpuNeighbors,
        NpuRegressor,
        NpuTransformer,
    )
    from npumatmul.sklearn.offloading import offload
    from npumatmul.sklearn.report import ReportRow, report
    from npumatmul.sklearn.saving import load, save
except ImportError as error:
    _explain_missing(error, "npumatmul.sklearn")
    raise

__all__ = [
    "NpuClassifier",
    "NpuDiscriminant",
    "NpuEstimator",
    "NpuNeighbors",
    "NpuRegressor",
    "NpuTransformer",
    "ReportRow",
    "load",
    "offload",
    "report",
    "save",
]
