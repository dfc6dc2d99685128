"""What a device holds is counted, bounded and given up when it is idle; errors say what holds what."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import sim
from npumatmul.chips import CHIPS
from npumatmul.device.living import Living
from npumatmul.errors import NpuMemoryError, RknnError
from npumatmul.running import pool
from npumatmul.running.placement import Placement

MIB = 2**20


def test_stats_count_what_is_held(fresh_device: npu.Device) -> None:
    device = fresh_device
    empty = device.memory_stats()
    assert (empty.nbytes, empty.descriptors, empty.contexts) == (0, 0, 1)
    buffers = [device.buffer(3 * MIB), device.buffer(5000), device.buffer(4096, domain=2)]
    stats = device.memory_stats()
    assert [(each.domain, each.buffers) for each in stats.domains] == [(0, 3 * MIB + 5000), (2, 4096)]
    assert stats.descriptors == 3
    assert stats.contexts == 2, "memory of each domain is allocated under a context of its own"
    packed = npu.pack(np.ones((64, 96), np.int8), device=device)
    stats = device.memory_stats()
    assert stats.weights_used == packed.nbytes == 64 * 96
    assert stats.domains[0].weights >= stats.weights_used
    npu.matmul(np.ones((5, 64), np.int8), packed)
    working = device.memory_stats()
    assert working.domains[0].workspaces > 0
    assert working.contexts > stats.contexts
    assert working.peak == working.nbytes
    assert working.descriptors_open >= working.descriptors
    assert working.descriptor_limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    for buffer in buffers:
        buffer.close()
    after = device.memory_stats()
    assert after.domains[0].buffers == 0
    assert after.peak == working.peak
    for part in ("domain 0", "weights", "contexts", "descriptors"):
        assert part in str(after)


def test_empty_cache_gives_up_what_is_idle_and_nothing_else(fresh_device: npu.Device) -> None:
    device = fresh_device
    w = np.arange(64 * 64, dtype=np.int8).reshape(64, 64)
    a = np.arange(3 * 64, dtype=np.int8).reshape(3, 64)
    expected = a.astype(np.int32) @ w.astype(np.int32)
    with device.buffer(4096) as buffer, npu.pack(w, device=device) as packed:
        assert (npu.matmul(a, packed) == expected).all()
        before = device.memory_stats()
        freed = npu.empty_cache(device)
        stats = device.memory_stats()
        assert freed == before.nbytes - stats.nbytes > 0
        assert (stats.contexts, stats.domains[0].workspaces) == (1, 0)
        assert stats.domains[0].buffers == buffer.nbytes
        assert stats.weights_used == packed.nbytes
        assert (npu.matmul(a, packed) == expected).all(), "everything is made anew"
    npu.empty_cache(device)
    assert device.memory_stats().nbytes == 0


def test_a_limit_is_kept_and_the_error_says_what_holds_what(fresh_device: npu.Device) -> None:
    device = fresh_device
    assert npu.memory_limit(8 * MIB, device) is None
    w = np.ones((512, 512), np.int8)
    packed = npu.pack(w, device=device)
    npu.matmul(np.ones((300, 512), np.int8), packed)
    held = device.memory_stats()
    assert held.domains[0].workspaces > 0
    buffer = device.buffer(8 * MIB - held.domains[0].weights)  # fits only without the buffers of A and C
    stats = device.memory_stats()
    assert stats.domains[0].workspaces == 0, "what was idle gave way"
    assert stats.nbytes <= 8 * MIB
    with pytest.raises(NpuMemoryError, match=r"(?s)A and C of matmuls.*limit of 8388608.*buffers \d"):
        npu.matmul(np.ones((300, 512), np.int8), packed)
    with pytest.raises(NpuMemoryError, match=r"(?s)buffers of users.*domain 0"):
        device.buffer(4096)
    buffer.close()
    assert (npu.matmul(np.ones((300, 512), np.int8), packed) == 512).all(), "the weight was never in danger"
    assert npu.memory_limit(None, device) == 8 * MIB
    device.buffer(16 * MIB).close()
    with pytest.raises(ValueError, match="number of bytes"):
        npu.memory_limit(-1, device)


@pytest.fixture
def lone_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[npu.Device]:
    """A device whose chip no other device of this process is on: other versions are other libraries."""
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "2.1.0")
    with npu.Device("sim:rk3588") as opened:
        yield opened


def test_idle_memory_gives_way_where_the_runtime_has_none_left(lone_device: npu.Device) -> None:
    device = lone_device
    packed = npu.pack(np.ones((512, 512), np.int8), device=device)
    npu.matmul(np.ones((300, 512), np.int8), packed)
    held = device.memory_stats()
    domain = CHIPS["rk3588"].memory.domain_bytes
    with device.buffer(domain - held.domains[0].weights) as buffer:
        assert device.memory_stats().domains[0].workspaces == 0
        assert buffer.nbytes > 0
    with pytest.raises(NpuMemoryError, match=r"(?s)could not be allocated.*domain 0"):
        device.buffer(domain)
    assert (npu.matmul(np.ones((300, 512), np.int8), packed) == 512).all()


def test_a_context_that_is_kept_for_reuse_gives_way_to_one_that_is_asked_for(lone_device: npu.Device) -> None:
    device = lone_device
    with sim.configured(device, contexts=8):
        for width in (32, 64, 96, 128, 160):
            npu.matmul(np.ones((1, 64), np.int8), np.ones((64, width), np.int8), device=device)
        mine = [device.context(npu.MatmulType.INT8_INT8_INT32, 4, 64, 32 * i) for i in range(1, 8)]
        assert device.memory_stats().contexts == 8
        with pytest.raises(RknnError):
            device.context(npu.MatmulType.INT8_INT8_INT32, 8, 64, 32)
        mine[0].close()
        npu.matmul(np.ones((1, 64), np.int8), np.ones((64, 32), np.int8), device=device)


DESCRIPTORS = """
import logging, os, resource
logging.basicConfig(level=logging.INFO)
import npumatmul as npu
from npumatmul.errors import NpuMemoryError
soft = len(os.listdir("/proc/self/fd")) + 40
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft + 100))
device = npu.Device("sim")
buffers = []
try:
    while True:
        buffers.append(device.buffer(4096))
        files = os.open("/dev/null", os.O_RDONLY)
except NpuMemoryError as error:
    print("refused:", str(error).splitlines()[0])
except OSError as error:
    print("the system:", error)
print(len(buffers), resource.getrlimit(resource.RLIMIT_NOFILE)[0] - soft)
device.close()
"""


def test_the_limit_of_descriptors_is_raised_when_it_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", DESCRIPTORS], capture_output=True, text=True, check=True, timeout=60)
    assert "raised the limit of open files" in done.stderr
    buffers, raised = map(int, done.stdout.splitlines()[-1].split())
    assert raised == 100
    assert buffers > 40
    refused = "refused: 1 more file descriptors are needed, which allocations of NPU memory and contexts hold"
    assert refused in done.stdout or "system" in done.stdout


SHAPES = """
import os, resource, sys
import numpy as np
import npumatmul as npu
from npumatmul.errors import NpuMemoryError
before = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (before + 40, before + 120))
with npu.Device("sim") as device:
    for width in range(32, 32 * 61, 32):
        assert (npu.matmul(np.ones((1, 64), np.int8), np.ones((64, width), np.int8), device=device) == 64).all()
    print(device.memory_stats().contexts)
    mine = []
    try:
        while True:
            mine.append(device.context(npu.MatmulType.INT8_INT8_INT32, 4, 64, 32 * len(mine) + 32))
    except NpuMemoryError as error:
        print(len(mine), str(error).splitlines()[0])
"""


def test_contexts_end_where_descriptors_do() -> None:
    """Each holds four: those kept for reuse give way, and where none is left the error says what ran out."""
    done = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True, check=True, timeout=60)
    kept, last = done.stdout.splitlines()
    most = 120 // CHIPS["rk3588"].memory.context_descriptors
    assert 10 < int(kept) <= most
    made, _, message = last.partition(" ")
    assert most - 10 < int(made) <= most
    assert message.startswith("4 more file descriptors are needed, which allocations of NPU memory and contexts hold")
    assert "ulimit -n" in message


def test_devices_keep_contexts_within_one_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps most of them gives some up for the other."""
    monkeypatch.setattr(pool, "_pools", Living())  # other tests may have devices that live
    monkeypatch.setattr(pool, "_KEPT_MOST", 10)
    with npu.Device("sim:rk3588") as first, npu.Device("sim:rk3576") as second:
        mine, its = Placement.of(first).contexts, Placement.of(second).contexts

        def multiply(device: npu.Device, count: int) -> tuple[int, int]:
            for width in range(1, count + 1):
                w = np.ones((64, 32 * width), np.int8)
                assert (npu.matmul(np.ones((1, 64), np.int8), w, device=device) == 64).all()
            return len(mine), len(its)

        assert multiply(first, 30) == (10, 0)
        assert multiply(second, 4) == (6, 4)
        assert multiply(first, 30) == (6, 4), "which has most gives way"
        assert multiply(second, 30) == (4, 6)
