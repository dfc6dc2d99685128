"""Transforms leave products what they were, and are undone; Hadamard matrices are what their definition says."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul.errors import NotFiniteError
from npumatmul.host import kernels
from npumatmul.planning.product import plan_matmul
from npumatmul.quant import Chain, ChannelScale, Hadamard, Permutation, hadamard_matrix, round_weight, transform_from
from npumatmul.quant.hadamard_matrices import hadamard_factors, largest_hadamard_block
from npumatmul.quant.params import InputTransform, QuantizedWeight, QuantParams
from npumatmul.quant.transforms import kernel_of

ORDERS = [1, 2, *[n for n in range(4, 257, 4) if n not in (188, 236)], 12 * 20, 52 * 12, 172 * 4, 576]
WIDTHS = [
    *(
        64,
        576,
        896,
        960,
        1152,
        1536,
        2048,
        2304,
        2560,
        2816,
        3072,
        3200,
        3584,
        4096,
        4864,
        5120,
        5504,
        5632,
        6144,
        6912,
    ),
    *(8192, 8640, 8960, 9216, 9728, 10240, 11008, 11264, 12288, 13824, 14336, 16384, 18944, 22016, 27648, 28672, 29568),
]


@pytest.mark.parametrize("n", ORDERS)
def test_hadamard_matrices(n: int) -> None:
    h = hadamard_matrix(n).astype(np.int64)
    assert np.array_equal(np.abs(h), np.ones((n, n)))
    assert np.array_equal(h @ h.T, n * np.eye(n))


@pytest.mark.parametrize("n", [2, 4, 32, 256])
def test_powers_of_two_are_sylvesters(n: int) -> None:
    assert np.array_equal(hadamard_matrix(n), scipy.linalg.hadamard(n))


@pytest.mark.parametrize("n", [0, -4, 3, 6, 10, 30, 188, 236])
def test_orders_that_are_not_known(n: int) -> None:
    assert hadamard_factors(n) is None
    with pytest.raises(ValueError, match=f"order {n} can be constructed"):
        hadamard_matrix(n)


@pytest.mark.parametrize("k", WIDTHS)
def test_widths_of_models_are_mixed_as_a_whole(k: int) -> None:
    assert largest_hadamard_block(k) == k
    factors = hadamard_factors(k)
    assert factors is not None
    assert np.prod(factors) == k


@pytest.mark.parametrize("k", [5504, 11008, 22016])
def test_wide_transforms_are_orthogonal_and_undone(k: int) -> None:
    """Unit vectors become rows of a Hadamard matrix: as long as before, at right angles, entries of one magnitude."""
    transform = Hadamard(k, seed=1)
    assert transform.block == k
    units = np.zeros((7, k))
    units[np.arange(7), np.arange(7) * k // 7] = 1
    rows = transform.activation(units)
    np.testing.assert_allclose(np.abs(rows), 1 / np.sqrt(k), rtol=1e-12)
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=1e-12)
    np.testing.assert_allclose(transform.inverse_activation(rows), units, atol=1e-12)


@pytest.mark.parametrize(
    ("k", "factors"),
    [(208, (104, 2)), (416, (104, 4)), (2496, (12, 104, 2)), (400, (20, 20, 1)), (11008, (172, 64))],
)
def test_orders_that_files_have_keep_their_matrices(k: int, factors: tuple[int, ...]) -> None:
    """52 and 100 came later; whatever Paley's constructions over primes gave before (103 is prime) has to stay."""
    assert hadamard_factors(k) == factors


@pytest.mark.parametrize("k", [1, 7, 51, 188, 1000, 47 * 256])
def test_other_widths_are_cut_into_blocks(k: int) -> None:
    block = largest_hadamard_block(k)
    assert k % block == 0
    assert hadamard_factors(block) is not None
    assert not any(hadamard_factors(d) for d in range(block + 1, k + 1) if k % d == 0)


@st.composite
def transforms(draw: st.DrawFn, features: int | None = None, depth: int = 0) -> InputTransform:
    k = features or draw(st.sampled_from([1, 2, 7, 12, 16, 30, 40, 48, 64, 100, 576]))
    kind = draw(st.integers(0, 3 if depth < 2 else 2))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if kind == 0:
        blocks = [d for d in range(1, k + 1) if k % d == 0 and hadamard_factors(d)]
        return Hadamard(k, draw(st.none() | st.sampled_from(blocks)), draw(st.none() | st.integers(-5, 2**64)))
    if kind == 1:
        return Permutation(rng.permutation(k))
    if kind == 2:
        return ChannelScale(np.exp(rng.normal(0, 2, k)))
    return Chain([draw(transforms(k, depth + 1)) for _ in range(draw(st.integers(1, 3)))])


@given(transforms(), st.integers(0, 5), st.integers(1, 4))
def test_products_stay_what_they_were(transform: InputTransform, m: int, n: int) -> None:
    rng = np.random.default_rng(m)
    x, w = rng.normal(size=(m, transform.features)), rng.normal(size=(n, transform.features))
    before = x.copy(), w.copy()
    tx, tw = transform.activation(x), transform.weight(w)
    bound = 1e-13 * np.linalg.norm(tx, axis=1)[:, np.newaxis] * np.linalg.norm(tw, axis=1)
    assert (np.abs(tx @ tw.T - x @ w.T) <= bound).all()
    np.testing.assert_allclose(transform.inverse_activation(tx), x, rtol=1e-12, atol=1e-12 * np.abs(tx).max(initial=0))
    np.testing.assert_allclose(transform.inverse_weight(tw), w, rtol=1e-12, atol=1e-12 * np.abs(tw).max())
    assert np.array_equal(x, before[0])  # operands are left alone
    assert np.array_equal(w, before[1])


@given(transforms(), st.integers(0, 5), st.booleans())
def test_the_kernel_does_the_same_bit_by_bit(transform: InputTransform, m: int, reverse: bool) -> None:
    kernel = kernel_of(transform)
    parts = transform.transforms if isinstance(transform, Chain) else (transform,)
    kinds = [type(part) for part in parts]
    assert (kernel is not None) == (kinds in ([ChannelScale], [Hadamard], [ChannelScale, Hadamard]))
    if kernel is None:
        return
    x = np.random.default_rng(m).normal(size=(m, transform.features)).astype(np.float32)[:, :: -1 if reverse else 1]
    result = np.empty(x.shape, np.float32)
    kernels.hadamard_rows(kernel, x, result)
    assert result.tobytes() == transform.activation(x).tobytes()


FUSED = {
    "hadamard": Hadamard(96, seed=2),
    "channel scale": ChannelScale(np.linspace(0.1, 3, 96)),
    "both": Chain([ChannelScale(np.linspace(0.1, 3, 96)), Hadamard(96, block=48)]),
}
NOT_FUSED = {
    "permutation": Permutation(np.arange(96)[::-1]),
    "scale last": Chain([Hadamard(96), ChannelScale(np.linspace(0.1, 3, 96))]),
}


@pytest.mark.parametrize("name", [*FUSED, *NOT_FUSED])
@pytest.mark.parametrize(
    ("soc", "scheme"),
    [
        ("rk3588", "w8a8"),
        ("rk3588", "w8a8_g32"),
        ("rk3588", "w8a8_aasym"),
        ("rk3588", "w4a8"),  # activations are split in two
        ("rk3576", "w8a16"),
    ],
)
def test_matmul_gives_the_bits_of_rows_that_were_transformed_before(
    soc: str, scheme: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = (FUSED | NOT_FUSED)[name]
    rng = np.random.default_rng(3)
    grouped = scheme.endswith("g32")
    quantized = round_weight(
        transform.weight(rng.normal(size=(40, 96)).astype(np.float32)),
        bits=4 if scheme.startswith("w4") else 8,
        granularity="group" if grouped else "channel",
        group_size=32 if grouped else None,
    )
    applied: list[InputTransform] = []
    original = type(transform).activation

    def observed(self: InputTransform, x: NDArray[Any]) -> NDArray[Any]:
        applied.append(self)
        return original(self, x)  # type: ignore[arg-type]

    activations = scheme.removesuffix("_g32")
    moved = QuantizedWeight(quantized.codes, quantized.params, transform)
    with (
        npu.Device(f"sim:{soc}") as device,
        npu.pack(quantized, activations, device=device) as plain,
        npu.pack(moved, activations, device=device) as packed,
    ):
        assert packed.plan is not None
        assert len(plan_matmul(1500, packed.plan).m_spans) > 1  # ranges of rows, one after the other
        for m, dtype in ((1, np.float32), (1500, np.float32), (7, ml_dtypes.bfloat16), (7, np.float16)):
            wide = rng.normal(size=(m, 2 * 96)).astype(dtype)
            as_it_is = dtype is np.float16 and scheme == "w8a16"  # the NPU reads float16, so rows are rounded to it
            for x in (wide[:, :96], wide[:, ::-2]):
                before = transform.activation(x.astype(np.float32)).astype(dtype if as_it_is else np.float32)
                expected = npu.matmul(before, plain)
                with monkeypatch.context() as patch:
                    patch.setattr(type(transform), "activation", observed)
                    applied.clear()
                    assert npu.matmul(x, packed).tobytes() == expected.tobytes()
                assert (transform in applied) == (name in NOT_FUSED or as_it_is)
        if scheme != "w8a16":
            x = np.ones((1200, 96), np.float32)
            x[1100, 5] = np.nan
            with pytest.raises(NotFiniteError, match="row 1100 of a"):
                npu.matmul(x, packed)


@given(transforms())
def test_descriptions_make_the_same_again(transform: InputTransform) -> None:
    again = transform_from(json.loads(json.dumps(transform.describe())))
    x = np.random.default_rng(0).normal(size=(2, 3, transform.features)).astype(np.float32)
    assert np.array_equal(again.activation(x), transform.activation(x))
    assert again.describe() == transform.describe()
    assert isinstance(transform, InputTransform)


@given(transforms())
def test_float32_stays_float32(transform: InputTransform) -> None:
    x = np.random.default_rng(0).normal(size=(3, transform.features))
    for dtype in (np.float16, np.float32):
        result = transform.activation(x.astype(dtype))
        assert result.dtype == np.float32
        exact = transform.activation(x.astype(dtype).astype(np.float64))
        np.testing.assert_allclose(result, exact, rtol=0, atol=3e-6 * np.abs(exact).max())


@pytest.mark.parametrize(("k", "block"), [(48, None), (48, 12), (48, 16), (576, None), (60, 20), (688, None)])
def test_hadamard_against_the_dense_matrix(k: int, block: int | None) -> None:
    transform = Hadamard(k, block, seed=7)
    size = transform.block
    dense = np.kron(np.eye(k // size), hadamard_matrix(size))
    rotation = np.diag(transform.signs) @ dense.T / np.sqrt(size)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(k), atol=1e-12)
    x = np.random.default_rng(1).normal(size=(5, k))
    np.testing.assert_allclose(transform.activation(x), x @ rotation, atol=1e-12)
    np.testing.assert_allclose(transform.inverse_weight(x), x @ rotation.T, atol=1e-12)


@given(
    st.sampled_from(
        [(12, 1), (24, None), (576, None), (40, None), (20736, None), (1024, 64), (368, 92), (344, None), (11008, None)]
    ),
    st.integers(0, 9),
)
def test_the_kernel_takes_any_strides_and_works_in_place(case: tuple[int, int | None], seed: int) -> None:
    k, block = case
    transform = Hadamard(k, block, seed)
    rng = np.random.default_rng(seed)
    m = seed % 4
    backing = rng.normal(size=(2 * m + 1, 2 * k)).astype(np.float32)
    source = backing[1::2, ::-2] if seed % 2 else backing[1::2, k - 1 :: -1]
    wide = source.astype(np.float64)
    depth = sum(order // 4 + 2 for order in transform.factors[:-1]) + 32  # additions that an element goes through
    bound = depth * 2.0**-24 * np.abs(wide).sum(axis=1, keepdims=True) / np.sqrt(transform.block)
    expected = transform.activation(wide)
    destination = np.empty((m, k + 3), np.float32)[:, 3:]
    kernels.hadamard_rows(transform.kernel, source, destination)
    assert (np.abs(destination - expected) <= bound).all()
    contiguous = source.copy()
    kernels.hadamard_rows(transform.kernel, contiguous, contiguous)
    assert np.array_equal(contiguous, destination)


@pytest.mark.parametrize("order", [n for n in ORDERS if n % 4 == 0 and n & (n - 1) and hadamard_factors(n) == (n, 1)])
@pytest.mark.parametrize("inner", [1, 4, 8, 16])
def test_the_kernel_multiplies_by_every_dense_matrix(order: int, inner: int) -> None:
    k = order * inner
    kernel = kernels.hadamard((hadamard_matrix(order),), inner, np.ones(k, np.float32))
    x = np.random.default_rng(order).normal(size=(2, k)).astype(np.float32)
    result = np.empty_like(x)
    kernels.hadamard_rows(kernel, x, result)
    matrix = np.kron(hadamard_matrix(order), hadamard_matrix(inner)).astype(np.float64)
    depth = order // 4 + 2 + inner.bit_length()  # additions that an element goes through
    bound = depth * 2.0**-24 * np.abs(x.astype(np.float64)).sum(axis=1, keepdims=True)
    assert (np.abs(result - x.astype(np.float64) @ matrix.T) <= bound).all()


def test_the_kernel_refuses_what_would_touch_wrong_memory() -> None:
    kernel = Hadamard(8).kernel
    x = np.zeros((4, 16), np.float32)
    read_only = np.zeros((4, 8), np.float32)
    read_only.flags.writeable = False
    for source, destination, message in [
        (x, x, "8 columns"),
        (x[:, :8], np.zeros((3, 8), np.float32), "8 columns"),
        (x[:, :8].astype(np.float64), np.zeros((4, 8), np.float32), "float32"),
        (x[:, :8], np.zeros((4, 8)), "float32"),
        (x[:, :8], read_only, "writeable"),
        (x[:, :8], x[:, 4:12], "overlaps"),
        (np.zeros((4, 8), np.float32), x[:, ::2], "contiguous"),
        (np.zeros((4, 8), np.float32), np.broadcast_to(x[:1, :8], (4, 8)), "writeable"),
    ]:
        with pytest.raises(ValueError, match=message):
            kernels.hadamard_rows(kernel, source, destination)
    with pytest.raises(ValueError, match="square matrices"):
        kernels.hadamard((np.ones((2, 3), np.float32),), 1, np.ones(2, np.float32))
    with pytest.raises(ValueError, match="multiples of 4"):
        kernels.hadamard((np.ones((6, 6), np.float32),), 1, np.ones(6, np.float32))
    with pytest.raises(ValueError, match=r"not of \[2, 3\]"):
        kernels.hadamard((), 1, np.ones(2, np.float32), np.ones(3, np.float32))
    with pytest.raises(ValueError, match=r"not of \[\]"):
        kernels.hadamard((), 1, None)
    with pytest.raises(ValueError, match="npumm_hadamard_rows"):
        kernels.hadamard_rows(kernels.hadamard((), 3, np.ones(3, np.float32)), x[:, :3], np.zeros((4, 3), np.float32))


def test_transforms_can_be_copied() -> None:
    transform = Hadamard(24, seed=5)
    x = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    expected = transform.activation(x)
    again = pickle.loads(pickle.dumps(transform))
    assert again == transform
    assert np.array_equal(copy.deepcopy(transform).activation(x), expected)
    assert np.array_equal(again.activation(x), expected)


def test_signs_never_change() -> None:
    # splitmix64 from its published reference: with seed 0 it begins with these two numbers
    assert [0xE220A8397B1DCDAF >> 63, 0x6E789E6AA1B965F4 >> 63] == [1, 0]
    assert Hadamard(4, seed=0).signs.tolist()[:2] == [-1, 1]
    assert Hadamard(4096, seed=1).signs.sum() == pytest.approx(0, abs=4 * 64)
    assert not np.array_equal(Hadamard(64, seed=1).signs, Hadamard(64, seed=2).signs)


def test_a_lone_outlier_is_spread_evenly() -> None:
    x = np.zeros((1, 1536))
    x[0, 77] = 100.0
    np.testing.assert_allclose(np.abs(Hadamard(1536).activation(x)), 100 / np.sqrt(1536))


def test_a_quantized_weight_restores_what_it_was_made_of() -> None:
    transform = Chain([ChannelScale(np.linspace(0.5, 2, 12)), Hadamard(12, seed=3)])
    codes = np.random.default_rng(0).integers(-127, 128, (5, 12)).astype(np.int8)
    weight = QuantizedWeight(codes, QuantParams(np.full(5, 0.25), granularity="channel"), transform)
    x = np.random.default_rng(1).normal(size=(4, 12))
    np.testing.assert_allclose(
        x @ weight.restored(np.float64).T, transform.activation(x) @ weight.dequantize(np.float64).T, atol=1e-11
    )
    with pytest.raises(ValueError, match="K=12, the codes have K=6"):
        QuantizedWeight(codes[:, :6], weight.params, transform)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hadamard(0), "from 1 to"),
        (lambda: Hadamard(12, 5), "does not divide"),
        (lambda: Hadamard(12, -4), "does not divide"),
        (lambda: Hadamard(12, 6), "no Hadamard matrix of order 6"),
        (lambda: Permutation([0, 0]), "once"),
        (lambda: Permutation([0.0, 1.0]), "once"),
        (lambda: ChannelScale([1.0, 0.0]), "positive"),
        (lambda: ChannelScale(1.0), "shape"),
        (lambda: Chain([]), "one transform"),
        (lambda: Chain([Hadamard(4), Hadamard(8)]), "different K"),
        (lambda: Hadamard(4).activation(np.zeros((2, 5))), r"4 features; the shape is \(2, 5\)"),
        (lambda: Permutation([1, 0]).weight(np.zeros(3)), "2 features"),
        (lambda: transform_from({"kind": "fourier"}), "'fourier'; there are 'hadamard'"),
        (lambda: transform_from({"kind": "hadamard"}), "incomplete"),
        (lambda: transform_from({"kind": "hadamard", "features": "x", "block": None, "seed": 0}), "wrong types"),
        (lambda: transform_from([]), "None"),
    ],
)
def test_refusals(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
