"""Models as sources: names, values, rows and digests of GGUF files and of Hugging Face folders."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import encoder_zoo
import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from model_zoo import VARIANTS as VARIANTS_OF_ALL
from model_zoo import language_state, torch_model
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.llm.files import digests
from npumatmul.llm.files.gguf_names import ARCHITECTURES, parameter_name
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.files.opening import open_source

TABLE = "model.embed_tokens.weight"
#: A small model of each architecture that GGUF files have.
VARIANTS = {variant.gguf: variant for variant in reversed(VARIANTS_OF_ALL) if variant.gguf is not None}
ENCODERS = {"bert": next(each for each in encoder_zoo.VARIANTS if each.name == "bert-plain")}
TYPES = sorted(gguf.quants._type_traits, key=lambda kind: kind.name)  # all that the package can dequantize
TYPES += [gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16]


@pytest.fixture(scope="module")
def llama() -> Any:
    return torch_model(VARIANTS["llama"])


@pytest.fixture
def folder(llama: Any, tmp_path: Path) -> Path:
    llama.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_tensors_of_gguf_files_are_called_as_the_parameters_that_become_them(architecture: str) -> None:
    encoder = ENCODERS.get(architecture)
    model = torch_model(VARIANTS[architecture]) if encoder is None else encoder_zoo.torch_model(encoder)
    kind = next(each for each, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    layers = model.config.get_text_config().num_hidden_layers
    names = gguf.get_tensor_name_map(kind, layers)
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    parameters = {name for name in language_state(model) if not name.startswith("pooler.")} - tied
    assert len(parameters) > 6 * layers
    for parameter in parameters:
        if ".experts." in parameter:
            continue  # stacks that are cut otherwise: whole files are read in test_llm_architectures
        parameter = parameter.replace("block_sparse_moe.router", "mlp.gate")
        if "in_proj_qkvz" in parameter:
            continue  # so are these
        theirs = parameter.replace(".dt_bias", ".dt_proj.bias").replace(".expert_bias", ".expert_bias.bias")
        tensor = names.get_name(theirs, try_suffixes=(".weight", ".bias"))
        assert tensor is not None
        parameter = parameter.replace("mlp.router", "mlp.gate")
        if not tensor.endswith((".weight", ".bias", ".ssm_a")):
            tensor += ".weight"  # each tensor of a file has an ending, and sinks as a parameter have none
        assert parameter_name(tensor, ARCHITECTURES[architecture]) == parameter


def finite_blocks(kind: gguf.GGMLQuantizationType, blocks: int) -> NDArray[np.uint8]:
    """Random blocks whose values are finite: scales are float16 somewhere among their bytes."""
    rng = np.random.default_rng(int(kind))
    size = gguf.GGML_QUANT_SIZES[kind][1]
    found = np.empty((0, size), np.uint8)
    while len(found) < blocks:
        tried = rng.integers(0, 256, (4 * blocks, size), np.uint8)
        with np.errstate(all="ignore"):
            found = np.concatenate([found, tried[np.isfinite(dequantize(tried, kind)).all(axis=1)]])
    return found[:blocks]


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_tensors_of_every_type_are_what_the_package_makes_of_them(
    kind: gguf.GGMLQuantizationType, make_gguf: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = 6, 512
    values = np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)
    try:
        stored = quantize(values, kind)
    except NotImplementedError:  # the package only reads it
        block = gguf.GGML_QUANT_SIZES[kind][0]
        stored = finite_blocks(kind, rows * columns // block).reshape(rows, -1)
    expected = dequantize(stored, kind).astype(np.float32)
    monkeypatch.setattr("npumatmul.llm.files.gguf.PIECE_BYTES", 700)  # several pieces
    path = make_gguf(lambda writer: writer.add_tensor("token_embd.weight", stored, raw_dtype=kind))
    with open_source(path) as source:
        assert source.weights.stored_as("model.embed_tokens.weight") == kind.name
        found = source.weights["model.embed_tokens.weight"]
        reader = source.weights.rows("model.embed_tokens.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert reader.shape == (rows, columns)
    np.testing.assert_array_equal(reader(np.array([5, 0, 0, 3])), expected[[5, 0, 0, 3]])


def test_what_is_no_parameter_is_apart_and_what_is_unknown_is_left_over(make_gguf: Callable[..., Path]) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        for name in ("rope_freqs.weight", "blk.0.attn_rot_embd", "blk.0.attn_q.weight", "blk.0.ssm_a", "other.weight"):
            writer.add_tensor(name, np.full(4, 2, np.float32))

    with open_source(make_gguf(fill)) as source:
        assert list(source.weights) == ["model.layers.0.self_attn.q_proj.weight", "blk.0.ssm_a", "other.weight"]
        assert source.rope_factors.keys() == {"freqs"}
        np.testing.assert_array_equal(source.rope_factors["freqs"], np.full(4, 2, np.float32))
        assert source.interleaved_rope
        assert not source.norms_include_one


def test_an_architecture_that_is_not_known_is_named(make_gguf: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"architecture is .mamba.; supported: .*gemma3"):
        open_source(make_gguf(lambda writer: None, arch="mamba"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", ["1GB", "4KB"])
def test_a_folder_has_the_values_that_were_saved(llama: Any, dtype: Any, shard: str, tmp_path: Path) -> None:
    model = copy.deepcopy(llama).to(dtype)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    assert (shard == "4KB") == (tmp_path / "model.safetensors.index.json").exists()
    expected = {name: each.detach().to(torch.float32).numpy() for name, each in model.state_dict().items()}
    with open_source(tmp_path) as source:
        assert (source.kind, source.architecture, source.config["hidden_size"]) == (
            "folder",
            "llama",
            llama.config.hidden_size,
        )
        assert not source.interleaved_rope
        assert set(source.weights) == expected.keys()
        for name, values in expected.items():
            found = source.weights[name]
            assert found.dtype == np.float32
            assert source.weights.shape(name) == values.shape
            np.testing.assert_array_equal(found, values)
        reader = source.weights.rows(TABLE)
    np.testing.assert_array_equal(reader(np.array([31, 0, 31])), expected[TABLE][[31, 0, 31]])
    with pytest.raises(KeyError):
        source.weights[TABLE]


def test_templates_settings_and_tokenizer_files_of_a_folder(folder: Path) -> None:
    def seen() -> tuple[str | None, dict[str, str]]:
        with open_source(folder) as source:
            return source.chat_template, dict(source.chat_templates)

    def write(name: str, content: Any) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")

    assert seen() == (None, {})
    write("tokenizer_config.json", {"chat_template": "one"})
    assert seen() == ("one", {"default": "one"})
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    write("tokenizer_config.json", {"chat_template": named[:1]})
    assert seen() == ("R", {"rag": "R"})
    write("tokenizer_config.json", {"chat_template": named})
    assert seen() == ("D", {"default": "D", "rag": "R"})
    write("chat_template.jinja", "ä")
    write("additional_chat_templates/tool_use.jinja", "T")
    assert seen() == ("ä", {"default": "ä", "rag": "R", "tool_use": "T"})
    write("tokenizer.json", {"model": {}})
    write("generation_config.json", {"top_k": 7})
    with open_source(folder) as source:
        assert source.generation_config == {"top_k": 7}
        assert list(source.tokenizer_files) == ["tokenizer.json", "tokenizer_config.json"]
        assert json.loads(source.tokenizer_files["tokenizer.json"]) == {"model": {}}
        with pytest.raises(KeyError):
            source.tokenizer_files["config.json"]


def test_a_snapshot_of_the_cache_of_hugging_face_is_a_folder(folder: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--some--tiny"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(repository / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    with open_source(snapshot) as source:
        assert source.name == "some/tiny"
        assert source.weights[TABLE].shape == source.weights.shape(TABLE)


def test_a_folder_with_one_gguf_model_stands_for_it(make_gguf: Callable[..., Path], tmp_path: Path) -> None:
    path = make_gguf(lambda writer: writer.add_name("Alone"))
    with open_source(path.parent) as source:
        assert (source.kind, source.name, source.path) == ("gguf", "Alone", path)
    (path.parent / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match="2 GGUF models"):
        open_source(path.parent)
    with pytest.raises(FileNotFoundError, match="there is no model"):
        open_source(tmp_path / "missing")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_a_folder_is_not_the_model(folder: Path, name: str) -> None:
    with pytest.raises(ModelError, match="give the path of the folder"):
        open_source(folder / name)


def test_a_digest_is_of_what_is_in_the_files_and_is_worked_out_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[int] = []

    def digest() -> str:
        read.clear()
        with open_source(folder) as source:
            before = digests.RegularFile.sha256
            with monkeypatch.context() as counted:
                counted.setattr(
                    digests.RegularFile,
                    "sha256",
                    lambda file, *rest: (read.append(file.size), before(file, *rest))[1],
                )
                return source.digest()

    first = digest()
    assert len(read) == 2
    assert not digests.notes_path().exists()  # the files are too new: somebody may write to them within their time
    monkeypatch.setattr(digests, "_SETTLED", -1e9)
    assert digest() == first
    assert len(read) == 2
    assert digest() == first
    assert read == []
    weights = folder / "model.safetensors"
    status, data = weights.stat(), bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))  # the time when its state changed still differs
    second = digest()
    assert second != first
    assert len(read) == 1
    digests.notes_path().write_text('{"a": ["nonsense"]}')
    assert digest() == second


def test_both_kinds_are_sources(folder: Path, make_gguf: Callable[..., Path]) -> None:
    def taken(source: ModelSource) -> set[str]:
        return {name for name in dir(ModelSource) if not name.startswith("_") and getattr(source, name, self) is self}

    self = object()
    for path in (folder, make_gguf(lambda writer: None)):
        with open_source(path) as source:
            assert taken(source) == set()
            assert str(source.path) in str(source.error("something"))
