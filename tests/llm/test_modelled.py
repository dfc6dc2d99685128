"""Dimensions, plans and modelled times of language models, against published sizes and figures."""

from __future__ import annotations

import json
import math
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

from npumatmul.chips import CHIPS, chip
from npumatmul.chips.timing import TIMINGS, keep_timing
from npumatmul.chips.types import MatmulType
from npumatmul.errors import DeviceError, ModelError
from npumatmul.llm.modelled import SHAPES, ModelShape, modelled_pass, plan_model, shape_of
from npumatmul.planning.product import plan_matmul, plan_weight

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import model_check
import performance_tables

INT8 = MatmulType.INT8_INT8_INT32
TINY = ModelShape("tiny", 2, 64, 4, 2, 16, 96, 128, True)


# ---- dimensions ----------------------------------------------------------------------------------------------------

#: Billions of parameters as their makers state them.
PUBLISHED = {
    "SmolLM2-135M": 0.1345, "Qwen2-0.5B": 0.494, "Qwen3-0.6B": 0.596, "TinyLLAMA-1.1B": 1.100, "Llama-3.2-1B": 1.236,
    "Qwen2.5-1.5B": 1.544, "Qwen3-1.7B": 1.721, "InternLM2-1.8B": 1.889, "Gemma2-2B": 2.614, "Gemma3-1B": 1.000,
    "Ministral-3-3B": 3.43, "Qwen2.5-3B": 3.086, "Phi3-3.8B": 3.821, "MiniCPM3-4B": 4.074, "Qwen3-4B": 4.022,
    "ChatGLM3-6B": 6.244, "Qwen2.5-7B": 7.616, "Llama-2-7B": 6.738, "Llama-3.1-8B": 8.030, "Phi-4-14B": 14.66,
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), PUBLISHED.items())
def test_models_have_as_many_parameters_as_published(name: str, billions: float) -> None:
    assert SHAPES[name].parameters == pytest.approx(billions * 1e9, rel=0.005)  # without biases and norms


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
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_gives_the_matrices_that_transformers_makes(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    (tmp_path / "config.json").write_text(config.to_json_string())
    shape = shape_of(tmp_path)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    weights = [each.weight for each in model.modules() if isinstance(each, torch.nn.Linear)]
    ours = sum(each.k * each.n * each.times for each in (*shape.linears, shape.head))
    assert ours == sum(weight.numel() for weight in weights)
    assert shape.head[1:3] == tuple(reversed(model.lm_head.weight.shape))
    assert shape.tied == config.tie_word_embeddings
    assert shape == shape_of(tmp_path / "config.json")
    assert (shape.norms, shape.qk_norm) == (4 if name == "gemma2" else 2, name == "qwen3")


def test_latent_attention_of_a_configuration_is_that_of_the_table(tmp_path: Path) -> None:
    config = {
        "model_type": "minicpm3", "num_hidden_layers": 62, "hidden_size": 2560, "num_attention_heads": 40,
        "num_key_value_heads": 40, "intermediate_size": 6400, "vocab_size": 73448, "q_lora_rank": 768,
        "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(config))
    assert replace(shape_of(tmp_path / "c.json"), name="MiniCPM3-4B") == SHAPES["MiniCPM3-4B"]


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


def gguf_file(path: Path, **others: Any) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    sizes = {"block_count": 3, "embedding_length": 96, "attention.head_count": 6, "attention.head_count_kv": 2,
             "feed_forward_length": 160, "vocab_size": 300, **others}  # fmt: skip
    for key, value in sizes.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_tensor("output.weight", np.ones((300, 96), np.float32))
    for step in ("write_header_to_file", "write_kv_data_to_file", "write_tensors_to_file", "close"):
        getattr(writer, step)()
    return path


def test_a_gguf_file_gives_the_same_dimensions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIGS["llama"].to_json_string())
    file, folder = shape_of(gguf_file(tmp_path / "model.gguf")), shape_of(tmp_path)
    assert file.name == "model"
    assert replace(file, name=folder.name) == folder
    for key in ("expert_count", "ssm.state_size"):
        with pytest.raises(ModelError, match="modelled"):
            shape_of(gguf_file(tmp_path / "other.gguf", **{key: 8}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_local_experts": 8}, "mixture of experts"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "recurrent state"),
        ({"model_type": "gpt2"}, "no gate"),
        ({"model_type": ["llama"]}, "model_type is .*, which is no name"),
        ({"model_type": {"a": 1}}, "model_type is .*, which is no name"),
        ({"model_type": "bert"}, "bert is an encoder"),
        ({"hidden_size": None}, "does not say hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size is"),
        ({"hidden_size": 1 << 40, "head_dim": 16}, "no size of a model"),
        ({"num_hidden_layers": 0}, "no size of a model"),
        ({"num_key_value_heads": 4}, "no multiple"),
        ({"num_attention_heads": 7, "num_key_value_heads": 7, "head_dim": None}, "cannot be divided"),
    ],
)
def test_what_is_not_modelled_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    config = {**json.loads(CONFIGS["llama"].to_json_string()), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=said) as caught:
        shape_of(tmp_path)
    assert "config.json" in str(caught.value)


def test_encoders_in_gguf_files_are_no_models_that_write(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "bert.gguf"), "bert")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError, match="bert is an encoder, which generates nothing"):
        shape_of(tmp_path / "bert.gguf")


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
    assert seconds(replace(TINY, layers=2 + layers), rows, rows) > base
    # of one bucket or several: what models lose to padding is bounded, so a few rows more may not take longer
    assert seconds(TINY, rows + more, rows + more) > base * 0.99


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
