"""Gemma 4 beyond its logits: whole folders, what checkpoints have for nothing, several sequences, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llm_models import write_tokenizer
from model_zoo import VARIANTS, VOCAB, torch_model, write_folder, write_gguf
from safetensors.numpy import load_file, save_file

from npumatmul import llm
from npumatmul.errors import ModelError
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig
from npumatmul.llm.models.registry import config_from
from npumatmul.llm.models.together import forward_together
from npumatmul.llm.quantize import LayerRecipe, Recipe, quantize_model, save_quantized
from npumatmul.llm.run.lockstep import Lockstep

SMALL = next(each for each in VARIANTS if each.name == "gemma4_text-small")
IDS = [int(i) for i in np.random.default_rng(2).integers(0, VOCAB, 30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_folder(tmp_path_factory.mktemp("gemma4"), SMALL, torch_model(SMALL))
    write_tokenizer(path)
    return path


def test_a_folder_of_the_whole_model_is_its_language_model(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / "model.safetensors")
    whole = {name.replace("model.", "model.language_model.", 1): value for name, value in state.items()}
    whole["model.vision_tower.patch_embedder.input_proj.weight"] = np.zeros((4, 4), np.float32)
    whole["model.embed_audio.embedding_projection.weight"] = np.zeros((4, 4), np.float32)
    for i in (3, 4, 5):  # published checkpoints have them of layers that look at keys of others
        whole[f"model.language_model.layers.{i}.self_attn.k_proj.weight"] = np.zeros((4, 4), np.float32)
    save_file(whole, tmp_path / "model.safetensors")
    text = json.loads((folder / "config.json").read_text())
    config = {"model_type": "gemma4", "text_config": text, "vision_config": {"depth": 3}, "audio_config": None}
    config |= {"image_token_id": 255, "boi_token_id": 254, "architectures": ["Gemma4ForConditionalGeneration"]}
    del text["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tokenizer(tmp_path)
    with llm.load(folder, "float32") as one, llm.load(tmp_path, "float32") as other:
        np.testing.assert_array_equal(one.logits(IDS), other.logits(IDS))
        with pytest.raises(ValueError, match="layers of gemma4 have embeddings of tokens"):
            one.logits(IDS, {0: llm.Embedded(np.zeros((2, 64)))})


def test_it_runs_on_the_npu_and_from_a_cache(folder: Path) -> None:
    with llm.load(folder, "float32") as exact, llm.load(folder, "w8a8", device="sim:rk3588", cache=False) as model:
        names = model._model.config.layer_names
        assert names[:3] == ["layer_inputs", "blk.0.qkv", "blk.0.attn_out"]
        assert names[5:8] == ["blk.0.inp_gate", "blk.0.inp_proj", "blk.1.qkv"]
        expected, got = exact.logits(IDS), model.logits(IDS)
        lengths = np.linalg.norm(got, axis=-1) * np.linalg.norm(expected, axis=-1)
        assert ((got * expected).sum(axis=-1) / lengths).min() > 0.99
        first = list(exact.generate(IDS, max_tokens=6, stop_ids=[]))
        again = exact.generate(IDS, max_tokens=6, stop_ids=[])
        assert [each.token for each in again] == [each.token for each in first]
        assert again.stats.cached_tokens == len(IDS) - 1


def test_several_sequences_grow_together(folder: Path) -> None:
    with llm.load(folder, "float32") as model:
        pair = Lockstep(model._model, 2, 16)
        for one, other in zip(IDS[:12], IDS[12:24], strict=True):
            rows = pair.step([one, other])
        for got, ids in zip(rows, (IDS[:12], IDS[12:24]), strict=True):
            np.testing.assert_allclose(got, model.logits(ids)[-1], rtol=0, atol=1e-4)
        assert Lockstep.bytes_per_token(model._model) == 2 * 4 * (2 * 2 * 16 + 2 * 32)


def test_sequences_of_several_lengths_go_together(folder: Path) -> None:
    with llm.load(folder, "float32") as model:
        caches = [model._model.new_cache() for _ in range(2)]
        for cut in ((0, 7, 0, 11), (7, 8, 11, 12), (8, 11, 12, 13)):
            tokens = IDS[cut[0] : cut[1]], IDS[cut[2] + 5 : cut[3] + 5]
            got = forward_together(model._model, tokens, caches, [1, 1])
        for rows, ids in zip(got, (IDS[:11], IDS[5:18]), strict=True):
            np.testing.assert_allclose(rows[-1], model.logits(ids)[-1], rtol=0, atol=1e-4)
        np.testing.assert_allclose(model.sequence().run(IDS[:11]), got[0][-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gemma4_text-small", "gemma4_text-large"])
def test_it_is_quantized_into_a_file(tmp_path: Path, name: str) -> None:
    variant = next(each for each in VARIANTS if each.name == name)
    path = write_gguf(tmp_path / "model.gguf", variant, torch_model(variant))
    save_quantized(quantize_model(path, Recipe(LayerRecipe("w8a8"))), tmp_path / "quantized")
    with llm.load(path, "float32") as exact, llm.load(tmp_path / "quantized", device="sim:rk3588") as model:
        expected, got = exact.logits(IDS), model.logits(IDS)
    lengths = np.linalg.norm(got, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((got * expected).sum(axis=-1) / lengths).min() > 0.99


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"enable_moe_block": True}, "enable_moe_block"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention"),
        ({"num_kv_shared_layers": 6}, "6 of its 6 layers"),
        ({"num_kv_shared_layers": 5}, "none before them is of their kind"),
        ({"num_kv_shared_layers": -1}, "-1 of its 6 layers"),
        ({"per_layer_config": {"2": {"head_dim": 32, "twist": 1}}}, "twist"),
        ({"per_layer_config": {"9": {"head_dim": 32}}}, "per_layer_config.9"),
        ({"per_layer_config": {"2": {"head_dim": 64}}}, "looks at keys of layer 2"),
        ({"hidden_size_per_layer_input": -1}, "layer_embedding"),
        ({"vocab_size_per_layer_input": 0}, "vocab_size_per_layer_input"),
    ],
)
def test_configurations_that_are_not_computed_are_named(folder: Path, changes: dict[str, Any], named: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    with pytest.raises(ModelError, match=named.replace(".", r"\.")):
        config_from({**config, **changes})


@pytest.mark.parametrize("layer", [LayerConfig(follows=1), LayerConfig(follows=5), LayerConfig(follows=0, window=3)])
def test_layers_follow_layers_of_their_kind(layer: LayerConfig) -> None:
    with pytest.raises(ValueError, match="layer 1 looks at keys of layer"):
        DecoderConfig(2, 8, 2, 1, 4, 16, vocab_size=32, context_length=64, layers=(LayerConfig(), layer))
