"""Scheme w8a8o8: int8 results that the NPU itself rounds, against a float64 model of the formula.

How a chip rounds is not documented (Q20), so codes may differ by one from the exact quotient, rounded; where the
quotient is an integer there is nothing to round.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import sim
from npumatmul.errors import DeviceError, NotFiniteError, RknnError
from npumatmul.quant.hadamard import Hadamard
from npumatmul.quant.params import QuantizedWeight, QuantParams
from npumatmul.quant.schemes import Scheme
from npumatmul.quant.weight_scales import round_weight
from npumatmul.running.placement import Placement

PLAIN = Scheme.parse("w8a8o8")


@pytest.fixture(scope="module")
def rk3588() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as device:
        yield device


def requantized(a_scale: float, result_scale: float) -> Scheme:
    return replace(PLAIN, activation_params=QuantParams(a_scale), result_params=QuantParams(result_scale))


def integers(rng: np.random.Generator, *shape: int) -> NDArray[np.int8]:
    return rng.integers(-127, 128, shape, dtype=np.int8)


@given(
    m=st.integers(1, 40),
    k=st.integers(1, 500),
    n=st.integers(1, 300),
    ratio=st.floats(0.2, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_are_the_exact_quotient_rounded(
    rk3588: npu.Device, m: int, k: int, n: int, ratio: float, seed: int
) -> None:
    """At most one code off; where results leave the range of codes, at its end (a choice of the simulator)."""
    rng = np.random.default_rng(seed)
    a, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    a_scale, w_scale = np.float32(np.abs(a).max() / 120), np.float32(np.abs(w).max()) / np.float32(127)
    result_scale = np.float32(np.abs(a @ w).max() / 127 * ratio)
    q_a, q_w = np.clip(np.rint(a / a_scale), -128, 127), np.rint(w / w_scale)
    exact = (q_a @ q_w) * (np.float64(a_scale) * np.float64(w_scale) / np.float64(result_scale))
    with npu.pack(w, requantized(float(a_scale), float(result_scale)), device=rk3588) as packed:
        assert packed.plan is not None
        assert packed.plan.mm_type is npu.MatmulType.INT8_INT8_INT8
        of_floats, of_codes = npu.matmul(a, packed), npu.matmul(q_a.astype(np.int8), packed)
    assert of_floats.dtype == of_codes.dtype == np.int8
    np.testing.assert_array_equal(of_floats, of_codes)
    assert np.abs(of_codes - np.clip(exact, -128, 127)).max() < 1.0001


@given(m=st.integers(1, 20), k=st.integers(1, 300), n=st.integers(1, 100), seed=st.integers(0, 2**32 - 1))
def test_integers_are_exact(rk3588: npu.Device, m: int, k: int, n: int, seed: int) -> None:
    """Weights with one 1 or -1 per column, scales whose quotient is 1: the product is a choice of values of `a`."""
    rng = np.random.default_rng(seed)
    codes: NDArray[np.int8] = np.zeros((n, k), np.int8)
    codes[np.arange(n), rng.integers(0, k, n)] = rng.choice([-1, 1], n)
    a = integers(rng, m, k)
    weight = QuantizedWeight(codes, QuantParams(0.25))
    with npu.pack(weight, requantized(0.5, 0.125), device=rk3588) as packed:
        np.testing.assert_array_equal(npu.matmul(a, packed), a.astype(np.int64) @ codes.T)
        np.testing.assert_array_equal(packed.unpack(), codes.T * np.float32(0.25))


def test_weights_of_one_shape_keep_their_scales(rk3588: npu.Device) -> None:
    """Contexts are shared by shape, but not between weights whose scales differ; on all cores, for any rows."""
    rng = np.random.default_rng(11)
    a, codes = integers(rng, 700, 64) // 8, integers(rng, 6000, 64) // 16
    sums = a.astype(np.int64) @ codes.T.astype(np.int64)
    powers = (-9, -7, -8, -6)  # of scales, so that all quotients but the last rounding are exact
    weights = [
        npu.pack(QuantizedWeight(codes, QuantParams(2.0**p)), requantized(1.0, 2.0), device=rk3588) for p in powers
    ]
    weights += [
        npu.pack(QuantizedWeight(codes, QuantParams(2.0**-8)), requantized(1.0, s), device=rk3588) for s in (1, 4)
    ]
    steps = [2.0 ** (p - 1) for p in powers] + [2.0**-8, 2.0**-10]
    for rows in (1, 7, 700, 1, 33):
        for packed, step in zip(weights, steps, strict=True):
            exact = np.clip(sums[:rows] * step, -128, 127)
            assert np.abs(npu.matmul(a[:rows], packed) - exact).max() < 1
    for packed in weights:
        packed.close()


def test_contexts_that_are_made_anew_get_their_scales_again(rk3588: npu.Device) -> None:
    a = np.full((1, 32), 100, np.int8)
    weight = QuantizedWeight(np.eye(32, dtype=np.int8), QuantParams(0.5))
    with npu.pack(weight, requantized(1.0, 1.0), device=rk3588) as packed:
        for _ in range(2):
            np.testing.assert_array_equal(npu.matmul(a, packed), np.full((1, 32), 50))
            with rk3588.lock:
                assert Placement.of(rk3588).reclaim()


@pytest.mark.parametrize("fault", ["set_quant_params:after=1:times=1:code=-5", "run:times=2:code=-2"])
def test_a_failure_leaves_no_context_without_its_scales(fault: str) -> None:
    weight = QuantizedWeight(np.eye(32, dtype=np.int8), QuantParams(0.5))
    a = np.full((1, 32), 100, np.int8)
    with npu.Device("sim:rk3588") as device, npu.pack(weight, requantized(1.0, 1.0), device=device) as packed:
        before = device.stats().contexts
        with sim.configured(device, faults=fault), pytest.raises(RknnError):
            npu.matmul(a, packed)
        assert device.stats().contexts <= before + 1  # one that failed to run is made anew when it is next wanted
        np.testing.assert_array_equal(npu.matmul(a, packed), np.full((1, 32), 50))


def test_saved_and_pickled(rk3588: npu.Device, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    a, weight = integers(rng, 5, 90), QuantizedWeight(integers(rng, 40, 90), QuantParams(0.02))
    scheme = requantized(0.1, 0.5)
    with npu.pack(weight, scheme, device=rk3588) as packed, npu.use_device(rk3588):
        npu.save_packed(packed, tmp_path / "w")
        for again in (npu.load_packed(tmp_path / "w"), pickle.loads(pickle.dumps(packed))):
            assert again.scheme == scheme
            np.testing.assert_array_equal(npu.matmul(a, again), npu.matmul(a, packed))


def test_where_results_go(rk3588: npu.Device) -> None:
    rng = np.random.default_rng(4)
    a, w = rng.standard_normal((3, 6, 64)).astype(np.float32), rng.standard_normal((64, 48)).astype(np.float32)
    scheme = requantized(0.03, 0.25)
    with npu.pack(w, scheme, device=rk3588) as packed:
        expected = npu.matmul(a, packed)
        assert expected.shape == (3, 6, 48)
        strided = np.zeros((3, 6, 96), np.int8)[..., ::2]
        for out in (np.zeros((3, 6, 48), np.int8), np.zeros((3, 6, 48), np.int32), strided):
            assert npu.matmul(a, packed, out) is out
            np.testing.assert_array_equal(out, expected)
        np.testing.assert_array_equal(npu.matmul(a, w, scheme=scheme, device=rk3588), expected)
        np.testing.assert_array_equal(npu.matmul(npu.asarray(a, device=rk3588), packed).numpy(), expected)
        assert npu.matmul(a[:, :0], packed).shape == (3, 0, 48)
    with npu.pack(w[:0], scheme, device=rk3588) as packed:
        np.testing.assert_array_equal(npu.matmul(a[..., :0], packed), np.zeros((3, 6, 48), np.int8))


def test_what_cannot_be(rk3588: npu.Device) -> None:
    w, scheme = np.ones((64, 32), np.float32), requantized(1.0, 1.0)
    before = rk3588.stats().npu_bytes
    refused: list[tuple[Any, Any, type[Exception], str]] = [
        (np.ones((8193, 32), np.float32), scheme, ValueError, "takes K up to 8192 on rk3588.*'w8a8_layer_static'"),
        (w, PLAIN, ValueError, "needs activation_params"),
        (w, replace(PLAIN, activation_params=QuantParams(1.0)), ValueError, "needs result_params"),
        (
            QuantizedWeight(np.ones((32, 64), np.int8), QuantParams(np.ones(32), 0, "channel")),
            scheme,
            ValueError,
            "scales",
        ),
        (w.astype(np.int8), scheme, TypeError, "takes weights of float"),
    ]
    for weight, how, error, message in refused:
        with pytest.raises(error, match=message):
            npu.pack(weight, how, device=rk3588)
    assert rk3588.stats().npu_bytes == before
    a = np.ones((2, 64), np.float32)
    with npu.pack(w, scheme, device=rk3588) as packed:
        for given in ({"bias": np.ones(32)}, {"epilogue": npu.Epilogue()}, {"dtype": np.float32}):
            with pytest.raises(TypeError, match="results of this scheme are int8 codes"):
                npu.matmul(a, packed, **given)
        with pytest.raises(TypeError, match="b is packed as 'w8a8o8'"):
            npu.matmul(a.astype(np.uint8), packed)
        a[1, 3] = np.inf
        with pytest.raises(NotFiniteError, match="row 1"):
            npu.matmul(a, packed)
    with pytest.raises(ValueError, match="nothing to choose"):
        npu.Matmul(a, w, scheme=scheme, device=rk3588).autotune()
    turned = QuantizedWeight(np.ones((32, 64), np.int8), QuantParams(1.0), Hadamard(64))
    with (
        npu.pack(turned, scheme, device=rk3588) as packed,
        pytest.raises(TypeError, match="input transform, which codes cannot go through"),
    ):
        npu.matmul(np.ones((2, 64), np.int8), packed)


def test_a_transform_comes_before_the_rounding(rk3588: npu.Device) -> None:
    rng = np.random.default_rng(8)
    a, w = rng.standard_normal((9, 64)).astype(np.float32), rng.standard_normal((50, 64)).astype(np.float32)
    transform = Hadamard(64, seed=1)
    weight = round_weight(transform.weight(w), granularity="layer")
    scheme = requantized(0.04, 0.3)
    with npu.pack(QuantizedWeight(weight.codes, weight.params, transform), scheme, device=rk3588) as packed:
        found = npu.matmul(a, packed)
    assert np.abs(found * 0.3 - a @ w.T).max() < 0.3 + 64 * 0.03  # a step, and what rounding of both operands does


@pytest.mark.parametrize("soc", ["rk3576", "rk3568", "rk3566", "rk3562"])
def test_chips_without_the_type(soc: str) -> None:
    with (
        npu.Device(f"sim:{soc}") as device,
        pytest.raises(DeviceError, match=r"INT8_INT8_INT8.*on rk3588 from runtime 2"),
    ):
        npu.pack(np.ones((32, 32), np.float32), requantized(1.0, 1.0), device=device)


def test_runtimes_without_the_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "1.6.0")
    with npu.Device("sim:rk3588") as device, pytest.raises(DeviceError, match=r"under runtime 1\.6\.0 does not have"):
        npu.pack(np.ones((32, 32), np.float32), requantized(1.0, 1.0), device=device)


def test_plain_integers_are_not_rounded_to_int8(rk3588: npu.Device) -> None:
    """Arrays in NPU memory are multiplied in place where a type gives the result's dtype, but not with scales of 1."""
    a = npu.asarray(np.full((2, 32), 2, np.int8), device=rk3588)
    with npu.pack(np.ones((32, 32), np.int8), device=rk3588) as packed:
        np.testing.assert_array_equal(npu.matmul(a, packed).numpy(), np.full((2, 32), 64))
        with pytest.raises(TypeError, match="dtype is int8; the result of integer operands can be int32"):
            npu.matmul(a, packed, dtype=np.int8)
