"""Races: devices, arrays and programs that end while other threads look."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import errors
from npumatmul.device.living import Living

RNG = np.random.default_rng(31)
A = RNG.integers(-9, 9, (300, 576), dtype=np.int8)
B = RNG.integers(-9, 9, (576, 1536), dtype=np.int8)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[npu.Device]:
    """In a library of its own, whose counters are this device's alone."""
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "2.1.0")
    with npu.Device("sim:rk3588") as opened:
        yield opened


def at_once(*works: Callable[[], object], times: int = 150) -> list[BaseException]:
    """Do things in a thread each, so many times; what they raised. Threads are switched as often as Python can."""
    raised: list[BaseException] = []

    def repeat(work: Callable[[], object]) -> None:
        try:
            for _ in range(times):
                work()
        except BaseException as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return raised


def test_devices_and_arrays_may_come_and_go_while_others_look(device: npu.Device) -> None:
    kept = [npu.asarray(A[:1, :4], device=device) for _ in range(20)]
    held = [npu.Device("sim:rk3562") for _ in range(10)]

    def opens() -> None:
        npu.Device("sim:rk3566").close()

    def looks() -> None:
        npu.current_device("sim:rk3588")
        npu.memory_stats("sim:rk3588")

    def arrays() -> None:
        npu.asarray(A[:1, :4], device=device)
        npu.asarray(kept[0].numpy(), device=device)

    assert at_once(opens, opens, looks, looks, arrays, arrays, times=60) == []
    for each in held:
        each.close()


def test_what_is_discarded_while_another_looks_may_end() -> None:
    """An error in what is called back at its end would be one that nobody can catch: pytest raises it."""

    class Thing:
        pass

    things: Living[Thing] = Living()
    thing, kept = Thing(), Thing()
    things.add(thing)
    things.add(kept)
    looks = iter(things)
    next(looks)
    things.discard(thing)
    del thing
    gc.collect()
    assert list(looks) == [kept] == list(things)


def test_submitting_to_a_device_that_is_closed_raises_that_it_is_closed() -> None:
    for _ in range(15):
        opened = npu.Device("sim:rk3588")
        futures = [npu.matmul_async(A[:1, :4], B[:4, :4], device=opened)]

        def submits(opened: npu.Device = opened, futures: list[Any] = futures) -> None:
            futures.append(npu.matmul_async(A[:1, :4], B[:4, :4], device=opened))

        raised = at_once(submits, submits, opened.close, times=20)
        assert all(isinstance(error, errors.ClosedError) for error in raised), raised
        with pytest.raises(errors.ClosedError):
            submits()
        for future in futures:
            if not future.cancelled():
                error = future.exception(60)
                assert error is None or isinstance(error, errors.ClosedError)


def test_what_was_submitted_is_computed_before_a_program_ends() -> None:
    program = """
        import atexit
        import numpy as np

        out = [np.zeros((4, 4), np.int32) for _ in range(20)]
        atexit.register(lambda: print(sum(int(each.sum()) for each in out)))  # the last to be called
        import npumatmul as npu

        a = np.ones((4, 4), np.int8)
        for each in out:
            npu.matmul_async(a, a, out=each)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == str(20 * 4 * 16)


def test_closed_devices_are_not_kept() -> None:
    from npumatmul.device.device import held_open

    npu.current_device("sim:rk3562").close()  # which another test may have left open
    held = len(held_open)
    for _ in range(3):
        npu.current_device("sim:rk3562").close()
    assert len(held_open) == held


def test_a_child_of_a_fork_finds_devices_though_a_thread_was_looking(tmp_path: Path) -> None:
    """The lock under which devices are looked for may have been held by a thread that the child does not have."""
    program = """
        import os, threading, warnings
        import npumatmul as npu
        from npumatmul.device import current

        warnings.simplefilter("ignore")
        held = threading.Event()
        def hold():
            with current._lock:
                held.set()
                threading.Event().wait(60)
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        child = os.fork()
        if child == 0:
            npu.current_device("sim:rk3562").close()
            os._exit(7)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "7\n"
