"""Generation: what is yielded, why it stops, and that the cache can be used on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from interrupts import interrupted_until_given_up
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import sim
from npumatmul.llm import (
    ContextFullError,
    LoadedModel,
    SamplingOptions,
    StopReason,
    generate,
    load_model,
    npu_pack,
    numpy_pack,
)

PROMPT = [10, 200, 30, 40]


@pytest.fixture(scope="module")
def loaded(tiny: Any) -> LoadedModel:
    return load_model(tiny.path, pack=numpy_pack)


def greedy_reference(tiny: Any, prompt: list[int], count: int) -> list[int]:
    """Greedy continuation, the whole sequence through transformers for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(tiny.torch_logits(ids)[-1])))
    return ids[len(prompt) :]


def test_greedy_equals_transformers(tiny: Any, loaded: LoadedModel) -> None:
    run = generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=20, stop_ids=())
    tokens = list(run)
    expected = greedy_reference(tiny, PROMPT, 20)
    assert [piece.token for piece in tokens] == run.ids == expected
    assert "".join(piece.text for piece in tokens) == loaded.tokenizer.decode(expected)
    assert run.stats.stop_reason is StopReason.MAX_TOKENS
    assert (run.stats.prompt_tokens, run.stats.cached_tokens, run.stats.generated_tokens) == (4, 0, 20)
    assert run.stats.prompt_seconds > 0
    assert run.stats.tokens_per_second > 0
    assert run.cache.tokens == PROMPT + expected[:-1]


def test_stop_token_is_the_last_and_has_no_text(tiny: Any, loaded: LoadedModel) -> None:
    expected = greedy_reference(tiny, PROMPT, 20)
    stop = expected[6]
    first = expected.index(stop)
    run = generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=20, stop_ids={stop})
    tokens = list(run)
    assert [piece.token for piece in tokens] == expected[: first + 1]
    # also where a word ends the answer, and not a control token
    assert "".join(piece.text for piece in tokens) == loaded.tokenizer.decode(expected[:first])
    assert run.stats.stop_reason is StopReason.STOP_TOKEN
    assert run.stats.generated_tokens == first + 1


def test_full_context_is_a_stop_reason(tiny: Any, loaded: LoadedModel) -> None:
    cache = loaded.model.new_cache(10)
    run = generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=100, stop_ids=(), cache=cache)
    # 4 tokens of the prompt, 6 more fit, and the last one generated need not be in the cache
    assert [piece.token for piece in run] == greedy_reference(tiny, PROMPT, 7)
    assert run.stats.stop_reason is StopReason.CONTEXT_FULL
    assert cache.length == cache.capacity == 10


def test_prompt_longer_than_the_context(loaded: LoadedModel) -> None:
    with pytest.raises(ContextFullError, match="the prompt has 4 tokens, but there is room for 3"):
        generate(loaded.model, loaded.tokenizer, PROMPT, cache=loaded.model.new_cache(3))


def test_cache_is_reused_as_far_as_prompts_agree(tiny: Any, loaded: LoadedModel) -> None:
    cache = loaded.model.new_cache()
    first = list(generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=5, stop_ids=(), cache=cache))
    longer = [*PROMPT, *(piece.token for piece in first), 77, 78]
    run = generate(loaded.model, loaded.tokenizer, longer, max_new_tokens=5, stop_ids=(), cache=cache)
    assert [piece.token for piece in run] == greedy_reference(tiny, longer, 5)
    assert run.stats.cached_tokens == len(PROMPT) + 4
    other = [*PROMPT[:2], 99, 100]
    run = generate(loaded.model, loaded.tokenizer, other, max_new_tokens=5, stop_ids=(), cache=cache)
    assert [piece.token for piece in run] == greedy_reference(tiny, other, 5)
    assert run.stats.cached_tokens == 2
    run = generate(loaded.model, loaded.tokenizer, other, max_new_tokens=1, stop_ids=(), cache=cache)
    assert [piece.token for piece in run] == greedy_reference(tiny, other, 1)
    assert run.stats.cached_tokens == 3  # one token has to be computed for its logits


def test_closing_early_leaves_a_usable_cache(tiny: Any, loaded: LoadedModel) -> None:
    cache = loaded.model.new_cache()
    run = generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=50, stop_ids=(), cache=cache)
    got = [next(run).token for _ in range(3)]
    run.close()
    assert run.stats.stop_reason is StopReason.INTERRUPTED
    assert next(run, None) is None
    prompt = [*PROMPT, *got]
    run = generate(loaded.model, loaded.tokenizer, prompt, max_new_tokens=3, stop_ids=(), cache=cache)
    assert [piece.token for piece in run] == greedy_reference(tiny, prompt, 3)


def test_keyboard_interrupt_is_noted_and_passed_on(tiny: Any) -> None:
    interrupt = False

    def pack(weight: NDArray[np.float32], name: str) -> Any:
        linear = numpy_pack(weight)

        class Interruptible:
            shape = linear.shape

            def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
                if interrupt and self.shape == (48, 32):  # the down projection
                    raise KeyboardInterrupt
                return linear(x)

        return Interruptible()

    loaded = load_model(tiny.path, pack=pack)
    cache = loaded.model.new_cache()
    run = generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=50, stop_ids=(), cache=cache)
    next(run)
    interrupt = True
    with pytest.raises(KeyboardInterrupt):
        next(run)
    interrupt = False
    assert run.stats.stop_reason is StopReason.INTERRUPTED
    assert cache.tokens == PROMPT
    run = generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=4, stop_ids=(), cache=cache)
    assert [piece.token for piece in run] == greedy_reference(tiny, PROMPT, 4)


def test_cut_off_character_comes_with_the_last_token(loaded: LoadedModel) -> None:
    """Sample bytes at random: pieces together are the decoded whole, whatever was held back."""
    for seed in range(10):
        options = SamplingOptions(temperature=3.0, seed=seed)
        run = generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=12, sampling=options, stop_ids=())
        text = "".join(piece.text for piece in run)
        assert text == loaded.tokenizer.decode(run.ids)


def test_same_seed_same_text(loaded: LoadedModel) -> None:
    def ids(seed: int) -> list[int]:
        options = SamplingOptions(temperature=1.5, seed=seed)
        return [p.token for p in generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=16, sampling=options)]

    assert ids(1) == ids(1)
    assert ids(1) != ids(2)


def test_arguments(loaded: LoadedModel) -> None:
    with pytest.raises(ValueError, match="prompt is empty"):
        generate(loaded.model, loaded.tokenizer, [])
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=0)


def test_plain_prompt_without_template(make_tiny_model: Callable[..., Any]) -> None:
    tiny = make_tiny_model(change=lambda w: w.kv_data[0].pop("tokenizer.chat_template"))
    loaded = load_model(tiny.path, pack=numpy_pack)
    assert loaded.encode_chat([{"role": "user", "content": "the"}]) == [257]


def test_mistaken_arguments_are_told_at_once(tiny: Any, loaded: LoadedModel) -> None:
    model, tokenizer = loaded.model, loaded.tokenizer
    with pytest.raises(TypeError, match=r"prompt_ids are token numbers; tokenizer\.encode and encode_chat make them"):
        generate(model, tokenizer, "Hello")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sampling is a SamplingOptions, not dict"):
        generate(model, tokenizer, PROMPT, sampling={"temperature": 1})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="encode: a text is a str, not bytes"):
        tokenizer.encode(b"Hello")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"pack is a function, such as npu_pack\('w8a8'\) makes, not 'w8a8'"):
        load_model(tiny.path, pack="w8a8")  # type: ignore[arg-type]


def test_progress_of_the_prompt(loaded: LoadedModel) -> None:
    calls: list[tuple[int, int]] = []
    prompt = [i % 250 for i in range(300)]
    run = generate(
        loaded.model, loaded.tokenizer, prompt, max_new_tokens=3, progress=lambda *call: calls.append(call), stop_ids=()
    )
    assert calls == []
    next(run)
    assert calls == [(done, 300) for done in (64, 128, 192, 256, 278, 300)]  # two blocks for each chunk of 128
    list(run)
    assert len(calls) == 6


def test_a_run_that_hangs_ends_a_generation_at_the_second_interrupt(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cache is as it was, and when the run has ended after all the text goes on as if nothing had been."""
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "2.1.0")  # a library of its own, whose counters are this device's alone
    with npu.Device("sim:rk3588") as device:
        loaded = load_model(tiny.path, pack=npu_pack("w8a8", device))
        expected = [piece.token for piece in generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=4)]
        cache = loaded.model.new_cache()
        run = generate(loaded.model, loaded.tokenizer, PROMPT, max_new_tokens=4, cache=cache)
        got = [next(run).token for _ in range(2)]
        with sim.configured(device, faults="run:after=3:hang"):
            interrupted_until_given_up(device, lambda: next(run), after=3)
        assert run.stats.stop_reason is StopReason.INTERRUPTED
        run = generate(loaded.model, loaded.tokenizer, [*PROMPT, *got], max_new_tokens=2, cache=cache)
        assert [*got, *(piece.token for piece in run)] == expected
