"""Where arrays stand in memory."""

from __future__ import annotations

import ctypes as C
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["address_of"]

#: The pointer to its data is the first field of an ndarray, behind what all objects of CPython begin with. Compiled
#: extensions read it there (PyArray_DATA), so it is part of numpy's ABI.
_HEAD = object.__basicsize__
_pointer_at = C.c_void_p.from_address


def _asked(array: NDArray[Any]) -> int:
    return int(array.ctypes.data)


def _read(array: NDArray[Any]) -> int:
    return _pointer_at(id(array) + _HEAD).value or 0


def _is_read_right() -> bool:
    """Whether this interpreter and this numpy lay arrays out so: tried with arrays of several kinds."""
    if sys.implementation.name != "cpython":
        return False
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen = whole.view()
    frozen.flags.writeable = False
    tried = (whole, whole[1:, ::-1], whole.T, frozen, np.zeros(0), np.array(1, np.int8), whole.view(np.recarray))
    return all(_read(each) == _asked(each) for each in tried)


#: Address of an array's first element: `array.ctypes.data`, in a seventh of the time.
address_of = _read if _is_read_right() else _asked
