"""On memory whose caches are not coherent: what has to be synchronised and bound anew, and how often."""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from objects import NATIVE, NORM, PAGE, K, M, N, bound, fill, operands

import npumatmul as npu
from npumatmul import Buffer, MatmulContext, MatmulLayout
from npumatmul.device.memory import Memory
from npumatmul.rknn import Runtime

# ---- strict memory: only what was synchronised and bound anew is seen ----------------------------------------------


@pytest.fixture(scope="module")
def strict() -> Iterator[npu.Device]:
    """Caches that are not coherent, and B that is copied when it is bound, as all tests have them (conftest.py)."""
    assert os.environ["NPUMATMUL_SIM_STRICT"] == "1"
    with npu.Device("sim:rk3588") as device:
        yield device


@pytest.fixture(params=["allocations", "slices"])
def strict_case(
    request: pytest.FixtureRequest, strict: npu.Device
) -> Callable[..., tuple[MatmulContext, tuple[Buffer, Buffer, Buffer]]]:
    def make(**options: Any) -> tuple[MatmulContext, tuple[Buffer, Buffer, Buffer]]:
        context, buffers = bound(strict, **options)
        if request.param == "slices":
            whole = strict.buffer(3 * PAGE)
            buffers = tuple(whole.slice(i * PAGE, each.nbytes) for i, each in enumerate(buffers))  # type: ignore[assignment]
            context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
        return context, buffers

    return make


@pytest.mark.parametrize("ac_layout", [NORM, NATIVE])
@pytest.mark.parametrize("b_layout", list(MatmulLayout))
def test_strict_memory_shows_every_change(strict_case: Any, b_layout: MatmulLayout, ac_layout: MatmulLayout) -> None:
    context, buffers = strict_case(b_layout=b_layout, ac_layout=ac_layout)
    for seed in range(3):
        c = fill(context, buffers, seed)
        for _ in range(2):
            context.run()
            np.testing.assert_array_equal(buffers[2].get(context.c), c)


def test_strict_memory_shows_what_is_written_between_runs_of_an_open_write(strict_case: Any) -> None:
    context, buffers = strict_case()
    fill(context, buffers, 0)
    with buffers[0].write(np.int8, (M, K)) as a_view, buffers[1].write(np.int8, (K, N)) as b_view:
        for seed in (1, 2, 3):
            a, b, c = operands(seed)
            a_view[:], b_view[:] = a, b
            context.run()
            np.testing.assert_array_equal(buffers[2].get(context.c), c)
    a, b, c = operands(4)
    buffers[0].put(context.a, a)
    buffers[1].put(context.b, b)
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)


def test_strict_memory_shows_what_is_written_through_a_view_that_outlives_its_block(strict_case: Any) -> None:
    context, buffers = strict_case()
    fill(context, buffers, 0)
    with buffers[1].write(np.int8, (K, N)) as view:
        half = view[: K // 2]
    with pytest.raises(ValueError, match="read-only"):
        view[:] = 0
    for seed in (1, 2):
        a, b, _ = operands(seed)
        buffers[0].put(context.a, a)
        half[:] = b[: K // 2]
        context.run()
        whole = np.concatenate([b[: K // 2], operands(0)[1][K // 2 :]])
        np.testing.assert_array_equal(buffers[2].get(context.c), a.astype(np.int32) @ whole.astype(np.int32))


@pytest.mark.parametrize("b_layout", list(MatmulLayout))
def test_what_a_view_wrote_before_it_went_away_is_seen(strict_case: Any, b_layout: MatmulLayout) -> None:
    """Written after the last run, through a view that outlived its block and is gone at the next run."""
    context, buffers = strict_case(b_layout=b_layout)
    for buffer in buffers[:2]:
        fill(context, buffers, 0)
        with buffer.write() as view:
            late = view[:]
        del view
        context.run()
        assert buffers[2].get(context.c).any()
        late[:] = 0
        del late
        context.run()
        assert not buffers[2].get(context.c).any()


def test_writing_through_a_parent_or_an_overlapping_slice_counts(strict: npu.Device) -> None:
    """A normal B is copied when it is bound, so it has to be bound anew whichever way it was written."""
    context, (a_buffer, _, c_buffer) = bound(strict)
    whole = strict.buffer(3 * PAGE)
    part = whole.slice(PAGE, K * N)
    context.bind(b=part)
    for seed, through in enumerate((whole, part, whole.slice(PAGE, PAGE), whole)):
        a, b, c = operands(seed)
        a_buffer.put(context.a, a)
        with through.write() as view:
            view[PAGE if through is whole else 0 :][: K * N] = b.view(np.uint8).ravel()
        del view
        context.run()
        np.testing.assert_array_equal(c_buffer.get(context.c), c)


def test_results_are_not_overwritten_by_what_the_cpu_wrote_before(strict_case: Any) -> None:
    """C's cache lines are clean before the run: else the cache would write old bytes over the result later."""
    context, buffers = strict_case()
    for seed in range(3):
        c = fill(context, buffers, seed)
        with buffers[2].write() as view:
            view[:] = 0xAB
        del view
        context.run()
        np.testing.assert_array_equal(buffers[2].get(context.c), c)


def _skip_sync(monkeypatch: pytest.MonkeyPatch, mode_name: str) -> None:
    sync = Memory.sync
    monkeypatch.setattr(Memory, "sync", lambda self, mode: 0 if mode.name == mode_name else sync(self, mode))


def _sync_the_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the allocation that it belongs to."""
    monkeypatch.setattr(Memory, "allocation", property(lambda self: self))
    monkeypatch.setattr(Memory, "mark_written", lambda self: setattr(self, "written", self.written + 1))


def _never_bind_again(monkeypatch: pytest.MonkeyPatch) -> None:
    bind = MatmulContext._bind
    monkeypatch.setattr(MatmulContext, "_bind", lambda self, slot, *rest: slot.bound or bind(self, slot, *rest))


def _sync_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Synchronise after binding, in which a normal B is copied."""
    flush, run = Memory.flush, Runtime.matmul_run
    waiting: list[Memory] = []

    def flush_first(self: Runtime, ctx: int, *rest: Any) -> None:
        while waiting:
            flush(waiting.pop())
        run(self, ctx, *rest)

    def wait(self: Memory) -> int:
        waiting.append(self)
        return 0

    monkeypatch.setattr(Memory, "flush", wait)
    monkeypatch.setattr(Runtime, "matmul_run", flush_first)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "no synchronisation to the device": lambda patch: _skip_sync(patch, "TO_DEVICE"),
    "no synchronisation from the device": lambda patch: _skip_sync(patch, "FROM_DEVICE"),
    "synchronising the slice itself": _sync_the_slice,
    "binding only once": _never_bind_again,
    "synchronising after binding": _sync_too_late,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_without_each_of_the_calls_strict_memory_gives_wrong_results(
    strict: npu.Device, monkeypatch: pytest.MonkeyPatch, mutation: str
) -> None:
    """Slices with a normal B need all of them: were one left out of `run`, the tests above would fail."""
    context, _ = bound(strict)
    whole = strict.buffer(3 * PAGE)
    buffers = tuple(whole.slice(i * PAGE, attr.size) for i, attr in enumerate((context.a, context.b, context.c)))
    context.bind(a=buffers[0], b=buffers[1], c=buffers[2])
    c = fill(context, buffers, 0)
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)
    MUTATIONS[mutation](monkeypatch)
    c = fill(context, buffers, 1)
    context.run()
    assert (buffers[2].get(context.c) != c).any()
    monkeypatch.undo()
    c = fill(context, buffers, 2)
    context.run()
    np.testing.assert_array_equal(buffers[2].get(context.c), c)


def _calls(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counts = {"rknn_matmul_set_io_mem": 0, "rknn_mem_sync": 0, "rknn_matmul_run": 0}
    functions = dict(device.runtime._functions)
    for name in counts:

        def counted(*arguments: Any, name: str = name) -> int:
            counts[name] += 1
            return int(functions[name](*arguments))

        # a run is called from a thread of the executor
        called = C.CFUNCTYPE(C.c_int, C.c_uint64)(counted) if name == "rknn_matmul_run" else counted
        monkeypatch.setitem(device.runtime._functions, name, called)
    return counts


def test_the_runtime_is_called_no_more_often_than_needed(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    context, buffers = bound(device)
    fill(context, buffers, 0)
    counts = _calls(device, monkeypatch)

    def new() -> tuple[int, ...]:
        seen = tuple(counts.values())
        counts.update(dict.fromkeys(counts, 0))
        return seen

    context.run()
    assert new() == (3, 3, 1)  # A, B and C bound; A and B to the device, C from it
    for _ in range(3):
        context.run()
        assert new() == (0, 1, 1)
    buffers[0].put(context.a, operands(1)[0])
    context.run()
    assert new() == (1, 2, 1)
    context.run()
    assert new() == (0, 1, 1)
    with buffers[1].write() as view:
        for _ in range(3):
            context.run()
            assert new() == (1, 2, 1)
    del view
    context.run()
    assert new() == (1, 2, 1)
    context.run()
    assert new() == (0, 1, 1)
    with buffers[2].write() as view:
        view[:] = 1
    del view
    context.run()  # C to the device first: a dirty cache line would later be written over the result
    assert new() == (1, 2, 1)
