"""Methods that an ndarray has and that give ndarrays or scalars: computed on the CPU, on the memory of the array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

__all__ = ["NdarrayMethods"]

_Axis = SupportsIndex | Sequence[SupportsIndex] | None
_Order = Literal["C", "F", "A", "K"]


class NdarrayMethods:
    """What `NpuArray` has of ndarray's methods beside those that make NpuArrays; see `numpy.ndarray` for each."""

    def numpy(self, *, writable: bool = True) -> NDArray[Any]:
        """An ndarray that shares the memory."""
        raise NotImplementedError

    # ---- reductions ------------------------------------------------------------------------------------------------

    def sum(self, axis: _Axis = None, dtype: DTypeLike | None = None, out: Any = None, **options: Any) -> Any:
        """Sum over axes; see `numpy.sum`."""
        return self._values.sum(axis, dtype, out, **options)

    def prod(self, axis: _Axis = None, dtype: DTypeLike | None = None, out: Any = None, **options: Any) -> Any:
        """Product over axes; see `numpy.prod`."""
        return self._values.prod(axis, dtype, out, **options)

    def mean(self, axis: _Axis = None, dtype: DTypeLike | None = None, out: Any = None, **options: Any) -> Any:
        """Mean over axes; see `numpy.mean`."""
        return self._values.mean(axis, dtype, out, **options)

    def std(
        self, axis: _Axis = None, dtype: DTypeLike | None = None, out: Any = None, ddof: float = 0, **options: Any
    ) -> Any:
        """Standard deviation over axes; see `numpy.std`."""
        return self._values.std(axis, dtype, out, ddof, **options)

    def var(
        self, axis: _Axis = None, dtype: DTypeLike | None = None, out: Any = None, ddof: float = 0, **options: Any
    ) -> Any:
        """Variance over axes; see `numpy.var`."""
        return self._values.var(axis, dtype, out, ddof, **options)

    def max(self, axis: _Axis = None, out: Any = None, **options: Any) -> Any:
        """Largest value over axes; see `numpy.max`."""
        return self._values.max(axis, out, **options)

    def min(self, axis: _Axis = None, out: Any = None, **options: Any) -> Any:
        """Smallest value over axes; see `numpy.min`."""
        return self._values.min(axis, out, **options)

    def argmax(self, axis: SupportsIndex | None = None, out: Any = None, *, keepdims: bool = False) -> Any:
        """Where the largest value is; see `numpy.argmax`."""
        return self._values.argmax(axis, out, keepdims=keepdims)

    def argmin(self, axis: SupportsIndex | None = None, out: Any = None, *, keepdims: bool = False) -> Any:
        """Where the smallest value is; see `numpy.argmin`."""
        return self._values.argmin(axis, out, keepdims=keepdims)

    def any(self, axis: _Axis = None, out: Any = None, **options: Any) -> Any:
        """Whether a value is true; see `numpy.any`."""
        return self._values.any(axis, out, **options)  # type: ignore[arg-type]

    def all(self, axis: _Axis = None, out: Any = None, **options: Any) -> Any:
        """Whether all values are true; see `numpy.all`."""
        return self._values.all(axis, out, **options)  # type: ignore[arg-type]

    def cumsum(self, axis: SupportsIndex | None = None, dtype: DTypeLike | None = None, out: Any = None) -> Any:
        """Running sums; see `numpy.cumsum`."""
        return self._values.cumsum(axis, dtype, out)

    def cumprod(self, axis: SupportsIndex | None = None, dtype: DTypeLike | None = None, out: Any = None) -> Any:
        """Running products; see `numpy.cumprod`."""
        return self._values.cumprod(axis, dtype, out)

    def trace(
        self, offset: SupportsIndex = 0, axis1: SupportsIndex = 0, axis2: SupportsIndex = 1,
        dtype: DTypeLike | None = None, out: Any = None,
    ) -> Any:  # fmt: skip
        """Sum of a diagonal; see `numpy.trace`."""
        return self._values.trace(offset, axis1, axis2, dtype, out)

    # ---- other values ----------------------------------------------------------------------------------------------

    def clip(self, min: ArrayLike | None = None, max: ArrayLike | None = None, out: Any = None) -> NDArray[Any]:
        """Values within limits; see `numpy.clip`."""
        clipped: NDArray[Any] = self._values.clip(min, max, out)  # type: ignore[arg-type]
        return clipped

    def round(self, decimals: SupportsIndex = 0, out: Any = None) -> NDArray[Any]:
        """Rounded values; see `numpy.round`."""
        rounded: NDArray[Any] = self._values.round(decimals, out)
        return rounded

    def conj(self) -> NDArray[Any]:
        """The values; there are no complex ones."""
        return self.numpy()

    conjugate = conj

    @property
    def real(self) -> NDArray[Any]:
        """The values, sharing the memory."""
        return self.numpy()

    # ---- other shapes ----------------------------------------------------------------------------------------------

    def ravel(self, order: _Order = "C") -> NDArray[Any]:
        """All values in one dimension, sharing the memory where they stand one behind the other."""
        return self.numpy().ravel(order)

    def flatten(self, order: _Order = "C") -> NDArray[Any]:
        """A copy of all values in one dimension."""
        return self._values.flatten(order)

    def squeeze(self, axis: _Axis = None) -> NDArray[Any]:
        """Without axes of length 1, sharing the memory."""
        squeezed: NDArray[Any] = self.numpy().squeeze(axis)  # type: ignore[arg-type]
        return squeezed

    def swapaxes(self, axis1: SupportsIndex, axis2: SupportsIndex) -> NDArray[Any]:
        """Two axes exchanged, sharing the memory."""
        swapped: NDArray[Any] = self.numpy().swapaxes(axis1, axis2)
        return swapped

    def diagonal(self, offset: SupportsIndex = 0, axis1: SupportsIndex = 0, axis2: SupportsIndex = 1) -> NDArray[Any]:
        """A diagonal; see `numpy.diagonal`."""
        return self._values.diagonal(offset, axis1, axis2)

    @property
    def flat(self) -> np.flatiter[NDArray[Any]]:
        """Iterator over all values; see `numpy.ndarray.flat`."""
        return self.numpy().flat

    # ---- choice and order ------------------------------------------------------------------------------------------

    def item(self, *index: Any) -> Any:
        """A value as a number of Python's; see `numpy.ndarray.item`."""
        return self._values.item(*index)

    def take(self, indices: ArrayLike, axis: SupportsIndex | None = None, out: Any = None, mode: Any = "raise") -> Any:
        """Values at indices along an axis; see `numpy.take`."""
        return self._values.take(indices, axis, out, mode)  # type: ignore[arg-type]

    def repeat(self, repeats: Any, axis: SupportsIndex | None = None) -> NDArray[Any]:
        """Values repeated; see `numpy.repeat`."""
        return self._values.repeat(repeats, axis)

    def nonzero(self) -> tuple[NDArray[np.intp], ...]:
        """Where values are not zero; see `numpy.nonzero`."""
        return self._values.nonzero()

    def argsort(self, axis: SupportsIndex | None = -1, kind: Any = None, **options: Any) -> NDArray[Any]:
        """Order of the values; see `numpy.argsort`."""
        return self._values.argsort(axis, kind, **options)

    def sort(self, axis: SupportsIndex = -1, kind: Any = None, **options: Any) -> None:
        """Sort in place; see `numpy.ndarray.sort`."""
        self.numpy().sort(axis, kind, **options)

    def searchsorted(self, v: Any, side: Literal["left", "right"] = "left", sorter: Any = None) -> Any:
        """Where values belong in this sorted array; see `numpy.searchsorted`."""
        return self._values.searchsorted(v, side, sorter)

    def fill(self, value: Any) -> None:
        """Set all values."""
        self.numpy().fill(value)

    def tobytes(self, order: _Order = "C") -> bytes:
        """The bytes of all values."""
        return self._values.tobytes(order)

    # ---- as a sequence ---------------------------------------------------------------------------------------------

    def __contains__(self, value: object) -> bool:
        return value in self._values

    def __complex__(self) -> complex:
        return complex(self._values)

    def __format__(self, specification: str) -> str:
        return format(self._values, specification)

    @property
    def _values(self) -> NDArray[Any]:
        return self.numpy(writable=False)
