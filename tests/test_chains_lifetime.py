"""Chains of products of NpuArrays: failures, memory, lifetimes, threads and interrupts."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from chaining import chained, floats, layer
from interrupts import interrupted_at

import npumatmul as npu
from npumatmul import sim
from npumatmul.errors import ClosedError, NotFiniteError, NpuMemoryError, RknnTimeout
from npumatmul.ops.array import pending as array_pending
from npumatmul.planning.product import plan_matmul


@pytest.fixture(autouse=True)
def _here(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small results are deferred here, too."""
    monkeypatch.setattr("npumatmul.ops.array.multiply.AT_ONCE", 0)
    with npu.use_device(device):
        yield


def test_a_row_that_is_not_finite_is_named(device: npu.Device) -> None:
    a = np.ones((700, 64), np.float32)
    a[613, 3] = a[655, 3] = np.inf
    x = npu.asarray(a) @ npu.pack(np.eye(64, dtype=np.float32))
    for kind in ("w8a8", "static", "w4a8", "hadamard", "w8a8_wasym_aasym"):
        w = layer(kind, 64, 700)[0]
        with pytest.raises(NotFiniteError, match="row 613 "):
            x @ w
    assert x.deferred is not None
    np.testing.assert_array_equal(x.numpy()[:600], a[:600])


def test_results_outlive_their_weight(device: npu.Device) -> None:
    a, (w, options) = floats(37, 64), layer("w8a8_wasym_aasym", 64, 96)
    expected = npu.matmul(a, w, **options)
    x = npu.matmul(npu.asarray(a), w, **options)
    w.close()
    del w
    gc.collect()
    np.testing.assert_array_equal((x @ layer("w8a8", 96, 32)[0]).numpy(), expected @ layer("w8a8", 96, 32)[0])
    np.testing.assert_array_equal(x.numpy(), expected)


def test_memory_is_counted_kept_and_given_back(fresh_device: npu.Device) -> None:
    device = fresh_device
    with npu.use_device(device):
        a, w = floats(300, 64), npu.pack(floats(64, 512), "w8a8")
        expected = a @ w
        npu.empty_cache(device)
        empty = device.memory_stats()
        x = npu.asarray(a)
        y = x @ w
        assert device.memory_stats().domains[0].workspaces >= 300 * 512 * 4
        npu.empty_cache(device)
        assert device.memory_stats().domains[0].workspaces >= 300 * 512 * 4
        np.testing.assert_array_equal(y.numpy(), expected)
        y.close()
        npu.empty_cache(device)
        z = x @ w
        del z
        with x @ w as z:
            pass
        assert z.closed
        x.close()
        del x
        npu.empty_cache(device)
        assert device.memory_stats().nbytes == empty.nbytes
        with pytest.raises(ClosedError, match="closed"):
            z.numpy()
        assert "closed" in repr(z)


def test_many_products_leave_nothing_behind(fresh_device: npu.Device) -> None:
    device = fresh_device
    with npu.use_device(device):
        layers = [layer("w8a8", 64, 96), layer("gelu", 96, 160), layer("w4a8", 160, 64)]

        def run(times: int) -> None:
            for turn in range(times):
                x = chained(npu.asarray(floats(1 + turn % 40, 64)), layers)
                if turn % 3 == 0:
                    x.numpy()
                elif turn % 3 == 1:
                    x.close()

        run(120)  # every number of rows is read, closed and dropped
        gc.collect()
        held = device.memory_stats()
        run(400)
        gc.collect()
        stats = device.memory_stats()
        assert (stats.descriptors, stats.nbytes) == (held.descriptors, held.nbytes)
        npu.empty_cache(device)
        assert device.memory_stats().domains[0].workspaces == 0


def test_old_results_are_stored_where_many_are_unread(
    fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_pending, "_BUFFERS_MOST", 5)
    with npu.use_device(fresh_device):
        w = layer("w8a8", 64, 96)[0]
        arrays = [floats(7, 64, seed=seed) for seed in range(12)]
        results = [npu.asarray(a) @ w for a in arrays]
        unread = [result.deferred is not None for result in results]
        assert unread == [False] * 7 + [True] * 5
        for a, result in zip(arrays, results, strict=True):
            np.testing.assert_array_equal(result.numpy(), a @ w)


def test_without_room_a_result_is_stored_at_once_or_read_later(fresh_device: npu.Device) -> None:
    device = fresh_device
    with npu.use_device(device):
        a, w = floats(300, 64), layer("w8a8", 64, 512)[0]
        expected = a @ w
        x = npu.asarray(a)
        y = x @ w
        npu.empty_cache(device)
        npu.memory_limit(device.memory_stats().nbytes + 4096, device)
        for _ in range(2):
            with pytest.raises(NpuMemoryError, match="limit"):
                y.numpy()
        npu.memory_limit(None, device)
        np.testing.assert_array_equal((y @ layer("w8a8", 512, 32)[0]).numpy(), expected @ layer("w8a8", 512, 32)[0])
        np.testing.assert_array_equal(y.numpy(), expected)
        y.close()
        del y
        npu.empty_cache(device)
        npu.memory_limit(device.memory_stats().nbytes + 2 * 2**20, device)
        z = x @ w  # C of the core and the array fit, a second C would
        np.testing.assert_array_equal(z.numpy(), expected)


def test_a_closed_device_says_so() -> None:
    with npu.Device("sim:rk3588") as opened, npu.use_device(opened):
        w = layer("w8a8", 64, 96)[0]
        x = npu.asarray(floats(3, 64)) @ w
        y = npu.asarray(floats(3, 64)) @ w
        y.numpy()
    assert x.closed
    for read in (npu.NpuArray.numpy, np.asarray, lambda each: each @ floats(96, 8), lambda each: each.buffer):
        with pytest.raises(ClosedError):
            read(x)
    x.close()
    assert "closed" in repr(x)
    del x
    gc.collect()


def test_a_forked_child_is_told(fresh_device: npu.Device) -> None:
    with npu.use_device(fresh_device):
        x = npu.asarray(floats(3, 64)) @ layer("w8a8", 64, 96)[0]
        child = os.fork()
        if child == 0:
            try:
                x.numpy()
            except ClosedError:
                x.close()
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert x.numpy().shape == (3, 96)


def test_a_run_that_fails_is_repeated_and_the_result_is_right(fresh_device: npu.Device) -> None:
    device = fresh_device
    with npu.use_device(device):
        a, layers = floats(37, 64), [layer("w8a8", 64, 96), layer("w8a8", 96, 64)]
        expected = chained(a, layers)
        x = npu.asarray(a)
        for after in range(4):
            with sim.configured(device, faults=f"run:after={after}:times=1:code=-2"):
                np.testing.assert_array_equal(chained(x, layers).numpy(), expected)
        halfway = npu.matmul(x, layers[0][0])
        with sim.configured(device, faults="run:code=-2"), pytest.raises(RknnTimeout, match="in vain"):
            halfway @ layers[1][0]
        assert halfway.deferred is not None
        np.testing.assert_array_equal((halfway @ layers[1][0]).numpy(), expected)


def test_threads_share_results(fresh_device: npu.Device) -> None:
    with npu.use_device(fresh_device):
        first, second = layer("w8a8", 64, 300)[0], layer("w8a8", 300, 64)[0]
        a = floats(70, 64)
        halfway, expected = a @ first, a @ first @ second
        barrier = threading.Barrier(6)

        def work(index: int, x: npu.NpuArray) -> None:
            barrier.wait()
            if index % 3 == 0:
                np.testing.assert_array_equal(x.numpy(writable=False), halfway)
            else:
                np.testing.assert_array_equal((x @ second).numpy(writable=False), expected)

        with ThreadPoolExecutor(6) as pool:
            for _ in range(20):
                x = npu.asarray(a) @ first
                list(pool.map(work, range(6), [x] * 6))


def test_an_interrupt_anywhere_leaves_results_right_and_nothing_behind(
    fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = fresh_device
    dropped: list[str] = []  # Python drops an interrupt that comes while it cleans up an object
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: dropped.append(repr(unraisable.object)))
    with npu.use_device(device):
        a, layers = floats(37, 64), [layer("w8a8", 64, 96), layer("gelu", 96, 64)]
        expected = chained(a, layers)
        halfway = npu.asarray(a) @ layers[0][0]
        (halfway @ layers[1][0]).numpy()
        x = npu.asarray(a)
        chained(x, layers).numpy()

        def work() -> None:
            result = chained(x, layers)
            result.numpy()

        work()
        gc.collect()
        npu.empty_cache(device)
        before, position = device.stats(), 0
        work()  # contexts are made
        while interrupted_at(position, work):
            position += 5
            if position % 100 == 0:
                gc.collect()  # tracebacks hold results
            np.testing.assert_array_equal(npu.matmul(halfway, layers[1][0], **layers[1][1]).numpy(), expected)
        gc.collect()
        assert position > 100
        assert halfway.deferred is not None
        npu.empty_cache(device)
        assert device.stats().descriptors <= before.descriptors + sum(
            "finalize" in each or "__del__" in each for each in dropped
        )
        assert device.stats().contexts == before.contexts


def test_chains_of_many_rows_with_narrow_weights(fresh_device: npu.Device) -> None:
    """Cores share their rows, with what is deferred as with what is stored."""
    random = np.random.default_rng(6)
    values = random.integers(-3, 4, (700, 1024)).astype(np.int8)
    weights = [random.integers(-2, 3, shape).astype(np.float32) / 8 for shape in ((1024, 128), (128, 1024), (1024, 64))]
    with npu.use_device(fresh_device):
        packed = [npu.pack(w, "w8a8") for w in weights]
        assert packed[0].plan is not None
        assert plan_matmul(700, packed[0].plan).range_cores
        alone = values.astype(np.float32)
        chained = npu.asarray(alone)
        for each in packed:
            alone = npu.matmul(alone, each)
            chained = npu.matmul(chained, each)
        np.testing.assert_array_equal(chained.numpy(writable=False), alone)
