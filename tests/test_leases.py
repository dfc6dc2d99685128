"""Products that hang or take long stop no other one on their device; what they use is neither given back nor shared."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import errors, sim
from npumatmul.chips.types import MatmulType
from npumatmul.device.leases import Lease, Leases, Spares, Turn
from npumatmul.host.executor import Executor
from npumatmul.rknn.simulator import Simulator

RNG = np.random.default_rng(5)
A = RNG.integers(-9, 9, (300, 576), dtype=np.int8)
B = RNG.integers(-9, 9, (576, 1536), dtype=np.int8)
EXPECTED = A.astype(np.int32) @ B.astype(np.int32)
THREADS = 4


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened


def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within a minute")


class Working:
    """Something that is done in a thread of its own, and how it ended."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.result: Any = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = work()
            except BaseException as error:
                self.error = error

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()

    @property
    def done(self) -> bool:
        return not self.thread.is_alive()

    def join(self) -> None:
        self.thread.join(60)
        assert self.done


def hung_run(device: npu.Device, work: Callable[[], Any]) -> Working:
    """Begin work whose first run hangs, as faults say; nothing else is running meanwhile."""
    working = Working(work)
    until(lambda: bool(at_work(device)))
    before = -1
    while (now := sim.counters(device).run_calls) != before or now == 0:  # until the others of its cores are done
        before = now
        time.sleep(0.05)
    return working


def at_work(device: npu.Device) -> list[Lease]:
    return device.session.leases.others()


class Gate:
    """The next product, which takes long: until it is opened. It is not a failure, as a run that hangs is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any = Executor, name: str = "execute") -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        function = getattr(owner, name)

        def slowly(*arguments: Any) -> Any:
            if not self.reached.is_set():
                self.reached.set()
                assert self.opened.wait(60)
            return function(*arguments)

        monkeypatch.setattr(owner, name, slowly)


def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Never find copying faster."""
    monkeypatch.setattr(
        "npumatmul.running.in_place.plan_matmul", lambda *_, **__: SimpleNamespace(modelled_seconds=None)
    )


# ---- hangs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hung", [1, THREADS - 1])
@pytest.mark.parametrize("m", [1, 300], ids=["a row", "several cores"])
@pytest.mark.parametrize("kind", ["packed", "in place"])
def test_others_on_the_same_device_and_weight_go_on_while_runs_hang(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch, kind: str, m: int, hung: int
) -> None:
    """As many products of several at once hang as runs do; the others are done before those end, and right."""
    in_place(monkeypatch)
    with npu.pack(B, device=device) as packed:
        arrays = [(npu.asarray(A[:m], device=device), npu.empty((m, 1536), np.int32, device=device)) for _ in range(4)]

        def product(index: int) -> np.ndarray:
            if kind == "packed":
                result: np.ndarray = A[:m] @ packed
                return result
            a, out = arrays[index]
            npu.matmul(a, packed, out=out)
            return out.numpy()

        np.testing.assert_array_equal(product(0), EXPECTED[:m])
        conversions = device.stats().conversions
        with sim.configured(device, faults=f"run:times={hung}:hang"):
            working = [Working(lambda index=index: product(index)) for index in range(THREADS)]
            until(lambda: sum(each.done for each in working) >= THREADS - hung)
            finished = [each for each in working if each.done]
            for each in finished:
                np.testing.assert_array_equal(each.result, EXPECTED[:m])
            # one product on several cores may have more than one of the runs that hang
            assert 1 <= len(working) - len(finished) <= hung
        for each in working:  # the end of the block ended the hang with a time-out, and what failed is repeated
            each.join()
            np.testing.assert_array_equal(each.result, EXPECTED[:m])
        assert (device.stats().conversions == conversions) == (kind == "in place")
        assert not at_work(device)


def test_everything_else_goes_on_while_a_run_hangs(device: npu.Device) -> None:
    with npu.pack(B, device=device) as packed:
        np.testing.assert_array_equal(A @ packed, EXPECTED)
        with sim.configured(device, faults="run:times=1:hang"):
            working = hung_run(device, lambda: A @ packed)
            np.testing.assert_array_equal(A[:7] @ packed, EXPECTED[:7])
            np.testing.assert_array_equal(npu.matmul(A, B[:, :96], device=device), EXPECTED[:, :96])
            held = device.memory_stats()
            npu.empty_cache(device)
            kept = device.memory_stats()
            assert 0 < kept.domains[0].workspaces < held.domains[0].workspaces, "what is in use stays"
            assert 1 < kept.contexts < held.contexts
            np.testing.assert_array_equal(packed.unpack(), B)
            with npu.pack(-B, device=device) as other:
                np.testing.assert_array_equal(A @ other, -EXPECTED)
            context = device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32)
            context.close()
            assert not working.done
        working.join()
        np.testing.assert_array_equal(working.result, EXPECTED)
        npu.empty_cache(device)
        assert device.stats().contexts == 1


def test_one_that_hangs_again_says_so_and_others_go_on(device: npu.Device) -> None:
    """Once it has timed out its contexts are made anew; when it hangs again the error says so."""
    with npu.pack(B, device=device) as packed:
        np.testing.assert_array_equal(A @ packed, EXPECTED)
        with sim.configured(device, faults="run:times=1:hang"):
            sim.reset_counters(device)
            working = hung_run(device, lambda: A[:1] @ packed)
            Simulator(device.runtime).configure("NPUMATMUL_SIM_FAULTS", "run:times=1:hang")  # that ends it, and again
            until(lambda: len(at_work(device)) == 1 and sim.counters(device).run_calls >= 2)
            time.sleep(0.2)
            np.testing.assert_array_equal(A[1:] @ packed, EXPECTED[1:])
            assert not working.done
        working.join()
        assert isinstance(working.error, errors.RknnTimeout)
        assert isinstance(working.error.__cause__, errors.RknnTimeout)
        assert "in vain" in str(working.error)
        np.testing.assert_array_equal(A @ packed, EXPECTED)


# ---- what is in use ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["closed", "dropped"])
def test_a_weight_that_goes_while_a_product_runs_keeps_its_memory_until_then(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Nobody else's weight comes to stand there meanwhile; the first call afterwards gives it back."""
    weights = [npu.pack(B, device=device)]
    nbytes = weights[0].nbytes
    np.testing.assert_array_equal(A @ weights[0], EXPECTED)
    gate = Gate(monkeypatch)
    working = Working(lambda packed=weights[0]: A @ packed)
    assert gate.reached.wait(60)
    if how == "closed":
        weights[0].close()
        with pytest.raises(errors.ClosedError, match="this packed weight is closed"):
            A @ weights[0]
    weights.clear()
    gc.collect()
    device.stats()
    assert device.weights.bytes_used == nbytes
    with npu.pack(-B, device=device) as other:
        assert device.weights.bytes_used == 2 * nbytes
        np.testing.assert_array_equal(A @ other, -EXPECTED)
        assert not working.done
        gate.opened.set()
        working.join()
        np.testing.assert_array_equal(working.result, EXPECTED)
    del working
    gc.collect()
    device.stats()
    assert device.weights.bytes_used == 0


def test_a_buffer_in_use_cannot_be_closed(device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    in_place(monkeypatch)
    with npu.pack(B, device=device) as packed:
        a, out = npu.asarray(A, device=device), npu.empty(EXPECTED.shape, np.int32, device=device)
        npu.matmul(a, packed, out=out)
        with sim.configured(device, faults="run:times=1:hang"):
            working = hung_run(device, lambda: npu.matmul(a, packed, out=out))
            for array in (a, out):
                with pytest.raises(errors.BusyError):
                    array.buffer.close()
        working.join()
        np.testing.assert_array_equal(out.numpy(), EXPECTED)
        a.close()
        out.close()


def test_closing_a_device_lets_products_end_and_begins_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    device = npu.Device("sim:rk3588")
    packed = npu.pack(B, device=device)
    np.testing.assert_array_equal(A @ packed, EXPECTED)
    gate = Gate(monkeypatch)
    working = Working(lambda: A @ packed)
    assert gate.reached.wait(60)
    closing = Working(device.close)
    until(lambda: bool(device.session.leases._bars))
    others = [Working(lambda: A @ packed) for _ in range(2)]
    until(lambda: len(device.session.leases._waiting) >= 3)
    assert not closing.done
    assert not device.closed
    gate.opened.set()
    for each in (working, closing, *others):
        each.join()
    np.testing.assert_array_equal(working.result, EXPECTED)
    assert closing.error is None
    assert device.closed
    assert all(isinstance(each.error, errors.ClosedError) for each in others)


def test_closing_that_is_refused_closes_nothing(device: npu.Device) -> None:
    """Though a product is at work: whoever holds views is told at once, and products begin again."""
    with npu.pack(B, device=device) as packed:
        view = device.buffer(4096).array
        with sim.configured(device, faults="run:times=1:hang"):
            working = hung_run(device, lambda: A @ packed)
            with pytest.raises(BufferError, match="views"):
                device.close()
            np.testing.assert_array_equal(A[:2] @ packed, EXPECTED[:2])
            del view
        working.join()
        np.testing.assert_array_equal(working.result, EXPECTED)


@pytest.mark.parametrize("first", ["in place", "stored"])
def test_what_the_cpu_stores_beside_a_product_in_place_is_kept(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    """Both results are in one allocation, which is synchronised as a whole: they wait for each other."""
    in_place(monkeypatch)
    assert os.environ["NPUMATMUL_SIM_STRICT"] == "1"  # conftest.py: caches that are not coherent
    with npu.Device("sim:rk3588") as device:
        packed = npu.pack(B, device=device)
        x, both = npu.asarray(A[:64], device=device), npu.zeros((128, 1536), np.int32, device=device)

        def direct() -> None:
            npu.matmul(x, packed, out=both[:64])

        def stored() -> None:
            npu.matmul(A[64:128], packed, out=both.numpy()[64:128])

        begin, then = (direct, stored) if first == "in place" else (stored, direct)
        with sim.configured(device, faults="run:times=1:hang"):
            working = hung_run(device, begin)
            other = Working(then)
            until(lambda: bool(device.session.leases._waiting))
            np.testing.assert_array_equal(A[128:] @ packed, EXPECTED[128:])
            assert not other.done
        working.join()
        other.join()
        assert (working.error, other.error) == (None, None)
        np.testing.assert_array_equal(both.numpy()[:128], EXPECTED[:128])


def test_what_a_user_writes_beside_a_product_in_place_is_kept(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place(monkeypatch)
    with npu.pack(B, device=device) as packed:
        x, both = npu.asarray(A[:64], device=device), npu.zeros((200, 1536), np.int32, device=device)
        gate = Gate(monkeypatch)
        working = Working(lambda: npu.matmul(x, packed, out=both[:64]))
        assert gate.reached.wait(60)
        both.numpy()[64:] = 7
        gate.opened.set()
        working.join()
        np.testing.assert_array_equal(both.numpy()[:64], EXPECTED[:64])
        assert (both.numpy()[64:] == 7).all()


def test_where_there_is_no_room_a_product_waits_for_another_one(device: npu.Device) -> None:
    """A limit that suffices for one product at a time suffices for several threads."""
    with npu.pack(B, device=device) as packed:
        device.empty_cache()
        np.testing.assert_array_equal(A @ packed, EXPECTED)
        stats = device.memory_stats()
        nbytes = stats.domains[0].workspaces
        device.empty_cache()
        npu.memory_limit(stats.nbytes, device)
        with sim.configured(device, faults="run:times=1:hang"):
            working = hung_run(device, lambda: A @ packed)
            others = [Working(lambda: A @ packed) for _ in range(3)]
            buffer = Working(lambda: device.buffer(nbytes).nbytes)
            until(lambda: len(device.session.leases._waiting) >= 4)
            assert not any(each.done for each in others)
        for each in (working, *others):
            each.join()
            np.testing.assert_array_equal(each.result, EXPECTED)
        buffer.join()
        assert buffer.result == nbytes
        with pytest.raises(errors.NpuMemoryError, match="limit"):  # nobody is at work any more
            device.buffer(stats.nbytes)
        npu.memory_limit(None, device)


def test_an_interrupt_while_waiting_leaves_nothing_behind(device: npu.Device) -> None:
    with npu.pack(B, device=device) as packed:
        device.empty_cache()
        np.testing.assert_array_equal(A @ packed, EXPECTED)
        npu.memory_limit(device.memory_stats().nbytes, device)
        with sim.configured(device, faults="run:times=1:hang"):
            working = hung_run(device, lambda: A @ packed)

            def interrupt() -> None:
                until(lambda: bool(device.session.leases._waiting))
                os.kill(os.getpid(), signal.SIGINT)

            for use in (lambda: A @ packed, device.close):
                device.session.leases._waiting.clear()
                interrupting = Working(interrupt)
                with pytest.raises(KeyboardInterrupt):
                    use()
                interrupting.join()
            assert not working.done
        working.join()
        np.testing.assert_array_equal(working.result, EXPECTED)
        np.testing.assert_array_equal(A @ packed, EXPECTED)
        npu.memory_limit(None, device)
        device.empty_cache()
        assert device.stats().contexts == 1


HANGING = """
import threading
import numpy as np
import npumatmul as npu
from npumatmul import sim

device = npu.Device("sim:rk3588")
packed = npu.pack(np.ones((64, 64), np.int8), device=device)
faults = sim.configured(device, faults="run:hang")
faults.__enter__()
threading.Thread(target=lambda: np.ones((2, 64), np.int8) @ packed, daemon=True).start()
while not sim.counters(device).run_calls:
    pass
print("end")
"""


def test_a_program_ends_though_a_run_hangs() -> None:
    ended = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "end\n")


def test_a_child_of_a_fork_during_a_run_gets_errors(device: npu.Device) -> None:
    packed = npu.pack(B, device=device)
    with sim.configured(device, faults="run:times=1:hang"):
        working = hung_run(device, lambda: A @ packed)
        held, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with device.lock:
                held.set()
                go_on.wait(60)

        holding = Working(hold)
        assert held.wait(60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads
            child = os.fork()
        if child == 0:
            told = 0
            for use in (lambda: A @ packed, lambda: device.buffer(64), lambda: npu.pack(B, device=device)):
                try:
                    use()
                except errors.ClosedError:
                    told += 1
            packed.close()
            device.close()
            os._exit(told)
        go_on.set()
        holding.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    working.join()
    np.testing.assert_array_equal(working.result, EXPECTED)


# ---- the parts -----------------------------------------------------------------------------------------------------


def test_what_is_idle_serves_again() -> None:
    spares: Spares[Any] = Spares()
    made: list[Any] = []

    def make() -> Any:
        made.append(SimpleNamespace(lease=None, close=lambda: None))
        return made[-1]

    leases = [Lease() for _ in range(3)]
    lent = [spares.acquire(lease, make) for lease in leases]
    assert lent == made
    leases[1].over = True
    assert spares.acquire(Lease(), make) is made[1]
    del leases[0]  # nobody holds it any more
    kept = Lease()
    assert spares.acquire(kept, make) is made[0]
    assert len(spares) == 3


@pytest.mark.parametrize(
    ("strided", "inside"),
    [
        (lambda a: a[2:4], True),
        (lambda a: a[3:], False),
        (lambda a: a[::-1], True),
        (lambda a: a[:2], False),
        (lambda a: a[:0:-1], True),
        (lambda a: a[3::-3], True),
        (lambda a: a[:2][::-1], False),
    ],
)
def test_which_stores_disturb(strided: Callable[[np.ndarray], np.ndarray], inside: bool) -> None:
    values = np.zeros((8, 4), np.float32)
    row = values.itemsize * 4
    third = values.ctypes.data + 2 * row
    computing = Lease(computes=(third, third + row - 1))
    storing = Lease(stores=strided(values))
    assert storing.disturbs(computing) is inside
    assert computing.disturbs(storing) is inside
    assert not computing.disturbs(computing)
    assert not storing.disturbs(storing)


def test_whoever_waits_to_be_alone_is_not_overtaken() -> None:
    leases = Leases(threading.RLock())
    gone, mine, turn = Lease(), Lease(), Turn(leases)
    gone.over = True
    mine.thread += 1  # another thread's
    assert leases.enter(mine) == []
    while not leases._bars:
        turn.wait([gone])
    waiting = Working(lambda: turn.wait([mine]))
    until(lambda: bool(leases._waiting))
    late = Lease()
    late.thread += 2
    assert leases.enter(late) == [turn]
    assert not waiting.done
    mine.over = True
    leases.leave(mine)
    waiting.join()
    turn.over = True
    turn.leave()
    assert leases.enter(late) == []


def test_a_lease_serves_again_unless_somebody_waits_for_its_end() -> None:
    leases, mine = Leases(threading.RLock()), Lease()
    assert leases.enter(mine) == []
    assert not leases.enter_again(mine)  # somebody is at work
    mine.over = True
    leases.leave(mine)
    assert leases.enter_again(mine)
    assert not mine.worn
    mine.over = False
    waiting = Working(lambda: leases.wait_for([mine]))
    until(lambda: bool(leases._waiting))
    assert not leases.enter_again(Lease())
    mine.over = True
    leases.leave(mine)
    assert mine.worn
    waiting.join()


def test_nothing_but_the_caller_holds_operands_and_results(device: npu.Device) -> None:
    """What serves the next call as well keeps nothing of the last one's."""
    with npu.use_device(device):
        weight = npu.pack(np.ones((64, 32), np.float32), "w8a8")
        for _ in range(3):
            x = np.ones((2, 64), np.float32)
            y, array = x @ weight, npu.asarray(x) @ weight
            values = np.asarray(array)
            held = [weakref.ref(each) for each in (x, y, array, values)]
            del x, y, array, values
            gc.collect()
            assert [each() for each in held] == [None] * 4


@pytest.mark.parametrize("between", ["another weight", "cleared", "a failure", "an error"])
def test_products_are_right_whatever_was_taken_from_the_last_one(device: npu.Device, between: str) -> None:
    """Calls that follow each other share contexts and buffers; whatever comes between them takes some of these."""
    a, first, second = A[:1, :64], B[:64, :32], B[64:128, :32]
    weight, other = npu.pack(first, device=device), npu.pack(second, device=device)
    takes: dict[str, Callable[[], object]] = {
        "another weight": lambda: np.testing.assert_array_equal(a @ other, a.astype(np.int32) @ second),
        "cleared": lambda: npu.empty_cache(device),
        "a failure": lambda: fail(times=1),
        "an error": lambda: fail(times=2),
    }

    def fail(times: int) -> None:
        with sim.configured(device, faults=f"run:times={times}:code=-1"):
            if times == 1:
                np.testing.assert_array_equal(a @ weight, a.astype(np.int32) @ first)
            else:
                with pytest.raises(errors.RknnError, match="in vain"):
                    a @ weight

    a @ weight
    contexts = device.stats().contexts
    for _ in range(3):
        for _ in range(2):
            np.testing.assert_array_equal(a @ weight, a.astype(np.int32) @ first)
        takes[between]()
    a @ other
    a @ weight
    assert device.stats().contexts == contexts
    assert not at_work(device)


def test_what_is_cleared_during_a_product_goes_when_it_ends(
    device: npu.Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a further product, and though its program may run again."""
    a, weight = A[:1, :64], npu.pack(B[:64, :32], device=device)
    execute, held = Executor.execute, []

    def workspaces() -> int:
        device.session.collect()  # as any call does
        return device.memory_stats().domains[0].workspaces

    def clearing(*given: Any) -> int:
        npu.empty_cache(device)
        held.append(workspaces())
        return execute(*given)

    for _ in range(2):
        a @ weight
        with monkeypatch.context() as patched:
            patched.setattr(Executor, "execute", clearing)
            np.testing.assert_array_equal(a @ weight, a.astype(np.int32) @ B[:64, :32])
        assert held.pop() > 0
        assert workspaces() == 0
