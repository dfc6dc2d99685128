"""Failures, hangs and interrupts while several threads and cores are at work: what is not concerned goes on."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from interrupts import interrupted_at

import npumatmul as npu
from npumatmul import errors, sim
from npumatmul.chips.types import MatmulType
from npumatmul.device.leases import is_idle
from npumatmul.planning.product import plan_matmul
from npumatmul.running.placement import Placement

RNG = np.random.default_rng(11)
A = RNG.integers(-9, 9, (24, 1000), dtype=np.int8)
B = RNG.integers(-9, 9, (1000, 6000), dtype=np.int8)
EXPECTED = (A.astype(np.float64) @ B.astype(np.float64)).astype(np.int32)  # exact: all sums are below 2**53


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened


def cores_of(packed: npu.PackedWeight, m: int) -> int:
    assert packed.plan is not None
    return plan_matmul(m, packed.plan).cores


def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within a minute")


def test_one_core_fails_and_the_result_is_right(device: npu.Device) -> None:
    with npu.pack(B, device=device) as packed:
        assert cores_of(packed, len(A)) > 1
        np.testing.assert_array_equal(A @ packed, EXPECTED)
        before = device.stats()
        for after in range(3):
            with sim.configured(device, faults=f"run:after={after}:times=1:code=-2"):
                np.testing.assert_array_equal(A @ packed, EXPECTED)
        stats = device.stats()
        assert stats.contexts == before.contexts
        assert stats.run_calls - before.run_calls > 3 * cores_of(packed, len(A))
        with sim.configured(device, faults="run:code=-2"), pytest.raises(errors.RknnTimeout, match="in vain"):
            A @ packed
        np.testing.assert_array_equal(A @ packed, EXPECTED)


def test_many_threads_under_random_faults() -> None:
    """Each product is right or an exception; afterwards everything works and nothing has grown."""
    with npu.Device("sim:rk3588") as first, npu.Device("sim:rk3576") as second:
        weights = [(npu.pack(B[:, :n], device=device), n) for device in (first, second) for n in (100, 6000)]
        for packed, n in weights:
            np.testing.assert_array_equal(A @ packed, EXPECTED[:, :n])
        for device in (first, second):
            device.empty_cache()
        before = [device.stats() for device in (first, second)]
        right, failed = [], []

        def work(index: int) -> None:
            for turn in range(8):
                packed, n = weights[(index + turn) % len(weights)]
                m = 1 + (7 * index + 5 * turn) % len(A)
                try:
                    result = A[:m] @ packed
                except errors.RknnError as error:
                    failed.append(error.code)
                else:
                    np.testing.assert_array_equal(result, EXPECTED[:m, :n])
                    right.append(m)

        faults = "run:prob=0.05:seed=3:code=-2;set_io_mem:prob=0.02:seed=5:code=-4;mem_sync:prob=0.02:seed=8:code=-1"
        with sim.configured(first, faults=faults), ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        assert set(failed) <= {-1, -2, -4}
        assert len(right) > 24  # of 48: a second failure in a row is rare
        for packed, n in weights:
            np.testing.assert_array_equal(A @ packed, EXPECTED[:, :n])
        for device, then in zip((first, second), before, strict=True):
            device.empty_cache()
            now = device.stats()
            assert (now.contexts, now.descriptors) == (then.contexts, then.descriptors)
        for packed, _ in weights:
            packed.close()


def test_others_go_on_while_a_run_hangs(device: npu.Device) -> None:
    """A hung core keeps its matmul waiting, not the other cores, other devices and contexts of users."""
    with (
        npu.Device("sim:rk3576") as other,
        npu.pack(B, device=device) as packed,
        npu.pack(B, device=other) as elsewhere,
    ):
        np.testing.assert_array_equal(A @ packed, EXPECTED)
        np.testing.assert_array_equal(A @ elsewhere, EXPECTED)
        context = device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32)
        a, b, c = (device.buffer(each.size) for each in (context.a, context.b, context.c))
        a.put(context.a, np.full((4, 64), 2, np.int8))
        b.put(context.b, np.full((64, 32), 3, np.int8))
        context.bind(a=a, b=b, c=c)
        results: list[Any] = []
        with sim.configured(device, faults="run:times=1:hang"):
            sim.reset_counters(device)
            hung = threading.Thread(target=lambda: results.append(A @ packed))
            hung.start()
            until(lambda: sim.counters(device).run_calls >= cores_of(packed, len(A)))
            np.testing.assert_array_equal(A @ elsewhere, EXPECTED)
            context.run()
            assert (c.get(context.c) == 384).all()
            assert hung.is_alive()
        hung.join(60)  # the end of the block ends the hang with a time-out
        np.testing.assert_array_equal(results[0], EXPECTED)


# ---- interrupts ----------------------------------------------------------------------------------------------------


def check_all_idle(device: npu.Device) -> None:
    """Nothing is in use: neither contexts, nor buffers, nor threads, nor weights."""
    placement = Placement.of(device)
    lent = [
        *(each for copies in placement.contexts._contexts.values() for each in copies),
        *(each for kept in placement.workspace._buffers.values() for each in kept),
        *placement._executors._all,
    ]
    assert len(lent) > 0
    assert all(map(is_idle, lent))
    assert not device.session.leases._at_work()


# Python drops an interrupt that comes while it cleans up an object, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("known", [True, False], ids=["placed", "new"])
def test_an_interrupt_at_any_point_leaves_the_device_usable(known: bool) -> None:
    with npu.Device("sim:rk3588") as device, npu.pack(B[:, :64], device=device) as packed:
        np.testing.assert_array_equal(A[:3] @ packed, EXPECTED[:3, :64])
        position, caught = 0, []
        while True:
            if not known:
                packed.products.clear()
            if not interrupted_at(position, lambda: npu.matmul(A[:3], packed), caught):
                break
            check_all_idle(device)
            caught.clear()
            position += 1 if known else 3
            np.testing.assert_array_equal(A[:3] @ packed, EXPECTED[:3, :64])
            with ThreadPoolExecutor(1) as pool:  # the lock is free: another thread gets through
                np.testing.assert_array_equal(pool.submit(npu.matmul, A[:2], packed).result(60), EXPECTED[:2, :64])
        assert position > 10
        assert device.stats().contexts == 2


def test_an_interrupt_in_a_context_of_a_user_leaves_it_usable(device: npu.Device) -> None:
    context = device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32)
    a, b, c = (device.buffer(each.size) for each in (context.a, context.b, context.c))
    a.put(context.a, np.full((4, 64), 2, np.int8))
    b.put(context.b, np.full((64, 32), 3, np.int8))
    context.bind(a=a, b=b, c=c)
    position = 0
    while interrupted_at(position, context.run):
        position += 1
        context.run()
        assert (c.get(context.c) == 384).all()
    assert position > 10
    context.close()
    for buffer in (a, b, c):
        buffer.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("arenas", ["kept", "new"])
def test_an_interrupt_while_packing_or_giving_back_holds_no_memory(device: npu.Device, arenas: str) -> None:
    """Not even until the device is closed: neither slices of arenas nor arenas, and nothing is lost by it."""
    weight = B[:700, :500]
    with npu.pack(weight, device=device) as kept:
        before = kept.nbytes
        large = npu.pack(B, device=device)  # in an arena of its own
        large.close()

        def work() -> None:
            if arenas == "new":
                device.empty_cache()
            packed = npu.pack(weight if arenas == "kept" else B, device=device)
            packed.close()
            device.stats()

        device.empty_cache()
        npu_bytes = device.stats().npu_bytes
        position = 0
        while interrupted_at(position, work):
            position += 1 if arenas == "kept" else 3
            gc.collect(0)
            device.stats()
            assert device.weights.bytes_used == before
            device.empty_cache()
            assert device.stats().npu_bytes == npu_bytes
        assert position > 100
        np.testing.assert_array_equal(npu.matmul(A[:, :700], kept), A[:, :700].astype(np.int32) @ weight)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("m", [8, 300], ids=["one core", "several cores"])
def test_an_interrupt_in_a_product_in_place_leaves_its_arrays_usable(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch, m: int
) -> None:
    monkeypatch.setattr(
        "npumatmul.running.in_place.plan_matmul", lambda *_, **__: SimpleNamespace(modelled_seconds=None)
    )
    a, b = (RNG.integers(-9, 9, shape).astype(np.float16) for shape in ((m, 576), (576, 1536)))
    expected = a.astype(np.float32) @ b.astype(np.float32)
    x, w, out = npu.asarray(a, device=device), npu.pack(b, device=device), npu.empty((m, 1536), device=device)
    npu.matmul(x, w, out=out)
    before = device.stats()
    position, caught = 0, []
    while interrupted_at(position, lambda: npu.matmul(x, w, out=out), caught):
        check_all_idle(device)
        caught.clear()
        position += 1 if m == 8 else 7
        buffers = (x.buffer, out.buffer)
        assert not any(buffer.memory.in_use for buffer in buffers)
        npu.matmul(x, w, out=out)
        np.testing.assert_array_equal(out.numpy(), expected)
    assert position > 30
    assert device.stats().contexts == before.contexts
    x.close()
    out.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_in_closing_a_device_keeps_nobody_from_using_or_closing_it() -> None:
    position, caught = 0, []
    weight, expected = B[:100, :60], A[:3, :100].astype(np.int32) @ B[:100, :60]
    interrupted = True
    while interrupted:
        device = npu.Device("sim:rk3588")
        packed = npu.pack(weight, device=device)
        np.testing.assert_array_equal(A[:3, :100] @ packed, expected)
        interrupted = interrupted_at(position, device.close, caught)
        position += 3
        if not device.session.closed:
            with ThreadPoolExecutor(1) as pool:
                np.testing.assert_array_equal(pool.submit(npu.matmul, A[:3, :100], packed).result(60), expected)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(device.close).result(60)
        assert device.closed
        caught.clear()
    assert position > 30


# ---- numbers of rows -----------------------------------------------------------------------------------------------


def test_a_hundred_numbers_of_rows_make_one_context_per_core(device: npu.Device) -> None:
    """Changing M creates nothing: one context per core has all buckets, and A and C grow with the bucket only."""
    with npu.pack(B[:, :512], device=device) as packed:
        many = RNG.integers(-9, 9, (100, 1000), dtype=np.int8)
        expected = many.astype(np.int32) @ B[:, :512].astype(np.int32)
        assert packed.plan is not None
        cores = max(cores_of(packed, m) for m in range(1, 101))
        tiles = {span.padded for span in packed.plan.n_spans}
        for m in (100, 1):
            np.testing.assert_array_equal(many[:m] @ packed, expected[:m])
        before, created = device.stats(), sim.counter_details(device)["calls"]
        for m in range(1, 101):
            np.testing.assert_array_equal(many[:m] @ packed, expected[:m])
        after, calls = device.stats(), sim.counter_details(device)["calls"]
        assert after.contexts <= 1 + 3 * cores * len(tiles)
        for name in ("rknn_matmul_create", "rknn_matmul_create_dynamic_shape", "rknn_matmul_destroy"):
            assert calls.get(name, 0) - created.get(name, 0) <= (0 if cores == 1 else cores * len(tiles)), name
        runs = after.run_calls - before.run_calls
        assert 0 < after.set_dynamic_shape_calls - before.set_dynamic_shape_calls < runs
        np.testing.assert_array_equal(many[:7] @ packed, expected[:7])
        again = device.stats().set_dynamic_shape_calls
        np.testing.assert_array_equal(many[:7] @ packed, expected[:7])
        assert device.stats().set_dynamic_shape_calls == again  # the shape is selected already


@pytest.mark.parametrize("version", ["1.5.2", "1.6.0", "2.0.0b0", "2.1.0"])
def test_old_runtimes_serve_every_number_of_rows(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2.0.0b0 has the older name of dynamic contexts; before it there are only contexts of one shape."""
    monkeypatch.setenv("NPUMATMUL_LIBRARY", str(sim.library_path(version)))
    with npu.Device() as device, npu.pack(B[:, :96], device=device) as packed:
        for m in (1, 3, 17, 24):
            np.testing.assert_array_equal(A[:m] @ packed, EXPECTED[:m, :96])
        dynamic = version >= "2.0.0b0"
        assert (device.stats().set_dynamic_shape_calls > 0) == dynamic
        assert (device.stats().contexts == 2) == dynamic
