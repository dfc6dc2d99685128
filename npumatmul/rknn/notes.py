"""What the runtime said when it made or destroyed something, noted before anything else can happen.

Python looks for signals between its own instructions. What a C function returned can therefore be lost to an exception
that a handler raises before it is stored: a memory that nobody knows any more, or a destroyed one that is taken for a
living one. `noted` leaves no such moment.
"""

from __future__ import annotations

import ctypes as C
from typing import Any

from npumatmul.rknn.structs import Context, TensorMem

__all__ = ["ContextNote", "MemoryNote", "noted"]


def noted(results: list[Any], function: Any, *arguments: Any) -> Any:
    """Call a C function and append what it returns to `results`: one call of C to Python, which nothing interrupts.

    Examples
    --------
    >>> said = []
    >>> noted(said, max, 3, 5), said
    (5, [5])
    """
    results.extend(map(function, *zip(arguments, strict=True)))
    return results[-1]


class ContextNote:
    """A matmul context: before it is made, while it lives, and after.

    Attributes
    ----------
    handle : c_uint64
        Where the runtime writes the context's number.
    created, destroyed : list of int
        Codes that the functions returned; 0 says that it was done.
    """

    def __init__(self) -> None:
        self.handle = Context(0)
        self.created: list[int] = []
        self.destroyed: list[int] = []

    @property
    def exists(self) -> bool:
        """Whether the runtime made it and did not destroy it."""
        return 0 in self.created and 0 not in self.destroyed

    @property
    def value(self) -> int:
        """Number of the context."""
        return int(self.handle.value)


class MemoryNote:
    """A `rknn_tensor_mem`: before it is made, while it lives, and after.

    Attributes
    ----------
    created : list of pointer to TensorMem
        What the functions returned; NULL says that it was not made.
    destroyed : list of int
        Codes that `rknn_destroy_mem` returned; 0 says that it was done.
    """

    def __init__(self) -> None:
        self.created: list[C._Pointer[TensorMem]] = []
        self.destroyed: list[int] = []

    @property
    def exists(self) -> bool:
        """Whether the runtime made it and did not destroy it."""
        return bool(self.created and self.created[-1]) and 0 not in self.destroyed

    @property
    def pointer(self) -> C._Pointer[TensorMem]:
        """What the runtime returned last."""
        return self.created[-1]
