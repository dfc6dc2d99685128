"""Buffers and contexts: what they compute, when they are given back, and what is refused before it could crash."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiling import compile_c
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import Buffer, MatmulContext, MatmulLayout, MatmulType, QuantType, errors
from npumatmul.errors import BusyError, ClosedError, LayoutMismatchError, NpuError
from npumatmul.rknn import Runtime
from npumatmul.rknn.discovery import simulator_path
from npumatmul.session import Memory

I8 = MatmulType.INT8_INT8_INT32
NORM, NATIVE, TP_NORM = MatmulLayout
M, K, N = 4, 64, 32
PAGE = 4096


def operands(seed: int = 0, m: int = M, k: int = K, n: int = N) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(-99, 99, (m, k), dtype=np.int8), rng.integers(-99, 99, (k, n), dtype=np.int8)
    return a, b, a.astype(np.int32) @ b.astype(np.int32)


def bound(device: npu.Device, **options: Any) -> tuple[MatmulContext, tuple[Buffer, Buffer, Buffer]]:
    context = device.context(I8, M, K, N, **options)
    buffers = tuple(device.buffer(attr.size) for attr in (context.a, context.b, context.c))
    context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
    return context, buffers


def fill(context: MatmulContext, buffers: tuple[Buffer, ...], seed: int) -> NDArray[Any]:
    a, b, c = operands(seed)
    buffers[0].put(context.a, a)
    buffers[1].put(context.b, b)
    return c


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


# ---- strict memory: only what was synchronised and bound anew is seen ----------------------------------------------


@pytest.fixture(scope="module")
def strict() -> Iterator[npu.Device]:
    """Caches that are not coherent, and B that is copied when it is bound, as the simulator has them on request."""
    runtime = Runtime(simulator_path("2.3.2"))
    configure = runtime.library["npumm_sim_configure"]
    configure.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
    assert configure(b"NPUMATMUL_SIM_STRICT", b"1") == 0
    os.environ["NPUMATMUL_SIM_RUNTIME"] = "2.3.2"
    try:
        with npu.Device("sim:rk3588") as device:
            yield device
    finally:
        del os.environ["NPUMATMUL_SIM_RUNTIME"]
        assert configure(b"NPUMATMUL_SIM_STRICT", None) == 0


@pytest.fixture(params=["allocations", "slices"])
def strict_case(
    request: pytest.FixtureRequest, strict: npu.Device
) -> Callable[..., tuple[MatmulContext, tuple[Buffer, Buffer, Buffer]]]:
    def make(**options: Any) -> tuple[MatmulContext, tuple[Buffer, Buffer, Buffer]]:
        context, buffers = bound(strict, **options)
        if request.param == "slices":
            whole = strict.buffer(3 * PAGE)
            buffers = tuple(whole.slice(i * PAGE, each.nbytes) for i, each in enumerate(buffers))  # type: ignore[assignment]
            context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
        return context, buffers

    return make


@pytest.mark.parametrize("ac_layout", [NORM, NATIVE])
@pytest.mark.parametrize("b_layout", list(MatmulLayout))
def test_strict_memory_shows_every_change(strict_case: Any, b_layout: MatmulLayout, ac_layout: MatmulLayout) -> None:
    context, buffers = strict_case(b_layout=b_layout, ac_layout=ac_layout)
    for seed in range(3):
        c = fill(context, buffers, seed)
        for _ in range(2):
            context.run()
            np.testing.assert_array_equal(buffers[2].get(context.c), c)


def test_strict_memory_shows_what_is_written_between_runs_of_an_open_write(strict_case: Any) -> None:
    context, buffers = strict_case()
    fill(context, buffers, 0)
    with buffers[0].write(np.int8, (M, K)) as a_view, buffers[1].write(np.int8, (K, N)) as b_view:
        for seed in (1, 2, 3):
            a, b, c = operands(seed)
            a_view[:], b_view[:] = a, b
            context.run()
            np.testing.assert_array_equal(buffers[2].get(context.c), c)
    a, b, c = operands(4)
    buffers[0].put(context.a, a)
    buffers[1].put(context.b, b)
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)


def test_strict_memory_shows_what_is_written_through_a_view_that_outlives_its_block(strict_case: Any) -> None:
    context, buffers = strict_case()
    fill(context, buffers, 0)
    with buffers[1].write(np.int8, (K, N)) as view:
        half = view[: K // 2]
    with pytest.raises(ValueError, match="read-only"):
        view[:] = 0
    for seed in (1, 2):
        a, b, _ = operands(seed)
        buffers[0].put(context.a, a)
        half[:] = b[: K // 2]
        context.run()
        whole = np.concatenate([b[: K // 2], operands(0)[1][K // 2 :]])
        np.testing.assert_array_equal(buffers[2].get(context.c), a.astype(np.int32) @ whole.astype(np.int32))


def test_writing_through_a_parent_or_an_overlapping_slice_counts(strict: npu.Device) -> None:
    """A normal B is copied when it is bound, so it has to be bound anew whichever way it was written."""
    context, (a_buffer, _, c_buffer) = bound(strict)
    whole = strict.buffer(3 * PAGE)
    part = whole.slice(PAGE, K * N)
    context.bind(b=part)
    for seed, through in enumerate((whole, part, whole.slice(PAGE, PAGE), whole)):
        a, b, c = operands(seed)
        a_buffer.put(context.a, a)
        with through.write() as view:
            view[PAGE if through is whole else 0 :][: K * N] = b.view(np.uint8).ravel()
        del view
        context.run()
        np.testing.assert_array_equal(c_buffer.get(context.c), c)


def test_results_are_not_overwritten_by_what_the_cpu_wrote_before(strict_case: Any) -> None:
    """C's cache lines are clean before the run: else the cache would write old bytes over the result later."""
    context, buffers = strict_case()
    for seed in range(3):
        c = fill(context, buffers, seed)
        with buffers[2].write() as view:
            view[:] = 0xAB
        del view
        context.run()
        np.testing.assert_array_equal(buffers[2].get(context.c), c)


def _skip_sync(monkeypatch: pytest.MonkeyPatch, mode_name: str) -> None:
    sync = Memory.sync
    monkeypatch.setattr(Memory, "sync", lambda self, mode: 0 if mode.name == mode_name else sync(self, mode))


def _sync_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the allocation that it belongs to."""
    monkeypatch.setattr(Memory, "allocation", property(lambda self: self))
    monkeypatch.setattr(Memory, "mark_written", lambda self: setattr(self, "written", self.written + 1))


def _never_bind_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = MatmulContext._bind
    monkeypatch.setattr(MatmulContext, "_bind", lambda self, slot, *rest: slot.bound or bind(self, slot, *rest))


def _sync_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synchronise after binding, in which a normal B is copied."""
    flush, run = Memory.flush, Runtime.matmul_run
    waiting: list[Memory] = []

    def flush_first(self: Runtime, ctx: int) -> None:
        while waiting:
            flush(waiting.pop())
        run(self, ctx)

    def wait(self: Memory) -> int:
        waiting.append(self)
        return 0

    monkeypatch.setattr(Memory, "flush", wait)
    monkeypatch.setattr(Runtime, "matmul_run", flush_first)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no synchronisation to the device": lambda patch: _skip_sync(patch, "TO_DEVICE"),
    "no synchronisation from the device": lambda patch: _skip_sync(patch, "FROM_DEVICE"),
    "synchronising the slice itself": _sync_the_slice,
    "binding only once": _never_bind_again,
    "synchronising after binding": _sync_too_late,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_without_each_of_the_calls_strict_memory_gives_wrong_results(
    strict: npu.Device, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    """Slices with a normal B need all of them: were one left out of `run`, the tests above would fail."""
    context, _ = bound(strict)
    whole = strict.buffer(3 * PAGE)
    buffers = tuple(whole.slice(i * PAGE, attr.size) for i, attr in enumerate((context.a, context.b, context.c)))
    context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
    c = fill(context, buffers, 0)
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)
    MUTATIONS[mutation](monkeypatch)
    c = fill(context, buffers, 1)
    context.run()
    assert (buffers[2].get(context.c) != c).any()
    monkeypatch.undo()
    c = fill(context, buffers, 2)
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)


def _calls(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counts = {"rknn_matmul_set_io_mem": 0, "rknn_mem_sync": 0, "rknn_matmul_run": 0}
    functions = dict(device.runtime._functions)
    for name in counts:

        def counted(*arguments: Any, name: str = name) -> int:
            counts[name] += 1
            return int(functions[name](*arguments))

        monkeypatch.setitem(device.runtime._functions, name, counted)
    return counts


def test_the_runtime_is_called_no_more_often_than_needed(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    context, buffers = bound(device)
    fill(context, buffers, 0)
    counts = _calls(device, monkeypatch)

    def new() -> tuple[int, ...]:
        seen = tuple(counts.values())
        counts.update(dict.fromkeys(counts, 0))
        return seen

    context.run()
    assert new() == (3, 3, 1)  # A, B and C bound; A and B to the device, C from it
    for _ in range(3):
        context.run()
        assert new() == (0, 1, 1)
    buffers[0].put(context.a, operands(1)[0])
    context.run()
    assert new() == (1, 2, 1)
    context.run()
    assert new() == (0, 1, 1)
    with buffers[1].write() as view:
        for _ in range(3):
            context.run()
            assert new() == (1, 2, 1)
    del view
    context.run()
    assert new() == (1, 2, 1)
    context.run()
    assert new() == (0, 1, 1)
    with buffers[2].write() as view:
        view[:] = 1
    del view
    context.run()  # C to the device first: a dirty cache line would later be written over the result
    assert new() == (1, 2, 1)


# ---- views and closing ---------------------------------------------------------------------------------------------


def test_views_are_read_only_and_cannot_be_made_writable(device: npu.Device) -> None:
    with device.buffer(64) as buffer:
        view = buffer.array
        assert (view.shape, view.dtype) == ((64,), np.uint8)
        with pytest.raises(ValueError, match="read-only"):
            view[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.flags.writeable = True
        with buffer.write() as written:
            written[:] = 7
            assert (view == 7).all()
        with pytest.raises(ValueError, match="read-only"):
            written[:] = 8


@pytest.mark.parametrize(
    "take",
    [
        lambda buffer: buffer.array,
        lambda buffer: buffer.array[3:9],
        lambda buffer: buffer.array.view(np.float16).reshape(4, 8).T[1],
        lambda buffer: memoryview(buffer.array),
        lambda buffer: np.asarray(memoryview(buffer.array))[1:],
        lambda buffer: buffer.write().__enter__()[5:],
        lambda buffer: buffer.slice(0, 8).array,
    ],
)
def test_close_with_a_live_view_raises_and_closes_nothing(device: npu.Device, take: Callable[[Buffer], Any]) -> None:
    buffer = device.buffer(64)
    with buffer.write() as filling:
        filling[:] = 9
    del filling
    view = take(buffer)
    with pytest.raises(BufferError, match="1 view"):
        buffer.close()
    assert not buffer.closed
    assert (np.ascontiguousarray(view).view(np.uint8) == 9).all()
    del view
    gc.collect()  # a generator that was left half-way
    buffer.close()
    buffer.close()
    assert buffer.closed
    with pytest.raises(ClosedError, match="buffer is closed"):
        _ = buffer.array


def test_a_view_keeps_the_memory_of_a_buffer_that_nobody_holds() -> None:
    device = npu.Device("sim")
    buffer = device.buffer(64)
    with buffer.write() as filling:
        filling[:] = 3
    del filling
    view = buffer.array[1:]
    del buffer
    gc.collect()
    assert device.stats().npu_bytes == 64
    assert (view == 3).all()
    del view
    assert device.stats().npu_bytes == 0
    device.close()


def test_leaving_a_with_block_lets_memory_stay_until_its_last_view_is_gone() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with npu.Device("sim") as device:
        with device.buffer(64) as buffer, buffer.write() as view:
            view[:] = 5
        assert device.stats().npu_bytes == 64
        with pytest.raises(BufferError, match="1 views of buffers"):
            device.close()
        assert not device.closed
    assert device.closed
    assert (view == 5).all()
    with pytest.raises(ClosedError, match="device sim:rk3588 is closed"):
        _ = buffer.array
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1
    del view
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_left_buffer_is_closed_even_while_it_is_viewed(fresh_device: npu.Device) -> None:
    context, (_, b, c) = bound(fresh_device)
    with fresh_device.buffer(context.a.size) as a:
        view = a.array
        context.bind(a=a)
        context.run()
    assert a.closed
    for use in (lambda: a.array, lambda: context.bind(a=a), context.run, lambda: a.slice(0, 1)):
        with pytest.raises(ClosedError, match="closed"):
            use()
    before = fresh_device.stats().npu_bytes
    assert view.sum() == 0
    del view
    assert fresh_device.stats().npu_bytes == before - context.a.size
    assert not b.closed
    assert not c.closed


def test_closing_a_parent_closes_its_slices(device: npu.Device) -> None:
    whole = device.buffer(3 * PAGE)
    part = whole.slice(PAGE, 100)
    deeper = whole.slice(PAGE, 2 * PAGE).slice(PAGE, 10)
    whole.close()
    assert part.closed
    assert deeper.closed


def test_a_slice_shares_bytes_with_its_parent(device: npu.Device) -> None:
    whole = device.buffer(3 * PAGE)
    with whole.write() as view:
        view[:] = np.arange(3 * PAGE) % 251
    part = whole.slice(PAGE, 2 * PAGE).slice(PAGE, 10)
    np.testing.assert_array_equal(part.array, (np.arange(10) + 2 * PAGE) % 251)
    part.close()  # the parent's view stays good
    assert not whole.closed
    assert view[2 * PAGE] == 2 * PAGE % 251


@pytest.mark.parametrize(("start", "nbytes"), [(-PAGE, 1), (1, 1), (0, 0), (PAGE, 2), (2 * PAGE, 1), (0, PAGE + 2)])
def test_a_slice_that_is_none(device: npu.Device, start: int, nbytes: int) -> None:
    with device.buffer(PAGE + 1) as buffer, pytest.raises(ValueError, match="slice: "):
        buffer.slice(start, nbytes)


# ---- dropping, in any order ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that writes down what is destroyed, and is the simulator otherwise."""
    simulator = simulator_path()
    return compile_c(
        tmp_path_factory.mktemp("recorder") / "librecorder.so",
        [Path(__file__).parent / "recording_runtime.c", simulator],
        "-shared",
        "-fPIC",
        f"-Wl,-rpath,{simulator.parent}",
        "-Wl,--no-as-needed",
    )


SETUP = """
import atexit, gc, sys
import numpy as np
import npumatmul as npu
device = npu.Device()
context = device.context(npu.MatmulType.INT8_INT8_INT32, 4, 64, 32)
a, b, c = (device.buffer(each.size) for each in (context.a, context.b, context.c))
context.bind(a=a, b=b, c=c)
context.run()
"""


def in_a_process(recorder: Path, code: str) -> tuple[list[str], str]:
    """What was destroyed, with return codes, and what was printed."""
    environment = {**os.environ, "NPUMATMUL_LIBRARY": str(recorder)}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", SETUP + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    destroyed = done.stderr.split()
    assert all(each[0] in "MC" and each[1:] == "0" for each in destroyed), done.stderr
    return destroyed, done.stdout


ALL = ["M0", "M0", "M0", "C0", "C0"]


@pytest.mark.parametrize(
    "ending",
    [
        "pass",
        "del device",
        "del a, b, c; gc.collect()",
        "del context; gc.collect()",
        "del device; del c; gc.collect()",
        "sys.modules.clear()",
        "keep = [device, context, a]; keep.append(keep)",
        "class Holder: pass\nh = Holder(); h.me = h; h.all = (a, context, device)\ndel a, context, device, h",
        "npu.matmul(np.ones((2, 2), np.int8), np.ones((2, 2), np.int8), device=device); device.close()",
        "device.close(); context.close(); a.close()",
        "context.close(); device.close()",
        "a.close(); del device; gc.collect(); context.close()",
        "atexit.register(context.run)",
        "sys.exit(0)",
        "import builtins; builtins.kept = (context, b)",
    ],
)
def test_everything_is_given_back_in_order_however_a_program_ends(recorder: Path, ending: str) -> None:
    destroyed, _ = in_a_process(recorder, ending)
    assert destroyed.count("M0") >= 3
    assert destroyed.count("C0") >= 2
    assert destroyed[-1] == "C0"  # the context under which memory was allocated goes last
    assert destroyed.index("C0") == len(destroyed) - 2 or "matmul" in ending or "context" in ending


def test_what_waits_to_be_given_back_goes_in_order_too(recorder: Path) -> None:
    """A context that was dropped before its buffers is still destroyed after them (facts 11.5)."""
    destroyed, printed = in_a_process(recorder, "del context, a, b, c\nprint(device.stats().contexts)")
    assert destroyed == ALL
    assert printed.split() == ["1"]


def test_what_is_viewed_at_exit_is_left_to_the_system(recorder: Path) -> None:
    code = (
        "view = a.array\n"
        "class Late:\n"
        "    def __init__(self): self.view = view\n"
        "    def __del__(self): print(self.view[:2].tobytes().hex())\n"
        "late = Late()\n"
    )
    destroyed, printed = in_a_process(recorder, code)
    assert printed.split() == ["0000"]  # read after everything else was closed, and still there
    assert destroyed.count("M0") >= 2


@pytest.mark.parametrize("order", list(permutations(["device", "context", "a", "b", "c"])))
def test_dropping_in_any_order_leaves_nothing(order: tuple[str, ...]) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    device = npu.Device("sim:rk3562")
    context, (a, b, c) = bound(device)
    context.run()
    held: dict[str, Any] = {"device": device, "context": context, "a": a, "b": b, "c": c}
    session = device.session
    del device, context, a, b, c
    for name in order:
        del held[name]
    assert session.resources()[0] >= 1
    session.collect()
    assert session.resources() == (1, 0, 0)
    del session
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_cycles_with_finalizers_are_collected() -> None:
    class Holder:
        def __init__(self, device: npu.Device) -> None:
            self.me = self
            self.device = device
            self.context, self.buffers = bound(device)
            self.view = self.buffers[0].array
            self.seen: list[int] = seen

        def __del__(self) -> None:
            self.context.run()  # everything still works here
            self.seen.append(int(self.view.sum()))

    seen: list[int] = []
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Holder(npu.Device("sim"))
    gc.collect()
    gc.collect()
    assert seen == [0, 0, 0]
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_dropped_buffers_and_contexts_are_given_back_by_the_next_call(fresh_device: npu.Device) -> None:
    for _ in range(200):  # more contexts than one process can have
        bound(fresh_device)
    gc.collect()
    stats = fresh_device.stats()
    assert (stats.contexts, stats.descriptors, stats.npu_bytes) == (1, 0, 0)


def test_a_closed_device_closes_what_was_made_on_it(fresh_device: npu.Device) -> None:
    context, buffers = bound(fresh_device)
    fresh_device.close()
    assert context.closed
    assert all(buffer.closed for buffer in buffers)
    for use in (
        context.run,
        lambda: context.bind(a=buffers[0]),
        lambda: buffers[0].array,
        lambda: buffers[0].write().__enter__(),
        lambda: buffers[0].put(context.a, operands()[0]),
        lambda: buffers[2].get(context.c),
        lambda: buffers[0].slice(0, 1),
        lambda: context.set_quant_params("A", 1.0),
        lambda: fresh_device.buffer(1),
        lambda: fresh_device.context(I8, M, K, N),
        lambda: fresh_device.dynamic_context(I8, [(M, K, N)]),
    ):
        with pytest.raises(ClosedError, match="closed"):
            use()
    context.close()
    buffers[0].close()


def test_after_a_fork_the_child_gets_errors_and_destroys_nothing(fresh_device: npu.Device) -> None:
    context, buffers = bound(fresh_device)
    c = fill(context, buffers, 0)
    dynamic = fresh_device.dynamic_context(I8, [(1, K, N), (2, K, N)])
    view = buffers[0].array
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = []
        for use in (
            context.run,
            lambda: buffers[0].array,
            lambda: buffers[0].put(context.a, operands()[0]),
            lambda: context.bind(a=buffers[0]),
            lambda: dynamic.select(2, K, N),
            lambda: fresh_device.buffer(64),
            lambda: fresh_device.context(I8, M, K, N),
        ):
            try:
                use()
                told.append("nothing")
            except ClosedError as error:
                told.append("fork" if "after a fork" in str(error) else str(error))
            except BaseException as error:
                told.append(repr(error))
        for each in (context, dynamic, *buffers):
            if each is not buffers[0]:
                each.close()
        told.append(str(int(view.sum())))  # pages that were inherited can be read
        own = npu.Device("sim")
        mine, my_buffers = bound(own)
        expected = fill(mine, my_buffers, 1)
        mine.run()
        told.append(str((my_buffers[2].get(mine.c) == expected).all()))
        fresh_device.close()
        os.write(write, "|".join(told).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        told = pipe.read().split("|")
    assert os.waitpid(child, 0)[1] == 0
    assert told == ["fork"] * 7 + [str(int(view.sum())), "True"]
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)
    del view


def test_a_garbage_collector_may_run_while_things_are_closed() -> None:
    """Finalizers that come in the middle of a close must neither wait for ever nor disturb it."""
    descriptors = len(os.listdir("/proc/self/fd"))
    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        for _ in range(5):
            with npu.Device("sim:rk3562") as device:
                views = []
                for _ in range(5):
                    buffer = device.buffer(64)
                    cycle: list[Any] = [buffer, buffer.array]
                    cycle.append(cycle)
                    views.append(device.buffer(64).array)
                    bound(device)
                    del buffer, cycle
            del device, views
    finally:
        gc.set_threshold(*thresholds)
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_child_forked_while_a_lock_was_held_ends(fresh_device: npu.Device) -> None:
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with fresh_device.lock:
            held.set()
            go_on.wait(60)

    buffer = fresh_device.buffer(64)
    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of exactly this
        child = os.fork()
    if child == 0:
        buffer.close()
        fresh_device.close()
        del buffer
        gc.collect()
        os._exit(7)
    go_on.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


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

    monkeypatch.setitem(device.runtime._functions, "rknn_matmul_run", slow)
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
    for name in ("rknn_matmul_set_io_mem", "rknn_mem_sync", "rknn_matmul_run"):
        with monkeypatch.context() as patch:
            patch.setitem(device.runtime._functions, name, lambda *_: -1)
            with pytest.raises(errors.RknnFail, match=name):
                context.run()
        context.run()
        np.testing.assert_array_equal(buffers[2].get(context.c), c)
        c = fill(context, buffers, len(name))


def test_a_context_that_reports_something_else_is_refused(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    create = device.runtime.matmul_create

    def lying(info: Any) -> Any:
        ctx, io_attr = create(info)
        io_attr.B.size += 1
        return ctx, io_attr

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
