"""Files of models that are laid out for a chip: what is loaded is what was packed, and everything else is refused."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf.quants
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llm_models import TinyModel
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import npumatmul as npu
from npumatmul.errors import ModelError, PackedFileError
from npumatmul.llm import GGUFFile, npu_layers, windows
from npumatmul.llm.quantize import (
    LayerRecipe,
    PackedLayer,
    QuantizedLayer,
    QuantizedModel,
    Recipe,
    best_recipe,
    emulate,
    load_quantized,
    quantize_model,
    save_quantized,
)
from npumatmul.llm.quantize.gguf_blocks import layer_of_blocks
from npumatmul.quant.params import QuantizedWeight

TOKENS = np.random.default_rng(0).integers(0, 256, 130)

#: Everything that a layer can have.
MIXED = Recipe(
    LayerRecipe("w8a8", "hadamard", activation_clip=0.9),
    {
        "blk.0.*": {"scheme": "w4a8_g32", "rounding": "gptq", "clip_search": True, "symmetric": False},
        "blk.1.down": {"scheme": "w8a8_layer", "transform": "smooth+hadamard"},
        "blk.1.attn_out": {"scheme": "w4a8_g32_agroup", "symmetric_activations": False, "transform": "none"},
        "blk.1.gate_up": {"scheme": "w4a8", "centre": True, "transform": "balance", "symmetric": False},
        "blk.1.qkv": {"centre": True, "symmetric_activations": False},
        "head": {"scheme": "w16a16", "transform": "none"},
    },
    seed=7,
)
ANYWHERE = Recipe(LayerRecipe("w8a8", "hadamard"), {"head": {"scheme": "w16a16", "transform": "none"}})
CASES = [
    ("rk3588", MIXED),
    ("rk3588", best_recipe("w4a4")),
    ("rk3588", Recipe(LayerRecipe("w16a16"))),
    ("rk3576", Recipe(LayerRecipe("w8a16"), {"blk.0.*": {"scheme": "w4a16_g32"}})),
    ("rk3562", Recipe(LayerRecipe("w4a8", "hadamard"), {"blk.0.*": {"scheme": "w8a8_g32"}})),
    ("rk3566", ANYWHERE),
]


def made(tiny: TinyModel, recipe: Recipe) -> QuantizedModel:
    return quantize_model(tiny.path, recipe, windows(TOKENS, 64))


def logits(model: QuantizedModel, make: Any = emulate) -> NDArray[np.float32]:
    loaded = model.load(make).model
    return loaded.forward(TOKENS[:40], loaded.new_cache(), all_logits=True)


def unpacked(model: QuantizedModel, name: str) -> QuantizedLayer:
    layer = model.layers[name]
    return layer.unpacked() if isinstance(layer, PackedLayer) else layer


def used(device: npu.Device) -> int:
    device.stats()  # which takes back what was dropped
    return device.weights.bytes_used


def same_layers(one: QuantizedModel, other: QuantizedModel) -> None:
    for name in one.layers:
        a, b = unpacked(one, name), unpacked(other, name)
        assert a.recipe == b.recipe
        for part in ("offset", "bias", "centre", "row_scale"):
            np.testing.assert_array_equal(getattr(a, part), getattr(b, part))
        if isinstance(a.weight, QuantizedWeight):
            assert isinstance(b.weight, QuantizedWeight)
            np.testing.assert_array_equal(a.weight.codes, b.weight.codes)
            assert a.weight.params == b.weight.params
            assert a.weight.description() == b.weight.description()
        else:
            np.testing.assert_array_equal(a.weight, b.weight)


@pytest.mark.parametrize(("soc", "recipe"), CASES)
def test_packed_and_portable_files_compute_alike(
    tiny: Any, tmp_path: Path, soc: str, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results are the same to the bit; nothing is packed when a packed file is loaded, codes come back exactly."""
    model = made(tiny, recipe)
    save_quantized(model, tmp_path / "portable")
    with npu.Device(f"sim:{soc}") as device:
        before = used(device)
        save_quantized(model, tmp_path / "packed", device=device)
        assert used(device) == before
        assert sorted(each.name for each in tmp_path.iterdir()) == ["packed", "portable"]
        portable, packed = load_quantized(tmp_path / "portable"), load_quantized(tmp_path / "packed")
        assert (portable.soc, packed.soc) == (None, soc)
        assert (packed.recipe, packed.source, packed.notes) == (model.recipe, model.source, model.notes)
        assert all(packed.layers[name].shape == layer.shape for name, layer in model.layers.items())
        same_layers(packed, model)
        np.testing.assert_array_equal(logits(packed), logits(portable))
        expected = logits(portable, npu_layers(device))

        def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError("packed again")

        monkeypatch.setattr("npumatmul.host.kernels.pack", refuse)
        np.testing.assert_array_equal(logits(packed, npu_layers(device)), expected)
        assert device.stats().run_calls > 0


@pytest.mark.parametrize("kind", [GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0])
def test_blocks_of_files_are_packed_too(tiny: Any, tmp_path: Path, kind: GGMLQuantizationType) -> None:
    """With minima as offsets, and a scale of activations for each token and group."""
    values = np.random.default_rng(1).standard_normal((264, 32)).astype(np.float32)
    writer = gguf.GGUFWriter(str(tmp_path / "blocks"), "llama")
    writer.add_tensor("t", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile(tmp_path / "blocks") as file:
        layer = layer_of_blocks(file, ["t"], LayerRecipe("gguf"))
    assert layer is not None
    model = made(tiny, ANYWHERE)
    model = dataclasses.replace(model, layers={**model.layers, "head": layer})
    with npu.Device("sim:rk3588") as device:
        save_quantized(model, tmp_path / "packed", device=device)
        packed = load_quantized(tmp_path / "packed")
        same_layers(packed, model)
        np.testing.assert_array_equal(logits(packed, npu_layers(device)), logits(model, npu_layers(device)))


def test_a_file_can_be_laid_out_anew(tiny: Any, tmp_path: Path) -> None:
    """Portable to packed, packed to portable, and packed for one chip to packed for another, without the model."""
    save_quantized(made(tiny, ANYWHERE), tmp_path / "portable")
    save_quantized(load_quantized(tmp_path / "portable"), tmp_path / "rk3588", device="sim:rk3588")
    save_quantized(load_quantized(tmp_path / "rk3588"), tmp_path / "rk3562", device="sim:rk3562")
    save_quantized(load_quantized(tmp_path / "rk3562"), tmp_path / "again")
    first, last = load_file(tmp_path / "portable"), load_file(tmp_path / "again")
    assert first.keys() == last.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], last[name])
    assert load_quantized(tmp_path / "rk3562").soc == "rk3562"


@pytest.mark.parametrize(("other", "fits"), [("rk3576", True), ("rk3562", False), ("rk3566", False)])
def test_other_layouts_are_refused_and_told_what_to_do(tiny: Any, tmp_path: Path, other: str, fits: bool) -> None:
    """Tiles of rk3576 are those of rk3588 (facts 4.2), where both have the types."""
    save_quantized(made(tiny, ANYWHERE), tmp_path / "m", device="sim:rk3588")
    model = load_quantized(tmp_path / "m")
    with npu.Device(f"sim:{other}") as device:
        before = used(device)
        if fits:
            np.testing.assert_allclose(logits(model, npu_layers(device)), logits(model), atol=1e-2)
            return
        what_to_do = rf"'rk3588'.*this is {other}.*npumatmul quantize {tmp_path}/m --chip {other} -o NEW_FILE"
        with pytest.raises(PackedFileError, match=what_to_do):
            logits(model, npu_layers(device))
        assert used(device) == before


def test_packed_models_are_files_of_packed_weights(tiny: Any, tmp_path: Path) -> None:
    save_quantized(made(tiny, ANYWHERE), tmp_path / "m", device="sim:rk3588")
    with npu.Device("sim:rk3588") as device, npu.open_packed(tmp_path / "m", device=device) as file:
        assert "blk.0.qkv" in file
        assert file["head"].shape == (32, 264)


def test_nothing_is_left_of_a_file_that_is_not_finished(tiny: Any, tmp_path: Path) -> None:
    model = made(tiny, ANYWHERE)

    def interrupt(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with npu.Device("sim:rk3588") as device:
        before = used(device)
        for where in (device, None):
            with pytest.raises(KeyboardInterrupt):
                save_quantized(model, tmp_path / "m", device=where, progress=interrupt)
            assert list(tmp_path.iterdir()) == []
        assert used(device) == before


# --- damage


@pytest.fixture(scope="module")
def small(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "m"
    recipe = Recipe(LayerRecipe("w8a8", "hadamard"), {"head": {"centre": True}, "blk.1.*": {"scheme": "w4a8"}})
    model = made(tiny, recipe)
    save_quantized(model, path, device="sim:rk3588")
    save_quantized(model, path.with_name("portable"))
    return path


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "np") as opened:
        return dict(opened.metadata())


def refused(path: Path, message: str) -> None:
    """Opened or put on a device, it is an error for people; memory is as it was."""
    with npu.Device("sim:rk3588") as device:
        before = used(device)
        with pytest.raises((ModelError, PackedFileError), match=message) as raised:
            load_quantized(path).load(npu_layers(device))
        assert str(path) in str(raised.value)
        del raised
        assert used(device) == before


def header_of(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_cut_files_are_refused(small: Path, tmp_path: Path) -> None:
    whole, broken = small.read_bytes(), tmp_path / "broken"
    for length in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        broken.write_bytes(whole[:length])
        refused(broken, "not a complete safetensors file")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["head/tile.0"].update(data_offsets=[0, 2**63]),
        lambda header: header["head/tile.0"].update(data_offsets=[2**64, 2**65]),
        lambda header: header["head/tile.0"].update(data_offsets=[-64, 0]),
        lambda header: header["head/tile.0"].update(shape=[2**62, 2**62]),
        lambda header: header["head/tile.0"].update(shape=[2**70]),
        lambda header: header["head/tile.0"].update(data_offsets=header["blk.0.qkv/tile.0"]["data_offsets"]),
        lambda header: header["head/tile.0"].update(dtype="F64"),
        lambda header: header["head/tile.0"].update(dtype=5),
        lambda header: header.update({"head/tile.0": []}),
        lambda header: header.update({"more": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}),
    ],
)
def test_tensors_that_cannot_be_are_refused(small: Path, tmp_path: Path, change: Callable[[Any], None]) -> None:
    """Beyond the end, negative, overlapping, of lengths that overflow."""
    header, data = header_of(small.read_bytes())
    change(header)
    (tmp_path / "broken").write_bytes(with_header(header, data))
    refused(tmp_path / "broken", "safetensors file|damaged")


@pytest.mark.parametrize("header", [b"{" * 100_000, b"[]", b"\xff" * 64, b'{"a": 1}', b"{}"])
def test_headers_that_are_none_are_refused(small: Path, tmp_path: Path, header: bytes) -> None:
    (tmp_path / "broken").write_bytes(with_header(header, header_of(small.read_bytes())[1]))
    refused(tmp_path / "broken", "safetensors file")


def test_a_header_longer_than_the_file_is_refused(small: Path, tmp_path: Path) -> None:
    for length in (2**63, 2**40, 10**8 - 1):
        (tmp_path / "broken").write_bytes(length.to_bytes(8, "little") + small.read_bytes()[8:])
        refused(tmp_path / "broken", "not a complete safetensors file")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ours, packed, arrays: ours.update(format=3), "format 3; this version reads 1 and 2: update"),
        (lambda ours, packed, arrays: ours.update(format="2"), "format '2'"),
        (lambda ours, packed, arrays: ours.pop("layers"), "does not fit"),
        (lambda ours, packed, arrays: ours.update(layers=[]), "does not fit"),
        (lambda ours, packed, arrays: ours["layers"].pop("head"), "does not fit"),
        (lambda ours, packed, arrays: ours["layers"]["head"].update(recipe={"scheme": "w9a9"}), "does not fit"),
        (lambda ours, packed, arrays: ours["layers"]["head"].update(checksums={}), "checksums differ"),
        (lambda ours, packed, arrays: packed.pop("head"), "does not fit"),
        (lambda ours, packed, arrays: packed.update(head=[]), "does not fit"),
        (lambda ours, packed, arrays: packed["head"].update(shape=[264, 32]), "does not fit"),
        (lambda ours, packed, arrays: packed["head"].update(version=9), "newer npumatmul"),
        (lambda ours, packed, arrays: packed["head"]["stored"].update(n_spans=[[0, 264, 2**30]]), "damaged|tiles"),
        (lambda ours, packed, arrays: packed["head"]["stored"]["slices"].append({}), "damaged"),
        (lambda ours, packed, arrays: arrays.pop("gguf"), "'gguf' is missing"),
        (lambda ours, packed, arrays: arrays.update(gguf=np.zeros(100, np.uint8)), "GGUF"),
        (lambda ours, packed, arrays: arrays.update(gguf=np.zeros(100, np.float32)), "model file"),
        (lambda ours, packed, arrays: arrays.pop("head.bias"), "are missing"),
        (lambda ours, packed, arrays: arrays.update({"head.bias": arrays["head.bias"] + 1}), "checksums differ"),
        (lambda ours, packed, arrays: arrays.pop("head/tile.0"), r"tensor 'head/tile\.0' is missing"),
        (lambda ours, packed, arrays: arrays.pop("head/params.scale"), "is missing"),
        (lambda ours, packed, arrays: arrays.update({"head/tile.0": arrays["head/tile.0"] ^ 1}), "checksum of tile 0"),
    ],
)
def test_descriptions_that_lie_are_refused(small: Path, tmp_path: Path, change: Any, message: str) -> None:
    metadata, arrays = metadata_of(small), load_file(small)
    ours, packed = json.loads(metadata["npumatmul"]), json.loads(metadata["description"])
    change(ours, packed, arrays)
    metadata["npumatmul"], metadata["description"] = json.dumps(ours), json.dumps(packed)
    metadata["npumatmul.checksum"] = str(zlib.crc32(metadata["npumatmul"].encode()))
    metadata["checksum"] = str(zlib.crc32(metadata["description"].encode()))
    save_file(arrays, tmp_path / "broken", metadata)
    refused(tmp_path / "broken", message)
    with pytest.raises((ModelError, PackedFileError)):  # nor is it computed on the host
        load_quantized(tmp_path / "broken").load()


@pytest.mark.parametrize("key", ["npumatmul", "description"])
def test_changed_descriptions_are_noticed(small: Path, tmp_path: Path, key: str) -> None:
    metadata = metadata_of(small)
    metadata[key] = metadata[key].replace("w8a8", "w8a16")
    save_file(load_file(small), tmp_path / "broken", metadata)
    refused(tmp_path / "broken", "checksum of its description")
    del metadata["description"]
    save_file(load_file(small), tmp_path / "broken", metadata_of(small) | {"version": "2"})
    refused(tmp_path / "broken", "version '2' of the format.*update npumatmul")


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_is_an_error_or_leaves_layers_what_they_were(
    small: Path, tmp_path: Path, data: st.DataObject
) -> None:
    source = data.draw(st.sampled_from([small, small.with_name("portable")]))
    whole = bytearray(source.read_bytes())
    kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
    at = data.draw(st.one_of(st.integers(0, 4000), st.integers(0, len(whole) - 1)))
    if kind == "change":
        for offset in range(data.draw(st.integers(1, 4))):
            whole[(at + offset) % len(whole)] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del whole[at : at + data.draw(st.integers(1, 64))]
    else:
        whole[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    broken = tmp_path / "broken"
    broken.write_bytes(whole)
    try:
        model = load_quantized(broken)
        layers = {name: unpacked(model, name) for name in model.layers}
    except (ModelError, PackedFileError):
        return
    intact = load_quantized(source)
    for name, layer in layers.items():
        np.testing.assert_array_equal(layer.restored(), unpacked(intact, name).restored())
