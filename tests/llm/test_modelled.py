"""Dimensions, plans and modelled times of language models, against published sizes and figures."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import npumatmul as npu
from npumatmul.chips import CHIPS, chip
from npumatmul.chips.timing import TIMINGS, keep_timing
from npumatmul.chips.types import MatmulType
from npumatmul.cli.app import app
from npumatmul.errors import DeviceError, ModelError
from npumatmul.llm.modelled import SHAPES, LinearShape, ModelShape, modelled_pass, plan_model, shape_of
from npumatmul.llm.modelled.built import decoder_shape, llama_shape
from npumatmul.llm.modelled.published import published_config
from npumatmul.llm.modelled.seconds import bytes_brought
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.decoder_config import DecoderConfig, Experts, LayerConfig, Rotation
from npumatmul.llm.models.mixers import DeltaNet, ShortConv
from npumatmul.llm.models.registry import ARCHITECTURES
from npumatmul.nn import PackedProduct, Residency
from npumatmul.planning.product import plan_matmul, plan_weight

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import model_check
import performance_tables

INT8 = MatmulType.INT8_INT8_INT32


def tiny(layers: int = 2) -> ModelShape:
    return llama_shape("tiny", layers=layers, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=96, vocab=128, tied=True)


TINY = tiny()
MIXED = DecoderConfig(
    3, 64, 4, 2, 16, 96, 128, 512,
    layers=(*(LayerConfig(Rotation(16), experts=Experts(8, 2, 32)),) * 2, LayerConfig(Rotation(16))),
)  # fmt: skip


# ---- dimensions ----------------------------------------------------------------------------------------------------

#: Billions of parameters as their makers state them.
PUBLISHED = {
    "Qwen2.5-0.5B": 0.494, "SmolLM2-135M": 0.1345,
    "Qwen2-0.5B": 0.494, "Qwen3-0.6B": 0.596, "TinyLLAMA-1.1B": 1.100, "Llama-3.2-1B": 1.236,
    "Qwen2.5-1.5B": 1.544, "Qwen3-1.7B": 1.721, "InternLM2-1.8B": 1.889, "Gemma2-2B": 2.614, "Gemma3-1B": 1.000,
    "Ministral-3-3B": 3.43, "Qwen2.5-3B": 3.086, "Phi3-3.8B": 3.821, "MiniCPM3-4B": 4.074, "Qwen3-4B": 4.022,
    "ChatGLM3-6B": 6.244, "Qwen2.5-7B": 7.616, "Llama-2-7B": 6.738, "Llama-3.1-8B": 8.030, "Phi-4-14B": 14.66,
    "SmolLM3-3B": 3.075, "Phi-4-mini-3.8B": 3.836, "Granite-3.3-2B": 2.534, "StarCoder2-3B": 3.030,
    "Mistral-7B-v0.3": 7.248, "Ministral-8B": 8.020, "Granite-3.1-1B-A400M": 1.335, "OLMoE-1B-7B": 6.919,
    "Qwen3-30B-A3B": 30.53, "gpt-oss-20B": 20.91,
    "Gemma-4-E2B": 4.65,  # 5.1 with its two encoders
    "Qwen3.5-9B": 9.0, "Qwen3.5-35B-A3B": 35.0, "Qwen3-Next-80B-A3B": 80.0, "LFM2-1.2B": 1.17, "LFM2-8B-A1B": 8.34,
    "whisper-tiny": 0.03776, "whisper-base": 0.0726, "whisper-small": 0.2417, "whisper-large-v3-turbo": 0.8089,
    "Qwen2-VL-2B": 1.544, "Qwen2.5-VL-3B": 3.086, "Qwen3-VL-4B": 4.022,
    "all-MiniLM-L6-v2": 0.02271, "bge-base-en": 0.1095, "bge-m3": 0.5677,
    "ModernBERT-base": 0.1496,
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_models_have_as_many_parameters_as_published(name: str, billions: float) -> None:
    assert SHAPES[name].parameters == pytest.approx(
        billions * 1e9, rel=0.011
    )  # without biases and norms; some are rounded


@pytest.mark.parametrize(
    ("name", "billions"),
    {"Qwen3-30B-A3B": 3.34, "OLMoE-1B-7B": 1.28, "Granite-3.1-1B-A400M": 0.427, "LFM2-8B-A1B": 1.55}.items(),
)
def test_a_token_passes_as_many_parameters_as_published(name: str, billions: float) -> None:
    assert SHAPES[name].active_parameters == pytest.approx(billions * 1e9, rel=0.02)


def test_every_known_model_has_its_parameters_published() -> None:
    assert set(SHAPES) == set(PUBLISHED)
    assert all("/" in published_config(name)[0] for name in SHAPES)


def test_every_architecture_that_is_loaded_has_a_known_model() -> None:
    found = {published_config(name)[1]["model_type"] for name in SHAPES}
    assert not [each.name for each in ARCHITECTURES if not found & set(each.model_types)]


CONFIGS: dict[str, transformers.PretrainedConfig] = {
    "llama": transformers.LlamaConfig(
        hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2,
        vocab_size=300,
    ),
    "qwen2": transformers.Qwen2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1,
        vocab_size=200, tie_word_embeddings=True,
    ),
    "qwen3": transformers.Qwen3Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=200, tie_word_embeddings=True,
    ),
    "gemma2": transformers.Gemma2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, vocab_size=200,
    ),
    "phi3": transformers.Phi3Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=200, pad_token_id=0,
    ),
    "starcoder2": transformers.Starcoder2Config(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=200,
    ),
    "bert": transformers.BertConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, vocab_size=200,
        max_position_embeddings=64,
    ),
    "modernbert": transformers.ModernBertConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4, vocab_size=200,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_gives_the_matrices_that_transformers_makes(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    (tmp_path / "config.json").write_text(config.to_json_string())
    shape = shape_of(tmp_path)
    encodes = "bert" in name
    with torch.device("meta"):
        made = transformers.AutoModel if encodes else transformers.AutoModelForCausalLM
        model = made.from_config(config)
    weights = [
        each.weight
        for path, each in model.named_modules()
        if isinstance(each, torch.nn.Linear) and "pooler" not in path
    ]
    ours = sum(each.k * each.n * each.times for each in shape.every_linear)
    assert ours == sum(weight.numel() for weight in weights)
    assert shape.layers == config.num_hidden_layers
    if encodes:
        assert shape.kind == "encoder"
    else:
        assert shape.head is not None
        assert shape.head[1:3] == tuple(reversed(model.lm_head.weight.shape))
        assert (shape.tables == 0) == bool(config.tie_word_embeddings)
    assert shape == shape_of(tmp_path / "config.json")


def test_experts_are_counted_as_transformers_makes_them(tmp_path: Path) -> None:
    config = transformers.Qwen3MoeConfig(
        hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, vocab_size=200, num_experts=8, num_experts_per_tok=2, mlp_only_layers=[1],
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config.to_json_string())
    shape = shape_of(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    total = sum(each.numel() for name, each in model.named_parameters() if each.ndim > 1 and "gate.weight" not in name)
    assert shape.parameters == total
    assert [(each.name, each.times, each.experts, each.chosen) for each in shape.linears] == [
        ("qkv", 3, 0, 0), ("attn_out", 3, 0, 0), ("expert.gate_up", 16, 8, 2), ("expert.down", 16, 8, 2),
        ("gate_up", 1, 0, 0), ("down", 1, 0, 0),
    ]  # fmt: skip


HYBRID = DecoderConfig(
    4, 64, 4, 2, 16, 96, 128, 512, attention_gate="sigmoid", tied=True,
    layers=(
        LayerConfig(mixer=DeltaNet(2, 4, 16, 24)),
        LayerConfig(mixer=ShortConv(3)),
        LayerConfig(mixer=DeltaNet(2, 4, 16, 24), experts=Experts(8, 2, 32, shared_size=48)),
        LayerConfig(Rotation(8), window=16),
    ),
)  # fmt: skip


@pytest.mark.parametrize("config", [MIXED, HYBRID], ids=["experts", "hybrid"])
def test_shapes_are_those_of_the_modules_that_load_makes(config: DecoderConfig) -> None:
    model, shape = Decoder(config), decoder_shape("mixed", config)
    found: dict[tuple[int, int], int] = {}
    for layer, module in model.linear_modules().items():
        sizes = [size for key, size in module.own_shapes().items() if key.endswith("weight")]
        sizes = sizes or [(config.vocab_size, config.hidden_size)]
        key = sizes[0][1], sum(n for n, _ in sizes)
        found[key] = found.get(key, 0) + 1
        assert layer
    ours: dict[tuple[int, int], int] = {}
    for each in shape.every_linear:
        ours[each.k, each.n] = ours.get((each.k, each.n), 0) + each.times
    assert ours == found


def test_latent_attention_of_a_configuration_is_that_of_the_table(tmp_path: Path) -> None:
    config = {
        "model_type": "minicpm3", "num_hidden_layers": 62, "hidden_size": 2560, "num_attention_heads": 40,
        "num_key_value_heads": 40, "intermediate_size": 6400, "vocab_size": 73448, "q_lora_rank": 768,
        "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(config))
    shape = shape_of(tmp_path / "c.json")
    assert replace(shape, name="MiniCPM3-4B") == SHAPES["MiniCPM3-4B"]
    assert shape.cached == 62 * (256 + 32)


def test_other_names_of_dimensions_and_models_that_see(tmp_path: Path) -> None:
    glm = {
        "model_type": "chatglm", "num_layers": 28, "hidden_size": 4096, "num_attention_heads": 32,
        "multi_query_group_num": 2, "kv_channels": 128, "ffn_hidden_size": 13696, "padded_vocab_size": 65024,
        "tie_word_embeddings": False,
    }  # fmt: skip
    (tmp_path / "glm.json").write_text(json.dumps(glm))
    assert replace(shape_of(tmp_path / "glm.json"), name="ChatGLM3-6B") == SHAPES["ChatGLM3-6B"]
    text = json.loads(CONFIGS["llama"].to_json_string())
    (tmp_path / "sees.json").write_text(json.dumps({"model_type": "sees", "text_config": text, "vision_config": {}}))
    (tmp_path / "text.json").write_text(json.dumps(text))
    seen, plain = shape_of(tmp_path / "sees.json"), shape_of(tmp_path / "text.json")
    assert replace(seen, name="") == replace(plain, name="")


def gguf_file(path: Path, family: str = "llama", **others: Any) -> Path:
    writer = gguf.GGUFWriter(str(path), family)
    sizes = {"block_count": 3, "embedding_length": 96, "attention.head_count": 6, "attention.head_count_kv": 2,
             "feed_forward_length": 160, "vocab_size": 300, "context_length": 2048, **others}  # fmt: skip
    for key, value in sizes.items():
        writer.add_uint32(f"{family}.{key}", value)
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_tensor("output.weight", np.ones((300, 96), np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def test_a_gguf_file_gives_the_same_dimensions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIGS["llama"].to_json_string())
    file, folder = shape_of(gguf_file(tmp_path / "model.gguf")), shape_of(tmp_path)
    assert file.name == "model"
    assert replace(file, name=folder.name) == folder
    other = shape_of(gguf_file(tmp_path / "other.gguf", "internlm2"))
    assert replace(other, name=folder.name) == folder
    for key in ("expert_count", "ssm.state_size"):
        with pytest.raises(ModelError, match="architecture that is not known"):
            shape_of(gguf_file(tmp_path / "other.gguf", "internlm2", **{key: 8}))


OTHER = {"model_type": "internlm2"}  # of an architecture that `load` does not know


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_local_experts": 8}, "num_local_experts"),
        ({**OTHER, "num_local_experts": 8}, "mixture of experts, of an architecture that is not known"),
        ({**OTHER, "layer_types": ["linear_attention", "full_attention"]}, "recurrent state"),
        ({"model_type": "gpt2"}, "no gate"),
        ({"model_type": ["llama"]}, "model_type is .*, which is no name"),
        ({"model_type": {"a": 1}}, "model_type is .*, which is no name"),
        ({"model_type": "electra"}, "electra is an encoder that is not known"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({**OTHER, "hidden_size": None}, "does not say hidden_size"),
        ({**OTHER, "hidden_size": "wide"}, "hidden_size is"),
        ({**OTHER, "hidden_size": 1 << 40, "head_dim": 16}, "no size of a model"),
        ({"hidden_size": 1 << 40, "head_dim": 16}, "must be between"),
        ({**OTHER, "num_hidden_layers": 0}, "no size of a model"),
        ({**OTHER, "num_key_value_heads": 4}, "no multiple"),
        ({"num_key_value_heads": 4}, "not a multiple"),
        ({**OTHER, "num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": None}, "cannot be divided"),
        ({"architectures": ["LlamaForTokenClassification"]}, "is not computed"),
    ],
)
def test_what_is_not_modelled_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    config = {**json.loads(CONFIGS["llama"].to_json_string()), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said) as caught:
        shape_of(tmp_path)
    assert "config.json" in str(caught.value)


def test_how_a_folder_stores_its_weights_does_not_matter(tmp_path: Path) -> None:
    config = json.loads(CONFIGS["llama"].to_json_string())
    (tmp_path / "config.json").write_text(json.dumps(config))
    plain = shape_of(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    assert shape_of(tmp_path) == plain


@pytest.mark.parametrize("family", ["llama", "internlm2"])
def test_a_layer_that_is_too_large_to_be_planned_is_named(tmp_path: Path, family: str) -> None:
    config = {**json.loads(CONFIGS["llama"].to_json_string()), "model_type": family, "head_dim": 16,
              "hidden_size": 1 << 23, "intermediate_size": 1 << 23}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"the layer [a-z_]+ cannot be planned: .* would be cut into"):
        plan_model(shape_of(tmp_path), chip("rk3588"), ["w8a8"])


def test_what_is_neither_a_file_nor_a_name_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the name of a model is empty"):
        shape_of("")
    with pytest.raises(FileNotFoundError, match=r"did you mean Qwen2\.5-1\.5B"):
        shape_of("qwen2.5-1.5")
    with pytest.raises(ModelError, match=r"no config\.json"):
        shape_of(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match="no configuration"):
        shape_of(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        shape_of(tmp_path)


# ---- times ---------------------------------------------------------------------------------------------------------


def test_all_targets_are_met() -> None:
    """As `make model-check`: published figures of products and of whole models, with the stated tolerances."""
    said: list[str] = []
    assert model_check.check_products(said.append) + model_check.check_models(said.append) == []
    assert sum("target" in line for line in said) == 6 + 10


def test_a_pass_is_its_products_and_what_is_between_them_by_hand() -> None:
    model, rk3588 = TIMINGS["rk3588"], chip("rk3588")
    found = modelled_pass(TINY, 8, 8, INT8, rk3588)
    assert found is not None

    def seconds(m: int, k: int, n: int) -> float:
        return plan_matmul(m, plan_weight(k, n, INT8, rk3588)).modelled_seconds or math.nan

    products = 2 * sum(seconds(8, k, n) for k, n in ((64, 128), (64, 64), (64, 192), (96, 64))) + seconds(1, 64, 128)
    assert found.linear.seconds == pytest.approx(products)
    # of one layer and row: two norms, two sums, the gate and the scores at three arrays each, the rotation at two
    floats = 1.5 * (4 * 64 + 96 + 4 * 8) + (64 + 32)
    row = 4 * floats / model.host_bandwidth + (96 + 32) * model.host_exp_seconds + 4 * 8 * 64 / model.host_flops
    between = 2 * (8 * row + 8 * 64 * 2 / model.host_bandwidth)
    assert found.between == pytest.approx(between)
    assert found.seconds == pytest.approx(products + between)
    assert found.estimate.high == pytest.approx(found.seconds * model.models_within)


@given(
    soc=st.sampled_from(sorted(CHIPS)), rows=st.integers(1, 300), more=st.integers(1, 300), layers=st.integers(1, 40)
)
def test_more_tokens_and_layers_never_take_less_time(soc: str, rows: int, more: int, layers: int) -> None:
    def seconds(shape: ModelShape, tokens: int, keys: int) -> float:
        found = modelled_pass(shape, tokens, keys, INT8, chip(soc))
        assert found is not None
        return found.seconds

    base = seconds(TINY, rows, rows)
    assert seconds(TINY, rows, rows + more) > base
    assert seconds(tiny(2 + layers), rows, rows) > base
    # of one bucket or several: what models lose to padding is bounded, so a few rows more may not take longer
    assert seconds(TINY, rows + more, rows + more) > base * 0.99


def test_a_pass_through_experts_by_hand() -> None:
    model, rk3588 = TIMINGS["rk3588"], chip("rk3588")
    shape = decoder_shape("mixed", MIXED)

    def seconds(m: int, k: int, n: int) -> float:
        return plan_matmul(m, plan_weight(k, n, INT8, rk3588)).modelled_seconds or math.nan

    for rows in (1, 4):
        found = modelled_pass(shape, rows, rows, INT8, rk3588)
        assert found is not None
        attention = seconds(rows, 64, 128) + seconds(rows, 64, 64)
        touched = 8 * (1 - (6 / 8) ** rows)  # of eight experts, those that one of the tokens chose, two each
        each = math.ceil(rows * 2 / touched)
        experts = touched * (seconds(each, 64, 64) + seconds(each, 32, 64))
        dense = seconds(rows, 64, 192) + seconds(rows, 96, 64)
        assert found.linear.seconds == pytest.approx(3 * attention + 2 * experts + dense + seconds(1, 64, 128))
        # of a row: two norms, two sums, gate, scores and the router's at three arrays each, the rotation at two, and
        # five for each of two experts, whose gates are 32 wide
        some = 1.5 * (4 * 64 + 4 * rows) + (64 + 32)
        of_experts, of_dense = some + 1.5 * (2 * 32 + 8) + 2 * 5 * 64, some + 1.5 * 96
        exponentials = 2 * (2 * 32 + 8 + 4 * rows) + (96 + 4 * rows)
        operations = 3 * 4 * rows * 64 + 2 * (2 * 64 * 8)
        row = 4 * (2 * of_experts + of_dense) / model.host_bandwidth + exponentials * model.host_exp_seconds
        row += operations / model.host_flops
        assert found.between == pytest.approx(rows * row + 3 * rows * 64 * 2 / model.host_bandwidth)


def test_models_of_speech_by_hand(tmp_path: Path) -> None:
    config = transformers.WhisperConfig(
        d_model=64, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=2,
        encoder_ffn_dim=96, decoder_ffn_dim=128, num_mel_bins=80, vocab_size=200, max_source_positions=1500,
        max_target_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0, decoder_start_token_id=3,
    )  # fmt: skip
    (tmp_path / "config.json").write_text(config.to_json_string())
    shape, model, rk3588 = shape_of(tmp_path), TIMINGS["rk3588"], chip("rk3588")
    with torch.device("meta"):
        theirs = transformers.WhisperForConditionalGeneration(config)
    matrices = [each for each in theirs.model.parameters() if each.ndim > 1]
    assert shape.parameters == sum(each.numel() for each in matrices)
    assert (shape.kind, shape.layers, shape.cached) == ("speech", 5, 2 * 2 * 64)

    def seconds(m: int, k: int, n: int) -> float:
        return plan_matmul(m, plan_weight(k, n, INT8, rk3588)).modelled_seconds or math.nan

    assert shape.hearing is not None
    heard = modelled_pass(shape.hearing, 1500, 1500, INT8, rk3588)
    assert heard is not None
    block = seconds(1500, 64, 192) + seconds(1500, 64, 64) + seconds(1500, 64, 96) + seconds(1500, 96, 64)
    products = seconds(3000, 240, 64) + seconds(1500, 192, 64) + 3 * block + 2 * seconds(1500, 64, 128)
    assert heard.linear.seconds == pytest.approx(products)
    written = modelled_pass(shape, 1, 7, INT8, rk3588)
    assert written is not None
    block = seconds(1, 64, 192) + 3 * seconds(1, 64, 64) + seconds(1, 64, 128) + seconds(1, 128, 64)
    assert written.linear.seconds == pytest.approx(2 * block + seconds(1, 64, 200))
    # of a block: three norms and sums, the function, and scores over 7 tokens and 1500 states, whose keys are read
    scores = 2 * (7 + 1500)
    floats = 1.5 * (6 * 64 + scores) + 128 + (7 + 1500) * 64
    row = 4 * floats / model.host_bandwidth + (128 + scores) * model.host_exp_seconds
    assert written.between == pytest.approx(2 * (row + 2 * scores * 64 / model.host_flops))
    (scheme,) = plan_model(shape, rk3588, ["w8a8"]).schemes
    assert scheme.window == heard.estimate
    assert (scheme.prompts, scheme.texts) == ({}, {})
    assert len(scheme.layers) == len(shape.whole) == 14


def test_layers_with_a_state_by_hand() -> None:
    model, rk3588 = TIMINGS["rk3588"], chip("rk3588")
    config = replace(HYBRID, n_layers=1, layers=HYBRID.layers[:1])
    for rows in (1, 100):
        found = modelled_pass(decoder_shape("states", config), rows, 300, INT8, rk3588)
        assert found is not None
        # a convolution over 2 * 32 + 96 channels, of 4 tokens; 4 heads with matrices of 16 x 24; rows see their chunk
        channels, seen, chunks = 160, min(rows, 64), math.ceil(rows / 64)
        floats = 1.5 * (4 * 64 + 96) + 3 * channels + 1.5 * 64 + 3 * 96 + 1.5 * 4 * seen
        state = 4 * 16 * 24 + 3 * channels
        operations = 2 * 4 * channels + 7 * 4 * 16 * 24 + 2 * 4 * seen * 2 * (16 + 24)
        row = 4 * floats / model.host_bandwidth + operations / model.host_flops
        row += (channels + 96 + 96 + 4 * seen) * model.host_exp_seconds
        assert found.between == pytest.approx(rows * row + chunks * state * 4 / model.host_bandwidth)
    assert decoder_shape("states", HYBRID).cached == 2 * 2 * 16  # of one layer in four
    # neither grows with what came before
    first, later = (modelled_pass(decoder_shape("states", config), 1, keys, INT8, rk3588) for keys in (1, 5000))
    assert first == later


def test_windows_bound_what_is_seen() -> None:
    shape, rk3588 = decoder_shape("hybrid", replace(HYBRID, n_layers=1, layers=HYBRID.layers[3:])), chip("rk3588")
    within, filled, beyond = (modelled_pass(shape, 1, keys, INT8, rk3588) for keys in (10, 16, 4000))
    assert filled == beyond
    assert within is not None
    assert filled is not None
    assert within.between < filled.between


@given(experts=st.integers(1, 64), data=st.data(), rows=st.integers(1, 40))
def test_experts_that_tokens_touch_are_as_many_as_by_chance(experts: int, data: st.DataObject, rows: int) -> None:
    chosen = data.draw(st.integers(1, experts))
    shape = LinearShape("expert.down", 8, 8, 3 * experts, experts, chosen)
    touched = shape.touched(rows)
    assert 3 * chosen <= touched * (1 + 1e-9) <= 3 * experts * (1 + 1e-8)
    assert shape.rows(rows) * touched == pytest.approx(rows * chosen * 3)  # every choice is a row
    assert shape.touched(rows + 1) >= touched
    assert LinearShape("qkv", 8, 8, 3).rows(rows) == rows


def test_expected_experts_are_the_mean_of_drawn_ones() -> None:
    rng = random.Random(0)
    shape = LinearShape("expert.down", 8, 8, 16, 16, 3)
    drawn = [len({each for _ in range(7) for each in rng.sample(range(16), 3)}) for _ in range(2000)]
    assert sum(drawn) / len(drawn) == pytest.approx(shape.touched(7), rel=0.01)


@pytest.mark.parametrize("room", [3, 4, 6, 12, 23, 24])
def test_what_is_brought_in_is_what_a_residency_counts(room: int) -> None:
    """Of uniform choices, over three layers of eight experts, two of them for each token."""

    rng = np.random.default_rng(room)
    weights = [npu.pack(np.ones((8, 8), np.float32), "w16a16") for _ in range(24)]
    size = weights[0].nbytes
    residency = Residency(room * size)
    products = [residency.keep(PackedProduct(weight)) for weight in weights]
    x = np.ones((1, 8), np.float32)
    counted = []
    for token in range(150):
        before = residency.brought
        for layer in range(3):
            for expert in sorted(rng.choice(8, 2, replace=False)):
                products[8 * layer + expert](x)
        if token >= 30:
            counted.append(residency.brought - before)
    residency.close()
    shape = LinearShape("expert", 8, 8, 24, experts=8, chosen=2)
    assert np.mean(counted) * size == pytest.approx(
        bytes_brought({shape: size}, 1, room * size), rel=0.15, abs=0.15 * size
    )


def test_a_plan_with_little_memory_for_experts() -> None:
    shape = decoder_shape("mixed", MIXED)
    (free,) = plan_model(shape, chip("rk3588"), ["w8a8"]).schemes
    assert free.brought is None
    assert free.expert_bytes == 2 * 8 * (64 * 64 + 32 * 64)
    half = plan_model(shape, chip("rk3588"), ["w8a8"], expert_memory=free.expert_bytes // 2)
    (limited,) = half.schemes
    assert limited.brought == pytest.approx(free.expert_bytes / 4 / 2)  # two of eight for each token, half of them here
    assert limited.token is not None
    assert free.token is not None
    copying = limited.brought / TIMINGS["rk3588"].host_bandwidth
    assert limited.token.seconds == pytest.approx(free.token.seconds + copying)
    assert json.loads(json.dumps(half.content()))["expert_memory"] == free.expert_bytes // 2
    with pytest.raises(ValueError, match="larger than the memory for experts"):
        plan_model(shape, chip("rk3588"), ["w8a8"], expert_memory=100)
    with pytest.raises(ValueError, match="tiny has no experts"):
        plan_model(TINY, chip("rk3588"), ["w8a8"], expert_memory=1 << 20)


def test_chips_without_constants_have_no_times() -> None:
    unknown = replace(chip("rk3588"), timings={})
    assert modelled_pass(TINY, 1, 1, INT8, unknown) is None
    plan = plan_model(TINY, unknown, ["w8a8"])
    assert plan.schemes[0].token is plan.schemes[0].tokens_per_second is None
    assert json.loads(json.dumps(plan.content()))["schemes"][0]["tokens_per_second"] is None


def test_a_plan_counts_bytes_and_contexts() -> None:
    plan = plan_model(SHAPES["SmolLM2-135M"], chip("rk3588"), ["w8a8", "w16a16", "w4a16"])
    w8a8, w16a16 = plan.schemes
    weights = SHAPES["SmolLM2-135M"].parameters  # tied: the table is the output matrix
    assert weights <= w8a8.nbytes <= 1.06 * weights
    assert 2 * weights <= w16a16.nbytes <= 1.06 * 2 * weights
    assert plan.cache_bytes == 30 * 2 * 3 * 64 * 2
    assert set(plan.left_out) == {"w4a16"}
    assert 5 <= w8a8.contexts <= 60
    assert w8a8.layers[-1].name == "head"
    with pytest.raises(DeviceError, match="w4a16"):
        plan_model(TINY, chip("rk3588"), ["w4a16"])
    with pytest.raises(ValueError, match="w9a9"):
        plan_model(TINY, chip("rk3588"), ["w9a9"])


def test_plans_are_pure() -> None:
    before = plan_model(TINY, chip("rk3576")).content()
    slow = replace(TIMINGS["rk3576"], bandwidth_all_cores=1e9, bandwidth_one_core=1e9)
    assert plan_model(TINY, replace(chip("rk3576"), timings={"rk3576": slow})).content() != before
    assert plan_model(TINY, chip("rk3576")).content() == before


# ---- the command ---------------------------------------------------------------------------------------------------


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import os

    return subprocess.run(
        [sys.executable, "-m", "npumatmul.cli", "plan", *arguments],
        capture_output=True, text=True, timeout=120, env={**os.environ, **environment},
    )  # fmt: skip


def test_the_command_prints_tables_and_json(tmp_path: Path) -> None:
    done = command("smollm2-135m", "--soc", "rk3576", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(len(line) <= 80 for line in lines if line.startswith(("│", "┃", "┏")))
    assert "modelled for rk3576 (2 cores), not measured" in done.stdout
    assert all(scheme in done.stdout for scheme in ("w16a16", "w8a8", "w4a16", "gate_up"))
    assert "half of RKLLM's table" in done.stderr
    (tmp_path / "config.json").write_text(CONFIGS["llama"].to_json_string())
    done = command(str(tmp_path), "--scheme", "w8a8", "--json")
    content = json.loads(done.stdout)
    (scheme,) = content["schemes"]
    assert content["shape"]["hidden"] == 96
    assert scheme["tokens_per_second"]["low"] < scheme["tokens_per_second"]["seconds"]
    assert set(scheme["prompts"]) == {"128", "512"}
    by_device = command("smollm2-135m", "--json", "--scheme", "w8a8", NPUMATMUL_DEVICE="sim:rk3562")
    assert json.loads(by_device.stdout)["soc"] == "rk3562"
    done = command("nosuch")
    assert done.returncode == 1
    assert "neither a file nor a model that is known by name" in done.stderr


def test_the_command_tells_of_experts_texts_and_sound() -> None:
    runner = CliRunner(env={"COLUMNS": "160"})
    limited = runner.invoke(app, ["plan", "Granite-3.1-1B-A400M", "--scheme", "w8a8", "--expert-memory", "200MB"])
    assert "of which a token passes 428 million" in limited.stdout
    assert "brought in" in limited.stdout
    assert "assumed of experts" in limited.stderr
    assert "32 x 128 tokens" in runner.invoke(app, ["plan", "all-MiniLM-L6-v2", "--scheme", "w8a8"]).stdout
    heard = runner.invoke(app, ["plan", "whisper-tiny", "--scheme", "w8a8"]).stdout
    assert "8 layers" in heard
    assert "hearing 30 s" in heard
    assert "is no size" in runner.invoke(app, ["plan", "OLMoE-1B-7B", "--expert-memory", "much"]).stderr


def test_the_command_takes_constants_that_were_fitted_here(tmp_path: Path) -> None:
    slow = replace(TIMINGS["rk3588"], bandwidth_all_cores=5e9, bandwidth_one_core=5e9, provenance="fitted on a board")
    keep_timing(slow, path=tmp_path / "kept.json")
    speeds = []
    for file in ("", str(tmp_path / "kept.json")):
        done = command("SmolLM2-135M", "--soc", "rk3588", "--scheme", "w8a8", "--json", NPUMATMUL_TIMING_FILE=file)
        content = json.loads(done.stdout)
        speeds.append(content["schemes"][0]["tokens_per_second"]["seconds"])
    assert content["provenance"] == "fitted on a board"
    assert speeds[1] < speeds[0] / 2


# ---- the document --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", performance_tables.TABLES, ids=lambda table: table.__name__)
def test_the_document_shows_what_is_modelled(table: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()
    assert "\n".join(table()) in text, "print the tables anew: python tools/performance_tables.py"
