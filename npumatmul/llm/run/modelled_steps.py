"""Modelled time of a model's steps by their number of rows, for a simulated device."""

from __future__ import annotations

from collections.abc import Callable

from npumatmul.device.device import Device
from npumatmul.llm.models.decoder import Decoder
from npumatmul.ops import PackedWeight
from npumatmul.planning.product import plan_matmul

__all__ = ["modelled_steps"]


def modelled_steps(model: Decoder, device: Device | None) -> Callable[[int], float | None] | None:
    """What says how many seconds the chip takes for the products of a step; None where steps are to be measured.

    The times of a simulated device are those of the machine that simulates it. What is between products is left out;
    it grows with the rows, so that what is said of many rows is the least that they take.
    """
    if device is None or not device.simulated:
        return None
    known: dict[int, float | None] = {}

    def seconds(rows: int) -> float | None:
        if rows not in known:
            known[rows] = _seconds(model, device, rows)
        return known[rows]

    return seconds


def _seconds(model: Decoder, device: Device, rows: int) -> float | None:
    total = 0.0
    for product in model.linears.values():
        weight = getattr(product, "weight", None)
        if not isinstance(weight, PackedWeight) or weight.plan is None:
            continue
        plan = plan_matmul(rows, weight.plan, timings=device.chip.timings)
        if plan.modelled is None:
            return None
        total += plan.modelled.seconds
    return total or None
