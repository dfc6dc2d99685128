"""Models that are split over several GGUF files: any part loads them, and what is missing or foreign is named."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from npumatmul.errors import ModelError, UnusableFileError
from npumatmul.llm import GGUFFile, load_model, numpy_pack
from npumatmul.llm.quantize import LayerRecipe, Recipe, load_quantized, quantize_model, save_quantized

TOKENS = [10, 200, 30, 40]


def split(whole: Path, stem: Path, most: int) -> list[Path]:
    """Split a model by the gguf package's own writer, which names the parts."""
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(stem.with_suffix(".gguf"), "llama", split_max_tensors=most)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), kind, sub)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(stem.parent.glob(f"{stem.name}-*-of-*.gguf"))


def write_part(path: Path, index: int, tensors: list[Any]) -> None:
    """Write another file in the place of one of four parts."""
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    writer.add_uint16("split.no", index)
    writer.add_uint16("split.count", 4)
    for tensor in tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").rename(path)


@pytest.fixture
def parts(tiny: Any, tmp_path: Path) -> list[Path]:
    found = split(tiny.path, tmp_path / "model", 6)
    assert [path.name for path in found] == [f"model-{i:05d}-of-00004.gguf" for i in (1, 2, 3, 4)]
    return found


def test_any_part_is_the_model(tiny: Any, parts: list[Path]) -> None:
    whole = load_model(tiny.path, pack=numpy_pack)
    expected = whole.model.forward(TOKENS, whole.model.new_cache(8), all_logits=True)
    for part in parts:
        loaded = load_model(part, pack=numpy_pack)
        got = loaded.model.forward(TOKENS, loaded.model.new_cache(8), all_logits=True)
        np.testing.assert_array_equal(got, expected)
        assert loaded.tokenizer.encode("the cat") == whole.tokenizer.encode("the cat")
        assert loaded.path == parts[0]


def test_tensors_and_digest_are_those_of_all_parts(tiny: Any, parts: list[Path]) -> None:
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in parts)).hexdigest()
    with GGUFFile(parts[2]) as file, GGUFFile(tiny.path) as whole:
        assert file.paths == tuple(parts)
        assert file.sha256() == digest
        assert set(file.tensors) == set(whole.tensors)
        for name in whole.tensors:
            np.testing.assert_array_equal(file.tensor(name), whole.tensor(name))


def test_a_split_model_is_quantized(tiny: Any, parts: list[Path]) -> None:
    recipe = Recipe(LayerRecipe("w8a8"))
    target = parts[0].with_name("quantized")
    save_quantized(quantize_model(parts[3], recipe), target)
    model = load_quantized(target)
    assert model.source.name == parts[0].name
    expected = quantize_model(tiny.path, recipe)
    for name, layer in expected.layers.items():
        np.testing.assert_array_equal(model.layers[name].restored(), layer.restored())
    for part in parts:
        with pytest.raises(UnusableFileError, match="it is made of"):
            save_quantized(quantize_model(parts[0], recipe), part)


@pytest.mark.parametrize("given", [0, 2])
def test_missing_parts_are_named(parts: list[Path], given: int) -> None:
    parts[1].unlink()
    message = rf"part {given + 1} of 4 of a split model, and model-00002-of-00004.gguf is not beside it"
    with pytest.raises(ModelError, match=message):
        GGUFFile(parts[given])
    parts[3].unlink()
    with pytest.raises(ModelError, match=r"model-00002-of-00004.gguf and 1 more is not beside it"):
        GGUFFile(parts[given])


def test_parts_by_other_names(parts: list[Path]) -> None:
    other = parts[1].rename(parts[1].with_name("second.gguf"))
    with pytest.raises(ModelError, match=r"part 2 of 4.*its name does not end in -00002-of-00004.gguf"):
        GGUFFile(other)
    shutil.copy(parts[2], parts[1])  # the third part by the second one's name
    with pytest.raises(ModelError, match=r"model-00002-of-00004.gguf: by its name it is part 2 of 4"):
        GGUFFile(parts[0])


def test_parts_with_the_same_tensors(parts: list[Path]) -> None:
    write_part(parts[1], 1, list(gguf.GGUFReader(parts[2]).tensors))
    with pytest.raises(ModelError, match=r"model-00003-of-00004.gguf: tensor '.*' is in an earlier part of the model"):
        GGUFFile(parts[0])


def test_a_part_that_lacks_tensors(parts: list[Path]) -> None:
    write_part(parts[3], 3, [])
    with pytest.raises(ModelError, match=r"its 4 parts have 18 tensors together, it announces 21"):
        GGUFFile(parts[0])


@pytest.mark.parametrize(("number", "count"), [(4, 4), (65535, 4)])
def test_a_part_that_cannot_be(make_gguf: Any, number: int, count: int) -> None:
    def fill(w: gguf.GGUFWriter) -> None:
        w.add_uint16("split.no", number)
        w.add_uint16("split.count", count)

    with pytest.raises(ModelError, match="they belong to no part of a model"):
        GGUFFile(make_gguf(fill))


def test_a_whole_model_may_be_named_like_a_part(tiny: Any, tmp_path: Path) -> None:
    path = tmp_path / "model-00001-of-00003.gguf"
    shutil.copy(tiny.path, path)
    assert GGUFFile(path).paths == (path,)


def test_a_part_that_is_changed_meanwhile_is_noticed(parts: list[Path]) -> None:
    with GGUFFile(parts[0]) as file:
        name = next(iter(GGUFFile(parts[3]).tensors))
        file.tensor(name)
        parts[3].write_bytes(parts[3].read_bytes() + b"\0")
        with pytest.raises(ModelError, match="was changed"):
            file.tensor(name)
