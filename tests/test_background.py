"""Products in the background: futures, cancelling, the worker thread, and interrupts of those who wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul.errors import ClosedError


def ones(*shape: int, dtype: Any = np.int8) -> np.ndarray:
    return np.ones(shape, dtype)


def test_futures_arrive_in_order_with_results_and_exceptions(device: npu.Device) -> None:
    rng = np.random.default_rng(0)
    pairs = [[rng.integers(-99, 99, shape, np.int8) for shape in ((9, 30), (30, 5))] for _ in range(8)]
    futures = [npu.matmul_async(a, b, device=device) for a, b in pairs]
    for (a, b), future in zip(pairs, futures, strict=True):
        np.testing.assert_array_equal(future.result(60), a.astype(np.int32) @ b.astype(np.int32))
    with pytest.raises(ValueError, match="K = 3"):
        npu.matmul_async(ones(2, 3), ones(4, 2), device=device).result(60)
    with pytest.raises(TypeError, match="float64"):
        npu.matmul_async(np.ones((2, 2)), ones(2, 2), device=device).result(60)
    done, pending = concurrent.futures.wait([npu.matmul_async(ones(1, 1), ones(1, 1), device=device)], 60)
    assert (len(done), len(pending)) == (1, 0)


def test_futures_can_be_awaited(device: npu.Device) -> None:
    async def work() -> list[Any]:
        with npu.Matmul(ones(2, 3), ones(3, 2), device=device) as product:
            results = await asyncio.gather(
                *(product.submit() for _ in range(3)), npu.matmul_async(ones(1, 2), ones(2, 1), device=device)
            )
            with pytest.raises(ValueError, match="out has shape"):
                await product.submit(np.zeros((1, 1), np.int32))
        return results

    assert [result.tolist() for result in asyncio.run(work())] == [[[3, 3], [3, 3]]] * 3 + [[[2]]]


class Gate:
    """Holds a device's worker until it is opened."""

    def __init__(self, device: npu.Device) -> None:
        self.inside, self.opened = threading.Event(), threading.Event()
        self.array = ones(1, 1).view(_Held)
        self.array.gate = self
        self.future = npu.matmul_async(self.array, ones(1, 1), device=device)
        assert self.inside.wait(60)


class _Held(np.ndarray):
    """Its result is wrapped by the worker, which waits there."""

    gate: Gate | None = None
    __array_priority__ = 10

    def __array_wrap__(self, array: np.ndarray, *_: Any) -> Any:
        if self.gate is not None:
            self.gate.inside.set()
            assert self.gate.opened.wait(60)
        return array


def test_what_has_not_begun_can_be_cancelled(device: npu.Device) -> None:
    gate = Gate(device)
    out = np.full((1, 1), 7, np.int32)
    product = npu.Matmul(ones(1, 2), ones(2, 1), device=device)
    waiting, kept = product.submit(out), product.submit()
    product.reset_operands(a=ones(1, 2) * 9)  # those submitted keep their operands
    product.close()
    assert not gate.future.cancel()  # has begun: it is completed
    assert waiting.cancel()
    gate.opened.set()
    assert gate.future.result(60) == 1
    assert kept.result(60) == 2
    assert out == 7
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result(60)


def test_a_cancelled_task_cancels_its_product(device: npu.Device) -> None:
    gate = Gate(device)
    out = np.full((1, 1), 7, np.int32)

    async def work() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(npu.matmul_async(ones(1, 1), ones(1, 1), out, device=device), 0.01)

    asyncio.run(work())
    gate.opened.set()
    assert npu.matmul_async(ones(1, 1), ones(1, 1), device=device).result(60) == 1  # comes after it
    assert out == 7


def test_the_worker_starts_late_and_ends_with_its_device() -> None:
    def workers() -> int:
        return sum("npumatmul sim:rk3576" in thread.name for thread in threading.enumerate())

    device = npu.Device("sim:rk3576")
    npu.matmul(ones(1, 1), ones(1, 1), device=device)
    assert workers() == 0
    npu.matmul_async(ones(1, 1), ones(1, 1), device=device).result(60)
    assert workers() == 1
    gate = Gate(device)
    waiting = npu.matmul_async(ones(1, 1), ones(1, 1), device=device)
    closer = threading.Thread(target=device.close)
    closer.start()
    with pytest.raises(concurrent.futures.CancelledError):
        waiting.result(60)
    gate.opened.set()
    assert gate.future.result(60) == 1
    closer.join(60)
    for _ in range(600):
        if not workers():
            break
        time.sleep(0.1)
    assert workers() == 0
    with pytest.raises(ClosedError, match="closed"):
        npu.matmul_async(ones(1, 1), ones(1, 1), device=device)


def test_submitting_waits_for_nobody(fresh_device: npu.Device) -> None:
    """Neither for a product that runs, which holds the device, nor for one that packs."""
    held, done = threading.Event(), threading.Event()

    def run_long() -> None:
        with fresh_device.lock:
            held.set()
            assert done.wait(60)

    product = npu.Matmul(ones(1, 2), ones(2, 1), device=fresh_device)
    runner = threading.Thread(target=run_long)
    runner.start()
    assert held.wait(60)
    futures: list[npu.MatmulFuture] = []

    def submit() -> None:
        futures.extend([npu.matmul_async(ones(1, 2), ones(2, 1), device=fresh_device), product.submit()])
        futures.append(product.submit())  # the worker waits for the device with the first one, packing

    submitter = threading.Thread(target=submit)
    submitter.start()
    submitter.join(30)
    blocked = submitter.is_alive()
    done.set()
    runner.join(60)
    submitter.join(60)
    assert not blocked
    assert [future.result(60).item() for future in futures] == [2, 2, 2]
    product.close()


def test_settings_of_the_caller_apply(device: npu.Device, fresh_device: npu.Device) -> None:
    with npu.config(fallback="numpy"):
        future = npu.matmul_async(np.ones((1, 2)), np.ones((2, 1)), device=device)
    assert future.result(60).dtype == np.float64
    before = fresh_device.stats().run_calls
    with npu.use_device(fresh_device):
        future = npu.matmul_async(ones(1, 2), ones(2, 1))
    future.result(60)
    assert fresh_device.stats().run_calls == before + 1


def test_an_interrupted_wait_leaves_the_device_usable(device: npu.Device) -> None:
    gate = Gate(device)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        gate.future.result(60)
    timer.join()
    assert (npu.matmul(ones(1, 2), ones(2, 1), device=device) == 2).all()  # meanwhile
    gate.opened.set()
    assert gate.future.result(60) == 1


def test_an_interrupted_product_leaves_the_device_usable(fresh_device: npu.Device) -> None:
    """A KeyboardInterrupt at any moment of a loop of products, packing included."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 9, (60, 700), np.int8), rng.integers(-9, 9, (700, 500), np.int8)
    expected = a.astype(np.int32) @ b.astype(np.int32)

    def work(timer: threading.Timer) -> None:
        timer.start()
        while True:
            npu.matmul(a, b, device=fresh_device)

    for delay in (0.011, 0.023, 0.037, 0.051):
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            work(timer)
        timer.join()
        np.testing.assert_array_equal(npu.matmul(a, b, device=fresh_device), expected)
    gc.collect()  # what an interrupted call had packed hung on its frames
    fresh_device.stats()
    assert fresh_device.weights.bytes_used == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 warns of it
def test_an_inherited_future_says_so_instead_of_waiting_for_ever(device: npu.Device) -> None:
    gate = Gate(device)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            gate.future.result()
            message = "no error"
        except ClosedError as error:
            message = str(error)
            with npu.Device("sim:rk3588") as own:
                message += f" | {npu.matmul_async(ones(1, 2), ones(2, 1), device=own).result(60)}"
        except BaseException as error:
            message = f"unexpected: {error!r}"
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    gate.opened.set()
    with os.fdopen(read) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    assert "cannot be waited for after a fork" in message
    assert message.endswith("| [[2]]")
