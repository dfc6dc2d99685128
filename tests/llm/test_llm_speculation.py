"""Speculation changes how many steps an answer takes, and nothing about the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llm_models import greedy, write_tokenizer
from model_zoo import VARIANTS, torch_model, write_folder

import npumatmul as npu
import npumatmul.llm
from npumatmul.llm import Model, Policy, Sampler, SamplingOptions, Speculation
from npumatmul.llm.fitting import product_seconds
from npumatmul.llm.run.speculation import Costs, Draft, Drafts, Lookup
from npumatmul.llm.run.steps import Step

PROMPT = [10, 200, 30, 40]
OPTIONS = SamplingOptions()


@pytest.fixture
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


class Oracle:
    """Proposes the right tokens, but for each of some places a wrong one."""

    def __init__(self, answer: list[int], wrong: set[int], prompt: int) -> None:
        self.answer, self.wrong, self.prompt = answer, wrong, prompt

    def propose(self, sequence: list[int], most: int, options: SamplingOptions) -> Draft:
        start = len(sequence) - self.prompt
        own = [(t + 1) % 264 if i in self.wrong else t for i, t in enumerate(self.answer)]
        return Draft(own[start : start + most])


@pytest.mark.parametrize("wrong", [set(), {3}, {1, 2, 9}, set(range(20))], ids=str)
def test_greedy_answers_are_those_without(tiny: Any, model: Model, wrong: set[int], monkeypatch: Any) -> None:
    answer = greedy(tiny, PROMPT, 20)
    monkeypatch.setattr(model, "_drafts", lambda how: how and Drafts(Oracle(answer, wrong, 4), how.drafts))
    generation = model.generate(PROMPT, max_tokens=20, stop_ids=(), speculation=Speculation(drafts=4))
    assert [piece.token for piece in generation] == answer == generation.ids
    stats = generation.stats
    assert stats.generated_tokens == 20 == stats.steps + stats.accepted_tokens
    assert generation.cache.tokens == [*PROMPT, *answer[:-1]]
    if not wrong:
        assert (stats.steps, stats.acceptance) == (5, 1.0)  # the prompt, then 5, 5, 5 and 4 tokens
    if len(wrong) == 20:
        assert (stats.steps, stats.acceptance) == (20, 0.0)


def test_an_answer_that_repeats_its_prompt_takes_fewer_steps(demo: Any) -> None:
    prompt = "red, green, blue, yellow, red, green, blue, yellow, red, green, blue, yellow, red,"
    with Model(demo, scheme="float32", device=None) as model:
        plain = [piece.token for piece in model.generate(prompt, max_tokens=12)]
        generation = model.generate(prompt, max_tokens=12, speculation="lookup")
        assert [piece.token for piece in generation] == plain
    assert generation.stats.accepted_tokens >= 7
    assert generation.stats.steps == 12 - generation.stats.accepted_tokens


@pytest.mark.parametrize("scheme", ["w8a8", "w16a16"])
def test_on_a_device(tiny: Any, scheme: str, monkeypatch: Any) -> None:
    """Schemes of integers have no near ties; this float16 model meets none."""
    with npu.Device("sim:rk3588") as device, npumatmul.llm.load(tiny.path, scheme, device=device) as model:
        plain = model.generate(PROMPT, max_tokens=30, stop_ids=())
        expected = [piece.token for piece in plain]
        model.prefixes.clear()
        oracle = Oracle(expected, {4, 11, 12}, len(PROMPT))
        monkeypatch.setattr(model, "_drafts", lambda how: how and Drafts(oracle, how.drafts))
        generation = model.generate(PROMPT, max_tokens=30, stop_ids=(), speculation=Speculation(drafts=6))
        assert [piece.token for piece in generation] == expected
        assert generation.stats.accepted_tokens > 15


def test_tokens_differ_from_those_without_only_where_two_are_as_good(tiny: Any, model: Model) -> None:
    """With several rows floats may be summed otherwise: then the scores of both choices are equal but for rounding."""
    for seed in range(8):
        rng = np.random.default_rng(seed)
        prompt = rng.integers(0, 250, 6).tolist()
        plain = [piece.token for piece in model.generate(prompt, max_tokens=40, stop_ids=())]
        other = [p.token for p in model.generate(prompt, max_tokens=40, stop_ids=(), speculation="lookup")]
        if plain != other:
            at = next(i for i, (a, b) in enumerate(zip(plain, other, strict=True)) if a != b)
            scores = tiny.torch_logits([*prompt, *plain[:at]])[-1]
            assert abs(scores[plain[at]] - scores[other[at]]) < 1e-4 * np.abs(scores).max()


def test_stops_limits_and_constraints_count_as_without(tiny: Any, model: Model, monkeypatch: Any) -> None:
    answer = greedy(tiny, PROMPT, 20)
    monkeypatch.setattr(model, "_drafts", lambda how: how and Drafts(Oracle(answer, set(), 4), how.drafts))
    how = {"max_tokens": 20, "logprobs": 2}
    stop = {answer[7]}
    for more in ({"stop_ids": stop}, {"stop_ids": (), "stop": model.tokenizer.decode(answer)[3:5]}, {"stop_ids": ()}):
        plain = list(model.generate(PROMPT, **how, **more))  # type: ignore[arg-type]
        model.prefixes.clear()
        quick = list(model.generate(PROMPT, **how, **more, speculation="lookup"))  # type: ignore[arg-type]
        assert [(p.token, p.text, p.reason) for p in quick] == [(p.token, p.text, p.reason) for p in plain]
        np.testing.assert_allclose([p.logprob for p in quick], [p.logprob for p in plain], atol=1e-4)

    class Counting:
        def __init__(self) -> None:
            self.asked, self.told = 0, list[int]()

        def allowed(self, logits: Any) -> None:
            assert self.asked == len(self.told)
            self.asked += 1

        def accept(self, token: int) -> None:
            self.told.append(token)

    constraint = Counting()
    list(model.generate(PROMPT, max_tokens=20, stop_ids=(), speculation="lookup", constraint=constraint))
    assert constraint.told == answer


def test_a_draft_model(tiny: Any, model: Model, make_tiny_model: Any) -> None:
    other = make_tiny_model(head_dim=16)
    with npumatmul.llm.load(tiny.path, "float32") as same, npumatmul.llm.load(other.path, "float32") as worse:
        for small, best in ((same, True), (worse, False)):
            how = Speculation(model=small, drafts=3, when="always")
            generation = model.generate(PROMPT, max_tokens=12, stop_ids=(), speculation=how)
            assert [piece.token for piece in generation] == greedy(tiny, PROMPT, 12)
            assert generation.stats.acceptance is not None
            if best:
                assert (generation.stats.acceptance, generation.stats.steps) == (1.0, 4)
            drawn = model.generate(PROMPT, max_tokens=12, stop_ids=(), speculation=how, temperature=1.0, seed=3)
            assert len(list(drawn)) == 12
            if best:
                assert drawn.stats.acceptance == 1.0


def chi_squared(counts: np.ndarray, expected: np.ndarray) -> float:
    few = expected < 5
    counts = np.append(counts[~few], counts[few].sum())
    expected = np.append(expected[~few], expected[few].sum())
    found = expected > 0
    return float((((counts - expected) ** 2)[found] / expected[found]).sum() / max(found.sum() - 1, 1))


@pytest.mark.parametrize("kind", ["likely", "unlikely", "other"])
def test_rejection_keeps_the_distribution(kind: str) -> None:
    """Tokens that are checked against a proposal are distributed as those that are drawn."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal(12).astype(np.float32) * 2
    sampler = Sampler(SamplingOptions(temperature=0.9, top_k=9, seed=5))
    wanted = sampler.distribution(logits)
    proposed = {"likely": wanted**2, "unlikely": 1 / (wanted + 0.02), "other": rng.random(12)}[kind]
    proposed = proposed / proposed.sum()
    n = 20000
    drafts = rng.choice(12, n, p=proposed)
    found = np.bincount([sampler.checked(logits, (), int(draft), proposed) for draft in drafts], minlength=12)
    assert (found[wanted == 0] == 0).all()
    assert chi_squared(found, n * wanted) < 2.5


def test_answers_that_are_drawn_have_the_same_distribution(model: Model, make_tiny_model: Any) -> None:
    """Pairs of tokens of many answers, with a draft model that is often wrong, against those of the model itself."""
    other = make_tiny_model(head_dim=16)
    how = {"temperature": 0.6, "top_k": 4, "stop_ids": (), "max_tokens": 3}
    n = 400
    with npumatmul.llm.load(other.path, "float32") as worse:
        drawn = Speculation(model=worse, drafts=2, when="always")
        pairs = []
        accepted = 0
        for seed in range(n):
            generation = model.generate(PROMPT, seed=seed, speculation=drawn, **how)  # type: ignore[arg-type]
            pairs.append(tuple(piece.token for piece in generation)[1:])
            accepted += generation.stats.accepted_tokens
    plain = [tuple(p.token for p in model.generate(PROMPT, seed=n + s, **how))[1:] for s in range(n)]  # type: ignore[arg-type]
    kinds = sorted(set(pairs) | set(plain))
    one, two = (np.array([each.count(kind) for kind in kinds]) for each in (pairs, plain))
    expected = (one + two) / 2
    few = expected < 5
    one, two = (np.append(each[~few], each[few].sum()) for each in (one, two))
    assert ((one - two) ** 2 / np.maximum(one + two, 1)).sum() / max(len(one) - 1, 1) < 2.5


def test_sampling_with_lookup_gives_the_very_tokens_of_the_seed(model: Model) -> None:
    """What was there before is no draw: the model draws, and goes on while it drew what was proposed."""
    how = {"max_tokens": 40, "stop_ids": (), "temperature": 0.3, "seed": 7}
    plain = [piece.token for piece in model.generate(PROMPT, **how)]  # type: ignore[arg-type]
    quick = model.generate(PROMPT, speculation="lookup", **how)  # type: ignore[arg-type]
    assert [piece.token for piece in quick] == plain


STATES = [
    v
    for v in VARIANTS
    if v.model_type in ("lfm2", "qwen3_next", "qwen3_5_text") or (v.model_type, v.what) == ("mistral", "window")
]


@pytest.mark.parametrize("variant", STATES, ids=lambda v: f"{v.model_type}-{v.what}".replace(" ", "-"))
def test_caches_that_cannot_go_back(variant: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """States and windows: what was proposed in vain leaves no trace."""
    folder = write_folder(tmp_path / "m", variant, torch_model(variant))
    write_tokenizer(folder)
    with npumatmul.llm.load(folder, "float32") as model:
        prompt = list(range(30, 50))
        answer = [piece.token for piece in model.generate(prompt, max_tokens=12, stop_ids=())]
        model.prefixes.clear()
        oracle = Oracle(answer, {2, 3, 7, 12}, len(prompt))
        monkeypatch.setattr(model, "_drafts", lambda how: how and Drafts(oracle, how.drafts))
        generation = model.generate(prompt, max_tokens=12, stop_ids=(), speculation=Speculation(drafts=4))
        assert [piece.token for piece in generation] == answer
        assert generation.stats.accepted_tokens > 0
        again = model.generate([*prompt, *answer], max_tokens=3, stop_ids=())
        model.prefixes.limit = 0
        fresh = model.generate([*prompt, *answer], max_tokens=3, stop_ids=())
        assert [p.token for p in again] == [p.token for p in fresh]


def test_several_sequences_speculate_together(tiny: Any, model: Model, monkeypatch: Any) -> None:
    prompts = [PROMPT, [1, 2, 3], [4, 5]]
    answers = [greedy(tiny, prompt, 40) for prompt in prompts]
    oracles = iter([Oracle(answers[i], {2, 5, 6 + i}, len(prompts[i])) for i in range(3)])
    monkeypatch.setattr(model, "_drafts", lambda how: Drafts(next(oracles), 3))
    batch = model.generate_batch(prompts, max_tokens=40, stop_ids=(), speculation="lookup")
    list(batch)
    assert [each.ids for each in batch.generations] == answers
    assert all(each.stats.accepted_tokens > 20 for each in batch.generations)
    assert all(each.stats.shared_steps for each in batch.generations)


def test_what_stood_before_is_looked_up_longest_first() -> None:
    lookup = Lookup(match=3, least=2)
    assert lookup.propose([1, 2, 3, 9, 2, 3, 7, 1, 2, 3], 3, OPTIONS).tokens == [9, 2, 3]
    assert lookup.propose([1, 2, 3, 9, 2, 3, 7, 1, 2, 3, 8, 2, 3], 1, OPTIONS).tokens == [8]
    assert lookup.propose([1, 2, 3, 9, 2, 3, 7, 1, 2, 3, 8, 2, 3, 77], 1, OPTIONS).tokens == ()
    assert lookup.propose([5, 6, 5, 6], 5, OPTIONS).tokens == [5, 6, 5, 6, 5]  # what goes round
    assert lookup.propose([1], 5, OPTIONS).tokens == ()
    assert lookup.propose([4, 5, -7, 4, 5], 3, OPTIONS).tokens == []  # rows of a picture are proposed by nobody


def step_of(rows: int, seconds: float) -> Step:
    step = Step([1] * (rows + 1), rows, npumatmul.llm.KVCache(CONFIG, 8), lambda done, total: None, 0)
    step.seconds = seconds
    return step


CONFIG = npumatmul.llm.DecoderConfig(1, 8, 2, 1, 4, 16, 32, 64)


class Always:
    def propose(self, sequence: list[int], most: int, options: SamplingOptions) -> Draft:
        return Draft([1] * most)


def proposed(costs: Costs, accepted: float) -> int:
    drafts = Drafts(Always(), 8, costs)
    for _ in range(200):
        draft = drafts.propose([1, 2, 3], 8, OPTIONS)
        count = round(accepted * len(draft.tokens))
        seconds = costs.seconds(1 + len(draft.tokens)) or 1.0
        drafts.told(draft, count, step_of(1 + len(draft.tokens), seconds))
    return len(drafts.propose([1, 2, 3], 8, OPTIONS).tokens)


def test_as_much_is_proposed_as_pays() -> None:
    """By measured steps: of a published board, where 8 rows take twice as long as 1; and as many times as rows."""
    board = Costs(measured=dict(zip(range(1, 10), [172, 237, 250, 262, 281, 300, 319, 338, 357], strict=True)))
    assert proposed(board, 1.0) == 8
    assert proposed(board, 0.0) == 0
    rows = Costs(measured={i: 100.0 * i for i in range(1, 10)})
    assert proposed(rows, 1.0) == 0
    assert proposed(Costs(modelled=lambda rows: 1.0), 0.9) == 8
    assert Drafts(Always(), 8, Costs()).propose([1, 2, 3], 8, OPTIONS).tokens == ()  # nothing was measured yet
    assert Costs(modelled=lambda rows: None).seconds(1) is None


def test_auto_asks_the_model_of_the_chip_where_the_device_is_simulated(tiny: Any) -> None:
    with npu.Device("sim:rk3588") as device, npumatmul.llm.load(tiny.path, "w8a8", device=device) as model:
        one, eight = model._costs.seconds(1), model._costs.seconds(8)
        assert one is not None
        assert eight is not None
        assert one <= eight < 8 * one
        list(model.generate(PROMPT, max_tokens=10, stop_ids=(), speculation="auto"))
        assert model._costs.seconds(1) == one
    with npumatmul.llm.load(tiny.path, "float32") as model:
        assert model._costs.seconds(1) is None
        list(model.generate(PROMPT, max_tokens=10, stop_ids=(), speculation="auto"))
        assert model._costs.seconds(1)


def test_mistaken_arguments(model: Model) -> None:
    for wrong in ("always", 3, True):
        with pytest.raises(ValueError, match=r"speculation is .*; it can be None, 'auto', 'lookup' or a Speculation"):
            model.generate("ab", speculation=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the smaller model is a str"):
        model.generate("ab", speculation=Speculation(model="small"))
    with pytest.raises(ValueError, match="has to be another one with the same vocabulary"):
        model.generate("ab", speculation=Speculation(model=model))
    for options in ({"drafts": 0}, {"drafts": 33}, {"match": 0}, {"when": "never"}):
        with pytest.raises(ValueError, match="Speculation"):
            Speculation(**options)  # type: ignore[arg-type]


def test_the_model_of_the_chip_is_asked_for_who_computes(tiny: Any) -> None:
    """Steps of a policy differ from those of the NPU by just what its placement has the CPU compute."""
    everything = Policy("all", decode="npu", prefill="npu")
    with npu.Device("sim:rk3588") as device:
        with npumatmul.llm.load(tiny.path, "w8a8", device=device, policy=everything) as model:
            alone = {rows: model._costs.seconds(rows) or 0.0 for rows in (1, 4, 9)}
            plans = {name: each.weight.plan for name, each in model._model.linears.items()}
        for policy, cpus in ((Policy(0), 9), (Policy("all", decode="cpu", prefill="npu"), 1)):
            with npumatmul.llm.load(tiny.path, "w8a8", device=device, policy=policy) as model:
                assert model.placement is not None
                for rows, seconds in alone.items():
                    changed = 0.0
                    by_cpu = [each for each in model.placement if each.place(rows) == "cpu"]
                    for each in by_cpu:
                        both = product_seconds(plans[each.name], rows, device.chip)
                        assert both is not None
                        changed += both[1] - both[0]
                    assert len(by_cpu) == (len(plans) if rows < 9 else cpus)
                    assert model._costs.seconds(rows) == pytest.approx(seconds + changed)
                    assert changed != 0
