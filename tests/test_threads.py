"""Any thread may call any function: eight of them at once, on one device and on two, compared with numpy."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import npumatmul as npu
from npumatmul import sim
from npumatmul.errors import ClosedError, NpuMemoryError, RknnError

THREADS = 8
CALLS = 80


def integers(random: np.random.Generator, shape: tuple[int, ...], dtype: object) -> np.ndarray:
    low, high = (-8, 8) if dtype is ml_dtypes.int4 else (-100, 100)
    return random.integers(low, high, shape).astype(dtype)  # type: ignore[call-overload]


class Shared:
    """Weights that all threads use at once."""

    def __init__(self, devices: list[npu.Device]) -> None:
        random = np.random.default_rng(1)
        self.weights = []
        for device in devices:
            for k, n in ((300, 200), (64, 700)):
                w = integers(random, (k, n), np.int8)
                self.weights.append((w.astype(np.int64), npu.pack(w, device=device)))


def work(seed: int, devices: list[npu.Device], shared: Shared, start: threading.Barrier) -> int:
    """Products of mixed types with arrays, weights of all threads and weights of its own; some housekeeping."""
    random = np.random.default_rng(seed)
    start.wait(60)
    done = 0
    for call in range(CALLS):
        device = devices[int(random.integers(len(devices)))]
        m, k, n = (int(size) for size in random.integers(1, (70, 150, 200)))
        kind = (seed + call) % 6
        if kind == 0:
            wide, packed = shared.weights[int(random.integers(len(shared.weights)))]
            a = integers(random, (m, wide.shape[0]), np.int8)
            assert (npu.matmul(a, packed) == a.astype(np.int64) @ wide).all()
        elif kind in (1, 2):
            dtype = np.int8 if kind == 1 else ml_dtypes.int4
            a, b = integers(random, (m, k), dtype), integers(random, (k, n), dtype)
            assert (npu.matmul(a, b, device=device) == a.astype(np.int64) @ b.astype(np.int64)).all()
        elif kind == 3:  # small whole numbers: exact in float16, and so are their sums in float32
            a, b = integers(random, (m, k), np.float16), integers(random, (k, n), np.float16)
            assert (npu.matmul(a, b, device=device) == a.astype(np.float64) @ b.astype(np.float64)).all()
        elif kind == 4:
            w = integers(random, (k, n), np.int8)
            with npu.pack(w, device=device) as own:
                for rows in (1, m):
                    a = integers(random, (rows, k), np.int8)
                    assert (npu.matmul(a, own) == a.astype(np.int64) @ w.astype(np.int64)).all()
            with pytest.raises(ClosedError):
                npu.matmul(a, own)
        else:
            with device.buffer(4096) as buffer, buffer.write() as view:
                view[:] = seed
                assert device.memory_stats().domains[0].buffers >= 4096
            if call % 4 == 0:
                npu.empty_cache(device)
            with npu.use_device(device):
                a, b = integers(random, (2, m, k), np.uint8), integers(random, (k, n), np.uint8)
                assert (npu.matmul(a, b) == a.astype(np.int64) @ b.astype(np.int64)).all()
        done += 1
    return done


def run_at_once(task: Callable[[int], int]) -> int:
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(future.result() for future in as_completed([pool.submit(task, seed) for seed in range(THREADS)]))


@pytest.mark.parametrize("names", [["sim:rk3588"], ["sim:rk3588", "sim:rk3576"]], ids=["one device", "two devices"])
def test_eight_threads_multiply_right(names: list[str]) -> None:
    devices = [npu.Device(name) for name in names]
    before = [device.memory_stats() for device in devices]
    shared = Shared(devices)
    start = threading.Barrier(THREADS)
    assert run_at_once(lambda seed: work(seed, devices, shared, start)) == THREADS * CALLS
    for _, packed in shared.weights:
        packed.close()
    for device, then in zip(devices, before, strict=True):
        npu.empty_cache(device)
        now = device.memory_stats()
        assert (now.nbytes, now.contexts, now.descriptors) == (then.nbytes, then.contexts, then.descriptors)
        device.close()


class Slots:
    """Weights that come and go while other threads multiply with them."""

    def __init__(self, device: npu.Device) -> None:
        self.device = device
        self.current: list[tuple[np.ndarray, npu.PackedWeight]] = []
        self.replace(np.random.default_rng(3), 0)
        self.replace(np.random.default_rng(4), 1)

    def replace(self, random: np.random.Generator, index: int) -> None:
        """Put a new weight there; the old one is closed, or just dropped."""
        w = integers(random, (256, 320), np.int8)
        slot = (w.astype(np.int64), npu.pack(w, device=self.device))
        if index == len(self.current):
            self.current.append(slot)
            return
        old, self.current[index] = self.current[index], slot
        if random.random() < 0.5:
            old[1].close()


def rough_work(seed: int, device: npu.Device, slots: Slots, start: threading.Barrier) -> tuple[int, int]:
    """As `work`, where functions of the runtime fail now and then: what is right, and what raised what it may."""
    random = np.random.default_rng(seed)
    room = npu.empty((96, 320), np.int32, device=device)
    start.wait(60)
    right = failed = 0
    for call in range(60):
        m = int(random.integers(1, 64))
        a = integers(random, (m, 256), np.int8)
        try:
            w, packed = slots.current[(seed + call) % 2]
            kind = int(random.integers(6))
            if kind <= 1:
                result = npu.matmul(a, packed)
            elif kind <= 3:  # in place, and beside it where the CPU stores
                x = npu.asarray(a, device=device)
                out = room[:m] if kind == 2 else npu.empty((m, 320), np.int32, device=device)
                result = npu.matmul(x, packed, out=out).numpy()
            elif kind == 4:
                w = integers(random, (256, int(random.integers(1, 400))), np.int8).astype(np.int64)
                own = npu.pack(w.astype(np.int8), device=device)
                result = npu.matmul(a, own)  # and it is dropped
            else:
                if call % 3 == 0:
                    slots.replace(random, call % 2)
                npu.empty_cache(device)
                device.memory_stats()
                w, result = np.eye(m), np.eye(m)
                a = np.eye(m)
            assert (result == a.astype(np.int64) @ w.astype(np.int64)).all()
            right += 1
        except (RknnError, NpuMemoryError, ClosedError):
            failed += 1
    return right, failed


@pytest.mark.parametrize("limited", [False, True], ids=["any memory", "little memory"])
def test_eight_threads_under_faults_while_weights_come_and_go(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limited: bool
) -> None:
    """Every product is right or raises; nobody waits for ever; afterwards all is as it was before."""
    monkeypatch.setattr(
        "npumatmul.running.in_place.plan_matmul", lambda *_, **__: SimpleNamespace(modelled_seconds=None)
    )
    caplog.set_level(logging.CRITICAL, "npumatmul")  # exceptions that are logged hold what their frames do
    with npu.Device("sim:rk3588") as device:
        before = device.memory_stats()
        slots = Slots(device)
        start = threading.Barrier(THREADS)
        faults = [f"{name}:prob=0.02:seed={seed}:code=-1" for seed, name in enumerate(
            ("run", "set_io_mem", "mem_sync", "create", "create_dynamic_shape", "create_mem", "create_mem_from_fd")
        )]  # fmt: skip
        if limited:
            npu.memory_limit(device.memory_stats().nbytes + 2 * 2**20, device)
        with sim.configured(device, faults=";".join(faults)), ThreadPoolExecutor(THREADS) as pool:
            tasks = [pool.submit(rough_work, seed, device, slots, start) for seed in range(THREADS)]
            counts = [task.result(300) for task in as_completed(tasks, timeout=300)]
        right, failed = map(sum, zip(*counts, strict=True))
        assert right + failed == THREADS * 60
        assert right > failed
        npu.memory_limit(None, device)
        a = np.arange(512, dtype=np.int8).reshape(2, 256)
        for w, packed in slots.current:
            if not packed.closed:
                assert (npu.matmul(a, packed) == a.astype(np.int64) @ w).all()
        slots.current.clear()
        del packed, w
        gc.collect()
        npu.empty_cache(device)
        now = device.memory_stats()
        assert (now.nbytes, now.descriptors) == (before.nbytes, before.descriptors)
        assert now.contexts == len(device.session._anchors), "only those that memory is allocated under"
