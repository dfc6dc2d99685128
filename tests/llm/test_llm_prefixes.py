"""Caches that are kept between calls: what is read again, what is forgotten, and that answers never depend on it."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llm_models import greedy, write_tokenizer
from model_zoo import VARIANTS, torch_model, write_folder

import npumatmul.llm
from npumatmul.llm import KVCache, Model

SYSTEM = [7 * i % 250 for i in range(40)]


@pytest.fixture
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


def cached(model: Model, prompt: list[int], count: int = 3) -> int:
    generation = model.generate(prompt, max_tokens=count, stop_ids=())
    list(generation)
    return generation.stats.cached_tokens


def test_conversations_with_one_beginning_do_not_disturb_each_other(tiny: Any, model: Model) -> None:
    one, other = [*SYSTEM, *range(30)], [*SYSTEM, *range(100, 130)]
    assert cached(model, one) == 0
    assert cached(model, other) == 40  # what the system says
    for prompt in (one, other):
        answer = model.generate([*prompt, 5, 6], max_tokens=4, stop_ids=())
        assert [piece.token for piece in answer] == greedy(tiny, [*prompt, 5, 6], 4)
        assert answer.stats.cached_tokens == 70
    assert len(model.prefixes) >= 2


def test_a_conversation_that_goes_on_takes_its_cache_and_leaves_none_behind(tiny: Any, model: Model) -> None:
    prompt = [1, 2, 3]
    for turn in range(4):
        answer = model.generate(prompt, max_tokens=5, stop_ids=())
        tokens = [piece.token for piece in answer]
        assert answer.stats.cached_tokens == (0 if turn == 0 else len(prompt) - 3)
        prompt = [*prompt, *tokens, 9, 10]
    assert len(model.prefixes) == 1
    assert model.prefixes.tokens == len(prompt) - 3


def test_one_that_is_at_work_lends_its_beginning(tiny: Any, model: Model) -> None:
    running = model.generate([*SYSTEM, 1, 2], max_tokens=6, stop_ids=())
    first = next(running).token
    other = model.generate([*SYSTEM, 3, 4], max_tokens=6, stop_ids=())
    assert [piece.token for piece in other] == greedy(tiny, [*SYSTEM, 3, 4], 6)
    assert other.stats.cached_tokens == 40
    assert [first, *(piece.token for piece in running)] == greedy(tiny, [*SYSTEM, 1, 2], 6)


def test_what_was_not_used_for_longest_gives_way(model: Model) -> None:
    prompts = [[i] * 200 for i in range(1, 5)]
    for prompt in prompts[:3]:
        cached(model, prompt)
    each = model.prefixes.nbytes // 3
    model.prefixes.limit = 3 * each
    assert len(model.prefixes) == 3
    assert cached(model, [*prompts[0], 77]) == 200  # used again
    cached(model, prompts[3])
    assert model.prefixes.nbytes <= model.prefixes.limit
    assert [cached(model, [*prompts[i], 88], 1) > 100 for i in (3, 0)] == [True, True]
    assert cached(model, [*prompts[1], 88], 1) == 0


def test_shared_memory_counts_once_and_the_last_cache_stays(model: Model) -> None:
    cached(model, [*SYSTEM * 8, *range(200, 240)])
    alone = model.prefixes.nbytes
    cached(model, [*SYSTEM * 8, *range(100, 140)], 1)
    assert len(model.prefixes) == 2
    assert alone < model.prefixes.nbytes < 2 * alone
    model.prefixes.limit = 1
    assert len(model.prefixes) == 1
    assert cached(model, [*SYSTEM * 8, *range(100, 145)]) == 360
    model.prefixes.limit = 0
    assert (len(model.prefixes), model.prefixes.nbytes) == (0, 0)
    assert cached(model, [1, 2, 3, 4]) == cached(model, [1, 2, 3, 4]) == 0
    for wrong in (-1, True, 1.5, None):
        with pytest.raises(ValueError, match="limit of kept caches"):
            model.prefixes.limit = wrong  # type: ignore[assignment]


KINDS = [
    v
    for v in VARIANTS
    if (v.model_type, v.what)
    in {("mistral", "window"), ("gemma3_text", "plain"), ("phi3", "longrope"), ("gpt_oss", "plain")}
    or v.model_type in ("lfm2", "qwen3_next", "qwen3_5_text")
]


@pytest.mark.parametrize("variant", KINDS, ids=lambda v: f"{v.model_type}-{v.what}".replace(" ", "-"))
def test_answers_do_not_depend_on_what_is_kept(variant: Any, tmp_path: Any) -> None:
    """Windows that gave up rows, states that cannot go back, and other rotations from some length on."""
    folder = write_folder(tmp_path / "m", variant, torch_model(variant))
    write_tokenizer(folder)
    rng = random.Random(1)
    with npumatmul.llm.load(folder, "float32") as model, npumatmul.llm.load(folder, "float32") as plain:
        plain.prefixes.limit = 0
        known: list[list[int]] = [[rng.randrange(250) for _ in range(20)]]
        saved = 0
        for _ in range(14):
            before = rng.choice(known)
            prompt = [*before[: rng.choice([len(before), rng.randint(1, len(before))])], rng.randrange(250)]
            prompt = prompt[: model.context - 6]
            generation = model.generate(prompt, max_tokens=3, stop_ids=())
            tokens = [piece.token for piece in generation]
            assert tokens == [piece.token for piece in plain.generate(prompt, max_tokens=3, stop_ids=())]
            saved += generation.stats.cached_tokens
            known.append([*prompt, *tokens])
        assert saved > 0


def test_there_is_a_cache_from_the_first_piece_on(tiny: Any, model: Model) -> None:
    """Before it nobody has the turn, so that a cache that another thread computes with would be forked."""
    generation = model.generate(SYSTEM, max_tokens=3, stop_ids=())
    with pytest.raises(RuntimeError, match="from its first piece on"):
        generation.cache.clear()
    tokens = [piece.token for piece in generation]
    assert generation.cache.tokens == [*SYSTEM, *tokens[:-1]]
    assert tokens == greedy(tiny, SYSTEM, 3)


@pytest.mark.parametrize("options", [{"speculation": "lookup"}, {"on_full": "window"}, {}])
def test_caches_change_where_nobody_forks_them(
    model: Model, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """Others fork what is in use: under the lock, and in their turn. So whoever changes a cache has one of both."""
    line, lock = model._turns, model.prefixes._lock
    changes = 0

    def guarded(name: str) -> None:
        change = getattr(KVCache, name)

        def checked(self: KVCache, *args: Any) -> Any:
            nonlocal changes
            first = line._first()
            if name != "settle" or self.offset > self.length:
                assert lock._is_owned() or (first is not None and first.thread == threading.get_ident()), name  # type: ignore[attr-defined]
                changes += 1
            return change(self, *args)

        monkeypatch.setattr(KVCache, name, checked)

    for name in ("truncate", "fork", "extend", "settle"):
        guarded(name)
    for text in ("a b a b a b a b a b a b", "a b a b a b c"):
        list(model.generate(text, max_tokens=model.context - 10, stop_ids=(), **options))
    session = model.session(max_tokens=4, **options)
    list(session.send("a b a b a b"))
    assert session._cache is not None
    batch, heads, dim = session._cache._rows[0]
    for layer in range(session._cache._last + 1):  # as an interrupt between the last layer and the tokens leaves it
        session._cache.update(layer, *np.zeros((2, batch, heads, 1, dim), np.float32))
    session.save(tmp_path / "session")
    assert changes > 20


def test_threads_that_begin_alike(tiny: Any, model: Model) -> None:
    """Each forks what others keep or work with, at any moment."""
    wrong: list[object] = []
    prompts = [[*SYSTEM, i, 2 * i] for i in range(1, 7)]
    expected = [greedy(tiny, prompt, 5) for prompt in prompts]

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(5):
            i = rng.randrange(6)
            got = [piece.token for piece in model.generate(prompts[i], max_tokens=5, stop_ids=())]
            if got != expected[i]:
                wrong.append((i, got))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(model.prefixes) <= 6
