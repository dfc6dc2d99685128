"""A model under a policy, before anything runs: where its layers are, what they take, and how fast that is modelled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from npumatmul.chips import Chip
from npumatmul.chips.timing import Estimate
from npumatmul.device.arenas import LARGEST_ARENA, SMALLEST_ARENA
from npumatmul.errors import NpuMemoryError
from npumatmul.llm.fitting import LayerShape, Room, planned_weight, product_seconds
from npumatmul.llm.modelled.plan import PROMPTS, TOKEN_KEYS
from npumatmul.llm.modelled.seconds import modelled_pass
from npumatmul.llm.modelled.shape import LinearShape, ModelShape
from npumatmul.llm.models.part import Part
from npumatmul.llm.placement import LayerPlace, ModelPlacement, place_layers
from npumatmul.llm.policy import Policy
from npumatmul.planning.product import plan_matmul
from npumatmul.quant.routes import route_for
from npumatmul.quant.schemes import Scheme

__all__ = ["OffloadPlan", "Speeds", "plan_offload", "shapes_of"]

#: Buffers of A and C that a device holds beside arenas and contexts, roughly: a few sizes of each.
_WORKSPACES = 16


@dataclass(frozen=True)
class Speeds:
    """Modelled times of a way to compute a model.

    Attributes
    ----------
    prompts : dict of int to Estimate or None
        Seconds of a prompt of so many tokens.
    token : Estimate or None
        Seconds of a token after 128 others.
    """

    prompts: dict[int, Estimate | None]
    token: Estimate | None

    @property
    def tokens_per_second(self) -> Estimate | None:
        """Of generation; `low` is the slowest."""
        return _inverse(self.token, 1)

    def prompt_per_second(self, rows: int) -> Estimate | None:
        """Tokens of a prompt of so many that are read in a second."""
        return _inverse(self.prompts[rows], rows)


@dataclass(frozen=True)
class OffloadPlan:
    """A model in a scheme under a policy; times are modelled, and nothing of them was measured.

    Attributes
    ----------
    scheme : str
    why_not : str
        Why it does not fit, and what would; empty where it does.
    placement : ModelPlacement or None
        None where it does not fit.
    domains : dict of int to int
        Bytes of weights by IOMMU domain.
    contexts, descriptors : int
        Contexts of the NPU that prompts and tokens need; file descriptors that they and the memory hold, about.
    under, npu, cpu : Speeds or None
        Under the policy; where the NPU computes all layers; where the CPU does.
    """

    scheme: str
    why_not: str
    placement: ModelPlacement | None = None
    domains: dict[int, int] | None = None
    contexts: int = 0
    descriptors: int = 0
    under: Speeds | None = None
    npu: Speeds | None = None
    cpu: Speeds | None = None

    def content(self) -> dict[str, Any]:
        """What JSON can hold."""
        placement = self.placement
        found: dict[str, Any] = {"scheme": self.scheme, "fits": placement is not None, "why_not": self.why_not}
        if placement is None:
            return found
        return {
            **found,
            "policy": str(placement.policy),
            "layers": placement.content(),
            "npu_bytes": placement.npu_bytes,
            "host_bytes": placement.host_bytes,
            "workspace_bytes": placement.workspace,
            "domains": self.domains,
            "contexts": self.contexts,
            "descriptors": self.descriptors,
            **{name: _speeds_content(getattr(self, name)) for name in ("under", "npu", "cpu")},
        }


def shapes_of(shape: ModelShape, scheme: str, layers: tuple[int, int] | None = None) -> list[LayerShape]:
    """Every linear layer of a model, or of a part of it, by the names that it has when it is loaded.

    Raises
    ------
    ValueError
        If the model has no such blocks.

    Examples
    --------
    >>> from npumatmul.llm.modelled.published import SHAPES
    >>> [each.name for each in shapes_of(SHAPES["SmolLM2-135M"], "w8a8", (29, 30))]
    ['blk.29.qkv', 'blk.29.attn_out', 'blk.29.gate_up', 'blk.29.down', 'head']
    """
    part = Part(*(layers or (0, shape.layers)), shape.layers)
    blocks = [block for block in shape.blocks for _ in range(block.times)]
    found = [
        LayerShape(f"blk.{number}.{name}", each.k, each.n, scheme, each.chosen / each.experts if each.experts else 1.0)
        for number in range(part.first, part.last)
        for each in blocks[number].linears
        for name in _names(each)
    ]
    if shape.head is not None and part.is_last:
        found.append(LayerShape("head", shape.head.k, shape.head.n, scheme))
    return found


def _names(each: LinearShape) -> Iterator[str]:
    if not each.experts:
        yield each.name
        return
    part = each.name.rpartition(".")[2]
    yield from (f"expert.{number}.{part}" for number in range(each.times))


def plan_offload(shape: ModelShape, chip: Chip, scheme: str, policy: Policy) -> OffloadPlan:
    """Plan a model under a policy.

    Parameters
    ----------
    shape : ModelShape
    chip : Chip
    scheme : str
        By name; the policy's own schemes are heeded, too.
    policy : Policy

    Raises
    ------
    ValueError
        If a name is that of no scheme, or the policy names layers, cores or domains that are not there.
    npumatmul.errors.DeviceError
        If the chip does not have the scheme.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.llm.modelled.published import SHAPES
    >>> plan = plan_offload(SHAPES["Qwen2.5-1.5B"], chip("rk3588"), "w8a8", Policy(decode="cpu", memory_limit="1GB"))
    >>> plan.placement
    <ModelPlacement: 86 of 113 layers in NPU memory, 958.1 MB; 594.2 MB in ordinary memory>
    """
    route_for(Scheme.parse(scheme), chip, chip.runtime)
    layers = shapes_of(shape, scheme, policy.layers)
    layers = [replace(each, scheme=policy.scheme_of(each.name, scheme)) for each in layers]
    room = Room.of(chip, policy)
    try:
        placement = place_layers(layers, policy, chip, room)
    except NpuMemoryError as error:
        return OffloadPlan(scheme, str(error))
    domains: dict[int, int] = {}
    for each in placement:
        if each.domain is not None:
            domains[each.domain] = domains.get(each.domain, 0) + each.nbytes
    contexts = _contexts(placement, layers, chip)
    descriptors = contexts * chip.memory.context_descriptors + sum(map(_arenas, domains.values())) + _WORKSPACES
    sums = _Sums(shape, chip, scheme, layers, policy)
    return OffloadPlan(
        scheme,
        "",
        placement,
        domains,
        contexts,
        descriptors,
        sums.speeds(lambda place, rows: place.place(rows), placement),
        sums.speeds(lambda place, rows: "npu", placement),
        sums.speeds(lambda place, rows: "cpu", placement),
    )


class _Sums:
    """Adds up modelled times of all layers, and what the CPU does between them."""

    def __init__(
        self, shape: ModelShape, chip: Chip, scheme: str, layers: Sequence[LayerShape], policy: Policy
    ) -> None:
        self._shape, self._chip, self._layers, self._policy = shape, chip, layers, policy
        self._route = route_for(Scheme.parse(scheme), chip, chip.runtime)
        self._known: dict[tuple[int, int, str, int], tuple[float, float] | None] = {}
        self._share = len({each.name.split(".")[1] for each in layers if each.name != "head"}) / shape.layers

    def speeds(self, who: Any, placement: ModelPlacement) -> Speeds:
        return Speeds(
            {rows: self._seconds(who, placement, rows, rows) for rows in PROMPTS},
            self._seconds(who, placement, 1, TOKEN_KEYS),
        )

    def _seconds(self, who: Any, placement: ModelPlacement, rows: int, keys: int) -> Estimate | None:
        between = modelled_pass(self._shape, rows, keys, self._route.mm_type, self._chip)
        if between is None:
            return None
        total = between.between * self._share
        for place, layer in zip(placement, self._layers, strict=True):
            met = layer.rows(rows)
            both = self._both(layer, met)
            if both is None:
                return None
            touched = 1 - (1 - layer.share) ** rows
            total += touched * both[who(place, met) == "cpu"]
        return Estimate.within(total, between.within)

    def _both(self, layer: LayerShape, rows: int) -> tuple[float, float] | None:
        key = (layer.k, layer.n, layer.scheme, rows)
        if key not in self._known:
            plan = planned_weight(layer, self._policy, self._chip, self._chip.runtime)
            self._known[key] = product_seconds(plan, rows, self._chip)
        return self._known[key]


def _contexts(placement: Sequence[LayerPlace], layers: Sequence[LayerShape], chip: Chip) -> int:
    """Contexts of products that the NPU computes: one for each shape of tile, core and domain."""
    found: set[tuple[int, int, int, int, int]] = set()
    seen: set[tuple[Any, ...]] = set()
    policy = getattr(placement, "policy", Policy())
    for place, layer in zip(placement, layers, strict=True):
        if place.domain is None:
            continue
        for tokens in (1, *PROMPTS):
            rows = layer.rows(tokens)
            key = (layer.k, layer.n, layer.scheme, rows, place.domain)
            if place.place(rows) == "cpu" or key in seen:
                continue
            seen.add(key)
            plan = plan_matmul(rows, planned_weight(layer, policy, chip, chip.runtime), timings=chip.timings)
            found |= {
                (k.padded, n.padded, plan.core(m, index), plan.turn(m), place.domain)
                for m in range(len(plan.m_spans))
                for k in plan.weight.k_spans
                for index, n in enumerate(plan.weight.n_spans)
            }
    return len(found)


def _arenas(nbytes: int) -> int:
    """Allocations that hold so many bytes of weights in a domain: they grow with what is stored."""
    count, held = 0, 0
    while held < nbytes:
        held += min(LARGEST_ARENA, max(SMALLEST_ARENA, held))
        count += 1
    return count


def _inverse(each: Estimate | None, count: int) -> Estimate | None:
    return None if each is None else Estimate(count / each.seconds, count / each.high, count / each.low)


def _speeds_content(speeds: Speeds | None) -> dict[str, Any] | None:
    if speeds is None:
        return None
    token = speeds.tokens_per_second
    return {
        "prompts": {rows: None if each is None else asdict(each) for rows, each in speeds.prompts.items()},
        "tokens_per_second": None if token is None else asdict(token),
    }
