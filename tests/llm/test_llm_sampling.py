"""Sampling against transformers' logits processors."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from npumatmul.llm import Sampler, SamplingOptions
from npumatmul.llm.run.sampling import log_probabilities, most_probable

HISTORY = [3, 17, 3, 250, 999, 0]


def logits(seed: int = 0, size: int = 1000) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(scale=3, size=size).astype(np.float32)


def reference(options: SamplingOptions, scores: NDArray[np.float32], history: list[int]) -> NDArray[np.float32]:
    """Probabilities by transformers, in the order in which its generate() puts them."""
    steps = LogitsProcessorList()
    if options.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
    if options.temperature != 1:
        steps.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(MinPLogitsWarper(options.min_p))
    result: NDArray[np.float32] = steps(torch.tensor([history]), torch.from_numpy(scores)[None].clone())[0].softmax(-1)
    return np.asarray(result)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=1.0),
        SamplingOptions(temperature=0.3),
        SamplingOptions(temperature=2.5),
        SamplingOptions(temperature=1.0, top_k=1),
        SamplingOptions(temperature=0.8, top_k=40),
        SamplingOptions(temperature=1.0, top_k=10**6),
        SamplingOptions(temperature=1.0, top_p=0.9),
        SamplingOptions(temperature=1.0, top_p=0.001),
        SamplingOptions(temperature=1.0, min_p=0.1),
        SamplingOptions(temperature=2.0, min_p=0.02),
        SamplingOptions(temperature=1.0, min_p=1.0),
        SamplingOptions(temperature=1.0, repetition_penalty=1.3),
        SamplingOptions(temperature=1.0, repetition_penalty=0.7),
        SamplingOptions(temperature=0.7, top_k=50, top_p=0.95, repetition_penalty=1.1),
        SamplingOptions(temperature=0.7, top_k=50, top_p=0.95, min_p=0.05, repetition_penalty=1.1),
    ],
    ids=str,
)
def test_distribution_equals_transformers(options: SamplingOptions, seed: int) -> None:
    scores = logits(seed)
    got = Sampler(options).distribution(scores, HISTORY)
    expected = reference(options, scores, HISTORY)
    np.testing.assert_array_equal(got > 0, expected > 0)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_steps_and_their_order_by_hand() -> None:
    """Five tokens whose probabilities are 0.5, 0.25, 0.15, 0.06 and 0.04."""
    scores = np.log(np.array([0.5, 0.25, 0.15, 0.06, 0.04], np.float32))
    for options, expected in (
        ({"top_p": 0.7}, [2 / 3, 1 / 3, 0, 0, 0]),
        ({"top_k": 3}, [50 / 90, 25 / 90, 15 / 90, 0, 0]),
        ({"top_k": 3, "top_p": 0.9}, [50 / 90, 25 / 90, 15 / 90, 0, 0]),  # 0.83 of the three, so the third is needed
        ({"top_k": 3, "top_p": 0.8}, [2 / 3, 1 / 3, 0, 0, 0]),  # alone, 0.8 of all would have kept three
        ({"min_p": 0.29}, [50 / 90, 25 / 90, 15 / 90, 0, 0]),
        ({"min_p": 0.51}, [1, 0, 0, 0, 0]),
        ({"temperature": 0.5}, np.square([0.5, 0.25, 0.15, 0.06, 0.04]) / 0.3402),
        ({"temperature": 0.5, "min_p": 0.3}, [1, 0, 0, 0, 0]),  # of 0.25 and 0.0625: the temperature comes first
    ):
        got = Sampler(SamplingOptions(**{"temperature": 1.0, **options})).distribution(scores)
        np.testing.assert_allclose(got, expected, rtol=1e-4, err_msg=str(options))


def test_log_probabilities_equal_torch() -> None:
    scores = logits()
    got = log_probabilities(scores)
    np.testing.assert_allclose(got, torch.from_numpy(scores).double().log_softmax(-1).numpy(), rtol=1e-12)
    expected = torch.from_numpy(got).topk(7)
    assert [token for token, _ in most_probable(got, 7)] == expected.indices.tolist()
    assert [value for _, value in most_probable(got, 7)] == expected.values.tolist()
    assert most_probable(got, 0) == ()
    assert len(most_probable(got, 10**6)) == len(got)
    assert most_probable(np.array([0.0, 1.0, 1.0, 1.0]), 2) == ((1, 1.0), (2, 1.0))


def test_draws_follow_the_distribution() -> None:
    scores = np.array([2.0, 1.0, 0.0, -1.0, 3.0], np.float32)
    options = SamplingOptions(temperature=1.5, top_k=4, top_p=0.97, seed=3)
    sampler = Sampler(options)
    count = 20000
    drawn = np.bincount([sampler.sample(scores) for _ in range(count)], minlength=5)
    expected = reference(options, scores, [0]) * count
    assert drawn[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = ((drawn[kept] - expected[kept]) ** 2 / expected[kept]).sum()
    assert chi_square < 16.3  # 0.1 % quantile for 3 degrees of freedom


def test_greedy_is_the_argmax_after_the_penalty() -> None:
    scores = np.array([1.0, 4.0, 3.0, -0.1], np.float32)
    assert Sampler().sample(scores) == 1
    assert Sampler(SamplingOptions(repetition_penalty=2.0)).sample(scores, [1]) == 2
    assert Sampler(SamplingOptions(repetition_penalty=2.0)).sample(np.array([-1.0, -1.5], np.float32), [0]) == 1


def test_greedy_takes_the_lowest_of_equals() -> None:
    assert Sampler().sample(np.array([0.0, 5.0, 5.0, 5.0], np.float32)) == 1


def test_top_k_keeps_equals() -> None:
    got = Sampler(SamplingOptions(temperature=1.0, top_k=2)).distribution(np.array([1, 2, 2, 2, 0], np.float32))
    np.testing.assert_allclose(got, [0, 1 / 3, 1 / 3, 1 / 3, 0])


def test_repetition_window_forgets() -> None:
    options = SamplingOptions(temperature=1.0, repetition_penalty=5.0, repetition_window=2)
    scores = logits(0, 8)
    expected = reference(SamplingOptions(temperature=1.0, repetition_penalty=5.0), scores, [2, 3])
    np.testing.assert_allclose(Sampler(options).distribution(scores, [0, 1, 2, 3]), expected, rtol=1e-5)


def test_logits_are_not_changed() -> None:
    scores = logits()
    before = scores.copy()
    Sampler(SamplingOptions(temperature=0.5, top_k=5, top_p=0.5, repetition_penalty=2.0)).sample(scores, HISTORY)
    np.testing.assert_array_equal(scores, before)


def test_seed_repeats_and_seeds_differ() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
        return [sampler.sample(logits()) for _ in range(50)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_tiny_temperature_does_not_overflow() -> None:
    got = Sampler(SamplingOptions(temperature=1e-30)).distribution(np.array([1e4, -1e4, 1e4], np.float32))
    np.testing.assert_allclose(got, [0.5, 0, 0.5])


def test_minus_infinity_is_never_chosen() -> None:
    scores = np.array([-np.inf, 0.0, -np.inf, 1.0], np.float32)
    got = Sampler(SamplingOptions(temperature=1.0, top_k=3)).distribution(scores, [0])
    np.testing.assert_array_equal(got > 0, [False, True, False, True])


@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(temperature=1.0, top_k=2, top_p=0.5)])
@pytest.mark.parametrize("bad", [[np.nan, 1, 2], [1, 2, np.nan], [np.inf, 0, 0], [-np.inf] * 3])
def test_unusable_logits_are_an_error(options: SamplingOptions, bad: list[float]) -> None:
    with pytest.raises(ValueError, match="cannot be sampled from"):
        Sampler(options).sample(np.array(bad, np.float32))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("top_p", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
        ("repetition_window", 0),
        ("seed", -1),
    ],
)
def test_options_are_checked(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is"):
        SamplingOptions(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot'; it must be a number"),
        ({"top_p": True}, "top_p is True; it must be a number"),
        ({"top_k": 1.5}, "top_k is 1.5; it must be a whole number"),
        ({"seed": "1"}, "seed is '1'; it must be a whole number"),
    ],
)
def test_options_that_are_no_numbers(options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        SamplingOptions(**options)


@pytest.mark.parametrize("options", [{"temperature": 5e-324}, {"temperature": 1e308}, {"repetition_penalty": 1e4}])
@pytest.mark.filterwarnings("error")
def test_extreme_options_overflow_nothing(options: dict[str, Any]) -> None:
    logits = np.array([3e4, -3e4, 2.0, -np.inf], np.float32)
    chances = Sampler(SamplingOptions(**({"temperature": 1.0} | options))).distribution(logits, [0, 1])
    assert chances.sum() == pytest.approx(1)
    assert chances[3] == 0


def test_fractions_are_numbers() -> None:
    logits = np.linspace(-1, 1, 20, dtype=np.float32)
    half = Fraction(1, 2)
    given = SamplingOptions(temperature=half, top_p=half, min_p=half, repetition_penalty=half)  # type: ignore[arg-type]
    plain = SamplingOptions(temperature=0.5, top_p=0.5, min_p=0.5, repetition_penalty=0.5)
    np.testing.assert_array_equal(Sampler(given).distribution(logits, [3]), Sampler(plain).distribution(logits, [3]))


@pytest.mark.parametrize(
    "options", [{"temperature": 10**400}, {"repetition_penalty": 1e300}, {"repetition_penalty": 1e-40}]
)
def test_numbers_beyond_what_is_computed_with_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SamplingOptions(**options)
