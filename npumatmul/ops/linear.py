"""`linear`: a layer of a network in one pass."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from numpy.typing import ArrayLike, DTypeLike

from npumatmul.device.device import Device
from npumatmul.host.epilogue import Epilogue
from npumatmul.ops.matmul import matmul
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.quant.schemes import Scheme

__all__ = ["linear"]


def linear(
    x: ArrayLike,
    w: ArrayLike | PackedWeight,
    bias: ArrayLike | None = None,
    activation: str | None = None,
    *,
    dtype: DTypeLike | None = None,
    scheme: Scheme | str | None = None,
    precision: str | None = None,
    device: Device | str | None = None,
) -> Any:
    """Linear layer in one pass: ``activation(x @ w + bias)``.

    Parameters
    ----------
    x : array_like, shape (..., K)
    w : array_like, shape (K, N), or PackedWeight
    bias : array_like, shape (N,), optional
        Added in float32, before the result is converted to `dtype`; or in int32, for integers without an activation.
    activation : str, optional
        ``"relu"``, ``"gelu"``, ``"gelu_tanh"``, ``"silu"`` or ``"relu2"``, as for `Epilogue`.
    dtype : data-type, optional
        Type of the result.
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray, shape (..., N)

    Raises
    ------
    ValueError, TypeError
        As `matmul`.

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> npu.linear(np.ones((2, 3), np.float32), -np.ones((3, 2), np.float32), [1.0, 4.0], "relu")
    array([[0., 1.],
           [0., 1.]], dtype=float32)
    """
    epilogue = None if activation is None else _applying(activation)
    return matmul(
        x, w, dtype=dtype, scheme=scheme, precision=precision, epilogue=epilogue, bias=bias, device=device
    )  # fmt: skip


@lru_cache(maxsize=32)
def _applying(activation: str) -> Epilogue:
    return Epilogue(activation=activation)
