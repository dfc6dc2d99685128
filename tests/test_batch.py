"""`Batch`: rows that are added or handed over, one call, results by index, and nobody spoils another one's row."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from interrupts import interrupted_at
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import errors, nn, sim
from npumatmul.batching.gathering import Gatherer

RNG = np.random.default_rng(5)
W = RNG.standard_normal((96, 40)).astype(np.float32)
X = RNG.standard_normal((12, 96)).astype(np.float32)
FOR_EVER = 3600.0


@pytest.fixture
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened


class Clock:
    """Time that stands still until a test says how much of it passes."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """Work that waits until it may go on, and notes what it was given."""

    def __init__(self) -> None:
        self.begun, self.opened = threading.Semaphore(0), threading.Semaphore(0)
        self.given: list[Any] = []

    def __call__(self, rows: Any) -> Any:
        self.given.append(rows)
        self.begun.release()
        assert self.opened.acquire(timeout=60)
        return rows


# ---- filling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8", "w4a8"])
def test_one_call_gives_what_each_row_gives_alone(device: npu.Device, scheme: str) -> None:
    packed = npu.pack(W, scheme, device=device)
    batch = npu.Batch(packed, 16)
    assert [batch.add(row) for row in X[:5]] == [0, 1, 2, 3, 4]
    batch[9] = X[9]
    batch.add_at(2, X[8])  # in place of the third
    assert batch.add(X[10]) == 10
    results = batch.run()
    rows = {0: 0, 1: 1, 2: 8, 3: 3, 4: 4, 9: 9, 10: 10}
    assert list(results) == list(rows)
    for index, row in rows.items():  # floats are summed in another order for other numbers of rows
        np.testing.assert_allclose(results[index], X[row] @ packed, atol=1e-4 if scheme == "w16a16" else 0)
    assert batch.stats.calls == 1
    with pytest.raises(KeyError, match="no row was added at index 5"):
        results[5]
    batch.clear()
    assert (len(batch), len(batch.run()), batch.stats.calls) == (0, 0, 1)
    assert batch.add(X[0]) == 0


def test_the_whole_batch_is_one_product(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    npu.matmul(X, packed)
    once = device.stats()
    npu.matmul(X, packed)
    calls = device.stats().run_calls - once.run_calls
    batch = npu.Batch(packed, len(X))
    for row in X:
        batch.add(row)
    before = device.stats()
    np.testing.assert_array_equal(batch.run().whole, X @ packed)
    assert device.stats().run_calls - before.run_calls == 2 * calls  # the batch's, and the one that it is held against


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(-8, 7)),
            st.tuples(st.just("at"), st.integers(0, 9), st.integers(-8, 7)),
            st.tuples(st.just("run")),
            st.tuples(st.just("clear")),
        ),
        max_size=30,
    )
)
def test_it_is_a_row_per_index(steps: list[tuple[Any, ...]]) -> None:
    """Against a dict: whatever is added where, in whatever order."""
    batch, model = npu.Batch(lambda rows: rows * 2, 8), dict[int, int]()
    for name, *how in steps:
        if name == "add" and max(model, default=-1) + 1 < 8:
            index = batch.add(np.full(3, how[0]))
            assert index == max(model, default=-1) + 1
            model[index] = how[0]
        elif name == "add":
            with pytest.raises(IndexError, match="it is full"):
                batch.add(np.full(3, how[0]))
        elif name == "at" and how[0] < 8:
            batch[how[0]] = np.full(3, how[1])
            model[how[0]] = how[1]
        elif name == "at":
            with pytest.raises(IndexError, match="rows are at 0 to 7"):
                batch[how[0]] = np.full(3, how[1])
        elif name == "run":
            assert {index: row.tolist() for index, row in batch.run().items()} == {
                i: [2 * v] * 3 for i, v in model.items()
            }
        else:
            batch.clear()
            model.clear()
        assert len(batch) == len(model)


def test_rows_are_copied(device: npu.Device) -> None:
    batch, row = npu.Batch(npu.pack(np.eye(64, dtype=np.float32), device=device), 2), np.ones(64, np.float32)
    batch.add(row)
    row[:] = 9
    assert batch.run()[0].max() == 1


# ---- unfit rows ----------------------------------------------------------------------------------------------------


def bad(values: Any, position: int, value: float) -> NDArray[Any]:
    made = np.array(values)
    made[position] = value
    return made


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        (X[0][:-1], ValueError, r"a row has shape \(95,\), \(96,\) is needed"),
        (X[:1], ValueError, r"a row has shape \(1, 96\)"),
        (bad(X[0], 7, np.nan), errors.NotFiniteError, r"holds nan at \(7,\)"),
        (bad(X[0], 95, -np.inf), errors.NotFiniteError, r"holds -inf at \(95,\)"),
        (
            bad(X[0].astype(np.float64), 3, 1e300),
            errors.NotFiniteError,
            r"holds 1e\+300 at \(3,\), which as float32 is inf",
        ),
        (["a"] * 96, TypeError, "rows are numbers"),
        (X[0] + 1j, TypeError, "rows are numbers"),
        (None, TypeError, "rows are numbers"),
    ],
)
def test_an_unfit_row_is_refused_when_it_is_added(
    device: npu.Device, row: Any, error: type[Exception], message: str
) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    filled = npu.Batch(packed, 4)
    filled.add(X[0])
    with pytest.raises(error, match=message):
        filled.add(row)
    with pytest.raises(error, match=message):
        filled[0] = row
    np.testing.assert_array_equal(filled.run()[0], X[0] @ packed)
    with npu.Batch(packed, 4, max_wait=FOR_EVER) as batch:
        first = batch.submit(X[0])
        with pytest.raises(error, match=message):
            batch.submit(row)
    np.testing.assert_array_equal(first.result(0), X[0] @ packed)


def test_integers_have_to_fit(device: npu.Device) -> None:
    codes = RNG.integers(-9, 9, (64, 32), dtype=np.int8)
    batch = npu.Batch(npu.pack(codes, device=device), 4)
    batch.add(np.arange(64))
    with pytest.raises(ValueError, match="holds values that int8 cannot"):
        batch.add(np.arange(64) * 3)
    with pytest.raises(TypeError, match="would lose its fractions as int8"):
        batch.add(np.ones(64, np.float32))
    np.testing.assert_array_equal(batch.run()[0], np.arange(64) @ codes.astype(np.int32))


def test_what_takes_any_value_is_given_any(device: npu.Device) -> None:
    batch = npu.Batch(npu.pack(np.eye(64, dtype=np.float16), device=device), 2)
    batch.add(bad(np.zeros(64, np.float16), 0, np.inf))
    assert batch.run()[0][0] == np.inf


def test_errors_of_single_rows_are_theirs_alone() -> None:
    """What passes the look at a row, and fails when it is computed."""
    calls: list[int] = []

    def roots(rows: NDArray[Any]) -> NDArray[Any]:
        calls.append(len(rows))
        if rows.min() < 0:
            raise ValueError("a root of something negative")
        return np.sqrt(rows)

    with npu.Batch(roots, 8, max_wait=FOR_EVER) as batch:
        futures = [batch.submit([float(value)]) for value in (4, 9, -1, 16, 25, 36, 49, -64)]
        found = [future.exception(60) or future.result()[0] for future in futures]
    assert [value for value in found if not isinstance(value, Exception)] == [2, 3, 4, 5, 6, 7]
    assert [i for i, value in enumerate(found) if isinstance(value, ValueError)] == [2, 7]
    assert calls == [8, 4, 2, 2, 1, 1, 4, 2, 2, 1, 1]
    assert (batch.stats.items, batch.stats.failed) == (6, 2)


def test_a_check_of_ones_own() -> None:
    def text(row: Any) -> None:
        if not isinstance(row, str) or not row:
            raise ValueError("a text is needed")

    def lengths(texts: list[str]) -> list[int]:
        return [len(text) for text in texts]

    with npu.Batch(lengths, 4, listed=True, check=text, max_wait=FOR_EVER) as batch:
        futures = [batch.submit("one"), batch.submit("three")]
        for unfit in ("", 3):
            with pytest.raises(ValueError, match="a text is needed"):
                batch.submit(unfit)
    assert [future.result(0) for future in futures] == [3, 5]


def test_a_call_that_gives_no_result_for_each_row_is_told() -> None:
    for result, message in ((np.zeros(3), "gave 3 results for 2 rows"), (7, "gave int for 2 rows")):
        batch = npu.Batch(lambda _, result=result: result, 4)
        batch.add([1.0])
        batch.add([2.0])
        with pytest.raises(ValueError, match=message):
            batch.run()
    several = npu.Batch(lambda rows: (rows, {"first": rows[:1]}), 4)
    several.add([1.0])
    assert several.run()[0] == (1.0, {"first": 1.0})
    several.add([2.0])
    with pytest.raises(ValueError, match="gave 1 results for 2 rows"):
        several.run()


# ---- what computes -------------------------------------------------------------------------------------------------


def test_a_matmul_reads_its_rows_where_they_stand(device: npu.Device) -> None:
    packed, bias = npu.pack(W, "w8a8", device=device), RNG.standard_normal(40).astype(np.float32)
    product = npu.Matmul(np.zeros((4, 96), np.float32), packed, bias=bias)
    with pytest.raises(ValueError, match="has 4 rows; size has to be the same, not 8"):
        npu.Batch(product, 8)
    batch = npu.Batch(product, 4)
    for index in (1, 3):
        batch[index] = X[index]
    results = batch.run()
    for index in (1, 3):
        np.testing.assert_array_equal(results[index], npu.matmul(X[index], packed, bias=bias))
    batch.clear()
    batch.add(X[0])
    np.testing.assert_array_equal(batch.run()[0], npu.matmul(X[0], packed, bias=bias))


def test_modules_take_rows_of_any_shape(device: npu.Device) -> None:
    layer = nn.Linear.from_arrays(np.ascontiguousarray(W.T), scheme="w8a8", device=device)
    batch = npu.Batch(layer, 4)
    batch.add(X[0].astype(np.float64))
    assert batch.run()[0].dtype == np.float32
    with pytest.raises(ValueError, match=r"shape \(3, 96\), \(96,\) is needed"):
        batch.add(X[:3])
    deeper = npu.Batch(layer, 4, shape=(3, 96))
    deeper.add(X[:3])
    deeper.add(X[3:6])
    np.testing.assert_array_equal(deeper.run()[1], layer(X[3:6]))
    norm = nn.RMSNorm(96)
    norm.load_state_dict({"weight": np.ones(96, np.float32)})
    block = npu.Batch(norm, 2)
    block.add(X[0].tolist())
    assert block.run()[0].dtype == np.float32


def test_sessions_of_onnx_with_one_input_or_several(device: npu.Device) -> None:
    onnx = pytest.importorskip("onnx")
    from npumatmul.onnx import InferenceSession

    def session(*nodes: Any, inputs: list[Any]) -> Any:
        weight = onnx.numpy_helper.from_array(W, "w")
        out = onnx.helper.make_tensor_value_info("y", 1, ["n", 40])
        graph = onnx.helper.make_graph(list(nodes), "g", inputs, [out], [weight])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        return InferenceSession(model, scheme="w16a16", device=device)

    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    one = session(node("MatMul", ["x", "w"], ["y"]), inputs=[value("x", 1, ["n", 96])])
    batch = npu.Batch(one, 4)
    batch.add(X[0])
    batch.add(X[1])
    with pytest.raises(ValueError, match=r"\(96,\) is needed"):
        batch.add(X[0][:3])
    np.testing.assert_array_equal(batch.run()[1], one.run(None, {"x": X[:2]})[0][1])
    two = session(
        node("Mul", ["x", "m"], ["xm"]), node("MatMul", ["xm", "w"], ["y"]),
        inputs=[value("x", 1, ["n", 96]), value("m", 1, ["n", 1])],
    )  # fmt: skip
    both = npu.Batch(two, 4)
    both.add({"x": X[0], "m": np.ones(1, np.float32)})
    both.add({"x": X[1], "m": np.zeros(1, np.float32)})
    with pytest.raises(ValueError, match="a row has 'x'; the rows of this batch have 'x', 'm'"):
        both.add({"x": X[0]})
    with pytest.raises(TypeError, match="a row has arrays by the names x, m"):
        both.add(X[0])
    results = both.run()
    alone = one.run(None, {"x": np.stack([X[0], 0 * X[1]])})[0]  # as many rows: sums of floats may hang on their number
    np.testing.assert_array_equal(results[0], alone[0])
    assert not results[1].any()


def test_modules_of_pytorch_and_estimators(device: npu.Device) -> None:
    torch = pytest.importorskip("torch")
    from sklearn.linear_model import LinearRegression

    import npumatmul.sklearn
    import npumatmul.torch

    model = torch.nn.Sequential(torch.nn.Linear(96, 40), torch.nn.ReLU())
    with npu.use_device(device):
        npumatmul.torch.offload(model, "w16a16")
    batch = npu.Batch(model, 4)
    batch.add(X[0])
    batch.add(X[1])
    result = batch.run()[1]
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, model(torch.from_numpy(X[:2])).detach().numpy()[1])

    fitted = npumatmul.sklearn.offload(LinearRegression().fit(X, X[:, :3]), device=device)
    rows = npu.Batch(fitted, 4)
    with pytest.raises(ValueError, match=r"\(96,\) is needed"):
        rows.add(X[0][:5])
    rows.add(X[3])
    np.testing.assert_array_equal(rows.run()[0], fitted.predict(X[3:4])[0])


def test_what_cannot_compute_rows_is_told() -> None:
    with pytest.raises(TypeError, match="int computes no rows"):
        npu.Batch(3, 4)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="it is at least 1"):
            npu.Batch(np.sum, wrong)
    for kind in (1.5, True, "4"):
        with pytest.raises(TypeError, match="it is a number of rows"):
            npu.Batch(np.sum, kind)  # type: ignore[arg-type]
    for seconds in (-1, float("nan")):
        with pytest.raises(ValueError, match="max_wait"):
            npu.Batch(np.sum, 4, max_wait=seconds)
    with pytest.raises(TypeError, match="neither shape nor dtype"):
        npu.Batch(np.sum, 4, listed=True, shape=(3,))
    with pytest.raises(TypeError, match="limit is for rows that wait"):
        npu.Batch(np.sum, 4, limit=3)
    with pytest.raises(TypeError, match="submit needs max_wait"):
        npu.Batch(np.sum, 4).submit([1.0])
    with npu.Batch(np.sum, 4, max_wait=1.0) as gathering, pytest.raises(TypeError, match="handed over by submit"):
        gathering.add([1.0])


def test_who_is_called_adds_nothing() -> None:
    batch = npu.Batch(lambda rows: batch.add([1.0]), 4)
    batch.add([0.0])
    with pytest.raises(errors.BusyError, match="it is being computed by this thread"):
        batch.run()
    assert batch.add([1.0]) == 1


# ---- gathering -----------------------------------------------------------------------------------------------------


def test_it_runs_when_it_is_full_or_the_oldest_has_waited() -> None:
    clock, given = Clock(), list[int]()

    def work(rows: NDArray[Any]) -> NDArray[Any]:
        given.append(len(rows))
        return rows

    with npu.Batch(work, 3, max_wait=5.0, _clock=clock) as batch:
        full = [batch.submit([float(i)]) for i in range(3)]
        assert [future.result(60)[0] for future in full] == [0, 1, 2]
        few = [batch.submit([7.0])]
        clock.now = 4.0
        few.append(batch.submit([8.0]))
        wake(batch)
        assert len(batch) == 2  # the oldest waits for four seconds
        clock.now = 5.0
        wake(batch)
        assert [future.result(60)[0] for future in few] == [7, 8]
        many = [batch.submit([float(i)]) for i in range(7)]
        assert [future.result(60)[0] for future in many[:6]] == list(range(6))
        assert len(batch) == 1
    assert many[6].result(0)[0] == 6
    assert given == [3, 2, 3, 3, 1]


def wake(batch: npu.Batch) -> None:
    assert batch._gatherer is not None
    batch._gatherer.wake()


def test_what_comes_while_a_call_is_made_is_gathered() -> None:
    gate = Gate()
    with npu.Batch(gate, 8, max_wait=0.0) as batch:
        first = batch.submit([0.0])
        assert gate.begun.acquire(timeout=60)
        others = [batch.submit([float(i)]) for i in range(1, 12)]
        for _ in range(3):
            gate.opened.release()
        assert [future.result(60)[0] for future in (first, *others)] == list(range(12))
    assert [len(rows) for rows in gate.given] == [1, 8, 3]


def test_what_is_cancelled_is_not_computed() -> None:
    gate = Gate()
    with npu.Batch(gate, 2, max_wait=0.0) as batch:
        running = batch.submit([0.0])
        assert gate.begun.acquire(timeout=60)
        waiting = [batch.submit([float(i)]) for i in (1, 2, 3)]
        assert not running.cancel()
        assert waiting[0].cancel()
        assert len(batch) == 2
        for _ in range(2):
            gate.opened.release()
        assert [future.result(60)[0] for future in waiting[1:]] == [2, 3]
    with pytest.raises(CancelledError):
        waiting[0].result(0)
    assert [rows.ravel().tolist() for rows in gate.given] == [[0], [2, 3]]


def test_closing_computes_what_waits_or_cancels_it() -> None:
    for cancel in (False, True):
        gate = Gate()
        batch = npu.Batch(gate, 2, max_wait=0.0)
        running = batch.submit([0.0])
        assert gate.begun.acquire(timeout=60)
        waiting = [batch.submit([float(i)]) for i in range(1, 6)]
        told: list[int] = []

        def tell(_: Future[Any], batch: npu.Batch = batch, told: list[int] = told) -> None:
            told.append(len(batch))  # whoever is told may come back

        for future in waiting:
            future.add_done_callback(tell)
        assert not batch.close(cancel=cancel, timeout=0)
        with pytest.raises(errors.ClosedError, match="is closed"):
            batch.submit([9.0])
        for _ in range(4):
            gate.opened.release()
        assert batch.close()
        assert running.result(0)[0] == 0
        assert len(told) == 5
        assert all(future.cancelled() == cancel for future in waiting)
        if not cancel:
            assert [future.result(0)[0] for future in waiting] == [1, 2, 3, 4, 5]


def test_too_many_are_refused() -> None:
    gate = Gate()
    with npu.Batch(gate, 2, max_wait=0.0, limit=3) as batch:
        batch.submit([0.0])
        assert gate.begun.acquire(timeout=60)
        futures = [batch.submit([float(i)]) for i in range(3)]
        with pytest.raises(errors.BusyError, match="3 are waiting already, which is the limit"):
            batch.submit([9.0])
        assert futures[1].cancel()
        batch.submit([4.0])  # there is room again
        for _ in range(5):
            gate.opened.release()
    assert batch.stats.refused == 1


def test_rows_can_be_awaited(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)

    async def work(batch: npu.Batch) -> list[Any]:
        return list(await asyncio.gather(*(batch.submit(row) for row in X)))

    with npu.Batch(packed, len(X), max_wait=FOR_EVER) as batch:
        results = asyncio.run(work(batch))
    np.testing.assert_array_equal(results, X @ packed)
    assert batch.stats.calls == 1


def test_it_computes_in_the_scope_in_which_it_was_made(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    with npu.config(processor="cpu"):
        batch = npu.Batch(packed, 4, max_wait=0.0)
    before = device.stats()
    with batch:
        batch.submit(X[0]).result(60)
    after = device.stats()
    assert (after.run_calls, after.cpu_macs - before.cpu_macs) == (before.run_calls, 96 * 40)


def test_rows_of_a_call_that_fails_get_its_error_and_no_others(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    expected = X @ packed
    with npu.Batch(packed, 4, max_wait=FOR_EVER) as batch:
        with sim.configured(device, faults="run:times=1:code=-2"):  # made good by a fresh context
            good = [batch.submit(row).result for row in X[:4]]
            np.testing.assert_array_equal([each(60) for each in good], expected[:4])
        with sim.configured(device, faults="run:times=2:code=-2"):
            failing = [batch.submit(row) for row in X[:4]]
            for future in failing:
                assert isinstance(future.exception(60), errors.RknnTimeout)
        after = [batch.submit(row) for row in X[4:8]]
        np.testing.assert_array_equal([future.result(60) for future in after], expected[4:8])
    assert (batch.stats.calls, batch.stats.items, batch.stats.failed) == (3, 8, 4)


def test_who_computes_does_not_wait_for_itself() -> None:
    def work(rows: NDArray[Any]) -> NDArray[Any]:
        if rows[0, 0] == 1:
            batch.submit([2.0]).result()
        return rows

    batch = npu.Batch(work, 1, max_wait=0.0)
    with batch, pytest.raises(errors.BusyError, match="which might never come"):
        batch.submit([1.0]).result(60)


def test_many_threads_get_each_their_own(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    expected, found = X @ packed, dict[tuple[int, int], Any]()
    with npu.Batch(packed, 8, max_wait=0.001) as batch:

        def client(number: int) -> None:
            for turn in range(12):
                found[number, turn] = batch.submit(X[(number + turn) % 12]).result(60)

        threads = [threading.Thread(target=client, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for (number, turn), row in found.items():
        np.testing.assert_array_equal(row, expected[(number + turn) % 12])
    assert batch.stats.items == len(found) == 72
    assert batch.stats.calls < 72


def test_a_dropped_batch_computes_what_waits_and_its_thread_ends(device: npu.Device) -> None:
    packed = npu.pack(W, "w8a8", device=device)
    batch = npu.Batch(packed, 8, max_wait=FOR_EVER)
    (thread,) = (future := batch.submit(X[0])) and batch._gatherer._threads  # type: ignore[union-attr]
    gone = weakref.ref(batch)
    del batch
    gc.collect()
    assert gone() is None
    np.testing.assert_array_equal(future.result(60), X[0] @ packed)
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()


PROGRAM = """
import numpy as np, npumatmul as npu
w = npu.pack(np.eye(64, dtype=np.float32), device="sim:rk3588")
batch = npu.Batch(w, 8, max_wait=3600)
for i in range(3):
    batch.submit(np.full(64, i)).add_done_callback(lambda done: print(done.result()[0], flush=True))
"""


def test_what_was_handed_over_is_computed_before_a_program_ends() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    assert (done.stdout.split(), done.stderr) == (["0.0", "1.0", "2.0"], "")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # Python 3.12 warns of it
def test_a_forked_child_is_told() -> None:
    gate = Gate()
    filled = npu.Batch(np.asarray, 4)
    filled.add([1.0])
    with npu.Batch(gate, 4, max_wait=0.0) as batch:
        future = batch.submit([1.0])
        assert gate.begun.acquire(timeout=60)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            for call in (lambda: batch.submit([2.0]), future.result, filled.run, lambda: filled.add([1.0])):
                os.write(write, said(call).encode() + b"\n")
            batch.close()
            os._exit(0)
        os.close(write)
        with os.fdopen(read) as pipe:
            lines = pipe.read().splitlines()
        os.waitpid(child, 0)
        gate.opened.release()
        assert future.result(60)[0] == 1
    assert len(lines) == 4
    assert all("ClosedError" in line and "fork" in line for line in lines)


def said(call: Callable[[], object]) -> str:
    try:
        return f"no error: {call()!r}"
    except BaseException as error:
        return repr(error)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_anywhere_spoils_nothing() -> None:
    filled = npu.Batch(np.negative, 4)

    def fill() -> None:
        filled.clear()
        filled.add([1.0])
        filled.run()

    with npu.Batch(np.negative, 2, max_wait=0.0) as batch:
        for work in (
            fill,
            lambda: batch.submit([1.0]).result(60),
            lambda: npu.Batch(np.negative, 2, max_wait=0.0).close(),
        ):
            work()
            position = 0
            while interrupted_at(position, work):
                position += 1
                futures = [batch.submit([float(value)]) for value in range(3)]
                assert [future.result(60)[0] for future in futures] == [0, -1, -2]
                filled.clear()
                filled.add_at(2, [5.0])
                assert {index: row.tolist() for index, row in filled.run().items()} == {2: [-5.0]}
            assert position > 10


# ---- when it is time: against a model ------------------------------------------------------------------------------


class Gathering(RuleBasedStateMachine):
    """One thread's view of the queue, with a clock of its own: who is taken, and when."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.gatherer = Gatherer(list, "test", 3, 10.0, 6, clock=self.clock)
        self.gatherer._start = lambda: None  # type: ignore[method-assign]  # nobody computes but this thread
        self.model: list[tuple[int, float]] = []
        self.futures: dict[int, Any] = {}
        self.count = 0

    @rule()
    def submit(self) -> None:
        if len(self.model) == 6:
            with pytest.raises(errors.BusyError):
                self.gatherer.submit(self.count)
            return
        self.futures[self.count] = self.gatherer.submit(self.count)
        self.model.append((self.count, self.clock.now))
        self.count += 1

    @rule(data=st.data())
    @precondition(lambda self: self.model)
    def cancel(self, data: Any) -> None:
        entry = data.draw(st.sampled_from(self.model))
        assert self.futures[entry[0]].cancel()
        self.model.remove(entry)

    @rule(seconds=st.integers(0, 6))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    @precondition(lambda self: len(self.model) >= 3 or (self.model and self.clock.now - self.model[0][1] >= 10))
    def it_is_time(self) -> None:
        assert self.gatherer._wait()
        taken = self.gatherer._take()
        assert [item.value for item in taken] == [value for value, _ in self.model[:3]]
        del self.model[:3]

    @rule()
    @precondition(lambda self: len(self.model) < 3 and not (self.model and self.clock.now - self.model[0][1] >= 10))
    def it_is_not(self) -> None:
        assert self.gatherer._take() == []

    @invariant()
    def all_are_there(self) -> None:
        assert self.gatherer.waiting == len(self.model)


TestGathering = Gathering.TestCase
