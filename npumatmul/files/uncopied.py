"""Objects that hold what there is once: an open file, memory of a device, a place in a line."""

from __future__ import annotations

from typing import NoReturn, SupportsIndex

__all__ = ["Uncopied"]


class Uncopied:
    """Something that neither `copy` nor `pickle` may double.

    A copy would give back what the first one still uses, when it is dropped.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Raise `TypeError`."""
        raise TypeError(
            f"{type(self).__name__} cannot be copied or pickled: it holds what there is once, such as an open file, "
            f"memory of a device or a lock; share it between threads, or make another one where it is needed"
        )
