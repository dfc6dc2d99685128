"""What a layer keeps of all tokens so far in arrays of fixed size: the state of a recurrence or of a convolution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from npumatmul.nn.module import check_size
from npumatmul.nn.product import Float32

__all__ = ["LayerState", "Shapes", "check_shapes"]

Shapes = Sequence[tuple[int, ...]]
"""Shapes of the arrays of one layer, of each sequence."""


def check_shapes(shapes: Shapes, called: str) -> tuple[tuple[int, ...], ...]:
    """Shapes of a layer's arrays; raise if they are none."""
    made = tuple(tuple(shape) for shape in shapes)
    if not made or not all(made):
        raise ValueError(f"{called}: states has an entry without arrays; write None for a layer that has no state")
    for shape in made:
        for size in shape:
            check_size(called, states=size)
    return made


class LayerState:
    """The state of one layer, after as many tokens as the cache has and, while a run is under way, after those of it.

    Arrays are never written to again, so that forks share them.

    Attributes
    ----------
    shapes : tuple of tuple of int
        Of the arrays, with the batch first.
    """

    def __init__(self, batch: int, shapes: Shapes) -> None:
        self.shapes = tuple((batch, *shape) for shape in shapes)
        self._after: dict[int, tuple[Float32, ...]] = {}
        self._own: set[int] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of its own memory."""
        return sum(array.nbytes for count, arrays in self._after.items() if count in self._own for array in arrays)

    def parts(self) -> list[Float32]:
        """All arrays, also those that other caches read."""
        return [array for arrays in self._after.values() for array in arrays]

    def has(self, offset: int) -> bool:
        """Whether the state after so many tokens is there; after none it is all zeros."""
        return offset == 0 or offset in self._after

    def get(self, offset: int) -> tuple[Float32, ...]:
        """The state after so many tokens."""
        return self._after[offset] if offset else tuple(np.zeros(shape, np.float32) for shape in self.shapes)

    def put(self, offset: int, count: int, arrays: Sequence[Float32]) -> None:
        """Keep the state after `count` tokens that follow the first `offset`; that before them stays until the next."""
        found = tuple(array.shape for array in arrays)
        if found != self.shapes or any(array.dtype != np.float32 for array in arrays):
            raise ValueError(f"KVCache.set_state: arrays have to be float32 of shapes {self.shapes}, not {found}")
        for array in arrays:
            array.flags.writeable = False
        before = {offset: self._after[offset]} if offset in self._after else {}
        self._after = {**before, offset + count: tuple(arrays)}
        self._own = (self._own & {offset}) | {offset + count}

    def fork(self, offset: int) -> LayerState:
        """The same state after so many tokens, for another cache."""
        made = LayerState(1, ())
        made.shapes = self.shapes
        if offset in self._after:  # a layer that was given none says so when it is asked for it
            made._after = {offset: self._after[offset]}
        return made

    # ---- files -----------------------------------------------------------------------------------------------------

    def wanted(self, offset: int) -> dict[str, tuple[tuple[int, ...], np.dtype[np.float32]]]:
        """Names, shapes and types of the arrays in a file."""
        return {f"state.{i}": (shape, np.dtype(np.float32)) for i, shape in enumerate(self.shapes)} if offset else {}

    def stored(self, offset: int) -> dict[str, NDArray[np.float32]]:
        """The arrays by name."""
        return {f"state.{i}": array for i, array in enumerate(self.get(offset))} if offset else {}

    def restore(self, offset: int, arrays: dict[str, NDArray[np.float32]]) -> None:
        """Take the arrays of a file."""
        if offset:
            self.put(0, offset, [arrays[name] for name in self.wanted(offset)])
