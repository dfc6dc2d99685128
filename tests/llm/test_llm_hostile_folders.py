"""Folders that somebody made to do harm, or that were damaged: an error that names the file, and bounded memory."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mutated_models import CONFIG, INDEX, VOCAB, mutated, read_all, write_folder
from safetensors.numpy import load_file, save_file

from npumatmul.errors import ModelError
from npumatmul.llm.files.opening import open_source
from npumatmul.ops.packed.files.reader import TensorFile

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    write_folder(tmp_path / "m")
    return tmp_path / "m"


def refused(folder: Path, *said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelError) as caught:
            read_all(folder)
        assert tracemalloc.get_traced_memory()[1] < 120e6
    finally:
        tracemalloc.stop()
    assert str(folder) in str(caught.value)
    assert all(each in str(caught.value) for each in said), caught.value
    assert len(str(caught.value)) < 1000


def tensor_file(entries: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(start: int, stop: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_the_folder_that_is_changed_below_is_read(folder: Path) -> None:
    read_all(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tensor_file({}, length=1 << 62), "damaged or no safetensors file: its header would have"),
        (tensor_file({}, length=99_000_000), "header would have"),
        (tensor_file(b'{"a":' * 100_000), "nested too deeply"),
        (tensor_file(b'{"a":' + b"[" * 100_000), "nested too deeply"),
        (tensor_file(b'{"a": [' + b"[]," * 300_000 + b"[]]}"), "header"),
        (tensor_file({"a": entry(0, 1 << 40, [1 << 38])}), "end at"),
        (tensor_file({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)), "begins at 4"),
        (tensor_file({"a": entry(8, 16, [2])}, bytes(16)), "begins at 8"),
        (tensor_file({"a": entry(0, 8, [2])}, bytes(9)), "it has"),
        (tensor_file(b'{"a": %s, "a": %s}' % ((json.dumps(entry(0, 4, [1])).encode(),) * 2), bytes(4)), "twice"),
        (tensor_file({"a": entry(0, 8, [-2])}, bytes(8)), "has no place"),
        (tensor_file({"a": entry(0, 0, [1 << 62, 1 << 62, 0])}), "no array"),
        (tensor_file({"a": entry(0, 8, [2], "F16")}, bytes(8)), "not those of its shape"),
        (tensor_file({"a": entry(0, 4, [1], "F7")}, bytes(4)), "not known"),
        (tensor_file({"a": entry(0, 8, [True, 2])}, bytes(8)), "has no place"),
        (tensor_file({"a": [1]}), "header cannot be read"),
        (tensor_file([]), "header"),
        (tensor_file(b'{"a": "\xff"}'), "header cannot be read"),
        (tensor_file(b'{"a": ' + b"1" * 5000 + b"}"), "header cannot be read"),
        (b"", "0 bytes"),
        (b"GGUF" + bytes(100), "safetensors"),
        (b"PK\x03\x04" + bytes(100), "safetensors"),
    ],
)
def test_files_of_weights(folder: Path, content: bytes, said: str) -> None:
    (folder / INDEX).unlink()
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, "model.safetensors", said)


@pytest.mark.parametrize("kind", ["F8_E4M3", "F8_E5M2", "I8", "U8", "I64", "F64", "BOOL"])
def test_types_that_are_not_read_are_named(folder: Path, kind: str) -> None:
    (folder / INDEX).unlink()
    width = {"I64": 8, "F64": 8}.get(kind, 1)
    (folder / "model.safetensors").write_bytes(tensor_file({"a.weight": entry(0, width, [1], kind)}, bytes(width)))
    with open_source(folder) as source, pytest.raises(ModelError, match=f"'a.weight' is stored as {kind}"):
        source.weights["a.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(folder: Path, dtype: Any, value: float) -> None:
    from safetensors.torch import save_file as save_tensors

    (folder / INDEX).unlink()
    save_tensors({"a": torch.tensor([1.0, value], dtype=dtype)}, folder / "model.safetensors")
    with open_source(folder) as source, pytest.raises(ModelError, match="'a' holds NaN or infinity"):
        source.weights["a"]


@pytest.mark.parametrize(
    "shard",
    ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "..", "", ".safetensors/..", 3, None,
     "x.bin", "a\0.safetensors", "missing.safetensors"],
)  # fmt: skip
def test_files_that_an_index_may_not_name(folder: Path, shard: Any) -> None:
    shutil.copy(folder / FIRST, folder.parent / "secret.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shard
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, INDEX)


def test_an_index_that_names_files_without_end(folder: Path) -> None:
    names = {f"t{i}": f"{i}.safetensors" for i in range(3000)}
    (folder / INDEX).write_text(json.dumps({"weight_map": names}))
    refused(folder, "3000 files")


def test_an_index_and_its_files_agree(folder: Path) -> None:
    whole = (folder / INDEX).read_text()
    index = json.loads(whole)
    index["weight_map"]["lm_head.weight"] = FIRST
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, "'lm_head.weight' is not in", FIRST)
    (folder / INDEX).write_text(whole)
    second = (folder / SECOND).read_bytes()
    shutil.copy(folder / FIRST, folder / SECOND)
    refused(folder, SECOND)
    (folder / SECOND).write_bytes(second)
    save_file({**load_file(folder / FIRST), "lm_head.weight": np.ones(8, np.float32)}, folder / FIRST)
    refused(folder, "'lm_head.weight' is in", FIRST, SECOND)


@pytest.mark.parametrize("name", ["config.json", SECOND, INDEX, "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "outside", "loop", "dangling", "sparse"])
def test_what_is_no_file_of_the_folder(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    outside = folder.parent / "outside"
    shutil.copy(path, outside)
    path.unlink()
    if kind == "sparse":
        with path.open("wb") as file:
            file.truncate(1 << 25)
    else:
        make: dict[str, Callable[[], Any]] = {
            "fifo": lambda: os.mkfifo(path),
            "device": lambda: path.symlink_to("/dev/zero"),
            "folder": path.mkdir,
            "outside": lambda: path.symlink_to("../outside"),
            "loop": lambda: path.symlink_to(name),
            "dangling": lambda: path.symlink_to("nowhere"),
        }
        make[kind]()
    refused(folder, name)


@pytest.mark.parametrize("name", ["config.json", INDEX, "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"3", b"null", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b'{"a": 1, "a": 2}',
     b'{"a": ' + b"1" * 5000 + b"}", b"[" + b"0," * 9_000_000 + b"0]", b"{}"],
    ids=lambda content: f"{len(content)} bytes {content[:6]!r}",
)  # fmt: skip
def test_settings(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    if content == b"{}" and name not in ("config.json", INDEX):
        return read_all(folder)
    refused(folder, name)


@pytest.mark.parametrize(
    "given",
    [
        3,
        {"a": "b"},
        [1],
        [{"name": "a"}],
        [{"name": 1, "template": "x"}],
        *([{"name": "a", "template": ""}] * n for n in (2, 999)),
    ],
)
def test_templates(folder: Path, given: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": given}))
    refused(folder, "tokenizer_config.json")


def test_a_configuration_that_no_layer_takes_names_the_model(folder: Path) -> None:
    scaling = {**CONFIG["rope_scaling"], "high_freq_factor": 1.0}  # type: ignore[dict-item]
    (folder / "config.json").write_text(json.dumps({**CONFIG, "rope_scaling": scaling}))
    refused(folder, "high_freq_factor")


@pytest.mark.parametrize("number", [VOCAB, 1 << 31])
def test_a_tokenizer_that_adds_tokens_that_there_are_not(folder: Path, number: int) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"]["<s>"]["ids"] = [number]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    refused(folder, "post_processor", str(number))


def test_weights_that_are_pickled_are_not_opened(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    refused(folder, "neither model.safetensors nor")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    refused(folder, "pickled", "pytorch_model.bin", "save_pretrained")
    (folder / "config.json").unlink()
    refused(folder, "no config.json")


def test_files_that_change_while_they_are_read(folder: Path) -> None:
    source = open_source(folder)
    rows = source.weights.rows("model.embed_tokens.weight")
    rows(np.arange(VOCAB))
    path = folder / FIRST
    whole = path.read_bytes()
    status = path.stat()
    with path.open("r+b") as file:  # the same file, in place
        file.seek(sum(TensorFile(path).place("model.embed_tokens.weight")) - 4)
        file.write(b"\0\0\0\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(ModelError, match="changed since it was opened"):
        rows(np.array([VOCAB - 1]))
    with path.open("r+b") as file:
        file.truncate(len(whole) - 64)
    for read in (
        lambda: source.weights["model.embed_tokens.weight"],
        source.digest,
        lambda: rows(np.array([VOCAB - 1])),
    ):
        with pytest.raises(ModelError, match=r"shorter|changed"):
            read()


def test_rows_that_nobody_has_read_are_of_the_file_that_was_opened(folder: Path) -> None:
    with open_source(folder) as source:
        rows = source.weights.rows("model.embed_tokens.weight")
    path = folder / FIRST
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes(len(whole)))  # another file of its name does not matter
    assert rows(np.array([3])).any()
    write_folder(folder)
    with open_source(folder) as source:
        rows = source.weights.rows("model.embed_tokens.weight")
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(ModelError, match="changed while it was read"):
        rows(np.array([3]))


def test_changed_models(tmp_path: Path) -> None:
    tried, messages = 0, []
    for model, _ in mutated(tmp_path, 12, 3):
        tried += 1
        try:
            read_all(model)
        except (ModelError, FileNotFoundError) as error:
            messages.append(str(error))
    assert all(str(tmp_path) in message and len(message) < 2000 for message in messages)
    refusals = len(messages)
    assert tried / 4 < refusals < tried
