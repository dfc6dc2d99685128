"""gpt-oss beyond its logits: weights in MXFP4 as they were published, in folders and GGUF files, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from llm_models import tokenizer_metadata
from model_zoo import VARIANTS, VOCAB, gguf_tensors, prefill_logits, torch_model, write_folder, write_metadata
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from npumatmul import nn
from npumatmul.errors import ModelError
from npumatmul.llm import npu_pack, numpy_pack
from npumatmul.llm.files.mxfp4 import mxfp4_values
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.registry import config_from
from npumatmul.llm.models.weights import load_decoder

VARIANT = next(each for each in VARIANTS if each.name == "gpt_oss-usual")
IDS = [int(i) for i in np.random.default_rng(3).integers(0, VOCAB, 30)]
LAYERS = range(2)


def packed(rng: np.random.Generator, experts: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = rng.integers(0, 256, (experts, rows, columns // 32, 16), np.uint8)
    scales = rng.integers(121, 125, blocks.shape[:-1], np.uint8)
    return torch.from_numpy(blocks), torch.from_numpy(scales)


def load(path: Path, pack: Any = numpy_pack) -> Decoder:
    with open_source(path) as source:
        return load_decoder(source, lambda layer: pack(layer.weight(source), layer.name))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, dict[str, torch.Tensor]]:
    """A model whose experts are values of MXFP4, its folder as published, and its blocks."""
    model, rng = torch_model(VARIANT), np.random.default_rng(7)
    path = write_folder(tmp_path_factory.mktemp("gpt-oss"), VARIANT, model)
    state = load_file(path / "model.safetensors")
    blocks = {}
    for layer in LAYERS:
        stem = f"model.layers.{layer}.mlp.experts"
        for part, (rows, columns) in (("gate_up_proj", (192, 64)), ("down_proj", (64, 96))):
            codes, scales = packed(rng, 4, rows, columns)
            own = convert_moe_packed_tensors(codes, scales, dtype=torch.float32)
            getattr(model.model.layers[layer].mlp.experts, part).data = own.contiguous()
            del state[f"{stem}.{part}"]
            blocks |= {f"{stem}.{part}_blocks": codes, f"{stem}.{part}_scales": scales}
    save_file({**state, **blocks}, path / "model.safetensors")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (path / "config.json").write_text(json.dumps(config))
    return model, path, blocks


def test_blocks_are_what_transformers_makes_of_them() -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (2, 3, 5, 16), np.uint8)
    scales = rng.integers(20, 230, (2, 3, 5), np.uint8)
    expected = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales), dtype=torch.float32)
    np.testing.assert_array_equal(mxfp4_values(blocks, scales), expected.numpy().swapaxes(1, 2))


def test_a_folder_as_published_is_the_model_of_its_values(made: tuple[Any, Path, dict[str, torch.Tensor]]) -> None:
    model, path, _ = made
    expected = prefill_logits(model, IDS)
    got = load(path)
    logits = got.forward(IDS, got.new_cache(), all_logits=True)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=5e-6 * float(np.abs(expected).max()))
    with open_source(path) as source:
        assert source.weights.stored_as("model.layers.0.mlp.experts.3.up_proj.weight") == "MXFP4"
        whole = source._stored["model.layers.0.mlp.experts.down_proj.weight"]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(
            whole, model.model.layers[0].mlp.experts.down_proj.detach().numpy().swapaxes(1, 2)
        )
        with pytest.raises(ModelError, match="a matrix is needed"):
            source._stored.rows("model.layers.0.mlp.experts.down_proj.weight")  # type: ignore[attr-defined]


def test_a_gguf_file_of_the_same_blocks_is_the_same_model(
    made: tuple[Any, Path, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    """llama.cpp's converter takes blocks over: exponents first, and codes 16 apart in a byte instead of neighbours."""
    model, folder, blocks = made
    writer = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "gpt-oss")
    write_metadata(writer, "gpt-oss", model.config)
    tokenizer_metadata(writer, VOCAB)
    for name, value in gguf_tensors("gpt-oss", model):
        if "_exps.weight" not in name:
            writer.add_tensor(name, value)
    for layer in LAYERS:
        stem = f"model.layers.{layer}.mlp.experts"
        for part, own in (("gate", slice(0, None, 2)), ("up", slice(1, None, 2)), ("down", slice(None))):
            stacked = f"{stem}.{'down_proj' if part == 'down' else 'gate_up_proj'}"
            codes, scales = (blocks[f"{stacked}_{each}"].numpy()[:, own] for each in ("blocks", "scales"))
            data = np.concatenate([scales[..., None], halves_apart(codes)], axis=-1)
            data = np.ascontiguousarray(data.reshape(*data.shape[:2], -1))
            writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", data, raw_dtype=gguf.GGMLQuantizationType.MXFP4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    one, other = load(folder), load(tmp_path / "model.gguf")
    expected = one.forward(IDS, one.new_cache(), all_logits=True)
    np.testing.assert_array_equal(other.forward(IDS, other.new_cache(), all_logits=True), expected)


def halves_apart(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    values = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], 32)
    halves: NDArray[np.uint8] = values[..., :16] | values[..., 16:] << 4
    return halves


def test_eight_bits_keep_the_direction_of_logits(made: tuple[Any, Path, dict[str, torch.Tensor]]) -> None:
    model, path, _ = made
    expected = prefill_logits(model, IDS)
    got = load(path, npu_pack("w8a8", "sim:rk3588"))
    logits = got.forward(IDS, got.new_cache(), all_logits=True)
    lengths = np.linalg.norm(logits, axis=-1) * np.linalg.norm(expected, axis=-1)
    cosines = (logits * expected).sum(axis=-1) / lengths
    assert np.median(cosines) > 0.998
    assert cosines.min() > 0.9, "a token that chose another expert"


def test_damaged_blocks_are_refused(made: tuple[Any, Path, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    _, folder, blocks = made
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    others = {each: value for each, value in state.items() if each != name}
    for changed, problem in (
        ({**others, name: torch.full_like(blocks[name], 255)}, r"down_proj_scales' holds a scale that is no number"),
        ({**others, name: blocks[name][:, :-1].contiguous()}, r"_blocks|_scales"),
        (others, r"1\.mlp\.experts\.\d\.down_proj\.weight|_blocks"),
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(ModelError, match=problem):
            load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"experts_per_token": 2}, "experts_per_token"),
        ({"swiglu_limit": 0.0}, "swiglu_limit"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"quantization_config": {}}, "quantization_config"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_it_does_not_compute_is_refused(
    made: tuple[Any, Path, dict[str, torch.Tensor]], changes: dict[str, Any], named: str
) -> None:
    config = json.loads((made[1] / "config.json").read_text())
    assert config_from({**config, "experts_per_token": config["num_experts_per_tok"]}) == config_from(config)
    with pytest.raises(ModelError, match=named):
        config_from({**config, **changes})


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"clamp": (1.0, 0.0)}, "positive limit"),
        ({"clamp": (1.0, 2.0), "act": "relu"}, "gated silu"),
        ({"clamp": (1.0, 2.0), "gated": False}, "gated silu"),
    ],
)
def test_a_bounded_network_is_a_gated_one(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        nn.MLP(4, 8, **options)
