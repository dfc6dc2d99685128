"""Epilogues through `matmul` and its relatives: what they compute, what shapes they take, where results go."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import npumatmul as npu
from npumatmul import Epilogue
from npumatmul.errors import NotFiniteError

seeds = st.integers(0, 2**32 - 1)
FLOATS = [np.float32, np.float16, ml_dtypes.bfloat16]
FUNCTIONS: dict[str | None, Any] = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * (1 + np.vectorize(math.erf, otypes=[float])(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu2": lambda x: np.maximum(x, 0) ** 2,
}


def expected(product: np.ndarray, epilogue: Epilogue, bias: Any = None) -> np.ndarray:
    """The steps in float64, rounded at the end."""
    bias = epilogue.bias if bias is None else bias
    x = product.astype(np.float64) * epilogue.scale
    x = x + (0 if bias is None else np.asarray(bias, np.float64))
    x = FUNCTIONS[epilogue.activation](x)
    x = x * (1 if epilogue.multiply is None else np.asarray(epilogue.multiply, np.float64))
    x = x + (0 if epilogue.residual is None else np.asarray(epilogue.residual, np.float64))
    return np.asarray(x if epilogue.clip is None else np.clip(x, *epilogue.clip))


@settings(max_examples=40)
@given(
    shapes=hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=5, min_side=0),
    types=st.tuples(*[st.sampled_from([np.int8, np.uint8, ml_dtypes.int4, *FLOATS])] * 2),
    dtype=st.sampled_from(FLOATS),
    activation=st.sampled_from([None, "relu"]),
    steps=st.tuples(*[st.booleans()] * 4),
    high=st.booleans(),
    data=st.data(),
    seed=seeds,
)
def test_every_step_shape_and_type(
    device: npu.Device,
    shapes: Any,
    types: Any,
    dtype: Any,
    activation: Any,
    steps: Any,
    high: bool,
    data: Any,
    seed: int,
) -> None:
    """Small integers, which every type holds, so that nothing is rounded before the end."""
    if (types[0] in FLOATS) != (types[1] in FLOATS):
        types = (types[0], types[0])
    rng = np.random.default_rng(seed)
    low = 0 if np.uint8 in types else -3

    def small(shape: tuple[int, ...], dtype: Any, low: int = -3) -> np.ndarray:
        """In one of several memory orders."""
        array = rng.integers(low, 4, shape).astype(dtype)
        way = data.draw(st.sampled_from(["plain", "fortran", "reversed", "spread", "swapped", "read-only"]))
        if way == "fortran":
            return array.copy(order="F")
        if way == "reversed" and array.ndim:
            backwards = (slice(None, None, -1),) * array.ndim
            return array[backwards].copy()[backwards]
        if way == "spread" and array.ndim > 1:
            return np.repeat(np.repeat(array, 2, axis=0), 3, axis=-1)[::2, ..., ::3]
        if way == "swapped" and np.dtype(dtype).isbuiltin == 1:
            return array.astype(array.dtype.newbyteorder(">"))
        array.flags.writeable = way != "read-only"
        return array

    a, b = (small(shape, each, low) for shape, each in zip(shapes.input_shapes, types, strict=True))
    product = np.matmul(a.astype(np.int64), b.astype(np.int64))
    n = (b.shape[-1],) if b.ndim > 1 else ()

    def operand() -> np.ndarray:
        """Of the result's shape, or one that is broadcast to it."""
        shape = tuple(1 if data.draw(st.integers(0, 3)) == 0 else size for size in np.shape(product))
        return small(shape[data.draw(st.integers(0, len(shape))) :], data.draw(st.sampled_from(FLOATS)))

    epilogue = Epilogue(
        scale=0.5,
        bias=small(n, np.float32) if steps[0] else None,
        activation=activation,
        multiply=operand() if steps[1] else None,
        residual=operand() if steps[2] else None,
        clip=(-5, 17.5) if steps[3] else None,
        dtype=dtype,
    )
    result = npu.matmul(a, b, epilogue=epilogue, precision="high" if high else None, device=device)
    assert result.dtype == dtype
    np.testing.assert_array_equal(result, expected(product, epilogue).astype(dtype))
    assert isinstance(result, np.ndarray) == (np.ndim(product) > 0)


@pytest.mark.parametrize("activation", list(FUNCTIONS))
@pytest.mark.parametrize("scheme", [None, "w8a8"])
def test_activations(device: npu.Device, activation: str | None, scheme: str | None) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((7, 300)).astype(np.float32), rng.standard_normal((300, 65)).astype(np.float32) / 9
    up, residual = rng.standard_normal((2, 7, 65)).astype(np.float32)
    bias = rng.standard_normal(65).astype(np.float32)
    plain = npu.matmul(x, w, scheme=scheme, device=device)
    epilogue = Epilogue(bias=bias, activation=activation, multiply=up, residual=residual)
    result = npu.matmul(x, w, scheme=scheme, epilogue=epilogue, device=device)
    np.testing.assert_allclose(result, expected(plain, epilogue), rtol=2e-6, atol=2e-6)
    layer = npu.linear(x, w, bias, activation, scheme=scheme, device=device)
    np.testing.assert_allclose(layer, expected(plain, Epilogue(bias=bias, activation=activation)), rtol=2e-6, atol=2e-6)


def test_large_products_are_finished_in_one_pass(device: npu.Device) -> None:
    """Across tiles of M, K and N; what is added last does not disturb sums over K."""
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-2, 3, shape).astype(np.float32) for shape in ((600, 4500), (4500, 130)))
    residual = rng.integers(-9, 9, (600, 130)).astype(np.float32)
    want = a @ b + residual  # whole numbers below 2**24
    with npu.pack(b, device=device) as packed:
        out = residual.copy()
        before = device.stats().run_calls
        assert npu.matmul(a, packed, out, epilogue=Epilogue(residual=out)) is out  # in place
        runs = device.stats().run_calls - before
        np.testing.assert_array_equal(out, want)
        npu.matmul(a, packed)
        assert device.stats().run_calls - before == 2 * runs


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["plain", "columns of a wider one", "every other row", "reversed", "transposed"])
def test_out_of_every_type_and_layout(device: npu.Device, dtype: Any, layout: str) -> None:
    a, b = np.arange(12, dtype=np.float32).reshape(4, 3), np.arange(15, dtype=np.float32).reshape(3, 5)
    memory = np.full((40, 40), 7, dtype)
    out = {
        "plain": np.empty((4, 5), dtype), "columns of a wider one": memory[:4, 3:8],
        "every other row": memory[:8:2, :5], "reversed": memory[3::-1, :5], "transposed": memory[:5, :4].T,
    }[layout]  # fmt: skip
    want = (a @ b + 1).astype(dtype)
    assert npu.matmul(a, b, out, bias=np.ones(5, np.float32), device=device) is out
    np.testing.assert_array_equal(out, want)
    assert (memory == 7).sum() >= memory.size - 20
    stacked = np.zeros((2, 4, 5), dtype)
    residual = np.ones((4, 5), dtype)
    npu.matmul(a, np.stack([b, 2 * b]), stacked, epilogue=Epilogue(residual=residual), device=device)
    np.testing.assert_array_equal(stacked, np.stack([want, (a @ b * 2 + 1).astype(dtype)]))


def test_operands_that_overlap_out(device: npu.Device) -> None:
    """A residual that is `out` shifted by a row is read as it was before."""
    memory = np.arange(44, dtype=np.float32).reshape(11, 4)
    before = memory.copy()
    a, b = np.ones((10, 3), np.float32), np.ones((3, 4), np.float32)
    npu.matmul(a, b, memory[1:], epilogue=Epilogue(residual=memory[:-1], bias=memory[0]), device=device)
    np.testing.assert_array_equal(memory[1:], 3 + before[0] + before[:-1])
    np.testing.assert_array_equal(memory[0], before[0])


def test_an_epilogue_that_is_used_again_for_a_result_over_its_bias(device: npu.Device) -> None:
    """The bias is a row of some results and not of others: all get it as it was before."""
    memory, apart = np.arange(12, dtype=np.float32).reshape(3, 4), np.zeros((2, 4), np.float32)
    epilogue = Epilogue(bias=memory[0])
    a, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32)
    with npu.pack(b, device=device) as packed:
        for out in (apart, memory[1:], memory[:2], apart, memory[:2]):
            before = memory[0].copy()
            npu.matmul(a, packed, out, epilogue=epilogue)
            np.testing.assert_array_equal(out, np.stack([3 + before, 3 + before]))


def test_integers_keep_int32_until_there_is_an_epilogue(device: npu.Device) -> None:
    a, b = np.full((2, 300), 200, np.uint8), np.full((300, 3), -100, np.int8)
    bias = np.arange(3)
    result = npu.matmul(a, b, bias=bias, device=device)
    assert result.dtype == np.int32
    np.testing.assert_array_equal(result, -6_000_000 + np.stack([bias, bias]))
    scaled = npu.matmul(a, b, epilogue=Epilogue(scale=2.0**-20, dtype=np.float16), device=device)
    np.testing.assert_array_equal(scaled, np.full((2, 3), -6_000_000 * 2.0**-20, np.float16))
    with pytest.raises(TypeError, match=r"epilogue=Epilogue\(bias="):
        npu.matmul(a, b, bias=np.ones(3, np.float32), device=device)
    with pytest.raises(TypeError, match="int32, or float with an epilogue"):
        npu.matmul(a, b, dtype=np.float32, device=device)
    with npu.Matmul(a, b, epilogue=Epilogue(scale=0.5), device=device) as product:
        assert product.dtype == np.float32
        product.reset_operands(epilogue=Epilogue(scale=0.25))
        np.testing.assert_array_equal(product.execute(), np.full((2, 3), -1_500_000))
        with pytest.raises(TypeError, match="the plan is for float32"):
            product.reset_operands(bias=bias)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 40), st.one_of(st.integers(1, 300), st.integers(8000, 20000)), st.integers(1, 70)),
    types=st.sampled_from([(np.uint8, np.int8), (np.int8, np.uint8), (np.uint8, np.uint8)]),
    seed=seeds,
    in_place=st.booleans(),
)
def test_unsigned_operands_are_exact_before_the_epilogue(
    device: npu.Device, shape: tuple[int, int, int], types: Any, seed: int, in_place: bool
) -> None:
    """Slices of K add up to int32 before anything is rounded, also where `out` is read by the epilogue."""
    rng = np.random.default_rng(seed)
    m, k, n = shape
    a, b = (
        rng.integers(np.iinfo(t).min, int(np.iinfo(t).max) + 1, s).astype(t)
        for t, s in zip(types, ((m, k), (k, n)), strict=True)
    )
    exact = a.astype(np.int64) @ b.astype(np.int64)
    bias, residual = rng.integers(-99, 99, n).astype(np.float32), rng.integers(-99, 99, (m, n)).astype(np.float32)
    steps = Epilogue(scale=0.5, bias=bias, activation="relu", residual=residual)
    want = np.maximum((exact / 2).astype(np.float32) + bias, 0) + residual
    with npu.pack(b, device=device) as packed:
        assert packed.plan is not None
        np.testing.assert_array_equal(npu.matmul(a, packed), exact.astype(np.int32))
        result = npu.matmul(a, packed, residual if in_place else None, epilogue=steps)
    np.testing.assert_array_equal(result, want)


MISTAKES = [
    ({"bias": np.zeros(4, np.float32)}, ValueError, r"bias has shape \(4,\)"),
    ({"bias": np.zeros((1, 3), np.float32)}, ValueError, r"one element per column, \(3,\), is needed"),
    ({"bias": np.zeros(3)}, TypeError, "bias has to be float32, float16 or bfloat16, not float64"),
    ({"epilogue": Epilogue(multiply=np.zeros((2, 2), np.float32))}, ValueError, r"multiply has shape \(2, 2\)"),
    ({"epilogue": Epilogue(residual=np.zeros((2, 3)))}, TypeError, "residual has to be float32"),
    ({"epilogue": "relu"}, TypeError, "epilogue has to be an npumatmul.Epilogue, not str"),
    ({"epilogue": Epilogue(bias=[0, 0, 0]), "bias": [0, 0, 0]}, ValueError, "has a bias already"),
    ({"epilogue": Epilogue(dtype=np.float16), "dtype": ml_dtypes.bfloat16}, ValueError, "the epilogue's is float16"),
    ({"epilogue": Epilogue(), "dtype": np.float64}, TypeError, "dtype is float64"),
]


@pytest.mark.parametrize(("given", "error", "message"), MISTAKES)
def test_mistakes_are_named_before_anything_happens(device: npu.Device, given: Any, error: type, message: str) -> None:
    out = np.full((2, 3), 7, np.float32)
    runs = device.stats().run_calls
    with pytest.raises(error, match=message):
        npu.matmul(np.ones((2, 5), np.float32), np.ones((5, 3), np.float32), out, device=device, **given)
    assert (out == 7).all()
    assert device.stats().run_calls == runs


def test_a_row_that_cannot_be_quantized_leaves_out_alone(device: npu.Device) -> None:
    a, out = np.ones((300, 8), np.float32), np.full((300, 3), 7, np.float16)
    a[270, 0] = np.nan
    with pytest.raises(NotFiniteError, match="row 270"):
        npu.matmul(a, np.ones((8, 3), np.float32), out, scheme="w8a8", bias=np.ones(3, np.float32), device=device)
    assert (out == 7).all()


def test_vectors_and_nothing_to_sum(device: npu.Device) -> None:
    vector = np.arange(4, dtype=np.float32)
    assert npu.matmul(vector, vector, bias=np.float32(1), device=device) == 15
    residual = np.ones(3, np.float32)
    matrix = np.ones((3, 4), np.float32)
    result = npu.matmul(matrix, vector, epilogue=Epilogue(residual=residual, activation="relu"), device=device)
    np.testing.assert_array_equal(result, [7, 7, 7])
    nothing = npu.matmul(np.ones((2, 0), np.float32), np.ones((0, 3), np.float32), bias=residual, device=device)
    np.testing.assert_array_equal(nothing, np.ones((2, 3)))
    with npu.pack(np.ones((0, 3), np.float32), device=device) as packed:
        np.testing.assert_array_equal(npu.matmul(np.ones((2, 0), np.float32), packed, bias=residual), np.ones((2, 3)))


# ---- epilogues one after the other ---------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    order=st.lists(st.integers(0, 7), min_size=4, max_size=12),
    changed=st.lists(st.booleans(), min_size=12, max_size=12),
    scheme=st.sampled_from(["w16a16", "w8a8"]),
    rows=st.sampled_from([1, 5]),
)
def test_each_product_gets_the_epilogue_that_it_was_given(
    device: npu.Device, order: list[int], changed: list[bool], scheme: str, rows: int
) -> None:
    """The same ones again, others, none, and arrays that changed meanwhile: as of a weight that met no other one."""
    rng = np.random.default_rng(7)
    x, w = rng.standard_normal((rows, 40)).astype(np.float32), rng.standard_normal((40, 24)).astype(np.float32)
    bias, other = rng.standard_normal(24).astype(np.float32), rng.standard_normal((rows, 24)).astype(np.float32)
    halves = bias.astype(np.float16)
    silu, relu, own = Epilogue(activation="silu"), Epilogue(activation="relu"), Epilogue(bias=bias, scale=2)
    ways: list[dict[str, Any]] = [
        {}, {"bias": bias}, {"epilogue": silu}, {"epilogue": silu, "bias": bias}, {"epilogue": relu, "bias": halves},
        {"epilogue": own}, {"epilogue": Epilogue(multiply=other, bias=bias)}, {"bias": bias[::-1]},
    ]  # fmt: skip
    with npu.pack(w, scheme, device=device) as packed:
        for way, changes in zip(order, changed, strict=False):
            if changes:
                for array in (bias, other, halves):
                    array += array.dtype.type(0.5)
            with npu.pack(w, scheme, device=device) as fresh:
                wanted = npu.matmul(x, fresh, **ways[way])
            np.testing.assert_array_equal(npu.matmul(x, packed, **ways[way]), wanted)
