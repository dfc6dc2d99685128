"""`matmul` and `pack`: what most users need.

==================  ==================  ==========  ============================================================
a                   b                   result      computed as
==================  ==================  ==========  ============================================================
float16, float32    float16, float32    float32     products of float16, sums in float32
int8                int8                int32       exact (modulo 2**32)
float16, float32    ``pack(w, "w8a8")``  float32     int8 weight per channel, int8 rows of `a`, sums in int32
==================  ==================  ==========  ============================================================

A float32 operand is rounded to float16, so relative errors of 2**-11 per operand are to be expected; rows of `a` and
columns of `b` whose largest magnitude leaves float16's range are scaled by powers of two first, exactly, so values
neither overflow nor vanish.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device import Device, current_device
from npumatmul.placement import Placement, StoredWeight
from npumatmul.plan import WeightPlan, plan_weight
from npumatmul.quant.schemes import ActivationInput, Scheme, cast_advice, scheme_for

__all__ = ["PackedWeight", "matmul", "pack"]


class PackedWeight:
    """A right operand of `matmul` that stays on the NPU: packed and uploaded once, used again and again.

    Made by `pack`. Immutable; any thread may use it. Its memory is given back by `close`, at the end of a ``with``
    block, or when it is dropped.

    Attributes
    ----------
    shape : tuple of int
        (K, N).
    scheme : Scheme
    device : Device
    plan : WeightPlan or None
        How it is cut into tiles; None for a weight without elements.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        scheme: Scheme,
        device: Device,
        plan: WeightPlan | None,
        stored: StoredWeight | None,
    ) -> None:
        self.shape = shape
        self.scheme = scheme
        self.device = device
        self.plan = plan
        self._stored = stored

    def __repr__(self) -> str:
        state = ", closed" if self.closed else ""
        return f"PackedWeight(shape={self.shape}, scheme={self.scheme.name!r}, device={self.device.name!r}{state})"

    def __enter__(self) -> PackedWeight:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    @property
    def nbytes(self) -> int:
        """Bytes of NPU memory."""
        return 0 if self._stored is None else self._stored.nbytes

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return self.device.closed or (self._stored is not None and self._stored.closed)

    def close(self) -> None:
        """Give the NPU memory back. Closing twice is allowed."""
        if self._stored is not None:
            self._stored.close()

    def __rmatmul__(self, a: ArrayLike) -> NDArray[Any]:
        """``a @ packed``."""
        return matmul(a, self)

    # numpy arrays leave ``array @ packed`` to __rmatmul__
    __array_ufunc__ = None


def pack(
    w: ArrayLike, scheme: str | None = None, *, transposed: bool = False, device: Device | str | None = None
) -> PackedWeight:
    """Pack a weight and upload it to the NPU, to be used as the right operand of `matmul`.

    Parameters
    ----------
    w : array_like, shape (K, N), or (N, K) with `transposed`
        float16, float32 or int8, of any strides.
    scheme : str, optional
        ``"w16a16"`` (float16; the default for floats), ``"w8a8"`` (int8 per output channel, symmetric; activations
        are quantized per row when they come) or ``"int8"`` (int8 as it is; the default for int8).
    transposed : bool
        Whether `w` is given as (N, K), as PyTorch and GGUF files store weights.
    device : Device or str, optional
        The current device by default.

    Returns
    -------
    PackedWeight
        Of shape (K, N).

    Raises
    ------
    TypeError
        If the NPU cannot represent the dtype, or the scheme does not take it.
    ValueError
        If `w` is not 2-D, or there is no such scheme.
    NotFiniteError
        If a weight to be quantized holds an inf or nan.
    NpuMemoryError
        If it does not fit.

    Examples
    --------
    >>> import npumatmul as npu
    >>> w = np.eye(64, dtype=np.float32)
    >>> with npu.pack(w) as packed:
    ...     packed.shape, packed.nbytes, npu.matmul(np.ones((1, 64), np.float32), packed).sum()
    ((64, 64), 8192, np.float32(64.0))
    """
    weight = np.asarray(w)
    if weight.ndim != 2:
        raise ValueError(f"pack: a weight has 2 dimensions, (K, N); this array has shape {weight.shape}")
    if not transposed:
        weight = weight.T  # from here on (N, K): the rows are the columns of B
    chosen = scheme_for(weight.dtype, scheme, "pack")
    target = current_device(device)
    n, k = weight.shape
    if k == 0 or n == 0:
        return PackedWeight((k, n), chosen, target, None, None)
    plan = plan_weight(k, n, chosen.mm_type, target.chip, target.runtime_version)
    ready = chosen.weight_values(_native_order(weight))
    stored = Placement.of(target).store(ready.values, plan, ready.conversion, ready.row_scale, ready.column_scale)
    return PackedWeight((k, n), chosen, target, plan, stored)


def matmul(a: ArrayLike, b: ArrayLike | PackedWeight, *, device: Device | str | None = None) -> NDArray[Any]:
    """Product of two matrices on the NPU.

    Parameters
    ----------
    a : array_like, shape (M, K)
        float16, float32 or int8, of any strides.
    b : array_like, shape (K, N), or PackedWeight
        Of the same kind as `a`. A plain array is packed and uploaded anew on every call, since its contents may have
        changed; use `pack` for a weight that stays.
    device : Device or str, optional
        The current device by default; a packed weight's own device in any case.

    Returns
    -------
    ndarray, shape (M, N)
        float32 for floats, int32 for int8. See the table in this module for what is computed how.

    Raises
    ------
    TypeError
        If the NPU cannot multiply these dtypes without losing information; the message says what to cast to.
    ValueError
        If shapes do not fit.
    RknnError
        If the NPU runtime fails.

    Notes
    -----
    Int8 results are exact as long as they fit int32, and wrap around beyond as numpy's do. For floats let u = 2**-11
    and v = 2**-24; then ``|result - a @ b| <= (2u + u**2 + (K + 1) v (1 + u)**2) (|a| @ |b|)`` wherever neither an
    operand nor the result overflows or becomes subnormal.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.matmul(np.array([[1, 2]], np.int8), np.array([[3], [4]], np.int8))
    array([[11]], dtype=int32)
    """
    left = np.asarray(a)
    if isinstance(b, PackedWeight):
        return _multiply(left, b)
    right = np.asarray(b)
    _check_shapes(left, right.shape)
    scheme = scheme_for(right.dtype, None, "matmul: b")
    _activation(left, scheme, "b is " + str(right.dtype))
    with pack(right, device=device) as packed:
        return _multiply(left, packed)


def _multiply(a: NDArray[Any], packed: PackedWeight) -> NDArray[Any]:
    _check_shapes(a, packed.shape)
    scheme = packed.scheme
    given = _activation(a, scheme, f"b is packed as {scheme.name!r}")
    (m, _k), n = a.shape, packed.shape[1]
    stored = packed._stored
    if stored is None or m == 0:
        packed.device.check_usable()
        return np.zeros((m, n), scheme.result)
    out: NDArray[Any] = np.empty((m, n), scheme.result)
    rows = _native_order(a).astype(given.read_as, copy=False)
    Placement.of(packed.device).execute(rows, stored, given.conversion, given.scaling, out)
    return out


def _check_shapes(a: NDArray[Any], b_shape: tuple[int, ...]) -> None:
    if a.ndim != 2 or len(b_shape) != 2:
        raise ValueError(f"matmul: a and b must have 2 dimensions, got shapes {a.shape} and {b_shape}")
    if a.shape[1] != b_shape[0]:
        hint = ""
        if a.shape[1] == b_shape[1]:
            hint = "; b looks transposed: use b.T, or pack(w, transposed=True) for a weight stored as (N, K)"
        raise ValueError(
            f"matmul: a has K = {a.shape[1]} columns but b has {b_shape[0]} rows (shapes {a.shape} and {b_shape}){hint}"
        )


def _activation(a: NDArray[Any], scheme: Scheme, because: str) -> ActivationInput:
    dtype = a.dtype.newbyteorder("=")
    if dtype not in scheme.activations:
        accepted = " or ".join(map(str, scheme.activations))
        if dtype in (np.float16, np.float32, np.int8):
            raise TypeError(f"matmul: {because}, so a has to be {accepted}, not {dtype}; cast one of them explicitly")
        raise TypeError(f"matmul: a: {cast_advice(dtype)}")
    return scheme.activations[dtype]


def _native_order(array: NDArray[Any]) -> NDArray[Any]:
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
