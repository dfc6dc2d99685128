"""How a weight is cut into tiles, once for every number of rows that it will meet; pure.

K is cut into slices whose partial sums the host adds, N into tiles that are spread over the cores. The tiles are chosen
by modelled time over a mix of M, and the buckets that M is padded to by what padding costs with these tiles.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

from npumatmul.chips import NEWEST_RUNTIME, Chip, TypeLimits
from npumatmul.chips.layout import round_up
from npumatmul.chips.native_rows import NativeRows
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError
from npumatmul.planning.buckets import choose_buckets, row_buckets
from npumatmul.planning.cost import LEAST_GAIN, TileCosts
from npumatmul.planning.spans import MAX_SPANS, Span, split, split_groups
from npumatmul.rknn.version import RuntimeVersion

__all__ = [
    "ROWS_MIX",
    "WeightPlan",
    "costs_of",
    "largest_rows",
    "parsed",
    "plan_weight",
    "spans_of",
    "weight_content",
    "weight_of",
]

#: Most tiles of a weight; groups of 32 of the deepest layers in use make half as many.
MAX_TILES = 1 << 16
#: Most rows that a weight is cut for.
MAX_ROWS = 1 << 20
#: Numbers of rows that a weight is cut for: one token, and a prompt. What counts is the product of their times.
ROWS_MIX = (1, 128)


@dataclass(frozen=True)
class WeightPlan:
    """How a weight of shape (K, N) is cut; each (K span, N span) is one tile in the native layout of B.

    Attributes
    ----------
    soc : str
    mm_type : MatmulType
    k, n : int
    k_spans, n_spans : tuple of Span
    m_max : int
        Largest M of one run.
    row_multiple : int
        What M above 1 is a multiple of.
    ac_native : bool
        Whether A and C are in native layout.
    cores : int
        Cores that its matmuls may use.
    buckets : tuple of int
        M of the contexts, ascending: the registered shapes.
    row_images : int
        Rows of A on the device per row of the activation: 2 where each is split into a high and a low part.
    k_group : int or None
        Rows of the weight that share a scale: no K span reaches over the end of a group.
    measured_cores : tuple of (int, int)
        Numbers of rows, ascending, and the cores that were measured to be best for them; empty: the model decides.
    row_cores : int
        Cores that may have rows of their own, each with all tiles, instead of tiles of their own.
    measured_shared : tuple of int
        Those numbers of rows of `measured_cores` for which that was best.
    """

    soc: str
    mm_type: MatmulType
    k: int
    n: int
    k_spans: tuple[Span, ...]
    n_spans: tuple[Span, ...]
    m_max: int
    row_multiple: int
    ac_native: bool
    cores: int
    buckets: tuple[int, ...]
    row_images: int = 1
    k_group: int | None = None
    measured_cores: tuple[tuple[int, int], ...] = ()
    row_cores: int = 1
    measured_shared: tuple[int, ...] = ()
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # computed once: plans are looked up on every new number of rows
        object.__setattr__(self, "_hash", hash((self.soc, self.mm_type, self.k_spans, self.n_spans, self.buckets)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def nbytes(self) -> int:
        """Bytes of B on the device."""
        return sum(self.mm_type.b.nbytes(k.padded * n.padded) for k in self.k_spans for n in self.n_spans)

    @property
    def waste(self) -> float:
        """Share of B that is padding, to alignments and to spans of equal length."""
        padded = sum(k.padded for k in self.k_spans) * sum(n.padded for n in self.n_spans)
        return 1 - self.k * self.n / padded

    def to_json(self) -> str:
        """The plan as JSON; `from_json` reads it."""
        return json.dumps(weight_content(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> WeightPlan:
        """A plan that `to_json` wrote.

        Raises
        ------
        ValueError
            If the text is none.
        """
        return weight_of(parsed(text))


@lru_cache(maxsize=512)
def _costs(weight: WeightPlan, model: TimingModel) -> TileCosts:
    k_tiles, n_tiles = (tuple(span.padded for span in spans) for spans in (weight.k_spans, weight.n_spans))
    return TileCosts(model, weight.mm_type, k_tiles, n_tiles, weight.ac_native)


def costs_of(weight: WeightPlan, timings: Mapping[str, TimingModel] = TIMINGS) -> TileCosts | None:
    """Modelled costs of a weight's tiles, or None where nothing is known of chip or type."""
    model = timings.get(weight.soc)
    return None if model is None or not model.knows(weight.mm_type) else _costs(weight, model)


# ---- weights -------------------------------------------------------------------------------------------------------


def plan_weight(
    k: int,
    n: int,
    mm_type: MatmulType,
    chip: Chip,
    runtime: RuntimeVersion = NEWEST_RUNTIME,
    k_parts: int = 1,
    *,
    k_group: int | None = None,
    row_images: int = 1,
    k_slices: int | None = None,
    n_tiles: int | None = None,
    cores: int | None = None,
    buckets: Sequence[int] | None = None,
    ac_native: bool | None = None,
    measured_cores: Sequence[tuple[int, int]] = (),
    measured_shared: Sequence[int] = (),
    rows: Sequence[int] = ROWS_MIX,
    timings: Mapping[str, TimingModel] | None = None,
) -> WeightPlan:
    """Cut a weight of shape (K, N), both at least 1.

    Parameters
    ----------
    k, n : int
    mm_type : MatmulType
    chip : Chip
    runtime : RuntimeVersion
    k_parts : int
        K is cut into at least so many slices, as far as the alignment allows: where partial sums must stay small.
    k_group : int, optional
        Rows of the weight that share a scale; every K span is one group (a part of one, where a context takes less).
    row_images : {1, 2}
        Rows of A on the device per row of the activation.
    k_slices, n_tiles : int, optional
        So many slices of K and tiles of N, instead of what is modelled to be best; more where limits ask for it.
    cores : int, optional
        At most so many cores; by default all of the chip.
    buckets : sequence of int, optional
        Numbers of rows that contexts are made for, instead of what is modelled to be best: 1 or multiples of the
        chip's `row_multiple`, in rows of the device.
    ac_native : bool, optional
        Whether A and C are in native layout; by default they are where the layout of C is documented. Where only few
        rows are safe with it (`NativeRows`), what is modelled to take least is chosen.
    measured_cores : sequence of (int, int)
        Numbers of rows and the cores that were measured to be best for them.
    measured_shared : sequence of int
        Those of them for which it was best that cores share rows.
    rows : sequence of int
        Numbers of rows that the weight is cut for; the product of their modelled times is what is made small.
    timings : mapping of str to TimingModel, optional
        By chip, instead of the chip's own (`Chip.timings`). Without a model for chip and type, K and N are cut into as
        few spans as limits allow, N into a multiple of the cores where it is wide enough, and all cores are used.

    Raises
    ------
    DeviceError
        If chip or runtime lack the type, or every way to cut the weight is known to abort the vendor's library.
    ValueError
        If an argument makes no sense.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> plan = plan_weight(576, 49152, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> len(plan.k_spans), len(plan.n_spans), plan.cores
    (1, 12, 3)
    >>> [span.length for span in plan_weight(300, 64, MatmulType.INT8_INT8_INT32, chip("rk3588"), k_group=128).k_spans]
    [128, 128, 44]
    """
    if k < 1 or n < 1:
        raise ValueError(f"plan_weight: K and N must be at least 1, got K={k}, N={n}")
    for name, value in (("k_group", k_group), ("k_slices", k_slices), ("n_tiles", n_tiles), ("cores", cores)):
        if value is not None and value < 1:
            raise ValueError(f"plan_weight: {name} must be at least 1, got {value}")
    if row_images not in (1, 2):
        raise ValueError(f"plan_weight: row_images is 1 or 2, not {row_images}")
    if not rows or min(rows) < 1 or max(rows) > MAX_ROWS:
        raise ValueError(f"plan_weight: rows are numbers from 1 to {MAX_ROWS}, got {tuple(rows)}")
    limits = chip.type_limits(mm_type, runtime)
    # Native A and C avoid a conversion inside the runtime (facts 9.3), but only where C is documented (Q6).
    documented = mm_type.a in chip.native.a and mm_type.c in chip.native.c
    layouts: tuple[bool, ...] = (documented,) if ac_native is None else (ac_native,)
    if ac_native is None and documented and limits.native_rows is not None:
        layouts = (True, False) if chip.type_row(mm_type, runtime).ac_normal.value else (True,)
    if True in layouts and limits.native_rows is not None:
        limits = _within(limits, limits.native_rows)
    if ac_native and not documented:
        raise ValueError(f"plan_weight: no source documents native A and C of {mm_type.name} on {chip.soc} (Q6)")
    model = (chip.timings if timings is None else timings).get(chip.soc)
    plan = _plan_weight(
        _Wanted(
            chip.soc, mm_type, k, n, limits, layouts,
            chip.native.row_multiple, min(cores or chip.cores, chip.cores), k_parts, k_group, row_images, k_slices,
            n_tiles, None if buckets is None else tuple(sorted(set(buckets))), tuple(rows),
        ),
        model if model is not None and model.knows(mm_type) else None,
    )  # fmt: skip
    if not measured_cores:
        return plan
    return replace(plan, measured_cores=tuple(sorted(measured_cores)), measured_shared=tuple(sorted(measured_shared)))


def _within(limits: TypeLimits, rows: NativeRows) -> TypeLimits:
    """Limits of tiles no deeper and no wider than those that were tried: beyond, one row is left at most."""
    k = max(rows.ks[-1] // limits.k_multiple, 1) * limits.k_multiple
    n = max(rows.ns[-1] // limits.n_multiple, 1) * limits.n_multiple
    return replace(limits, k_max=min(limits.k_max, k), n_max=min(limits.n_max, n))


@dataclass(frozen=True)
class _Wanted:
    """All that a weight's plan depends on, apart from the model."""

    soc: str
    mm_type: MatmulType
    k: int
    n: int
    limits: TypeLimits
    layouts: tuple[bool, ...]  # whether A and C are native: what may be chosen, the preferred one first
    row_multiple: int
    cores: int
    k_parts: int
    k_group: int | None
    row_images: int
    k_slices: int | None
    n_tiles: int | None
    buckets: tuple[int, ...] | None
    rows: tuple[int, ...]

    def k_spans(self, slices: int) -> tuple[Span, ...]:
        limits = self.limits
        if self.k_group is not None:
            return split_groups(self.k, self.k_group, limits.k_multiple, limits.k_max)
        return split(self.k, limits.k_multiple, limits.k_max, slices)

    def n_spans(self, tiles: int) -> tuple[Span, ...]:
        return split(self.n, self.limits.n_multiple, self.limits.n_max, tiles)

    def m_max(self, k_spans: tuple[Span, ...], n_spans: tuple[Span, ...], native: bool) -> int:
        """Largest M of one run; 0 where it is less than one row has images."""
        most = largest_rows(self.limits, k_spans, n_spans, native, self.row_multiple)
        return most if most >= self.row_images else 0

    def slice_counts(self, model: TimingModel | None) -> list[int]:
        """Numbers of K slices to choose from, the preferred one first where there is no model."""
        if self.k_group is not None:
            return [1]
        limits = self.limits
        units = round_up(self.k, limits.k_multiple) // limits.k_multiple
        fewest = max(-(-units // (limits.k_max // limits.k_multiple)), self.k_parts, self.k_slices or 1)
        if self.k_slices is not None:
            return [fewest]
        if model is None:
            return [fewest, fewest + 1, fewest + 2]
        counts, count = [fewest], fewest
        # more slices than keep all rows on the chip bring nothing
        while count < min(units, MAX_SPANS) and model.resident_rows(self.mm_type, -(-self.k // count)) < max(self.rows):
            count += 1 + count // 8
            counts.append(count)
        return counts

    def tile_counts(self, model: TimingModel | None) -> list[int]:
        """Numbers of N tiles to choose from, the preferred one first where there is no model."""
        limits = self.limits
        units = round_up(self.n, limits.n_multiple) // limits.n_multiple
        fewest = max(-(-units // (limits.n_max // limits.n_multiple)), self.n_tiles or 1)
        if self.n_tiles is not None:
            return [fewest]
        counts = [min(units, round_up(fewest, cores)) for cores in range(1, self.cores + 1)]
        return counts if model is not None else [counts[-1], fewest, fewest + 1, fewest + 2]

    def seconds(self, costs: TileCosts, m_max: int, tiles: int) -> float:
        """Sum over the mix of rows of the logarithms of modelled times."""
        score = 0.0
        for m in self.rows:
            full, rest = divmod(m * self.row_images, m_max)
            rest = rest if rest < 2 else round_up(rest, self.row_multiple)
            best = min(
                full * costs.seconds(m_max, cores) + (costs.seconds(rest, cores) if rest else 0.0)
                for cores in range(1, min(self.cores, tiles) + 1)
            )
            for cores in range(2, self.cores + 1):
                share = round_up(-(-m * self.row_images // cores), self.row_multiple)
                if (cores - 1) * share < m * self.row_images:
                    full, rest = divmod(share, m_max)
                    shared = costs.shared_rows([[m_max] * full + [rest] * (rest > 0)] * cores).seconds
                    best = min(best, shared / (1 - LEAST_GAIN))
            score += math.log(best)
        return score

    def registered(self, m_max: int, tiles: int, costs: TileCosts | None) -> tuple[int, ...]:
        """Numbers of rows that contexts are made for."""
        step = math.lcm(self.row_multiple, self.row_images)
        if self.buckets is not None:
            wrong = [b for b in self.buckets if not 1 <= b <= m_max or (b > 1 and b % step) or b < self.row_images]
            if wrong or not self.buckets:
                raise ValueError(
                    f"plan_weight: buckets are {'' if self.row_images > 1 else '1 or '}multiples of {step} up to "
                    f"{m_max} for this weight, got {self.buckets}"
                )
            return self.buckets
        if costs is None:
            found = row_buckets(m_max, step)
        else:
            most = min(self.cores, tiles)
            found = choose_buckets(m_max, step, lambda rows: costs.best(rows, most))
        return tuple(size for size in found if size >= self.row_images)


def largest_rows(
    limits: TypeLimits, k_spans: Iterable[Span], n_spans: Iterable[Span], ac_native: bool, row_multiple: int
) -> int:
    """Largest M that every tile can be run with, 1 or a multiple of `row_multiple`; 0 where there is none."""
    ks, ns = {span.padded for span in k_spans}, {span.padded for span in n_spans}
    most = min(limits.most_rows(k, n, ac_native) for k in ks for n in ns)
    return most // row_multiple * row_multiple or min(most, 1)


@lru_cache(maxsize=512)
def _plan_weight(wanted: _Wanted, model: TimingModel | None) -> WeightPlan:
    pairs = _few_tiles(wanted, [
        (k_spans, n_spans)
        for k_spans in _distinct(wanted.k_spans(slices) for slices in _planned(wanted.slice_counts(model)))
        for n_spans in _distinct(wanted.n_spans(tiles) for tiles in _planned(wanted.tile_counts(model)))
    ])  # fmt: skip
    avoid = wanted.limits.avoid
    sound = [pair for pair in pairs if not any(span.padded in avoid for spans in pair for span in spans)]
    if not sound:
        raise DeviceError(
            f"({wanted.k}, {wanted.n}) as {wanted.mm_type.name} on {wanted.soc}: every way to cut it has a K or N of "
            f"{', '.join(map(str, avoid))}, which abort the process inside the vendor's library; choose other slices"
        )
    choices = [(ks, ns, native, wanted.m_max(ks, ns, native)) for native in wanted.layouts for ks, ns in sound]
    choices = [choice for choice in choices if choice[-1]]
    if not choices:
        raise DeviceError(
            f"({wanted.k}, {wanted.n}) as {wanted.mm_type.name} on {wanted.soc}: no number of rows is known to be safe "
            "with native A and C for tiles that are so deep or wide, since creating them can kill the process inside "
            "the vendor's library (facts 15); take more slices of K or tiles of N, or the normal layout"
        )
    k_spans, n_spans, ac_native, m_max = choices[0]
    costs = None
    if model is not None:
        best = math.inf
        for ks, ns, native, most in choices:  # of equals, the one with fewer tiles
            tiles = TileCosts(model, wanted.mm_type, tuple(s.padded for s in ks), tuple(s.padded for s in ns), native)
            score = wanted.seconds(tiles, most, len(ns))
            if score < best:
                best, k_spans, n_spans, ac_native, m_max, costs = score, ks, ns, native, most, tiles
    return WeightPlan(
        wanted.soc, wanted.mm_type, wanted.k, wanted.n, k_spans, n_spans, m_max, wanted.row_multiple,
        ac_native, min(wanted.cores, len(n_spans)), wanted.registered(m_max, len(n_spans), costs),
        wanted.row_images, wanted.k_group, row_cores=wanted.cores,
    )  # fmt: skip


def _few_tiles(
    wanted: _Wanted, pairs: list[tuple[tuple[Span, ...], tuple[Span, ...]]]
) -> list[tuple[tuple[Span, ...], tuple[Span, ...]]]:
    few = [pair for pair in pairs if len(pair[0]) * len(pair[1]) <= MAX_TILES]
    if not few:
        raise ValueError(
            f"({wanted.k}, {wanted.n}) as {wanted.mm_type.name} would be cut into "
            f"{min(len(k_spans) * len(n_spans) for k_spans, n_spans in pairs)} tiles; at most {MAX_TILES} are planned, "
            "which is more than the memory of an NPU has room for: multiply by parts of it"
        )
    return few


def _planned(counts: list[int]) -> list[int]:
    """Numbers of spans, without those that are too many; or the fewest, for which cutting says so."""
    return [count for count in counts if count <= MAX_SPANS] or [min(counts)]


def _distinct(found: Iterable[tuple[Span, ...]]) -> list[tuple[Span, ...]]:
    return list(dict.fromkeys(found))


# ---- text ----------------------------------------------------------------------------------------------------------


def weight_content(plan: WeightPlan) -> dict[str, Any]:
    """What JSON can hold of a plan."""
    content = asdict(plan)
    del content["_hash"]
    content["mm_type"] = plan.mm_type.name
    return content


def parsed(text: str) -> dict[str, Any]:
    """The object that a JSON text holds."""
    content = json.loads(text)  # JSONDecodeError is a ValueError
    if not isinstance(content, dict):
        raise ValueError(f"this is no plan: {text[:40]!r}")
    return content


def spans_of(content: Any) -> tuple[Span, ...]:
    """Spans from what JSON holds."""
    return tuple(Span(int(s["start"]), int(s["length"]), int(s["padded"])) for s in content)


def weight_of(content: dict[str, Any]) -> WeightPlan:
    """A plan from what `weight_content` made."""
    try:
        values = dict(content)
        values["mm_type"] = MatmulType[content["mm_type"]]
        values["k_spans"], values["n_spans"] = spans_of(content["k_spans"]), spans_of(content["n_spans"])
        values["buckets"] = tuple(map(int, content["buckets"]))
        values["measured_cores"] = tuple((int(m), int(cores)) for m, cores in content["measured_cores"])
        values["measured_shared"] = tuple(map(int, content.get("measured_shared", ())))
        return WeightPlan(**values)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is no plan of a weight: {error!r}") from error
