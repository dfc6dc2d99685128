"""Kernels between rows and fitted points: their products on the NPU, functions of them on the CPU in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.gaussian_process import kernels as gp

from npumatmul.sklearn.affine import Affine
from npumatmul.sklearn.distances import SquaredDistances
from npumatmul.sklearn.ranges import Float64
from npumatmul.sklearn.schemes import HIGH

__all__ = ["PAIRWISE", "Kernel", "pairwise_kernel", "process_kernel"]

#: Names of kernels as scikit-learn's `pairwise_kernels` has them.
PAIRWISE = ("rbf", "linear", "poly", "polynomial", "sigmoid", "cosine")


class Kernel:
    """A kernel between rows and points.

    Attributes
    ----------
    products : list of Affine
        What the NPU multiplies.
    """

    def __init__(self, products: list[Affine], compute: Callable[[NDArray[Any]], Float64]) -> None:
        self.products, self._compute = products, compute

    def __call__(self, rows: NDArray[Any]) -> Float64:
        """The kernel, ``(M, points)``."""
        return self._compute(rows)


def pairwise_kernel(
    metric: str, points: NDArray[Any], device: Any, *, gamma: float | None = None, coef0: float = 1.0, degree: float = 3
) -> Kernel:
    """A kernel by its name in scikit-learn.

    Raises
    ------
    TypeError
        If it is made of no products.
    """
    points = np.asarray(points, np.float64)
    width = 1.0 / points.shape[1] if gamma is None else float(gamma)
    if metric == "rbf":
        return _of_distances(points, device, lambda squares: np.exp(-width * squares, out=squares))
    if metric == "cosine":
        points = _unit(points)
    elif metric not in ("linear", "poly", "polynomial", "sigmoid"):
        raise TypeError(
            f"the kernel {metric!r} is made of no products; those that are: rbf, linear, poly, sigmoid, cosine"
        )
    product = Affine(f"{metric} kernel", points.T, None, scheme=HIGH, device=device)

    def compute(rows: NDArray[Any]) -> Float64:
        if metric == "cosine":
            rows = _unit(np.asarray(rows, np.float64))
        made = np.asarray(product(rows), np.float64)
        if metric in ("linear", "cosine"):
            return made
        made = width * made + coef0
        result: Float64 = np.tanh(made) if metric == "sigmoid" else made**degree
        return result

    return Kernel([product], compute)


def process_kernel(kernel: Any, points: NDArray[Any], device: Any) -> Kernel:
    """A kernel of Gaussian processes: sums, products and powers of those that are made of products.

    Raises
    ------
    TypeError
        If there is another one in it.
    """
    if isinstance(kernel, gp.Sum | gp.Product):
        parts = [process_kernel(each, points, device) for each in (kernel.k1, kernel.k2)]
        joined: Any = np.add if isinstance(kernel, gp.Sum) else np.multiply
        products = [*parts[0].products, *parts[1].products]
        return Kernel(products, lambda rows: joined(parts[0](rows), parts[1](rows)))
    if isinstance(kernel, gp.Exponentiation):
        base = process_kernel(kernel.kernel, points, device)
        return Kernel(base.products, lambda rows: base(rows) ** kernel.exponent)
    count = len(points)
    kind = type(kernel)
    if kind is gp.ConstantKernel:
        return Kernel([], lambda rows: np.full((len(rows), count), kernel.constant_value, np.float64))
    if kind is gp.WhiteKernel:  # noise of points, which others do not share
        return Kernel([], lambda rows: np.zeros((len(rows), count)))
    if kind is gp.DotProduct:
        product = Affine("dot product", np.asarray(points, np.float64).T, None, scheme=HIGH, device=device)
        added = kernel.sigma_0**2
        return Kernel([product], lambda rows: np.asarray(product(rows), np.float64) + added)
    if kind in (gp.RBF, gp.Matern, gp.RationalQuadratic):
        function = _FUNCTIONS[kind](kernel)
        return _of_distances(np.asarray(points, np.float64), device, function, kernel.length_scale)
    raise TypeError(
        f"the kernel {kernel!r} is made of no products; sums, products and powers of RBF, Matern, RationalQuadratic, "
        "DotProduct, ConstantKernel and WhiteKernel are"
    )


def _of_distances(
    points: Float64, device: Any, function: Callable[[Float64], Float64], length_scale: Any = 1.0
) -> Kernel:
    squares = SquaredDistances("distances", points / length_scale, device=device)

    def compute(rows: NDArray[Any]) -> Float64:
        made = np.empty((len(rows), len(points)))
        for part in squares.pieces(rows):
            made[part] = function(squares.of(squares.centred(rows[part] / length_scale)))
        return made

    return Kernel([squares.product], compute)


def _rbf(kernel: Any) -> Callable[[Float64], Float64]:
    return lambda squares: np.exp(-0.5 * squares)


def _quadratic(kernel: Any) -> Callable[[Float64], Float64]:
    alpha = kernel.alpha  # its length scale is a factor of the distances
    return lambda squares: (1 + squares / (2 * alpha)) ** -alpha


def _matern(kernel: Any) -> Callable[[Float64], Float64]:
    nu = kernel.nu

    def compute(squares: Float64) -> Float64:
        if nu == np.inf:
            return np.exp(-0.5 * squares)
        distances = np.sqrt(squares)
        if nu == 0.5:
            return np.exp(-distances)
        scaled: Float64 = np.sqrt(2 * nu) * distances
        more: Float64 = np.exp(-scaled)
        more *= 1 + scaled if nu == 1.5 else 1 + scaled + scaled**2 / 3
        return more

    if nu not in (0.5, 1.5, 2.5, np.inf):
        raise TypeError(f"the kernel {kernel!r} has nu = {nu}; 0.5, 1.5, 2.5 and inf are supported")
    return compute


_FUNCTIONS: Mapping[type, Callable[[Any], Callable[[Float64], Float64]]] = {
    gp.RBF: _rbf,
    gp.Matern: _matern,
    gp.RationalQuadratic: _quadratic,
}


def _unit(rows: Float64) -> Float64:
    lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    made: Float64 = rows / np.where(lengths > 0, lengths, 1.0)
    return made
