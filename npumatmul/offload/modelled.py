"""Modelled times of packed weights, on the chip's NPU and on its CPU."""

from __future__ import annotations

from typing import Any

from npumatmul.chips.timing import CPUS
from npumatmul.chips.types import ElementType
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.planning.product import plan_matmul

__all__ = ["ROWS", "modelled"]

#: Rows for which times are modelled: one token, and a text.
ROWS = (1, 128)


def modelled(product: Any, rows: tuple[int, ...] = ROWS) -> tuple[dict[int, float] | None, dict[int, float] | None]:
    """Modelled seconds of a product on the NPU, and on the chip's CPU in float16."""
    weight = getattr(product, "weight", None)
    if not isinstance(weight, PackedWeight):
        return None, None
    chip, (k, n), plan = weight.device.chip, weight.shape, weight.plan
    if plan is None:
        return None, None
    cpu = CPUS.get(chip.soc)
    found = {m: plan_matmul(m, plan, timings=chip.timings).modelled_seconds for m in rows}
    half = ElementType.FLOAT16
    return (
        None if None in found.values() else {m: float(s) for m, s in found.items() if s is not None},
        None if cpu is None else {m: cpu.seconds(m, k, n, half, half) for m in rows},
    )
