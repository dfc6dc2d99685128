"""Signals while the library is at work: what their handlers raise takes effect, and leaves nothing behind."""

from __future__ import annotations

import ctypes
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
from compiling import compile_c
from interrupts import handling, interrupted_at, interrupted_until_given_up, raising

import npumatmul as npu
from npumatmul import errors, sim
from npumatmul.chips.types import MatmulType
from npumatmul.device import given_up
from npumatmul.rknn.notes import noted
from npumatmul.running.bound import PROVEN

RNG = np.random.default_rng(31)
A = RNG.integers(-9, 9, (300, 576), dtype=np.int8)
B = RNG.integers(-9, 9, (576, 1536), dtype=np.int8)
EXPECTED = A.astype(np.int32) @ B.astype(np.int32)
CORES = 3


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[npu.Device]:
    """In a library of its own, whose counters are this device's alone."""
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "2.1.0")
    with npu.Device("sim:rk3588") as opened:
        yield opened


@contextmanager
def signalled(device: npu.Device) -> Iterator[None]:
    """Have a SIGALRM come as soon as a device runs something, whose counters are 0."""

    def send() -> None:
        while not sim.counters(device).run_calls:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGALRM)

    sending = threading.Thread(target=send)
    sending.start()
    yield
    sending.join()


class Ways:
    """The ways in which the main thread has a device compute, each of them giving what is right."""

    def __init__(self, device: npu.Device) -> None:
        self.device = device
        self.packed = npu.pack(B, device=device)
        self.wide = npu.pack(B[:, :64].astype(np.float16), device=device)
        self.halves = npu.asarray(A.astype(np.float16), device=device)
        self.array = npu.asarray(A, device=device)
        self.context = device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32)
        self.buffers = [device.buffer(each.size) for each in (self.context.a, self.context.b, self.context.c)]
        self.buffers[0].put(self.context.a, A[:4, :64])
        self.buffers[1].put(self.context.b, B[:64, :32])

    def rows(self) -> None:
        np.testing.assert_array_equal(A @ self.packed, EXPECTED)

    def row(self) -> None:
        np.testing.assert_array_equal(A[:1] @ self.packed, EXPECTED[:1])

    def deferred(self) -> None:
        np.testing.assert_array_equal(npu.matmul(self.array, self.packed).numpy(), EXPECTED)

    def in_place(self) -> None:
        np.testing.assert_array_equal(npu.matmul(self.halves, self.wide).numpy(), EXPECTED[:, :64])

    def context_of_a_user(self) -> None:
        context = self.context
        if context.broken:
            context = self.context = self.device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32)
            self.buffers[2] = self.device.buffer(context.c.size)
            for buffer, attr, values in ((0, context.a, A[:4, :64]), (1, context.b, B[:64, :32])):
                self.buffers[buffer] = self.device.buffer(attr.size)
                self.buffers[buffer].put(attr, values)
        a, b, c = self.buffers
        context.bind(a=a, b=b, c=c)
        context.run()
        np.testing.assert_array_equal(c.get(context.c), A[:4, :64].astype(np.int32) @ B[:64, :32].astype(np.int32))


WAYS = ["rows", "row", "deferred", "in_place", "context_of_a_user"]


# ---- long products -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["rows", "chain", "in_place"])
def test_an_interrupt_ends_a_long_product_with_the_runs_that_are_going_on(device: npu.Device, way: str) -> None:
    """Hundreds of runs are left; how many there were is counted when the handler is called."""
    rows = 40_000
    a = RNG.integers(-2, 3, (rows, 64)).astype(np.float16)
    w = npu.pack(RNG.integers(-2, 3, (64, 64)).astype(np.float16), device=device)
    x = npu.asarray(a, device=device) if way != "rows" else a
    out = np.zeros((rows, 64), np.float16)
    work: dict[str, Callable[[], Any]] = {
        "rows": lambda: npu.matmul(a, w, out=out),
        "chain": lambda: npu.matmul(npu.matmul(x, w), w),
        "in_place": lambda: npu.matmul(x, w),
    }
    runs: list[int] = []
    every = {"rows": 70, "chain": 140, "in_place": 70}[way]
    with (
        handling(signal.SIGALRM, raising(lambda: runs.append(sim.counters(device).run_calls))),
        sim.configured(device, faults="run:delay_ms=100"),
    ):
        sim.reset_counters(device)
        with signalled(device), pytest.raises(KeyboardInterrupt):
            work[way]()
        (begun,) = runs
        done = sim.counters(device).run_calls
        assert 0 < begun <= done
        assert done - begun <= CORES, "those that were going on, and none that was begun later"
        assert done < every // 2
        assert not device.session.leases._at_work()
    result = work[way]()
    once = a.astype(np.float32) @ np.asarray(w.unpack(), np.float32)
    expected = once @ np.asarray(w.unpack(), np.float32) if way == "chain" else once
    np.testing.assert_array_equal(np.asarray(result, np.float32), expected)
    contexts = device.stats().contexts
    work[way]()
    assert device.stats().contexts == contexts


def test_a_handler_that_raises_nothing_changes_nothing(device: npu.Device) -> None:
    """It may even compute something itself."""
    calls: list[int] = []
    small = npu.pack(B[:64, :32], device=device)

    def handle(*_: object) -> None:
        calls.append(sim.counters(device).run_calls)
        np.testing.assert_array_equal(A[:2, :64] @ small, A[:2, :64].astype(np.int32) @ B[:64, :32])

    with (
        npu.pack(B, device=device) as packed,
        handling(signal.SIGALRM, handle),
        sim.configured(device, faults="run:delay_ms=100"),
    ):
        sim.reset_counters(device)
        with signalled(device):
            np.testing.assert_array_equal(np.tile(A, (10, 1)) @ packed, np.tile(EXPECTED, (10, 1)))
        assert 0 < calls[0] < sim.counters(device).run_calls


def test_other_threads_are_not_asked(device: npu.Device) -> None:
    """Their products go on while the main thread handles signals."""
    with (
        npu.pack(B, device=device) as packed,
        handling(signal.SIGALRM, raising(lambda: None)),
        sim.configured(device, faults="run:delay_ms=100"),
    ):
        results: SimpleQueue[Any] = SimpleQueue()
        thread = threading.Thread(target=lambda: results.put(np.tile(A, (8, 1)) @ packed))
        sim.reset_counters(device)
        thread.start()
        with signalled(device), pytest.raises(KeyboardInterrupt):
            results.get()
        np.testing.assert_array_equal(results.get(timeout=60), np.tile(EXPECTED, (8, 1)))
        thread.join()


# ---- runs that hang ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_hangs_is_given_up_at_the_second_interrupt(device: npu.Device, way: str) -> None:
    """Its contexts and its memory stay its own until it ends, whatever is computed, dropped and closed meanwhile."""
    ways = Ways(device)
    for each in WAYS:
        getattr(ways, each)()
    before = device.stats()
    with sim.configured(device, faults="run:times=3:hang"):
        interrupted_until_given_up(device, getattr(ways, way))
        held = device.session.leases.given_up
        assert len(held) == 1
    # the end of the block lets hanging runs return; from here on there may be nothing left of it
    for each in WAYS:
        getattr(ways, each)()
    device.empty_cache()
    assert not device.session.leases.given_up
    for each in WAYS:
        getattr(ways, each)()
    after = device.stats()
    assert after.contexts == before.contexts


def test_what_a_run_that_hangs_was_given_stays_its_own(device: npu.Device) -> None:
    """Others have contexts and memory of their own; nothing is destroyed under it, and closing waits for nobody."""
    ways = Ways(device)
    ways.rows()
    with npu.Device("sim:rk3576") as other, sim.configured(other, faults="run:times=1:hang"):
        interrupted_until_given_up(device, ways.rows)
        (lease,) = device.session.leases.given_up
        ways.rows()  # only one run hangs
        ways.packed.close()
        with npu.pack(-B, device=device) as negative:
            np.testing.assert_array_equal(A @ negative, -EXPECTED)
        for array in (ways.array, ways.halves):
            array.close()
        device.empty_cache()
        lost = sim.counters(other)
        device.close()
        assert device.closed
        assert not lease.over
        left = sim.counters(other)
        assert lost.contexts_now - left.contexts_now < lost.contexts_now - 2, "not those that the runs are in"
        assert left.bytes_now >= B.nbytes, "nor the weight, though it was closed"
    while any(each.executor.lost for each in given_up._all if each.leases is device.session.leases):
        pass
    device.close()  # what was left goes the second time
    assert device.session.resources() == (0, 0, 0)


PROGRAM = """
import signal, sys
import numpy as np
import npumatmul as npu
from npumatmul import sim

signal.signal(signal.SIGINT, signal.default_int_handler)
device = npu.Device("sim:rk3588")
a, b = np.ones((4, 64), np.float16), np.ones((64, 64), np.float16)
packed, x = npu.pack(b, device=device), npu.asarray(a, device=device)
a @ packed
faults = sim.configured(device, faults="run:hang")
faults.__enter__()
"""
ENDINGS = {
    "matmul": "print('up', flush=True); npu.matmul(a, b, device=device)",
    "packed": "print('up', flush=True); a @ packed",
    "chain": "print('up', flush=True); npu.matmul(npu.matmul(x, packed), packed).numpy()",
    "in the background": "print('up', flush=True); npu.matmul_async(a, b, device=device).result()",
    "closing": "import threading\nthreading.Thread(target=lambda: a @ packed, daemon=True).start()\n"
    "while not sim.counters(device).run_calls: pass\nprint('up', flush=True); device.close()",
    "caught": "print('up', flush=True)\ntry: a @ packed\nexcept KeyboardInterrupt: device.close(); raise",
}


def pressed(program: str, presses: int = 3) -> subprocess.CompletedProcess[str]:
    """Run a program that says when it is to be interrupted, as often as it takes, and press Ctrl-C."""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        for _ in range(presses):
            try:
                process.wait(0.4)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    return subprocess.CompletedProcess(program, process.returncode, out, err)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_whose_run_hangs_ends_within_three_interrupts(ending: str) -> None:
    done = pressed(PROGRAM + ENDINGS[ending])
    assert "KeyboardInterrupt" in done.stderr
    assert done.returncode == -signal.SIGINT


def test_a_short_product_that_hangs_all_the_same_is_ended_by_the_third_interrupt() -> None:
    """Computed so often it is known to be short, and nobody waits for signals meanwhile."""
    program = PROGRAM.replace("a @ packed\n", f"for _ in range({10 * PROVEN}): a @ packed\n", 1)
    done = pressed(program + ENDINGS["packed"], presses=4)
    assert done.returncode == -signal.SIGINT
    assert "does not end" in done.stderr or "KeyboardInterrupt" in done.stderr


def test_a_measurement_whose_run_hangs_is_ended_by_the_third_interrupt() -> None:
    """It times the runtime's function in the main thread, without a way around."""
    program = """
import os, runpy, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["NPUMATMUL_SIM_FAULTS"] = "run:hang"
from npumatmul.rknn import Runtime
from npumatmul.rknn.discovery import simulator_path
from npumatmul.rknn.simulator import Simulator

simulator = Simulator(Runtime(simulator_path()))
def tell():
    while not simulator.read_counters()["run_calls"]: time.sleep(0.01)
    print("up", flush=True)
threading.Thread(target=tell, daemon=True).start()
sys.argv = ["npumatmul", "bench", "matmul", "--shapes", "64,512,512", "--types", "int8", "--device", "sim:rk3588"]
runpy.run_module("npumatmul.cli", run_name="__main__")
"""
    done = pressed(program, presses=4)
    assert done.returncode == -signal.SIGINT
    assert "does not end" in done.stderr


# ---- nothing is left behind ----------------------------------------------------------------------------------------


def living(device: npu.Device) -> tuple[int, int]:
    counters = sim.counters(device)
    return counters.contexts_now, counters.memories_now


def test_signals_by_a_timer_leave_nothing_behind(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they come: what the library counts is what there is, and after all it is what there was before."""
    # Python drops an interrupt that comes while it cleans up an object, and says so; pytest would keep its traceback,
    # and all that the frames there refer to.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    generator = random.Random(4)
    weight = npu.pack(B[:100, :130], device=device)

    def work() -> None:
        npu.matmul(npu.asarray(A[:5, :100], device=device), weight)
        device.buffer(4096)
        device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32)
        npu.pack(B[:64, :64], device=device)
        device.empty_cache()

    def settled() -> tuple[int, int]:
        gc.collect()
        device.stats()
        device.empty_cache()
        return living(device)

    for _ in range(5):
        work()
    before, interrupts = settled(), 0
    with handling(signal.SIGALRM, raising(lambda: None)):
        for turn in range(600):
            try:
                signal.setitimer(signal.ITIMER_REAL, generator.uniform(1e-5, 4e-3))
                work()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupts += 1
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            if turn % 100 == 99:
                contexts, _, _ = device.session.resources()
                device.stats()
                assert contexts >= before[0]
                assert settled() == before
    assert interrupts > 50
    np.testing.assert_array_equal(A[:, :100] @ weight, A[:, :100].astype(np.int32) @ B[:100, :130].astype(np.int32))
    weight.close()


# Python drops an interrupt that comes while it cleans up an object, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", ["a buffer", "a slice", "a context", "a dynamic context", "an array"])
def test_an_interrupt_at_any_point_of_making_and_giving_back_leaves_nothing(device: npu.Device, what: str) -> None:
    """The simulator has as much as the library counts, at any time."""

    def slices() -> None:
        with device.buffer(8192) as buffer, buffer.slice(4096, 64):
            pass

    makes: dict[str, Callable[[], Any]] = {
        "a buffer": lambda: device.buffer(4096).close(),
        "a slice": slices,
        "a context": lambda: device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32, core=1).close(),
        "a dynamic context": lambda: device.dynamic_context(MatmulType.INT8_INT8_INT32, [(1, 64, 32), (2, 64, 32)]),
        "an array": lambda: npu.asarray(A, device=device).close(),
    }
    makes[what]()
    device.empty_cache()
    before = living(device)
    position = 0
    while interrupted_at(position, makes[what]):
        position += 1
        device.stats()
        device.empty_cache()
        assert living(device) == before
    assert position > 5


def test_what_a_c_function_returns_is_noted_before_a_signal_is_handled(tmp_path: Path) -> None:
    """A signal that came while the function was at work is handled as soon as Python is asked for anything."""
    source = tmp_path / "signalling.c"
    source.write_text("#include <signal.h>\nint create(int number) { raise(SIGALRM); return number; }\n")
    library = ctypes.CDLL(str(compile_c(tmp_path / "signalling.so", [source], "-shared", "-fPIC")))
    said: list[int] = []
    with handling(signal.SIGALRM, raising(lambda: None)), pytest.raises(KeyboardInterrupt):
        noted(said, library.create, 7)
    assert said == [7]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("gap", range(1, 12))
def test_two_interrupts_in_a_row_leave_nothing_in_use(device: npu.Device, gap: int) -> None:
    """The second one comes while the first one is cleaned up after; nobody is busy then, without another thread."""
    ways = Ways(device)
    ways.context_of_a_user()
    ways.in_place()
    for way in ("context_of_a_user", "in_place"):
        position = 0
        while interrupted_twice(position, gap, getattr(ways, way)):
            position += 5
            assert not any(buffer.memory.in_use for buffer in (*ways.buffers, ways.halves.buffer))
        getattr(ways, way)()
    ways.context.close()
    for buffer in ways.buffers:
        buffer.close()


def interrupted_twice(position: int, gap: int, work: Callable[[], object]) -> bool:
    """As `interrupted_at`, and once more so many points later; whether the first one came."""
    events, raised = 0, 0

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal events, raised
        if "npumatmul" in frame.f_code.co_filename and event in ("call", "c_return", "return"):
            events += 1
            if events in (position + 1, position + 1 + gap) and event != "return":
                raised += 1
                raise KeyboardInterrupt

    def watched() -> None:
        sys.setprofile(profile)
        try:
            work()
        finally:
            sys.setprofile(None)

    try:
        watched()
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    return events > position


# ---- what the runtime refuses to destroy ---------------------------------------------------------------------------


@pytest.mark.parametrize("again", ["empty_cache", "close", "the same call"])
@pytest.mark.parametrize("what", ["a buffer", "a context", "a weight", "what is kept for reuse"])
def test_what_could_not_be_destroyed_counts_and_is_tried_again(
    device: npu.Device, what: str, again: str, caplog: pytest.LogCaptureFixture
) -> None:
    opened = living(device)
    buffer = device.buffer(4096)
    context = device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32)
    packed = npu.pack(B, device=device)
    A[:2] @ packed
    gives_back: dict[str, Callable[[], Any]] = {
        "a buffer": buffer.close,
        "a context": context.close,
        "a weight": lambda: (packed.close(), device.empty_cache()),
        "what is kept for reuse": device.empty_cache,
    }
    held = device.stats()
    call = "destroy" if what == "a context" else "destroy_mem"
    with sim.configured(device, faults=f"{call}:times=1:code=-1"):
        with suppress(errors.RknnFail):  # where it is asked for, and not only queued
            gives_back[what]()
        now = device.stats()
        real = sim.counters(device)
    assert (now.contexts, now.npu_bytes) == (real.contexts_now, real.bytes_now), "it counts as long as it is there"
    assert now.npu_bytes > 0 if call == "destroy_mem" else now.contexts == held.contexts
    if again == "the same call":
        gives_back[what]()
    for each in (buffer, context, packed):
        each.close()
    if again == "close":
        device.close()
        assert not any("did not destroy" in record.getMessage() for record in caplog.records)
    else:
        device.empty_cache()
        assert living(device) == opened


def test_what_cannot_be_destroyed_when_a_device_is_closed_is_told_once(
    device: npu.Device, caplog: pytest.LogCaptureFixture
) -> None:
    buffers = [device.buffer(4096) for _ in range(3)]
    with npu.Device("sim:rk3588") as other:
        before = living(other)
        with sim.configured(other, faults="destroy_mem:code=-1"):
            device.close()
            assert len([record for record in caplog.records if "did not destroy 3" in record.getMessage()]) == 1
        assert all(buffer.closed for buffer in buffers)
        device.close()
        assert living(other)[1] == before[1] - 3
