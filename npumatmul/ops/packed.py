"""`pack` and `PackedWeight`: right operands that stay on the NPU."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.activation import Activation
from npumatmul.device import Device, current_device
from npumatmul.epilogue import Epilogue
from npumatmul.ops.packed_base import PackedBase
from npumatmul.placement import Placement, StoredWeight, TileRow, WeightSlice
from npumatmul.plan import WeightPlan, plan_weight
from npumatmul.quant.schemes import SCHEMES, Scheme, cast_advice, scheme_for

__all__ = ["PackedWeight", "finish_rows", "multiply_rows", "native_order", "pack"]

#: What uint8 values are shifted by to become int8; the products are corrected exactly.
UINT8_SHIFT = 128


class PackedWeight(PackedBase):
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
    zero_point : int
        What the stored values lack: 128 for uint8 weights, which are stored as int8, else 0.
    column_sums : ndarray of int32, shape (N,), or None
        Sums over K of integer weights (modulo 2**32), with which uint8 activations are corrected.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        scheme: Scheme,
        device: Device,
        plan: WeightPlan | None,
        stored: StoredWeight | None,
        zero_point: int = 0,
        column_sums: NDArray[np.int32] | None = None,
    ) -> None:
        self.shape = shape
        self.scheme = scheme
        self.device = device
        self.plan = plan
        self.zero_point = zero_point
        self.column_sums = column_sums
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
    def stored(self) -> StoredWeight | None:
        """What is in device memory; None for a weight without elements."""
        return self._stored

    @property
    def closed(self) -> bool:
        """Whether the memory was given back."""
        return self.device.closed or (self._stored is not None and self._stored.closed)

    def close(self) -> None:
        """Give the NPU memory back. Closing twice is allowed."""
        if self._stored is not None:
            self._stored.close()


def pack(
    w: ArrayLike, scheme: str | None = None, *, transposed: bool = False, device: Device | str | None = None
) -> PackedWeight:
    """Pack a weight and upload it to the NPU, to be used as the right operand of `matmul`.

    Parameters
    ----------
    w : array_like, shape (K, N), or (N, K) with `transposed`
        float16, float32, bfloat16, int8, uint8 or int4 (`ml_dtypes.int4`), of any strides.
    scheme : str, optional
        ``"w16a16"`` (float16; the default for floats), ``"w8a8"`` (int8 per output channel, symmetric; activations
        are quantized per row when they come), ``"int8"`` (int8 as it is, uint8 shifted by 128; the default for
        those) or ``"int4"`` (the default for int4; on chips without int4 products they become int8, exactly).
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
    return _pack(weight if transposed else weight.T, scheme, current_device(device), column_sums=True)


def _pack(weight: NDArray[Any], scheme: str | None, target: Device, column_sums: bool) -> PackedWeight:
    """Pack a weight given as (N, K): its rows are the columns of B."""
    weight = native_order(weight)
    zero_point = 0
    if weight.dtype == np.uint8 and scheme in (None, "int8"):
        weight, zero_point = shifted(weight), UINT8_SHIFT
    chosen = scheme_for(weight.dtype, scheme, "pack")
    if chosen.name == "int4" and chosen.mm_type not in target.chip.limits:
        weight, chosen = weight.astype(np.int8), SCHEMES["int8"]
    n, k = weight.shape
    sums: NDArray[np.int32] | None = None
    if column_sums and weight.dtype == np.int8:
        sums = (weight.sum(axis=1, dtype=np.int64) + zero_point * k).astype(np.int32)
    if k == 0 or n == 0:
        return PackedWeight((k, n), chosen, target, None, None, zero_point, sums)
    plan = plan_weight(k, n, chosen.mm_type, target.chip, target.runtime_version)
    while (parts := chosen.k_parts(weight, plan)) > len(plan.k_spans):
        plan = plan_weight(k, n, chosen.mm_type, target.chip, target.runtime_version, parts)
    ready = chosen.weight_values(weight)
    rows = [
        TileRow(span, ready.values[:, span.start : span.start + span.length], ready.conversion, ready.row_scale)
        for span in plan.k_spans
    ]
    slices = [
        WeightSlice(span, tiles=index, column_scale=ready.column_scale) for index, span in enumerate(plan.k_spans)
    ]
    stored = Placement.of(target).store(plan, rows, slices)
    return PackedWeight((k, n), chosen, target, plan, stored, zero_point, sums)


def multiply_rows(
    a: NDArray[Any], packed: PackedWeight, out: NDArray[Any] | None = None, epilogue: Epilogue | None = None
) -> NDArray[Any]:
    """Multiply a matrix with a packed weight.

    Parameters
    ----------
    a : ndarray, shape (M, K)
    packed : PackedWeight
    out : ndarray, shape (M, N), optional
        Its rows contiguous: of ``packed.scheme.result``, or float where the scheme's result or the epilogue is. It
        shares no memory with `a`.
    epilogue : Epilogue, optional
        Of the dtype of `out`.

    Returns
    -------
    ndarray, shape (M, N)
        `out`; by default of ``packed.scheme.result``, or what the epilogue makes.

    Raises
    ------
    TypeError
        If the scheme does not take the dtype of `a`.
    """
    a = native_order(a)
    correction = packed.column_sums if a.dtype == np.uint8 else None
    if correction is not None:
        a = shifted(a)
    scheme = packed.scheme
    given = activation(a.dtype, scheme, f"b is packed as {scheme.name!r}")
    m, n = a.shape[0], packed.shape[1]
    if out is None:
        out = np.empty((m, n), scheme.result if epilogue is None else epilogue.dtype)
    corrected = correction is not None or packed.zero_point != 0
    if packed.stored is None or m == 0:
        packed.device.check_usable()
        sums = np.zeros((m, n), scheme.result)
    elif corrected and epilogue is not None:
        sums = np.empty((m, n), scheme.result)
    else:
        sums = out
    if packed.stored is not None and m > 0:
        rows = a.astype(given.read_as, copy=False)
        Placement.of(packed.device).execute(rows, packed.stored, given, sums, epilogue if sums is out else None)
    if packed.zero_point:  # sums of rows are at most 128 K in magnitude: they fit where the products do
        sums += (packed.zero_point * a.sum(axis=1, dtype=np.int64, keepdims=True)).astype(np.int32)
    if correction is not None:
        with np.errstate(over="ignore"):
            sums += correction * np.int32(UINT8_SHIFT)
    if sums is not out:
        finish_rows(sums, out, epilogue)
    return out


def finish_rows(sums: NDArray[Any], out: NDArray[Any], epilogue: Epilogue | None) -> None:
    """Finish sums that stand in memory of their own in `out`, in a second pass."""
    if epilogue is not None:
        epilogue.apply(sums, out)
        return
    with np.errstate(over="ignore"):  # beyond float16's range a rounded result is an infinity, as in numpy
        np.copyto(out, sums, casting="same_kind")


def activation(dtype: np.dtype[Any], scheme: Scheme, because: str) -> Activation:
    """What happens to activations of a dtype, or a `TypeError` that says what to cast."""
    if dtype not in scheme.activations:
        accepted = " or ".join(map(str, scheme.activations))
        if any(dtype in other.activations for other in SCHEMES.values()) or dtype == np.uint8:
            raise TypeError(f"matmul: {because}, so a has to be {accepted}, not {dtype}; cast one of them explicitly")
        raise TypeError(f"matmul: a: {cast_advice(dtype)}")
    return scheme.activations[dtype]


def shifted(array: NDArray[Any]) -> NDArray[Any]:
    """Return uint8 values less 128, as int8."""
    values: NDArray[Any] = np.bitwise_xor(array, np.uint8(UINT8_SHIFT)).view(np.int8)
    return values


def native_order(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array in the byte order of the machine; a copy only where it is not."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
