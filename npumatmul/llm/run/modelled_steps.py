"""Modelled time of a model's steps by their number of rows, for a simulated device."""

from __future__ import annotations

from collections.abc import Callable

from npumatmul.device.device import Device
from npumatmul.llm.fitting import product_seconds
from npumatmul.llm.modelled.built import decoder_shape
from npumatmul.llm.modelled.seconds import seconds_between
from npumatmul.llm.models.decoder import Decoder
from npumatmul.ops import PackedWeight

__all__ = ["modelled_steps"]

#: Tokens that a step is taken to attend to.
_KEYS = 512


def modelled_steps(model: Decoder, device: Device | None) -> Callable[[int], float | None] | None:
    """What says how many seconds a chip takes for a step, its CPU included; None where steps are to be measured.

    The times of a simulated device are those of the machine that simulates it.
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
        if not isinstance(weight, PackedWeight) or weight.plan is None or weight.stored is None:
            continue
        both = product_seconds(weight.plan, rows, device.chip)
        if both is None:
            return None
        total += both[weight.stored.where.computed_by(rows) == "cpu"]
    model_of_time = device.chip.timings.get(device.chip.soc)
    if model_of_time is None or not total:
        return None
    return total + seconds_between(decoder_shape("", model.config), rows, _KEYS, model_of_time)
