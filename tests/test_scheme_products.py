"""Products in every scheme on every chip against a float64 model of the formulas, and where exactness is promised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul.errors import DeviceError, NotFiniteError
from npumatmul.quant.params import QuantizedWeight, QuantParams
from npumatmul.quant.schemes import Scheme

INTEGER_BITS = ("w8a8", "w4a8", "w4a4")
#: Without w4a4, which only rk3588 has, and w8a16 and w4a16, which only rk3576 has (facts 3.2).
HAS = {
    "rk3588": INTEGER_BITS,
    "rk3576": ("w8a8", "w4a8", "w8a16", "w4a16"),
    "rk3562": ("w8a8", "w4a8"),
    "rk3566": ("w8a8", "w4a8"),
    "rk3568": ("w8a8", "w4a8"),
}


@pytest.fixture(scope="module", params=HAS)
def chip(request: pytest.FixtureRequest) -> Iterator[npu.Device]:
    with npu.Device(f"sim:{request.param}") as device:
        yield device


@pytest.fixture(scope="module")
def rk3588() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as device:
        yield device


def codes_of(w: NDArray[np.float32], bits: int, size: int, symmetric: bool, layer: bool) -> tuple[NDArray[Any], ...]:
    """Codes less their zero points, and the scale of each, of a weight (K, N): float32 division, halves to even."""
    levels = 2 ** (bits - 1) - 1
    codes, scales = np.zeros(w.shape), np.zeros(w.shape)
    for start in range(0, len(w), size):
        part = w[start : start + size]
        axis = None if layer else 0
        low, high = (np.broadcast_to(f(axis=axis), w.shape[1]) for f in (part.min, part.max))
        low, high = np.minimum(low, 0).astype(np.float64), np.maximum(high, 0).astype(np.float64)
        reach = np.maximum(-low, high) / levels if symmetric else (high - low) / (2 * levels + 1)
        scale = np.where(reach > 0, reach, 1).astype(np.float32)
        zero = 0 if symmetric else np.clip(np.rint(-levels - 1 - low / scale), -levels - 1, levels)
        q = np.rint(part / scale) + zero
        codes[start : start + size] = np.clip(q, -levels - (not symmetric), levels) - zero
        scales[start : start + size] = scale
    return codes, scales


def rows_of(a: NDArray[np.float32], levels: int, clip: float, symmetric: bool) -> tuple[NDArray[Any], NDArray[Any]]:
    """Quantized rows less their zero points, and their scales."""
    x = a.astype(np.float64)
    if symmetric:
        scale = (np.abs(a).max(axis=1, keepdims=True) * np.float32(clip) / np.float32(levels)).astype(np.float32)
        scale[scale == 0] = 1
        return np.clip(np.rint(a / scale), -levels, levels), scale.astype(np.float64)
    c = np.float64(np.float32(clip))
    low, high = c * np.minimum(x.min(1, keepdims=True), 0), c * np.maximum(x.max(1, keepdims=True), 0)
    scale = ((high - low) / (2 * levels + 1)).astype(np.float32)
    scale[scale == 0] = 1
    zero = np.clip(-levels - 1 - np.rint(low / scale), -levels - 1, levels)
    return np.clip(np.rint(a / scale) + zero, -levels - 1, levels) - zero, scale.astype(np.float64)


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, int, int], str, dict[str, Any], int]:
    shape = draw(st.integers(1, 20)), draw(st.integers(1, 300)), draw(st.integers(1, 140))
    granularity = draw(st.sampled_from(["", "_layer", "_g32", "_g96", "_g512"]))
    options = {name: draw(st.booleans()) for name in ("wasym", "aasym", "agroup")}
    options["agroup"] &= granularity.startswith("_g")
    options["clip"] = draw(st.sampled_from([1.0, 0.7]))
    return shape, granularity, options, draw(st.integers(0, 2**32 - 1))


@given(case=cases(), data=st.data())
def test_quantized_products(chip: npu.Device, case: Any, data: st.DataObject) -> None:
    (m, k, n), granularity, options, seed = case
    bits = data.draw(st.sampled_from(HAS[chip.chip.soc]))
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((k, n)).astype(np.float32) * np.exp2(rng.integers(-9, 9, (1, n))).astype(np.float32)
    a = rng.standard_normal((m, k)).astype(np.float32) * np.exp2(rng.integers(-9, 9, (m, 1))).astype(np.float32)
    a += options["aasym"]  # ranges that are not centred
    if options["agroup"]:
        a *= np.exp2(rng.integers(-9, 9, (1, k))).astype(np.float32)
    quantized_rows = bits in INTEGER_BITS
    name = bits + granularity + "".join(f"_{o}" * options[o] for o in ("wasym", "aasym", "agroup")) * quantized_rows
    scheme = Scheme.parse(name)
    scheme = replace(scheme, activation_clip=options["clip"]) if quantized_rows else scheme
    with npu.pack(w, scheme, device=chip) as packed:
        result = npu.matmul(a, packed)
        split, runs = packed.route.row_images == 2, len(packed.stored.slices)
    assert result.dtype == np.float32

    size = scheme.group_size or k
    codes, scales = codes_of(w, scheme.weight_bits, size, scheme.symmetric, granularity == "_layer")
    if quantized_rows:
        levels = 119 if split else 2 ** (scheme.activation_bits - 1) - 1
        width = size if options["agroup"] else k
        spans = [a[:, start : start + width] for start in range(0, k, width)]
        measured = [rows_of(span, levels, options["clip"], scheme.activation_symmetric) for span in spans]
        rows, row_scale = np.hstack([r for r, _ in measured]), [s for _, s in measured for _ in range(0, width, size)]
    else:  # float16 with a power of two per row: rounding to 11 bits, but for what is subnormal beside its row
        rows, row_scale = a.astype(np.float64), [np.ones((m, 1))] * -(-k // size)
    terms = [
        row_scale[i] * (rows[:, g : g + size] @ codes[g : g + size]) * scales[g]
        for i, g in enumerate(range(0, k, size))
    ]  # each exact in integers, and rounded to float32 at most once
    magnitude = sum(np.abs(term) for term in terms)
    tolerance = 2.0**-24 * (1 if len(terms) == 1 else runs + 1) * magnitude * 1.0001
    if not quantized_rows:
        reach = row_scale[0] * (np.abs(rows) @ (np.abs(codes) * scales))
        tolerance = (2.0**-11 + 2.0**-23 * (k + 2)) * reach * 1.01 + 2.0**-22 * np.abs(a).max() * k * scales.max() * 128
    assert (np.abs(result - sum(terms)) <= tolerance + 1e-37).all()


def adversarial(rng: np.random.Generator, shape: tuple[int, int], low: int, high: int) -> NDArray[np.float32]:
    """Values of which many are the ends of the range: long runs of one sign, so that sums grow as large as they can."""
    kind = rng.integers(0, 3)
    if kind == 0:
        return np.full(shape, high if rng.integers(0, 2) else low, np.float32)
    if kind == 1:
        return np.where(rng.random(shape) < 0.5, low, high).astype(np.float32)
    return rng.integers(low, high + 1, shape).astype(np.float32)


@given(k=st.integers(1, 2500), n=st.integers(1, 70), m=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_w4a8_equals_int32_arithmetic(rk3588: npu.Device, k: int, n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, a = adversarial(rng, (k, n), -7, 7), adversarial(rng, (m, k), -119, 119)
    w[0], a[:, 0] = 7, 119  # so that every scale is exactly 1
    with npu.pack(w, "w4a8", device=rk3588) as packed:
        assert packed.plan is not None
        assert packed.plan.mm_type is npu.MatmulType.INT4_INT4_INT16
        np.testing.assert_array_equal(npu.matmul(a, packed), a.astype(np.int64) @ w.astype(np.int64))


@pytest.mark.parametrize("zero_points", [False, True])
def test_a_scale_per_row_and_group(chip: npu.Device, zero_points: bool) -> None:
    """Values that have codes in their groups' own scales are exact, however far apart groups are; rows are named."""
    rng = np.random.default_rng(8)
    most = 119 if chip.chip.soc == "rk3588" else 127
    weight = rng.integers(-8, 8, (90, 640), dtype=np.int8)
    params = QuantParams(np.exp2(rng.integers(-3, 3, (90, 10))), 0, "group", bits=4, group_size=64)
    codes = rng.integers(-most, most + 1, (9, 10, 64))
    codes[:, :, 0], codes[:, :, 1] = most, -most - zero_points
    a = (codes * np.exp2(rng.integers(-20, 20, (9, 10, 1)))).astype(np.float32).reshape(9, 640)
    scheme = Scheme(4, 8, "group", 64, activation_granularity="group", activation_symmetric=not zero_points)
    quantized = QuantizedWeight(weight, params)
    with npu.pack(quantized, scheme, device=chip) as packed:
        expected = sum(
            (a[:, g : g + 64].astype(np.float64) @ quantized.dequantize()[:, g : g + 64].T.astype(np.float64))
            for g in range(0, 640, 64)
        )
        bound = np.abs(a).astype(np.float64) @ np.abs(quantized.dequantize()).T * 11 * 2.0**-24
        assert (np.abs(npu.matmul(a, packed) - expected) <= bound).all()
        a[4, 600] = np.nan
        with pytest.raises(NotFiniteError, match="row 4 of a holds"):
            npu.matmul(a, packed)
    assert packed.scheme.name == "w4a8_g64" + "_aasym" * zero_points + "_agroup"


def test_groups_that_are_cut_keep_one_scale(rk3588: npu.Device) -> None:
    """Parts of a group, which int16 sums need, quantize a row alike: integers in one scale stay exact."""
    weight = QuantizedWeight(
        np.full((40, 2048), -8, np.int8), QuantParams(np.ones((40, 2)), 0, "group", bits=4, group_size=1024)
    )
    a = np.full((3, 2048), 100, np.float32)
    a[:, 1020], a[:, 1024:] = 119, a[:, 1024:] * 2
    a[:, 2047] = 119 * 2
    scheme = Scheme(4, 8, "group", 1024, activation_granularity="group")
    with npu.pack(weight, scheme, device=rk3588) as packed:
        assert len(packed.stored.slices) > 2
        np.testing.assert_array_equal(npu.matmul(a, packed), np.full((3, 40), -8 * a[0].sum(dtype=np.float64)))


@given(k=st.integers(1, 2500), n=st.integers(1, 70), seed=st.integers(0, 2**32 - 1), split=st.booleans())
def test_codes_with_zero_points_are_exact(rk3588: npu.Device, k: int, n: int, seed: int, split: bool) -> None:
    """The whole range of int4 codes, -8 too, with zero points on both sides."""
    rng = np.random.default_rng(seed)
    codes = adversarial(rng, (n, k), -8, 7).astype(np.int8)
    zero_a, zero_w = int(rng.integers(-100, 100) if split else rng.integers(-8, 8)), rng.integers(-8, 8, n)
    weight = QuantizedWeight(codes, QuantParams(np.ones(n), zero_w, "channel", bits=4))
    low, high = (-119, 119) if split else (-8, 7)
    a = adversarial(rng, (3, k), low, high) - zero_a
    params = QuantParams(1.0, zero_a, bits=8 if split else 4, levels=119 if split else None)
    scheme = Scheme(
        4, 8 if split else 4, activation_granularity="layer", activation_symmetric=False, activation_params=params
    )
    with npu.pack(weight, scheme, device=rk3588) as packed:
        expected = a.astype(np.int64) @ (codes.astype(np.int64) - zero_w[:, np.newaxis]).T
        np.testing.assert_array_equal(npu.matmul(a, packed), expected.astype(np.float32))


def test_old_runtimes_take_the_other_order_of_int4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "1.6.0")
    rng = np.random.default_rng(3)
    with npu.Device("sim:rk3588") as device:
        for scheme, largest in (("w4a8", 119), ("w4a4", 7)):
            w, a = adversarial(rng, (200, 40), -7, 7), adversarial(rng, (5, 200), -largest, largest)
            w[0], a[:, 0] = 7, largest
            with npu.pack(w, scheme, device=device) as packed:
                assert packed.plan is not None
                assert packed.plan.mm_type is npu.MatmulType.INT4_INT4_INT16
                np.testing.assert_array_equal(npu.matmul(a, packed), a.astype(np.int64) @ w.astype(np.int64))


def test_codes_are_packed_as_they_are(chip: npu.Device) -> None:
    """Groups with zero points on every chip: the result is that of the values that the codes stand for."""
    rng = np.random.default_rng(5)
    codes = rng.integers(-8, 8, (50, 200), dtype=np.int8)
    scale, zero = np.exp2(rng.integers(-3, 3, (50, 4))), rng.integers(-8, 8, (50, 4))
    weight = QuantizedWeight(codes, QuantParams(scale, zero, "group", bits=4, group_size=64))
    a = rng.integers(-119, 120, (7, 200)).astype(np.float32)
    a[:, 0] = 119
    if chip.chip.soc != "rk3588":  # 127 levels instead of 119
        a[:, 0] = 127
    with npu.pack(weight, device=chip) as packed:
        assert packed.scheme.name == "w4a8_g64_wasym"
        assert packed.params is weight.params
        np.testing.assert_array_equal(npu.matmul(a, packed), a @ weight.dequantize().T)  # exact in float32
    with pytest.raises(ValueError, match="asks for other scales than the quantized weight has"):
        npu.pack(weight, "w4a8_g32", device=chip)
    with pytest.raises(ValueError, match="does not take a quantized weight of 4 bits"):
        npu.pack(weight, "w16a16", device=chip)


def test_a_transform_is_applied_to_activations(rk3588: npu.Device) -> None:
    class Halves:
        features = 64

        def activation(self, x: NDArray[Any]) -> NDArray[Any]:
            return x / 2

        def weight(self, w: NDArray[Any]) -> NDArray[Any]:
            return w * 2

        def inverse_weight(self, w: NDArray[Any]) -> NDArray[Any]:
            return w / 2

        def describe(self) -> dict[str, Any]:
            return {}

    codes = np.eye(64, dtype=np.int8)[:40] * 2
    a = np.full((3, 64), 127, np.float32)
    weight = QuantizedWeight(codes, QuantParams(1.0), Halves())
    with npu.pack(weight, device=rk3588) as packed:
        np.testing.assert_allclose(npu.matmul(a, packed), np.full((3, 40), 127.0), rtol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), k=st.integers(1, 300), wide=st.booleans())
def test_high_precision_is_within_its_bound(chip: npu.Device, seed: int, k: int, wide: bool) -> None:
    """|error| <= (3 u^2 + (1 + 4 u)((1 + v)^(3 K + 1) - 1)) (|a| @ |b|) + 2^-35 K A B with u = 2^-11, v = 2^-24."""
    rng = np.random.default_rng(seed)
    spread = rng.integers(-40, 40, (4, k)) if wide else np.zeros((4, k), int)
    a = np.ldexp(rng.standard_normal((4, k)), spread + rng.integers(-60, 60, (4, 1))).astype(np.float32)
    b = rng.standard_normal((k, 33)).astype(np.float32)
    with npu.pack(b, "w16a16_high", device=chip) as packed:
        assert len(packed.stored.slices) == 3 * len(packed.plan.k_spans)
        assert packed.nbytes == 2 * sum(p.padded for p in packed.plan.k_spans) * 2 * sum(
            p.padded for p in packed.plan.n_spans
        )
        result = npu.matmul(a, packed)
    x, y, u, v = a.astype(np.float64), b.astype(np.float64), 2.0**-11, 2.0**-24
    largest = np.abs(x).max(axis=1, keepdims=True) * np.abs(y).max(axis=0)
    bound = (3 * u * u + (1 + 4 * u) * ((1 + v) ** (3 * k + 1) - 1)) * (np.abs(x) @ np.abs(y)) + 2.0**-35 * k * largest
    assert (np.abs(result - x @ y) <= bound + 2.0**-149).all()


@given(
    seed=st.integers(0, 2**32 - 1), k=st.integers(1, 300), precision=st.sampled_from([None, "high"]), bare=st.booleans()
)
def test_inf_and_nan_are_those_of_float32(
    chip: npu.Device, seed: int, k: int, precision: str | None, bare: bool
) -> None:
    """inf times zero, inf less inf, inf times inf: numpy's float32, with any mixture of zeros, infs and nans."""
    rng = np.random.default_rng(seed)
    wild = np.array([np.inf, -np.inf, np.nan, 0.0, 0.0], np.float32)
    a, b = rng.uniform(-2, 2, (5, k)).astype(np.float32), rng.uniform(-2, 2, (k, 6)).astype(np.float32)
    for matrix in (a, b):
        where = rng.random(matrix.shape) < 2 / k
        matrix[where] = rng.choice(wild[rng.integers(0, 3) :], matrix.shape)[where]
    matrix = a if rng.integers(2) else b
    if bare:
        matrix[0, 0] = rng.choice(wild[:3])
    with np.errstate(invalid="ignore"):
        expected = np.matmul(a, b)
    result = npu.matmul(a, b, precision=precision, device=chip)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(result[~finite], expected[~finite])
    assert np.isfinite(result[finite]).all()


def test_static_activations(chip: npu.Device) -> None:
    rng = np.random.default_rng(9)
    a = rng.uniform(-3, 5, (6, 100)).astype(np.float32)
    w = rng.integers(-127, 128, (100, 20)).astype(np.float32)
    w[0] = 127
    params = QuantParams(8 / 255, -33)
    scheme = Scheme(8, 8, activation_granularity="layer", activation_symmetric=False, activation_params=params)
    with npu.pack(w, scheme, device=chip) as packed:
        codes = np.clip(np.rint(a / params.scale) - 33, -128, 127) + 33
        expected = codes @ w.astype(np.float64) * float(params.scale)
        np.testing.assert_allclose(npu.matmul(a, packed), expected, rtol=2**-23)
        a[4, 7] = np.nan
        with pytest.raises(NotFiniteError, match="row 4"):
            npu.matmul(a, packed)


def test_what_a_chip_lacks_is_told_before_anything_is_packed(chip: npu.Device) -> None:
    before = chip.stats().npu_bytes
    for bits in ("w4a4", "w8a16", "w4a16"):
        if bits not in HAS[chip.chip.soc]:
            with pytest.raises(DeviceError, match=f"scheme '{bits}_g64' needs the matmul type"):
                npu.pack(np.ones((64, 64), np.float32), f"{bits}_g64", device=chip)
    assert chip.stats().npu_bytes == before


def test_int4_values_on_chips_without_int4(chip: npu.Device) -> None:
    w = np.arange(-8, 8, dtype=np.int8).astype(ml_dtypes.int4).reshape(16, 1)
    with npu.pack(w, device=chip) as packed:
        assert ("stored as int8, exactly" in packed.route.note) == (chip.chip.soc != "rk3588")
        np.testing.assert_array_equal(npu.matmul(w.T, packed), [[344]])  # 2 (1 + 4 + ... + 49) + 64


@pytest.mark.parametrize("scheme", ["w8a8", "w8a8_aasym", "w8a8_g4096", "w4a8"])
def test_sums_that_leave_int32(rk3588: npu.Device, scheme: str) -> None:
    """127 * 127 * 140000 is beyond 2**31, and so is 255 * 127 * 140000."""
    k = 140_000
    a, b = np.ones((1, k), np.float32), np.ones((k, 2), np.float32)
    with npu.pack(b, scheme, device=rk3588) as packed:
        np.testing.assert_allclose(npu.matmul(a, packed), [[k, k]], rtol=1e-5)
