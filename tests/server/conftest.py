"""A small model, and a server that serves it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from encoder_zoo import VARIANTS, sentence_folder, torch_model, write_folder
from llm_models import write_tiny_model
from serving import serving

import npumatmul.llm
from npumatmul.llm import Model
from npumatmul.server import Server


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_tiny_model(tmp_path_factory.mktemp("served") / "tiny.gguf").path
    with npumatmul.llm.load(path, "float32") as loaded:
        yield loaded


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = write_folder(tmp_path_factory.mktemp("served") / "encoder", VARIANTS[0], torch_model(VARIANTS[0]))
    sentence_folder(folder)
    with npumatmul.llm.load(folder, "float32") as loaded:
        yield loaded


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    scored = next(each for each in VARIANTS if each.what == "scores")
    folder = write_folder(tmp_path_factory.mktemp("served") / "reranker", scored, torch_model(scored))
    with npumatmul.llm.load(folder, "float32") as loaded:
        yield loaded


@pytest.fixture(scope="session")
def server(model: Model) -> Iterator[Server]:
    with serving({"tiny": model}) as running:
        yield running
