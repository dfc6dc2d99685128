"""Planning: spans cover their extent exactly, keep to the capability table, and nothing else decides limits."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import npumatmul
from npumatmul.capabilities import CHIPS, Chip
from npumatmul.errors import DeviceError
from npumatmul.mmtype import MatmulType
from npumatmul.plan import Span, plan_matmul, plan_weight, row_buckets, split
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
    assert sum(span.padded for span in spans) - extent < multiple, "padding stays below one alignment step"


@given(where=chip_and_type(), k=st.integers(1, 30_000), n=st.integers(1, 100_000), m=st.integers(1, 3_000))
def test_plans_keep_to_the_table(where: tuple[Chip, MatmulType], k: int, n: int, m: int) -> None:
    chip, mm_type = where
    limits = chip.limits[mm_type]
    plan = plan_matmul(m, plan_weight(k, n, mm_type, chip))
    check_cover(plan.weight.k_spans, k)
    check_cover(plan.weight.n_spans, n)
    check_cover(plan.m_spans, m)
    assert all(s.padded % limits.k_multiple == 0 and s.padded <= limits.k_max for s in plan.weight.k_spans)
    assert all(s.padded % limits.n_multiple == 0 and s.padded <= limits.n_max for s in plan.weight.n_spans)
    for span in plan.m_spans:
        assert span.padded == 1 or span.padded % chip.native.row_multiple == 0
        assert span.padded <= limits.m_max
        if plan.weight.ac_native and limits.native_mk_max is not None:
            assert all(span.padded * s.padded <= limits.native_mk_max for s in plan.weight.k_spans)
    assert plan.runs == len(plan.m_spans) * len(plan.weight.k_spans) * len(plan.weight.n_spans)
    assert plan.padded_macs >= plan.macs == m * k * n
    # every context of the plan is one of few shapes, so that contexts are shared
    shapes = {(ms.padded, ks.padded, ns.padded)
              for ms in plan.m_spans for ks in plan.weight.k_spans for ns in plan.weight.n_spans}  # fmt: skip
    assert len(shapes) <= 8


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
    assert "9 runs" not in str(plan)
    assert f"{plan.runs} runs" in str(plan)
    content = json.loads(plan.to_json())
    assert content["m"] == 300
    assert content["weight"]["mm_type"] == "FLOAT16_FLOAT16_FLOAT32"
    assert [span["padded"] for span in content["m_spans"]] == [span.padded for span in plan.m_spans]


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
        for number in (limits.k_max, limits.n_max, limits.native_mk_max)
        if number is not None
    }
)
#: Files that may hold such a number for another reason, with that reason.
ELSEWHERE = {
    "cases.py": "shapes of the layers of real models, to be measured",
    "rows.py": "the table itself",
    "memory.py": "4096 is the size of a memory page",
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
    assert not found, "hardware limits outside capabilities/rows.py:\n" + "\n".join(found)
