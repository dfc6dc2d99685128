"""Ten thousand products of random shapes leave nothing behind: no context, descriptor or byte of NPU and host."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import numpy as np
import pytest

import npumatmul as npu
from npumatmul.chips import CHIPS

MIB = 2**20
CALLS = 10_000
#: Heap that is fragmented, caches of plans and of numpy; a leak of 2 KiB per call would be more.
SLACK = 20 * MIB


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process's memory")
def test_random_shapes_leave_nothing_behind(fresh_device: npu.Device) -> None:
    device = fresh_device
    random = np.random.default_rng(20)
    values = random.integers(-8, 8, 4096).astype(np.int8)
    halves = values.astype(np.float16)

    def run(calls: int) -> None:
        shapes = random.integers(1, (40, 64, 96), (calls, 3), endpoint=True)
        for index, (m, k, n) in enumerate(shapes.tolist()):
            source = halves if index % 2 else values
            a, b = source[: m * k].reshape(m, k), source[-k * n :].reshape(k, n) if k * n <= 4096 else None
            if b is None:
                b = np.resize(source, (k, n))
            result = npu.matmul(a, b, device=device)
            if index % 100 == 0:
                assert (result == a.astype(np.int32) @ b.astype(np.int32)).all()

    run(CALLS // 5)  # until caches are full
    gc.collect()
    warm, held = resident(), device.memory_stats()
    run(CALLS - CALLS // 5)
    gc.collect()
    stats = device.memory_stats()
    assert stats.contexts <= held.contexts + 32, "contexts are shared by shapes"
    assert stats.descriptors <= held.descriptors
    of_contexts = CHIPS["rk3588"].memory.context_descriptors * (stats.contexts - held.contexts)
    assert stats.descriptors_open <= held.descriptors_open + of_contexts + 2
    assert stats.nbytes <= held.nbytes + MIB
    assert stats.weights_used == 0, "plain arrays are not kept"
    assert resident() - warm < SLACK
    npu.empty_cache(device)
    empty = device.memory_stats()
    assert (empty.nbytes, empty.contexts, empty.descriptors) == (0, 1, 0)
