"""What the place of a layer depends on: which layers gain by the NPU, which fit into its memory, and what would."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from npumatmul.chips import Chip
from npumatmul.chips.layout import round_up
from npumatmul.chips.timing import CPUS
from npumatmul.errors import NpuMemoryError
from npumatmul.files.sizes import size_in_words
from npumatmul.llm.policy import Policy
from npumatmul.nn.product import FLOAT32
from npumatmul.planning.on_cpu import cpu_seconds
from npumatmul.planning.product import plan_matmul
from npumatmul.planning.weight import WeightPlan, plan_weight
from npumatmul.quant.params import Granularity
from npumatmul.quant.routes import route_for
from npumatmul.quant.schemes import Scheme
from npumatmul.rknn.version import RuntimeVersion
from npumatmul.running.storing import workspace_bytes
from npumatmul.running.where import DECODE_ROWS, Where
from npumatmul.running.workspace import A_BUFFERS, Workspace

__all__ = ["Fact", "LayerShape", "Room", "facts_of", "fitted", "planned_weight", "product_seconds"]

#: What layers are compared by: a prompt in blocks of so many tokens, and tokens that are generated.
PROMPT_ROWS, PROMPT_BLOCKS, TOKENS = 128, 4, 128
#: Numbers of rows at which the CPU and the NPU are compared.
_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
#: Of what there is, the part that arenas may lose to weights that do not fill them.
_LOST = 64


@dataclass(frozen=True)
class LayerShape:
    """A linear layer that is to be placed.

    Attributes
    ----------
    name : str
    k, n : int
    scheme : str
        ``"float32"``: numpy computes it.
    share : float
        Which part of all rows it meets: of an expert, how many are chosen of how many.
    """

    name: str
    k: int
    n: int
    scheme: str
    share: float = 1.0

    def rows(self, tokens: int) -> int:
        """Rows that it meets where so many tokens are computed; the output matrix meets one."""
        return 1 if self.name == "head" else max(1, math.ceil(tokens * self.share))


@dataclass(frozen=True)
class Room:
    """What there is for weights.

    Attributes
    ----------
    domains : int
        IOMMU domains.
    domain_bytes : int
        Bytes of each.
    limit : int or None
        Bytes of all of them together that may be held.
    held : int
        Bytes that are held already.
    rows : int
        Rows that are computed at once at most, for which A and C need room.
    """

    domains: int
    domain_bytes: int
    limit: int | None = None
    held: int = 0
    rows: int = PROMPT_ROWS

    @classmethod
    def of(cls, chip: Chip, policy: Policy, *, domains: int | None = None, held: int = 0) -> Room:
        """The room that a policy leaves on a chip, or on a device of it that has so many domains."""
        there = chip.memory.domains if domains is None else domains
        if policy.domains is not None and policy.domains > there:
            raise ValueError(
                f"Policy: domains is {policy.domains}; here there {'is' if there == 1 else 'are'} {there} of "
                f"{size_in_words(chip.memory.domain_bytes)}"
            )
        limit = policy.memory_limit
        assert limit is None or isinstance(limit, int)
        return cls(policy.domains or there, chip.memory.domain_bytes, limit, held)


@dataclass(frozen=True)
class Fact:
    """A layer with what its place depends on.

    Attributes
    ----------
    shape : LayerShape
    plan : WeightPlan or None
        None where numpy computes it.
    nbytes : int
    where : Where
        Who computes it if it is in NPU memory.
    gain : float
        Modelled seconds that it saves in NPU memory.
    beside : int
        Bytes of A and C of its products of as many rows as are computed at once.
    least : int
        Of those of a single row.
    """

    shape: LayerShape
    plan: WeightPlan | None
    nbytes: int
    where: Where
    gain: float
    beside: int = 0
    least: int = 0

    @property
    def is_npus(self) -> bool:
        """Whether the NPU computes any product of it."""
        rows = self.shape.rows(1), self.shape.rows(PROMPT_ROWS)
        return any(self.where.computed_by(each) == "npu" for each in rows)


def facts_of(
    layers: Sequence[LayerShape], policy: Policy, chip: Chip, runtime: RuntimeVersion, rows: int
) -> list[Fact]:
    """What there is to know of each layer; those that are alike are looked at once."""
    known: dict[LayerShape, Fact] = {}
    found = []
    for each in layers:
        kind = replace(each, name="head" if each.name == "head" else "")
        if kind not in known:
            known[kind] = _fact_of(kind, policy, chip, runtime, rows)
        found.append(replace(known[kind], shape=each))
    return found


def _fact_of(layer: LayerShape, policy: Policy, chip: Chip, runtime: RuntimeVersion, rows: int) -> Fact:
    if layer.scheme == FLOAT32:
        return Fact(layer, None, 4 * layer.k * layer.n, Where("host"), 0.0)
    plan = planned_weight(layer, policy, chip, runtime)
    alignment = chip.memory.slice_alignment
    nbytes = sum(
        round_up(plan.mm_type.b.nbytes(k.padded * n.padded), alignment) for k in plan.k_spans for n in plan.n_spans
    )
    where, gain = _compared(layer, plan, policy, chip)
    met = [each for each in (1, DECODE_ROWS, rows) if where.computed_by(each) == "npu"]
    beside = max((_beside(plan, each, chip) for each in met), default=0)
    return Fact(layer, plan, nbytes, where, gain, beside, workspace_bytes(plan, plan.buckets[0]))


def _beside(plan: WeightPlan, rows: int, chip: Chip) -> int:
    """Bytes of A and C of a product of so many rows."""
    planned = plan_matmul(rows, plan, timings=chip.timings)
    once = max(span.padded for span in planned.m_spans)
    a = plan.mm_type.a.nbytes(once * max(span.padded for span in plan.k_spans))
    c = plan.mm_type.c.nbytes(once * max(span.padded for span in plan.n_spans))
    images = min(len(plan.k_spans), A_BUFFERS) * (planned.threads if planned.range_cores else 1)
    return images * Workspace.size_for(a) + planned.threads * Workspace.size_for(c)


def planned_weight(layer: LayerShape, policy: Policy, chip: Chip, runtime: RuntimeVersion) -> WeightPlan:
    """How the weight of a layer is cut, and the cores that a policy leaves it."""
    scheme = Scheme.parse(layer.scheme)
    route = route_for(scheme, chip, runtime)
    group = scheme.group_size if scheme.granularity is Granularity.GROUP else None
    plan = plan_weight(layer.k, layer.n, route.mm_type, chip, runtime, k_group=group, row_images=route.row_images)
    return Where(cores=policy.cores if isinstance(policy.cores, tuple) else None).limited(plan)


def product_seconds(plan: WeightPlan, rows: int, chip: Chip) -> tuple[float, float] | None:
    """Modelled seconds of a product on the NPU and on the CPU; None where nothing is known of the chip."""
    timing = CPUS.get(chip.soc)
    planned = plan_matmul(rows, plan, turns=False, timings=chip.timings)  # as whole models are modelled
    on_cpu = None if timing is None else cpu_seconds(planned, timing)
    return None if planned.modelled is None or on_cpu is None else (planned.modelled.seconds, on_cpu)


def _compared(layer: LayerShape, plan: WeightPlan, policy: Policy, chip: Chip) -> tuple[Where, float]:
    """Who computes what of a layer in NPU memory, and the modelled seconds that this saves."""
    times = {rows: product_seconds(plan, rows, chip) for rows in _ROWS}
    known = {rows: both for rows, both in times.items() if both is not None}
    where = Where(
        crossover=_crossover(known, policy),
        prefill="cpu"
        if policy.prefill == "cpu" or (policy.prefill == "auto" and _cpu_wins(known, PROMPT_ROWS))
        else "npu",
    )
    if not known:  # nothing says that the CPU is faster
        return where, float(plan.nbytes)
    gain = 0.0
    for count, tokens in ((PROMPT_BLOCKS, PROMPT_ROWS), (TOKENS, 1)):
        rows = layer.rows(tokens)
        npu, cpu = known.get(rows) or product_seconds(plan, rows, chip) or (0.0, 0.0)
        if where.computed_by(rows) == "npu":
            gain += (layer.share if rows == 1 else 1) * count * (cpu - npu)
    return where, gain


def _crossover(known: Mapping[int, tuple[float, float]], policy: Policy) -> int:
    """Up to how many rows the CPU computes."""
    if policy.decode != "auto":
        return DECODE_ROWS if policy.decode == "cpu" else 0
    most = 0
    for rows in _ROWS:
        if not _cpu_wins(known, rows) or (rows > DECODE_ROWS and policy.prefill == "npu"):
            break
        most = rows
    return most


def _cpu_wins(known: Mapping[int, tuple[float, float]], rows: int) -> bool:
    npu, cpu = known.get(rows, (0.0, 0.0))
    return cpu < npu


class _Filled:
    """Domains while layers are put into them, the first one that has room first."""

    def __init__(self, room: Room) -> None:
        self._free = [room.domain_bytes] * room.domains
        self._beside = [0] * room.domains
        total = sum(self._free) if room.limit is None else max(0, room.limit - room.held)
        self._left = total - total // _LOST
        self._aside = 0

    def put(self, fact: Fact) -> int | None:
        """The domain that takes a layer; None where no domain has room for it."""
        aside = max(self._aside, fact.beside + fact.least)
        if fact.nbytes + aside > self._left:
            return None
        for domain, free in enumerate(self._free):
            if fact.nbytes + max(self._beside[domain], fact.beside) <= free:
                self._free[domain] -= fact.nbytes
                self._beside[domain] = max(self._beside[domain], fact.beside)
                self._left, self._aside = self._left - fact.nbytes, aside
                return domain
        return None


def fitted(facts: Sequence[Fact], wanted: Sequence[str] | None, room: Room) -> dict[str, int]:
    """The domain of each layer that is in NPU memory, by name.

    Raises
    ------
    ValueError
        If the limit has no room for a single layer.
    NpuMemoryError
        If layers that are asked for do not fit.
    """
    candidates = [each for each in facts if each.plan is not None]
    filled, found = _Filled(room), {}
    if wanted is None:
        ranked = sorted((each for each in candidates if each.is_npus), key=lambda each: -each.gain / each.nbytes)
        for fact in ranked:
            domain = filled.put(fact)
            if domain is not None:
                found[fact.shape.name] = domain
        if ranked and not found:
            raise ValueError(_too_little(ranked, room))
        return found
    chosen = set(wanted)
    for fact in candidates:
        if fact.shape.name in chosen and fact.is_npus:
            domain = filled.put(fact)
            if domain is None:
                raise NpuMemoryError(
                    _not_fitting(fact, [each for each in candidates if each.shape.name in chosen], found, room)
                )
            found[fact.shape.name] = domain
    return found


def _too_little(ranked: Sequence[Fact], room: Room) -> str:
    smallest = min(ranked, key=_alone)
    least = -(-_alone(smallest) * _LOST // (_LOST - 1)) + 1
    held = f", beside {room.held} bytes that the device holds already" if room.held else ""
    if room.limit is None:
        return (
            f"no layer fits into a domain of {room.domain_bytes} bytes: the smallest, {smallest.shape.name}, needs "
            f"{least} bytes with A and C"
        )
    return (
        f"Policy: memory_limit of {room.limit} bytes has no room for any layer{held}: the smallest, "
        f"{smallest.shape.name}, needs {least} with A and C of its products. Give at least {least + room.held}, or "
        "npu_layers=0 for none"
    )


def _alone(fact: Fact) -> int:
    return fact.nbytes + fact.beside + fact.least


def _not_fitting(fact: Fact, chosen: Sequence[Fact], found: dict[str, int], room: Room) -> str:
    needed = sum(each.nbytes for each in chosen)
    beside = max(each.beside + each.least for each in chosen)
    total = room.domains * room.domain_bytes
    if room.limit is not None:
        there = f"memory_limit is {room.limit} bytes" + (
            f", of which {room.held} are held already" if room.held else ""
        )
    else:
        there = (
            f"{room.domains} IOMMU domain{'s' * (room.domains > 1)} of {size_in_words(room.domain_bytes)} hold {total}"
        )
    least = -(-(needed + beside) * _LOST // (_LOST - 1)) + 1 + room.held
    more = (
        f"memory_limit={least} has room for all" if room.limit is not None and least <= total else "fewer bits a weight"
    )
    return (
        f"{len(chosen)} layers are asked for on the NPU and need {needed} bytes, with A and C {needed + beside}; "
        f"{there}. {fact.shape.name} is the first that does not fit, after {len(found)}. What would fit: "
        f"npu_layers='auto', fewer layers, {more}"
    )
