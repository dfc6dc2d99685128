"""`Pool`: members that share one weight, each on cores of its own; failures stay where they are."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, as_completed
from typing import Any

import numpy as np
import pytest
from interrupts import interrupted_at
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import errors, nn, sim
from npumatmul.ops.settings import settings
from npumatmul.running.placement import Placement
from npumatmul.running.where import Where, storing

RNG = np.random.default_rng(6)
W = RNG.standard_normal((96, 600)).astype(np.float32)
X = RNG.standard_normal((24, 96)).astype(np.float32)


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened


class Gate:
    """Work that waits until it may go on."""

    def __init__(self) -> None:
        self.begun, self.opened = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, value: Any) -> Any:
        self.begun.release()
        assert self.opened.acquire(timeout=60)
        return value

    def open(self, times: int) -> None:
        for _ in range(times):
            self.opened.release()


def cores_used(device: npu.Device) -> set[int | None]:
    return {spec.core for spec, _ in Placement.of(device).contexts._contexts}


def in_thread(call: Callable[[], object]) -> Callable[[], Any]:
    """Begin a call in a thread; what is returned waits for its result."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()

    def wait() -> Any:
        thread.join(60)
        assert found, "it waits"
        return found[0]

    return wait


# ---- one weight ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_members_share_one_weight_and_have_cores_of_their_own(device: npu.Device, scheme: str) -> None:
    packed = npu.pack(W, scheme, device=device)
    expected = X @ packed
    device.empty_cache()
    held, used = device.memory_stats(), device.weights.bytes_used
    with npu.Pool(packed) as pool:
        assert pool.size == 3
        members = [pool.get() for _ in range(3)]
        assert [member.cores for member in members] == [(0,), (1,), (2,)]
        for member in members:
            device.empty_cache()
            np.testing.assert_array_equal(member(X), expected)
            assert cores_used(device) == {member.number}
            stats = device.memory_stats()
            assert (stats.domains[0].weights, device.weights.bytes_used) == (held.domains[0].weights, used)
        device.empty_cache()
        assert device.memory_stats().nbytes == held.nbytes


def test_three_at_once_are_right_and_the_weight_is_there_once(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    expected = X @ packed
    held = device.memory_stats().domains[0].weights
    meeting = threading.Barrier(3, timeout=60)
    with npu.Pool(packed) as pool:

        def together(number: int) -> NDArray[Any]:
            with pool.get() as member:
                meeting.wait()  # all three have one
                for _ in range(5):
                    result = member(X[number::3])
                meeting.wait()
                return result

        results = [in_thread(lambda n=number: together(n)) for number in range(3)]  # type: ignore[misc]
        for number, result in enumerate(results):
            np.testing.assert_array_equal(result(), expected[number::3])
    assert cores_used(device) == {0, 1, 2}
    assert device.memory_stats().domains[0].weights == held


def test_modules_and_sessions_run_on_the_cores_of_a_member(device: npu.Device) -> None:
    layers = [nn.Linear.from_arrays(np.ascontiguousarray(W.T), scheme="w8a8", device=device) for _ in range(2)]
    with npu.Pool(layers[0], cores=[2], device=device) as pool:
        np.testing.assert_array_equal(pool.submit(X).result(60), layers[1](X))
        device.empty_cache()
        pool.submit(X).result(60)
        assert cores_used(device) == {2}

    onnx = pytest.importorskip("onnx")
    from npumatmul.onnx import InferenceSession

    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("MatMul", ["x", "w"], ["y"])], "g", [value("x", 1, ["n", 96])], [value("y", 1, ["n", 600])],
        [onnx.numpy_helper.from_array(W, "w")],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = InferenceSession(model, scheme="w8a8", device=device)
    device.empty_cache()
    with npu.Pool(session, cores=[(1, 0)], device=device) as pool, npu.Batch(pool, 24, max_wait=3600.0) as batch:
        futures = [batch.submit(row) for row in X]
        np.testing.assert_array_equal([each.result(60) for each in futures], session.run(None, {"x": X})[0])
        assert batch.stats.calls == 1
    assert cores_used(device)
    assert cores_used(device) <= {0, 1}


@pytest.mark.parametrize(
    ("cores", "size", "expected"),
    [
        (None, None, [(0,), (1,), (2,)]),
        (None, 5, [(0,), (1,), (2,), (0,), (1,)]),
        ([(0, 1), 2], None, [(0, 1), (2,)]),
        ([1], 2, [(1,), (1,)]),
        ("any", None, [None]),
        ("any", 4, [None] * 4),
    ],
)
def test_cores_go_round(device: npu.Device, cores: Any, size: int | None, expected: list[Any]) -> None:
    with npu.Pool(npu.pack(W, "w8a8", device=device), size, cores=cores) as pool:
        members = [pool.get(0) for _ in range(pool.size)]
        assert [member.cores for member in members] == expected


def test_a_weight_that_is_bound_to_cores_has_its_members_there(device: npu.Device) -> None:
    with storing(Where(cores=(1, 2))):
        packed = npu.pack(W, "w8a8", device=device)
    with npu.Pool(packed) as pool:
        for result in pool.map([X] * 4):
            np.testing.assert_array_equal(result, X @ packed)
        assert pool.size == 2
    assert cores_used(device) <= {1, 2}
    with npu.Pool(packed, cores=[0]) as pool, pytest.raises(ValueError, match=r"was stored for cores \(1, 2\)"):
        pool.submit(X).result(60)


def test_what_cannot_be_a_pool_is_told(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    for cores, message in (
        ([3], "sim:rk3588 has 3"), ([-1], "counted from 0"), ([], "names none"), ([(0, 0)], "has 3"), ([()], "has 3"),
        ("all", "it can be 'any'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            npu.Pool(packed, cores=cores)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="for each member"):
        npu.Pool(packed, cores=["one"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="size is 0"):
        npu.Pool(packed, 0)
    with pytest.raises(TypeError, match=r"size is 2\.5"):
        npu.Pool(packed, 2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="for one thread at a time; give the PackedWeight"):
        npu.Pool(npu.Matmul(X, packed))


# ---- members: get, put, close --------------------------------------------------------------------------------------


def test_members_come_back_by_put_by_leaving_and_by_being_dropped() -> None:
    pool = npu.Pool(lambda x: x, 2, cores="any")
    first, second = pool.get(), pool.get()
    assert pool.idle == 0
    with pytest.raises(TimeoutError, match="none of 2 members came back within 0 s"):
        pool.get(timeout=0)
    pool.put(first)
    assert (pool.idle, pool.get(timeout=0).number) == (1, 0)  # and dropped at once
    gc.collect()
    assert pool.idle == 1
    with second:
        assert second(7) == 7
    assert pool.idle == 2
    with pytest.raises(ZeroDivisionError), pool.get() as member:
        member(1 / 0)
    assert pool.idle == 2


def test_what_is_not_to_be_put_is_refused() -> None:
    pool, other = npu.Pool(lambda x: x, 1, cores="any"), npu.Pool(lambda x: x, 1, cores="any")
    member = pool.get()
    for foreign in (other.get(), None, object()):
        with pytest.raises(ValueError, match="is no member of this pool"):
            pool.put(foreign)  # type: ignore[arg-type]
    pool.put(member)
    with pytest.raises(ValueError, match="put back"):
        pool.put(member)
    with pytest.raises(errors.ClosedError, match="put back"):
        member(1)
    assert pool.idle == 1


def test_one_call_of_a_member_at_a_time() -> None:
    gate = Gate()
    pool = npu.Pool(gate, 1, cores="any")
    member = pool.get()
    wait = in_thread(lambda: member(5))
    assert gate.begun.acquire(timeout=60)
    with pytest.raises(errors.BusyError, match="each thread gets a member of its own"):
        member(6)
    with pytest.raises(errors.BusyError, match="still being called"):
        pool.put(member)
    gate.open(1)
    assert wait() == 5
    pool.put(member)


def test_a_thread_that_waits_gets_what_comes_back() -> None:
    pool = npu.Pool(lambda x: x, 1, cores="any")
    member = pool.get()
    wait = in_thread(lambda: pool.get()(3))
    pool.put(member)
    assert wait() == 3
    dropped = pool.get()
    wait = in_thread(lambda: pool.get()(4))
    del dropped
    gc.collect()
    assert wait() == 4


def test_closing_wakes_those_who_wait() -> None:
    gate = Gate()
    pool = npu.Pool(gate, 1, cores="any")
    member = pool.get()
    waits = [in_thread(pool.get) for _ in range(3)]
    calling = in_thread(lambda: member(8))
    assert gate.begun.acquire(timeout=60)
    assert pool.close(timeout=0)
    for wait in waits:
        assert isinstance(wait(), errors.ClosedError)
    gate.open(1)
    assert calling() == 8  # it had begun
    with pytest.raises(errors.ClosedError):
        member(9)
    for refused in (pool.get, lambda: pool.submit(1)):
        with pytest.raises(errors.ClosedError, match="is closed"):
            refused()
    assert pool.close()


# ---- jobs ----------------------------------------------------------------------------------------------------------


def test_results_come_in_order_and_items_are_read_as_they_are_needed() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for value in itertools.count():
            read.append(value)
            yield value

    with npu.Pool(lambda x: x * x, 3, cores="any") as pool:
        found = list(itertools.islice(pool.map(items()), 50))
        assert found == [value * value for value in range(50)]
        assert len(read) <= 50 + 2 * 3 + 1


def test_an_error_is_its_jobs_alone() -> None:
    with npu.Pool(lambda x: 12 // x, 2, cores="any") as pool:
        futures = [pool.submit(x) for x in (1, 0, 3)]
        assert (futures[0].result(60), futures[2].result(60)) == (12, 4)
        with pytest.raises(ZeroDivisionError):
            futures[1].result(60)
        with pytest.raises(ZeroDivisionError):
            list(pool.map([1, 0, 3]))
        told = list(pool.map([1, 0, 3], return_exceptions=True))
        assert (told[0], type(told[1]), told[2]) == (12, ZeroDivisionError, 4)
    assert (pool.stats.items >= 4, pool.stats.failed) == (True, 3)


def test_a_job_is_cancelled_or_awaited_and_too_many_are_refused() -> None:
    gate = Gate()
    with npu.Pool(gate, 1, cores="any", limit=2) as pool:
        running = pool.submit(1)
        assert gate.begun.acquire(timeout=60)
        waiting = [pool.submit(2), pool.submit(3)]
        with pytest.raises(errors.BusyError, match="which is the limit"):
            pool.submit(4)
        assert waiting[0].cancel()
        assert not running.cancel()
        gate.open(2)

        async def both() -> list[Any]:
            return list(await asyncio.gather(running, waiting[1]))

        assert asyncio.run(both()) == [1, 3]
    with pytest.raises(CancelledError):
        waiting[0].result(0)


@pytest.mark.parametrize("cancel", [False, True])
def test_closing_computes_what_was_submitted_or_cancels_it(cancel: bool) -> None:
    gate = Gate()
    pool = npu.Pool(gate, 2, cores="any")
    futures = [pool.submit(value) for value in range(6)]
    for _ in range(2):
        assert gate.begun.acquire(timeout=60)
    assert not pool.close(cancel=cancel, timeout=0)
    gate.open(6)
    assert pool.close()
    done = [future for future in futures if not future.cancelled()]
    assert [future.result(0) for future in done] == list(range(2 if cancel else 6))


def test_members_that_are_held_do_not_keep_a_closing_pool() -> None:
    """Whoever holds all members while others' jobs wait, and then closes, waits for nobody."""
    pool = npu.Pool(lambda x: x, 2, cores="any")
    members = [pool.get(), pool.get()]
    future = in_thread(lambda: pool.submit(5))()
    assert pool.close(timeout=60)
    assert future.result(0) == 5
    assert len(members) == 2


def test_who_holds_every_member_and_waits_computes_the_job() -> None:
    seen: list[int] = []
    with npu.Pool(lambda x: seen.append(threading.get_ident()) or x, 1, cores="any") as pool:  # type: ignore[func-returns-value]
        with pool.get():
            assert pool.submit(3).result(60) == 3
        assert seen == [threading.get_ident()]


def test_who_holds_every_member_and_waits_for_a_batch_computes_its_row() -> None:
    with npu.Pool(np.negative, 1, cores="any") as pool, npu.Batch(pool, 4, max_wait=0.0) as batch:
        with pool.get():
            futures = [batch.submit([float(value)]) for value in range(3)]
            assert [future.result(60)[0] for future in futures] == [0, -1, -2]
        assert batch.stats.calls == 3
        held = pool.get()
        waiting = [batch.submit([float(value)]) for value in range(3)]
        pool.put(held)  # rows were not taken before there was a member for them
        assert [in_thread(future.result)()[0] for future in waiting] == [0, -1, -2]
        assert batch.stats.calls == 4


def test_jobs_of_jobs_end() -> None:
    """Each waits for two more, in a pool with fewer members than jobs wait."""

    def count(depth: int) -> int:
        if depth == 0:
            return 1
        with pool.get(timeout=0) as member:  # its own
            assert member.number in (0, 1)
        futures = [pool.submit(depth - 1) for _ in range(2)]
        return sum(future.result() for future in as_completed(futures))

    with npu.Pool(count, 2, cores="any") as pool:
        assert sum(pool.map([4] * 5)) == 5 * 2**4


def test_jobs_run_in_the_scope_of_whoever_submits(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    with npu.Pool(packed) as pool:
        before = device.stats()
        with npu.config(processor="cpu"):
            future = pool.submit(X)
        future.result(60)
        after = device.stats()
        assert (after.run_calls, after.cpu_macs - before.cpu_macs) == (before.run_calls, 24 * 96 * 600)


# ---- failures ------------------------------------------------------------------------------------------------------


def test_a_run_that_fails_is_repeated_once_with_a_fresh_context(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    expected = X @ packed
    with npu.Pool(packed, 1, cores=[1]) as pool:
        pool.submit(X).result(60)
        before = device.stats()
        pool.submit(X).result(60)
        runs = device.stats().run_calls - before.run_calls
        for after in range(runs):
            contexts, start = device.stats().contexts, device.stats().run_calls
            with sim.configured(device, faults=f"run:after={after}:times=1:code=-2"):
                np.testing.assert_array_equal(pool.submit(X).result(60), expected)
            assert device.stats().run_calls - start == runs + after + 1
            assert device.stats().contexts == contexts, "the broken one was destroyed"
        with sim.configured(device, faults="run:times=2:code=-2"):
            failing = pool.submit(X)
            with pytest.raises(errors.RknnTimeout, match="made anew and all was repeated, in vain"):
                failing.result(60)
        np.testing.assert_array_equal(pool.submit(X).result(60), expected)


def test_a_failure_is_told_to_those_whose_run_it_was(device: npu.Device) -> None:
    """Of jobs that run at once on three members some fail for good; every other one is right."""
    packed = npu.pack(W, "w8a8", device=device)
    expected = X @ packed
    with npu.Pool(packed) as pool:
        list(pool.map([X[:1]] * 3))
        with sim.configured(device, faults="run:prob=0.5:seed=7:code=-2"):
            found = list(pool.map([X[i : i + 1] for i in range(24)], return_exceptions=True))
        failed = [each for each in found if isinstance(each, Exception)]
        assert 0 < len(failed) < 24
        assert all(isinstance(each, errors.RknnTimeout) for each in failed)
        for index, each in enumerate(found):
            if not isinstance(each, Exception):
                np.testing.assert_array_equal(each, expected[index : index + 1])
        assert (pool.stats.failed, pool.idle) == (len(failed), 3)
        np.testing.assert_array_equal(pool.submit(X).result(60), expected)


def test_a_lost_device_is_told_to_all_who_ask(device: npu.Device) -> None:
    with npu.Pool(npu.pack(W, "w8a8", device=device)) as pool:
        with sim.configured(device, faults="run:lost"):
            found = list(pool.map([X] * 5, return_exceptions=True))
        assert {type(each) for each in found} == {errors.DeviceLostError}
        assert pool.idle == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 warns of it
def test_a_forked_child_is_told() -> None:
    gate = Gate()
    with npu.Pool(gate, 2, cores="any") as pool:
        future = pool.submit(1)
        assert gate.begun.acquire(timeout=60)
        member = pool.get()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            calls: list[Callable[[], object]] = [
                lambda: pool.submit(2), lambda: pool.get(timeout=1), lambda: pool.put(member), lambda: member(3),
                future.result,
            ]  # fmt: skip
            for call in calls:
                try:
                    os.write(write, f"no error: {call()!r}\n".encode())
                except BaseException as error:
                    os.write(write, f"{type(error).__name__}: {error}\n".encode())
            pool.close()
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            lines = pipe.read().splitlines()
        os.waitpid(child, 0)
        gate.open(1)
        assert future.result(60) == 1
    assert len(lines) == 5
    assert all(line.startswith("ClosedError") and "fork" in line for line in lines)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_anywhere_loses_no_member() -> None:
    with npu.Pool(np.negative, 2, cores=[0, 1]) as pool:

        def work() -> None:
            with pool.get(timeout=60) as member:
                member(3)
            pool.submit(3).result(60)

        work()
        position = 0
        while interrupted_at(position, work):
            position += 1
            assert [pool.submit(value).result(60) for value in range(3)] == [0, -1, -2]
            assert settings().cores is None, "the member's cores are the caller's from now on"
            both = [pool.get(timeout=60), pool.get(timeout=60)]
            assert {member.number for member in both} == {0, 1}
            del both
        assert position > 30


def test_a_dropped_pool_computes_what_waits() -> None:
    gate = Gate()
    pool = npu.Pool(gate, 1, cores="any")
    futures = [pool.submit(value) for value in range(3)]
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    gate.open(3)
    assert [future.result(60) for future in futures] == [0, 1, 2]


def test_a_batch_has_its_calls_made_by_members_at_once(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    expected = X @ packed
    meeting = threading.Barrier(3, timeout=60)

    def together(rows: NDArray[Any]) -> NDArray[Any]:
        meeting.wait()  # three calls are going on
        return rows @ packed

    with npu.Pool(together, device=device) as pool, npu.Batch(pool, 4, max_wait=3600.0) as batch:
        futures = [batch.submit(row) for row in X]
        np.testing.assert_array_equal([future.result(60) for future in futures], expected)
        assert batch.stats.calls == 6
