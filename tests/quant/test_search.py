"""What calibrators search through, against the same bin by bin and code by code."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from npumatmul.quant import MMSE, KLDivergence
from npumatmul.quant.ranges import range_params
from npumatmul.quant.search import divergences, squared_errors

seeds = st.integers(0, 2**32 - 1)


def histogram(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Counts, some of them 0, and middles of bins whose width is a power of two."""
    bins = int(rng.integers(1, 200))
    counts = rng.integers(0, 50, bins) * (rng.random(bins) < rng.choice([0.1, 0.5, 1]))
    counts[rng.integers(bins)] += 1
    middles = np.arange(bins) - int(rng.integers(0, bins + 1)) + 0.5
    return counts, np.ldexp(middles, int(rng.integers(-60, 60)))


def nearest_error(counts: np.ndarray, centers: np.ndarray, low: float, high: float, codes: range, zero: bool) -> float:
    """Every bin goes to the nearest of all values that there are."""
    scale, point = range_params(np.float64(low), np.float64(high), codes[0], codes[-1], not zero)
    values = [float(scale) * (code - int(point)) for code in codes]
    total = sum(int(n) * min((float(c) - v) ** 2 for v in values) for n, c in zip(counts, centers, strict=True))
    return total / int(counts.sum())


@given(seed=seeds, bits=st.integers(2, 6), symmetric=st.booleans())
@settings(max_examples=80, deadline=None)
def test_errors_are_those_to_the_nearest_value(seed: int, bits: int, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    counts, centers = histogram(rng)
    half = 2 ** (bits - 1)
    codes = range(-half + symmetric, half)
    reach = np.abs(centers).max()
    low, high = -reach * rng.uniform(0, 1.2, 5), reach * rng.uniform(0.01, 1.2, 5)
    width = centers[1] - centers[0] if centers.size > 1 else 2 * reach
    found = squared_errors(counts, centers, low, high, (codes[0], codes[-1]), symmetric) * width**2
    expected = [nearest_error(counts, centers, a, b, codes, not symmetric) for a, b in zip(low, high, strict=True)]
    # sums of squares cancel: their rounding is relative to the square of the largest value that there is
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12 * (2 * reach) ** 2)


def divergence_by_bins(counts: np.ndarray, start: int, stop: int, levels: int) -> float:
    size = stop - start
    original = [int(n) for n in counts[start:stop]]
    merged = [0.0] * size
    for run in range(levels):
        bins = range(run * size // levels, (run + 1) * size // levels)
        used = [i for i in bins if original[i]]
        for i in used:
            merged[i] = sum(original[j] for j in bins) / len(used)
    original[0] += int(counts[:start].sum())
    original[-1] += int(counts[stop:].sum())
    everything, kept = sum(original), sum(merged) or 1.0
    terms = zip(original, merged, strict=True)
    return math.fsum(p / everything * math.log(p / everything / max(q / kept, 1e-9)) for p, q in terms if p)


@given(seed=seeds, levels=st.sampled_from([2, 3, 8, 16]))
@settings(max_examples=80, deadline=None)
def test_divergences_are_those_of_every_bin(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    counts, _ = histogram(rng)
    counts = np.concatenate([counts, rng.integers(0, 3, levels)])
    start = rng.integers(0, counts.size - levels + 1, 6)
    stop = np.array([rng.integers(first + levels, counts.size + 1) for first in start])
    found = divergences(counts, start, stop, levels)
    expected = [divergence_by_bins(counts, int(a), int(b), levels) for a, b in zip(start, stop, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@given(seed=seeds, bits=st.sampled_from([2, 4]))
@settings(max_examples=15, deadline=None)
def test_the_searched_range_is_the_best_of_a_hundred(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_t(3, 400)
    calibrator = MMSE(bits, bins=64)
    calibrator.observe(x)
    counts, centers = calibrator._histogram.counts[0], calibrator._histogram.centers(0)
    codes = range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    reach = np.abs(x).max()
    errors = [nearest_error(counts, centers, -reach * r, reach * r, codes, False) for r in np.linspace(1, 0.01, 100)]
    chosen = float(calibrator.params().scale) * codes[-1]
    assert nearest_error(counts, centers, -chosen, chosen, codes, False) <= min(errors) * (1 + 1e-6)


def test_among_equal_divergences_nothing_is_clipped() -> None:
    """Two bins of 256, far apart: any run holds one of them, so nothing is ever lost by merging."""
    calibrator = KLDivergence()
    calibrator.observe(np.repeat([-1.9, 1.9], 50))
    assert calibrator.params().scale * 127 == np.float32(1.9)
