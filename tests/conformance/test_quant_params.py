"""`rknn_matmul_set_quant_params` with zero points and every granularity that the API documents, and its counterpart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import MatmulType as T
from npumatmul import QuantType as Q
from npumatmul.errors import RknnError

M, K, N = 8, 96, 128
#: Types whose B takes zero points, by chip (facts 3.2, 5.1; asymmetric groups are an open question: D15, Q2).
TYPES = {
    "rk3588": (T.INT8_INT8_INT8, T.INT8_INT8_FLOAT32),
    "rk3576": (T.FLOAT16_INT8_FLOAT32, T.FLOAT16_INT4_FLOAT32, T.FLOAT16_INT4_FLOAT16),
}


@pytest.fixture(scope="module", params=TYPES)
def chip(request: pytest.FixtureRequest) -> Iterator[npu.Device]:
    with npu.Device(f"sim:{request.param}") as device:
        yield device


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


def powers(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return np.exp2(rng.integers(-4, 1, count)).astype(np.float32)


@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_zero_points(chip: npu.Device, seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    mm_type = data.draw(st.sampled_from(TYPES[chip.chip.soc]))
    granularities = [Q.PER_LAYER_ASYM]
    if mm_type is not T.INT8_INT8_FLOAT32:  # the runtime refuses it per channel: facts 5.3
        granularities.append(Q.PER_CHANNEL_ASYM)
    b_quant = data.draw(st.sampled_from(granularities))
    ac_quant = data.draw(st.sampled_from([Q.PER_LAYER_SYM, Q.PER_LAYER_ASYM]))
    count = N if b_quant is Q.PER_CHANNEL_ASYM else 1
    most = 2 ** (mm_type.b.bits - 1)
    b_scale, b_zero = powers(rng, count), rng.integers(-most, most, count)
    a_scale, c_scale = powers(rng, 1), np.float32(2.0 ** rng.integers(2, 9))
    integers = mm_type.a.bits == 8
    a_zero, c_zero = (int(z) if ac_quant is Q.PER_LAYER_ASYM and integers else 0 for z in rng.integers(-20, 20, 2))
    a = rng.integers(-9, 10, (M, K)).astype(mm_type.a.dtype)
    b = rng.integers(-min(most, 9), min(most, 9), (K, N)).astype(mm_type.b.dtype)
    with chip.context(mm_type, M, K, N, b_quant=b_quant, ac_quant=ac_quant) as context:
        context.set_quant_params("B", b_scale, b_zero)
        if integers:
            context.set_quant_params("A", a_scale, a_zero if a_zero else None)
        if mm_type is T.INT8_INT8_INT8:
            context.set_quant_params("C", c_scale, c_zero if c_zero else None)
        result = run(context, chip, a, b)
    sums = (a.astype(np.float64) - a_zero) @ (b.astype(np.float64) - b_zero) * b_scale
    if integers:
        sums = sums * a_scale
    if mm_type is T.INT8_INT8_INT8:  # the demo's formula, cut towards zero; saturation is a choice (Q20)
        sums = np.trunc(sums / c_scale + c_zero).clip(-128, 127)
    np.testing.assert_array_equal(result.astype(np.float64), sums.astype(mm_type.c.dtype).astype(np.float64))


def test_the_common_scale_of_channels(chip: npu.Device) -> None:
    """Documented for int8 to int32 with B per channel; multiplied by A's scale it is one for C (facts 5.4)."""
    scales = np.linspace(0.5, 2, N, dtype=np.float32)
    with chip.context(T.INT8_INT8_INT32, M, K, N, b_quant=Q.PER_CHANNEL_SYM) as context:
        assert context.get_quant_params() == 1.0
        context.set_quant_params("B", scales)
        assert context.get_quant_params() == 2.0  # the largest: a choice of the simulator (Q22)
    with chip.context(T.INT8_INT8_INT32, M, K, N) as context, pytest.raises(ValueError, match="per channel"):
        context.get_quant_params()


def test_groups_cannot_have_zero_points(chip: npu.Device) -> None:
    mm_type = T.INT8_INT8_FLOAT32 if chip.chip.soc == "rk3588" else T.FLOAT16_INT4_FLOAT32
    with pytest.raises((ValueError, RknnError)):
        chip.context(mm_type, M, K, N, b_quant=Q.PER_GROUP_ASYM, group_size=32)
