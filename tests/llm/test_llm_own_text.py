"""Several sequences at once against transformers, and the text that a model writes to be calibrated on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_models import write_tiny_model

from npumatmul.llm import ContextFullError, GGUFFile, GGUFTokenizer, load_model, numpy_pack
from npumatmul.llm.quantize import own_text
from npumatmul.llm.run.lockstep import Lockstep


@pytest.mark.parametrize(
    "options", [{}, {"bias": True}, {"head_dim": 16, "rope": {"rope_type": "linear", "factor": 2.0}}]
)
def test_each_sequence_is_what_it_would_be_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    tiny = write_tiny_model(tmp_path / "model.gguf", **options)
    tokens = np.random.default_rng(0).integers(0, 264, (3, 20))
    together = Lockstep(load_model(tiny.path, pack=numpy_pack).model, 3, 20)
    logits = np.stack([together.step(column) for column in tokens.T], axis=1)
    for row, expected in zip(logits, (tiny.torch_logits(each.tolist()) for each in tokens), strict=True):
        np.testing.assert_allclose(row, expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())


def test_what_lockstep_refuses(tmp_path: Path) -> None:
    model = load_model(write_tiny_model(tmp_path / "model.gguf").path, pack=numpy_pack).model
    for count, capacity in [(0, 4), (2, 0), (2, 513)]:
        with pytest.raises(ValueError, match="the model reads 1 to 512"):
            Lockstep(model, count, capacity)
    together = Lockstep(model, 2, 1)
    for tokens in ([1], [1, 264], [-1, 0], [[1, 2]]):
        with pytest.raises(ValueError, match="for each of the 2 sequences"):
            together.step(tokens)  # type: ignore[arg-type]
    together.step([1, 2])
    with pytest.raises(ContextFullError, match="1 tokens"):
        together.step([1, 2])


def test_a_model_writes_as_it_predicts(tmp_path: Path) -> None:
    """The second token follows the first as often as the model says: chi-squared over likely pairs."""
    path = write_tiny_model(tmp_path / "model.gguf").path
    pieces = own_text(path, 400, 3, seed=1)
    tokens = np.stack([piece.tokens for piece in pieces])
    assert tokens.shape == (400, 3)
    assert all(piece.first == 0 for piece in pieces)
    tokenizer = GGUFTokenizer(GGUFFile(path))
    assert not set(tokens.ravel().tolist()) & tokenizer.control_ids
    model = load_model(path, pack=numpy_pack).model
    control = sorted(tokenizer.control_ids)
    surprise = spread = 0.0
    for first, second, _ in tokens:
        logits = model.forward([int(first)], model.new_cache(1)).astype(np.float64)
        logits[control] = -np.inf
        p = np.exp(logits - logits.max())
        p /= p.sum()
        information = -np.log(np.where(p > 0, p, 1))
        mean = (p * information).sum()
        surprise += information[second] - mean
        spread += (p * (information - mean) ** 2).sum()
    assert abs(surprise) < 5 * np.sqrt(spread)  # entropy is what it should be, to five standard errors


def test_a_text_is_repeatable_and_varied(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model.gguf").path
    seen: list[tuple[int, int]] = []
    first = own_text(path, 6, 5, seed=3, progress=lambda done, total, what: seen.append((done, total)))
    again = own_text(path, 6, 5, seed=3)
    other = own_text(path, 6, 5, seed=4)
    assert [p.tokens.tolist() for p in first] == [p.tokens.tolist() for p in again]
    assert [p.tokens.tolist() for p in first] != [p.tokens.tolist() for p in other]
    assert len({tuple(p.tokens.tolist()) for p in first}) == 6
    assert all(0 <= done < total == 30 for done, total in seen)


def test_texts_begin_with_the_start_token_where_the_model_wants_one(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model.gguf", change=lambda writer: writer.add_add_bos_token(True)).path
    tokens = np.stack([piece.tokens for piece in own_text(path, 4, 4)])
    assert (tokens[:, 0] == 262).all()
    assert (tokens[:, 1:] < 260).all()


def test_windows_are_no_longer_than_the_context(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "model.gguf").path
    assert [len(piece.tokens) for piece in own_text(path, 1, 600)] == [512]
    for windows, length in [(0, 4), (1, 1)]:
        with pytest.raises(ValueError, match="fewest"):
            own_text(path, windows, length)
