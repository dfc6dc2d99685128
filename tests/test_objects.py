"""Buffers and contexts: what they compute, and what is refused before it could crash."""

from __future__ import annotations

import ctypes as C
import gc
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from objects import I8, NATIVE, NORM, PAGE, TP_NORM, K, M, N, bound, fill, operands

import npumatmul as npu
from npumatmul import Buffer, MatmulContext, MatmulLayout, MatmulType, QuantType, errors
from npumatmul.errors import BusyError, ClosedError, LayoutMismatchError, NpuError

# ---- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ac_layout", [NORM, NATIVE])
@pytest.mark.parametrize("b_layout", list(MatmulLayout))
def test_the_product_is_numpys_however_often_it_is_changed(
    device: npu.Device, b_layout: MatmulLayout, ac_layout: MatmulLayout
) -> None:
    context, buffers = bound(device, b_layout=b_layout, ac_layout=ac_layout)
    for seed in range(3):
        c = fill(context, buffers, seed)
        context.run()
        np.testing.assert_array_equal(buffers[2].get(context.c), c)
        context.run()
        np.testing.assert_array_equal(buffers[2].get(context.c), c)


@given(
    m=st.sampled_from([1, 4, 8, 20]),
    k=st.integers(1, 6).map(lambda i: i * 32),
    n=st.integers(1, 5).map(lambda i: i * 64),
    mm_type=st.sampled_from([I8, MatmulType.FLOAT16_FLOAT16_FLOAT32, MatmulType.INT4_INT4_INT16]),
    layouts=st.tuples(st.sampled_from([NORM, NATIVE, TP_NORM]), st.sampled_from([NORM, NATIVE])),
)
def test_every_shape_type_and_layout_is_numpys(
    device: npu.Device, m: int, k: int, n: int, mm_type: MatmulType, layouts: tuple[MatmulLayout, MatmulLayout]
) -> None:
    rng = np.random.default_rng(m + k + n)
    a, b = rng.integers(-2, 3, (m, k)).astype(mm_type.a.dtype), rng.integers(-2, 3, (k, n)).astype(mm_type.b.dtype)
    with device.context(mm_type, m, k, n, b_layout=layouts[0], ac_layout=layouts[1]) as context:
        assert (context.a.shape, context.b.shape, context.c.shape) == ((m, k), (k, n), (m, n))
        assert [each.dtype for each in (context.a, context.b, context.c)] == [
            mm_type.a.dtype, mm_type.b.dtype, mm_type.c.dtype,
        ]  # fmt: skip
        with (
            device.buffer(context.a.size) as a_buffer,
            device.buffer(context.b.size) as b_buffer,
            device.buffer(context.c.size) as c_buffer,
        ):
            a_buffer.put(context.a, a)
            b_buffer.put(context.b, b)
            context.bind(a=a_buffer, b=b_buffer, c=c_buffer)
            context.run()
            np.testing.assert_array_equal(c_buffer.get(context.c), a.astype(np.int64) @ b.astype(np.int64))


def test_a_normal_matrix_can_be_written_as_an_array(device: npu.Device) -> None:
    context, (a_buffer, b_buffer, c_buffer) = bound(device)
    a, b, c = operands(3)
    with a_buffer.write(np.int8, (M, K)) as view:
        view[:] = a
    with b_buffer.write() as raw:
        raw[:] = b.view(np.uint8).ravel()
    context.run()
    np.testing.assert_array_equal(c_buffer.array.view(np.int32).reshape(M, N), c)


def test_the_result_of_one_run_can_be_an_operand_of_the_next(device: npu.Device) -> None:
    """int8 results as the B of another context: it has to be bound anew, since a normal B is copied (Q13)."""
    first = device.context(MatmulType.INT8_INT8_INT8, 32, 32, 32)
    second = device.context(I8, 4, 32, 32)
    a, b, c, x, y = (device.buffer(each) for each in (1024, 1024, 1024, 128, 512))
    eye = np.eye(32, dtype=np.int8)
    a.put(first.a, eye)
    first.bind(a=a, b=b, c=c)
    second.bind(a=x, b=c, c=y)
    left = operands(1, 4, 32, 32)[0]
    x.put(second.a, left)
    for factor in (1, 2, 3):
        b.put(first.b, eye * factor)
        first.run()
        second.run()
        np.testing.assert_array_equal(y.get(second.c), left.astype(np.int32) * factor)


# ---- misuse --------------------------------------------------------------------------------------------------------


def test_bad_buffers_are_refused_when_they_are_bound(device: npu.Device) -> None:
    context, (a, b, c) = bound(device)
    with pytest.raises(ValueError, match=r"bind: C needs 512 bytes, the buffer has 511"):
        context.bind(c=device.buffer(511))
    with pytest.raises(TypeError, match="A takes a Buffer, not ndarray"):
        context.bind(a=np.zeros(256, np.uint8))  # type: ignore[arg-type]
    with npu.Device("sim:rk3566") as other, npu.Device("sim:rk3588") as same_chip:
        for foreign in (other, same_chip):
            with pytest.raises(ValueError, match="belongs to another device"):
                context.bind(b=foreign.buffer(b.nbytes))
    with pytest.raises(ValueError, match="IOMMU domain 3, the context in 0"):
        context.bind(a=device.buffer(a.nbytes, domain=3))
    whole = device.buffer(2 * PAGE)
    with pytest.raises(ValueError, match="B and C share bytes"):
        context.bind(b=whole, c=whole.slice(0, c.nbytes))
    with pytest.raises(ValueError, match="A and C share bytes"):
        context.bind(c=a.slice(0, a.nbytes) if a.nbytes >= 512 else _large_a(context, device))
    closed = device.buffer(a.nbytes)
    closed.close()
    with pytest.raises(ClosedError):
        context.bind(a=closed)
    context.run()  # what was bound before still is


def _large_a(context: MatmulContext, device: npu.Device) -> Buffer:
    large = device.buffer(PAGE)
    context.bind(a=large)
    return large


def test_domains_work_when_they_are_the_same(device: npu.Device) -> None:
    context = device.context(I8, M, K, N, domain=5)
    buffers = tuple(device.buffer(each.size, domain=5) for each in (context.a, context.b, context.c))
    context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
    c = fill(context, buffers, 0)
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)
    assert buffers[0].slice(0, 8).domain == 5


def test_a_run_needs_its_buffers(device: npu.Device) -> None:
    context = device.context(I8, M, K, N)
    with pytest.raises(NpuError, match="A and B and C have no buffer"):
        context.run()
    a, b, c = (device.buffer(each.size) for each in (context.a, context.b, context.c))
    context.bind(a=a, c=c)
    with pytest.raises(NpuError, match="B have no buffer"):
        context.run()
    context.bind(b=b)
    context.run()
    b.close()
    with pytest.raises(ClosedError, match="buffer of B is closed"):
        context.run()
    context.close()
    with pytest.raises(ClosedError, match="context is closed"):
        context.run()


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (np.zeros((M, K), np.int16), TypeError),
        (np.zeros((M, K), np.float32), TypeError),
        (np.zeros((K, M), np.int8), ValueError),
        (np.zeros((M, K + 1), np.int8), ValueError),
        (np.zeros(M * K, np.int8), ValueError),
    ],
)
def test_putting_something_else_raises_and_writes_nothing(
    device: npu.Device, values: NDArray[Any], error: type[Exception]
) -> None:
    context, (a, _, _) = bound(device)
    before = a.array.copy()
    with pytest.raises(error):
        a.put(context.a, values)
    np.testing.assert_array_equal(a.array, before)


def test_putting_into_or_getting_from_a_small_buffer_raises(device: npu.Device) -> None:
    context, _ = bound(device)
    with device.buffer(M * K - 1) as small:
        with pytest.raises(ValueError, match="A needs 256 bytes, the buffer has 255"):
            small.put(context.a, operands()[0])
        with pytest.raises(ValueError, match="get: A has 256 bytes"):
            small.get(context.a)


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.float32, None), (np.int8, (64, 2)), (np.float32, (-1, 2)), (object, None), (np.float64, (2**62, 2**62))],
)
def test_a_view_that_does_not_fit_is_refused(device: npu.Device, dtype: Any, shape: Any) -> None:
    with device.buffer(66) as buffer, pytest.raises(ValueError, match="write: "), buffer.write(dtype, shape):
        pass


@pytest.mark.parametrize("other", [None, 0, "a", b"x", (1, 2), object(), np.zeros(4, np.int8)])
def test_what_is_no_object_of_a_device_is_said_so(device: npu.Device, other: Any) -> None:
    with device.buffer(256) as buffer:
        for call in (buffer.get, buffer.overlaps, lambda attr: buffer.put(attr, np.zeros((4, 64), np.int8))):
            with pytest.raises(TypeError, match=r"attr says where elements stand|another Buffer is needed"):
                call(other)
    with pytest.raises(TypeError, match=r"are made by Device\.buffer"):
        Buffer(other, other)
    for made in (MatmulContext, lambda session, spec: npu.DynamicMatmulContext(session, spec, [(1, 32, 32)])):
        with pytest.raises(TypeError, match=r"are made by Device\.context"):
            made(other, other)
    with pytest.raises(TypeError, match="QuantizedWeight: "):
        npu.QuantizedWeight(other, other)
    with pytest.raises(npu.errors.DeviceError, match="is not known"):
        npu.capabilities(other)


@pytest.mark.parametrize("nbytes", [0, -1, 2**32])
def test_sizes_that_no_buffer_has(device: npu.Device, nbytes: int) -> None:
    with pytest.raises(ValueError, match="a buffer has 1 to"):
        device.buffer(nbytes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, K, N), {}), "must be positive"),
        (((M, -32, N), {}), "must be positive"),
        (((M, K, 2**31), {}), "must be positive and fit int32"),
        (((M, 2**20, 2**20), {}), "the C API ends at"),
        (((5, K, N), {"ac_layout": NATIVE}), "1 or a multiple of 4"),
        (((M, K, N), {"ac_layout": TP_NORM}), "NORM or NATIVE"),
        (((M, K, N), {"core": 3}), "cores 0 to 2"),
        (((M, K, N), {"domain": 16}), "0 to 15"),
        (((M, K, N), {"domain": -1}), "0 to 15"),
        (((M, K, N), {"ac_quant": QuantType.PER_CHANNEL_SYM}), "per layer only"),
        (((M, K, N), {"b_quant": QuantType.PER_GROUP_SYM}), "does not divide"),
        (((M, K, N), {"b_quant": QuantType.PER_GROUP_SYM, "group_size": 48}), "does not divide"),
        (((M, K, N), {"group_size": 32}), "per-group"),
    ],
)
def test_contexts_that_make_no_sense_are_refused_before_the_call(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    monkeypatch.setitem(device.runtime._functions, "rknn_matmul_create", lambda *_: pytest.fail("called"))
    (m, k, n), options = arguments
    with pytest.raises(ValueError, match=message):
        device.context(I8, m, k, n, **options)
    if "ac_layout" not in options:
        with pytest.raises(ValueError, match=message):
            device.dynamic_context(I8, [(m, k, n)], **options)


def test_types_that_a_chip_does_not_have(device: npu.Device) -> None:
    with pytest.raises(errors.DeviceError, match="rk3588"):
        device.context(MatmulType.FLOAT16_INT4_FLOAT32, M, K, 64)


def test_what_the_runtime_refuses_is_told(device: npu.Device) -> None:
    contexts = device.stats().contexts
    with pytest.raises(errors.RknnParamInvalid, match=r"rknn_matmul_create\(M=4, K=65"):
        device.context(I8, M, 65, N)
    assert device.stats().contexts == contexts


def test_a_deep_native_b_has_no_settled_layout(device: npu.Device) -> None:
    with (
        device.context(I8, 1, 8192 + 32, 32, b_layout=NATIVE) as context,
        device.buffer(context.b.size) as buffer,
    ):
        assert context.b.layout is None
        with pytest.raises(LayoutMismatchError, match="segments"):
            buffer.put(context.b, np.zeros((8224, 32), np.int8))
    with device.context(I8, 1, 8192, 32, b_layout=NATIVE) as context:
        assert context.b.layout is not None


@pytest.mark.parametrize("shapes", [[], [(1, 64, 32), (1, 96, 32)], [(1, 64, 32), (1, 64, 32)]])
def test_dynamic_shapes_that_make_no_sense(device: npu.Device, shapes: list[tuple[int, int, int]]) -> None:
    with pytest.raises(ValueError, match="shape"):
        device.dynamic_context(I8, shapes)


def test_a_shape_has_to_be_one_of_the_context(device: npu.Device) -> None:
    with device.dynamic_context(I8, [(1, K, N), (8, K, N)]) as context:
        assert context.a.shape == (1, K)
        assert context.largest == (8 * K, K * N, 8 * N * 4)
        with pytest.raises(ValueError, match="none of the shapes"):
            context.select(2, K, N)
        small = device.buffer(context.a.size)
        context.bind(a=small, b=device.buffer(K * N), c=device.buffer(8 * N * 4))
        context.run()
        context.select(8, K, N)
        with pytest.raises(NpuError, match="A have no buffer"):
            context.run()
        context.bind(a=device.buffer(8 * K))
        context.run()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("D", 1.0), "'A', 'B' and 'C'"),
        (("B", [1.0, 2.0]), r"takes scales of shape \(32,\)"),
        (("B", np.ones((32, 1))), r"takes scales of shape \(32,\)"),
        (("A", [1.0, 2.0]), r"takes scales of shape \(1,\)"),
        (("B", np.zeros(32)), "positive and finite"),
        (("B", np.full(32, np.nan)), "positive and finite"),
        (("B", np.full(32, 1e-60)), "positive and finite"),
        (("B", np.ones(32), np.ones(32, int)), "0..0"),
        (("A", 1.0, 200), r"-128\.\.127"),
        (("A", 1.0, 0.5), "integers"),
        (("A", 1.0, [1, 2]), "takes 1 integers"),
        (("C", 1.0, 1), r"0\.\.0"),
    ],
)
def test_quantization_parameters_that_make_no_sense(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch, arguments: Any, message: str
) -> None:
    quant = {"b_quant": QuantType.PER_CHANNEL_SYM, "ac_quant": QuantType.PER_LAYER_ASYM}
    with device.context(I8, M, K, N, **quant) as context:  # type: ignore[arg-type]
        monkeypatch.setitem(device.runtime._functions, "rknn_matmul_set_quant_params", lambda *_: pytest.fail("called"))
        with pytest.raises(ValueError, match=message):
            context.set_quant_params(*arguments)
    with device.context(I8, M, K, N) as context, pytest.raises(ValueError, match="per channel"):
        context.get_quant_params()


def test_what_runs_at_the_same_time(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread is inside the runtime, another may not use or close what it uses, but may use the rest."""
    context, buffers = bound(device)
    c = fill(context, buffers, 0)
    other, other_buffers = bound(device)
    other_c = fill(other, other_buffers, 1)
    other.run()
    inside, go_on = threading.Event(), threading.Event()
    run = device.runtime._functions["rknn_matmul_run"]

    def slow(ctx: int) -> int:
        if ctx == context._handle.value:
            inside.set()
            assert go_on.wait(60)
        return int(run(ctx))

    monkeypatch.setitem(device.runtime._functions, "rknn_matmul_run", C.CFUNCTYPE(C.c_int, C.c_uint64)(slow))
    thread = threading.Thread(target=context.run)
    thread.start()
    try:
        assert inside.wait(60)
        for use in (
            context.run,
            context.close,
            buffers[0].close,
            buffers[2].close,
            device.close,
            lambda: context.bind(a=buffers[0]),
            lambda: context.set_quant_params("B", 1.0),
        ):
            with pytest.raises(BusyError, match="another thread"):
                use()
        other.run()
        np.testing.assert_array_equal(other_buffers[2].get(other.c), other_c)
    finally:
        go_on.set()
        thread.join()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)
    context.run()
    context.close()


def test_many_threads_with_a_context_each(device: npu.Device) -> None:
    wrong: list[str] = []

    def work(seed: int) -> None:
        try:
            for i in range(20):
                context, buffers = bound(device)
                c = fill(context, buffers, seed * 100 + i)
                context.run()
                if not (buffers[2].get(context.c) == c).all():
                    wrong.append("different")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_failed_call_is_made_again_at_the_next_run(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    context, buffers = bound(device)
    c = fill(context, buffers, 0)
    for name in ("rknn_matmul_set_io_mem", "rknn_mem_sync"):
        with monkeypatch.context() as patch:
            patch.setitem(device.runtime._functions, name, lambda *_: -1)
            with pytest.raises(errors.RknnFail, match=name):
                context.run()
        context.run()
        np.testing.assert_array_equal(buffers[2].get(context.c), c)
        c = fill(context, buffers, len(name))


def test_a_context_whose_run_failed_is_broken(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its buffers serve another one."""
    context, buffers = bound(device)
    c = fill(context, buffers, 0)
    with monkeypatch.context() as patch:
        patch.setitem(device.runtime._functions, "rknn_matmul_run", C.CFUNCTYPE(C.c_int, C.c_uint64)(lambda _: -2))
        with pytest.raises(errors.RknnTimeout):
            context.run()
    assert context.broken
    for call in (context.run, lambda: context.bind(a=buffers[0])):
        with pytest.raises(errors.NpuError, match=r"failed.* close\(\) it and make another"):
            call()
    context.close()
    with device.context(I8, M, K, N) as another:
        another.bind(a=buffers[0], b=buffers[1], c=buffers[2])
        another.run()
        np.testing.assert_array_equal(buffers[2].get(another.c), c)


def test_a_context_that_reports_something_else_is_refused(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    create = device.runtime.matmul_create

    def lying(info: Any, note: Any) -> Any:
        ctx, io_attr = create(info, note)
        io_attr.B.size += 1
        return ctx, io_attr

    gc.collect()  # contexts that earlier tests dropped must not go in between
    contexts = device.stats().contexts
    monkeypatch.setattr(device.runtime, "matmul_create", lying)
    with pytest.raises(LayoutMismatchError, match="B has dims"):
        device.context(I8, M, K, N)
    assert device.stats().contexts == contexts


@pytest.mark.parametrize("core", [None, 0, 1, 2])
def test_cores(device: npu.Device, core: int | None) -> None:
    context, buffers = bound(device, core=core)
    c = fill(context, buffers, 0)
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)


def test_a_chip_with_one_core_takes_core_0() -> None:
    with npu.Device("sim:rk3566") as device:
        context, buffers = bound(device, core=0)
        c = fill(context, buffers, 0)
        context.run()
        np.testing.assert_array_equal(buffers[2].get(context.c), c)


def test_numbers_are_taken_for_what_they_are(device: npu.Device) -> None:
    with device.context(I8, np.int64(M), np.int32(K), N, b_layout=1, ac_layout=0, core=np.int8(1)) as context:  # type: ignore[arg-type]
        assert (context.spec.b_layout, context.spec.core) == (NATIVE, 1)
    for bad in ({"b_layout": 3}, {"b_quant": 6}):
        with pytest.raises(ValueError, match="is not a valid"):
            device.context(I8, M, K, N, **bad)
    with pytest.raises(TypeError, match="MatmulType"):
        device.context(2, M, K, N)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        device.context(I8, 4.0, K, N)  # type: ignore[arg-type]


def test_calls_are_counted(fresh_device: npu.Device) -> None:
    context, buffers = bound(fresh_device)
    fill(context, buffers, 0)
    context.run()
    context.run()
    stats = fresh_device.stats()
    assert (stats.run_calls, stats.set_io_mem_calls, stats.mem_sync_calls) == (2, 3, 4)
    assert stats.macs == 2 * M * K * N
    assert (stats.contexts, stats.descriptors, stats.npu_bytes) == (2, 3, sum(each.nbytes for each in buffers))


def test_fast_path_and_objects_share_a_device(device: npu.Device) -> None:
    context, buffers = bound(device)
    c = fill(context, buffers, 0)
    a, b, expected = operands(7, 9, 100, 50)
    for _ in range(2):
        context.run()
        np.testing.assert_array_equal(npu.matmul(a, b, device=device), expected)
        np.testing.assert_array_equal(buffers[2].get(context.c), c)


def test_reprs_say_what_things_are(device: npu.Device) -> None:
    context, (a, _, _) = bound(device)
    assert repr(context) == "MatmulContext(INT8_INT8_INT32 4x64x32, B norm, A and C norm)"
    assert repr(a) == "Buffer(256 bytes on sim:rk3588)"
    context.close()
    a.close()
    assert "closed" in repr(context)
    assert "closed" in repr(a)
