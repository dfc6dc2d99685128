"""From one logical matmul to tiles: pure functions of shapes, types, the capability table and a timing model.

A weight is cut once (`weight_plan.py`); here M is cut for it, into ranges that are padded to a few sizes (buckets) so
that few contexts serve every M, and the number of cores is chosen. Same inputs, same plan; no library is needed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Literal

from npumatmul.chips.layout import round_up
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.planning.buckets import Cover, row_buckets, simple_cover
from npumatmul.planning.cost import LEAST_GAIN, LEAST_GAIN_IN_TURNS, ModelledTime, TileCosts, tile_cores
from npumatmul.planning.spans import Span, shown, split
from npumatmul.planning.weight import WeightPlan, costs_of, parsed, plan_weight, spans_of, weight_content, weight_of

__all__ = [
    "A_BUFFERS_MOST",
    "MatmulPlan",
    "PaddingReport",
    "Share",
    "Span",
    "WeightPlan",
    "padding_report",
    "plan_matmul",
    "plan_weight",
    "row_buckets",
    "split",
]

#: Buffers for images of A that one call of the executor takes (`NPUMM_A_MOST`).
A_BUFFERS_MOST = 16
#: Ranges of rows of a thread that takes turns, where larger ones are to be had.
_RANGES_PER_TURN = 4
#: Most ranges of rows of one product.
MAX_RANGES = 1 << 18
#: Threads that take turns on a core: while one's run goes on, the other one packs and stores.
TURNS = 2
#: What each core has of its own: tiles of N, or ranges of rows with all tiles; "turns": so has each of its threads.
Share = Literal["tiles", "rows", "turns"]


@dataclass(frozen=True)
class MatmulPlan:
    """A logical matmul of M rows with a weight, cut into runs of the NPU.

    Attributes
    ----------
    m : int
    weight : WeightPlan
    m_spans : tuple of Span
        `start` and `length` in rows of the activation, `padded` in rows of the device: a bucket.
    cores : int
        Cores that work at once.
    tile_cores : tuple of int
        The core of each N tile; empty where cores share rows.
    modelled : ModelledTime or None
        Modelled time, never measured; None where nothing is known of chip or type.
    range_cores : tuple of int
        The core of each range of rows, which runs all tiles with it; empty where cores share tiles.
    range_turns : tuple of int
        Of threads that take turns on its core, the one that a range of rows belongs to; empty where each core has one.
    """

    m: int
    weight: WeightPlan
    m_spans: tuple[Span, ...]
    cores: int
    tile_cores: tuple[int, ...]
    modelled: ModelledTime | None = None
    range_cores: tuple[int, ...] = ()
    range_turns: tuple[int, ...] = ()

    @property
    def turns(self) -> int:
        """Threads that take turns on each core."""
        return max(self.range_turns, default=0) + 1

    @property
    def threads(self) -> int:
        """Threads that serve the cores, each with contexts and buffers of its own."""
        return self.cores * self.turns

    def turn(self, m_index: int) -> int:
        """Which of its core's threads a range of rows belongs to."""
        return self.range_turns[m_index] if self.range_turns else 0

    def without_turns(self) -> MatmulPlan:
        """The same runs, one thread on each core."""
        return replace(self, range_turns=())

    def core(self, m_index: int, n_index: int) -> int:
        """The core that runs a tile with a range of rows."""
        return self.range_cores[m_index] if self.range_cores else self.tile_cores[n_index]

    @property
    def runs(self) -> int:
        return len(self.m_spans) * len(self.weight.k_spans) * len(self.weight.n_spans)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the logical matrices."""
        return self.m * self.weight.k * self.weight.n

    @property
    def padded_macs(self) -> int:
        """Multiply-accumulates that the device makes, padding included."""
        extents = [sum(s.padded for s in spans) for spans in (self.m_spans, self.weight.k_spans, self.weight.n_spans)]
        return extents[0] * extents[1] * extents[2]

    @property
    def a_bytes(self) -> int:
        """Bytes of A on the device: the largest range of rows, all slices of K; once per core where they share rows."""
        rows = max(span.padded for span in self.m_spans)
        once = sum(self.weight.mm_type.a.nbytes(rows * span.padded) for span in self.weight.k_spans)
        return once * (self.threads if self.range_cores else 1)

    @property
    def c_bytes(self) -> int:
        """Bytes of C on the device: the largest tile, once per core."""
        rows = max(span.padded for span in self.m_spans)
        return self.threads * max(self.weight.mm_type.c.nbytes(rows * span.padded) for span in self.weight.n_spans)

    @property
    def modelled_seconds(self) -> float | None:
        """Modelled time on the chip with its host, or None where nothing is known; never measured."""
        return None if self.modelled is None else self.modelled.seconds

    def to_json(self) -> str:
        """The plan as JSON; `from_json` reads it."""
        content = {**asdict(self), "weight": weight_content(self.weight), "modelled_seconds": self.modelled_seconds}
        return json.dumps(content, indent=1)

    @classmethod
    def from_json(cls, text: str) -> MatmulPlan:
        """A plan that `to_json` wrote.

        Raises
        ------
        ValueError
            If the text is none.
        """
        content = parsed(text)
        try:
            modelled = content["modelled"]
            return cls(
                int(content["m"]),
                weight_of(content["weight"]),
                spans_of(content["m_spans"]),
                int(content["cores"]),
                tuple(map(int, content["tile_cores"])),
                None if modelled is None else ModelledTime(**modelled),
                tuple(map(int, content.get("range_cores", ()))),
                tuple(map(int, content.get("range_turns", ()))),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no plan of a matmul: {error!r}") from error

    def __str__(self) -> str:
        w = self.weight
        work = self.padded_macs / max(self.macs * w.row_images, 1)
        shares = self.range_cores or self.tile_cores
        on = ", ".join(f"core {core}: {shares.count(core)}" for core in range(self.cores))
        ranges, tiles = (f"; ranges on {on}", "") if self.range_cores else ("", f"; tiles on {on}")
        ranges += f", by {self.turns} threads in turns" if self.turns > 1 else ""
        layout = "native" if w.ac_native else "normal"
        rows = [
            ("M", f"{shown(self.m_spans)}{ranges}; registered {', '.join(map(str, w.buckets))}"),
            ("K", shown(w.k_spans) + ("" if w.k_group is None else f"; groups of {w.k_group}")),
            ("N", f"{shown(w.n_spans)}{tiles}"),
            ("layout", f"B native, A and C {layout}"),
            ("bytes", f"B {w.nbytes} ({w.waste:.1%} padding), A {self.a_bytes}, C {self.c_bytes}"),
        ]
        if w.row_images > 1:
            rows.insert(1, ("images", f"{w.row_images} rows of A per row"))
        if self.modelled is not None:
            t = self.modelled
            beside = f"binding {t.binding * 1e3:.3f}, packing and storing {t.host * 1e3:.3f}"
            if self.turns > 1:
                beside = f"what they do not hide {t.host * 1e3:.3f}"
            rows.append(
                (
                    "time",
                    f"modelled {t.seconds * 1e3:.3f} ms on the chip, not measured ({t.estimate.low * 1e3:.3f} to "
                    f"{t.estimate.high * 1e3:.3f}): runs {t.device * 1e3:.3f}, {beside}",
                )
            )
        head = (
            f"({self.m}, {w.k}) @ ({w.k}, {w.n})  {w.mm_type.name} on {w.soc}: {self.runs} runs on {self.cores} "
            f"core{'s' if self.cores > 1 else ''}, {work:.3f}x the work"
        )
        return "\n".join([head, *(f"  {name:<6} {text}" for name, text in rows)])


def plan_matmul(
    m: int,
    weight: WeightPlan,
    *,
    cores: int | None = None,
    share: Share | None = None,
    images: int | None = None,
    turns: bool = True,
    timings: Mapping[str, TimingModel] = TIMINGS,
) -> MatmulPlan:
    """Cut `m` rows, at least 1, for a weight.

    Parameters
    ----------
    m : int
    weight : WeightPlan
    cores : int, optional
        So many cores (at most those of the weight's plan) instead of what was measured, or is modelled, to be best.
    share : {"tiles", "rows", "turns"}, optional
        What cores have of their own: tiles of N, or ranges of rows with all tiles; "turns": the latter, and two threads
        take turns on each. By default tiles where `cores` is given, else what was measured, or is modelled, to be best.
    images : int, optional
        Images of a range of rows: slices of K by default. Cores that share rows, and threads that take turns, have
        buffers for theirs each.
    turns : bool
        Whether threads may take turns where nothing was asked for.
    timings : mapping of str to TimingModel
        By chip. Without a model for chip and type, rows are padded to the next bucket and all cores are used.

    Raises
    ------
    ValueError
        If there is nothing to plan, or rows cannot be shared by so many cores.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.chips.types import MatmulType
    >>> weight = plan_weight(64, 100, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> print(plan_matmul(5, weight))  # doctest: +ELLIPSIS
    (5, 64) @ (64, 100)  INT8_INT8_INT32 on rk3588: 1 runs on 1 core, 3.072x the work
      M      5 as 12; registered 1, 4, 12, ...
      K      64
      N      100 as 128; tiles on core 0: 1
      layout B native, A and C native
      bytes  B 8192 (21.9% padding), A 768, C 6144
      time   modelled 0.047 ms on the chip, not measured (0.030 to 0.072): runs 0.031, binding 0.015, packing and ...
    """
    if m < 1:
        raise ValueError(f"plan_matmul: M must be at least 1, got {m}")
    if m * weight.row_images > MAX_RANGES * weight.buckets[-1]:
        raise ValueError(
            f"plan_matmul: M = {m} is too large: at most {MAX_RANGES} ranges of {weight.buckets[-1]} rows are planned; "
            "multiply parts of it"
        )
    most = weight.row_cores if share in ("rows", "turns") else weight.cores
    if cores is not None and not 1 <= cores <= most:
        raise ValueError(f"plan_matmul: this weight's plan has 1 to {most} cores, got {cores}")
    return _planned(m, weight, cores, share, images, turns, timings.get(weight.soc))


@lru_cache(maxsize=1024)
def _planned(
    m: int,
    weight: WeightPlan,
    cores: int | None,
    share: Share | None,
    images: int | None,
    turns: bool,
    model: TimingModel | None,
) -> MatmulPlan:
    """As `plan_matmul`; layers that are alike, and numbers of rows that come again, are planned once."""
    costs = None if model is None else costs_of(weight, {weight.soc: model})
    if share == "turns":
        counts = range(1, weight.row_cores + 1) if cores is None else [cores]
        return _found(_by_rows(m, weight, costs, images, counts, TURNS), m, cores)
    plan = _one_thread_per_core(m, weight, cores, share, images, costs)
    if cores is not None or share is not None or not turns:
        return plan
    return _or_in_turns(plan, costs, images, [plan.cores] if weight.measured_cores else range(1, weight.row_cores + 1))


def _one_thread_per_core(
    m: int, weight: WeightPlan, cores: int | None, share: Share | None, images: int | None, costs: TileCosts | None
) -> MatmulPlan:
    if cores is None and share != "rows" and weight.measured_cores:
        fitting = [each for each in weight.measured_cores if each[0] <= m]
        measured, cores = fitting[-1] if fitting else weight.measured_cores[0]
        if share is None and measured in weight.measured_shared:
            shared = _by_rows(m, weight, costs, images, [cores])
            if shared is not None:
                return shared
        cores = min(cores, weight.cores)
    elif share == "rows":
        counts = range(2, weight.row_cores + 1) if cores is None else [cores]
        return _found(_by_rows(m, weight, costs, images, counts), m, cores)
    by_tiles = _by_tiles(m, weight, costs, cores)
    if cores is not None or share is not None or by_tiles.modelled_seconds is None:
        return by_tiles
    shared = _by_rows(m, weight, costs, images, range(2, weight.row_cores + 1))
    gains = shared is not None and (shared.modelled_seconds or 0.0) < (1 - LEAST_GAIN) * by_tiles.modelled_seconds
    return shared if shared is not None and gains else by_tiles


def _found(plan: MatmulPlan | None, m: int, cores: int | None) -> MatmulPlan:
    if plan is None:
        raise ValueError(f"plan_matmul: {m} rows cannot be shared by {cores or 'several'} cores")
    return plan


def _or_in_turns(plan: MatmulPlan, costs: TileCosts | None, images: int | None, counts: Iterable[int]) -> MatmulPlan:
    """The same product by threads that take turns on one of these numbers of cores, where that gains enough."""
    if plan.modelled is None:
        return plan
    turns = _by_rows(plan.m, plan.weight, costs, images, counts, TURNS)
    # threads of several cores pack and store at once; how much faster that is is not known: it is taken to be ideal
    without = plan.modelled.device + plan.modelled.binding + plan.modelled.host / plan.cores
    gains = turns is not None and (turns.modelled_seconds or 0.0) < (1 - LEAST_GAIN_IN_TURNS) * without
    return turns if turns is not None and gains else plan


def _by_tiles(m: int, weight: WeightPlan, costs: TileCosts | None, cores: int | None) -> MatmulPlan:
    rows = m * weight.row_images
    modelled = None
    if costs is None:
        chosen, cover = cores or weight.cores, simple_cover(rows, weight.buckets)
    else:
        found = []
        for count in range(1, weight.cores + 1) if cores is None else [cores]:
            sizes = _cover(weight, costs.model, count).of(rows)
            found.append((sum(costs.seconds(size, count) for size in sizes), count, sizes))
        _, chosen, cover = min(found)
        modelled = sum((costs.of(size, chosen) for size in cover), ModelledTime(0.0, 0.0, 0.0))
    spans = tuple(_spans(cover, 0, m, weight))
    return MatmulPlan(m, weight, spans, chosen, tile_cores([s.padded for s in weight.n_spans], chosen), modelled)


def _by_rows(
    m: int, weight: WeightPlan, costs: TileCosts | None, images: int | None, counts: Iterable[int], turns: int = 1
) -> MatmulPlan | None:
    """Rows shared by one of these numbers of cores, by modelled time; None where none of them goes."""
    found: MatmulPlan | None = None
    for cores in counts:
        threads = cores * turns
        share = round_up(-(-m // threads), weight.row_multiple)  # so that only the last range can have rows that pad
        starts = range(0, m, share)
        buffers = (len(weight.k_spans) if images is None else images) * threads
        if threads < 2 or len(starts) != threads or buffers > A_BUFFERS_MOST:
            continue
        rows = [min(share, m - start) * weight.row_images for start in starts]
        for sizes, modelled in _shares(rows, weight, costs, cores, turns):
            if found is not None and modelled is not None and modelled.seconds >= (found.modelled_seconds or 0.0):
                continue
            cut = zip(sizes, starts, strict=True)
            spans = [_spans(each, first, min(first + share, m), weight) for each, first in cut]
            owners = [thread for thread, each in enumerate(spans) for _ in each]
            found = MatmulPlan(
                m, weight, tuple(span for each in spans for span in each), cores, (), modelled,
                tuple(owner // turns for owner in owners),
                tuple(owner % turns for owner in owners) if turns > 1 else (),
            )  # fmt: skip
    return found


def _shares(
    rows: Sequence[int], weight: WeightPlan, costs: TileCosts | None, cores: int, turns: int
) -> Iterator[tuple[list[tuple[int, ...]], ModelledTime | None]]:
    """Ways to cut the rows that each thread has into ranges, with what they take."""
    if costs is None:
        yield [simple_cover(each, weight.buckets) for each in rows], None
    elif turns == 1:
        cover = _cover_alone(weight, costs.model, cores)
        sizes = [cover.of(each) for each in rows]
        yield sizes, costs.shared_rows(sizes)
    else:  # the first range is packed, and the last one stored, while nothing runs: smaller ones may be better
        for most in weight.buckets:
            if max(rows) <= most * _RANGES_PER_TURN:
                cover = _cover_alone(weight, costs.model, cores, most)
                sizes = [cover.of(each) for each in rows]
                yield sizes, costs.in_turns(sizes, turns)
                if most >= max(rows):
                    break


def _spans(sizes: Iterable[int], start: int, stop: int, weight: WeightPlan) -> list[Span]:
    """Ranges of rows, in rows of the activation, that run as these buckets."""
    spans = []
    for size in sizes:
        length = min(size // weight.row_images, stop - start)
        spans.append(Span(start, length, size))
        start += length
    return spans


@lru_cache(maxsize=1024)
def _cover(weight: WeightPlan, model: TimingModel, cores: int) -> Cover:
    costs = costs_of(weight, {weight.soc: model})
    assert costs is not None
    return Cover(weight.buckets, lambda size: costs.seconds(size, cores))


@lru_cache(maxsize=1024)
def _cover_alone(weight: WeightPlan, model: TimingModel, cores: int, most: int | None = None) -> Cover:
    """For the rows of one core, while so many have rows of their own; by ranges of at most so many rows."""
    costs = costs_of(weight, {weight.soc: model})
    assert costs is not None
    buckets = [size for size in weight.buckets if most is None or size <= most]
    return Cover(buckets, lambda size: costs.range_seconds(size, cores))


# ---- padding -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaddingReport:
    """What buckets cost over a distribution of numbers of rows, by the model; nothing of it was measured.

    Attributes
    ----------
    rows : float
        Average number of rows.
    padded_rows : float
        Average number of rows that the device computes.
    seconds, exact_seconds : float
        Average modelled time with the buckets, and with contexts made for each exact number of rows.
    worst : int
        The number of rows that loses most.
    worst_loss : float
        What it loses.
    """

    rows: float
    padded_rows: float
    seconds: float
    exact_seconds: float
    worst: int
    worst_loss: float

    @property
    def loss(self) -> float:
        """Share of modelled time that is lost against contexts made for each exact number of rows."""
        return self.seconds / self.exact_seconds - 1

    def __str__(self) -> str:
        return (
            f"{self.rows:.1f} rows on average run as {self.padded_rows:.1f}; modelled {self.seconds * 1e3:.3f} ms "
            f"instead of {self.exact_seconds * 1e3:.3f} ms with exact contexts: {self.loss:.1%} lost, "
            f"at worst {self.worst_loss:.1%} with {self.worst} rows"
        )


def padding_report(
    weight: WeightPlan, lengths: Iterable[int] | Mapping[int, float], timings: Mapping[str, TimingModel] = TIMINGS
) -> PaddingReport:
    """What padding to buckets costs over numbers of rows, by the model.

    Parameters
    ----------
    weight : WeightPlan
    lengths : iterable of int, or mapping of int to float
        Numbers of rows, or their weights.
    timings : mapping of str to TimingModel

    Raises
    ------
    ValueError
        If there are none, or nothing is known of chip or type.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.chips.types import MatmulType
    >>> weight = plan_weight(2048, 2048, MatmulType.INT8_INT8_INT32, chip("rk3588"))
    >>> padding_report(weight, range(1, 513)).loss < 0.1
    True
    """
    often = lengths if isinstance(lengths, Mapping) else Counter(lengths)
    costs = costs_of(weight, timings)
    if costs is None:
        raise ValueError(f"padding_report: no timing is known for {weight.mm_type.name} on {weight.soc}")
    total = sum(often.values())
    if not total > 0 or min(often) < 1:
        raise ValueError("padding_report: numbers of rows of at least 1, with positive weights, are needed")
    rows = padded = seconds = exact = 0.0
    losses = []
    for m, share in often.items():
        plan = plan_matmul(m, weight, turns=False, timings=timings)  # as exact contexts are taken to be
        assert plan.modelled_seconds is not None
        alone = _exact_seconds(m * weight.row_images, weight, costs)
        rows += share * m
        padded += share * sum(span.padded for span in plan.m_spans) / weight.row_images
        seconds += share * plan.modelled_seconds
        exact += share * alone
        losses.append((plan.modelled_seconds / alone - 1, m))
    loss, worst = max(losses)
    return PaddingReport(rows / total, padded / total, seconds / total, exact / total, worst, loss)


def _exact_seconds(rows: int, weight: WeightPlan, costs: TileCosts) -> float:
    """Modelled time with contexts for exactly these rows: as few equal parts as M allows, or a few more."""

    def parts(count: int) -> Iterable[list[int]]:
        fewest = -(-count // weight.m_max)
        return ([-(-count // each)] * each for each in range(fewest, fewest + 4))

    by_tiles = min(len(sizes) * costs.best(sizes[0], weight.cores) for sizes in parts(rows))
    by_rows = (
        costs.shared_rows([sizes] * cores).seconds
        for cores in range(2, weight.row_cores + 1)
        for sizes in parts(-(-rows // cores))
    )
    return min(by_tiles, *by_rows)
