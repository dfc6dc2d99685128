"""A lease that serves one call after the other: it is one call's own at a time, whatever comes between them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import sim
from npumatmul.device.leases import Lease

RNG = np.random.default_rng(5)
A = RNG.integers(-9, 9, (1, 64)).astype(np.float16)
B = RNG.integers(-9, 9, (64, 32)).astype(np.float16)
BIAS = RNG.integers(1, 9, 32).astype(np.float32)
#: Of other contexts.
LONG, WIDE = np.ones((1, 256), np.float16), np.ones((256, 96), np.float16)
EXPECTED = A.astype(np.float32) @ B.astype(np.float32)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[npu.Device]:
    """In a library of its own, so that its faults are nobody else's."""
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "2.1.0")
    with npu.Device("sim:rk3588") as opened:
        yield opened


def multiply(weight: npu.PackedWeight) -> None:
    np.testing.assert_array_equal(npu.matmul(A, weight), EXPECTED)


def test_the_end_of_one_call_ends_no_other_one(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread is kept between saying that its call is over and forgetting the lease; others multiply meanwhile."""
    first, other = npu.pack(B, device=device), npu.pack(WIDE, device=device)
    leases, leave = device.session.leases, device.session.leases.leave
    reached, go_on = threading.Event(), threading.Event()
    slow: list[int] = []

    def late(lease: Lease) -> None:
        if threading.get_ident() in slow:
            reached.set()
            assert go_on.wait(60)
        leave(lease)

    def slowly() -> None:
        slow.append(threading.get_ident())
        multiply(first)

    def both_at_once() -> None:
        """So that each has contexts, buffers and an executor of its own."""
        with sim.configured(device, faults="run:times=1:hang"):
            sim.reset_counters(device)
            thread = threading.Thread(target=multiply, args=(first,))
            thread.start()
            while not sim.counters(device).run_calls:
                time.sleep(0.001)
            np.testing.assert_array_equal(LONG @ other, LONG @ WIDE)
        thread.join()

    both_at_once()
    monkeypatch.setattr(leases, "leave", late)
    ending = threading.Thread(target=slowly)
    ending.start()
    assert reached.wait(60)
    np.testing.assert_array_equal(LONG @ other, LONG @ WIDE)
    with sim.configured(device, faults="run:times=1:hang"):
        sim.reset_counters(device)
        running = threading.Thread(target=multiply, args=(first,))
        running.start()
        while not sim.counters(device).run_calls:
            time.sleep(0.001)
        (lease,) = leases._at_work()
        go_on.set()
        ending.join()
        assert leases._at_work() == [lease]
        assert lease.stores is not None
    running.join()
    assert leases._at_work() == []


def test_an_interrupt_before_a_lease_is_taken_again_leaves_it_alone(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the time that it is heard, the lease may be that of another thread's call."""
    weight = npu.pack(B, device=device)
    for _ in range(2):
        multiply(weight)
    leases, left = device.session.leases, list[Lease]()

    def interrupted(lease: Lease) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(leases, "enter_again", interrupted)
    monkeypatch.setattr(leases, "leave", left.append)
    with pytest.raises(KeyboardInterrupt):
        multiply(weight)
    assert left == []
    monkeypatch.undo()
    multiply(weight)


@pytest.mark.parametrize("before", [None, BIAS], ids=["plain", "with a bias"])
def test_no_call_gets_the_epilogue_of_one_that_was_interrupted(
    device: npu.Device, before: np.ndarray[Any, Any] | None
) -> None:
    """An interrupt before any line of a run; the next calls, with an epilogue and without, are right."""
    weight = npu.pack(B, device=device)
    after = BIAS if before is None else None

    def product(bias: np.ndarray[Any, Any] | None) -> None:
        expected = EXPECTED if bias is None else EXPECTED + bias
        np.testing.assert_array_equal(npu.matmul(A, weight, dtype=np.float32, bias=bias), expected)

    def interrupted_before_line(number: int) -> bool:
        lines = 0

        def trace(frame: Any, event: str, _: object) -> Any:
            nonlocal lines
            if frame.f_code.co_name != "run" or not frame.f_code.co_filename.endswith("runs.py"):
                return None
            lines += event == "line"
            if lines == number:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            npu.matmul(A, weight, dtype=np.float32, bias=after)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    for _ in range(2):
        product(before)
        product(after)
    number = 1
    product(before)
    while interrupted_before_line(number):
        product(before)
        product(after)
        product(before)
        number += 1
    assert number > 10
    for lease in device.session.leases._at_work():  # signals are not looked for before the line that ends a lease
        lease.over = True
