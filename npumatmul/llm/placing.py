"""Puts the layers of a model where its policy has them, while it is loaded."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, DeviceLostError, NpuMemoryError
from npumatmul.llm.crossover import measured_crossover
from npumatmul.llm.fitting import PROMPT_ROWS, LayerShape, Room
from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.llm.placement import LayerPlace, ModelPlacement, place_layers
from npumatmul.llm.policy import Policy
from npumatmul.ops import PackedWeight
from npumatmul.running.where import storing

__all__ = ["Placing", "layer_shapes"]

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


def layer_shapes(
    shapes: Mapping[str, tuple[int, int]], scheme: Callable[[str], str], config: DecoderConfig | None = None
) -> list[LayerShape]:
    """Layers that are to be placed.

    Parameters
    ----------
    shapes : mapping of str to (int, int)
        ``(N, K)`` by name.
    scheme : callable
        From a name to its scheme.
    config : DecoderConfig, optional
        Says how many experts are chosen of how many.
    """
    found = []
    for name, (n, k) in shapes.items():
        share = 1.0
        if ".expert." in name and config is not None:
            experts = config.layers[int(name.split(".")[1]) - config.first_block].experts
            share = 1.0 if experts is None else experts.chosen / experts.count
        found.append(LayerShape(name, k, n, scheme(name), share))
    return found


class Placing:
    """Where the layers of a model are to be, and where they came to be; a limit of memory holds until `undo`.

    Parameters
    ----------
    policy : Policy
    device : Device
    layers : iterable of LayerShape
    rows : int, optional
        Rows that are computed at once at most.

    Raises
    ------
    ValueError, NpuMemoryError
        As `place_layers`.
    """

    def __init__(self, policy: Policy, device: Device, layers: Iterable[LayerShape], rows: int = PROMPT_ROWS) -> None:
        self._device = device
        if policy.memory_limit is not None or device.session.limit is not None:
            device.empty_cache()  # what is idle would count as held
        held = device.memory_stats()
        room = Room.of(device.chip, policy, domains=device.weights.domains, held=held.nbytes)
        room = replace(room, rows=rows)
        if held.limit is not None and (room.limit is None or held.limit < room.limit):
            room = replace(room, limit=held.limit)
        planned = place_layers(list(layers), policy, device.chip, room, device.runtime_version)
        self._places = {each.name: each for each in planned}
        self._planned, self._may_move = planned, policy.npu_layers == "auto"
        self._cores = policy.cores if isinstance(policy.cores, tuple) else None
        self._domains = policy.domains
        self._measures = policy.decode == "auto" and not device.simulated  # a simulation says nothing of a board
        self._crossovers: dict[tuple[int, int, str], int] = {}
        self._limits = room.limit, held.limit
        if room.limit is not None:  # room for A and C is not for arenas, which take more than weights fill
            device.limit_memory(max(0, room.limit - planned.workspace))

    @property
    def placement(self) -> ModelPlacement:
        """Where the layers are."""
        return ModelPlacement(list(self._places.values()), self._planned.policy, self._planned.workspace)

    def put(self, name: str, make: Callable[[], _T]) -> _T:
        """Have what makes the product of a layer store its weight where that is to be.

        Raises
        ------
        NpuMemoryError
            If there is no room, and the layer has to be on the NPU.
        """
        place = self._places[name]
        try:
            made = self._stored(place, make)
            if self._measures:
                self._measured(place, made)
            return made
        except NpuMemoryError as error:
            if place.memory == "host" or not self._may_move:
                raise
            logger.info("%s goes to ordinary memory: %s", name, str(error).splitlines()[0])
        moved = self._places[name] = replace(place, memory="host", prefill="cpu", domain=None)
        return self._stored(moved, make)

    def _stored(self, place: LayerPlace, make: Callable[[], _T]) -> _T:
        with storing(replace(place.where, cores=self._cores, domains=self._domains, chosen=True)):
            return make()

    def _measured(self, place: LayerPlace, product: object) -> None:
        """Have a board say up to how many rows the CPU is faster, once for each kind of weight."""
        weight = getattr(product, "weight", None)
        if not isinstance(weight, PackedWeight) or weight.stored is None or weight.memory == "host":
            return
        stored = weight.stored
        kind = (place.k, place.n, place.scheme)
        if kind not in self._crossovers:
            self._crossovers[kind] = measured_crossover(weight)
            logger.info("%s: the CPU is faster with up to %d rows, measured", place.name, self._crossovers[kind])
        crossover = self._crossovers[kind]
        stored.where = replace(stored.where, crossover=crossover)
        self._places[place.name] = replace(place, crossover=crossover, measured=True)

    def done(self) -> None:
        """All layers are where they are to be: from now on A and C have room, too."""
        if self._limits[0] is not None:
            self._device.limit_memory(self._limits[0])

    def undo(self) -> None:
        """Allow the device what it was allowed before, unless somebody set another limit."""
        ours, before = self._limits
        if ours is None:
            return
        loading = max(0, ours - self._planned.workspace)
        with contextlib.suppress(ClosedError, DeviceLostError):  # then nothing is limited any more
            if self._device.session.limit in (ours, loading):
                self._device.limit_memory(before)
