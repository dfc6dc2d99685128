"""Any thread may call any function: eight of them at once, on one device and on two, compared with numpy."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed

import ml_dtypes
import numpy as np
import pytest

import npumatmul as npu
from npumatmul.errors import ClosedError

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
