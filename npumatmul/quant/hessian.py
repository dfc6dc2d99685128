"""What calibration activations say about a weight's errors: the second moments that GPTQ works with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.quant.functions import float_array
from npumatmul.quant.meter import Meter, Share
from npumatmul.quant.systems import cholesky, factor_cost, solve, solve_cost

__all__ = ["Hessian"]


class Hessian:
    """Second moments of activations, added up batch by batch.

    The squared error that a changed weight makes over all activations seen is ``e @ matrix @ e`` per row e of the
    change. It takes K * K numbers however many activations are added; a second K * K where references are given.

    Parameters
    ----------
    features : int
        K.
    dtype : dtype
        float64, or float32, which halves memory and time; of the products and of the sums.

    Attributes
    ----------
    features : int
    samples : int
        Rows seen.
    matrix : ndarray, shape (K, K)
        Sum of ``outer(x, x)`` over rows x.
    mean, reference_mean : ndarray, shape (K,)
        Of rows and of their references; zeros before anything is added.

    Examples
    --------
    >>> hessian = Hessian(2)
    >>> hessian.add(np.array([[1.0, 2.0], [0.0, 1.0]]))
    >>> hessian.matrix, hessian.samples
    (array([[1., 2.],
           [2., 5.]]), 2)
    """

    def __init__(self, features: int, dtype: DTypeLike = np.float64) -> None:
        if features < 1:
            raise ValueError(f"Hessian: features is 1 or more, not {features}")
        if np.dtype(dtype) not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"Hessian: dtype is float32 or float64, not {np.dtype(dtype)}")
        self.features = int(features)
        self.samples = 0
        self.matrix: NDArray[Any] = np.zeros((self.features, self.features), dtype)
        self._drift: NDArray[Any] | None = None  # sum of outer(reference - x, x)
        self._sum = np.zeros(self.features)
        self._reference_sum = np.zeros(self.features)

    @classmethod
    def from_sums(cls, matrix: ArrayLike, samples: int, drift: ArrayLike | None = None) -> Hessian:
        """Make one of sums that were added up elsewhere; its means stay zeros.

        Parameters
        ----------
        matrix : array_like, shape (K, K)
            Sum of ``outer(x, x)`` over rows x.
        samples : int
            Number of rows.
        drift : array_like, shape (K, K), optional
            Sum of ``outer(reference - x, x)``, where there are references.

        Returns
        -------
        Hessian
            In float64.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        NotFiniteError
            If a sum is inf or nan.

        Examples
        --------
        >>> Hessian.from_sums([[1, 2], [2, 5]], 2)
        Hessian(2, samples=2)
        """
        sums = [
            float_array(each, "Hessian.from_sums").astype(np.float64) for each in (matrix, drift) if each is not None
        ]
        shape = sums[0].shape
        if len(shape) != 2 or any(each.shape != (shape[0], shape[0]) for each in sums):
            raise ValueError(f"Hessian.from_sums: sums are of shape (K, K), not {[each.shape for each in sums]}")
        if not all(np.isfinite(each).all() for each in sums):
            raise NotFiniteError("Hessian.from_sums: a sum is inf or nan")
        result = cls(shape[0])
        result.matrix, result.samples = sums[0], int(samples)
        result._drift = sums[1] if len(sums) > 1 else None
        return result

    def __repr__(self) -> str:
        reference = ", with references" if self.has_reference else ""
        return f"Hessian({self.features}, samples={self.samples}{reference})"

    @property
    def has_reference(self) -> bool:
        """Whether references were given."""
        return self._drift is not None

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean activation."""
        return self._sum / max(self.samples, 1)

    @property
    def reference_mean(self) -> NDArray[np.float64]:
        """Mean reference."""
        return self._reference_sum / max(self.samples, 1)

    def add(self, x: ArrayLike, x_reference: ArrayLike | None = None) -> None:
        """Add activations.

        Parameters
        ----------
        x : array_like, shape (..., K)
            What the weight will meet: after any transform, and with the errors that quantized layers before it make
            where those are to be made up for.
        x_reference : array_like, of the shape of `x`, optional
            The same activations in the model without quantization, equally transformed. The weight is then fitted to
            ``w @ x_reference`` (asymmetric calibration); `x` itself by default.

        Raises
        ------
        ValueError
            If the shapes do not fit.
        NotFiniteError
            If an activation is inf or nan; nothing was added.
        """
        rows = self._rows(x, "x")
        reference = None if x_reference is None else self._rows(x_reference, "x_reference")
        if reference is not None and reference.shape != rows.shape:
            raise ValueError(f"Hessian.add: x has {len(rows)} rows, x_reference {len(reference)}")
        if reference is not None:
            if self._drift is None:
                self._drift = np.zeros_like(self.matrix)
            self._drift += (reference - rows).T @ rows
        self.matrix += rows.T @ rows
        self.samples += len(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._reference_sum += (rows if reference is None else reference).sum(axis=0, dtype=np.float64)

    def damped(self, damping: float) -> NDArray[np.float64]:
        """The matrix with `damping` times its mean diagonal added to the diagonal; 1 where a feature never occurred.

        Returns
        -------
        ndarray of float64, shape (K, K)
            Symmetric, a new array.

        Raises
        ------
        ValueError
            If `damping` is negative or not finite.
        """
        if not (np.isfinite(damping) and damping >= 0):
            raise ValueError(f"damping is a number of 0 or more, not {damping}")
        matrix = self.matrix.astype(np.float64)
        matrix += matrix.T
        matrix *= 0.5
        diagonal = matrix.diagonal().copy()
        mean = diagonal.mean()
        dead = diagonal <= 0
        matrix[np.diag_indices_from(matrix)] += damping * mean
        matrix[dead, dead] = mean if mean > 0 else 1.0
        return matrix

    def target(
        self, w: ArrayLike, damping: float = 0.01, strength: float = 1.0, progress: Share | None = None
    ) -> NDArray[np.float64]:
        """The float weight that does best with the activations seen.

        Without references that is the weight itself. With them it is the least-squares solution of
        ``target @ x = w @ x_reference``, drawn towards `w` by the damping.

        Parameters
        ----------
        w : array_like, shape (N, K)
        damping : float
            As for `damped`.
        strength : float
            Part of the way from `w` to the solution, 0 to 1; less than 1 follows few samples less closely.
        progress : callable, optional
            Called with the share that is done, 0 to 1, about every second.

        Returns
        -------
        ndarray of float64, shape (N, K)

        Raises
        ------
        ValueError
            If an argument is out of range, or the matrix is singular without damping.
        """
        weight = self._changes(w, "target")
        if not 0 <= strength <= 1:
            raise ValueError(f"Hessian.target: strength lies in 0..1, not {strength}")
        if self._drift is None or strength == 0:
            return weight
        k, drift = self.features, self._drift.astype(np.float64)
        turned = len(weight) <= k  # of both orders the one with fewer right-hand sides
        right = (weight @ drift).T if turned else drift.T
        meter = Meter(progress, factor_cost(k) + solve_cost(k, right.shape[1]))
        try:
            solution = solve(cholesky(self.damped(damping), meter), right, meter)
        except np.linalg.LinAlgError:
            raise ValueError(
                f"Hessian.target: the matrix is singular with damping={damping}; add more activations or raise damping"
            ) from None
        change = solution.T if turned else weight @ solution.T
        result: NDArray[np.float64] = weight + strength * change
        return result

    def error(self, change: ArrayLike, progress: Share | None = None) -> NDArray[np.float64]:
        """Sum over the activations of the squared error that changes of a weight make.

        Parameters
        ----------
        change : array_like, shape (N, K)
            Weight minus what stands for it.
        progress : callable, optional
            Called with the share that is done, 0 to 1, about every second.

        Returns
        -------
        ndarray of float64, shape (N,)
            ``(change @ x)**2`` of each row, summed over all rows x.
        """
        rows = self._changes(change, "error")
        matrix, result = self.matrix.astype(np.float64), np.empty(len(rows))
        meter = Meter(progress, rows.size * self.features)
        for part in meter.slices(len(rows), self.features**2):
            result[part] = np.einsum("nk,nk->n", rows[part] @ matrix, rows[part])
        return result

    def _changes(self, w: ArrayLike, method: str) -> NDArray[np.float64]:
        rows = float_array(w, f"Hessian.{method}").astype(np.float64, copy=False)
        if rows.ndim != 2 or rows.shape[1] != self.features:
            raise ValueError(f"Hessian.{method}: takes an array of shape (N, {self.features}), not {rows.shape}")
        return rows

    def _rows(self, x: ArrayLike, name: str) -> NDArray[Any]:
        values = float_array(x, "Hessian.add")
        if values.ndim == 0 or values.shape[-1] != self.features:
            raise ValueError(
                f"Hessian.add: the last axis of {name} has to be the {self.features} features; "
                f"the shape is {values.shape}"
            )
        if not np.isfinite(values).all():
            raise NotFiniteError(f"Hessian.add: {name} holds an inf or nan; nothing was added")
        return values.reshape(-1, self.features).astype(self.matrix.dtype, copy=False)
