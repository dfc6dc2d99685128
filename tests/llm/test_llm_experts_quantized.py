"""Models with experts as quantized files: every kind of recipe, blocks of GGUF files, memory for experts."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quantize
from llm_models import tokenizer_metadata
from model_zoo import VARIANTS, VOCAB, gguf_tensors, torch_model, write_gguf, write_metadata
from numpy.typing import NDArray

from npumatmul import llm
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.measure.analysis import analyze_layers, errors_as_csv
from npumatmul.llm.measure.evaluation import Window
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.weights import load_decoder
from npumatmul.llm.quantize import (
    LayerRecipe,
    Recipe,
    auto_quantize,
    load_quantized,
    quantize_model,
    save_quantized,
)
from npumatmul.llm.quantize.quantized_model import FEWEST_ROWS
from npumatmul.nn.product import FloatProduct

BY_NAME = {each.name: each for each in VARIANTS}
IDS = [5, 3, 8, 13, 21, 34]
GPTQ = {"rounding": "gptq", "transform": "balance+hadamard", "centre": True}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = BY_NAME["qwen3_moe-plain"]
    return write_gguf(tmp_path_factory.mktemp("experts") / "model.gguf", variant, torch_model(variant))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A file whose experts are stacks of Q8_0, but for those of one layer."""

    def make(name: str) -> Path:
        path = tmp_path_factory.mktemp("blocks") / "model.gguf"
        variant = BY_NAME[name]
        assert variant.gguf is not None
        model = torch_model(variant)
        writer = gguf.GGUFWriter(str(path), variant.gguf)
        write_metadata(writer, variant.gguf, model.config)
        tokenizer_metadata(writer, VOCAB)
        kind = gguf.GGMLQuantizationType.Q8_0
        for tensor, value in gguf_tensors(variant.gguf, model):
            if "_exps.weight" in tensor and value.shape[-1] % 32 == 0 and not tensor.startswith("blk.1.ffn_down"):
                writer.add_tensor(tensor, quantize(np.asarray(value, np.float32), kind), raw_dtype=kind)
            else:
                writer.add_tensor(tensor, value)
        for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
            getattr(writer, step)()
        return path

    return make


def pieces(count: int, length: int = 16) -> list[Window]:
    rng = np.random.default_rng(0)
    return [Window(rng.integers(0, 256, length), 0) for _ in range(count)]


def logits(model: Decoder) -> NDArray[np.float32]:
    return model.forward(IDS, model.new_cache(), all_logits=True)


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize(
    ("recipe", "calibrated", "least"),
    [
        (Recipe(LayerRecipe("w8a8")), False, 0.9995),
        (Recipe(LayerRecipe("w16a16")), False, 0.999999),
        (Recipe(LayerRecipe("w8a8"), {"blk.*.expert.*": {"scheme": "w4a8_g32"}}), False, 0.99),
        (Recipe(LayerRecipe("w8a8", **GPTQ)), True, 0.999),
        (Recipe(LayerRecipe("w8a8", correction=0.5, **GPTQ), sequential=True), True, 0.999),
    ],
    ids=["nearest", "half", "pattern", "gptq", "sequential"],
)
def test_a_file_of_quantized_experts(
    file: Path, tmp_path: Path, recipe: Recipe, calibrated: bool, least: float
) -> None:
    made = quantize_model(file, recipe, pieces(3) if calibrated else ())
    exact = logits(llm.load(file, "float32")._model)
    assert set(made.layers) == set(llm.load(file, "float32")._model.linears)
    assert made.layers["blk.1.expert.3.down"].recipe.scheme == recipe.for_layer("blk.1.expert.3.down").scheme
    portable, packed = tmp_path / "portable.safetensors", tmp_path / "packed.safetensors"
    save_quantized(made, portable)
    save_quantized(made, packed, device="sim:rk3588")
    emulated = logits(load_quantized(portable).load().model)
    assert cosine(emulated, exact) >= least
    with llm.load(portable, device="sim:rk3588") as one, llm.load(packed, device="sim:rk3588") as other:
        found = logits(one._model)
        np.testing.assert_array_equal(found, logits(other._model))
        assert cosine(found, emulated) > 1 - 1e-6
    rest = load_quantized(packed).rest.tensors
    assert not [name for name in rest if "_exps" in name]  # weights are there once
    assert [name for name in rest if "ffn_gate_inp" in name]


def test_experts_that_nobody_chose_are_rounded_to_nearest_and_said_to_be(file: Path) -> None:
    recipe = LayerRecipe("w4a8", **GPTQ)
    for sequential in (False, True):
        made = quantize_model(file, Recipe(recipe, sequential=sequential), pieces(1, 12))
        rounded = [name for name, layer in made.layers.items() if layer.recipe.rounding == "nearest"]
        assert rounded
        assert all(".expert." in name for name in rounded)
        assert {made.layers[name].recipe.transform for name in rounded} == {"hadamard"}
        assert f"{len(rounded)} layers" in made.notes[0]
        assert f"fewer than {FEWEST_ROWS} tokens" in made.notes[0]


@pytest.mark.parametrize("name", ["qwen3_moe-plain", "granitemoe-multipliers", "gpt_oss-usual"])
def test_blocks_of_stacks_are_taken_over(blocks: Any, name: str, tmp_path: Path) -> None:
    path = blocks(name)
    made = quantize_model(path, Recipe(LayerRecipe("gguf")))
    taken = {name for name, layer in made.layers.items() if layer.recipe.scheme == "gguf"}
    with open_source(path) as source:
        wanted = {}
        model = load_decoder(source, lambda layer: FloatProduct(wanted.setdefault(layer.name, layer.weight(source))))
    experts = {name: layer.shape[1] for name, layer in made.layers.items() if ".expert." in name}
    assert taken == {
        name for name, k in experts.items() if k % 32 == 0 and not (name.startswith("blk.1.") and name.endswith("down"))
    }
    for each in taken:
        np.testing.assert_array_equal(made.layers[each].restored(), wanted[each])
    emulated = logits(made.load().model)
    assert cosine(emulated, logits(model)) > 0.999
    for _ in range(2):  # made, and from the cache
        with llm.load(path, "gguf", device="sim:rk3588") as loaded:
            found = logits(loaded._model)
            assert cosine(found, emulated) > 1 - 1e-6


def test_schemes_are_chosen_for_each_expert(file: Path) -> None:
    candidates = [LayerRecipe("w4a8"), LayerRecipe("w8a8")]
    made = auto_quantize(file, candidates, pieces(2), max_bits=7.0)
    schemes = {layer.recipe.scheme for name, layer in made.layers.items() if ".expert." in name}
    assert schemes == {"w4a8", "w8a8"}
    assert made.bits_per_weight <= 7.0


@pytest.mark.parametrize("scheme", ["gguf", "file"])
def test_experts_of_quantized_files_keep_to_their_memory(blocks: Any, file: Path, tmp_path: Path, scheme: str) -> None:
    how: dict[str, Any] = {"device": "sim:rk3588", "cache": False}
    if scheme == "gguf":
        path, how["scheme"] = blocks("qwen3_moe-plain"), "gguf"
    else:
        path = tmp_path / "quantized.safetensors"
        save_quantized(quantize_model(file, Recipe(LayerRecipe("w8a8"))), path, device="sim:rk3588")
    with llm.load(path, **how) as whole:
        expected = logits(whole._model)
        assert whole.experts is None
    with llm.load(path, expert_memory=1 << 16, **how) as model:
        np.testing.assert_array_equal(logits(model._model), expected)
        assert model.experts is not None
        assert model.experts.nbytes <= 1 << 16 < model.experts.waiting
    assert model.experts.waiting == 0


@pytest.mark.parametrize("name", ["qwen3_moe-plain", "lfm2_moe-plain", "qwen3_next-plain"])
def test_a_block_by_its_layers_is_the_block(tmp_path: Path, name: str) -> None:
    """Of experts alone, of such that are chosen with a preference, and of such beside a shared one."""
    variant = BY_NAME[name]
    model = llm.load(write_gguf(tmp_path / "model.gguf", variant, torch_model(variant)), "float32")._model
    assert model.config.layers[1].experts is not None
    rng = np.random.default_rng(3)
    for rows in (1, 9):
        x = rng.standard_normal((rows, model.config.hidden_size)).astype(np.float32)
        expected = model.run_block(1, x, model.new_cache(rows))
        steps, parts = model.block_steps(1, x, model.new_cache(rows)), []
        part, given = next(steps)
        try:
            while True:
                parts.append(part)
                product = model.linears[f"blk.1.{part}"]
                part, given = steps.send(product(given) if len(given) else np.zeros((0, product.shape[1]), np.float32))
        except StopIteration as end:
            np.testing.assert_allclose(end.value, expected, rtol=1e-5, atol=1e-5)
        assert tuple(parts) == model.config.layers[1].parts


def test_errors_of_experts_are_those_of_the_tokens_that_chose_them(file: Path) -> None:
    reference = llm.load(file, "float32")._model
    made = quantize_model(file, Recipe(LayerRecipe("w8a8"))).load().model
    errors = {each.name: each for each in analyze_layers(made, reference, pieces(1, 6))}
    experts = {name: each for name, each in errors.items() if ".expert." in name}
    chosen = [name for name, each in experts.items() if not math.isnan(each.alone.cosine)]
    assert 0 < len(chosen) < len(experts)  # six tokens do not choose all of them
    assert all(experts[name].alone.cosine > 0.999 for name in chosen)
    for each in experts.values():  # other tokens may have chosen it in the model: those do not compare
        assert math.isnan(each.entire.cosine)
        assert math.isnan(each.entire.relative_error)
        assert math.isnan(each.entire.snr_db)
    assert all(each.entire.cosine > 0.99 for name, each in errors.items() if name not in experts)
    assert "nan" in errors_as_csv(list(errors.values()))
