"""Views, closing, dropping, forking: everything is given back, once, and in order."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compiling import compile_c
from objects import I8, PAGE, K, M, N, bound, fill, operands

import npumatmul as npu
from npumatmul import Buffer
from npumatmul.errors import ClosedError
from npumatmul.rknn.discovery import simulator_path

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
    # the memory's, and the four of the context under which it was allocated
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1 + 4
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


def test_what_no_living_slice_of_an_arena_covers_is_free() -> None:
    """Slices that are given back and slices that are dropped, in any order."""
    random = np.random.default_rng(3)
    with npu.Device("sim:rk3588") as device:
        memory, held = device.weights, []
        for step in range(1200):
            if not held or random.random() < 0.55:
                sizes = [int(size) for size in random.integers(1, 200_000, random.integers(1, 5))]
                held.append(memory.allocate([sizes], together=True))
            else:
                pieces = held.pop(int(random.integers(len(held))))
                if random.random() < 0.5:
                    memory.release(pieces)
                    memory.release(pieces)
                del pieces
            if step % 10:
                continue
            assert memory.bytes_used == sum(piece.size for pieces in held for piece in pieces)
            for arena in memory.arenas:
                covered = np.zeros(arena.size // 4096, int)
                for start, length in [*arena.free(), *((piece.start, piece.reserved) for piece in arena.slices)]:
                    covered[start // 4096 : (start + length) // 4096] += 1
                assert (covered == 1).all()
                ends = [start + length for start, length in arena.free()]
                assert all(start > end for (start, _), end in zip(arena.free()[1:], ends, strict=False))  # joined
        held.clear()
        assert memory.bytes_used == 0
        device.empty_cache()
        assert device.stats().npu_bytes == 0
