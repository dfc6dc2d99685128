"""`npumatmul embed`, called in this process on a small encoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoder_zoo import VARIANTS, sentence_folder, torch_model, write_folder
from typer.testing import CliRunner

import npumatmul.llm
from npumatmul.cli.app import app

runner = CliRunner()
TEXTS = ["the cat sat", "rain, rain.", "a d\u00f6g"]


def made(path: Path, name: str, sentence: bool) -> Path:
    variant = next(each for each in VARIANTS if each.name == name)
    write_folder(path, variant, torch_model(variant))
    return sentence_folder(path, pooling="mean") if sentence else path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("encoder"), "bert-plain", True)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("scorer"), "bert-scores", False)


def run(*arguments: object, given: str | None = None) -> str:
    done = runner.invoke(app, ["embed", *map(str, arguments)], input=given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def expected(path: Path, **options: Any) -> np.ndarray:
    with npumatmul.llm.load(path, "float32") as model:
        return model.embed(TEXTS, **options)


def test_lines_of_json_say_which_text_they_are_of(encoder: Path) -> None:
    lines = [json.loads(line) for line in run("-m", encoder, "--scheme", "float32", *TEXTS).splitlines()]
    assert [each["text"] for each in lines] == TEXTS
    np.testing.assert_allclose([each["embedding"] for each in lines], expected(encoder), atol=1e-6)


def test_a_line_is_what_ends_with_one(encoder: Path, tmp_path: Path) -> None:
    texts = ["a page\x0cand another", "a line\u2028of a text", "two  "]
    (tmp_path / "texts.txt").write_bytes("\r\n".join(texts).encode())
    printed = run("-m", encoder, "--scheme", "float32", "-f", tmp_path / "texts.txt")
    assert [json.loads(line)["text"] for line in printed.rstrip("\n").split("\n")] == texts


def test_texts_come_from_files_and_standard_input_too(encoder: Path, tmp_path: Path) -> None:
    content = "\n".join(TEXTS) + "\n\n"
    (tmp_path / "texts.txt").write_text(content, encoding="utf-8")
    printed = run("-m", encoder, "--scheme", "float32", "-f", tmp_path / "texts.txt", "--normalize")
    rows = np.array([json.loads(line)["embedding"] for line in printed.splitlines()])
    np.testing.assert_allclose(rows, expected(encoder, normalize=True), atol=1e-6)
    assert run("-m", encoder, "--scheme", "float32", "--normalize", given=content) == printed


def test_an_array_of_numpy_is_written(encoder: Path, tmp_path: Path) -> None:
    run("-m", encoder, "-o", tmp_path / "rows.npy", "--pooling", "cls", "--device", "sim:rk3588", "--no-cache", *TEXTS)
    rows = np.load(tmp_path / "rows.npy")
    assert rows.dtype == np.float32
    wanted = expected(encoder, pooling="cls")
    cosines = (rows * wanted).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted, axis=1)
    assert cosines.min() > 0.99


def test_a_query_gives_scores(scorer: Path) -> None:
    printed = run("-m", scorer, "--scheme", "float32", "-q", "the cat?", *TEXTS)
    with npumatmul.llm.load(scorer, "float32") as model:
        wanted = model.rerank("the cat?", TEXTS)
    np.testing.assert_allclose([json.loads(line)["score"] for line in printed.splitlines()], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "given", "problem"),
    [
        (["a", "-f", "x"], None, "both as arguments and by --file"),
        ([], "\n \n", "there are no texts"),
        ([], "one\r\n\r\nthree\n", "line 2 of standard input is empty"),
        (["a", "--scheme", "w3a3"], None, "--scheme"),
        (["a", "-q", "b", "--normalize"], None, "are for embeddings"),
        (["a", "-o", "/nowhere/rows.npy"], None, "/nowhere"),
        (["a", "-q", "b", "--scheme", "float32"], None, "has no head that gives scores"),
    ],
)
def test_mistakes_are_explained(encoder: Path, arguments: list[str], given: str | None, problem: str) -> None:
    done = runner.invoke(app, ["embed", "-m", str(encoder), *arguments], input=given)
    assert done.exit_code != 0
    assert problem in done.output + str(done.exception)
