"""A constraint masks scores before each choice, and is told of each token; everything else stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from llm_models import greedy
from numpy.typing import NDArray

import npumatmul.llm
from npumatmul.llm import Model, StopReason

PROMPT = [10, 200, 30, 40]
END = 261


@pytest.fixture(scope="module")
def model(tiny: Any) -> Iterator[Model]:
    with npumatmul.llm.load(tiny.path, "float32") as model:
        yield model


class Spelled:
    """Allows one sequence of tokens, then the end."""

    def __init__(self, wanted: list[int]) -> None:
        self.left = [*wanted, END]
        self.told: list[int] = []

    def allowed(self, logits: NDArray[np.float32]) -> None:
        kept = logits[self.left[0]]
        logits[:] = -np.inf
        logits[self.left[0]] = kept

    def accept(self, token: int) -> None:
        self.told.append(token)
        assert token == self.left.pop(0)


class Open:
    """Allows all."""

    def allowed(self, logits: NDArray[np.float32]) -> None:
        """Nothing is masked."""

    def accept(self, token: int) -> None:
        """Nor remembered."""


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_obeys_its_constraint(model: Model, temperature: float) -> None:
    constraint = Spelled([104, 105])
    pieces = list(model.generate(PROMPT, temperature=temperature, seed=1, constraint=constraint))
    assert [piece.token for piece in pieces] == [104, 105, END] == constraint.told
    assert pieces[-1].reason is StopReason.STOP_TOKEN
    chat = model.chat([{"role": "user", "content": "hi"}], constraint=Spelled([104]))
    assert [piece.token for piece in chat] == [104, END]


def test_a_constraint_that_allows_all_changes_nothing(tiny: Any, model: Model) -> None:
    got = [piece.token for piece in model.generate(PROMPT, max_tokens=6, stop_ids=(), constraint=Open())]
    assert got == greedy(tiny, PROMPT, 6)


def test_log_probabilities_are_those_of_the_model(model: Model) -> None:
    """A constraint does not change what the model thinks of a token."""
    plain = next(model.generate(PROMPT, max_tokens=1, logprobs=264))
    bound = next(model.generate(PROMPT, max_tokens=1, logprobs=264, constraint=Spelled([104])))
    assert bound.token != plain.token
    assert bound.logprob == pytest.approx(dict(plain.top_logprobs)[104], abs=1e-5)
    assert dict(bound.top_logprobs) == pytest.approx(dict(plain.top_logprobs), abs=1e-5)


def test_a_constraint_without_a_way_on_is_told_of(tiny: Any, model: Model) -> None:
    class Shut(Open):
        def allowed(self, logits: NDArray[np.float32]) -> None:
            logits[:] = -np.inf

    with pytest.raises(ValueError, match="the constraint allows no token"):
        next(model.generate(PROMPT, constraint=Shut()))
    with pytest.raises(TypeError, match=r"constraint is a str; it needs methods allowed\(logits\)"):
        model.generate(PROMPT, constraint="json")  # type: ignore[arg-type]
    assert [piece.token for piece in model.generate(PROMPT, max_tokens=3, stop_ids=())] == greedy(tiny, PROMPT, 3)
