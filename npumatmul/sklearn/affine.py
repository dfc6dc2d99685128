"""Products with a fitted weight: rows to ``function(rows @ weight + bias)``."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul.sklearn.ranges import Float64, Ranges

__all__ = ["Affine", "UnscaledError"]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
#: A feature that no example says anything of is taken to vary by about one. Where such a feature has a value beyond
#: this, fewer than two of the row's 127 steps would be left to another one.
MAX_SIZE = 64.0
#: The share of a row's typical result that rounding the row to eight bits may take.
MAX_LOSS = 0.15


class UnscaledError(ValueError):
    """Features of a row differ so much in size that eight bits would lose the small ones."""


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
        Of what the rows hold: they are folded into weight and bias.
    center : ndarray of float, shape (K,), optional
        What is taken from rows in float64 before they are rounded; bias is that of rows which it was taken from.
    guards : bool
        Whether rows are refused that eight bits would lose, each by itself; of products with the features. With
        `ranges` no row is refused: those that are unlike the example are multiplied in two terms.
    activation : {"relu"}, optional
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
        activation: Literal["relu"] | None = None,
    ) -> None:
        w = np.asarray(weight, np.float64)
        b = None if bias is None else np.asarray(bias, np.float64)
        unit = None
        if ranges is not None:
            if len(ranges.middle) != len(w):
                raise ValueError(f"{name}: ranges of {len(ranges.middle)} values for {len(w)}")
            middle = ranges.middle if center is None else ranges.middle - np.asarray(center, np.float64)
            b = middle @ w + (0.0 if b is None else b)
            unit = ranges.units(w)
            w = unit[:, None] * w
            center = ranges.middle
        _check_finite(name, w, b)
        self.name, self.scheme, self.activation = name, scheme, activation
        self._center = None if center is None else np.asarray(center, np.float64)
        self._unit = unit
        self._unknown = slice(None) if ranges is None else ranges.spread == 0
        self._weight_unknown = None if ranges is None or unit is None else (w / unit[:, None])[self._unknown]
        self._bias = None if b is None else b.astype(np.float32)
        self._norms = (w * w).sum(axis=1) if scheme == "w8a8" and (guards or ranges is not None) else None
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
        if self._center is not None:
            rows = rows - self._center
        given = rows
        if self._unit is not None:
            rows = rows / self._unit
        lost = None if self._norms is None else self._lost(given, rows, self._norms)
        if lost is not None and self._unit is None and lost.any():
            raise UnscaledError(
                f"{self.name}: in scheme 'w8a8' a row has one scale, and features of row {int(lost.argmax())} of X "
                f"differ so much in size that the small ones would be lost; give offload an example_input, whose "
                f"ranges are folded into the weights, or scale the features (StandardScaler), or use scheme 'w16a16'"
            )
        epilogue = None
        if self._bias is not None or self.activation is not None:
            epilogue = npu.Epilogue(bias=self._bias, activation=self.activation)
        made: NDArray[np.float32] = npu.matmul(_float32(rows), self.packed, epilogue=epilogue)
        if lost is not None and lost.any():
            made[lost] = self._in_two_terms(given[lost], rows[lost])
        return made

    def _lost(self, given: NDArray[Any], rows: NDArray[Any], norms: Float64) -> Any:
        """Which rows eight bits would lose: of each it is said by itself."""
        r = np.asarray(rows, np.float64)
        largest = np.abs(r).max(axis=1, initial=0.0)
        typical = np.sqrt((r * r) @ norms)
        lost = largest / 127 / np.sqrt(12) * np.sqrt(norms.sum()) > MAX_LOSS * typical
        lost &= typical > 0
        lost |= np.abs(given[:, self._unknown]).max(axis=1, initial=0.0) > MAX_SIZE
        return lost

    def _in_two_terms(self, given: NDArray[Any], rows: NDArray[Any]) -> NDArray[np.float32]:
        """Rows as sums of two of eight bits, the second one of what the first leaves.

        What is far away in features whose range nobody knows is multiplied by the CPU: their weights in eight bits were
        rounded for small values.
        """
        far = np.where(np.abs(given[:, self._unknown]) > MAX_SIZE, given[:, self._unknown], 0.0)
        rest = np.array(rows, np.float64)
        rest[:, self._unknown] = np.where(far != 0, 0.0, rest[:, self._unknown])
        near = _float32(rest)
        unit = np.abs(near).max(axis=1, keepdims=True) / np.float32(127)
        coarse = np.rint(near / np.where(unit > 0, unit, np.float32(1))) * unit
        terms: NDArray[np.float32] = npu.matmul(np.concatenate([coarse, near - coarse]), self.packed)
        made = terms[: len(near)] + terms[len(near) :] + (far @ self._weight_unknown).astype(np.float32)
        if self._bias is not None:
            made += self._bias
        return np.maximum(made, np.float32(0)) if self.activation == "relu" else made


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
