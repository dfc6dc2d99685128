"""Models that go onto the NPU while transformers reads them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch_models import cosine, spread, tiny

from npumatmul.torch import NpuConfig, NpuLinear, NpuModule, offload

pytestmark = pytest.mark.usefixtures("plain_torch")


@pytest.mark.long
@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3-moe"])
def test_weights_are_packed_as_transformers_reads_them(name: str, tmp_path: Path) -> None:
    model, given_, key = tiny(name)
    spread(model)
    model.save_pretrained(tmp_path / "floats")
    kind: Any = type(model)
    expected = model(**given_)[key]
    made = kind.from_pretrained(tmp_path / "floats", quantization_config=NpuConfig("w8a8"))
    packed = [name for name, each in made.named_modules() if isinstance(each, NpuModule)]
    assert len(packed) >= 8
    assert not any(each.endswith("lm_head") for each in packed)
    other = copy.deepcopy(model)
    offload(other, "w8a8")
    y = made(**given_)[key]
    assert cosine(y, other(**given_)[key]) > 0.99999
    assert cosine(y, expected) > 0.99
    made.save_pretrained(tmp_path / "packed")
    again = kind.from_pretrained(tmp_path / "packed")
    assert sum(isinstance(each, NpuModule) for each in again.modules()) == len(packed)
    assert cosine(again(**given_)[key], y) > 0.9999
    other.save_pretrained(tmp_path / "plain")  # of `offload`: a model of floats
    plain = kind.from_pretrained(tmp_path / "plain")
    assert not any(isinstance(each, NpuModule) for each in plain.modules())
    assert cosine(plain(**given_)[key], y) > 0.999


def test_an_output_matrix_that_was_tied_is_written_and_read_again(tmp_path: Path) -> None:
    model, given_, key = tiny("t5")
    spread(model)
    assert model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "floats")
    kind: Any = type(model)
    made = kind.from_pretrained(tmp_path / "floats", quantization_config=NpuConfig("w16a16", skip_modules=[]))
    assert isinstance(made.lm_head, NpuLinear)
    y = made(**given_)[key]
    assert cosine(y, model(**given_)[key]) > 0.9999
    made.save_pretrained(tmp_path / "packed")
    again = kind.from_pretrained(tmp_path / "packed")
    assert isinstance(again.lm_head, NpuLinear)
    assert torch.equal(again(**given_)[key], y)


def test_a_head_that_no_file_has_is_made_as_transformers_does(tmp_path: Path) -> None:
    model, given_, _ = tiny("bert")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    kind = transformers.BertForSequenceClassification
    made = kind.from_pretrained(tmp_path, quantization_config=NpuConfig("w16a16", skip_modules=[]))
    assert isinstance(made.classifier, NpuLinear)
    assert made(**given_).logits.isfinite().all()
    assert 0.015 < made.classifier.weight.std() < 0.025  # drawn, not whatever was in memory
    assert not made.classifier.bias.any()
    made.save_pretrained(tmp_path)
    other = kind.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert other(**given_).logits.shape == (2, 7)
    assert 0.015 < other.classifier.weight.std() < 0.025
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        kind.from_pretrained(tmp_path, num_labels=7)


def test_mistakes_in_the_configuration() -> None:
    with pytest.raises(ValueError, match="w9a9"):
        NpuConfig("w9a9")
    with pytest.raises(TypeError, match="NpuConfig has no bits"):
        NpuConfig("w8a8", bits=3)
