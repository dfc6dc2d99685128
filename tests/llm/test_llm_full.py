"""Full contexts: an error, or a window that slides as if what is left had been the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llm_models import greedy

import npumatmul.llm
from npumatmul.llm import ContextFullError, Model, StopReason
from npumatmul.llm.run.full import slid


@pytest.fixture
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32", context=32) as model:
        yield model


def windowed(tiny: Any, prompt: list[int], count: int, keep: int, context: int = 32) -> list[int]:
    """What transformers goes on with, where what is left of the sequence is the prompt whenever it has no room."""
    sequence, answer = list(prompt), list[int]()
    half = (context - keep) // 2
    while len(sequence) >= context:
        del sequence[keep : keep + half]
    for _ in range(count):
        answer += greedy(tiny, sequence, 1)
        sequence.append(answer[-1])
        if len(sequence) > context:
            del sequence[keep : keep + half]
    return answer


@pytest.mark.parametrize("keep", [0, 5])
def test_a_window_slides_over_a_long_answer(tiny: Any, model: Model, keep: int) -> None:
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    generation = model.generate(prompt, max_tokens=60, stop_ids=(), on_full="window", keep=keep)
    assert [piece.token for piece in generation] == windowed(tiny, prompt, 60, keep)
    assert generation.stats.stop_reason is StopReason.MAX_TOKENS
    assert generation.stats.dropped_tokens == 8 + 59 - generation.cache.length > 0
    assert generation.cache.tokens[:keep] == prompt[:keep]


def test_a_prompt_that_is_too_long_is_cut_behind_what_stays(tiny: Any, model: Model) -> None:
    prompt = [(5 * i + 1) % 250 for i in range(90)]
    with pytest.raises(ContextFullError, match=r"or let it slide by on_full='window'"):
        model.generate(prompt)
    generation = model.generate(prompt, max_tokens=5, stop_ids=(), on_full="window", keep=4)
    assert [piece.token for piece in generation] == windowed(tiny, prompt, 5, 4)
    assert generation.stats.prompt_tokens + generation.stats.dropped_tokens == 90
    assert generation.stats.prompt_tokens < 32


def test_a_conversation_that_is_cut_is_not_read_anew_each_time(model: Model) -> None:
    """Half a window at a time is left out, so that two prompts of a conversation mostly begin alike."""
    prompt = [(5 * i + 1) % 250 for i in range(28)]
    read = []
    for _ in range(10):
        generation = model.generate(prompt, max_tokens=2, stop_ids=(), on_full="window", keep=4)
        prompt = [*prompt, *(piece.token for piece in generation), 9]
        read.append(generation.stats.prompt_tokens - generation.stats.cached_tokens)
    assert sum(count <= 2 for count in read) >= 6
    assert sum(read) < 90


@pytest.mark.parametrize("most", [8, 9, 10])
def test_what_is_left_is_no_longer_than_there_is_room_for(most: int) -> None:
    for length in range(most + 1, 60):
        for keep in (0, 2, 5):
            left = slid(list(range(length)), keep, 10, most)
            assert len(left) <= most
            assert left[:keep] == list(range(keep))
            newest = left[keep:]
            assert newest == list(range(length - len(newest), length))
            assert len(newest) > 0


def test_what_the_system_says_stays(tiny: Any, model: Model) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "x" * 60}]
    ids = model.encode_chat(messages)
    generation = model.chat(messages, max_tokens=3, stop_ids=(), on_full="window")
    list(generation)
    kept = model.tokenizer.encode("<|im_start|>system\nbe<|im_end|><|im_start|>user\n", parse_special=True)
    assert generation.cache.tokens[: len(kept)] == kept == ids[: len(kept)]
    assert generation.stats.dropped_tokens > 0


def test_mistaken_arguments(model: Model) -> None:
    with pytest.raises(ValueError, match="on_full is 'slide'; it can be 'error' or 'window'"):
        model.generate("ab", on_full="slide")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the first 30 tokens are to stay where the context is full, but it has 32"):
        model.generate("ab", on_full="window", keep=30)
    with pytest.raises(TypeError, match=r"keep is a number of tokens or None, not 1\.5"):
        model.generate("ab", on_full="window", keep=1.5)  # type: ignore[arg-type]
