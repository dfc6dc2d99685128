"""Models that see, as folders: their language model is that of transformers, and what is left out is said."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hybrid_zoo import DELTA
from model_zoo import SIZES, VARIANTS, torch_model, write_gguf
from safetensors.numpy import load_file, save_file
from test_llm_architectures import IDS, load, prefill_logits

from npumatmul.errors import ModelError
from npumatmul.llm import numpy_pack
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.registry import config_from, config_of
from npumatmul.llm.models.weights import left_out
from npumatmul.llm.models.wholes import WHOLES

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PATCHES = {"image_size": 28, "patch_size": 14}
SEEN = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": 64}
OF_QWEN: dict[str, Any] = {**SIZES, **DELTA}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        {**SIZES, "model_type": "gemma3_text", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
        {**TOWER, **PATCHES, "model_type": "siglip_vision_model"},
        {},
    ),
    "mistral3": (
        {**SIZES, "model_type": "mistral", "head_dim": 16},
        {**TOWER, **PATCHES, "model_type": "pixtral"},
        {"tie_word_embeddings": False},
    ),
    "qwen3_5": ({**OF_QWEN, "model_type": "qwen3_5_text"}, SEEN, {}),
    "qwen3_5_moe": (
        {
            **OF_QWEN,
            "model_type": "qwen3_5_moe_text",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
        SEEN,
        {},
    ),
    "lfm2_vl": (
        {**SIZES, "model_type": "lfm2", "layer_types": ["conv", "full_attention"]},
        {**TOWER, **PATCHES, "model_type": "siglip2_vision_model"},
        {},
    ),
}


def whole_model(name: str) -> Any:
    text, vision, more = json.loads(json.dumps(CASES[name]))
    config = transformers.AutoConfig.for_model(name, text_config=text, vision_config=vision, **more)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = transformers.AutoModelForImageTextToText.from_config(
            config, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            for each in made.parameters():
                each.normal_(0, 0.3 if each.ndim == 1 else each.shape[-1] ** -0.5)
    return made.eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def make(name: str) -> tuple[Path, Any]:
        if name not in made:
            model = whole_model(name)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            made[name] = folder, prefill_logits(model, IDS)
        return made[name]

    return make


def test_every_kind_of_whole_is_tried() -> None:
    assert set(CASES) == set(WHOLES)


@pytest.mark.parametrize("name", sorted(CASES))
def test_texts_are_computed_and_what_is_left_out_is_said(
    whole: Callable[[str], tuple[Path, Any]], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder, expected = whole(name)
    with caplog.at_level(logging.INFO):
        model = load(folder, numpy_pack)
    got = model.forward(IDS, model.new_cache(), all_logits=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    with open_source(folder) as source:
        note = left_out(source)
    part = "visual" if name.startswith("qwen") else "multi_modal_projector, vision_tower"
    assert note is not None
    assert note.endswith(f"not read ({part}): the language model alone is computed")
    assert note in caplog.text


@pytest.mark.parametrize("name", ["gemma3", "mistral3"])
def test_names_of_parameters_of_other_versions_are_understood(
    whole: Callable[[str], tuple[Path, Any]], name: str, tmp_path: Path
) -> None:
    """Either ``language_model.model.layers`` or ``model.language_model.layers``; not both."""
    folder, expected = whole(name)
    state = load_file(folder / "model.safetensors")
    assert any(each.startswith("language_model.model.layers.") for each in state)
    renamed = {
        each.replace("language_model.model.", "model.language_model.").replace(
            "language_model.lm_head", "lm_head"
        ): value
        for each, value in state.items()
    }
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(renamed, tmp_path / "model.safetensors")
    model = load(tmp_path, numpy_pack)
    got = model.forward(IDS, model.new_cache(), all_logits=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
    save_file({**renamed, **state}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="twice, under two names"):
        load(tmp_path, numpy_pack)


def test_a_head_in_the_file_is_the_head_whatever_the_values_say(
    whole: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    folder, expected = whole("mistral3")
    config = json.loads((folder / "config.json").read_text())
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    for said in (True, False, None):
        config["tie_word_embeddings"] = said
        del config["text_config"]["tie_word_embeddings"]
        config["text_config"]["tie_word_embeddings"] = said
        (tmp_path / "config.json").write_text(json.dumps(config))
        model = load(tmp_path, numpy_pack)
        got = model.forward(IDS, model.new_cache(), all_logits=True)
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_sizes_that_published_files_leave_to_the_architecture() -> None:
    """The config.json of Gemma 3 4B says of its language model no more than this."""
    config = config_from(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "eos_token_id": [1, 106],
            "image_token_index": 262144,
            "initializer_range": 0.02,
            "mm_tokens_per_image": 256,
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "torch_dtype": "bfloat16",
            "transformers_version": "4.50.0.dev0",
            "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
        }
    )
    assert (config.n_heads, config.n_kv_heads, config.head_dim, config.vocab_size) == (8, 4, 256, 262208)
    assert (config.context_length, config.layers[0].window, config.layers[5].window) == (131072, 1024, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_config": None}, "'qwen3_5', and 'text_config', which has its language model, is None"),
        ({"text_config": {}}, "'text_config', which has its language model, is {}"),
        ({"text_config": [1]}, "'text_config', which has its language model, is"),
        ({"text_config": {"model_type": "llama"}}, "'text_config.model_type' is 'llama'; language models of 'qwen3_5'"),
        ({"text_config": {"model_type": ["x"]}}, "'text_config.model_type' is"),
        ({"twist": 3}, "'twist' is 3, and what that means is not known"),
        ({"quantization_config": {"quant_method": "fp8"}}, "its weights are quantized"),
        ({"architectures": ["Qwen3_5ForTokenClassification"]}, "Qwen3_5ForTokenClassification"),
        ({"tie_word_embeddings": 3}, "'tie_word_embeddings' is 3; it must be true or false"),
    ],
)
def test_wholes_that_are_not_understood_are_refused(changes: dict[str, Any], message: str) -> None:
    usual = {"model_type": "qwen3_5", "text_config": {**OF_QWEN, "model_type": "qwen3_5_text"}, "vision_config": SEEN}
    config_from(usual)
    with pytest.raises(ModelError) as caught:
        config_from({**usual, **changes})
    assert message in str(caught.value)


def test_layers_of_gguf_files_that_guess_further_tokens_are_left_out(tmp_path: Path) -> None:
    """As llama.cpp's converter writes them: one block more, with tensors of attention and some of its own."""
    variant = next(each for each in VARIANTS if each.name == "qwen3_5_text-plain")
    reference = torch_model(variant)
    path = write_gguf(tmp_path / "model.gguf", variant, reference)
    with open_source(path) as source:
        usual, tensors = config_of(source), len(source.weights)
    path = write_gguf(tmp_path / "model.gguf", variant, reference, more=_guessing)
    with open_source(path) as source:
        assert config_of(source) == usual
        assert len(source.weights) == tensors + 2
        assert left_out(source) == "2 tensors are not read (blk.4, layers.4): the language model alone is computed"
        source.config["qwen35.nextn_predict_layers"] = 5  # type: ignore[index]
        with pytest.raises(ModelError, match="nextn_predict_layers' is 5; it must be fewer layers than there are"):
            config_of(source)
    model = load(path, numpy_pack)
    expected = prefill_logits(reference, IDS)
    got = model.forward(IDS, model.new_cache(), all_logits=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def _guessing(writer: Any) -> None:
    writer.add_block_count(5)
    writer.add_nextn_predict_layers(1)
    writer.add_tensor("blk.4.nextn.eh_proj.weight", np.ones((64, 128), np.float32))
    writer.add_tensor("blk.4.attn_norm.weight", np.ones(64, np.float32))
