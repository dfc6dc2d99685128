"""SmoothQuant leaves float models what they were once it is folded, and helps where activations have outliers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from npumatmul.quant import (
    ChannelScale,
    Hessian,
    bias_correction,
    fake_quantize,
    fold_into_linear,
    fold_into_norm,
    gptq,
    round_weight,
    search_smooth,
    smooth,
    token_params,
)


def outlier_activations(rng: np.random.Generator, m: int, k: int) -> np.ndarray:
    return rng.normal(size=(m, k)) * np.where(rng.random(k) < 0.05, 50, 1)


@given(st.integers(0, 999), st.floats(0, 1), st.booleans())
def test_folding_into_a_norm_and_a_linear_changes_nothing(seed: int, alpha: float, power_of_two: bool) -> None:
    rng = np.random.default_rng(seed)
    x, k, j, n = rng.normal(size=(4, 12)), 12, 5, 7
    gain, shift = rng.normal(size=k), rng.normal(size=k)
    wq, wk = rng.normal(size=(n, k)), rng.normal(size=(j, k))

    def norm(g: np.ndarray, b: np.ndarray) -> np.ndarray:
        layer = torch.nn.functional.layer_norm(torch.from_numpy(x), (k,), torch.from_numpy(g), torch.from_numpy(b))
        return layer.numpy()

    scale = smooth(np.abs(norm(gain, shift)).max(axis=0), [wq, wk], alpha, power_of_two=power_of_two)
    folded = norm(*fold_into_norm(scale, gain, shift))
    for w in (wq, wk):
        np.testing.assert_allclose(folded @ scale.weight(w).T, norm(gain, shift) @ w.T, rtol=1e-9, atol=1e-9)
    before, bias = rng.normal(size=(k, 9)), rng.normal(size=k)
    inputs = rng.normal(size=(3, 9))
    new_before, new_bias = fold_into_linear(scale, before, bias)
    np.testing.assert_allclose(
        (inputs @ new_before.T + new_bias) @ scale.weight(wq).T, (inputs @ before.T + bias) @ wq.T, rtol=1e-9, atol=1e-9
    )
    if power_of_two:  # then not one bit of a float32 weight changes but its exponent
        assert (np.frexp(scale.scale)[0] == 0.5).all()
        single = wq.astype(np.float32)
        assert np.array_equal(scale.inverse_weight(scale.weight(single)), single)


def test_the_rule_is_the_published_one() -> None:
    rng = np.random.default_rng(0)
    largest, w = np.exp(rng.normal(size=16)), [rng.normal(size=(4, 16)), rng.normal(size=(6, 16))]
    found = smooth(largest, w, alpha=0.7).scale
    reach = np.maximum(np.abs(w[0]).max(axis=0), np.abs(w[1]).max(axis=0))
    expected = largest**0.7 / reach**0.3
    np.testing.assert_allclose(found / found[0], expected / expected[0], rtol=1e-5)
    assert np.exp(np.log(found).mean()) == pytest.approx(1, rel=1e-5)


def test_features_that_never_occur_are_left_alone() -> None:
    scale = smooth([0.0, 4.0, 4.0], [[[1.0, 0.0, 1.0]]]).scale
    assert scale[0] == scale[1] == 1


def test_search_lowers_the_error_where_there_are_outliers() -> None:
    rng = np.random.default_rng(1)
    x, w = outlier_activations(rng, 128, 96), rng.normal(size=(32, 96))

    def error(transform: ChannelScale) -> float:
        moved = transform.activation(x)
        moved = fake_quantize(moved, token_params(moved))
        return float(np.square(x @ w.T - moved @ round_weight(w, input_transform=transform).dequantize().T).sum())

    nothing = ChannelScale(np.ones(96))
    found = search_smooth(x, [w])
    assert error(found) < 0.3 * error(nothing)
    assert error(found) <= error(smooth(np.abs(x).max(axis=0), [w], 0.5))


def test_search_never_makes_it_worse() -> None:
    x, w = np.ones((8, 16)), np.eye(16) * 127
    assert np.array_equal(search_smooth(x, [w], activation_bits=None).scale, np.ones(16))


def test_bias_correction_takes_the_mean_error_away() -> None:
    rng = np.random.default_rng(2)
    reference = rng.normal(3, 1, (500, 24))
    x = reference + rng.normal(0.2, 0.1, reference.shape)
    w, bias = rng.normal(size=(6, 24)), rng.normal(size=6)
    hessian = Hessian(24)
    hessian.add(x, reference)
    quantized = gptq(w, hessian, bits=3)
    corrected = bias_correction(w, quantized, hessian, bias=bias)
    assert corrected.dtype == np.float32
    error = x @ quantized.dequantize(np.float64).T + corrected - (reference @ w.T + bias)
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-5)
    same = bias_correction(w, quantized, x.mean(axis=0), reference.mean(axis=0), bias)
    np.testing.assert_allclose(same, corrected, rtol=1e-6)
    alone = bias_correction(w, quantized, x.mean(axis=0))
    error = x @ quantized.dequantize(np.float64).T + alone - x @ w.T
    np.testing.assert_allclose(error.mean(axis=0), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: smooth([1.0], []), "needs weights"),
        (lambda: smooth([1.0, 2.0], [[[1.0]]]), "K=2"),
        (lambda: smooth([-1.0], [[[1.0]]]), "not negative"),
        (lambda: smooth([1.0], [[[1.0]]], alpha=2), "alpha"),
        (lambda: fold_into_norm(ChannelScale([1.0]), [[1.0]]), "norm"),
        (lambda: fold_into_norm(ChannelScale([1.0]), [1.0, 2.0]), "1 features"),
        (lambda: fold_into_linear(ChannelScale([1.0]), [1.0]), "2 dimensions"),
        (lambda: bias_correction([[1.0]], round_weight([[1.0, 2.0]]), [1.0, 2.0]), "shape"),
        (lambda: bias_correction([[1.0, 2.0]], round_weight([[1.0, 2.0]]), [1.0]), "means"),
        (lambda: bias_correction([[1.0]], round_weight([[1.0]]), [1.0], bias=[1.0, 2.0]), "bias of 1 rows"),
    ],
)
def test_refusals(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
