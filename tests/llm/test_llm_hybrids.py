"""Answers of models whose layers have states: chats, several sequences at once, guesses that are taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_zoo import VARIANTS, prefill_logits, torch_model, write_gguf
from test_llm_architectures import IDS, load

from npumatmul import llm
from npumatmul.errors import ModelError
from npumatmul.llm import numpy_pack
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.together import forward_together
from npumatmul.llm.run.generate import generate

NAMES = ("qwen3_5_text-plain", "lfm2-plain")
TOLD = [IDS[:7], IDS[7:9], IDS[9:10], IDS[10:16]]


@pytest.fixture(scope="module")
def path_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            variant = next(each for each in VARIANTS if each.name == name)
            made[name] = write_gguf(tmp_path_factory.mktemp(name) / "model.gguf", variant, torch_model(variant))
        return made[name]

    return make


def greedy(model: Decoder, prompt: Sequence[int], count: int) -> list[int]:
    """Tokens of the largest logits, of the whole sequence computed anew each time."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(np.argmax(model.forward(ids, model.new_cache()))))
    return ids[len(prompt) :]


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_goes_on_in_its_cache_and_begins_anew_where_it_is_another(
    path_of: Callable[[str], Path], name: str
) -> None:
    model = load(path_of(name), numpy_pack)
    tokenizer: Any = llm.load(path_of(name), "float32", cache=False).tokenizer
    cache, text = model.new_cache(), list[int]()
    for said in TOLD:
        before = len(text)
        text += said
        run = generate(model, tokenizer, text, max_new_tokens=4, stop_ids=(), cache=cache)
        answer = [piece.token for piece in run]
        assert answer == greedy(model, text, 4)
        assert run.stats.cached_tokens == max(before - 1, 0)  # of the last answer one token was not computed
        text += answer
    for other in (text[:20], [*text[:5], 77, 12], text):
        run = generate(model, tokenizer, other, max_new_tokens=3, stop_ids=(), cache=cache)
        assert [piece.token for piece in run] == greedy(model, other, 3)
        assert run.stats.cached_tokens == 0


@pytest.mark.parametrize("name", NAMES)
def test_sequences_of_several_lengths_go_through_together(path_of: Callable[[str], Path], name: str) -> None:
    model = load(path_of(name), numpy_pack)
    texts = [IDS[:9], IDS[5:30], IDS[20:22]]
    caches = [model.new_cache() for _ in texts]
    for take in (lambda text: text[:-1], lambda text: text[-1:]):
        got = forward_together(model, [take(text) for text in texts], caches, [1, 1, 1])
    for text, logits in zip(texts, got, strict=True):
        expected = model.forward(text, model.new_cache())
        np.testing.assert_allclose(logits[0], expected, rtol=0, atol=5e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_guesses_that_were_wrong_are_taken_back(path_of: Callable[[str], Path], name: str, tmp_path: Path) -> None:
    variant = next(each for each in VARIANTS if each.name == name)
    write_gguf(tmp_path / "other.gguf", variant, torch_model(variant, seed=1))
    expected = greedy(load(path_of(name), numpy_pack), IDS[:9], 12)
    with llm.load(path_of(name), "float32", cache=False) as model:
        for proposes, is_right in ((tmp_path / "other.gguf", False), (path_of(name), True)):
            with llm.load(proposes, "float32", cache=False) as other:
                speculation = llm.Speculation(drafts=3, model=other, when="always")
                run = model.generate(IDS[:9], max_tokens=12, stop_ids=(), speculation=speculation)
                assert [piece.token for piece in run] == expected
            assert run.stats.drafted_tokens > 0
            assert (run.stats.accepted_tokens == run.stats.drafted_tokens) is is_right


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_caches_with_states_are_saved_and_loaded(
    path_of: Callable[[str], Path], name: str, dtype: str, tmp_path: Path
) -> None:
    model = load(path_of(name), numpy_pack)
    cache = model.new_cache(60, dtype=dtype)
    model.forward(IDS[:15], cache)
    cache.save(tmp_path / "cache")
    loaded = llm.KVCache.load(tmp_path / "cache")
    np.testing.assert_array_equal(model.forward(IDS[15:30], loaded), model.forward(IDS[15:30], cache))
    assert loaded.tokens == IDS[:30]
    assert not loaded.trimmable
    assert loaded.truncate(10) == loaded.length == 0


@pytest.mark.parametrize("name", ["qwen3_5_text-plain", "qwen3_next-plain"])
def test_files_may_list_layers_with_states(name: str, tmp_path: Path) -> None:
    """As llama.cpp's converter writes them: the usual interval stands beside the list, and does not count."""
    usual = next(each for each in VARIANTS if each.name == name)
    kinds = ["linear_attention", "full_attention", "full_attention", "linear_attention"]
    variant = replace(usual, options={**usual.options, "layer_types": kinds})
    reference = torch_model(variant)

    def listed(recurrent: list[bool]) -> Path:
        key = f"{variant.gguf}.attention.recurrent_layers"
        return write_gguf(tmp_path / "model.gguf", variant, reference, lambda writer: writer.add_array(key, recurrent))

    expected = prefill_logits(reference, IDS)
    model = load(listed([each == "linear_attention" for each in kinds]), numpy_pack)
    got = model.forward(IDS, model.new_cache(), all_logits=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * float(np.abs(expected).max()))
    with pytest.raises(ModelError, match=r"attention.recurrent_layers' .* a list of 4 truth values"):
        load(listed([True, False, False]), numpy_pack)
    with pytest.raises(ModelError, match=r"10 tensors are missing, such as .*layers\.1\.linear_attn"):
        load(listed([True, True, True, False]), numpy_pack)
