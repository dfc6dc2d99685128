"""Every type of every chip in every layout and quantization against a numpy model of the documented formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import MatmulLayout, MatmulType, QuantType

NORM, NATIVE, TP_NORM = MatmulLayout
T, Q = MatmulType, QuantType

# Types by chip, facts 3.2; alignments of K and N that satisfy every source, facts 3.5.
RK356X = (T.FLOAT16_FLOAT16_FLOAT32, T.INT8_INT8_INT32)
TYPES = {
    "rk3562": RK356X,
    "rk3566": RK356X,
    "rk3568": RK356X,
    "rk3576": (
        *RK356X, T.FLOAT16_FLOAT16_FLOAT16, T.FLOAT16_INT8_FLOAT32, T.FLOAT16_INT4_FLOAT32, T.FLOAT16_INT4_FLOAT16,
        T.INT8_INT4_INT32,
    ),
    "rk3588": (
        *RK356X, T.INT8_INT8_INT8, T.FLOAT16_FLOAT16_FLOAT16, T.INT8_INT8_FLOAT32, T.INT4_INT4_INT16,
    ),
}  # fmt: skip
K_MULTIPLE, N_MULTIPLE, GROUP = 32, 64, 32

# Granularities of B's scales by type: facts 5.3, 10.2.
GRANULARITIES = {
    T.INT8_INT8_INT32: (Q.PER_LAYER_SYM, Q.PER_CHANNEL_SYM),
    T.INT8_INT8_INT8: (Q.PER_LAYER_SYM, Q.PER_LAYER_ASYM, Q.PER_CHANNEL_SYM),
    T.INT8_INT8_FLOAT32: (Q.PER_LAYER_SYM, Q.PER_GROUP_SYM),
    T.FLOAT16_INT8_FLOAT32: (Q.PER_LAYER_SYM, Q.PER_LAYER_ASYM, Q.PER_GROUP_SYM),
    T.FLOAT16_INT4_FLOAT32: (Q.PER_LAYER_SYM, Q.PER_LAYER_ASYM, Q.PER_GROUP_SYM),
    T.FLOAT16_INT4_FLOAT16: (Q.PER_LAYER_SYM, Q.PER_GROUP_SYM),
}


@pytest.fixture(scope="module", params=TYPES)
def chip(request: pytest.FixtureRequest) -> Iterator[npu.Device]:
    with npu.Device(f"sim:{request.param}") as device:
        yield device


def values(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Small integers, so that every sum is exact in every type and order."""
    if dtype == np.int8:
        return rng.integers(-128, 128, shape).astype(dtype)
    low, high = (-8, 8) if dtype == ml_dtypes.int4 else (-4, 5)
    return rng.integers(low, high, shape).astype(dtype)


def powers(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.exp2(rng.integers(-4, 1, shape)).astype(np.float32)


def run(context: npu.MatmulContext, device: npu.Device, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    with (
        device.buffer(context.a.size) as x,
        device.buffer(context.b.size) as y,
        device.buffer(context.c.size) as z,
    ):
        x.put(context.a, a)
        y.put(context.b, b)
        context.bind(a=x, b=y, c=z)
        context.run()
        return z.get(context.c)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    m = draw(st.sampled_from([1, 4, 8, 12, 20]))
    return m, K_MULTIPLE * draw(st.integers(1, 6)), N_MULTIPLE * draw(st.integers(1, 3))


@given(shape=shapes(), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_products(chip: npu.Device, shape: tuple[int, int, int], seed: int, data: st.DataObject) -> None:
    mm_type = data.draw(st.sampled_from(TYPES[chip.chip.soc]))
    m, k, n = shape
    rng = np.random.default_rng(seed)
    b_quant = data.draw(st.sampled_from(GRANULARITIES.get(mm_type, (Q.PER_LAYER_SYM,))))
    transposed_b = chip.chip.soc not in ("rk3566", "rk3568")  # facts 4.1
    b_layout = data.draw(st.sampled_from([NORM, NATIVE, *([TP_NORM] if transposed_b else [])]))
    documented_c = mm_type.c.label in ("float32", "int32", "int16")  # native C of others is a guess: facts 4.2, Q6
    ac_layout = data.draw(st.sampled_from([NORM, *([NATIVE] if documented_c else [])]))
    a, b = values(rng, (m, k), mm_type.a.dtype), values(rng, (k, n), mm_type.b.dtype)

    grouped = b_quant is Q.PER_GROUP_SYM
    scale_shape = {Q.PER_CHANNEL_SYM: (n,), Q.PER_GROUP_SYM: (k // GROUP, n)}.get(b_quant, (1,))
    b_scale = powers(rng, scale_shape)
    b_zero = int(rng.integers(-3, 4)) if b_quant is Q.PER_LAYER_ASYM else 0
    a_scale, c_scale = powers(rng, (1,)), np.exp2(rng.integers(4, 9, 1)).astype(np.float32)
    options = {"b_layout": b_layout, "ac_layout": ac_layout, "b_quant": b_quant, "group_size": GROUP if grouped else 0}
    with chip.context(mm_type, m, k, n, **options) as context:
        if mm_type in GRANULARITIES:
            context.set_quant_params("B", b_scale, b_zero if b_quant is Q.PER_LAYER_ASYM else None)
        if mm_type in (T.INT8_INT8_INT8, T.INT8_INT8_FLOAT32):
            context.set_quant_params("A", a_scale)
        if mm_type is T.INT8_INT8_INT8:
            context.set_quant_params("C", c_scale)
        result = run(context, chip, a, b)

    x, y = a.astype(np.float64), b.astype(np.float64) - b_zero
    scale = np.repeat(b_scale, GROUP, axis=0) if grouped else b_scale
    if mm_type is T.INT8_INT8_INT8:  # the demo's formula, cut towards zero; saturation is a choice (Q20)
        expected = np.trunc(x @ y * a_scale * scale / c_scale).clip(-128, 127)
    elif mm_type is T.INT8_INT8_FLOAT32:
        expected = x @ (y * scale) * a_scale
    elif mm_type is T.INT8_INT8_INT32 and b_quant is Q.PER_CHANNEL_SYM:  # one scale for all columns: a choice (Q22)
        expected = np.rint(x @ y * (scale / scale.max()))
    elif mm_type in GRANULARITIES and mm_type is not T.INT8_INT8_INT32:
        expected = x @ (y * scale)
    else:
        expected = x @ y  # plain sums: scales have no meaning (Q21)
    if mm_type is T.INT4_INT4_INT16:
        expected = expected.clip(-32768, 32767)
    assert result.dtype == mm_type.c.dtype
    np.testing.assert_array_equal(result.astype(np.float64), expected.astype(mm_type.c.dtype).astype(np.float64))
