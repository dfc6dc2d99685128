"""What runs where: the products of an offloaded estimator."""

from __future__ import annotations

from typing import Any, NamedTuple

from sklearn.pipeline import Pipeline

from npumatmul.sklearn.estimators import NpuEstimator

__all__ = ["ReportRow", "report"]


class ReportRow(NamedTuple):
    """A product on the NPU, or a step that stays on the CPU.

    Attributes
    ----------
    step : str
        Of a pipeline, its name; else the estimator's class.
    product : str
        The fitted attribute that is the weight; empty for a step on the CPU.
    where : str
        Name of the device, or ``"cpu"``.
    k, n : int
        Shape of the weight.
    scheme : str
    nbytes : int
        Bytes of NPU memory.
    """

    step: str
    product: str
    where: str
    k: int
    n: int
    scheme: str
    nbytes: int


def report(estimator: Any) -> list[ReportRow]:
    """Tell what `offload` put where.

    Parameters
    ----------
    estimator : NpuEstimator or Pipeline

    Returns
    -------
    list of ReportRow

    Raises
    ------
    TypeError
        If it is neither.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.decomposition import PCA
    >>> from npumatmul.sklearn import offload, report
    >>> model = offload(PCA(2).fit(np.eye(5)))
    >>> [(row.product, row.k, row.n, row.scheme) for row in report(model)]
    [('components_', 5, 2, 'w16a16'), ('components_, back', 2, 5, 'w16a16')]
    """
    if isinstance(estimator, Pipeline):
        return [row for name, step in estimator.steps for row in _rows(name, step)]
    if not isinstance(estimator, NpuEstimator):
        raise TypeError(f"report takes what offload returned, not {type(estimator).__name__}")
    return _rows(type(estimator.estimator).__name__, estimator)


def _rows(step: str, estimator: Any) -> list[ReportRow]:
    if isinstance(estimator, Pipeline):
        return [row._replace(step=f"{step}.{row.step}") for row in report(estimator)]
    if not isinstance(estimator, NpuEstimator):
        return [ReportRow(step, "", "cpu", 0, 0, "", 0)]
    return [
        ReportRow(step, each.name, each.packed.device.name, *each.shape, each.scheme, each.packed.nbytes)
        for each in estimator.computation.products
    ]
