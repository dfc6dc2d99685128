"""Weights in device memory, or beside it: rows of tiles, and the slices of K that a matmul runs through."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.arenas import ArenaBlock
from npumatmul.device.device import Device
from npumatmul.device.host_blocks import HostBlock
from npumatmul.planning.product import Span, WeightPlan
from npumatmul.running.where import Where

__all__ = ["KSlice", "StoredWeight"]


@dataclass(frozen=True, eq=False)
class KSlice:
    """One pass A[:, k] @ B of a matmul.

    The result is, with q the quantized values and z zero points, ::

        sum over slices of  row_scale * column_scale * (q_a @ q_b - z_a * column_sums - column_zero * sum(q_a))

    where row_scale and z_a are those of the row, or of row and group.

    Attributes
    ----------
    k_span : Span
    part : int
        Which image of the activations it takes: 0 the whole value; 1 the high and 2 the low part of a float32 that is
        split into two float16.
    tiles : int
        Which row of tiles it takes; slices may share one.
    column_scale : ndarray of float32, shape (N,), or None
        By which columns are multiplied. Where it is the same in all slices, sums over K are scaled once, at the end,
        and those of integers are exact until then; else each slice is scaled and the sum is one of float32.
    column_zero : ndarray of int32, shape (N,), or None
        Zero points of the weight.
    column_sums : ndarray of int32, shape (N,), or None
        Sums over the slice of (q_b - z_b); needed by activations with zero points.
    group : Span or None
        The range of K over which rows are measured by activations that are scaled in groups; it holds `k_span`.
    """

    k_span: Span
    part: int = 0
    tiles: int = 0
    column_scale: NDArray[np.float32] | None = None
    column_zero: NDArray[np.int32] | None = None
    column_sums: NDArray[np.int32] | None = None
    group: Span | None = None


#: Products of two 8-bit values less their zero points are at most 255 * 255.
_DEEPEST_INT32_SUM = (2**31 - 1) // 255**2


class StoredWeight:
    """A weight in device memory, or in ordinary memory for products that the CPU alone computes.

    Attributes
    ----------
    device : Device
    plan : WeightPlan
        How K and N are cut; each row of tiles has one tile per span of N.
    slices : tuple of KSlice
        What a matmul runs through, in this order.
    common_scale : bool
        Whether all slices have the same column_scale.
    nbytes : int
        Bytes of NPU memory.
    in_host_memory : bool
        Whether its tiles stand in ordinary memory.
    where : Where
        Who multiplies with it, and on which cores.
    domain : int
        IOMMU domain of all its tiles; contexts, A and C of its products are in the same one.
    tiles : tuple of ArenaBlock or HostBlock
        Its memory: row of tiles by row of tiles, each from the first columns on.

    Raises
    ------
    ValueError
        If slices, tiles and plan do not fit together.
    """

    def __init__(
        self,
        device: Device,
        plan: WeightPlan,
        tiles: Sequence[ArenaBlock | HostBlock],
        slices: Sequence[KSlice],
        where: Where = Where(),  # noqa: B008 - it is frozen
    ) -> None:
        self.device = device
        self.plan = plan
        self.slices = tuple(_checked(each, plan, len(tiles) // len(plan.n_spans)) for each in slices)
        if not self.slices:
            raise ValueError("a weight has at least one slice")
        first = self.slices[0].column_scale
        # Sums of integers over slices of the same scale are made in int32, as long as they fit whatever is multiplied.
        fit = first is None or plan.mm_type.c.label.startswith("float") or plan.k <= _DEEPEST_INT32_SUM
        self.common_scale = fit and all(_same(each.column_scale, first) for each in self.slices)
        self.nbytes = sum(piece.size for piece in tiles)
        self.tiles = tuple(tiles)
        self.where = where
        #: What the weight is called where products are logged; None of trials of tiles.
        self.scheme: str | None = None
        #: The path of its layer in a model, if it is one's.
        self.name = ""
        domains = {None if isinstance(piece, HostBlock) else piece.memory.domain for piece in tiles}
        if len(domains) != 1:
            raise ValueError("all tiles of a weight are in one IOMMU domain")
        (domain,) = domains
        self.in_host_memory = domain is None
        self.domain = domain or 0
        self.pointers = [piece.pointer for piece in tiles]
        #: Whether the memory was given back, or will be as soon as nobody runs with it.
        self.closed = False
        self._holding = device.hold(self, self.tiles)

    @property
    def images(self) -> int:
        """Images of A that a range of rows has: slices share one where they read the same."""
        return len({(each.k_span, each.part, each.group) for each in self.slices})

    @property
    def in_one_piece(self) -> bool:
        """Whether its tiles stand one behind the other, without gaps, in one allocation.

        Tiles of N are the outermost ones of the native layout of B: then they are one image of the whole weight, if K
        is one slice (facts 4.3).
        """
        return not self.in_host_memory and all(
            isinstance(one, ArenaBlock)
            and isinstance(next_one, ArenaBlock)
            and one.arena is next_one.arena
            and one.start + one.size == next_one.start
            for one, next_one in pairwise(self.tiles)
        )

    @property
    def whole(self) -> ArenaBlock:
        """All tiles as one, where they are `in_one_piece`, to be bound. The device's lock is held."""
        first = self.tiles[0]
        assert isinstance(first, ArenaBlock)
        return first if len(self.tiles) == 1 else first.joined(self.nbytes)

    def close(self) -> None:
        """Give the memory back. Closing twice is allowed.

        Where other threads compute with it, no other product is begun, and the first call after theirs gives it back.
        """
        if self.device.session.inherited:  # by a forked child, where the lock may be held for ever
            self.closed = True
            return
        with self.device.lock:
            if not self.closed:
                self.device.released.append(self._holding)
                self.closed = True
            if not self.device.closed:
                self.device.collect()


def _checked(each: KSlice, plan: WeightPlan, rows_of_tiles: int) -> KSlice:
    """The slice, with arrays as the executor reads them."""
    if not 0 <= each.tiles < rows_of_tiles or each.part not in (0, 1, 2):
        raise ValueError(f"slice {each}: there are {rows_of_tiles} rows of tiles, and parts 0, 1 and 2")
    arrays: list[NDArray[Any] | None] = []
    for array, dtype in ((each.column_scale, np.float32), (each.column_zero, np.int32), (each.column_sums, np.int32)):
        if array is not None and (array.shape != (plan.n,) or array.dtype != dtype):
            raise ValueError(f"slice: {dtype.__name__} of shape ({plan.n},) is wanted, not {array.dtype} {array.shape}")
        kept = None if array is None else np.ascontiguousarray(array).view()
        if kept is not None:
            kept.flags.writeable = False
        arrays.append(kept)
    k, group = each.k_span, each.group
    if group is not None and not (
        0 <= group.start <= k.start and k.start + k.length <= group.start + group.length <= plan.k
    ):
        raise ValueError(f"slice {k}: its group {group} does not hold it")
    scale, zero, sums = arrays
    return KSlice(k, each.part, each.tiles, scale, zero, sums, group)


def _same(one: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> bool:
    if one is None or other is None:
        return one is other
    return one is other or bool(np.array_equal(one, other))
