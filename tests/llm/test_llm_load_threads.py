"""Models that several threads share: turns, cancelling, interrupts, closing."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from interrupts import interrupted_at
from llm_models import greedy

import npumatmul.llm
from npumatmul.errors import ClosedError
from npumatmul.llm import Model, StopReason
from npumatmul.llm.run.turns import Turns

PROMPT = [10, 200, 30, 40]


@pytest.fixture(scope="module")
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


def test_generations_at_once_have_caches_of_their_own(tiny: Any, model: Model) -> None:
    prompts = [[1, 2, 3], [1, 2, 3], [4, 5], [200] * 10]
    expected = [greedy(tiny, prompt, 6) for prompt in prompts]
    running = [model.generate(prompt, max_tokens=6, stop_ids=()) for prompt in prompts]
    got = [[next(each).token for each in running] for _ in range(6)]
    assert [list(column) for column in zip(*got, strict=True)] == expected


def test_threads_get_what_they_would_alone(tiny: Any, model: Model) -> None:
    prompts = [[i, 2 * i, 3] for i in range(1, 9)]
    results: dict[int, list[int]] = {}

    def work(index: int) -> None:
        results[index] = [piece.token for piece in model.generate(prompts[index], max_tokens=6, stop_ids=())]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: greedy(tiny, prompt, 6) for i, prompt in enumerate(prompts)}


def line_of(turns: Turns, names: str, done: list[str]) -> list[threading.Thread]:
    """Threads that wait for a turn each, in the order of their names."""
    threads = []
    for name in names:

        def work(name: str = name) -> None:
            try:
                with turns.turn():
                    done.append(name)
            except ClosedError as error:
                done.append(str(error))

        before = turns.waiting
        threads.append(threading.Thread(target=work))
        threads[-1].start()
        while turns.waiting == before:
            threading.Event().wait(0.001)
    return threads


def test_turns_come_in_the_order_in_which_they_were_asked_for() -> None:
    turns, done = Turns("it"), list[str]()
    with turns.turn():
        threads = line_of(turns, "abcdef", done)
        assert done == []
    for thread in threads:
        thread.join()
    assert done == list("abcdef")


def test_closing_tells_those_who_wait_and_waits_for_who_works() -> None:
    turns, done = Turns("the model"), list[str]()
    with turns.turn():
        threads = line_of(turns, "ab", done)
        closing = threading.Thread(target=turns.close)
        closing.start()
        for thread in threads:
            thread.join()
        assert done == ["the model is closed"] * 2
        assert closing.is_alive()
    closing.join()
    with pytest.raises(ClosedError, match="the model is closed"), turns.turn():
        pass


def test_who_works_long_lets_others_go_first() -> None:
    turns, done = Turns("it"), list[str]()
    with turns.turn() as pass_on:
        pass_on()  # nobody waits
        done.append("one part")
        threads = line_of(turns, "ab", done)
        pass_on()
        done.append("another")
        pass_on()
        for thread in threads:
            thread.join()
    assert done == ["one part", "a", "b", "another"]
    assert turns.waiting == 0


def test_a_long_prompt_holds_nobody_up(tiny: Any, model: Model) -> None:
    """Another generation gets all of its tokens between two blocks of the prompt."""
    seen: list[str] = []
    other = model.generate(PROMPT, max_tokens=5, stop_ids=())
    thread = threading.Thread(target=lambda: seen.extend(str(piece.token) for piece in other))
    prompt = [i % 250 for i in range(500)]  # eight blocks

    def progress(done: int, total: int) -> None:
        seen.append("block")
        if len(seen) == 1:
            thread.start()
        while thread.is_alive() and model._turns.waiting < 2:  # until the other one waits, or is done
            threading.Event().wait(0.001)

    long = model.generate(prompt, max_tokens=2, stop_ids=(), progress=progress)
    assert [piece.token for piece in long] == greedy(tiny, prompt, 2)
    thread.join()
    assert [each for each in seen if each != "block"] == [str(token) for token in greedy(tiny, PROMPT, 5)]
    assert seen[-1] == "block"  # the prompt was not done yet


def test_an_interrupt_anywhere_leaves_the_line_moving() -> None:
    turns, position = Turns("it"), 0

    def use() -> None:
        with turns.turn() as pass_on:
            pass_on()

    while interrupted_at(position, use):
        position += 1
        assert turns.waiting == 0
        use()
        kept: list[BaseException] = []
        interrupted_at(position, use, kept)
        use()  # while somebody still looks at the interrupt, whose frames may hold the place
    assert position > 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of generators that are dropped
def test_an_interrupt_anywhere_leaves_a_model_that_answers(tiny: Any) -> None:
    """Also while its traceback is kept, and with it the frames of whoever had the turn."""
    with npumatmul.llm.load(tiny.path, "float32") as model:

        def answer() -> list[int]:
            return [piece.token for piece in model.generate(PROMPT, max_tokens=2, stop_ids=())]

        expected, position = greedy(tiny, PROMPT, 2), 0
        assert answer() == expected
        kept: list[BaseException] = []
        while interrupted_at(position, answer, kept):
            assert answer() == expected
            kept.clear()
            position += 7 if position > 100 else 1  # the second token is made as the first one was
        assert position > 100


def test_a_thread_never_waits_for_itself(tiny: Any) -> None:
    """What a callback asks of its own model is refused, or it would hang; the model goes on."""
    said: list[str] = []

    def progress(done: int, total: int) -> None:
        for ask in (lambda: list(model.generate(PROMPT)), lambda: model.logits(PROMPT), model.close):
            with pytest.raises(RuntimeError, match="at work in this very thread") as caught:
                ask()
            said.append(str(caught.value))

    with npumatmul.llm.load(tiny.path, "float32") as model:
        answer = [piece.token for piece in model.generate(PROMPT, max_tokens=3, stop_ids=(), progress=progress)]
        assert answer == greedy(tiny, PROMPT, 3)
        assert len(said) >= 3
        assert not model.closed


def test_a_dropped_generation_may_end_while_the_kept_cache_is_looked_at(tiny: Any) -> None:
    """The collector ends a generation in whatever thread, at whatever place."""
    with npumatmul.llm.load(tiny.path, "float32") as model:
        left = model.generate(PROMPT, max_tokens=5)
        next(left)
        with model.prefixes._lock:
            left.close()
        assert [piece.token for piece in model.generate(PROMPT, max_tokens=2, stop_ids=())] == greedy(tiny, PROMPT, 2)


@pytest.mark.parametrize("double", [copy.copy, copy.deepcopy, pickle.dumps])
def test_models_and_generations_are_not_doubled(tiny: Any, double: Callable[[object], object]) -> None:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        running = model.generate(PROMPT, max_tokens=3, stop_ids=())
        first = next(running).token
        for each in (model, running):
            with pytest.raises(TypeError, match="cannot be copied or pickled"):
                double(each)
        gc.collect()
        assert [first, *(piece.token for piece in running)] == greedy(tiny, PROMPT, 3)


def test_closing_a_model_that_is_waited_for(tiny: Any) -> None:
    model = npumatmul.llm.load(tiny.path, "float32")
    raised: list[str] = []
    running = model.generate(PROMPT, max_tokens=50, stop_ids=())
    next(running)
    with model._turns.turn():

        def work() -> None:
            try:
                next(running)
            except ClosedError as error:
                raised.append(str(error))

        thread = threading.Thread(target=work)
        thread.start()
        while model._turns.waiting < 2:
            threading.Event().wait(0.001)
        closing = threading.Thread(target=model.close)
        closing.start()
        thread.join()
        assert raised == ["the model tiny is closed"]
        assert running.stats.stop_reason is StopReason.INTERRUPTED
    closing.join()
    assert model.closed


def test_cancelling_from_another_thread(tiny: Any, model: Model) -> None:
    generation = model.generate(PROMPT, max_tokens=400, stop_ids=())
    pieces = [next(generation) for _ in range(3)]
    thread = threading.Thread(target=generation.cancel)
    thread.start()
    thread.join()
    assert list(generation) == []
    assert generation.stats.stop_reason is StopReason.INTERRUPTED
    assert generation.stats.generated_tokens == 3
    again = model.generate([*PROMPT, *(p.token for p in pieces)], max_tokens=3, stop_ids=())
    assert [piece.token for piece in again] == greedy(tiny, [*PROMPT, *(p.token for p in pieces)], 3)


def test_cancelling_while_the_prompt_is_read(tiny: Any, model: Model) -> None:
    prompt = [7 * i % 250 for i in range(300)]
    seen: list[int] = []

    def progress(done: int, total: int) -> None:
        seen.append(done)
        if done >= 150:
            generation.cancel()

    generation = model.generate(prompt, max_tokens=5, stop_ids=(), progress=progress)
    assert list(generation) == []
    assert seen == [64, 128, 192]
    assert generation.stats.stop_reason is StopReason.INTERRUPTED
    after = model.generate(prompt, max_tokens=2, stop_ids=())
    assert [piece.token for piece in after] == greedy(tiny, prompt, 2)
    assert after.stats.cached_tokens == 128  # what was complete


def test_cancelling_who_waits(model: Model) -> None:
    generation = model.generate(PROMPT, max_tokens=5)
    got: list[object] = []
    with model._turns.turn():
        thread = threading.Thread(target=lambda: got.extend(generation))
        thread.start()
        while model._turns.waiting < 2:
            threading.Event().wait(0.001)
        generation.cancel()
        thread.join()
    assert got == []
    assert generation.stats.stop_reason is StopReason.INTERRUPTED


def test_who_stops_listening_blocks_nobody(tiny: Any, model: Model) -> None:
    for piece in model.generate(PROMPT, max_tokens=50, stop_ids=()):
        if piece.text:
            break
    generation = model.generate(PROMPT, max_tokens=3, stop_ids=())
    for piece in generation:
        if piece.reason is not None:
            break
    assert generation.stats.stop_reason is StopReason.MAX_TOKENS
    started = model.generate([5, 6, 7], max_tokens=50, stop_ids=())
    next(started)
    assert [piece.token for piece in model.generate(PROMPT, max_tokens=4, stop_ids=())] == greedy(tiny, PROMPT, 4)
    started.close()


def test_an_interrupt_in_a_product_leaves_the_model_usable(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        head = model._model.linears["head"]
        calls = 0
        original = type(head).__call__

        def interrupted(self: Any, x: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 25:
                raise KeyboardInterrupt
            return original(self, x)

        monkeypatch.setattr(type(head), "__call__", interrupted)
        generation = model.generate(PROMPT, max_tokens=9, stop_ids=())
        with pytest.raises(KeyboardInterrupt):
            list(generation)
        assert generation.stats.stop_reason is StopReason.INTERRUPTED
        after = model.generate(PROMPT, max_tokens=4, stop_ids=())
        assert [piece.token for piece in after] == greedy(tiny, PROMPT, 4)
        assert after.stats.cached_tokens == 3
