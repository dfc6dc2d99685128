"""Slices, zero points, split rows, parts, cores and epilogues through `Placement`, against numpy and PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import sim
from npumatmul.chips.types import MatmulType
from npumatmul.host.activation import Activation
from npumatmul.host.epilogue import Epilogue
from npumatmul.host.kernels import Conversion, RowScaling
from npumatmul.planning.product import MatmulPlan, Span, WeightPlan, plan_matmul, plan_weight
from npumatmul.running import program as programs
from npumatmul.running.program import Program
from npumatmul.running.stored import KSlice, StoredWeight
from npumatmul.running.storing import TileRow, store

F32, I8 = np.dtype(np.float32), np.dtype(np.int8)
BF16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
INT8, HALF, INT4 = (
    MatmulType.INT8_INT8_INT32,
    MatmulType.FLOAT16_FLOAT16_FLOAT32,
    MatmulType.INT4_INT4_INT16,
)
AS_IT_IS = Activation(I8, Conversion.COPY_8)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25)


@pytest.fixture(scope="module")
def chip() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened


def cut(plan: WeightPlan, length: int) -> WeightPlan:
    """The plan with K in spans of `length`, a multiple of 32."""
    starts = range(0, plan.k, length)
    spans = (Span(start, min(length, plan.k - start), length) for start in starts)
    return replace(plan, k_spans=tuple(spans))


def rows_of(b: NDArray[Any], plan: WeightPlan, conversion: Conversion, **scales: NDArray[Any]) -> list[TileRow]:
    """Tile rows of a weight given as (K, N)."""
    return [TileRow(span, b.T[:, span.start : span.start + span.length], conversion, **scales) for span in plan.k_spans]


def execute(
    stored: StoredWeight, a: NDArray[Any], activation: Activation, out: NDArray[Any], epilogue: Epilogue | None = None
) -> None:
    Program(stored, len(a), activation, out.dtype).multiply(a, out, epilogue)


def run(
    stored: StoredWeight,
    a: NDArray[Any],
    activation: Activation,
    dtype: Any = np.float32,
    epilogue: Epilogue | None = None,
) -> NDArray[Any]:
    out = np.empty((a.shape[0], stored.plan.n), dtype)
    execute(stored, a, activation, out, epilogue)
    return out


def integers(rng: np.random.Generator, *shape: int, most: int = 128) -> NDArray[np.int8]:
    return rng.integers(-most, most, shape, dtype=np.int8)


@few
@given(seed=seeds, dtype=st.sampled_from([np.float32, np.float16, BF16]))
def test_groups_along_k_have_scales_of_their_own(chip: npu.Device, seed: int, dtype: Any) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = (int(x) for x in rng.integers(1, (20, 900, 90)))
    a, b = integers(rng, m, k), integers(rng, k, n)
    plan = cut(plan_weight(k, n, INT8, chip.chip), 32)
    scales = rng.uniform(0.5, 2, (len(plan.k_spans), n)).astype(np.float32) / 2**12
    slices = [KSlice(span, 0, i, scales[i]) for i, span in enumerate(plan.k_spans)]
    stored = store(chip, plan, rows_of(b, plan, Conversion.COPY_8), slices)
    assert stored.common_scale == (len(slices) == 1)
    terms = [
        (a[:, s.start : s.start + s.length].astype(float) @ b[s.start : s.start + s.length].astype(float)) * scale
        for s, scale in zip(plan.k_spans, scales.astype(float), strict=True)
    ]
    # Each term is rounded to float32 and each sum of them; then comes the rounding to the result's type.
    unit = {2: 2.0**-8 if dtype is BF16 else 2.0**-11, 4: 0.0}[np.dtype(dtype).itemsize]
    bound = (2 * len(terms) * 2.0**-24 + 2.0**-24 + unit) * 1.01 * np.sum(np.abs(terms), axis=0) + 2.0**-25
    result = run(stored, a, AS_IT_IS, dtype).astype(float)
    assert (np.abs(result - np.sum(terms, axis=0)) <= bound).all()
    stored.close()


@few
@given(seed=seeds, minmax=st.booleans())
def test_zero_points_of_both_operands_are_exact(chip: npu.Device, seed: int, minmax: bool) -> None:
    """Asymmetric activations with an asymmetric weight equal the quantized values' own product."""
    rng = np.random.default_rng(seed)
    m, k, n = (int(x) for x in rng.integers(1, (12, 400, 60)))
    x = (rng.standard_normal((m, k)) + rng.uniform(-2, 2, (m, 1))).astype(np.float32)
    b, zeros = integers(rng, k, n), rng.integers(-128, 128, n).astype(np.int32)
    plan = cut(plan_weight(k, n, INT8, chip.chip), 128)
    scale = rng.uniform(0.5, 2, n).astype(np.float32)
    slices = []
    for index, span in enumerate(plan.k_spans):
        part = b[span.start : span.start + span.length].astype(np.int64)
        slices.append(KSlice(span, 0, index, scale, zeros, (part - zeros).sum(0).astype(np.int32)))
    stored = store(chip, plan, rows_of(b, plan, Conversion.COPY_8), slices)
    if minmax:  # facts 5.5: the range widened to hold 0, onto -128..127
        low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
        step = (high - low) / np.float32(255)
        step[step == 0] = 1
        activation = Activation(F32, Conversion.F32_TO_I8, RowScaling.MINMAX)
    else:
        step = np.full(m, 0.05, np.float32)
        activation = Activation(F32, Conversion.F32_TO_I8, RowScaling.STATIC, static_scale=0.05, static_zero=-9)
    result = run(stored, x, activation)
    # The scales are the kernel's own to one rounding, so what is quantized may differ by a step where a value stands
    # on the edge of two; dequantized, each row is within one and a half steps of x.
    weight = (b.astype(float) - zeros) * scale
    if minmax:
        error = np.abs(result - x.astype(float) @ weight)
        assert (error <= 1.51 * step[:, None] * np.abs(weight).sum(0) + 1e-4).all()
    else:
        q = np.clip(np.rint(x / np.float32(0.05)) - 9, -128, 127) + 9
        np.testing.assert_allclose(result, (q @ (b.astype(float) - zeros)) * np.float64(np.float32(0.05)) * scale,
                                   rtol=2.0**-23)  # fmt: skip
    stored.close()


@few
@given(seed=seeds)
def test_eight_bit_rows_split_into_int4_halves_equal_int32_arithmetic(chip: npu.Device, seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = (int(x) for x in rng.integers(1, (40, 300, 80)))
    x = rng.integers(-119, 120, (m, k)).astype(np.float32)
    x[:, 0] = 119  # so that the scale of each row is exactly 1
    b = rng.integers(-8, 8, (k, n)).astype(np.int8)
    plan = replace(cut(plan_weight(k, n, INT4, chip.chip), 128), row_images=2)
    slices = [KSlice(span, 0, index) for index, span in enumerate(plan.k_spans)]
    stored = store(chip, plan, rows_of(b, plan, Conversion.INT4), slices)
    activation = Activation(F32, Conversion.F32_TO_I4_SPLIT, RowScaling.ABSMAX, levels=119)
    # |h b| summed over 128 is at most 8 * 8 * 128 = 8192: no int16 overflows
    np.testing.assert_array_equal(run(stored, x, activation), x.astype(np.int64) @ b.astype(np.int64))
    stored.close()


@few
@given(seed=seeds)
def test_float32_in_two_float16_parts_is_close_to_float32(chip: npu.Device, seed: int) -> None:
    """High times high, high times low, low times high: slices that share tiles and images."""
    rng = np.random.default_rng(seed)
    m, k, n = (int(x) for x in rng.integers(1, (12, 700, 40)))
    a, b = (rng.uniform(0.5, 1, shape).astype(np.float32) for shape in ((m, k), (k, n)))
    plan = cut(plan_weight(k, n, HALF, chip.chip), 256)
    rows = rows_of(b, plan, Conversion.F32_TO_F16) + rows_of(b, plan, Conversion.F32_TO_F16_LOW)
    count = len(plan.k_spans)
    slices = [
        KSlice(span, part, index + (count if low else 0))
        for index, span in enumerate(plan.k_spans)
        for part, low in ((1, False), (1, True), (2, False))
    ]
    stored = store(chip, plan, rows, slices)
    before = sim.counters(chip)
    result = run(stored, a, Activation(F32, Conversion.F32_TO_F16, RowScaling.POWER_OF_TWO))
    after = sim.counters(chip)
    runs = after.run_calls - before.run_calls
    assert runs == 3 * count * len(plan.n_spans)
    assert after.mem_sync_calls - before.mem_sync_calls <= runs + 2 * count + 4  # images are packed once: two per span
    # What is dropped is low times low, 2**-22 of a product; sums of K float32 carry (K + 1) 2**-24.
    bound = (2.0**-22 + 2.0**-23 + (k + 3) * 2.0**-24) * (a.astype(float) @ b)
    assert (np.abs(result - a.astype(float) @ b) <= bound).all()
    stored.close()


def test_a_low_part_of_integers_is_refused(chip: npu.Device) -> None:
    b = np.ones((32, 32), np.int8)
    plan = plan_weight(32, 32, INT8, chip.chip)
    slices = [KSlice(span, 2, index) for index, span in enumerate(plan.k_spans)]
    stored = store(chip, plan, rows_of(b, plan, Conversion.COPY_8), slices)
    with pytest.raises(ValueError, match="part"):
        run(stored, np.ones((1, 32), np.int8), AS_IT_IS, np.int32)
    stored.close()


# ---- cores ---------------------------------------------------------------------------------------------------------


@few
@given(seed=seeds, cores=st.integers(1, 3))
def test_every_core_takes_its_tiles(seed: int, cores: int) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = int(rng.integers(1, 30)), int(rng.integers(1, 300)), int(rng.integers(200, 600))
    a, b = integers(rng, m, k), integers(rng, k, n)
    with npu.Device("sim:rk3588") as device, pytest.MonkeyPatch.context() as patch:
        plan = cut(plan_weight(k, n, INT8, device.chip), 64)
        spans = tuple(Span(start, min(32, n - start), 32) for start in range(0, n, 32))
        plan = replace(plan, n_spans=spans, cores=3)
        owners = tuple(int(core) for core in rng.integers(0, cores, len(spans)))

        def by_hand(m: int, weight: WeightPlan, images: int, timings: object) -> MatmulPlan:
            return replace(plan_matmul(m, weight, share="tiles"), cores=cores, tile_cores=owners)

        patch.setattr(programs, "plan_matmul", by_hand)
        slices = [KSlice(span, 0, index) for index, span in enumerate(plan.k_spans)]
        stored = store(device, plan, rows_of(b, plan, Conversion.COPY_8), slices)
        sim.reset_counters(device)
        result = run(stored, a, AS_IT_IS, np.int32)
        np.testing.assert_array_equal(result, a.astype(np.int32) @ b.astype(np.int32))
        macs = sim.counter_details(device)["chips"]["rk3588"]["macs"]["RKNN_INT8_MM_INT8_TO_INT32"]
        share = (
            sum(s.padded for s in plan_matmul(m, plan, share="tiles").m_spans)
            * sum(s.padded for s in plan.k_spans)
            * 32
        )
        assert macs == [owners.count(core) * share for core in range(3)]
        assert device.stats().run_calls == len(plan.k_spans) * len(spans)


@few
@given(seed=seeds, cores=st.integers(2, 3), dtype=st.sampled_from([np.float32, np.float16, BF16]))
def test_every_core_takes_its_rows(seed: int, cores: int, dtype: Any) -> None:
    """Ranges of rows on cores: any shape, quantized rows, several slices of K and tiles of N, and an epilogue."""
    rng = np.random.default_rng(seed)
    m, k, n = int(rng.integers(4 * cores + 1, 150)), int(rng.integers(1, 400)), int(rng.integers(1, 200))
    a, b = rng.standard_normal((m, k)).astype(np.float32), integers(rng, k, n)
    residual = rng.standard_normal((m, n)).astype(dtype)
    bias = rng.standard_normal(n).astype(np.float32)
    with npu.Device("sim:rk3588") as device:
        plan = cut(plan_weight(k, n, INT8, device.chip), 64)
        buckets = tuple(sorted({1, 4, 8, *(4 * int(size) for size in rng.integers(3, 12, 2))}))
        tiles = replace(plan, buckets=buckets)
        by_rows = replace(tiles, row_cores=cores, measured_cores=((1, cores),), measured_shared=(1,))
        made = plan_matmul(m, by_rows)
        how = Activation(np.dtype(np.float32), Conversion.F32_TO_I8, RowScaling.ABSMAX, 127)
        results = []
        for each in (tiles, by_rows):
            slices = [KSlice(span, 0, index) for index, span in enumerate(each.k_spans)]
            stored = store(device, each, rows_of(b, each, Conversion.COPY_8), slices)
            sim.reset_counters(device)
            out = np.empty((m, n), dtype)
            epilogue = Epilogue(dtype=np.dtype(dtype), bias=bias, residual=residual, activation="relu")
            execute(stored, a, how, out, epilogue)
            results.append(out)
            stored.close()
        np.testing.assert_array_equal(results[1], results[0])
        macs = sim.counter_details(device)["chips"]["rk3588"]["macs"]["RKNN_INT8_MM_INT8_TO_INT32"]
        extent = sum(s.padded for s in plan.k_spans) * sum(s.padded for s in plan.n_spans)
        if made.range_cores:
            spans = list(zip(made.m_spans, made.range_cores, strict=True))
            assert macs == [extent * sum(s.padded for s, own in spans if own == core) for core in range(3)]
        scale = np.abs(a).max(1, keepdims=True) / 127
        exact = np.maximum(np.rint(a / scale) @ b.astype(np.float64) * scale + bias, 0)
        lost = 2.0 ** -(8 if dtype == BF16 else 11 if dtype == np.float16 else 20)
        assert np.allclose(
            results[0].astype(np.float64), exact + residual.astype(np.float64), rtol=4 * lost, atol=0.02 * scale.max()
        )


# ---- epilogues -----------------------------------------------------------------------------------------------------

TORCH = {
    None: lambda x: x,
    "relu": torch.relu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "silu": torch.nn.functional.silu,
    "relu2": lambda x: torch.square(torch.relu(x)),
}


@settings(max_examples=40)
@given(
    seed=seeds,
    activation=st.sampled_from(list(TORCH)),
    parts=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    dtype=st.sampled_from([np.float32, np.float16, BF16]),
    operands=st.sampled_from([np.float32, np.float16, BF16]),
    slices=st.booleans(),
)
def test_epilogues_equal_pytorch_in_float64(
    chip: npu.Device, seed: int, activation: str | None, parts: tuple[bool, ...], dtype: Any, operands: Any,
    slices: bool,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    m, k, n = (int(x) for x in rng.integers(1, (12, 100, 700)))
    a, b = integers(rng, m, k, most=6), integers(rng, k, n, most=6)
    plan = cut(plan_weight(k, n, INT8, chip.chip), 32 if slices else 128)
    column = rng.uniform(0.01, 0.1, n).astype(np.float32)
    passes = [KSlice(span, 0, index, column) for index, span in enumerate(plan.k_spans)]
    stored = store(chip, plan, rows_of(b, plan, Conversion.COPY_8), passes)
    bias = rng.standard_normal(n).astype(operands) if parts[0] else None
    multiply = rng.standard_normal((m, 2 * n)).astype(operands)[:, ::2] if parts[1] else None
    residual = rng.standard_normal((m, n + 3)).astype(operands)[:, :n] if parts[2] else None
    clip = (-2.0, 1.5) if parts[3] else None
    epilogue = Epilogue(0.5, bias, activation, multiply, residual, clip, dtype)
    result = run(stored, a, AS_IT_IS, dtype, epilogue)
    x = torch.from_numpy((a.astype(float) @ b.astype(float)) * column * 0.5)
    inside = magnitude = x if bias is None else x + torch.from_numpy(bias.astype(float))
    x = TORCH[activation](inside)
    if multiply is not None:
        x = x * torch.from_numpy(multiply.astype(float))
    largest = x.abs() + magnitude.abs() * (1 if multiply is None else torch.from_numpy(np.abs(multiply.astype(float))))
    if residual is not None:
        x = x + torch.from_numpy(residual.astype(float))
        largest = largest + x.abs()
    x = x if clip is None else x.clamp(*clip)
    # Each of the steps rounds what it works on to float32, silu 4 times as much; the functions' slope is below 1.2.
    unit = {2: 2.0**-8 if dtype is BF16 else 2.0**-11, 4: 0.0}[np.dtype(dtype).itemsize]
    bound = (10 * 2.0**-24 * largest + (unit * (1 + 1e-6)) * x.abs() + 2.0**-24).numpy()
    assert (np.abs(result.astype(float) - x.numpy()) <= bound).all()
    stored.close()


def test_a_residual_may_be_the_result_itself(chip: npu.Device) -> None:
    """Read before it is overwritten, also with several slices; an operand that only overlaps is copied."""
    rng = np.random.default_rng(5)
    a, b = integers(rng, 9, 100), integers(rng, 100, 300)
    plan = cut(plan_weight(100, 300, INT8, chip.chip), 32)
    slices = [KSlice(span, 0, index) for index, span in enumerate(plan.k_spans)]
    stored = store(chip, plan, rows_of(b, plan, Conversion.COPY_8), slices)
    product = a.astype(np.float32) @ b.astype(np.float32)
    memory = rng.integers(-99, 99, (10, 300)).astype(np.float32)
    original = memory.copy()
    out = memory[:9]
    execute(stored, a, AS_IT_IS, out, Epilogue(residual=out))
    np.testing.assert_array_equal(out, product + original[:9])
    memory[...] = original
    execute(stored, a, AS_IT_IS, out, Epilogue(residual=memory[1:]))
    np.testing.assert_array_equal(out, product + original[1:])
    stored.close()


def test_what_does_not_fit_is_refused(chip: npu.Device) -> None:
    b = np.ones((32, 40), np.int8)
    plan = plan_weight(32, 40, INT8, chip.chip)
    good = [KSlice(span, 0, index) for index, span in enumerate(plan.k_spans)]
    rows = rows_of(b, plan, Conversion.COPY_8)
    with pytest.raises(ValueError, match="rows of tiles"):
        store(chip, plan, rows, [KSlice(plan.k_spans[0], 0, 7)])
    with pytest.raises(ValueError, match=r"float32 of shape \(40,\)"):
        store(chip, plan, rows, [KSlice(plan.k_spans[0], 0, 0, np.ones(39, np.float32))])
    with pytest.raises(ValueError, match="does not hold it"):
        store(chip, plan, rows, [KSlice(plan.k_spans[0], group=Span(1, 31, 31))])
    stored = store(chip, plan, rows, good)
    a, out = np.ones((2, 32), np.int8), np.zeros((2, 40), np.float32)
    cases: list[tuple[Any, Any, Any, type[Exception], str]] = [
        (a[:, :31], out, None, ValueError, "does not give"),
        (a.astype(np.int16), out, None, TypeError, "reads int8"),
        (a, out.astype(float), None, TypeError, "cannot be float64"),
        (a, out.astype(np.int32), Epilogue(scale=2), TypeError, "int32 results have no epilogue"),
        (a, np.empty((40, 2), np.float32).T, None, ValueError, "adjacent"),
        (a, out, Epilogue(bias=np.ones(39, np.float32)), ValueError, "N = 40"),
        (a, out, Epilogue(bias=np.ones(40)), TypeError, "float64"),
        (a, out, Epilogue(residual=np.ones((2, 39), np.float32)), ValueError, "residual"),
    ]
    for left, result, epilogue, error, text in cases:
        with pytest.raises(error, match=text):
            execute(stored, left, AS_IT_IS, result, epilogue)
    for wrong, error in (({"activation": "tanh"}, ValueError), ({"clip": (2, 1)}, ValueError),
                         ({"scale": np.inf}, ValueError), ({"dtype": np.float64}, TypeError)):  # fmt: skip
        with pytest.raises(error):
            Epilogue(**wrong)  # type: ignore[arg-type]
    grouped = Activation(F32, Conversion.F32_TO_I8, RowScaling.ABSMAX_GROUPS)
    with pytest.raises(ValueError, match="slices have groups"):
        execute(stored, a.astype(np.float32), grouped, out)
    stored.close()
