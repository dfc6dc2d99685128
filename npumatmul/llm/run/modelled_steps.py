"""Modelled time of a model's steps by their number of rows, for a simulated device."""

from __future__ import annotations

from collections.abc import Callable

from npumatmul.device.device import Device
from npumatmul.llm.fitting import product_seconds
from npumatmul.llm.modelled.built import decoder_shape
from npumatmul.llm.modelled.seconds import seconds_between
from npumatmul.llm.models.decoder import Decoder
from npumatmul.ops import PackedWeight

__all__ = ["modelled_seconds", "modelled_steps"]

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
            known[rows] = modelled_seconds(model, device, rows, _KEYS)
        return known[rows]

    return seconds


def modelled_seconds(
    model: Decoder, device: Device, rows: int, keys: int, logit_rows: int | None = None
) -> float | None:
    """How many seconds a step of `rows` tokens that see `keys` positions is modelled to take, its CPU included.

    Parameters
    ----------
    model : Decoder
    device : Device
        That its products are on.
    rows, keys : int
    logit_rows : int, optional
        After how many of them logits are computed; all by default.

    Returns
    -------
    float or None
        None where a product's time is not modelled, or none is on the device.
    """
    total = 0.0
    for name, product in model.linears.items():
        weight = getattr(product, "weight", None)
        if not isinstance(weight, PackedWeight) or weight.plan is None or weight.stored is None:
            continue
        meets = rows if logit_rows is None or name != "head" else logit_rows
        both = product_seconds(weight.plan, meets, device.chip)
        if both is None:
            return None
        total += both[weight.stored.where.computed_by(meets) == "cpu"]
    model_of_time = device.chip.timings.get(device.chip.soc)
    if model_of_time is None or not total:
        return None
    return total + seconds_between(decoder_shape("", model.config), rows, keys, model_of_time)
