"""Where weights go that are stored within a ``with`` block: memory of the NPU or ordinary one, domains, cores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal

from npumatmul.planning.weight import WeightPlan

__all__ = ["Where", "storing", "where"]


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
    """

    memory: Literal["npu", "host"] = "npu"
    cores: tuple[int, ...] | None = None
    domains: int | None = None

    def limited(self, plan: WeightPlan) -> WeightPlan:
        """The same plan on no more cores; what was measured with others says nothing then."""
        if self.cores is None or len(self.cores) >= max(plan.cores, plan.row_cores):
            return plan
        most = len(self.cores)
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
    token = _where.set(chosen)
    try:
        yield
    finally:
        _where.reset(token)
