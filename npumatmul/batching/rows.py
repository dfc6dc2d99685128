"""What rows of a batch are: arrays of one shape and dtype, several such by name, or anything that goes into a list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from npumatmul.batching.work import Rows, Work
from npumatmul.errors import NotFiniteError

__all__ = ["Form"]


class Form:
    """Checks rows, one by one, and puts them behind one another.

    Parameters
    ----------
    work : Work
    called : str
        What the user called.
    shape : tuple of int, optional
        Of a row; by default what the work says, else that of the first row.
    dtype : data-type, optional
        The same.
    listed : bool
        Whether rows are anything, and go to the work as a list.
    check : callable, optional
        Is given each row and raises where it is unfit.
    """

    def __init__(
        self,
        work: Work,
        called: str,
        shape: tuple[int, ...] | int | None = None,
        dtype: DTypeLike | None = None,
        listed: bool = False,
        check: Callable[[Any], object] | None = None,
    ) -> None:
        if listed and (shape is not None or dtype is not None or work.place is not None):
            raise TypeError(f"{called}: rows that go into a list have neither shape nor dtype")
        if check is not None and not callable(check):
            raise TypeError(f"{called}: check is called with each row, and {type(check).__name__} cannot be")
        self._called, self._work, self._check = called, work, check
        self.listed = listed
        given = (shape,) if isinstance(shape, int) else shape
        self._shape = work.shape if given is None else tuple(int(each) for each in given)
        if work.shape is not None and self._shape != work.shape and work.place is not None:
            raise ValueError(f"{called}: rows of {work.name} have shape {work.shape}, not {self._shape}")
        self._dtype = work.dtype if dtype is None else np.dtype(dtype)
        #: Of rows of arrays by name, from the first one on: shape and dtype of each.
        self._named: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] | None = None
        self._plain: tuple[tuple[int, ...], np.dtype[Any]] | None = None
        if self._shape is not None and self._dtype is not None:
            self._plain = self._shape, self._dtype

    @property
    def known(self) -> bool:
        """Whether it is known what rows are."""
        return self.listed or self._plain is not None or self._named is not None

    def fitted(self, row: Any) -> Any:
        """A copy of a row as it will be computed; the first one says what is not known of rows.

        Raises
        ------
        ValueError, TypeError
            If it has another shape, or values that the rows' dtype cannot hold.
        NotFiniteError
            If a float is not finite, which would spoil the others where values are quantized.
        """
        if self._check is not None:
            self._check(row)
        if self.listed:
            return row
        if isinstance(row, Mapping) and self._plain is None:
            return self._fitted_by_name(row)
        if self._named is not None:
            raise TypeError(f"{self._called}: a row has arrays by the names {', '.join(self._named)}")
        values = self._array(row, "a row")
        if self._plain is None:
            self._plain = self._formed(values, self._shape, self._dtype)
        return self._cast(values, *self._plain, "a row")

    def _fitted_by_name(self, row: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
        arrays = {name: self._array(each, f"{name!r} of a row") for name, each in row.items()}
        formed = self._named
        if formed is None:
            formed = {name: self._formed(each, None, None) for name, each in arrays.items()}
        if set(formed) != set(arrays):
            given, needed = ", ".join(map(repr, arrays)), ", ".join(map(repr, formed))
            raise ValueError(f"{self._called}: a row has {given or 'no arrays'}; the rows of this batch have {needed}")
        fitted = {name: self._cast(arrays[name], *form, f"{name!r} of a row") for name, form in formed.items()}
        self._named = formed
        return fitted

    def _array(self, row: Any, what: str) -> NDArray[Any]:
        values = np.asarray(row)
        if values.dtype.kind not in "fiub" and values.dtype.name not in ("bfloat16", "int4"):
            raise TypeError(f"{self._called}: {what} is {type(row).__name__} of {values.dtype}; rows are numbers")
        return values

    def _formed(
        self, values: NDArray[Any], shape: tuple[int, ...] | None, dtype: np.dtype[Any] | None
    ) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """What rows are from this one on."""
        own: np.dtype[Any] = values.dtype.newbyteorder("=")
        if self._work.narrow and own == np.float64:
            own = np.dtype(np.float32)
        return values.shape if shape is None else shape, own if dtype is None else dtype

    def _cast(self, values: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> NDArray[Any]:
        if values.shape != shape:
            raise ValueError(
                f"{self._called}: {what} has shape {values.shape}, {shape} is needed; rows come without the axis along "
                "which they are gathered"
            )
        if values.dtype == dtype:
            made = np.array(values)
        else:
            if _is_integer(dtype) and not _is_integer(values.dtype):
                raise TypeError(f"{self._called}: {what} is {values.dtype} and would lose its fractions as {dtype}")
            with np.errstate(over="ignore"):  # what overflows is told below
                made = values.astype(dtype)
            if _is_integer(dtype) and not np.array_equal(made.astype(values.dtype), values):
                raise ValueError(f"{self._called}: {what} holds values that {dtype} cannot")
        if not _is_integer(dtype) and (self._work.finite or made.dtype != values.dtype):
            unfit = ~np.isfinite(made)
            if unfit.any() and (self._work.finite or np.isfinite(values[unfit]).any()):
                position = tuple(int(each) for each in np.argwhere(unfit)[0])
                raise NotFiniteError(
                    f"{self._called}: {what} holds {values[position]} at {position}, which as {dtype} is "
                    f"{made[position]}; it is refused, since it would spoil the rows that are computed with it"
                )
        return made

    def stack(self, rows: Sequence[Any]) -> Rows:
        """Fitted rows behind one another."""
        if self.listed:
            return list(rows)
        place = self._work.place
        if place is not None:
            place[: len(rows)] = rows
            place[len(rows) :] = 0
            return place
        if self._named is not None:
            return {name: np.stack([row[name] for row in rows]) for name in self._named}
        return np.stack(rows)


def _is_integer(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "iub" or dtype.name in ("int4", "uint4")
