"""The right operand of a product: packed matrices, made when they are first asked for."""

from __future__ import annotations

import threading
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul.device import Device
from npumatmul.epilogue import Epilogue
from npumatmul.ops.packed import PackedWeight, _pack, check_activation, finish_rows, multiply_rows, native_order
from npumatmul.ops.shapes import Shapes, npu_kind
from npumatmul.ops.split import joined, split_rows
from npumatmul.plan import WeightPlan
from npumatmul.quant.schemes import Scheme, scheme_for

__all__ = ["HIGH", "HighWeight", "Weights", "chosen_scheme", "multiply", "takes_any_value"]

#: What ``precision="high"`` is called among the schemes.
HIGH = "w16a16_high"

_F16, _I8 = np.dtype(np.float16), np.dtype(np.int8)
_I4: np.dtype[Any] = np.dtype(ml_dtypes.int4)


def chosen_scheme(a: np.dtype[Any], b: np.dtype[Any], scheme: str | None, precision: str | None) -> str:
    """How plain operands, whose kinds agree, are represented.

    Parameters
    ----------
    a, b : numpy.dtype
    scheme, precision : str or None
        As given to `matmul`.

    Returns
    -------
    str
        Name of a scheme. Integers, and two float16, are multiplied exactly and need no ``precision="high"``.

    Raises
    ------
    ValueError
        If there is no such scheme or precision, or both are given.
    TypeError
        If the scheme does not take the dtypes.

    Examples
    --------
    >>> chosen_scheme(np.dtype(np.float32), np.dtype(np.float16), None, "high")
    'w16a16_high'
    """
    a, b = a.newbyteorder("="), b.newbyteorder("=")
    if precision not in (None, "high"):
        raise ValueError(f"matmul: precision is {precision!r}; it can be 'high' or None")
    if precision is not None and scheme not in (None, HIGH):
        raise ValueError(f"matmul: scheme={scheme!r} and precision={precision!r} contradict each other; give one")
    kind = npu_kind(a)
    if (precision or scheme == HIGH) and kind == "float":
        return "w16a16" if a == b == _F16 else HIGH
    if kind == "integer" and _I4 in (a, b) and a != b and scheme is None:
        return "int8"  # int4 stays int4 only where both are
    chosen = scheme_for(_I8 if b == np.uint8 else b, None if scheme == HIGH else scheme, "matmul")
    if scheme is not None:
        check_activation(_I8 if a == np.uint8 else a, chosen, f"scheme is {scheme!r}")
    return chosen.name


def takes_any_value(scheme: str, a: np.dtype[Any]) -> bool:
    """Whether rows of the left operand can be converted whatever they hold; those to be quantized must be finite."""
    return Scheme.parse(scheme).takes_any_value


class HighWeight:
    """A weight packed for ``precision="high"``.

    Parameters
    ----------
    w : ndarray, shape (N, K)
    device : Device
    """

    def __init__(self, w: NDArray[Any], device: Device) -> None:
        high, low, self._exponent = split_rows(w)
        self._packed = _pack(joined(high, low, "hlh"), "w16a16", device, column_sums=False)

    @property
    def nbytes(self) -> int:
        """Bytes of NPU memory."""
        return self._packed.nbytes

    @property
    def plan(self) -> WeightPlan | None:
        """As `PackedWeight.plan`; its K is three times that of the weight."""
        return self._packed.plan

    def close(self) -> None:
        """Give the NPU memory back."""
        self._packed.close()

    def multiply(self, a: NDArray[Any], out: NDArray[Any], epilogue: Epilogue | None) -> None:
        """Multiply rows (M, K) to (M, N); the result is finished in a second pass."""
        high, low, exponent = split_rows(a)
        product = multiply_rows(joined(high, low, "hhl"), self._packed)
        with np.errstate(over="ignore", under="ignore"):
            np.ldexp(product, -(exponent[:, np.newaxis] + self._exponent), out=product)
        finish_rows(product, out, epilogue)


class Weights:
    """The matrices of a right operand, packed one by one.

    Parameters
    ----------
    b : ndarray or PackedWeight
        A plain one is referenced until its last matrix is packed.
    a_dtype : numpy.dtype
        Of the left operand.
    scheme : str
        As from `chosen_scheme`.
    shapes : Shapes
    device : Device
    """

    def __init__(
        self, b: NDArray[Any] | PackedWeight, a_dtype: np.dtype[Any], scheme: str, shapes: Shapes, device: Device
    ) -> None:
        self.given = b if isinstance(b, PackedWeight) else None
        self._source = None if isinstance(b, PackedWeight) else shapes.matrices_of(b)
        self._a_dtype, self._scheme, self._device = a_dtype, scheme, device
        self._lock = threading.Lock()
        self._packed: dict[tuple[int, ...], PackedWeight | HighWeight] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of NPU memory of what is packed now."""
        if self.given is not None:
            return self.given.nbytes
        return sum(packed.nbytes for packed in list(self._packed.values()))

    def at(self, index: tuple[int, ...]) -> PackedWeight | HighWeight:
        """The matrix at an index of the stack; packed on first use."""
        if self.given is not None:
            return self.given
        with self._lock:
            packed = self._packed.get(index)
            if packed is None:
                assert self._source is not None
                packed = self._packed[index] = self._pack(self._source[index].T)
            return packed

    def _pack(self, w: NDArray[Any]) -> PackedWeight | HighWeight:
        w = native_order(w)
        if self._scheme == HIGH:
            return HighWeight(w, self._device)
        if w.dtype == _I4 and self._scheme == "int8":
            w = w.astype(np.int8)
        return _pack(w, self._scheme, self._device, column_sums=self._a_dtype == np.uint8)

    def drop(self, index: tuple[int, ...]) -> None:
        """Give the memory of one matrix back, unless it was packed by the user."""
        if self.given is None:
            with self._lock:
                packed = self._packed.pop(index, None)
            if packed is not None:
                packed.close()

    def close(self) -> None:
        """Give the memory of all matrices back that were not packed by the user."""
        for index in list(self._packed):
            self.drop(index)


def multiply(a: NDArray[Any], packed: PackedWeight | HighWeight, out: NDArray[Any], epilogue: Epilogue | None) -> None:
    """Multiply rows with one matrix."""
    if isinstance(packed, HighWeight):
        packed.multiply(a, out, epilogue)
    else:
        multiply_rows(a, packed, out, epilogue)
