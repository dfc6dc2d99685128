"""Fixtures of the language-model tests: the demo model, transformers' view of it, and small models."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llm_models import TinyModel, write_tiny_model
from numpy.typing import NDArray

from npumatmul.llm import LoadedModel, fetch_demo_model, load_model
from npumatmul.llm.packed_cache import PackedCache

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers


class TorchLinear:
    """y = x W^T by PyTorch, on one thread: BLAS threads get in each other's way on small shared machines."""

    def __init__(self, weight: NDArray[np.float32], name: str = "") -> None:
        self._weight = torch.from_numpy(weight)
        self.shape = (weight.shape[1], weight.shape[0])

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        y: NDArray[np.float32] = torch.nn.functional.linear(torch.from_numpy(x), self._weight).numpy()
        return y


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo_path() -> Path:
    return fetch_demo_model()


@pytest.fixture(scope="session")
def demo(demo_path: Path) -> LoadedModel:
    return load_model(demo_path, pack=TorchLinear)


@pytest.fixture(scope="session")
def reference_tokenizer(demo_path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoTokenizer.from_pretrained(demo_path.parent, gguf_file=demo_path.name)


@pytest.fixture(scope="session")
def reference_model(demo_path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            demo_path.parent, gguf_file=demo_path.name, dtype=torch.float32
        )
    return model.eval()


@pytest.fixture(scope="session")
def make_tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., TinyModel]:
    """Function that writes a small model, see `write_tiny_model`."""

    def make(**options: Any) -> TinyModel:
        return write_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny.gguf", **options)

    return make


@pytest.fixture(scope="session")
def tiny(make_tiny_model: Callable[..., TinyModel]) -> TinyModel:
    return make_tiny_model()


@pytest.fixture(scope="session")
def make_gguf(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Function that writes a GGUF file with whatever a callback adds to it."""

    def make(fill: Callable[[gguf.GGUFWriter], None], arch: str = "llama") -> Path:
        path = tmp_path_factory.mktemp("gguf") / "file.gguf"
        writer = gguf.GGUFWriter(str(path), arch)
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return make


@pytest.fixture(autouse=True)
def _packed_models_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tests pack is kept in no cache of the machine's."""
    folder = tmp_path_factory.mktemp("packed")
    monkeypatch.setattr("npumatmul.llm.loader.PackedCache", lambda: PackedCache(folder))
