"""`Matmul`, `scheme` and `precision`."""

from __future__ import annotations

import logging
import threading
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import npumatmul as npu
from npumatmul.errors import ClosedError, NotFiniteError
from npumatmul.quant.schemes import Scheme

seeds = st.integers(0, 2**32 - 1)


def ones(*shape: int, dtype: Any = np.int8) -> np.ndarray:
    return np.ones(shape, dtype)


# ---- Matmul --------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    shapes=hnp.mutually_broadcastable_shapes(signature=np.matmul.signature, max_dims=2, max_side=4, min_side=0),
    seed=seeds,
)
def test_executes_again_and_again_as_numpy(device: npu.Device, shapes: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-128, 128, shape, np.int8) for shape in shapes.input_shapes)
    with npu.Matmul(a, b, device=device) as product:
        assert product.shape == shapes.result_shape
        for step in range(3):
            result = product.execute()
            np.testing.assert_array_equal(result, a.astype(np.int64) @ b.astype(np.int64))
            assert np.shape(result) == product.shape
            a += np.int8(step)  # its contents are read anew by every execution
        b = rng.integers(-128, 128, b.shape, np.int8)
        product.reset_operands(b=b)
        np.testing.assert_array_equal(product.execute(), a.astype(np.int64) @ b.astype(np.int64))


def test_the_right_operand_is_packed_once_until_reset(fresh_device: npu.Device) -> None:
    a, b = ones(2, 40), ones(40, 3)
    with npu.Matmul(a, b, device=fresh_device) as product:
        product.plan()
        used = fresh_device.weights.bytes_used
        assert used > 0
        b[:] = 2
        assert (product.execute() == 40).all()  # packed before: the change is not seen
        assert fresh_device.weights.bytes_used == used
        product.reset_operands(b=b)
        assert (product.execute() == 80).all()
        fresh_device.stats()
        assert fresh_device.weights.bytes_used == used  # the old one is gone
    assert fresh_device.weights.bytes_used == 0


def test_the_plan_says_what_is_run(fresh_device: npu.Device) -> None:
    a, b = ones(5, 7, 300), ones(2, 1, 300, 5000)
    with npu.Matmul(a, b, device=fresh_device) as product:
        plan = product.plan()
        assert plan is not None
        assert (plan.m, plan.weight.k, plan.weight.n) == (35, 300, 5000)
        assert "(35, 300) @ (300, 5000)" in str(plan)
        before = fresh_device.stats().run_calls
        product.execute()
        assert fresh_device.stats().run_calls == before + 2 * plan.runs  # two matrices of b
    with npu.Matmul(ones(0, 3), ones(3, 2), device=fresh_device) as nothing:
        assert nothing.plan() is None


def test_a_packed_weight_stays_the_callers(device: npu.Device) -> None:
    with npu.pack(ones(8, 3), device=device) as packed, npu.pack(ones(8, 3) * 2, device=device) as other:
        product = npu.Matmul(ones(2, 8), packed)
        assert (product.execute() == 8).all()
        product.reset_operands(ones(2, 8) * 3, other)
        assert (product.execute() == 48).all()
        product.close()
        product.close()
        assert not packed.closed
        assert not other.closed
        for call in (product.execute, product.plan, product.submit, lambda: product.reset_operands(ones(2, 8))):
            with pytest.raises(ClosedError, match="Matmul is closed"):
                call()  # type: ignore[operator]
        assert "closed" in repr(product)


def test_arrays_in_npu_memory_and_packed_weights_on_the_left(device: npu.Device) -> None:
    x, w = npu.asarray(np.full((2, 8), 3, np.int8), device=device), ones(8, 3)
    with npu.Matmul(x, w) as product:  # on the array's device
        assert product.device is device
        result = product.execute()
        assert isinstance(result, npu.NpuArray)
        np.testing.assert_array_equal(result.numpy(), np.full((2, 3), 24))
        out = npu.zeros((2, 3), np.int32, device=device)
        assert product.submit(out).result(60) is out
        np.testing.assert_array_equal(out.numpy(), result.numpy())
        place = np.zeros((2, 3), np.int32)
        assert product.execute(place) is place
        product.reset_operands(a=np.full((2, 8), 2, np.int8))
        assert type(product.execute()) is np.ndarray
    with npu.pack(ones(5, 8), device=device) as packed, npu.Matmul(packed, w, device=device) as product:
        np.testing.assert_array_equal(product.execute(), np.full((5, 3), 8))


def test_operands_that_do_not_fit_the_plan(device: npu.Device) -> None:
    packed = npu.pack(np.ones((8, 3), np.float32), "w8a8", device=device)
    with npu.Matmul(ones(2, 8), ones(8, 3), device=device) as product:
        with pytest.raises(ValueError, match=r"a has shape \(3, 8\); the plan is for \(2, 8\)"):
            product.reset_operands(a=ones(3, 8))
        with pytest.raises(TypeError, match="b is float32; the plan is for int8"):
            product.reset_operands(b=ones(8, 3, dtype=np.float32))
        with pytest.raises(TypeError, match="b is a packed weight; the plan is for int8"):
            product.reset_operands(b=packed)
        with pytest.raises(TypeError, match="nothing is given"):
            product.reset_operands()
        assert (product.execute() == 8).all()  # and nothing has changed
    with (
        npu.pack(np.ones((8, 3), np.float32), device=device) as plain,
        npu.Matmul(np.ones((2, 8), np.float32), packed) as product,
        pytest.raises(ValueError, match="scheme 'w8a8'"),
    ):
        product.reset_operands(b=plain)
    packed.close()


def test_options_and_logging(device: npu.Device, caplog: pytest.LogCaptureFixture) -> None:
    mine = logging.getLogger("test.matmul")
    a, b = ones(4, 64), ones(64, 32)
    with caplog.at_level(logging.INFO), npu.Matmul(a, b, options={"logger": mine}, device=device) as product:
        product.plan()
        product.execute()
        product.reset_operands(a)
    messages = [record.getMessage() for record in caplog.records if record.name == "test.matmul"]
    assert [message.split(":")[0] for message in messages] == [
        "planning", "execution", "resetting operands", "closing",
    ]  # fmt: skip
    assert "(4, 64) @ (64, 32)" in messages[0]
    assert f"{64 * 32} bytes of NPU memory" in messages[0]
    assert "256 bytes in, 512 out" in messages[1]
    assert "GOPS (host clock, simulation)" in messages[1]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        npu.matmul(a, b, device=device)
    assert not caplog.records  # a single product is not worth a line
    with pytest.raises(
        TypeError, match="no option 'loger'; there is logger, level, cores, layout, rows, buckets, tuned"
    ):
        npu.Matmul(a, b, options={"loger": mine}, device=device)


@settings(max_examples=15)
@given(
    seed=seeds,
    cores=st.sampled_from([None, 1, 2, 3]),
    layout=st.sampled_from(["auto", "native", "normal"]),
    rows=st.sampled_from([None, [1], (512, 4)]),
    buckets=st.sampled_from([None, [1, 16], (4,), [64, 4]]),
    floats=st.booleans(),
)
def test_options_say_how_it_is_cut(
    device: npu.Device, seed: int, cores: Any, layout: str, rows: Any, buckets: Any, floats: bool
) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = (int(extent) for extent in rng.integers(1, (60, 300, 300)))
    a, b = rng.integers(-9, 10, (m, k)), rng.integers(-9, 10, (k, n))  # exact as float16, too
    given: list[Any] = [x.astype(np.float32 if floats else np.int8) for x in (a, b)]
    options = {"cores": cores, "layout": layout, "rows": rows, "buckets": buckets}
    with npu.Matmul(*given, options=options, device=device) as product:
        plan = product.plan()
        assert plan is not None
        np.testing.assert_array_equal(product.execute(), a @ b)
        product.reset_operands(b=given[1] * 2)
        np.testing.assert_array_equal(product.execute(), a @ b * 2)
        assert product.plan() == plan
    assert plan.cores <= (cores or device.chip.cores)
    if layout != "auto":
        assert plan.weight.ac_native == (layout == "native")
    if buckets is not None:
        assert plan.weight.buckets == tuple(sorted(buckets))
        assert {span.padded for span in plan.m_spans} <= set(buckets)


def test_tiles_are_chosen_for_the_rows_that_are_asked_for(fresh_device: npu.Device) -> None:
    """A plan for some numbers of rows is, by the model, no slower there than one for others."""
    a, b = np.ones((1, 1024), np.float16), np.ones((1024, 2048), np.float16)

    def modelled(rows: int, asked: int) -> float:
        with npu.Matmul(a.repeat(rows, axis=0), b, options={"rows": [asked]}, device=fresh_device) as product:
            plan = product.plan()
        assert plan is not None
        assert plan.modelled is not None
        return plan.modelled.seconds

    assert modelled(1, 1) <= modelled(1, 512)
    assert modelled(512, 512) <= modelled(512, 1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cores": 0}, ValueError, "'cores' takes numbers of at least 1, not 0"),
        ({"cores": 7}, ValueError, "option 'cores' is 7; rk3588 has 3"),
        ({"logger": "npu"}, TypeError, "'logger' is a logging.Logger, not str"),
        ({"level": "INFO"}, TypeError, "'level' is a number such as logging.INFO, not 'INFO'"),
        ({"cores": 1.0}, TypeError, "'cores' takes int, not float"),
        ({"layout": "tp"}, ValueError, "'layout' is 'tp'; it can be 'auto', 'native', 'normal'"),
        ({"rows": 4}, TypeError, "'rows' is a sequence of numbers of rows, not 4"),
        ({"rows": []}, TypeError, "'rows' is a sequence"),
        ({"buckets": "14"}, TypeError, "'buckets' is a sequence"),
        ({"buckets": [1, -4]}, ValueError, "'buckets' takes numbers of at least 1, not -4"),
        ({"buckets": [1, True]}, TypeError, "'buckets' takes int, not bool"),
        ({"tuned": "yes"}, TypeError, "'tuned' is True, False or None"),
        ({"tuned": True, "cores": 1, "layout": "normal"}, ValueError, "leave it out, or cores, layout"),
        ({"buckets": [6]}, ValueError, "multiple"),
    ],
)
def test_options_that_make_no_sense(
    device: npu.Device, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):  # before anything is packed
        npu.Matmul(ones(2, 64), ones(64, 32), options=options, device=device)


def test_what_is_packed_is_cut(device: npu.Device) -> None:
    with npu.pack(ones(64, 32), device=device) as packed:
        with pytest.raises(ValueError, match="options say cores, rows, but b is packed"):
            npu.Matmul(ones(2, 64), packed, options={"rows": [4], "cores": 1})
        with pytest.raises(ValueError, match="options say tuned, but b is packed"):
            npu.Matmul(ones(2, 64), packed, options={"tuned": True})
        with pytest.raises(ValueError, match="options say layout, but b is packed"):
            npu.Matmul(ones(2, 64), packed, options=npu.MatmulOptions(layout="normal"))
    with (
        npu.Matmul(ones(2, 64), ones(64, 32), options={"layout": "normal"}, device=device) as product,
        pytest.raises(ValueError, match="autotune: options say layout"),
    ):
        product.autotune()


def test_many_threads_use_one_matmul(fresh_device: npu.Device) -> None:
    rng = np.random.default_rng(2)
    a, b = rng.integers(-99, 99, (40, 300), np.int8), rng.integers(-99, 99, (300, 70), np.int8)
    expected = a.astype(np.int32) @ b.astype(np.int32)
    product = npu.Matmul(a, b, device=fresh_device)
    failures: list[str] = []

    def work(thread: int) -> None:
        for step in range(12):
            try:
                if thread == 0 and step % 3 == 0:
                    product.reset_operands(b=b)  # while others execute
                result = product.submit().result(60) if step % 2 else product.execute()
                if not np.array_equal(result, expected):
                    failures.append(f"thread {thread}, step {step}")
            except Exception as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert fresh_device.weights.bytes_used > 0
    product.close()
    assert fresh_device.weights.bytes_used == 0


# ---- out ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [None, "w8a8"])
def test_out_is_unchanged_by_mistakes(device: npu.Device, scheme: str | None) -> None:
    a, b = np.ones((300, 8), np.float32), np.ones((8, 3), np.float32)
    out = np.full((300, 3), 7, np.float32)
    a[277, 1] = np.inf
    if scheme:
        with pytest.raises(NotFiniteError, match="row 277"):
            npu.matmul(a, b, out, scheme=scheme, device=device)
        assert (out == 7).all()  # rows before the bad one were not written either
    read_only = out.view()
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        npu.matmul(a, b, read_only, scheme=scheme, device=device)
    with pytest.raises(TypeError, match="same_kind"):
        npu.matmul(a, b, out.astype(np.int32), scheme=scheme, device=device)
    assert (out == 7).all()


def test_out_that_overlaps_any_operand(device: npu.Device) -> None:
    """`a` is read in ranges of rows, while results of earlier ones are written."""
    memory = np.ones((2000, 64), np.float32)
    a, out = memory[500:1500], memory[:1000]
    a[:] = np.arange(1000)[:, np.newaxis]
    expected = a @ np.eye(64, dtype=np.float32)
    assert npu.matmul(a, np.eye(64, dtype=np.float32), out, device=device) is out
    np.testing.assert_array_equal(out, expected)


# ---- scheme and precision -------------------------------------------------------------------------------------------


def test_scheme_of_plain_operands(device: npu.Device) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 40)).astype(np.float32), rng.standard_normal((40, 6)).astype(np.float32)
    with npu.pack(b, "w8a8", device=device) as packed:
        np.testing.assert_array_equal(npu.matmul(a, b, scheme="w8a8", device=device), npu.matmul(a, packed))
        np.testing.assert_array_equal(npu.matmul(a, packed, scheme="w8a8"), npu.matmul(a, packed))
        with pytest.raises(ValueError, match="scheme is 'w16a16', but b is packed as 'w8a8'"):
            npu.matmul(a, packed, scheme="w16a16")
        with pytest.raises(ValueError, match="precision is 'high', but b is packed as 'w8a8'"):
            npu.matmul(a, packed, precision="high")
        with pytest.raises(TypeError, match="int8"):
            npu.matmul(a.astype(np.int8), packed)
    groups = Scheme(8, 8, "group", 32)  # an object, or its name
    with npu.pack(b, groups, device=device) as packed:
        for scheme in (groups, "w8a8_g32"):
            np.testing.assert_array_equal(npu.matmul(a, b, scheme=scheme, device=device), npu.matmul(a, packed))
            np.testing.assert_array_equal(npu.matmul(a, packed, scheme=scheme), npu.matmul(a, packed))
    with npu.pack(b, "w16a16_high", device=device) as packed:
        np.testing.assert_array_equal(
            npu.matmul(a, packed, precision="high"), npu.matmul(a, b, precision="high", device=device)
        )
    np.testing.assert_array_equal(npu.matmul(ones(2, 3), ones(3, 2), scheme="int8", device=device), [[3, 3], [3, 3]])
    small = ones(2, 3, dtype=ml_dtypes.int4)
    np.testing.assert_array_equal(npu.matmul(small, small.T, scheme="int4", device=device), [[3, 3], [3, 3]])
    for wrong, left, right, message in (
        ("w8a8", ones(2, 3), ones(3, 2), "scheme 'w8a8' takes weights of"),
        ("int4", ones(2, 3), small.T, "scheme is 'int4', so a has to be int4"),
        ("w1a1", a, b, "no scheme is called 'w1a1'"),
    ):
        before = device.stats().npu_bytes
        with pytest.raises((TypeError, ValueError), match=message):
            npu.matmul(left, right, scheme=wrong, device=device)
        assert device.stats().npu_bytes == before
    with pytest.raises(ValueError, match="contradict each other"):
        npu.matmul(a, b, scheme="w8a8", precision="high", device=device)
    with pytest.raises(ValueError, match="'high' or None"):
        npu.matmul(a, b, precision="highest", device=device)


U, V = 2.0**-11, 2.0**-24


def float_bound(a: np.ndarray, b: np.ndarray, precision: str | None) -> np.ndarray:
    """The documented bound of float products, in float64."""
    a, b = np.abs(a.astype(np.float64)), np.abs(b.astype(np.float64))
    k = a.shape[1]
    largest = a.max(axis=1, keepdims=True, initial=0) * b.max(axis=0, keepdims=True, initial=0)
    if precision == "high":
        relative, tail = 3 * U**2 + (1 + 4 * U) * ((1 + V) ** (3 * k + 1) - 1), 2.0**-35
    else:
        relative, tail = (1 + U) ** 2 * (1 + V) ** (k + 1) - 1, 2.0**-21
    return np.asarray(relative * (a @ b) + tail * k * largest + 2.0**-149)


ADVERSARIAL = [0.0, -0.0, 2.0**-149, 2.0**-130, 2.0**-126, 1e-30, 1e-8, 2.0**-14, 1 / 3, 1.0, -1.0, 1 + 2.0**-11,
               1 + 2.0**-12, 1 + 2.0**-23, 65504.0, 65520.0, 1e10, 3e18]  # fmt: skip


@pytest.mark.parametrize("precision", [None, "high"])
@settings(max_examples=30)
@given(
    m=st.integers(1, 6), k=st.integers(1, 70), n=st.integers(1, 6), seed=seeds,
    spread=st.integers(0, 40),
)  # fmt: skip
def test_adversarial_floats_stay_within_the_bound(
    device: npu.Device, precision: str | None, m: int, k: int, n: int, seed: int, spread: int
) -> None:
    """Large, tiny and subnormal values mixed in one row; the largest products stay below float32's end."""
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        random = rng.standard_normal(shape) * np.exp2(rng.integers(-spread, spread + 1, shape))
        return np.where(rng.random(shape) < 0.3, rng.choice(ADVERSARIAL, shape), random).astype(np.float32)

    a, b = values(m, k), values(k, n)
    result = npu.matmul(a, b, precision=precision, device=device)
    assert result.dtype == np.float32
    error = np.abs(result - a.astype(np.float64) @ b.astype(np.float64))
    assert (error <= float_bound(a, b, precision)).all()


def test_high_precision_is_close_to_float32(device: npu.Device) -> None:
    rng = np.random.default_rng(7)
    a, b = rng.standard_normal((20, 700)).astype(np.float32), rng.standard_normal((700, 30)).astype(np.float32)
    exact = a.astype(np.float64) @ b
    errors = {
        precision: np.abs(npu.matmul(a, b, precision=precision, device=device) - exact).max()
        for precision in (None, "high")
    }
    assert errors["high"] < errors[None] / 200
    assert errors["high"] < 4 * np.abs(a @ b - exact).max()


def test_inf_and_nan_as_in_float32(device: npu.Device) -> None:
    """With values that float16 holds, the pattern of inf and nan is that of numpy's float32 product."""
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((12, 9), (9, 14)))
    a[1, 2], a[2, 3], a[3, [0, 1]] = np.inf, np.nan, [np.inf, -np.inf]
    b[4, 5], b[5, 6], b[[0, 1], 7] = -np.inf, np.nan, [np.inf, np.inf]
    with np.errstate(invalid="ignore"):
        expected = a @ b
    np.testing.assert_array_equal(npu.matmul(a, b, device=device), expected)
    high = npu.matmul(a, b, precision="high", device=device)
    assert not np.isfinite(high[~np.isfinite(expected)]).any()  # perhaps nan for inf: inf times a low part of 0
    np.testing.assert_array_equal(high[np.isfinite(expected)], expected[np.isfinite(expected)])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_high_precision_of_every_type_shape_and_magnitude(device: npu.Device, dtype: Any) -> None:
    rng = np.random.default_rng(5)
    a = rng.standard_normal((2, 1, 7, 33)).astype(dtype)
    b = rng.standard_normal((3, 33, 4)).astype(np.float32)
    b *= np.exp2([-100.0, -10, 20, 60]).astype(np.float32)
    result = npu.matmul(a, b, precision="high", device=device)
    assert result.shape == (2, 3, 7, 4)
    for i in range(2):
        for j in range(3):
            error = np.abs(result[i, j] - a[i, 0].astype(np.float64) @ b[j].astype(np.float64))
            assert (error <= float_bound(a[i, 0], b[j], "high")).all()
    with npu.Matmul(a, b, precision="high", device=device) as product:
        assert product.scheme.name == "w16a16_high"
        np.testing.assert_array_equal(product.execute(), result)
    half = rng.standard_normal((5, 8)).astype(np.float16)
    with npu.Matmul(half, half.T, precision="high", device=device) as product:
        assert product.scheme.name == "w16a16"  # products of float16 are exact as they are
