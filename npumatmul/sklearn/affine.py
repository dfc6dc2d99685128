"""Products with a fitted weight: rows to ``function(rows @ weight + bias)``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul.host.epilogue import Activation
from npumatmul.sklearn.ranges import Float64, Ranges

__all__ = ["Affine", "UnscaledError"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
#: The share of a typical result that rounding rows to eight bits may take before they are refused.
MAX_LOSS = 0.05


class UnscaledError(ValueError):
    """Features differ so much in size that rows of eight bits would lose the small ones."""


class Affine:
    """A product with a weight that stays on the NPU.

    Parameters
    ----------
    name : str
        What it is in the estimator, for reports.
    weight : ndarray of float, shape (K, N)
    bias : ndarray of float, shape (N,), or None
    scheme : str
    device : Device or str or None
    ranges : Ranges, optional
        Of the rows' features: they are folded into weight and bias.
    center : ndarray of float, shape (K,), optional
        What is taken from rows in float64 before they are rounded; bias is that of rows which it was taken from.
    guards : bool
        Whether rows of eight bits are refused where their features are too unlike; of first layers without `ranges`.
    activation : str, optional
        As of `npumatmul.Epilogue`.
    """

    def __init__(
        self,
        name: str,
        weight: NDArray[Any],
        bias: NDArray[Any] | None,
        *,
        scheme: str,
        device: Any = None,
        ranges: Ranges | None = None,
        center: NDArray[Any] | None = None,
        guards: bool = False,
        activation: Activation | None = None,
    ) -> None:
        w = np.asarray(weight, np.float64)
        b = None if bias is None else np.asarray(bias, np.float64)
        if ranges is not None:
            middle = ranges.middle if center is None else ranges.middle - np.asarray(center, np.float64)
            b = middle @ w + (0.0 if b is None else b)
            w = ranges.half[:, None] * w
            center = None  # ranges have a middle of their own
        _check_finite(name, w, b)
        self.name, self.scheme, self.activation = name, scheme, activation
        self._center = None if center is None else np.asarray(center, np.float64)
        self._ranges = ranges
        self._bias = None if b is None else b.astype(np.float32)
        self._norms = (w * w).sum(axis=1) if guards and scheme == "w8a8" and ranges is None else None
        self.packed = npu.pack(w.astype(np.float32), scheme, device=device)  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        return self.packed.shape

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Multiply rows ``(M, K)`` of float32 or float64.

        Raises
        ------
        UnscaledError
            As `guards` says.
        """
        if self._ranges is not None:
            rows = self._ranges.scaled(rows)
        elif self._center is not None:
            rows = rows - self._center
        if self._norms is not None:
            self._check_alike(rows)
        epilogue = None
        if self._bias is not None or self.activation is not None:
            epilogue = npu.Epilogue(bias=self._bias, activation=self.activation)
        made: NDArray[np.float32] = npu.matmul(_float32(rows), self.packed, epilogue=epilogue)
        return made

    def _check_alike(self, rows: NDArray[Any]) -> None:
        norms = self._norms
        assert norms is not None
        r = np.asarray(rows, np.float64)
        largest = np.abs(r).max(axis=1, initial=0.0)
        typical = np.sqrt((r * r) @ norms)
        loss = largest / 127 / np.sqrt(12) * np.sqrt(norms.sum())
        known = typical > 0
        if known.any() and float(np.mean(loss[known] / typical[known])) > MAX_LOSS:
            raise UnscaledError(
                f"{self.name}: in scheme 'w8a8' a row has one scale, and features of this X differ so much in size "
                f"that the small ones would be lost; give offload an example_input, whose ranges are folded into the "
                f"weights, or scale the features (StandardScaler), or use scheme 'w16a16'"
            )


def _check_finite(name: str, w: Float64, b: Float64 | None) -> None:
    for values in (w, b):
        if values is not None and not (np.isfinite(values).all() and (np.abs(values) <= _FLOAT32_MAX).all()):
            raise ValueError(f"{name}: the fitted values are not finite in float32, so they cannot be multiplied")


def _float32(rows: NDArray[Any]) -> NDArray[np.float32]:
    if rows.dtype == np.float32:
        return rows
    if rows.size and float(np.abs(rows).max()) > _FLOAT32_MAX:
        raise ValueError("X has values beyond the range of float32, in which products are made")
    return rows.astype(np.float32)
