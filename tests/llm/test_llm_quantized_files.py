"""Quantized models: close to the model that they were made of, calibrated, and in files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from npumatmul.errors import ModelError
from npumatmul.llm import GGUFFile, evaluate, load_model, numpy_pack, windows
from npumatmul.llm.files.source import HeldSource
from npumatmul.llm.models.decoder import layer_names
from npumatmul.llm.quantize import (
    LayerRecipe,
    Recipe,
    collect_statistics,
    is_quantized,
    load_quantized,
    quantize_model,
    save_quantized,
)
from npumatmul.llm.quantize.saving import pack_nibbles, unpack_nibbles

TOKENS = np.random.default_rng(0).integers(0, 256, 200)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe(
        LayerRecipe("w8a8", "hadamard"),
        {
            "blk.0.*": {"scheme": "w4a8_g32", "rounding": "gptq", "clip_search": True},
            "blk.1.down": {"scheme": "w8a8_layer", "transform": "smooth+hadamard"},
            "blk.1.gate_up": {"centre": True, "transform": "balance", "symmetric": False},
            "blk.1.qkv": {"centre": True, "symmetric_activations": False},
            "head": {"scheme": "w16a16", "transform": "none"},
        },
        seed=7,
    )


def test_quantized_models_are_close_to_the_model(tiny: Any, recipe: Recipe) -> None:
    pieces = windows(TOKENS, 64)
    model = quantize_model(tiny.path, recipe, pieces)
    assert list(model.layers) == layer_names(2)
    assert model.notes == ()  # the file holds float32
    exact = load_model(tiny.path, pack=numpy_pack)
    for name, layer in model.layers.items():
        assert layer.recipe == recipe.for_layer(name)
    got = evaluate(model.load().model, exact.model, pieces).mean_kl
    worse = evaluate(quantize_model(tiny.path, Recipe(LayerRecipe("w4a4"))).load().model, exact.model, pieces).mean_kl
    assert got is not None
    assert worse is not None
    assert 0 < got.value < 0.5 * worse.value


def test_half_precision_is_close(tiny: Any) -> None:
    model = quantize_model(tiny.path, Recipe(LayerRecipe("w16a16")))
    exact = load_model(tiny.path, pack=numpy_pack).model
    got = evaluate(model.load().model, exact, windows(TOKENS, 64)).mean_kl
    assert got is not None
    assert got.value < 1e-4
    assert 16 <= model.bits_per_weight < 17


def test_calibration_sees_what_enters_each_layer(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against hooks on transformers' model; memory for one layer at a time gives the same in several passes."""
    import torch

    from npumatmul.llm.quantize import calibration

    tokens = TOKENS[:50]
    seen: dict[str, NDArray[np.float64]] = {}
    modules = dict(tiny.torch_model.named_modules())
    names = {
        "blk.1.qkv": "model.layers.1.self_attn.q_proj",
        "blk.1.attn_out": "model.layers.1.self_attn.o_proj",
        "blk.0.gate_up": "model.layers.0.mlp.up_proj",
        "blk.0.down": "model.layers.0.mlp.down_proj",
        "head": "lm_head",
    }
    hooks = []
    for name, where in names.items():

        def note(module: Any, inputs: Any, name: str = name) -> None:
            seen[name] = inputs[0][0].detach().double().numpy()

        hooks.append(modules[where].register_forward_pre_hook(note))
    with torch.no_grad():
        tiny.torch_model(torch.from_numpy(tokens)[None])
    for hook in hooks:
        hook.remove()
    pieces = list(windows(np.tile(tokens, 2), 50))[:1]
    once = collect_statistics(tiny.path, pieces, names)
    assert list(once) == [name for name in layer_names(2) if name in names]
    for name, x in seen.items():
        found = once[name]
        assert found.rows == 50
        np.testing.assert_allclose(found.absmax, np.abs(x).max(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.second_moment, x.T @ x / 50, rtol=1e-3, atol=1e-3)
    monkeypatch.setattr(calibration, "MOMENT_BYTES", 5000)
    calls: list[tuple[int, int]] = []
    again = collect_statistics(tiny.path, pieces, names, progress=lambda done, total, _: calls.append((done, total)))
    assert calls == [(25 * step, 250) for step in range(1, 11)]  # 50 tokens in five passes, the model has two blocks
    for name in names:
        np.testing.assert_array_equal(again[name].products, once[name].products)
    light = collect_statistics(tiny.path, pieces, ["head"], products=False)["head"]
    assert light.products is None
    with pytest.raises(ValueError, match=r"no layer .blk\.9\.qkv."):
        collect_statistics(tiny.path, pieces, ["blk.9.qkv"])


def test_calibration_is_asked_for(tiny: Any, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"calibrates 7 layers, such as 'blk\.0\.qkv': give a text"):
        quantize_model(tiny.path, recipe)


# --- files


def test_files_hold_the_whole_model(tiny: Any, recipe: Recipe, tmp_path: Path) -> None:
    model = quantize_model(tiny.path, recipe, windows(TOKENS, 64))
    path = tmp_path / "model.safetensors"
    save_quantized(model, path)
    assert [each.name for each in tmp_path.iterdir()] == ["model.safetensors"]
    assert is_quantized(path)
    assert not is_quantized(tiny.path)
    again = load_quantized(path)
    assert again.recipe == recipe
    assert again.source == model.source
    assert again.bits_per_weight == model.bits_per_weight
    for name, layer in model.layers.items():
        np.testing.assert_array_equal(again.layers[name].restored(), layer.restored())
        for extra in ("bias", "centre"):
            np.testing.assert_array_equal(getattr(again.layers[name], extra), getattr(layer, extra))
    first, second = model.load(), again.load()
    assert second.config == first.config
    assert second.tokenizer.encode("the text") == first.tokenizer.encode("the text")
    logits = [m.model.forward(TOKENS[:20], m.model.new_cache(), all_logits=True) for m in (first, second)]
    np.testing.assert_array_equal(*logits)
    assert len(load_file(path)["gguf"]) < tiny.path.stat().st_size / 2  # linear layers are not in it twice


def test_what_was_read_is_what_is_used(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_quantized(quantize_model(tiny.path, Recipe(LayerRecipe("w8a8"))), path)
    model = load_quantized(path)
    head = model.layers["head"]
    expected, rows = head.restored(), model.rest.rows("token_embd.weight")
    first = rows(np.arange(3))
    whole = path.read_bytes()
    with path.open("r+b") as file:  # behind our back
        file.write(bytes(len(whole)))
    np.testing.assert_array_equal(head.restored(), expected)
    for use in (
        lambda: model.layers["head"],
        lambda: rows(np.arange(3)),
        lambda: model.rest.tensor("output_norm.weight"),
    ):
        with pytest.raises(ModelError):
            use()
    with path.open("r+b") as file:
        file.write(whole)
    np.testing.assert_array_equal(rows(np.arange(3)), first)
    os.truncate(path, 1000)
    for use in (lambda: model.layers["head"], lambda: rows(np.arange(3)), lambda: model.load()):
        with pytest.raises(ModelError, match="became shorter"):
            use()


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
def test_codes_are_read_when_they_are_asked_for(tiny: Any, tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "m"
    model = quantize_model(tiny.path, Recipe(LayerRecipe(scheme)))
    save_quantized(model, path)
    with safe_open(path, "np") as opened:
        metadata = opened.metadata()
    arrays = load_file(path)
    arrays["head.codes"] = np.full_like(arrays["head.codes"], 1)
    save_file(arrays, path, metadata)
    again = load_quantized(path)  # which does not look at codes
    for _ in range(2):
        for name in list(again.layers)[:-1]:
            np.testing.assert_array_equal(again.layers[name].restored(), model.layers[name].restored())
        with pytest.raises(ModelError, match="layer 'head' is damaged"):
            again.layers["head"]
    with pytest.raises(KeyError):
        again.layers["tail"]
    header = json.loads(metadata["npumatmul"])  # as files were before there were checksums
    del header["checksums"]
    for description in header["layers"].values():
        del description["checksums"]
    save_file(arrays, path, {"npumatmul": json.dumps(header)})
    assert not np.array_equal(load_quantized(path).layers["head"].restored(), model.layers["head"].restored())


@pytest.mark.parametrize("bias", [False, True])
def test_tied_and_biased_models(make_tiny_model: Callable[..., Any], tmp_path: Path, bias: bool) -> None:
    tiny = make_tiny_model(tied=True, bias=bias)
    save_quantized(quantize_model(tiny.path, Recipe(LayerRecipe("w16a16"))), tmp_path / "m")
    model = load_quantized(tmp_path / "m").load().model
    got = model.forward(TOKENS[:30], model.new_cache(), all_logits=True)
    np.testing.assert_allclose(got, tiny.torch_logits(TOKENS[:30].tolist()), rtol=1e-2, atol=5e-2)


def test_damaged_files_are_refused(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "m"
    save_quantized(quantize_model(tiny.path, Recipe(LayerRecipe("w8a8"))), path)
    whole = path.read_bytes()
    broken = tmp_path / "broken"
    for length in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:length])
        with pytest.raises(ModelError, match="not a complete safetensors file"):
            load_quantized(broken)
    with pytest.raises(FileNotFoundError):
        load_quantized(tmp_path / "nothing")
    arrays = load_file(path)
    save_file(arrays, broken)
    with pytest.raises(ModelError, match="without a quantized model"):
        load_quantized(broken)

    with safe_open(path, "np") as opened:
        header = json.loads(opened.metadata()["npumatmul"])
    save_file(arrays, broken, {"npumatmul": json.dumps(header)})
    with pytest.raises(ModelError, match="checksum of its description is missing"):
        load_quantized(broken)
    del header["checksums"]  # which the first versions did not have
    for change, message in [
        ({"format": 3}, "format 3.*update npumatmul"),
        ({"format": 2}, "no packed weights"),
        ({"layers": {}}, "does not fit its tensors"),
        ({"recipe": {"scheme": "w9"}}, "does not fit"),
        ({"source": 5}, "does not fit"),
    ]:
        save_file(arrays, broken, {"npumatmul": json.dumps({**header, **change})})
        with pytest.raises(ModelError, match=message):
            load_quantized(broken)
    for text, message in [("[]", "not a JSON object"), ("{", "not JSON")]:
        save_file(arrays, broken, {"npumatmul": text})
        with pytest.raises(ModelError, match=message):
            load_quantized(broken)
    for name, array in [
        ("head.codes", np.zeros((3, 3), np.int8)),
        ("head.scale", -np.ones(264, np.float32)),
        ("head.codes", np.zeros((264, 32), np.float32)),
    ]:
        save_file({**arrays, name: array}, broken, {"npumatmul": json.dumps(header)})
        with pytest.raises(ModelError, match="does not fit its tensors"):
            load_quantized(broken)
    save_file({k: v for k, v in arrays.items() if k != "gguf"}, broken, {"npumatmul": json.dumps(header)})
    with pytest.raises(ModelError, match="'gguf' is missing"):
        load_quantized(broken)


@given(st.integers(0, 9), st.integers(0, 70), st.integers(0, 5))
def test_nibbles_round_trip(n: int, k: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(-8, 8, (n, k)).astype(np.int8)
    packed = pack_nibbles(codes)
    assert packed.nbytes == n * -(-k // 2)
    np.testing.assert_array_equal(unpack_nibbles(packed, k), codes)


def test_a_file_within_a_file(tiny: Any) -> None:
    """A subset of a GGUF file is read by the gguf package, too."""
    with GGUFFile(tiny.path) as file:
        data = file.subset(["output_norm.weight", "blk.0.attn_q.weight"])
        part = GGUFFile.within(HeldSource(np.frombuffer(data, np.uint8)), "inside")
        assert part.metadata == file.metadata
        assert set(part.tensors) == {"output_norm.weight", "blk.0.attn_q.weight"}
        for name in part.tensors:
            np.testing.assert_array_equal(part.tensor(name), file.tensor(name))


def test_gguf_package_reads_a_subset(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "part.gguf"
    with GGUFFile(tiny.path) as file:
        path.write_bytes(file.subset(["blk.0.attn_q.weight"]))
        reader = gguf.GGUFReader(path)
        assert [tensor.name for tensor in reader.tensors] == ["blk.0.attn_q.weight"]
        np.testing.assert_array_equal(reader.tensors[0].data, file.tensor("blk.0.attn_q.weight"))
        assert "llama.block_count" in reader.fields
