"""Recording of steps: what is heard of, what is refused, and where results stand when steps run again."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import nn
from npumatmul.host import layers
from npumatmul.host.executor import Function
from npumatmul.running.recorded import RecordedBlock, RecordedProgram, _laid_out
from npumatmul.running.recording import Recorder, recording

Float32 = NDArray[np.float32]
RNG = np.random.default_rng(11)
WEIGHTS = [npu.pack(RNG.standard_normal((32, 32)).astype(np.float32), scheme) for scheme in ("w8a8", "w16a16", "w4a4")]
CACHE = nn.KVCache(1, 1, 1)


def rows(count: int = 2, width: int = 32) -> Float32:
    return RNG.standard_normal((count, width)).astype(np.float32)


def recorded(x: Float32, work: Any) -> tuple[Recorder, RecordedBlock | None]:
    with recording(x) as recorder:
        y = work(x)
    return recorder, RecordedBlock.of(recorder, y)


def chain(x: Float32) -> Float32:
    """All kinds of steps, with views, a bias and an epilogue."""
    y = npu.matmul(x, WEIGHTS[0], bias=np.arange(32, dtype=np.float32))
    y = layers.add(y, layers.rms_norm(x, np.full(32, 2, np.float32), 1 / 32, 1e-6), 0.5)
    z = npu.matmul(y, WEIGHTS[1], epilogue=npu.Epilogue(activation="gelu"))
    z = layers.gate(z[:, :16], Function.SILU, z[:, 16:])
    y = layers.layer_norm(y, np.ones(32, np.float32), np.ones(32, np.float32), 1 / 32, 1e-5)
    wide = npu.matmul(layers.scale(y, 3.0), WEIGHTS[2])
    return layers.add(wide, nn.activate(y, "gelu_tanh")) if z.size else wide


@pytest.mark.parametrize("count", [1, 2, 5])
def test_steps_give_the_same_bits_of_other_rows(count: int) -> None:
    recorder, block = recorded(rows(count), chain)
    assert block is not None, recorder.refused
    program = RecordedProgram([block])
    for _ in range(3):
        x = rows(count)
        again = program.run_blocks(x, [CACHE], [count], None)
        assert again is not None
        assert again.tobytes() == chain(x).tobytes()


def test_blocks_follow_each_other() -> None:
    x = rows()
    blocks = []
    for _ in range(3):
        with recording(x) as recorder:
            y = chain(x)
        made = RecordedBlock.of(recorder, y)
        assert made is not None
        blocks.append(made)
        x = y
    program = RecordedProgram(blocks)
    x = rows()
    whole = program.run_blocks(x, [CACHE], [2], CACHE)
    assert whole is not None
    right, part = chain(chain(chain(x))), x
    for i in range(3):
        assert program.run_blocks(rows(), [CACHE], [2], None) is not None, "others run between"
        following = program.run_blocks(part, [CACHE], [2], None, i, i + 1)
        assert following is not None
        part = following
    assert whole.tobytes() == part.tobytes() == right.tobytes()


def test_a_result_is_not_that_of_the_next_run() -> None:
    _, block = recorded(rows(), chain)
    assert block is not None
    program = RecordedProgram([block])
    x = rows()
    first = program.run_blocks(x, [CACHE], [2], None)
    assert first is not None
    program.run_blocks(rows(), [CACHE], [2], None)
    assert first.tobytes() == chain(x).tobytes()


def test_one_run_at_a_time_and_none_is_held_for_ever() -> None:
    inner: list[object] = []

    def own(x: Float32, given: Any) -> Float32:
        if given is not None:
            given()
        return x * 2

    def work(x: Float32) -> Float32:
        recorder = layers.RECORDER.get()
        y: Float32 = recorder.called(own, npu.matmul(x, WEIGHTS[0]), None)
        return y

    _, block = recorded(rows(), work)
    assert block is not None
    program = RecordedProgram([block])
    x = rows()
    right = npu.matmul(x, WEIGHTS[0]) * 2

    def again() -> None:
        inner.append(program.run_blocks(x, [CACHE], [2], None))

    def interrupted() -> None:
        raise KeyboardInterrupt

    made = program.run_blocks(x, [CACHE], [2], again)
    assert made is not None
    assert inner == [None]
    assert made.tobytes() == right.tobytes()
    kept: list[BaseException] = []
    for _ in range(2):
        try:
            program.run_blocks(x, [CACHE], [2], interrupted)
        except KeyboardInterrupt as error:
            kept.append(error)  # and with it the frames
    assert len(kept) == 2
    once_more = program.run_blocks(x, [CACHE], [2], None)
    assert once_more is not None
    assert once_more.tobytes() == right.tobytes()


def test_weights_of_norms_that_are_copied_for_each_call_are_refused() -> None:
    half = np.ones(32, np.float16)
    recorder, block = recorded(rows(), lambda x: layers.layer_norm(x, half, None, 1 / 32, 0.0))  # type: ignore[arg-type]
    assert block is None
    assert recorder.refused is not None
    assert "copied for each call" in recorder.refused


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (lambda x: npu.matmul(x * 2, WEIGHTS[0]), "no step has written"),
        (lambda x: npu.matmul(x, WEIGHTS[0]) + 1, "no step has written"),
        (lambda x: npu.matmul(x, WEIGHTS[0])[:1], "no step has written"),
        (lambda x: x, "where the computation began"),
        (lambda x: npu.matmul(np.asfortranarray(x), WEIGHTS[0]), "more than one call"),
        (lambda x: npu.matmul(x, WEIGHTS[0], epilogue=npu.Epilogue(residual=x)), "more than one call"),
        (lambda x: npu.matmul(x, WEIGHTS[0], dtype=np.float16), "more than one call"),
        (lambda x: npu.matmul(x, WEIGHTS[0], np.empty((2, 32), np.float32)), "more than one call"),
    ],
)
def test_what_cannot_be_run_again_is_refused(work: Any, why: str) -> None:
    recorder, block = recorded(rows(), work)
    assert block is None
    assert recorder.refused is not None
    assert why in recorder.refused


def test_calls_of_python_are_made_again() -> None:
    given_: list[object] = []

    def own(x: Float32, given: object) -> Float32:
        given_.append(given)
        y: Float32 = np.sort(x, axis=1)
        return y

    def work(x: Float32) -> Float32:
        y = npu.matmul(x, WEIGHTS[0])
        recorder = layers.RECORDER.get()
        y = own(y, None) if recorder is None else recorder.called(own, y, "first")
        return npu.matmul(y, WEIGHTS[0])

    recorder, block = recorded(rows(), work)
    assert block is not None, recorder.refused
    program = RecordedProgram([block])
    x = rows()
    again = program.run_blocks(x, [CACHE], [2], CACHE)
    assert again is not None
    assert again.tobytes() == work(x).tobytes()
    assert given_ == ["first", CACHE, None]


def test_without_products_there_is_no_program() -> None:
    _, block = recorded(rows(), lambda x: layers.scale(x, 2.0))
    assert block is not None
    with pytest.raises(ValueError, match="no step is a product"):
        RecordedProgram([block])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_buffers_that_are_needed_at_once_stand_apart(reads: list[tuple[int, int]]) -> None:
    """Each step reads two of those that were written before, chosen at random."""
    x = np.ones((3, 5), np.float32)

    def work(x: Float32) -> Float32:
        made = [x]
        for one, other in reads:
            made.append(layers.add(made[one % len(made)], made[other % len(made)]))
        return made[-1]

    _, block = recorded(x, work)
    assert block is not None
    offsets, size = _laid_out(block)
    for one, other in combinations(offsets, 2):
        if one.first <= other.last and other.first <= one.last:
            ends = [(offsets[each], offsets[each] + each.stop - each.start) for each in (one, other)]
            assert ends[0][1] <= ends[1][0] or ends[1][1] <= ends[0][0]
    assert all(offset + buffer.stop - buffer.start <= size for buffer, offset in offsets.items())


def test_buffers_give_way_to_others() -> None:
    def work(x: Float32) -> Float32:
        for _ in range(20):
            x = layers.scale(x, 1.5)
        return x

    _, block = recorded(rows(1, 16), work)
    assert block is not None
    offsets, size = _laid_out(block)
    assert len(offsets) == 19, "all but what it begins and ends with"
    assert size == 2 * 64
