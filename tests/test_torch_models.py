"""Offloaded models of transformers and sentence-transformers against the same models in float32."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch_models import cosine, spread, tiny

from npumatmul.torch import NpuModule, offload

pytestmark = pytest.mark.usefixtures("plain_torch")


NAMES = ["llama", "qwen2", "qwen3-moe", "gpt2", "bert", "t5", "whisper", "vit", "vits"]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_models_of_transformers(name: str) -> None:
    model, given_, key = tiny(name)
    if name != "vits":  # whose waveform would be at its limits
        spread(model)
    model.eval()
    original = copy.deepcopy(model)
    report = offload(model, "w16a16")
    assert sum(isinstance(each, NpuModule) for each in model.modules()) == len(report) > 7

    def result(of: nn.Module) -> torch.Tensor:
        torch.manual_seed(7)
        found: torch.Tensor = of(**given_)[key]
        return found

    expected = result(original)
    for y, e in zip(result(model), expected, strict=True):
        assert cosine(y, e) >= 0.9999
    if name != "vits":  # whose length follows from rounded durations
        rounded = copy.deepcopy(original)
        offload(rounded)
        assert cosine(result(rounded), expected) > 0.99
    if hasattr(model, "generate") and name != "vits" and name != "bert" and name != "vit":
        prompt = {k: v for k, v in given_.items() if k != "decoder_input_ids"}
        for options in ({}, {"num_beams": 3}):
            how = {"max_new_tokens": 6, "do_sample": False, **options}
            assert torch.equal(model.generate(**prompt, **how), original.generate(**prompt, **how))


def test_a_static_cache_batches_and_a_pipeline() -> None:
    model, given_, _ = tiny("llama")
    spread(model)
    original = copy.deepcopy(model)
    offload(model, "w16a16")
    how = {"max_new_tokens": 6, "do_sample": False}
    expected = original.generate(**given_, **how)
    assert torch.equal(model.generate(**given_, **how, cache_implementation="static", disable_compile=True), expected)
    padded = {
        "input_ids": torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]]),
        "attention_mask": torch.tensor([[0, 0, 1, 1], [1] * 4]),
    }
    assert torch.equal(model.generate(**padded, **how), original.generate(**padded, **how))


@pytest.mark.long
def test_programs_are_compiled_and_exported_whole() -> None:
    model, given_, _ = tiny("llama")
    spread(model)
    ids = given_["input_ids"]
    offload(model, "w16a16")
    expected = model(ids, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-4)
    # sums of floats may hang on the number of rows, and float16 rows on them
    torch.testing.assert_close(compiled(ids[:, :5], use_cache=False).logits, expected[:, :5], rtol=1e-3, atol=1e-3)
    layers = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Conv1d(5, 33, 7))
    offload(layers, filter_fn=lambda module, name: True)
    program = torch.export.export(layers, (torch.randn(5, 64),), dynamic_shapes=None)
    assert {"npumatmul.linear.default", "npumatmul.convolve.default"} <= {str(n.target) for n in program.graph.nodes}


@pytest.mark.long
def test_sentence_transformers_run_on_offloaded_models(tmp_path: Path) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from npumatmul.llm import fetch_demo_encoder

    folder = fetch_demo_encoder()
    model = SentenceTransformer(str(folder), device="cpu")
    texts = ["A cat sits on the mat.", "", "Shares fell on Monday, and " * 40]
    before = model.encode(texts)
    offload(model)
    for batch in (1, 3):
        after = model.encode(texts, batch_size=batch)
        assert ((before * after).sum(axis=1) >= 0.999).all()
    config = transformers.BertConfig(
        vocab_size=30522, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, num_labels=1
    )
    spread(transformers.BertForSequenceClassification(config)).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    scorer = CrossEncoder(str(tmp_path), device="cpu")
    pairs = [("a question", "an answer"), ("another", "text " * 50)]
    expected = scorer.predict(pairs)
    offload(scorer, "w16a16")
    np.testing.assert_allclose(scorer.predict(pairs), expected, atol=1e-3)
    pipe = transformers.pipeline("feature-extraction", model=str(folder), tokenizer=str(folder), device="cpu")
    rows = np.array(pipe("hello world"))
    offload(pipe.model, "w16a16")
    np.testing.assert_allclose(np.array(pipe("hello world")), rows, atol=5e-3)
