"""Calibrators against what numpy says of all the data at once, and against searches over the data itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npumatmul.errors import NotFiniteError
from npumatmul.quant import (
    MMSE,
    Calibrator,
    ClipRatio,
    KLDivergence,
    MinMax,
    Percentile,
    calibrate,
    fake_quantize,
    token_params,
)
from npumatmul.quant.histogram import Histogram
from npumatmul.quant.params import QuantParams

ALL: list[type[Calibrator]] = [MinMax, Percentile, KLDivergence, MMSE, ClipRatio]
VALUES = st.floats(-1e5, 1e5, width=32)


def observed(calibrator: Calibrator, x: np.ndarray, parts: int = 3, axis: int = 0) -> QuantParams:
    for batch in np.array_split(x, parts, axis=axis):
        calibrator.observe(batch)
    return calibrator.params()


def mean_error(x: np.ndarray, params: QuantParams) -> float:
    return float(((fake_quantize(x.astype(np.float64), params) - x) ** 2).mean())


def samples(kind: str, n: int = 20000) -> np.ndarray:
    rng = np.random.default_rng(7)
    if kind == "outliers":
        return np.append(rng.normal(size=n), [60.0, -70.0])
    x = rng.standard_t(3, n) if kind == "heavy" else rng.normal(size=n)
    return np.maximum(x, 0) if kind == "relu" else x


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=VALUES),
    st.sampled_from([4, 16, 256]),
    st.integers(1, 5),
)
def test_histograms_that_grow_count_like_numpy(x: np.ndarray, bins: int, parts: int) -> None:
    histogram = Histogram(len(x), bins)
    for batch in np.array_split(x, parts, axis=1):
        if batch.size:
            histogram.add(batch)
    for channel, row in enumerate(x):
        limit = histogram.limit[channel]
        assert histogram.low[channel] == row.min()
        assert histogram.high[channel] == row.max()
        if not row.any():
            assert limit == 0
            continue
        largest = np.abs(row).max()
        assert limit / 2 <= largest < limit  # the power of two above
        expected, _ = np.histogram(row, bins=bins, range=(-limit, limit))
        # numpy and we may differ only in values that rounding puts onto an edge
        assert (
            np.abs(np.cumsum(histogram.counts[channel]) - np.cumsum(expected)).max()
            <= (np.abs((row / limit + 1) * bins / 2 % 1 - 0.5) > 0.5 - 1e-9).sum()
        )
        assert histogram.counts[channel].sum() == row.size


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("axis", [None, 0, -1])
@given(hnp.arrays(np.float32, st.tuples(st.integers(3, 9), st.integers(1, 6)), elements=VALUES))
def test_min_max_covers_everything(symmetric: bool, axis: int | None, x: np.ndarray) -> None:
    params = observed(MinMax(symmetric=symmetric, axis=axis), x, axis=1 if axis == 0 else 0)
    error = np.abs(fake_quantize(x.astype(np.float64), params) - x)
    scale, _ = params.expanded(x.shape)
    # with a zero point, its rounding may shift the range by half a step
    assert (error <= np.broadcast_to(scale * (0.5 if symmetric else 1.0) * (1 + 1e-6), x.shape)).all()
    assert params.symmetric or not symmetric


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("data", ["normal", "heavy", "relu", "outliers"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_batches_do_not_matter(kind: type[Calibrator], data: str, bits: int, symmetric: bool) -> None:
    x = samples(data, 3000)
    at_once = observed(kind(bits, symmetric=symmetric), x, 1)
    in_parts = observed(kind(bits, symmetric=symmetric), x, 9)
    assert at_once == in_parts
    assert at_once == observed(kind(bits, symmetric=symmetric), x[::-1], 4)
    assert 0 < at_once.scale <= np.float32(2 * np.abs(x).max() / at_once.qmax)


@pytest.mark.parametrize("data", ["normal", "heavy", "relu", "outliers"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_mmse_finds_the_least_error(data: str, bits: int, symmetric: bool) -> None:
    x = samples(data, 5000)
    found = mean_error(x, observed(MMSE(bits, symmetric=symmetric), x))
    assert found <= mean_error(x, observed(MinMax(bits, symmetric=symmetric), x)) * (1 + 1e-3)
    # any other scale and zero point, tried on the data itself
    qmax = 2 ** (bits - 1) - 1
    reach = np.abs(x).max()
    zero_points = [0] if symmetric else np.unique(np.linspace(-qmax - 1, qmax, 9).astype(int))
    best = min(
        mean_error(x, QuantParams(reach * r / qmax, z, bits=bits))
        for r in np.geomspace(0.02, 1, 60)
        for z in zero_points
    )
    assert found <= 1.06 * best


@pytest.mark.parametrize("data", ["normal", "heavy", "outliers"])
def test_a_searched_ratio_is_better_than_none(data: str) -> None:
    x = samples(data)
    calibrator = ClipRatio(4)
    params = observed(calibrator, x)
    assert calibrator.ratio is not None
    assert calibrator.ratio[0] < 1
    assert params.scale == pytest.approx(calibrator.ratio[0] * np.abs(x).max() / 7)
    assert mean_error(x, params) < 0.6 * mean_error(x, observed(MinMax(4), x))
    minding_large_errors = observed(ClipRatio(4, power=4.0), x)
    assert minding_large_errors.scale > params.scale
    only = ClipRatio(4, ratios=[0.5])
    assert observed(only, x).scale == pytest.approx(0.5 * np.abs(x).max() / 7)


@pytest.mark.parametrize("data", ["normal", "heavy", "relu"])
@pytest.mark.parametrize("share", [90.0, 99.0, 100.0])
def test_percentiles_are_numpys_to_a_bin(data: str, share: float) -> None:
    x = samples(data)
    bin_width = 2 * 2 ** np.ceil(np.log2(np.abs(x).max())) / 4096
    reach = observed(Percentile(percentile=share), x).scale * 127
    assert reach == pytest.approx(np.percentile(np.abs(x), share, method="inverted_cdf"), abs=1.01 * bin_width)
    params = observed(Percentile(percentile=share, symmetric=False), x)
    low, high = np.percentile(x, [100 - share, share], method="inverted_cdf")
    assert params.scale * 255 == pytest.approx(max(high, 0) - min(low, 0), abs=2.02 * bin_width)


def published_threshold(x: np.ndarray, bins: int, levels: int) -> float:
    """Threshold of least divergence, bin by bin, as in the TensorRT slides of 2017, over magnitudes."""
    counts, edges = np.histogram(np.abs(x), bins=bins)
    counts[0] = min(counts[0], counts[1])
    best, threshold = np.inf, 0.0
    for stop in range(levels, bins + 1):
        p = counts[:stop].astype(float)
        q = np.zeros(stop)
        for chunk in np.array_split(np.arange(stop), levels):
            used = chunk[p[chunk] > 0]
            if used.size:
                q[used] = p[chunk].sum() / used.size
        p[-1] += counts[stop:].sum()
        p, q = p / p.sum(), np.maximum(q / q.sum(), 1e-9)
        divergence = float(np.sum(p[p > 0] * np.log(p[p > 0] / q[p > 0])))
        if divergence < best:
            best, threshold = divergence, edges[stop]
    return threshold


@pytest.mark.parametrize("data", ["normal", "heavy", "relu"])
def test_divergence_clips_about_where_the_published_algorithm_does(data: str) -> None:
    x = samples(data)
    reach = float(observed(KLDivergence(4), x).scale * 7)
    expected = published_threshold(x, 1024, 8)
    assert reach == pytest.approx(expected, rel=0.35)
    assert reach <= np.float32(np.abs(x).max())


def test_divergence_ignores_lone_outliers() -> None:
    x = samples("outliers")
    for symmetric in (True, False):
        assert observed(KLDivergence(symmetric=symmetric), x).scale * 127 < 20
    assert observed(MinMax(), x).scale * 127 == pytest.approx(70)


@pytest.mark.parametrize("kind", ALL)
def test_channels_are_independent(kind: type[Calibrator]) -> None:
    x = np.stack([samples("normal", 600), 40 * samples("heavy", 600), np.zeros(600), samples("relu", 600)])
    together = observed(kind(4, axis=0, symmetric=False), x, 3, axis=1)
    assert together.granularity == "channel"
    assert together.axis == 0
    for channel in range(4):
        alone = observed(kind(4, symmetric=False), x[channel])
        assert together.scale[channel] == alone.scale
        assert together.zero_point[channel] == alone.zero_point
    assert together.scale[2] == 1
    by_feature = observed(kind(4, axis=-1, symmetric=False), x.T.reshape(60, 10, 4))
    assert np.array_equal(by_feature.scale, together.scale)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 1e-40, 1e30])
def test_constant_inputs(kind: type[Calibrator], value: float) -> None:
    for symmetric in (True, False):
        params = observed(kind(symmetric=symmetric), np.full(50, value))
        assert np.isfinite(params.scale)
        if kind is not KLDivergence:  # a single bin looks the same however it is cut
            assert fake_quantize(value, params) == pytest.approx(value, rel=0.02, abs=1e-38)


def test_memory_does_not_grow() -> None:
    calibrator = MMSE(axis=-1, bins=256)
    rng = np.random.default_rng(0)
    for i in range(6):
        calibrator.observe(rng.normal(0, 10.0**i, (400, 8)))
    assert calibrator._histogram.counts.shape == (8, 256)
    assert calibrator._histogram.counts.sum() == 6 * 400 * 8


def test_levels_are_kept() -> None:
    params = observed(MinMax(levels=119), np.array([-1.19, 1.0, 0.2]))
    assert (params.levels, float(params.scale)) == (119, pytest.approx(0.01))


@pytest.mark.parametrize("kind", ALL)
def test_refusals(kind: type[Calibrator]) -> None:
    calibrator = kind(axis=1)
    with pytest.raises(ValueError, match="nothing was observed"):
        calibrator.params()
    with pytest.raises(ValueError, match="no axis 1"):
        calibrator.observe([1.0])
    with pytest.raises(NotFiniteError, match="nothing of it was noted"):
        calibrator.observe([[1.0, np.nan]])
    calibrator.observe(np.zeros((0, 2)))  # ignored
    with pytest.raises(ValueError, match="nothing was observed"):
        calibrator.params()
    calibrator.observe([[1.0, 2.0]])
    with pytest.raises(ValueError, match="3 channels, earlier ones had 2"):
        calibrator.observe([[1.0, 2.0, 3.0]])
    with pytest.raises(TypeError, match="real numbers"):
        calibrator.observe(["a"])
    with pytest.raises(ValueError, match="2 to 8"):
        kind(16)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MMSE(bins=1000), "power of two"),
        (lambda: Percentile(percentile=50), "above 50"),
        (lambda: Percentile(percentile=101), "at most 100"),
        (lambda: ClipRatio(ratios=[]), "ratios"),
        (lambda: ClipRatio(ratios=[0.5, 1.5]), "ratios"),
        (lambda: ClipRatio(power=0), "power"),
        (lambda: Histogram(2).add(np.zeros((3, 2))), "2 channels"),
    ],
)
def test_arguments_out_of_range(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_calibrate_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [{"a": np.array([1.27]), "c": np.array([9.0])}, {"b": np.array([2.54])}]
    for progress in (False, True):
        found = calibrate({"a": MinMax(), "b": MinMax()}, iter(batches), progress=progress)
        assert {name: round(float(p.scale), 6) for name, p in found.items()} == {"a": 0.01, "b": 0.02}
    assert "calibrating" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no batch had values for 'x', 'y'"):
        calibrate({"a": MinMax(), "x": MinMax(), "y": MinMax()}, batches)
    with pytest.raises(TypeError, match="mapping of names to arrays, not ndarray"):
        calibrate({"a": MinMax()}, [np.ones(3)])  # type: ignore[list-item]
    with pytest.raises(NotFiniteError, match="calibrate: a: "):
        calibrate({"a": MinMax()}, [{"a": [np.nan]}])


def test_a_progress_bar_without_rich_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"pip install 'npumatmul\[cli\]'"):
        calibrate({"a": MinMax()}, [{"a": [1.0]}], progress=True)


@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6), elements=VALUES), st.booleans())
def test_each_token_is_covered(x: np.ndarray, symmetric: bool) -> None:
    params = token_params(x, symmetric=symmetric)
    error = np.abs(fake_quantize(x.astype(np.float64), params) - x)
    scale, _ = params.expanded(x.shape)
    assert (error <= scale * (0.5 if symmetric else 1.0) * (1 + 1e-6)).all()
    if symmetric:
        assert (params.qmin, params.qmax) == (-127, 127)
        largest = np.abs(x).max(axis=-1)
        np.testing.assert_allclose(params.scale[largest > 1e-30], largest[largest > 1e-30] / 127, rtol=1e-6)


def test_tokens_refuse_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="single number"):
        token_params(3.0)
    with pytest.raises(ValueError, match="clip"):
        token_params([1.0], clip=0)
    with pytest.raises(NotFiniteError):
        token_params([np.inf])
