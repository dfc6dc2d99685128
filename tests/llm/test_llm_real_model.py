"""SmolLM2-135M-Instruct against transformers in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prose import PROSE

import npumatmul.llm
from npumatmul.llm import LoadedModel, generate


@pytest.fixture(scope="module")
def ids(reference_tokenizer: Any) -> list[int]:
    tokens: list[int] = reference_tokenizer(PROSE).input_ids[:256]
    assert len(tokens) == 256
    return tokens


@pytest.fixture(scope="module")
def expected(reference_model: Any, ids: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = reference_model(torch.tensor([ids])).logits[0].numpy()
    return logits


def assert_same_logits(got: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    a, b = got.astype(np.float64), expected.astype(np.float64)
    cosine = (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))
    assert cosine.min() >= 0.999999
    np.testing.assert_array_equal(a.argmax(-1), b.argmax(-1))
    np.testing.assert_allclose(a, b, atol=5e-3)


def test_logits_equal_transformers(demo: LoadedModel, ids: list[int], expected: NDArray[np.float32]) -> None:
    """256 tokens: two chunks of prefill."""
    assert_same_logits(demo.model.forward(ids, demo.model.new_cache(256), all_logits=True), expected)


def test_steps_through_the_cache_equal_transformers(
    demo: LoadedModel, ids: list[int], expected: NDArray[np.float32]
) -> None:
    cache = demo.model.new_cache(256)
    rows = [demo.model.forward(ids[:100], cache)]
    rows += [demo.model.forward([token], cache) for token in ids[100:116]]
    rows.append(demo.model.forward(ids[116:], cache))
    assert_same_logits(np.stack(rows), expected[[99, *range(100, 116), 255]])


def test_greedy_text_equals_transformers(demo: LoadedModel, reference_model: Any, ids: list[int]) -> None:
    prompt = ids[:40]
    with torch.no_grad():
        output = reference_model.generate(torch.tensor([prompt]), max_new_tokens=32, do_sample=False)
    run = generate(demo.model, demo.tokenizer, prompt, max_new_tokens=32)
    assert [piece.token for piece in run] == output[0, len(prompt) :].tolist()


def test_chat_answer(demo: LoadedModel) -> None:
    prompt = demo.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    run = generate(demo.model, demo.tokenizer, prompt, max_new_tokens=20)
    assert "Paris" in "".join(piece.text for piece in run)


def test_weight_macs_of_the_demo_model(demo: LoadedModel) -> None:
    block = 576 * (576 + 2 * 192) + 576 * 576 + 3 * 576 * 1536
    assert demo.model.weight_macs(10, logit_rows=1) == 10 * 30 * block + 576 * 49152


def test_what_load_does_by_default_keeps_the_model(
    demo_path: Path, expected: NDArray[np.float32], ids: list[int]
) -> None:
    """int8 weights and activations behind a rotation: docs/quality.md has a divergence of 0.0044 on another text."""
    with npumatmul.llm.load(demo_path, device="sim:rk3588", cache=False) as model:
        got = model.logits(ids)
        answer = "".join(
            piece.text for piece in model.chat([{"role": "user", "content": "Name the capital of Japan."}])
        )
    logs, reference = (torch.from_numpy(each).double().log_softmax(-1) for each in (got, expected))
    divergence = (reference.exp() * (reference - logs)).sum(-1).mean()
    assert divergence < 0.006
    assert answer == "The capital of Japan is Tokyo."
