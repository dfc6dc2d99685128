"""Models with experts beyond what they compute: counts, schemes by policy, what is refused, what is read."""

from __future__ import annotations

import gc
import json
import math
from pathlib import Path

import numpy as np
import pytest
from model_zoo import VARIANTS, torch_model, write_folder, write_gguf
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner
from whisper_zoo import save_whisper, torch_whisper

import npumatmul as npu
from npumatmul import llm, nn
from npumatmul.cli.app import app
from npumatmul.errors import ModelError
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.weights import load_decoder
from npumatmul.nn.product import FloatProduct

PLAIN = {each.model_type: each for each in VARIANTS if each.name in ("qwen3_moe-plain", "olmoe-plain")}
IDS = [5, 3, 8, 13, 21, 34]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    variant = PLAIN["qwen3_moe"]
    return write_gguf(tmp_path_factory.mktemp("experts") / "model.gguf", variant, torch_model(variant))


def test_a_policy_gives_experts_a_scheme_of_their_own(file: Path) -> None:
    exact = llm.load(file, "float32")
    with llm.load(file, "w8a8", policy={"blk.*.expert.*": "w16a16"}, device="sim:rk3588", cache=False) as model:
        schemes = {name: product.weight.scheme.name for name, product in model._model.linears.items()}
        assert {scheme for name, scheme in schemes.items() if ".expert." in name} == {"w16a16"}
        assert {scheme for name, scheme in schemes.items() if ".expert." not in name} == {"w8a8"}
        assert schemes.keys() == exact._model.linears.keys()
    with pytest.raises(ValueError, match=r"no layer of the model is called so; its layers are blk\.0\.qkv, .*expert"):
        llm.load(file, "w8a8", policy={"blk.*.experts.*": "w16a16"}, cache=False)


def test_multiply_accumulates_count_the_chosen_experts(file: Path) -> None:
    with open_source(file) as source:
        rows: list[tuple[int, int]] = []

        class Counted(FloatProduct):
            def __call__(self, x: np.ndarray) -> np.ndarray:
                rows.append((len(x), math.prod(self.shape)))
                return super().__call__(x)

        model = load_decoder(source, lambda layer: Counted(layer.weight(source)))
    model.forward(IDS, model.new_cache())
    assert model.weight_macs(len(IDS)) == sum(tokens * size for tokens, size in rows)


def test_the_command_keeps_to_the_memory_for_experts(file: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    common = ["generate", "-m", str(file), "-p", "one two", "--raw", "-n", "6", "--device", "sim:rk3588", "--json",
              "--no-cache"]  # fmt: skip
    whole = json.loads(runner.invoke(app, common, catch_exceptions=False).stdout)
    assert whole["experts"] is None
    limit = ["--expert-memory", "100KiB", "--expert-folder", str(tmp_path)]
    found = json.loads(runner.invoke(app, [*common, *limit], catch_exceptions=False).stdout)
    assert found["text"] == whole["text"]
    experts = found["experts"]
    assert experts["nbytes"] <= experts["limit"] == 100 << 10 < experts["waiting"]
    assert experts["brought"] > 0
    assert not list(tmp_path.iterdir())
    assert "is no size" in runner.invoke(app, [*common, "--expert-memory", "few"]).stderr
    with pytest.raises(ValueError, match="give both"):
        runner.invoke(app, [*common, *limit[2:]], catch_exceptions=False)
    talk = ["chat", "-m", str(file), "--device", "sim:rk3588", "--no-cache", *limit]
    assert runner.invoke(app, talk, input="/quit\n").exit_code == 0
    assert not list(tmp_path.iterdir())


def test_folders_of_stacks_and_of_matrices_are_the_same_model(tmp_path: Path) -> None:
    variant = PLAIN["olmoe"]
    reference = torch_model(variant)
    path = write_folder(tmp_path, variant, reference)
    with open_source(path) as source:
        expected = dict(load_decoder(source, lambda layer: FloatProduct(layer.weight(source))).named_parameters())
    stored = load_file(path / "model.safetensors")
    stacks = {name: value.numpy() for name, value in reference.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in stacks)
    assert not any(name.endswith("experts.gate_up_proj") for name in stored)
    save_file(stacks, path / "model.safetensors")
    with open_source(path) as source:
        assert set(source.weights) == set(stored)
        model = load_decoder(source, lambda layer: FloatProduct(layer.weight(source)))
    for name, value in model.named_parameters():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize(("count", "chosen"), [(1 << 12, 2), (9, 2), (7, 2), (8, 9)])
def test_counts_of_experts_that_the_file_has_not_are_refused(tmp_path: Path, count: int, chosen: int) -> None:
    variant = PLAIN["qwen3_moe"]
    path = write_folder(tmp_path, variant, torch_model(variant))
    config = json.loads((path / "config.json").read_text())
    for name in ("num_experts", "num_local_experts"):
        if name in config:
            config[name] = count
    config["num_experts_per_tok"] = chosen
    (path / "config.json").write_text(json.dumps(config))
    with open_source(path) as source, pytest.raises(ModelError, match="expert"):
        load_decoder(source, lambda layer: FloatProduct(layer.weight(source)))


def test_a_stack_of_gguf_is_read_one_matrix_at_a_time(file: Path) -> None:
    with open_source(file) as source:
        assert isinstance(source.weights, nn.expert_names.Unstacked)
        name = "model.layers.1.mlp.experts.3.down_proj.weight"
        assert source.weights.tensor_name(name) == "blk.1.ffn_down_exps.weight"
        whole = source.file.tensor("blk.1.ffn_down_exps.weight")
        np.testing.assert_array_equal(source.weights[name], whole[3])
        np.testing.assert_array_equal(source.file.matrix("blk.1.ffn_down_exps.weight", 3, 5, 9), whole[3, 5:9])
        with pytest.raises(ValueError, match="matrix 8 are not in a stack"):
            source.file.matrix("blk.1.ffn_down_exps.weight", 8, 0, 1)


@pytest.mark.parametrize("in_files", [False, True])
def test_a_model_larger_than_the_memory_for_its_experts_answers_the_same(
    file: Path, tmp_path: Path, in_files: bool
) -> None:
    how = {"scheme": "w8a8", "device": "sim:rk3588", "cache": False}
    with llm.load(file, **how) as whole:
        sizes = [each.weight.nbytes for name, each in whole._model.linears.items() if ".expert." in name]
        expected = whole.logits(IDS)
        assert whole.experts is None
    folder = {"expert_folder": tmp_path} if in_files else {}
    with llm.load(file, **how, expert_memory=sum(sizes) // 4, **folder) as model:
        np.testing.assert_array_equal(model.logits(IDS), expected)
        experts = model.experts
        assert experts is not None
        assert experts.waiting == sum(sizes)
        assert 0 < experts.nbytes <= experts.limit < sum(sizes)
        assert experts.brought > len(sizes) // 4
        assert any(tmp_path.iterdir()) == in_files
    assert experts.nbytes == 0
    assert not any(tmp_path.iterdir())


def test_experts_come_from_the_cache_of_packed_models_too(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    logits = []
    for _ in range(2):
        with llm.load(file, "w8a8", device="sim:rk3588", expert_memory=20000) as model:
            logits.append(model.logits(IDS))
            assert model.experts is not None
            assert model.experts.nbytes <= 20000
    np.testing.assert_array_equal(*logits)


def test_limits_of_experts_that_limit_nothing_are_refused(file: Path, tmp_path: Path) -> None:
    dense = next(each for each in VARIANTS if each.name == "llama-plain")
    other = write_gguf(tmp_path / "dense.gguf", dense, torch_model(dense))
    with pytest.raises(ValueError, match="has no experts"):
        llm.load(other, "w8a8", device="sim:rk3588", expert_memory=1000)
    with pytest.raises(ValueError, match="numpy computes all layers"):
        llm.load(file, "float32", expert_memory=1000)
    with pytest.raises(ValueError, match="give both"):
        llm.load(file, "w8a8", expert_folder=tmp_path)
    with pytest.raises(ValueError, match="has no experts"):
        llm.load(other, "gguf", device="sim:rk3588", expert_memory=1000)
    with pytest.raises(ValueError, match="larger than the limit"):
        llm.load(file, "w8a8", device="sim:rk3588", cache=False, expert_memory=10, expert_folder=tmp_path)
    speech = save_whisper(torch_whisper(), tmp_path / "speech")
    with pytest.raises(ValueError, match="load: expert_memory is for mixtures of experts, and speech has no experts"):
        llm.load(speech, "w8a8", device="sim:rk3588", expert_memory=1000)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["dense.gguf", "speech"]


def test_limits_of_experts_are_named_as_they_were_given(file: Path, tmp_path: Path) -> None:
    for wrong, error in ((0, ValueError), (-5, ValueError), (1e6, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"load: expert_memory .*"):
            llm.load(file, "w8a8", device="sim:rk3588", expert_memory=wrong)  # type: ignore[arg-type]
    (tmp_path / "a file").touch()
    for name in ("a file", "nothing"):
        with pytest.raises(
            NotADirectoryError, match=rf"load: expert_folder is '.*{name}', and there is no such folder"
        ):
            llm.load(file, "w8a8", device="sim:rk3588", expert_memory=1000, expert_folder=tmp_path / name)
    result = CliRunner().invoke(
        app,
        [
            "generate",
            "-m",
            str(file),
            "-p",
            "a",
            "--expert-memory",
            "1MB",
            "--expert-folder",
            str(tmp_path / "nothing"),
        ],
    )
    assert "expert_folder is" in str(result.exception), result
    assert [each.name for each in tmp_path.iterdir()] == ["a file"]


def test_experts_may_be_the_cpus_while_all_else_is_the_npus(file: Path) -> None:
    ids = list(range(20))
    gc.collect()
    npu.empty_cache("sim:rk3588")  # what other tests hold on the same device counts against the limit
    held = npu.memory_stats("sim:rk3588").nbytes
    with llm.load(file, "w8a8", device="sim:rk3588") as model:
        expected = model.logits(ids)
    for policy in (
        llm.Policy(["*.qkv", "*.attn_out", "head"], prefill="npu", decode="npu"),
        llm.Policy(["*.expert.[0-3].*"], prefill="npu", decode="npu"),
        llm.Policy(memory_limit=held + 120_000, prefill="npu", decode="npu"),
    ):
        with llm.load(file, "w8a8", device="sim:rk3588", policy=policy) as model:
            np.testing.assert_array_equal(model.logits(ids), expected)
            assert model.placement is not None
            places = {(".expert." in each.name, each.memory) for each in model.placement}
            assert {memory for _, memory in places} == {"npu", "host"}
            assert (True, "host") in places


def test_memory_for_experts_goes_with_no_policy(file: Path) -> None:
    with pytest.raises(ValueError, match="expert_memory and a Policy both say where experts are"):
        llm.load(file, "w8a8", device="sim:rk3588", expert_memory=20000, policy=llm.Policy())
