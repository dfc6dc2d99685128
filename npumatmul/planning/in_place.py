"""Rows that the NPU reads and writes where they stand, cut and shared by cores; pure.

A and C are in normal layout then, row-major, and each run takes whole rows with all of the weight, which has one slice
of K: cores cannot share tiles. Ranges start at multiples of the alignment of parts of an allocation, and the last one
may reach beyond the rows that there are, into room that is nobody's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

from npumatmul.chips import Chip
from npumatmul.chips.timing import TimingModel
from npumatmul.chips.types import MatmulType
from npumatmul.planning.buckets import row_buckets
from npumatmul.planning.cost import ModelledTime
from npumatmul.planning.product import MatmulPlan
from npumatmul.planning.spans import Span
from npumatmul.planning.weight import WeightPlan

__all__ = ["padded_rows", "plan_in_place", "rows_of"]


def padded_rows(m: int, chip: Chip) -> int:
    """Rows that a buffer needs room for, so that a product of `m` rows can be read from it or written to it.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> padded_rows(5, chip("rk3588")), padded_rows(256, chip("rk3588"))
    (8, 256)
    """
    buckets = _buckets(chip)
    full, rest = divmod(m, buckets[-1])
    return full * buckets[-1] + (next(size for size in buckets if size >= rest) if rest else 0)


def rows_of(plan: MatmulPlan) -> int:
    """Rows that a plan reads and writes, padding included."""
    last = plan.m_spans[-1]
    return last.start + last.padded


def plan_in_place(
    m: int,
    weight: WeightPlan,
    mm_type: MatmulType,
    chip: Chip,
    room: int | None = None,
    timings: Mapping[str, TimingModel] | None = None,
    cores: int | None = None,
) -> MatmulPlan | None:
    """Cut `m` rows, at least 1, of a product in place: by modelled time, or for one core where nothing is known.

    Parameters
    ----------
    m : int
    weight : WeightPlan
        Of one slice of K.
    mm_type : MatmulType
        By which the weight is multiplied in place.
    chip : Chip
    room : int, optional
        Rows that can be read and written; as many as `padded_rows` are always enough.
    timings : mapping of str to TimingModel, optional
        Instead of the chip's own (`Chip.timings`).
    cores : int, optional
        At most so many cores; by default as many as the chip has.

    Returns
    -------
    MatmulPlan or None
        Of a weight that is one tile; None where there is not room enough.

    Examples
    --------
    >>> from npumatmul.chips import chip
    >>> from npumatmul.planning.weight import plan_weight
    >>> weight = plan_weight(1024, 1024, MatmulType.FLOAT16_FLOAT16_FLOAT32, chip("rk3588"))
    >>> plan = plan_in_place(300, weight, MatmulType.FLOAT16_FLOAT16_FLOAT16, chip("rk3588"))
    >>> [(span.start, span.padded) for span in plan.m_spans], plan.range_cores
    ([(0, 128), (128, 128), (256, 48)], (0, 1, 2))
    """
    alignment, buckets = chip.memory.slice_alignment, _buckets(chip)
    rows_bytes = mm_type.a.nbytes(weight.k), mm_type.c.nbytes(weight.n)
    step = math.lcm(*(alignment // math.gcd(alignment, each) for each in rows_bytes))
    model = (chip.timings if timings is None else timings).get(chip.soc)
    model = model if model is not None and model.knows(mm_type) else None
    most = chip.cores if cores is None else min(cores, chip.cores)
    whole = replace(
        weight, mm_type=mm_type, n_spans=(Span(0, weight.n, weight.n),), ac_native=False, buckets=buckets, cores=1,
        row_cores=most, measured_cores=(), measured_shared=(),
    )  # fmt: skip
    best: MatmulPlan | None = None
    for size in reversed(buckets):
        if size < m and size % step:
            continue  # every range but the last ends where the next one starts, at a multiple of the alignment
        starts = range(0, m, size)
        last = next(bucket for bucket in buckets if bucket >= m - starts[-1])
        if starts[-1] + last > (padded_rows(m, chip) if room is None else room):
            continue
        spans = (*(Span(start, size, size) for start in starts[:-1]), Span(starts[-1], m - starts[-1], last))
        if model is None:
            return MatmulPlan(m, whole, spans, 1, (0,))
        for used in range(1, min(most, len(spans)) + 1):
            runs = -(-len(spans) // used)
            longest = max(span.padded for span in spans)
            join = model.join_seconds if used > 1 else 0.0
            # No conversion: normal A and C were seen to be used where they stand (facts 14), and C is as A's type is.
            work = model.work_seconds(mm_type, longest, weight.k, weight.n, used)
            device = join + runs * (model.start_seconds + work)
            time = ModelledTime(device, runs * 3 * model.bind_seconds, 0.0, model.within)
            better = best is None or best.modelled is None or (time.seconds, len(spans)) < (
                best.modelled.seconds, len(best.m_spans)
            )  # fmt: skip
            if better:
                owners = tuple(index * used // len(spans) for index in range(len(spans))) if used > 1 else ()
                best = MatmulPlan(m, whole, spans, used, () if owners else (0,), time, owners)
    return best


def _buckets(chip: Chip) -> tuple[int, ...]:
    return _buckets_to(min(limits.m_max for limits in chip.limits.values()), chip.native.row_multiple)


@lru_cache(maxsize=64)
def _buckets_to(m_max: int, row_multiple: int) -> tuple[int, ...]:
    return row_buckets(m_max, row_multiple)
