"""`RMSNorm` and `LayerNorm`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.host.layers import layer_norm, rms_norm
from npumatmul.nn.module import Module, Take, check_number, check_size, float32_of, initial, rounded_to
from npumatmul.nn.product import Float32, Pack

__all__ = ["LayerNorm", "RMSNorm"]

_F32 = np.dtype(np.float32)


class RMSNorm(Module):
    """Divide rows by the root of their mean square, and multiply them by a weight.

    Parameters
    ----------
    dim : int
        Width of rows.
    eps : float
        Added to the mean square.
    offset : float
        Added to the weight: 1.0 for the gemma family, whose files hold what the factor has beyond one.

    Raises
    ------
    ValueError
        If `dim` is not positive, or a constant not finite.

    Notes
    -----
    The parameter is ``weight``, ``(dim,)``. With v = 2**-24, of finite rows whose squares do not overflow, results are
    off by at most (dim / 2 + 6) v of themselves; a float16 result is rounded once more, by 2**-11 of itself.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> nn.RMSNorm(4, eps=0.0)(np.array([[1, -1, 1, -1], [2, 0, 0, 0]], np.float32))
    array([[ 1., -1.,  1., -1.],
           [ 2.,  0.,  0.,  0.]], dtype=float32)
    """

    def __init__(self, dim: int, eps: float = 1e-6, *, offset: float = 0.0) -> None:
        check_size("RMSNorm", dim=dim)
        check_number("RMSNorm", eps=eps, offset=offset)
        self.weight: Float32 = initial(1.0 - offset, dim)
        self._eps, self._offset, self._dim = np.float32(eps), np.float32(offset), dim
        self._factor: Float32 = initial(1.0, dim)
        self._share = np.float32(1.0 / dim)

    @property
    def recordable(self) -> bool:
        """Always."""
        return True

    def __repr__(self) -> str:
        offset = f", offset={float(self._offset):g}" if self._offset else ""
        return f"RMSNorm({self._dim}, eps={float(self._eps):g}{offset})"

    def load_own(self, names: list[str], take: Take, pack: Pack | None, path: str) -> None:
        """Load the weight."""
        super().load_own(names, take, pack, path)
        self._factor = self.weight + self._offset

    def __call__(self, x: Any) -> Any:
        """Normalize rows.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (..., dim)

        Returns
        -------
        ndarray or NpuArray, shape (..., dim)
            A new array, of the dtype of `x`.

        Raises
        ------
        ValueError
            If rows have another width.
        """
        if type(x) is not np.ndarray or x.dtype != _F32:
            return self._in_float32(x)
        if x.shape[-1:] != (self._dim,):
            raise ValueError(f"{self!r} takes (..., {self._dim}); the input has shape {x.shape}")
        return rms_norm(x, self._factor, self._share, self._eps)

    def _in_float32(self, x: Any) -> Any:
        return _in_float32(self, x)


class LayerNorm(Module):
    """Subtract the mean of rows, divide them by their standard deviation, multiply by a weight and add a bias.

    Parameters
    ----------
    dim : int
        Width of rows.
    eps : float
        Added to the variance.
    bias : bool
        Whether there is a bias.

    Raises
    ------
    ValueError
        If `dim` is not positive, or `eps` not finite.

    Notes
    -----
    Parameters are ``weight`` and ``bias``, ``(dim,)``. With v = 2**-24, A the largest magnitude of a row and s its
    standard deviation, results are off by at most (dim + 8) v A / s, times the weight's magnitude, and by v of the
    bias; a float16 result is rounded once more, by 2**-11 of itself.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> nn.LayerNorm(4, eps=0.0)(np.array([3, 1, 3, 1], np.float32))
    array([ 1., -1.,  1., -1.], dtype=float32)
    """

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        check_size("LayerNorm", dim=dim)
        check_number("LayerNorm", eps=eps)
        self.weight: Float32 = initial(1.0, dim)
        self.bias: Float32 | None = initial(0.0, dim) if bias else None
        self._eps, self._dim, self._share = np.float32(eps), dim, np.float32(1.0 / dim)

    @property
    def recordable(self) -> bool:
        """Always."""
        return True

    def __repr__(self) -> str:
        return f"LayerNorm({self._dim}, eps={float(self._eps):g}, bias={self.bias is not None})"

    def __call__(self, x: Any) -> Any:
        """Normalize rows.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (..., dim)

        Returns
        -------
        ndarray or NpuArray, shape (..., dim)
            A new array, of the dtype of `x`.

        Raises
        ------
        ValueError
            If rows have another width.
        """
        if type(x) is not np.ndarray or x.dtype != _F32:
            return self._in_float32(x)
        if x.shape[-1:] != (self._dim,):
            raise ValueError(f"{self!r} takes (..., {self._dim}); the input has shape {x.shape}")
        for each in (self.weight, self.bias):
            if each is not None and each.shape != (self._dim,):
                raise ValueError(
                    f"{self!r}: weight and bias have {self._dim} values; one was set of shape {each.shape}"
                )
        return layer_norm(x, self.weight, self.bias, self._share, self._eps)

    def _in_float32(self, x: Any) -> Any:
        return _in_float32(self, x)


def _in_float32(module: Any, x: Any) -> Any:
    """Call a layer that computes in float32 with anything else."""
    if type(x) is not np.ndarray:
        return module._of_other(x)
    y: NDArray[Any] = module(float32_of(x, repr(module)))
    return rounded_to(y, x.dtype)
