"""Every architecture against transformers, on small random models: folders, GGUF files, prompts and single tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_zoo import VARIANTS, VOCAB, Variant, prefill_logits, torch_model, write_folder, write_gguf
from numpy.typing import NDArray

from npumatmul.llm import npu_pack, numpy_pack
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.registry import ARCHITECTURES
from npumatmul.llm.models.weights import load_decoder

IDS = [int(i) for i in np.random.default_rng(0).integers(0, VOCAB, 40)]
PROMPT = 20
RELATIVE = 2e-5  # of the largest logit: a hundred sums in float32, in another order
COSINE = 0.9999

Case = tuple[Variant, str]
CASES: list[Any] = [
    pytest.param((variant, kind), id=f"{variant.name}-{kind}")
    for variant in VARIANTS
    for kind in ("folder", "gguf")
    if kind == "folder" or variant.gguf is not None
]


@dataclass
class Made:
    """A variant on disk, and what transformers computes."""

    path: Path
    whole: NDArray[np.float32]
    steps: NDArray[np.float32]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Made]:
    references: dict[str, tuple[Any, NDArray[np.float32], NDArray[np.float32]]] = {}
    done: dict[tuple[str, str], Made] = {}

    def make(case: Case) -> Made:
        variant, kind = case
        if variant.name not in references:
            model = torch_model(variant)
            references[variant.name] = model, prefill_logits(model, IDS), stepwise_logits(model)
        if (variant.name, kind) not in done:
            model, whole, steps = references[variant.name]
            folder = tmp_path_factory.mktemp("model")
            if kind == "folder":
                path = write_folder(folder, variant, model)
            else:
                path = write_gguf(folder / "model.gguf", variant, model)
            done[variant.name, kind] = Made(path, whole, steps)
        return done[variant.name, kind]

    return make


def stepwise_logits(model: Any) -> NDArray[np.float32]:
    """Logits after each token of `IDS` behind the prompt, by the way in which transformers generates."""
    ids = torch.tensor([IDS])
    rows, cache, seen = [], None, 0
    longest_short = getattr(model.config, "original_max_position_embeddings", None)
    with torch.no_grad():
        for count in range(PROMPT, len(IDS) + 1):
            if count - 1 == longest_short:  # where its generation begins anew, because all rotations change
                cache, seen = None, 0
            out = model(ids[:, seen:count], cache=cache, use_cache=True)
            cache, seen = out.cache, count
            rows.append(out.logits[0, -1].numpy())
    return np.stack(rows)


def load(path: Path, pack: Any) -> Decoder:
    with open_source(path) as source:
        return load_decoder(source, lambda layer: pack(layer.weight(source), layer.name))


def cosines(got: NDArray[np.float32], expected: NDArray[np.float32]) -> NDArray[np.float64]:
    products = (got.astype(np.float64) * expected).sum(axis=-1)
    found: NDArray[np.float64] = products / np.linalg.norm(got, axis=-1) / np.linalg.norm(expected, axis=-1)
    return found


def decoded(model: Decoder) -> NDArray[np.float32]:
    """As `stepwise_logits`."""
    cache = model.new_cache()
    rows = [model.forward(IDS[:PROMPT], cache)]
    rows += [model.forward([token], cache) for token in IDS[PROMPT:]]
    return np.stack(rows)


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_transformers(made: Callable[[Case], Made], case: Case) -> None:
    reference = made(case)
    model = load(reference.path, numpy_pack)
    bound = RELATIVE * float(np.abs(reference.whole).max())
    whole = model.forward(IDS, model.new_cache(), all_logits=True)
    np.testing.assert_allclose(whole, reference.whole, rtol=0, atol=bound)
    np.testing.assert_allclose(decoded(model), reference.steps, rtol=0, atol=bound)


@pytest.mark.parametrize("case", CASES)
def test_float16_products_on_the_npu_keep_the_direction_of_logits(made: Callable[[Case], Made], case: Case) -> None:
    reference = made(case)
    model = load(reference.path, npu_pack("w16a16", "sim:rk3588"))
    whole = model.forward(IDS, model.new_cache(), all_logits=True)
    assert cosines(whole, reference.whole).min() >= COSINE
    assert cosines(decoded(model), reference.steps).min() >= COSINE


def test_every_architecture_is_tried_in_every_format_that_it_has() -> None:
    for architecture in ARCHITECTURES:
        tried = [each for each in VARIANTS if each.model_type in architecture.model_types]
        assert tried, architecture.name
        for name in architecture.gguf:
            assert any(each.gguf == name for each in VARIANTS), name
