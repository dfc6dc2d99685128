"""The commands that measure and make models, called in this process on small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prose import PROSE
from typer.testing import CliRunner

from npumatmul.cli.app import app
from npumatmul.llm import evaluate, load_model, numpy_pack, text_tokens, windows

runner = CliRunner()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(PROSE[:600], encoding="utf-8")
    return path


def run(*arguments: object) -> str:
    done = runner.invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_perplexity_as_json(tiny: Any, text: Path) -> None:
    found = json.loads(
        run("perplexity", tiny.path, "-f", text, "-c", 64, "--chunks", 3, "--scheme", "float32, w8a8", "--json")
    )
    loaded = load_model(tiny.path, pack=numpy_pack)
    tokens = text_tokens(loaded.tokenizer, PROSE[:600])
    expected = evaluate(loaded.model, loaded.model, windows(tokens, 64, limit=3))
    assert found["windows"] == 3
    assert found["schemes"]["float32"]["perplexity"] == expected.as_dict()["perplexity"]
    assert found["schemes"]["float32"]["mean_kl"] == {"value": 0, "error": 0}
    assert found["schemes"]["w8a8"]["reference_perplexity"] == expected.as_dict()["perplexity"]
    assert 0 < found["schemes"]["w8a8"]["mean_kl"]["value"] < 0.1


def test_perplexity_as_a_table(tiny: Any, text: Path) -> None:
    printed = run("perplexity", tiny.path, "-f", text, "-c", 64, "--stride", 32, "--chunks", 2, "--scheme", "w16a16")
    assert "2 windows of 80 tokens, 64 scored" in printed
    assert "w16a16" in printed
    alone = run("perplexity", tiny.path, "-f", text, "-c", 64, "--scheme", "float32", "--no-reference")
    assert "±" in alone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-c", "600"], "windows of 600 need 1200"),
        (["-c", "64", "--stride", "64"], "the stride is 64"),
        (["--scheme", "w3a3"], "'w3a3'"),
    ],
)
def test_perplexity_mistakes(tiny: Any, text: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run("perplexity", tiny.path, "-f", text, *options)


def test_perplexity_of_what_is_not_a_text(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "bytes"
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ValueError, match="not a text in UTF-8"):
        run("perplexity", tiny.path, "-f", path)
