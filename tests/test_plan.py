"""Planning: spans cover their extent exactly, keep to the capability table, and nothing else decides limits."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npumatmul
from npumatmul.chips import CHIPS, Chip
from npumatmul.chips.timing import TIMINGS
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError
from npumatmul.planning.buckets import Cover
from npumatmul.planning.choices import consulting, planned
from npumatmul.planning.product import (
    A_BUFFERS_MOST,
    MatmulPlan,
    Span,
    WeightPlan,
    padding_report,
    plan_matmul,
    plan_weight,
    row_buckets,
    split,
)
from npumatmul.rknn import RuntimeVersion

chips = st.sampled_from(sorted(CHIPS))


@st.composite
def chip_and_type(draw: st.DrawFn) -> tuple[Chip, MatmulType]:
    chip = CHIPS[draw(chips)]
    return chip, draw(st.sampled_from(sorted(chip.limits, key=lambda t: t.code)))


def check_cover(spans: tuple[Span, ...], extent: int) -> None:
    position = 0
    for span in spans:
        assert span.start == position
        assert 0 < span.length <= span.padded
        position += span.length
    assert position == extent
    assert all(span.length == span.padded for span in spans[:-1]), "only the last span is padded"


@given(extent=st.integers(1, 200_000), multiple=st.sampled_from([16, 32, 64]), longest=st.integers(1, 100))
def test_split_covers_and_balances(extent: int, multiple: int, longest: int) -> None:
    spans = split(extent, multiple, longest * multiple)
    check_cover(spans, extent)
    sizes = {span.padded for span in spans}
    assert all(size % multiple == 0 and size <= longest * multiple for size in sizes)
    assert max(sizes) - min(sizes) <= multiple, "spans differ by at most one alignment step"
    assert len(spans) == -(-extent // (longest * multiple)), "no more spans than needed"
    excess = sum(span.padded for span in spans) - extent
    assert excess < multiple or (len(sizes) == 1 and excess - multiple < extent / 64), "padding stays small"


@given(where=chip_and_type(), k=st.integers(1, 30_000), n=st.integers(1, 100_000), m=st.integers(1, 3_000))
def test_plans_keep_to_the_table(where: tuple[Chip, MatmulType], k: int, n: int, m: int) -> None:
    chip, mm_type = where
    limits = chip.limits[mm_type]
    plan = plan_matmul(m, plan_weight(k, n, mm_type, chip))
    check_cover(plan.weight.k_spans, k)
    check_cover(plan.weight.n_spans, n)
    check_cover(tuple(replace(s, padded=s.length) for s in plan.m_spans), m)
    assert all(s.padded >= s.length for s in plan.m_spans)
    assert all(s.padded % limits.k_multiple == 0 and s.padded <= limits.k_max for s in plan.weight.k_spans)
    assert all(s.padded % limits.n_multiple == 0 and s.padded <= limits.n_max for s in plan.weight.n_spans)
    for span in plan.m_spans:
        assert span.padded == 1 or span.padded % chip.native.row_multiple == 0
        assert span.padded <= limits.m_max
    assert plan.runs == len(plan.m_spans) * len(plan.weight.k_spans) * len(plan.weight.n_spans)
    assert plan.padded_macs >= plan.macs == m * k * n
    # every context of the plan is one of few shapes, so that contexts are shared
    assert {span.padded for span in plan.m_spans} <= set(plan.weight.buckets)
    # 1, steps of four up to 28, and from there on the fewest that lose at most 15 % each: log(512 / 28) / log(1.15)
    assert len(plan.weight.buckets) <= 1 + 7 + 21
    assert len({(ks.padded, ns.padded) for ks in plan.weight.k_spans for ns in plan.weight.n_spans}) <= 4
    owners, shared = (plan.range_cores, plan.m_spans) if plan.range_cores else (plan.tile_cores, plan.weight.n_spans)
    assert len(owners) == len(shared)
    assert set(owners) == set(range(plan.cores)), "no core that is counted is idle"
    assert bool(plan.range_cores) != bool(plan.tile_cores)
    assert plan.cores <= chip.cores
    assert MatmulPlan.from_json(plan.to_json()) == plan
    assert WeightPlan.from_json(plan.weight.to_json()) == plan.weight


def test_native_a_and_c_only_where_documented() -> None:
    rk3588 = CHIPS["rk3588"]
    assert plan_weight(64, 64, MatmulType.INT8_INT8_INT32, rk3588).ac_native
    assert not plan_weight(64, 64, MatmulType.FLOAT16_FLOAT16_FLOAT16, rk3588).ac_native
    assert not plan_weight(64, 64, MatmulType.INT8_INT8_INT8, rk3588).ac_native


@given(m_max=st.integers(4, 4096), multiple=st.sampled_from([1, 2, 4]))
def test_buckets_waste_less_than_a_third_beyond_the_first_few(m_max: int, multiple: int) -> None:
    buckets = row_buckets(m_max, multiple)
    assert buckets[0] == 1
    assert buckets[-1] <= m_max
    for smaller, larger in itertools.pairwise(buckets):
        assert larger <= max(2 * smaller, multiple)
        if larger > 2 * multiple:
            assert 3 * (larger - smaller - 1) < 2 * larger


def test_limits_of_rk3588_as_decided() -> None:
    rk3588 = CHIPS["rk3588"]
    fp16 = rk3588.type_limits(MatmulType.FLOAT16_FLOAT16_FLOAT32)
    int8 = rk3588.type_limits(MatmulType.INT8_INT8_INT32)
    int4 = rk3588.type_limits(MatmulType.INT4_INT4_INT16)
    assert (fp16.k_max, int8.k_max) == (2048, 8192)
    assert (fp16.n_max, int8.n_max, int4.n_max) == (4096, 4096, 8192)


def test_limits_depend_on_the_runtime() -> None:
    rk3588, old = CHIPS["rk3588"], RuntimeVersion(1, 5, 2)
    assert rk3588.type_limits(MatmulType.INT8_INT8_INT32, old).k_max == 4096
    assert rk3588.type_limits(MatmulType.FLOAT16_FLOAT16_FLOAT32, old).k_max == 2048
    with pytest.raises(DeviceError, match=r"needs runtime 1\.6\.0"):
        rk3588.type_limits(MatmulType.INT4_INT4_INT16, old)
    with pytest.raises(DeviceError, match="rk3566 has no matmul type"):
        CHIPS["rk3566"].type_limits(MatmulType.INT4_INT4_INT16)


def test_plan_prints_and_serialises() -> None:
    plan = plan_matmul(300, plan_weight(5000, 9000, MatmulType.FLOAT16_FLOAT16_FLOAT32, CHIPS["rk3588"]))
    assert f"{plan.runs} runs on {plan.cores} cores" in str(plan)
    content = json.loads(plan.to_json())
    assert content["m"] == 300
    assert content["weight"]["mm_type"] == "FLOAT16_FLOAT16_FLOAT32"
    assert [span["padded"] for span in content["m_spans"]] == [span.padded for span in plan.m_spans]


#: (K, N) of the matrices of SmolLM2-135M, Llama-1B and a 7B model.
LLM_SHAPES = (
    (576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49152),
    (2048, 2048), (2048, 512), (2048, 8192), (8192, 2048), (2048, 128256),
    (4096, 4096), (4096, 11008), (11008, 4096), (4096, 32000),
)  # fmt: skip
LLM_TYPES = (MatmulType.FLOAT16_FLOAT16_FLOAT32, MatmulType.INT8_INT8_INT32, MatmulType.INT4_INT4_INT16)
PROMPTS = {
    "uniform": dict.fromkeys(range(1, 513), 1.0),
    "log-uniform": {m: 1.0 / m for m in range(1, 513)},
}


@pytest.mark.parametrize("lengths", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("mm_type", LLM_TYPES, ids=lambda t: t.a.label)
def test_unknown_lengths_lose_less_than_a_tenth_to_padding(mm_type: MatmulType, lengths: dict[int, float]) -> None:
    for k, n in LLM_SHAPES:
        report = padding_report(plan_weight(k, n, mm_type, CHIPS["rk3588"]), lengths)
        assert report.loss < 0.1, f"{k}x{n}: {report}"


@pytest.mark.parametrize("mm_type", LLM_TYPES[:2], ids=lambda t: t.a.label)
@pytest.mark.parametrize("soc", ["rk3588", "rk3576"])
def test_padding_is_compared_with_exact_rows_that_cores_share_as_well(soc: str, mm_type: MatmulType) -> None:
    """Long and narrow products, as of convolutions, have rows shared: padding gains nothing by that."""
    for k, n in ((1408, 128), (352, 32), (2816, 256)):
        report = padding_report(plan_weight(k, n, mm_type, CHIPS[soc]), range(1, 3000, 37))
        assert -0.001 < report.loss < 0.1, f"{k}x{n}: {report}"


@given(
    m=st.integers(1, 65536),
    kn=st.sampled_from(LLM_SHAPES),
    mm_type=st.sampled_from(LLM_TYPES),
    images=st.sampled_from([1, 2]),
)
def test_any_number_of_rows_runs_as_registered_shapes(
    m: int, kn: tuple[int, int], mm_type: MatmulType, images: int
) -> None:
    weight = plan_weight(*kn, mm_type, CHIPS["rk3588"], row_images=images)
    assert all(size == 1 or size % 4 == 0 for size in weight.buckets)
    assert weight.buckets[-1] <= 512
    assert images == 1 or weight.buckets[0] > 1, "a row and its second image stay together"
    plan = plan_matmul(m, weight)
    for core in set(plan.range_cores) or {
        0
    }:  # each core has rows that follow each other, of which the last may be padded
        owners = plan.range_cores or (0,) * len(plan.m_spans)
        own = [span for span, owner in zip(plan.m_spans, owners, strict=True) if owner == core]
        first = own[0].start
        last = own[-1].start + own[-1].length
        check_cover(tuple(Span(s.start - first, s.length, s.padded // images) for s in own), last - first)
    check_cover(tuple(Span(s.start, s.length, s.length) for s in plan.m_spans), m)
    assert {span.padded for span in plan.m_spans} <= set(weight.buckets)


@given(rows=st.integers(1, 120), buckets=st.sets(st.integers(1, 40), min_size=1), start=st.floats(0.1, 50.0))
def test_covers_are_the_cheapest(rows: int, buckets: set[int], start: float) -> None:
    """Against the table of all numbers of rows, filled from below."""

    def seconds(size: int) -> float:
        return start + size + 7.0 * (size // 13)

    best = [0.0]
    for count in range(1, rows + 1):
        best.append(min(seconds(size) + best[max(0, count - size)] for size in buckets))
    sizes = sorted(buckets)
    found = Cover(sizes, seconds).of(rows)
    assert sum(found) >= rows
    assert set(found) <= buckets
    total = sum(map(seconds, found))
    if rows <= 3 * sizes[-1]:
        assert total == pytest.approx(best[rows])
    else:
        assert total <= 1.5 * best[rows]


def test_small_products_stay_on_one_core_and_large_ones_do_not() -> None:
    small = plan_matmul(1, plan_weight(576, 576, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"]))
    assert small.cores == 1
    large = plan_weight(4096, 32000, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"])
    assert [plan_matmul(m, large).cores for m in (1, 128)] == [3, 3]
    widths = [0, 0, 0]
    for core, span in zip(plan_matmul(128, large).tile_cores, large.n_spans, strict=True):
        widths[core] += span.padded
    assert max(widths) - min(widths) <= max(span.padded for span in large.n_spans)


@pytest.mark.parametrize("n", [576, 1536, 2048, 3072, 4100])
def test_weights_are_cut_evenly_for_the_cores_that_there_are(n: int) -> None:
    """Two cores have as much to do, up to a tile of the layout, and all may be used all the same."""
    rk3588 = CHIPS["rk3588"]
    where = 1536, n, MatmulType.INT8_INT8_INT32, rk3588, rk3588.runtime
    weight = planned(*where, cut_for=2)
    plan = plan_matmul(1, weight, cores=2)
    widths = [0, 0]
    for core, span in zip(plan.tile_cores, weight.n_spans, strict=True):
        widths[core] += span.padded
    assert max(widths) - min(widths) <= 32
    assert weight.row_cores == 3
    assert plan_matmul(4096, weight).cores == 3
    assert planned(*where, cut_for=3) == planned(*where) == plan_weight(*where)
    with consulting(None, {"cores": 1}):  # what is asked for counts more
        assert planned(*where, cut_for=2) == plan_weight(*where, cores=1)


def test_layers_that_are_alike_are_planned_once() -> None:
    """And not alike where chip, rows, images or the model of time differ."""
    weight = plan_weight(384, 1536, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"])
    alike = replace(weight)
    assert alike is not weight
    assert plan_matmul(37, alike) is plan_matmul(37, weight)
    slower = {"rk3588": replace(TIMINGS["rk3588"], start_seconds=1.0)}
    others = [plan_matmul(38, weight), plan_matmul(37, weight, timings={}), plan_matmul(37, weight, timings=slower)]
    others.append(plan_matmul(37, weight, cores=1))
    assert all(other != plan_matmul(37, weight) for other in others)


def test_deep_slices_are_cut_where_b_would_be_read_again() -> None:
    fp16 = MatmulType.FLOAT16_FLOAT16_FLOAT32
    deep = plan_weight(4096, 4096, fp16, CHIPS["rk3588"])
    fewest = plan_weight(4096, 4096, fp16, CHIPS["rk3588"], k_slices=1)
    assert len(fewest.k_spans) == 2, "the limit of the type"
    assert len(deep.k_spans) > len(fewest.k_spans)
    times = [plan_matmul(128, weight).modelled_seconds for weight in (deep, fewest)]
    assert times[0] is not None and times[1] is not None  # noqa: PT018
    assert times[0] < times[1]


@given(k=st.integers(1, 5000), group=st.sampled_from([32, 100, 128, 3000]), where=chip_and_type())
def test_groups_have_slices_of_their_own(k: int, group: int, where: tuple[Chip, MatmulType]) -> None:
    chip, mm_type = where
    limits = chip.limits[mm_type]
    weight = plan_weight(k, 512, mm_type, chip, k_group=group)
    position = 0
    for span in weight.k_spans:
        assert span.start == position
        assert span.start // group == (span.start + span.length - 1) // group, "within one group"
        assert span.padded % limits.k_multiple == 0
        assert span.length <= span.padded <= limits.k_max
        position += span.length
    assert position == k
    if group <= limits.k_max:
        assert len(weight.k_spans) == -(-k // group)


def test_without_a_model_all_cores_are_used() -> None:
    weight = plan_weight(4096, 4096, MatmulType.INT8_INT8_INT32, CHIPS["rk3576"], timings={})
    plan = plan_matmul(100, weight, timings={})
    assert (len(weight.k_spans), len(weight.n_spans), plan.cores, plan.tile_cores) == (1, 2, 2, (0, 1))
    assert plan.modelled_seconds is None
    same = plan_weight(4096, 4096, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"], timings={})
    assert (len(same.k_spans), len(same.n_spans), plan_matmul(1, same, timings={}).cores) == (1, 3, 3)


def test_shapes_that_abort_the_vendors_process_are_cut_otherwise_or_refused() -> None:
    fp16, chip = MatmulType.FLOAT16_FLOAT16_FLOAT32, CHIPS["rk3588"]
    limits = replace(chip.limits[fp16], n_max=20000)
    assert 16640 in limits.avoid
    wide = replace(chip, limits={**chip.limits, fp16: limits})
    for timings in (TIMINGS, {}):
        weight = plan_weight(64, 16640, fp16, wide, timings=timings)
        assert all(span.padded not in limits.avoid for span in weight.n_spans)
    with pytest.raises(DeviceError, match=r"16640.*abort the process"):
        plan_weight(64, 16640, fp16, wide, n_tiles=1)
    assert plan_weight(64, 16640, MatmulType.INT8_INT8_INT32, wide, n_tiles=1).n_spans, (
        "of other types nothing is known"
    )


def test_buckets_can_be_given() -> None:
    int8, chip = MatmulType.INT8_INT8_INT32, CHIPS["rk3588"]
    weight = plan_weight(2048, 2048, int8, chip, buckets=[128, 4, 1, 144])
    assert weight.buckets == (1, 4, 128, 144)
    assert plan_matmul(130, weight).m_spans in (
        (Span(0, 130, 144),),
        (Span(0, 128, 128), Span(128, 2, 4)),
    )
    for wrong in ([2], [1, 6], [4096], []):
        with pytest.raises(ValueError, match="buckets are 1 or multiples of 4"):
            plan_weight(2048, 2048, int8, chip, buckets=wrong)
    with pytest.raises(ValueError, match="buckets are multiples of 4"):
        plan_weight(2048, 2048, int8, chip, buckets=[1, 4], row_images=2)


def test_damaged_json_is_refused() -> None:
    plan = plan_matmul(3, plan_weight(64, 64, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"]))
    for text in ("", "[]", "{}", plan.to_json().replace('"m_spans"', '"spans"')):
        with pytest.raises(ValueError, match=r"plan|Expecting value"):
            MatmulPlan.from_json(text)
    with pytest.raises(ValueError, match="no plan of a weight"):
        WeightPlan.from_json(plan.to_json())


def test_zero_extents_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        plan_weight(0, 5, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"])
    with pytest.raises(ValueError, match="at least 1"):
        plan_matmul(0, plan_weight(5, 5, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"]))


HARDWARE_NUMBERS = sorted(
    {
        number
        for chip in CHIPS.values()
        for limits in chip.limits.values()
        for number in (limits.k_max, limits.n_max, *([limits.native_rows.mk_max] if limits.native_rows else []))
    }
)
#: Files that may hold such a number for another reason, with that reason.
ELSEWHERE = {
    "automaton.py": "states and stacks of a grammar that are kept at most",
    "cases.py": "shapes of the layers of real models, to be measured",
    "shapes.py": "shapes that are measured",
    "layouts.py": "a shape that is measured",
    "bandwidth.py": "shapes that are measured",
    "batching.py": "a shape that is measured",
    "llm_bench.py": "tokens in a cache that generation is measured behind",
    "rows.py": "the table itself",
    "native_rows.py": "the table itself: rows of int4",
    "buffer.py": "4096 is the size of a memory page",
    "profile.py": "4096 events are made into text at once",
    "pool.py": "4096 contexts are kept at most",
    "lost.py": "4096 bytes tell whether the device is still there",
    "reading.py": "4096 stretches of data in a file",
    "modernbert.py": "the longest sequence where a configuration names none",
    "embedding.py": "4096 tokens at most go through a model at once",
    "points.py": "shapes that are timed",
    "features.py": "8192 frames of sound are worked on at once",
    "gemma.py": "4096 positions are a window of attention",
    "mistral.py": "4096 positions are a window of attention",
    "prefill.py": "2048 rows are a block of a prompt",
    "qwen.py": "4096 positions are a window of attention",
    "gemma4.py": "262144 rows of a vocabulary",
    "gpt_oss.py": "4096 positions were the context before it was lengthened",
    "qwen3_moe.py": "4096 positions are a window of attention",
    "strings.py": "4096 characters of a string that a schema counts",
}


def test_hardware_limits_stand_only_in_the_table() -> None:
    package = Path(npumatmul.__path__[-1])
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(map(str, HARDWARE_NUMBERS))})(?![\w.])")
    found = []
    for file in package.rglob("*.py"):
        if file.name in ELSEWHERE:
            continue
        code = re.sub(r'""".*?"""|#[^\n]*', "", file.read_text(), flags=re.S)
        found += [f"{file.name}: {line.strip()}" for line in code.splitlines() if pattern.search(line)]
    assert not found, "hardware limits outside chips/rows.py:\n" + "\n".join(found)


NARROW = [(1024, 128), (4096, 32), (4096, 64), (4096, 128), (2048, 96)]


@pytest.mark.parametrize(("k", "n"), NARROW)
def test_many_rows_of_a_narrow_weight_are_shared_by_cores(k: int, n: int) -> None:
    """Where tiles of N cannot be divided well, each core takes rows; checked against the model's roofline by hand."""
    rk3588 = CHIPS["rk3588"]
    weight = plan_weight(k, n, MatmulType.INT8_INT8_INT32, rk3588)
    plan, by_tiles = plan_matmul(4096, weight), plan_matmul(4096, weight, share="tiles")
    assert plan.modelled_seconds is not None
    assert by_tiles.modelled_seconds is not None
    assert plan.modelled_seconds < 0.95 * by_tiles.modelled_seconds
    assert (plan.cores, set(plan.range_cores), plan.tile_cores) == (3, {0, 1, 2}, ())
    rows = [
        sum(s.length for s, core in zip(plan.m_spans, plan.range_cores, strict=True) if core == c) for c in range(3)
    ]
    assert sum(rows) == 4096
    assert max(rows) - min(rows) < 8 + 4, "balanced, up to the multiple of four"
    assert plan.a_bytes == 3 * max(s.padded for s in plan.m_spans) * sum(s.padded for s in weight.k_spans)
    # A once, by all cores together; B once per core and as many rows as stay on the chip; start, joining and binding
    padded_n = sum(s.padded for s in weight.n_spans)
    model = TIMINGS["rk3588"]
    fewest = 4096 * k / model.bandwidth_all_cores
    assert plan.modelled is not None
    assert plan.modelled.device > fewest
    resident = model.resident_rows(MatmulType.INT8_INT8_INT32, k)
    reads = sum(-(-s.padded // resident) for s, core in zip(plan.m_spans, plan.range_cores, strict=True) if core == 0)
    own = sum(s.padded for s, core in zip(plan.m_spans, plan.range_cores, strict=True) if core == 0)
    ranges = plan.range_cores.count(0)
    if (len(weight.k_spans), len(weight.n_spans)) == (1, 1):
        traffic = (reads * k * padded_n + own * (k + 4 * padded_n)) / (model.bandwidth_all_cores / 3)
        fixed = model.join_seconds + ranges * model.start_seconds
        assert plan.modelled.device == pytest.approx(fixed + traffic, rel=0.02)
    assert "ranges on core 0" in str(plan)
    assert "tiles on" not in str(plan)
    assert json.loads(plan.to_json())["range_cores"] == list(plan.range_cores)
    assert MatmulPlan.from_json(plan.to_json()) == plan


def test_rows_are_shared_where_that_is_asked_for_and_goes() -> None:
    weight = plan_weight(64, 4096, MatmulType.INT8_INT8_INT32, CHIPS["rk3588"], n_tiles=3)
    assert plan_matmul(512, weight).range_cores == (), "tiles can be shared, which is as fast"
    two = plan_matmul(20, weight, share="rows", cores=2)
    assert (two.cores, [(s.start, s.length) for s in two.m_spans], two.range_cores) == (2, [(0, 12), (12, 8)], (0, 1))
    assert [two.core(m, n) for m in (0, 1) for n in (0, 5)] == [0, 0, 1, 1]
    for m, cores in ((1, None), (4, 2), (8, 3)):
        with pytest.raises(ValueError, match="cannot be shared by"):
            plan_matmul(m, weight, share="rows", cores=cores)
    with pytest.raises(ValueError, match="cannot be shared by 3 cores"):
        plan_matmul(4096, weight, share="rows", cores=3, images=6)  # 18 buffers of A are too many
    assert plan_matmul(4096, weight, share="rows", images=6).cores == 2
    with pytest.raises(ValueError, match="1 to 3 cores"):
        plan_matmul(4096, weight, share="rows", cores=4)
    unknown = plan_weight(64, 32, MatmulType.INT8_INT8_INT32, CHIPS["rk3576"], timings={})
    assert plan_matmul(4096, unknown, timings={}).range_cores == (), "without a model nothing is shared by rows unasked"
    assert set(plan_matmul(4096, unknown, share="rows", timings={}).range_cores) == {0, 1}
    single = plan_weight(64, 32, MatmulType.INT8_INT8_INT32, CHIPS["rk3566"])
    with pytest.raises(ValueError, match="cannot be shared"):
        plan_matmul(4096, single, share="rows")


def test_the_documented_gains_are_those_of_the_model() -> None:
    text = (Path(__file__).parent.parent / "docs" / "matmul.md").read_text()
    rows = re.findall(
        r"^\| (\d+) x (\d+) \| (int8|float16) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", text, re.M
    )
    assert len(rows) >= 6
    types = {"int8": MatmulType.INT8_INT8_INT32, "float16": MatmulType.FLOAT16_FLOAT16_FLOAT32}
    for k, n, name, m, by_tiles, by_rows, gain in rows:
        weight = plan_weight(int(k), int(n), types[name], CHIPS["rk3588"])
        chosen, tiles = plan_matmul(int(m), weight), plan_matmul(int(m), weight, share="tiles")
        assert chosen.range_cores
        assert chosen.modelled_seconds == pytest.approx(float(by_rows) / 1e3, abs=1e-6)
        assert tiles.modelled_seconds == pytest.approx(float(by_tiles) / 1e3, abs=1e-6)
        assert float(gain) == pytest.approx(float(by_tiles) / float(by_rows), abs=0.01)


def test_plans_ask_for_as_many_buffers_as_the_executor_takes() -> None:
    header = (Path(__file__).parent.parent / "native" / "include" / "npumatmul_executor.h").read_text()
    (most,) = re.findall(r"#define NPUMM_A_MOST (\d+)", header)
    assert int(most) == A_BUFFERS_MOST


@pytest.mark.parametrize("seconds", [float("inf"), float("nan")])
def test_times_that_are_no_numbers_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="are finite"):
        Cover((1, 4, 128), lambda size: seconds)
