"""Arrays that callers give, as ndarrays: what an ndarray of their values would be without is not lost in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.host import dlpack

__all__ = ["check_whole", "given_array", "way_to_ndarray"]

#: Methods and attributes by which classes give an ndarray, the surest first.
_WAYS = ("toarray", "todense", "to_numpy", "magnitude", "to_value", "compute", "unpack", "numpy")
#: Subclasses of ndarray that hold nothing but values.
_PLAIN = (np.ndarray, np.memmap)


def given_array(x: ArrayLike, function: str, name: str = "the array") -> NDArray[Any]:
    """An ndarray of what a caller gave, for functions whose results are ndarrays.

    Parameters
    ----------
    x : array_like
        Also tensors of PyTorch, and what is in NPU memory.
    function, name : str
        Which call, and which of its arguments.

    Raises
    ------
    TypeError
        If `x` has masked elements, or its class says what operations on it mean: matrices and other subclasses of
        ndarray, units, labels, lazy and sparse arrays.
    """
    if type(x) is np.ndarray:
        return x
    check_whole(x, function, name)
    if isinstance(x, np.ndarray):
        means_more = type(x) not in _PLAIN and not isinstance(x, np.ma.MaskedArray)
    else:  # whoever has an array interface shows by it that values are all there is
        means_more = hasattr(type(x), "__array_ufunc__") and not hasattr(type(x), "__array_interface__")
    if means_more:
        raise TypeError(f"{function}: {name} is of class {_class_of(x)}, which the result would not be; {_advice(x)}")
    array = dlpack.as_ndarray(x, f"{function}: {name}")
    if array.dtype == object and array.ndim == 0:
        raise TypeError(f"{function}: {name} is of class {_class_of(x)}, which numpy makes no array of; {_advice(x)}")
    return array


def check_whole(x: Any, function: str, name: str) -> None:
    """Raise where an ndarray of the values of an array would be without its mask, unit or meaning.

    Raises
    ------
    TypeError
        For masked elements, and subclasses of ndarray that say what operations on them mean.
    """
    if not isinstance(x, np.ndarray) or type(x) in _PLAIN:
        return
    if isinstance(x, np.ma.MaskedArray):
        if np.ma.is_masked(x):
            raise TypeError(f"{function}: {name} has masked elements, which would count as values; write x.filled(0)")
    elif type(x).__array_ufunc__ is not np.ndarray.__array_ufunc__:
        raise TypeError(f"{function}: {name} is of class {_class_of(x)}, which the result would not be; {_advice(x)}")


def way_to_ndarray(x: Any) -> str | None:
    """What to write for an ndarray of an object of another library; None where that is not known."""
    for name in _WAYS:
        way = getattr(type(x), name, None)
        if way is not None:
            return f"x.{name}{'()' if callable(way) else ''}"
    return "numpy.asarray(x)" if isinstance(x, np.ndarray) else None


def _advice(x: Any) -> str:
    return f"give {way_to_ndarray(x) or 'an ndarray'}"


def _class_of(x: Any) -> str:
    return f"{type(x).__module__}.{type(x).__qualname__}"
