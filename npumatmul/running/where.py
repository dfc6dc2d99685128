"""Where weights go that are stored within a ``with`` block, and who multiplies with them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

from npumatmul.planning.weight import WeightPlan

__all__ = ["DECODE_ROWS", "Where", "on_cores", "storing", "where"]

#: Products of up to so many rows belong to generation: one token of each of a few sequences, or drafts of several.
DECODE_ROWS = 8


@dataclass(frozen=True)
class Where:
    """What holds of weights that are stored.

    Attributes
    ----------
    memory : {"npu", "host"}
        ``"host"``: ordinary memory, for weights that the CPU alone multiplies with.
    cores : tuple of int, optional
        The cores that may run products with them; all by default.
    domains : int, optional
        They are in one of the first so many IOMMU domains; any by default.
    crossover : int
        Products of up to so many rows are computed by the CPU.
    prefill : {"npu", "cpu"}
        Who computes products of more than `DECODE_ROWS` rows that are beyond the crossover.
    chosen : bool
        Whether somebody chose who computes, so that it does not follow `npumatmul.config`.
    """

    memory: Literal["npu", "host"] = "npu"
    cores: tuple[int, ...] | None = None
    domains: int | None = None
    crossover: int = 0
    prefill: Literal["npu", "cpu"] = "npu"
    chosen: bool = False

    @property
    def decides(self) -> bool:
        """Whether it says who multiplies."""
        return self.chosen or self.memory == "host" or self.crossover > 0 or self.prefill == "cpu"

    def computed_by(self, rows: int) -> Literal["npu", "cpu"]:
        """Who computes a product of so many rows.

        Examples
        --------
        >>> [Where(crossover=8).computed_by(rows) for rows in (1, 8, 9)]
        ['cpu', 'cpu', 'npu']
        """
        if self.memory == "host" or rows <= self.crossover:
            return "cpu"
        return self.prefill if rows > DECODE_ROWS else "npu"

    def limited(self, plan: WeightPlan) -> WeightPlan:
        """The same plan on no more cores; what was measured with others says nothing then."""
        return plan if self.cores is None else on_cores(plan, len(self.cores))


def on_cores(plan: WeightPlan, most: int) -> WeightPlan:
    """The same plan on no more cores than so many."""
    if most >= max(plan.cores, plan.row_cores):
        return plan
    return replace(
        plan,
        cores=min(plan.cores, most),
        row_cores=min(plan.row_cores, most),
        measured_cores=(),
        measured_shared=(),
    )


_where: ContextVar[Where] = ContextVar("npumatmul_where", default=Where())  # noqa: B039 - it is frozen


def where() -> Where:
    """What holds of weights that are stored now."""
    return _where.get()


@contextlib.contextmanager
def storing(chosen: Where) -> Iterator[None]:
    """Have weights that this thread stores within a ``with`` block go there."""
    before = _where.get()
    try:
        _where.set(chosen)  # an interrupt may come as soon as this is done
        yield
    finally:
        _where.set(before)
