"""Quantizing, saving and measuring models of every architecture that GGUF files can have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from model_zoo import VARIANTS, VOCAB, Variant, torch_model, write_folder, write_gguf
from test_llm_architectures import IDS, cosines, load

from npumatmul.errors import ModelError
from npumatmul.llm import Window, evaluate, numpy_pack
from npumatmul.llm.quantize import LayerRecipe, Recipe, load_quantized, quantize_model, save_quantized
from npumatmul.llm.run.lockstep import Lockstep

#: Mixtures of experts are refused here: test_llm_experts.
DENSE = [each for each in VARIANTS if not {"num_experts", "num_local_experts"} & set(each.options)]
FIRST = {each.gguf: each for each in reversed(DENSE) if each.gguf is not None}
CASES = [pytest.param(each, id=each.name) for each in FIRST.values()]


@pytest.mark.parametrize("variant", CASES)
def test_quantized_models_keep_the_direction_of_logits(tmp_path: Path, variant: Variant) -> None:
    path = write_gguf(tmp_path / "model.gguf", variant, torch_model(variant))
    exact = load(path, numpy_pack)
    expected = exact.forward(IDS, exact.new_cache(), all_logits=True)
    recipe = Recipe(LayerRecipe("w8a8"), {"blk.0.*": {"scheme": "w16a16"}})
    quantized = quantize_model(path, recipe)
    assert list(quantized.layers) == exact.config.layer_names
    save_quantized(quantized, tmp_path / "model.safetensors")
    for each in (quantized, load_quantized(tmp_path / "model.safetensors")):
        model = each.load().model
        assert model.config == exact.config
        logits = model.forward(IDS, model.new_cache(), all_logits=True)
        assert cosines(logits, expected).min() > 0.99
    window = Window(np.array(IDS), 0)
    found = evaluate(model, exact, [window], lambda *_: None)
    assert found.mean_kl is not None
    assert found.mean_kl.value < 0.1


@pytest.mark.parametrize("variant", CASES)
def test_recipes_that_calibrate_layer_after_layer_run(tmp_path: Path, variant: Variant) -> None:
    path = write_gguf(tmp_path / "model.gguf", variant, torch_model(variant))
    exact = load(path, numpy_pack)
    text = [Window(np.random.default_rng(seed).integers(0, VOCAB, 60), 0) for seed in range(2)]
    recipe = Recipe(LayerRecipe("w8a8", rounding="gptq"), sequential=True)
    if exact.config.whole_only is not None:
        with pytest.raises(ModelError, match="cannot be computed one by one: each of its layers has embeddings"):
            quantize_model(path, recipe, text)
        recipe = Recipe(LayerRecipe("w8a8", rounding="gptq"))
    model = quantize_model(path, recipe, text).load().model
    expected = exact.forward(IDS, exact.new_cache(), all_logits=True)
    least = 0.9 if any(exact.config.states) else 0.99  # a norm behind states makes small differences large
    assert cosines(model.forward(IDS, model.new_cache(), all_logits=True), expected).min() > least


@pytest.mark.parametrize("variant", [each for each in VARIANTS if not each.older], ids=lambda each: each.name)
def test_sequences_in_lockstep_are_those_that_run_alone(tmp_path: Path, variant: Variant) -> None:
    model = load(write_folder(tmp_path, variant, torch_model(variant)), numpy_pack)
    capacity = 20  # shorter than what LongRoPE counts as long
    texts = [IDS[:capacity], IDS[-capacity:]]
    pair = Lockstep(model, 2, capacity)
    steps = np.stack([pair.step([text[i] for text in texts]) for i in range(capacity)], axis=1)
    for row, text in zip(steps, texts, strict=True):
        alone = model.forward(text, model.new_cache(), all_logits=True)
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-5 * np.abs(alone).max())
