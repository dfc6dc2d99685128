"""A small model, and a server that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
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
    from encoder_zoo import VARIANTS, write_variant

    folder = write_variant(tmp_path_factory.mktemp("encoder"), VARIANTS[0])
    with npumatmul.llm.load(Path(folder), "float32") as loaded:
        yield loaded


@pytest.fixture(scope="session")
def server(model: Model) -> Iterator[Server]:
    with serving({"tiny": model}) as running:
        yield running
