"""Several sequences in one step: as many products as for one of them, and each answer is that of its prompt alone."""

from __future__ import annotations

import ctypes
import random
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from interrupts import interrupted_at
from llm_models import greedy, write_tokenizer
from model_zoo import VARIANTS, torch_model, write_folder

import npumatmul as npu
import npumatmul.llm
from npumatmul.llm import Model, StopReason
from npumatmul.llm.models.together import forward_together
from npumatmul.llm.run import sharing
from npumatmul.llm.run.turns import Turns

PROMPTS = [[10, 200, 30, 40], [1, 2, 3], [4, 5], [200] * 10]


@pytest.fixture
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads wait for each other as long as it takes, so that counts do not depend on the machine."""
    monkeypatch.setattr(sharing, "PATIENCE", 1e12)
    monkeypatch.setattr(sharing, "MOST_PATIENCE", 60)


@pytest.fixture
def rows_of_head(monkeypatch: pytest.MonkeyPatch, model: Model) -> list[int]:
    """Rows of each product with the output matrix, of any model in float32."""
    seen: list[int] = []
    kind = type(model._model.linears["head"])
    original = kind.__call__

    def counted(self: Any, x: Any) -> Any:
        if self.shape[1] == 264:
            seen.append(len(x))
        return original(self, x)

    monkeypatch.setattr(kind, "__call__", counted)
    return seen


def in_threads(*works: Callable[[], object]) -> None:
    threads = [threading.Thread(target=work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


@pytest.mark.usefixtures("patient")
def test_threads_share_the_steps_of_a_model(tiny: Any, model: Model, rows_of_head: list[int]) -> None:
    running = [model.generate(prompt, max_tokens=6, stop_ids=()) for prompt in PROMPTS]
    got = [[next(each).token] for each in running]
    assert rows_of_head == [1, 1, 1, 1]  # prompts, one by one
    rows_of_head.clear()

    def rest(index: int) -> Callable[[], None]:
        return lambda: got[index].extend(piece.token for piece in running[index])

    in_threads(*(rest(i) for i in range(4)))
    assert got == [greedy(tiny, prompt, 6) for prompt in PROMPTS]
    assert rows_of_head == [4] * 5
    assert [(each.stats.steps, each.stats.shared_steps) for each in running] == [(6, 5)] * 4


@pytest.mark.usefixtures("patient")
def test_sequences_come_and_go(tiny: Any, model: Model, rows_of_head: list[int]) -> None:
    """One ends early, and one begins while others are at work."""
    counts = [3, 9, 9]
    running = [model.generate(PROMPTS[i], max_tokens=counts[i], stop_ids=()) for i in range(3)]
    got = [[next(each).token] for each in running]
    late: list[int] = []

    def rest(index: int) -> None:
        for piece in running[index]:
            got[index].append(piece.token)
            if index == 0 and len(got[0]) == 3:
                late.extend(p.token for p in model.generate(PROMPTS[3], max_tokens=4, stop_ids=()))

    in_threads(*(lambda i=i: rest(i) for i in range(3)))  # type: ignore[misc]
    assert got == [greedy(tiny, PROMPTS[i], counts[i]) for i in range(3)]
    assert late == greedy(tiny, PROMPTS[3], 4)
    steps = sum(1 for each in running for _ in range(each.stats.steps)) + 4
    assert sum(rows_of_head) == steps
    assert rows_of_head.count(3) >= 2
    assert len(rows_of_head) < steps


def test_one_sequence_costs_what_it_did(model: Model, rows_of_head: list[int]) -> None:
    generation = model.generate(PROMPTS[0], max_tokens=6, stop_ids=())
    assert len(list(generation)) == 6
    assert rows_of_head == [1] * 6
    assert generation.stats.shared_steps == 0


def test_a_token_of_one_sequence_has_a_budget(model: Model) -> None:
    """Calls of Python functions that a token takes beside the model: those of steps and turns, choosing, and texts."""
    generation = model.generate(PROMPTS[0], max_tokens=30, stop_ids=())
    for _ in range(5):
        next(generation)
    calls = 0

    def profile(frame: Any, event: str, _: object) -> None:
        nonlocal calls
        calls += event == "call" and "npumatmul/llm/run" in frame.f_code.co_filename

    sys.setprofile(profile)
    try:
        for _ in range(10):
            next(generation)
    finally:
        sys.setprofile(None)
    assert calls <= 10 * 60


def test_a_batch_of_prompts_in_one_thread(tiny: Any, model: Model, rows_of_head: list[int]) -> None:
    batch = model.generate_batch(PROMPTS, max_tokens=5, stop_ids=())
    got: list[list[int]] = [[] for _ in PROMPTS]
    for number, piece in batch:
        got[number].append(piece.token)
    assert got == [greedy(tiny, prompt, 5) for prompt in PROMPTS] == [each.ids for each in batch.generations]
    assert rows_of_head == [1] * 4 + [4] * 4
    assert all(each.stats.stop_reason is StopReason.MAX_TOKENS for each in batch.generations)
    assert next(batch, None) is None
    assert len(model.prefixes) == 4


def test_more_rows_than_a_step_has(tiny: Any, model: Model, rows_of_head: list[int], monkeypatch: Any) -> None:
    monkeypatch.setattr(sharing, "MOST_ROWS", 3)
    batch = model.generate_batch(PROMPTS, max_tokens=3, stop_ids=())
    list(batch)
    assert [each.ids for each in batch.generations] == [greedy(tiny, prompt, 3) for prompt in PROMPTS]
    assert rows_of_head == [1] * 4 + [3, 1] * 2


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_integers_are_the_same_bit_for_bit(tiny: Any, scheme: str) -> None:
    with npu.Device("sim:rk3588") as device, npumatmul.llm.load(tiny.path, scheme, device=device) as model:
        alone = [list(model.generate(each, max_tokens=4, stop_ids=(), logprobs=264)) for each in PROMPTS]
        model.prefixes.clear()
        together: list[list[Any]] = [[] for _ in PROMPTS]
        for number, piece in model.generate_batch(PROMPTS, max_tokens=4, stop_ids=(), logprobs=264):
            together[number].append(piece)
        assert [[p[:4] for p in each] for each in together] == [[p[:4] for p in each] for each in alone]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: f"{v.model_type}-{v.what}".replace(" ", "-"))
def test_every_architecture_goes_together(variant: Any, tmp_path: Any) -> None:
    """Also those with windows, experts, and other rotations from some length on."""
    torch = torch_model(variant)
    folder = write_folder(tmp_path / "m", variant, torch)
    write_tokenizer(folder)
    loaded = npumatmul.llm.load_model(folder, pack=npumatmul.llm.numpy_pack)
    model, rng = loaded.model, np.random.default_rng(0)
    texts = [rng.integers(0, 250, size).tolist() for size in (3, 12, 20)]
    more = [[int(i)] for i in rng.integers(0, 250, 3)]
    caches = [model.new_cache() for _ in texts]
    for text, cache in zip(texts, caches, strict=True):
        model.forward(text, cache)
    copies = [cache.fork() for cache in caches]
    more[1] = [7, 8, 9]
    found = forward_together(model, more, caches, [1, 2, 1])
    for new, cache, logits, rows in zip(more, copies, found, [1, 2, 1], strict=True):
        expected = model.forward(new, cache, all_logits=True)[-rows:]
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert [cache.tokens for cache in caches] == [cache.tokens for cache in copies]


EXACT = [
    v for v in VARIANTS if "window" in v.what or v.model_type in ("gemma3_text", "gpt_oss", "qwen3_moe", "granite")
]


@pytest.mark.parametrize("variant", EXACT, ids=lambda v: f"{v.model_type}-{v.what}".replace(" ", "-"))
def test_tokens_that_come_together_give_the_bits_of_those_that_come_alone(variant: Any, tmp_path: Any) -> None:
    """With products of integers: windows, sinks, soft caps, experts; caches of their own, forked ones and of int8."""
    folder = write_folder(tmp_path / "m", variant, torch_model(variant))
    write_tokenizer(folder)
    rng = np.random.default_rng(1)
    text, more = rng.integers(0, 250, 20).tolist(), rng.integers(0, 250, 6).tolist()
    with npumatmul.llm.load(folder, "w8a8", device="sim:rk3588", cache=False) as loaded:
        model = loaded._model
        for dtype in ("float32", "int8"):
            pairs = [[model.new_cache(dtype=dtype) for _ in range(2)] for _ in range(2)]
            for cache in (*pairs[0], *pairs[1]):
                model.forward(text, cache)
            pairs[1] = [cache.fork() for cache in pairs[1]]
            for one, other in pairs:
                expected = [model.forward([token], one) for token in more]
                (found,) = forward_together(model, [more], [other], [6])
                assert (found == np.stack(expected)).all()


def failing_at(monkeypatch: pytest.MonkeyPatch, model: Model, token: int) -> None:
    """Embeddings of one token fail."""
    original = model._model.embed

    def embed(tokens: Any) -> Any:
        if token in np.asarray(tokens):
            raise RuntimeError("a token that fails")
        return original(tokens)

    monkeypatch.setattr(model._model, "embed", embed)


def test_what_fails_concerns_one_of_a_batch(tiny: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [greedy(tiny, prompt, 6) for prompt in PROMPTS]
    bad = expected[1][2]
    assert all(bad not in each[:5] for i, each in enumerate(expected) if i != 1)
    failing_at(monkeypatch, model, bad)
    batch = model.generate_batch(PROMPTS, max_tokens=6, stop_ids=())
    failures = 0
    while True:
        try:
            next(batch)
        except StopIteration:
            break
        except RuntimeError:
            failures += 1
    assert failures == 1
    assert [each.ids for each in batch.generations] == [expected[0], expected[1][:3], *expected[2:]]
    assert batch.generations[1].stats.stop_reason is StopReason.INTERRUPTED


@pytest.mark.usefixtures("patient")
def test_what_fails_concerns_one_of_the_threads(tiny: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [greedy(tiny, prompt, 6) for prompt in PROMPTS]
    failing_at(monkeypatch, model, expected[1][2])
    running = [model.generate(prompt, max_tokens=6, stop_ids=()) for prompt in PROMPTS]
    for each in running:
        next(each)
    failed: list[int] = []

    def rest(index: int) -> None:
        try:
            list(running[index])
        except RuntimeError:
            failed.append(index)

    in_threads(*(lambda i=i: rest(i) for i in range(4)))  # type: ignore[misc]
    assert failed == [1]
    assert [each.ids for each in running] == [expected[0], expected[1][:3], *expected[2:]]


@pytest.mark.usefixtures("patient")
def test_an_interrupt_concerns_the_thread_that_it_hits(
    tiny: Any, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever computes a step for all is interrupted in its midst, once; the others' tokens are not lost."""
    original, hit = model._model.logits, list[int]()

    def logits(x: Any) -> Any:
        if len(x) == 4 and not hit:
            hit.append(threading.get_ident())
            raise KeyboardInterrupt
        return original(x)

    running = [model.generate(prompt, max_tokens=6, stop_ids=()) for prompt in PROMPTS]
    for each in running:
        next(each)
    monkeypatch.setattr(model._model, "logits", logits)
    interrupted: list[int] = []

    def rest(index: int) -> None:
        try:
            list(running[index])
        except KeyboardInterrupt:
            interrupted.append(index)

    in_threads(*(lambda i=i: rest(i) for i in range(4)))  # type: ignore[misc]
    assert len(interrupted) == 1
    for index, generation in enumerate(running):
        expected = greedy(tiny, PROMPTS[index], 6)
        assert generation.ids == (expected[:1] if index in interrupted else expected)


def test_cancelling_one_of_a_batch(tiny: Any, model: Model) -> None:
    batch = model.generate_batch(PROMPTS, max_tokens=6, stop_ids=())
    for _ in range(8):
        next(batch)
    batch.generations[2].cancel()
    list(batch)
    assert [len(each.ids) for each in batch.generations] == [6, 6, 2, 6]
    assert batch.generations[2].stats.stop_reason is StopReason.INTERRUPTED
    assert batch.generations[3].ids == greedy(tiny, PROMPTS[3], 6)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of generators that are dropped
def test_an_interrupt_anywhere_in_a_batch_leaves_a_model_that_answers(tiny: Any, model: Model) -> None:
    prompts = PROMPTS[:2]
    expected = [greedy(tiny, prompt, 2) for prompt in prompts]

    def answer() -> list[list[int]]:
        batch = model.generate_batch(prompts, max_tokens=2, stop_ids=())
        list(batch)
        return [each.ids for each in batch.generations]

    position = 0
    while interrupted_at(position, answer):
        assert answer() == expected
        position += 11
    assert position > 200


def test_a_batch_that_is_interrupted_can_go_on(tiny: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = model._model.logits, list[int]()

    def logits(x: Any) -> Any:
        calls.append(len(x))
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(x)

    batch = model.generate_batch(PROMPTS, max_tokens=5, stop_ids=())
    monkeypatch.setattr(model._model, "logits", logits)
    with pytest.raises(KeyboardInterrupt):
        list(batch)
    list(batch)
    assert [each.ids for each in batch.generations] == [greedy(tiny, prompt, 5) for prompt in PROMPTS]


def test_many_threads_that_come_and_go_as_they_like(tiny: Any, model: Model) -> None:
    """Prompts, answers and cancelled ones mixed; who is not cancelled gets what it would alone."""
    expected = {i: greedy(tiny, PROMPTS[i], 8) for i in range(4)}
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(6):
            index, count, stop = rng.randrange(4), rng.randint(1, 8), rng.randrange(12)
            generation = model.generate(PROMPTS[index], max_tokens=count, stop_ids=())
            for number, _ in enumerate(generation):
                if number == stop:
                    generation.cancel()
            if generation.ids != expected[index][: len(generation.ids)]:
                wrong.append((index, generation.ids))
            if stop >= count and len(generation.ids) != count:
                wrong.append((index, count, generation.stats))

    in_threads(*(lambda seed=seed: work(seed) for seed in range(6)))  # type: ignore[misc]
    assert wrong == []
    assert model._turns.waiting == 0


@pytest.fixture
def held(model: Model, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """The step of two sequences stops in its midst: an event that says so, and one that lets it go on."""
    reached, go_on, original = threading.Event(), threading.Event(), model._model.logits

    def logits(x: Any) -> Any:
        if len(x) == 2 and not reached.is_set():
            reached.set()
            assert go_on.wait(60)
        return original(x)

    monkeypatch.setattr(model._model, "logits", logits)
    yield reached, go_on
    go_on.set()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("how", ["cancelled", "interrupted"])
def test_who_stops_while_another_thread_computes_its_step(
    tiny: Any, model: Model, held: tuple[threading.Event, threading.Event], how: str
) -> None:
    """A cache that another thread writes to is nobody else's meanwhile."""
    reached, go_on = held
    running = [model.generate(prompt, max_tokens=6, stop_ids=()) for prompt in PROMPTS[:2]]
    for each in running:
        next(each)
    ended: dict[int, str] = {}

    def rest(index: int) -> None:
        try:
            list(running[index])
            ended[index] = "done"
        except KeyboardInterrupt:
            ended[index] = "interrupted"

    threads = [threading.Thread(target=rest, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    assert reached.wait(60)
    follower = next(i for i in range(2) if running[i]._step is not None and running[i]._step.claimed)
    if how == "cancelled":
        running[follower].cancel()
        threads[follower].join(0.3)
        assert threads[follower].is_alive(), "its cache is at work"
        go_on.set()
    else:
        identity = threads[follower].ident
        assert identity is not None
        interrupt = ctypes.py_object(KeyboardInterrupt)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(identity), interrupt) == 1
        threads[follower].join(60)
        assert ended == {follower: "interrupted"}
        assert len(model.prefixes) == 0
        go_on.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    other = 1 - follower
    assert running[other].ids == greedy(tiny, PROMPTS[other], 6)
    assert len(running[follower].ids) == 1
    assert running[follower].stats.stop_reason is StopReason.INTERRUPTED
    again = model.generate(PROMPTS[follower], max_tokens=6, stop_ids=())
    assert [piece.token for piece in again] == greedy(tiny, PROMPTS[follower], 6)


def test_who_is_interrupted_with_the_turn_and_looked_at_holds_nobody_up() -> None:
    """Somebody keeps the traceback of a thread that ended before it could leave the line."""
    turns, kept = Turns("it"), list[BaseException]()

    def taken() -> None:
        turn = turns.turn()
        turn.__enter__()
        raise KeyboardInterrupt

    def work() -> None:
        try:
            taken()
        except KeyboardInterrupt as error:
            kept.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert turns.waiting == 1
    with turns.turn():
        assert turns.waiting == 1
    assert kept


def test_mistaken_batches(model: Model) -> None:
    for given in ("a prompt", [], 5):
        with pytest.raises(TypeError, match="generate_batch: prompts are a list"):
            model.generate_batch(given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the prompt is empty"):
        model.generate_batch(["ab", ""])
    with pytest.raises(ValueError, match="constraint serves one generation"):
        model.generate_batch(["ab"], constraint=object())
