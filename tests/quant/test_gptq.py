"""GPTQ against the algorithm as published, and what holds for every weight: never worse than rounding, exact where it
can be, the same each time."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from npumatmul.errors import NotFiniteError
from npumatmul.host import kernels
from npumatmul.quant import (
    ChannelScale,
    Hadamard,
    Hessian,
    dequantize,
    gptq,
    quantize,
    refine,
    round_weight,
    weight_scales,
)
from npumatmul.quant.params import QuantizedWeight, QuantParams
from npumatmul.quant.weight_scales import weight_params


def published_gptq(w: np.ndarray, h: np.ndarray, params: QuantParams, order: np.ndarray) -> np.ndarray:
    """Algorithm 1 of Frantar et al. 2022, column by column with the Cholesky factor of the inverse; values (N, K)."""
    scale, zero = (np.broadcast_to(part, w.shape)[:, order] for part in params.expanded(w.shape))
    w = w[:, order].astype(np.float64)
    inverse = scipy.linalg.cholesky(scipy.linalg.inv(h[np.ix_(order, order)]), lower=False)
    values = np.empty_like(w)
    for j in range(w.shape[1]):
        s, z = scale[:, j].astype(np.float64), zero[:, j]
        q = np.clip(np.round(w[:, j] / s) + z, params.qmin, params.qmax)
        values[:, j] = s * (q - z)
        error = (w[:, j] - values[:, j]) / inverse[j, j]
        w[:, j:] -= np.outer(error, inverse[j, j:])
    result = np.empty_like(values)
    result[:, order] = values
    return result


def activations(rng: np.random.Generator, samples: int, k: int) -> np.ndarray:
    mixing = rng.normal(size=(k, k)) * np.exp(rng.normal(0, 1, (k, 1)))
    return rng.normal(size=(samples, k)) @ mixing + rng.normal(size=k)


def hessian_of(x: np.ndarray) -> Hessian:
    hessian = Hessian(x.shape[1])
    hessian.add(x)
    return hessian


def singular() -> Hessian:
    hessian = Hessian(3)
    hessian.add(np.ones((4, 3)), np.zeros((4, 3)))
    return hessian


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "k"), [(4, 24), (4, 200), (8, 70), (2, 65)])
def test_columns_are_those_of_the_published_algorithm(bits: int, k: int, symmetric: bool, act_order: bool) -> None:
    rng = np.random.default_rng(bits * k)
    w, hessian = rng.normal(size=(10, k)), hessian_of(activations(rng, 3 * k, k))
    damped = hessian.damped(0.01)
    order = np.argsort(-damped.diagonal(), kind="stable") if act_order else np.arange(k)
    ours = gptq(w, hessian, bits=bits, symmetric=symmetric, clip="absmax", act_order=act_order)
    params = weight_params(w, bits=bits, symmetric=symmetric)
    theirs = published_gptq(w, damped, params, order)
    rounded = dequantize(quantize(w, params), params, np.float64)
    # rows for which plain rounding is better are rounded plainly here; they are few
    better = hessian.error(w - theirs) <= hessian.error(w - rounded)
    assert better.mean() > 0.7
    np.testing.assert_allclose(ours.dequantize(np.float64)[better], theirs[better], rtol=1e-12)
    np.testing.assert_allclose(ours.dequantize(np.float64)[~better], rounded[~better], rtol=1e-12)


@given(st.data())
@settings(max_examples=40)
def test_never_worse_than_rounding(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 10**6)))
    n, k = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 90))
    samples = data.draw(st.integers(1, 2 * k))  # fewer than K too: a singular Hessian
    w, x = rng.standard_t(3, (n, k)), activations(rng, samples, k)
    x[:, rng.random(k) < 0.1] = 0  # features that never occur
    common = {
        "bits": data.draw(st.sampled_from([2, 3, 4, 8])),
        "group_size": data.draw(st.none() | st.integers(1, k + 3)),
        "symmetric": data.draw(st.booleans()),
        "clip": data.draw(st.sampled_from(["absmax", "mse"])),
        "levels": data.draw(st.sampled_from([None, 1])),
    }
    hessian = hessian_of(x)
    best = gptq(
        w, hessian, act_order=data.draw(st.booleans()), rounds=data.draw(st.integers(0, 1)), damping=1e-3, **common
    )
    granularity = "channel" if common["group_size"] is None else "group"
    rounded = round_weight(w, granularity=granularity, **common)
    ours = ((x @ (w - best.dequantize(np.float64)).T) ** 2).sum(axis=0)
    plain = ((x @ (w - rounded.dequantize(np.float64)).T) ** 2).sum(axis=0)
    # refinement works with damping: a row may get worse by no more than what the damping weighs
    slack = 1e-3 * (x**2).sum() / k * ((w - rounded.dequantize(np.float64)) ** 2).sum(axis=1)
    assert (ours <= plain * (1 + 1e-9) + 1e-9 * (x**2).sum() + 2 * slack).all()


@given(st.integers(0, 10**6), st.sampled_from([None, 16, 24]), st.booleans(), st.sampled_from(["absmax", "mse"]))
def test_representable_weights_are_kept_exactly(seed: int, group_size: int | None, act_order: bool, clip: str) -> None:
    rng = np.random.default_rng(seed)
    codes = rng.integers(-7, 8, (6, 48)).astype(np.int8)
    codes[:, ::16] = 7  # the largest code occurs in each group of 16 and 24, and so the scales can be found
    codes[:, 1::24] = -7
    scale = np.exp(rng.normal(size=(6, 48 // group_size) if group_size else (6, 1))).astype(np.float32)
    w = codes * np.repeat(scale, 48 // scale.shape[1], axis=1).astype(np.float64)
    hessian = hessian_of(activations(rng, 100, 48))
    result = gptq(w, hessian, group_size=group_size, act_order=act_order, clip=clip, rounds=1)
    assert np.array_equal(result.codes, codes)
    np.testing.assert_allclose(result.dequantize(np.float64), w, rtol=3e-7)


def test_deterministic_and_leaves_its_operands_alone() -> None:
    rng = np.random.default_rng(5)
    w, hessian = rng.normal(size=(8, 96)).astype(np.float32), hessian_of(activations(rng, 200, 96))
    before = w.copy(), hessian.matrix.copy()
    first = gptq(w, hessian, group_size=32, rounds=1)
    again = gptq(w, hessian, group_size=32, rounds=1)
    assert np.array_equal(first.codes, again.codes)
    assert first.params == again.params
    assert np.array_equal(w, before[0])
    assert np.array_equal(hessian.matrix, before[1])


def test_far_better_than_rounding_where_activations_are_correlated() -> None:
    rng = np.random.default_rng(0)
    k = 256
    x = rng.normal(size=(2000, k)) @ (rng.normal(size=(k, k)) * np.exp(-np.arange(k) / 40)[:, None])
    train, test = x[:1500], x[1500:]
    w, hessian = rng.normal(size=(64, k)), hessian_of(train)

    def error(q: QuantizedWeight) -> float:
        return float(((test @ (w - q.dequantize(np.float64)).T) ** 2).sum())

    rounded = error(round_weight(w, bits=4, clip="mse"))
    plain = error(gptq(w, hessian, bits=4))
    assert plain < 0.5 * rounded
    assert error(gptq(w, hessian, bits=4, rounds=2)) < plain


@given(st.integers(0, 10**6), st.sampled_from([None, 8, 20]), st.booleans())
def test_each_round_of_refinement_lowers_the_error(seed: int, group_size: int | None, symmetric: bool) -> None:
    rng = np.random.default_rng(seed)
    w, x = rng.normal(size=(5, 48)), activations(rng, 60, 48)
    hessian = hessian_of(x)
    granularity = "channel" if group_size is None else "group"
    weight = round_weight(w, bits=3, granularity=granularity, group_size=group_size, symmetric=symmetric)
    damped = hessian.damped(0.01)
    errors = []
    for _ in range(4):
        difference = w - weight.dequantize(np.float64)
        errors.append(np.einsum("nk,kl,nl->n", difference, damped, difference))
        weight = refine(weight, w, hessian)
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-6)).all()
    assert errors[1].sum() < errors[0].sum()


def test_fitted_scales_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(1)
    k, size = 24, 8
    codes = rng.integers(-7, 8, (1, k)).astype(np.int8)
    true = np.repeat([0.5, 2.0, 0.25], size)
    x = activations(rng, 300, k)
    w = codes * true + rng.normal(0, 1e-3, (1, k))
    start = QuantizedWeight(codes, QuantParams(np.full((1, 3), 0.6), granularity="group", bits=4, axis=1, group_size=8))
    fitted = refine(start, w, hessian_of(x), damping=0.0)
    columns = np.stack([x[:, g : g + size] @ codes[0, g : g + size] for g in range(0, k, size)], axis=1)
    expected, *_ = np.linalg.lstsq(columns, x @ w[0], rcond=None)
    assert np.array_equal(fitted.codes, codes)
    np.testing.assert_allclose(fitted.params.scale[0], expected, rtol=1e-6)


def test_references_are_fitted_by_least_squares() -> None:
    rng = np.random.default_rng(2)
    reference = activations(rng, 400, 20)
    x = reference + 0.3 * rng.normal(size=reference.shape) * reference.std(axis=0)
    w = rng.normal(size=(6, 20))
    hessian = Hessian(20)
    hessian.add(x[:150].reshape(3, 50, 20), reference[:150].reshape(3, 50, 20))
    hessian.add(x[150:], reference[150:])
    assert hessian.has_reference
    expected, *_ = np.linalg.lstsq(x, reference @ w.T, rcond=None)
    np.testing.assert_allclose(hessian.target(w, damping=0.0), expected.T, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(hessian.target(w, 0.0, strength=0.5), (expected.T + w) / 2, rtol=1e-9, atol=1e-12)
    fitted, ignoring = gptq(w, hessian, bits=4), gptq(w, hessian_of(x), bits=4)

    def error(q: QuantizedWeight) -> float:
        return float(((reference @ w.T - x @ q.dequantize(np.float64).T) ** 2).sum())

    assert error(fitted) < 0.9 * error(ignoring)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_hessian_is_the_sum_over_rows(dtype: type) -> None:
    rng = np.random.default_rng(3)
    x = activations(rng, 64, 12).astype(np.float32)
    hessian = Hessian(12, dtype)
    for batch in np.split(x, 4):
        hessian.add(batch.reshape(2, 8, 12))
    exact = x.astype(np.float64)
    np.testing.assert_allclose(hessian.matrix, exact.T @ exact, rtol=1e-5 if dtype == np.float32 else 1e-12, atol=1e-3)
    assert hessian.matrix.dtype == dtype
    assert (hessian.samples, hessian.has_reference) == (64, False)
    np.testing.assert_allclose(hessian.mean, exact.mean(axis=0), rtol=1e-6)
    assert np.array_equal(hessian.mean, hessian.reference_mean)
    change = rng.normal(size=(3, 12))
    expected = ((exact @ change.T) ** 2).sum(axis=0)
    np.testing.assert_allclose(hessian.error(change), expected, rtol=1e-4 if dtype == np.float32 else 1e-12)


def test_transforms_are_applied_and_kept() -> None:
    rng = np.random.default_rng(4)
    w, x = rng.normal(size=(6, 48)), activations(rng, 200, 48)
    for transform in (Hadamard(48), ChannelScale(np.exp(rng.normal(size=48)))):
        hessian = hessian_of(transform.activation(x))
        result = gptq(w, hessian, bits=8, input_transform=transform)
        assert result.input_transform is transform
        # the error that was minimised is the one that the original activations see
        seen = ((x @ (result.restored(np.float64) - w).T) ** 2).sum(axis=0)
        np.testing.assert_allclose(seen, hessian.error(transform.weight(w) - result.dequantize(np.float64)), rtol=1e-6)
        assert np.array_equal(result.codes, gptq(transform.weight(w), hessian, bits=8).codes)


@pytest.mark.parametrize("symmetric", [True, False])
def test_searched_scales_are_near_the_best_there_is(symmetric: bool) -> None:
    rng = np.random.default_rng(6)
    w = rng.standard_t(4, (4, 64))

    def error(row: np.ndarray, params: QuantParams) -> float:
        return float(((dequantize(quantize(row, params), params, np.float64) - row) ** 2).sum())

    found = weight_params(w, bits=4, symmetric=symmetric, clip="mse")
    plain = weight_params(w, bits=4, symmetric=symmetric)
    for n, row in enumerate(w):
        mine = error(row, QuantParams(found.scale[n], found.zero_point[n], bits=4))
        assert mine <= error(row, QuantParams(plain.scale[n], plain.zero_point[n], bits=4))
        zero_points = [0] if symmetric else range(-8, 8)
        best = min(
            error(row, QuantParams(s, z, bits=4)) for s in np.linspace(0.2, 1.2, 300) * plain.scale[n] * 1.5
            for z in zero_points
        )  # fmt: skip
        assert mine <= best * 1.02


@pytest.mark.parametrize(("rows", "cols", "candidates"), [(0, 3, 2), (1, 1, 1), (5, 0, 2), (7, 131, 3), (2, 2100, 4)])
def test_sums_of_rounded_rows(rows: int, cols: int, candidates: int) -> None:
    rng = np.random.default_rng(rows + cols)
    values = rng.standard_normal((rows, cols)).astype(np.float32)
    weights = rng.random(cols).astype(np.float32)
    scale = rng.uniform(0.05, 0.6, (candidates, rows)).astype(np.float32)
    zero = rng.integers(-8, 8, (candidates, rows)).astype(np.int32)
    sums = kernels.rounding_sums(values, weights, scale, zero, -8, 7)
    s, z = scale[:, :, np.newaxis].astype(np.float64), zero[:, :, np.newaxis]
    q = np.clip(np.rint(values / scale[:, :, np.newaxis]), -8 - z, 7 - z)
    expected = np.stack([(weights * part).sum(axis=-1) for part in ((values - s * q) ** 2, values * q, q * q)], axis=-1)
    assert sums.shape == (candidates, rows, 3)
    np.testing.assert_allclose(sums, expected, rtol=1e-5, atol=1e-5 * max(1, cols))
    with pytest.raises(ValueError, match="do not fit together"):
        kernels.rounding_sums(values, weights, scale, zero[:, :-1] if rows else zero[:-1], -8, 7)
    if rows:
        with pytest.raises(ValueError, match="do not fit together"):
            kernels.rounding_sums(values, weights, -scale, zero, -8, 7)


@pytest.mark.parametrize("granularity", ["layer", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", ["absmax", "mse"])
def test_rows_that_are_transformed_in_parts_are_rounded_as_all_at_once(
    granularity: str, symmetric: bool, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = np.random.default_rng(3).normal(size=(13, 32)).astype(np.float32)
    shares: list[float] = []
    options: dict[str, Any] = {
        "granularity": granularity, "group_size": 12 if granularity == "group" else None, "symmetric": symmetric,
        "clip": clip, "input_transform": Hadamard(32, seed=1), "importance": np.arange(32.0),
    }  # fmt: skip
    whole = round_weight(w, **options)
    monkeypatch.setattr(weight_scales, "_TRANSFORMED_ELEMENTS", 5 * 32 + 1)
    parts = round_weight(w, **options, progress=shares.append)
    np.testing.assert_array_equal(parts.codes, whole.codes)
    assert parts.params.description() == whole.params.description()
    np.testing.assert_array_equal(parts.params.scale, whole.params.scale)
    np.testing.assert_array_equal(parts.params.zero_point, whole.params.zero_point)
    assert parts.input_transform is whole.input_transform
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1)


def test_importance_moves_the_scale() -> None:
    w = np.array([[0.7, 0.11, -0.21, 0.33, 0.24, 7.0]])
    importance = [1, 1, 1, 1, 1, 1e-9]
    params = weight_params(w, bits=4, clip="mse", importance=importance)
    assert params.scale[0] < weight_params(w, bits=4, clip="mse").scale[0] / 2


@pytest.mark.parametrize("granularity", ["layer", "channel", "group"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_plain_scales_follow_the_formula(granularity: str, symmetric: bool) -> None:
    rng = np.random.default_rng(8)
    w = rng.normal(0.4, 1, (3, 10)).astype(np.float32)
    params = weight_params(
        w, bits=4, granularity=granularity, group_size=4 if granularity == "group" else None, symmetric=symmetric
    )
    parts = {"layer": [w], "channel": list(w), "group": [part for row in w for part in (row[:4], row[4:8], row[8:])]}
    for part, s, z in zip(parts[granularity], params.scale.flat, params.zero_point.flat, strict=True):
        low, high = min(float(part.min()), 0), max(float(part.max()), 0)
        assert s == np.float32(max(-low, high) / 7 if symmetric else (high - low) / 15)
        assert z == (0 if symmetric else round(-8 - low / float(s)))


@pytest.mark.parametrize("w", [np.zeros((2, 3)), np.full((2, 3), 1e-45, np.float32), np.full((2, 3), 3e38, np.float32)])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("clip", ["absmax", "mse"])
def test_extreme_weights(w: np.ndarray, symmetric: bool, clip: str) -> None:
    with np.errstate(over="ignore"):
        result = round_weight(w, bits=4, symmetric=symmetric, clip=clip)
    np.testing.assert_allclose(result.dequantize(np.float64), w, rtol=1e-6, atol=1e-38)


def test_empty_weights() -> None:
    for group_size in (None, 2):
        empty = gptq(np.zeros((0, 4)), hessian_of(np.eye(4)), group_size=group_size, rounds=1)
        assert empty.shape == (0, 4)
    assert round_weight(np.zeros((0, 4))).shape == (0, 4)
    assert round_weight(np.zeros((4, 0))).shape == (4, 0)
    assert round_weight(np.zeros((4, 0)), granularity="group", group_size=32).groups == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gptq(np.zeros((2, 3)), Hessian(4)), r"4 features, the weight of shape \(2, 3\)"),
        (lambda: gptq(np.zeros(3), Hessian(3)), "2 dimensions"),
        (lambda: gptq(np.zeros((2, 3)), Hessian(3), damping=-1), "damping"),
        (lambda: gptq(np.ones((2, 3)), hessian_of(np.ones((4, 3))), damping=0.0), "raise damping"),
        (lambda: Hessian(0), "1 or more"),
        (lambda: Hessian(3).error(np.zeros((2, 4))), r"\(N, 3\), not \(2, 4\)"),
        (lambda: Hessian(3).target(np.zeros(3)), r"\(N, 3\), not \(3,\)"),
        (lambda: Hessian(3).target(np.zeros((2, 3)), strength=2.0), "strength"),
        (lambda: singular().target(np.ones((2, 3)), damping=0.0), "raise damping"),
        (lambda: Hessian(3).add(np.zeros((2, 4))), "3 features"),
        (lambda: Hessian(3).add(np.zeros((2, 3)), np.zeros((1, 3))), "2 rows, x_reference 1"),
        (lambda: weight_params(np.zeros((2, 3)), clip="best"), "'absmax' or 'mse'"),
        (lambda: weight_params(np.zeros((2, 3)), granularity="group"), "group_size"),
        (lambda: weight_params(np.zeros((2, 3)), granularity="token"), "not per token"),
        (lambda: weight_params(np.zeros((2, 3)), importance=[1, 2]), "3 numbers"),
        (lambda: weight_params(np.zeros((2, 3)), bits=9), "2 to 8"),
        (lambda: refine(round_weight(np.zeros((2, 3))), np.zeros((2, 4)), Hessian(3)), "target"),
        (lambda: refine(round_weight(np.eye(3), granularity="layer"), np.eye(3), Hessian(3)), "per layer"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(NotFiniteError, match=r"element \(0, 1\)"):
        round_weight([[1.0, np.nan]])
    hessian = Hessian(2)
    with pytest.raises(NotFiniteError, match="nothing was added"):
        hessian.add([[np.inf, 1.0]])
    assert hessian.samples == 0
    with pytest.raises(TypeError, match="float32 or float64"):
        Hessian(2, np.float16)
