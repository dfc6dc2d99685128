"""Plans of weights that no NPU has room for are refused before they are made."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from npumatmul.chips import chip
from npumatmul.chips.types import MatmulType
from npumatmul.planning.product import MAX_RANGES, plan_matmul
from npumatmul.planning.spans import MAX_SPANS, split, split_groups
from npumatmul.planning.weight import MAX_ROWS, MAX_TILES, plan_weight

INT8, FLOAT16, INT4 = MatmulType.INT8_INT8_INT32, MatmulType.FLOAT16_FLOAT16_FLOAT32, MatmulType.INT4_INT4_INT16


@pytest.mark.parametrize(
    ("k", "n", "mm_type", "options"),
    [
        (1 << 30, 64, INT8, {}),
        (64, 1 << 30, INT8, {}),
        (1 << 40, 1 << 40, FLOAT16, {}),
        (1 << 24, 1 << 24, INT8, {}),
        (1 << 40, 64, INT4, {}),
        (1 << 20, 64, INT8, {"k_group": 1}),
        (1 << 20, 64, INT8, {"k_slices": 1 << 31}),
        (64, 1 << 24, INT8, {"n_tiles": 1 << 31}),
        (1 << 20, 64, INT8, {"k_parts": 1 << 31}),
        (64, 64, INT8, {"rows": (MAX_ROWS + 1,)}),
    ],
)
def test_what_is_too_large_is_refused_soon(k: int, n: int, mm_type: MatmulType, options: Any) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"at most|rows are numbers from 1 to"):
        plan_weight(k, n, mm_type, chip("rk3588"), **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6, "no more than the spans of both extents"


def test_the_largest_layers_in_use_are_planned() -> None:
    for k, n, group in ((28672, 8192, 32), (53248, 16384, 128), (8192, 152064, None)):
        plan = plan_weight(k, n, INT8, chip("rk3588"), k_group=group)
        assert len(plan.k_spans) * len(plan.n_spans) < MAX_TILES
        assert sum(span.length for span in plan.k_spans) == k
    assert len(split(MAX_SPANS * 32, 32, 32)) == MAX_SPANS
    with pytest.raises(ValueError, match="at most 8192 are planned"):
        split(MAX_SPANS * 32 + 1, 32, 32)
    with pytest.raises(ValueError, match="at most 8192 are planned"):
        split_groups(MAX_SPANS + 1, 1, 32, 32)


def test_rows_are_planned_as_far_as_ranges_go() -> None:
    weight = plan_weight(64, 64, INT8, chip("rk3588"))
    assert plan_matmul(1 << 20, weight).m_spans[-1].start < 1 << 20
    with pytest.raises(ValueError, match="multiply parts of it"):
        plan_matmul(MAX_RANGES * weight.buckets[-1] + 1, weight)
