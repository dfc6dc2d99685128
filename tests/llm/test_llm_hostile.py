"""Models that somebody made to do harm, or that were damaged: refused, or what they were, and in bounded memory."""

from __future__ import annotations

import json
import logging
import os
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import npumatmul as npu
from npumatmul.errors import ModelError, NpuError, PackedFileError, UnusableFileError
from npumatmul.llm import ChatTemplate, GGUFFile, GGUFTokenizer, load_model, npu_layers, numpy_pack
from npumatmul.llm.quantize import LayerRecipe, Recipe, load_quantized, quantize_model, save_quantized
from npumatmul.llm.run import template_budget

sys.path.insert(0, str(Path(__file__).parents[1]))
from long_tests import amount
from mutations import changed_bytes, changed_json

TOKENS = np.array([1, 104, 105, 33, 7])
RECIPE = Recipe(LayerRecipe("w8a8"), {"blk.0.*": {"scheme": "w4a8_g32", "symmetric": False}, "head": {"centre": False}})


@contextmanager
def bounded(most: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def names(error: Exception, *texts: Any) -> None:
    """It says what it is about, and not at length."""
    assert all(str(text) in str(error) for text in texts), error
    assert len(str(error)) < 2000


@pytest.fixture(scope="module")
def files(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hostile")
    model = quantize_model(tiny.path, RECIPE)
    save_quantized(model, folder / "packed", device="sim:rk3588")
    save_quantized(model, folder / "portable")
    return {"packed": folder / "packed", "portable": folder / "portable", "gguf": tiny.path}


def logits(path: Path) -> NDArray[np.float32]:
    model = load_quantized(path).load().model
    return model.forward(TOKENS, model.new_cache(8), all_logits=True)


# --- every byte counts


@pytest.mark.parametrize("kind", ["packed", "portable"])
def test_a_changed_bit_is_refused_or_changes_nothing(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Every part of the file is tried: header, tensors of layers, and the GGUF part with its metadata and norms."""
    whole, expected = files[kind].read_bytes(), logits(files[kind])
    length = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:length])
    begin, end = (length + offset for offset in header["gguf"]["data_offsets"])
    rng = random.Random(5)
    places = [rng.randrange(length) for _ in range(60)] + [rng.randrange(length, len(whole)) for _ in range(60)]
    places += [rng.randrange(begin, end) for _ in range(60)] + list(range(end - 40, end))
    refused = 0
    for place in places:
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        (tmp_path / "m").write_bytes(changed)
        try:
            np.testing.assert_array_equal(logits(tmp_path / "m"), expected)
        except (ModelError, PackedFileError):
            refused += 1
            continue
        assert not begin <= place < end, "no byte of embedding, norms and tokenizer goes unnoticed"
    assert refused > 160


def test_files_without_checksums_are_read_and_say_so(
    files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("packed", "portable"):
        with safe_open(files[kind], "np") as file:
            metadata = dict(file.metadata())
        header = json.loads(metadata["npumatmul"])
        del header["checksums"]
        metadata["npumatmul"] = json.dumps(header)
        metadata["npumatmul.checksum"] = str(zlib.crc32(metadata["npumatmul"].encode()))
        save_file(load_file(files[kind]), tmp_path / "old", metadata)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            np.testing.assert_array_equal(logits(tmp_path / "old"), logits(files[kind]))
        assert "without a checksum of embedding, norms and tokenizer" in caplog.text


@pytest.mark.parametrize("kind", ["packed", "portable"])
def test_descriptions_of_quantized_models(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    with safe_open(files[kind], "np") as file:
        metadata = dict(file.metadata())
    arrays, path = load_file(files[kind]), tmp_path / "m"
    with npu.Device("sim:rk3588") as device:
        for content in changed_json(json.loads(metadata["npumatmul"]), 60):
            text = json.dumps(content)
            save_file(
                arrays, path, {**metadata, "npumatmul": text, "npumatmul.checksum": str(zlib.crc32(text.encode()))}
            )
            try:
                model = load_quantized(path)
                repr(model)
                loaded = model.load(npu_layers(device)).model
                loaded.forward(TOKENS, loaded.new_cache(8))
            except (ModelError, PackedFileError) as error:
                names(error, path)


# --- behind our back


@pytest.mark.parametrize("kind", ["packed", "portable", "gguf"])
def test_files_that_shrink_or_change_while_they_are_loaded(files: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Whenever it happens, what is used is what was checked, or there is an error; the process lives."""
    whole, path = files[kind].read_bytes(), tmp_path / "m"
    make: Callable[[Any], Any]
    if kind == "gguf":
        make = lambda progress: load_model(path, pack=numpy_pack, progress=progress)  # noqa: E731
    else:
        make = lambda progress: load_quantized(path).load(progress=progress)  # noqa: E731
    path.write_bytes(whole)
    model = make(None).model
    expected = model.forward(TOKENS, model.new_cache(8), all_logits=True)
    for at in (0, 3, 6):
        for harm in ("shrink", "rewrite", "replace"):
            path.unlink()
            path.write_bytes(whole)

            def progress(done: int, total: int, name: str, at: int = at, harm: str = harm) -> None:
                if done == at:
                    if harm == "shrink":
                        os.truncate(path, len(whole) // 3)
                    elif harm == "rewrite":
                        with path.open("r+b") as file:
                            file.write(whole[: len(whole) // 8] + bytes(len(whole) * 7 // 8))
                        os.utime(path, ns=(1, 1))  # a clock too coarse to tell must not be what the test rests on
                    else:
                        path.rename(tmp_path / "old")
                        path.write_bytes(b"GGUF" + bytes(1000))

            try:
                model = make(progress).model
                got = model.forward(TOKENS, model.new_cache(8), all_logits=True)
            except (ModelError, PackedFileError, UnusableFileError):
                assert harm != "replace", "the file that was opened is still there"
                continue
            np.testing.assert_array_equal(got, expected)


# --- headers of GGUF files


def gguf_header(values: list[bytes], tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, len(values)) + b"".join(values)


def named(key: bytes, kind: int, rest: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + rest


HEADERS = {
    "arrays of small numbers": gguf_header(
        [named(b"k%d" % i, 9, struct.pack("<IQ", 0, 1 << 21) + bytes(1 << 21)) for i in range(4)]
    ),
    "arrays of empty texts": gguf_header([named(b"k", 9, struct.pack("<IQ", 8, 1 << 17) + bytes(8 << 17))] * 1),
    "empty arrays": gguf_header(
        [named(b"k", 9, struct.pack("<IQ", 9, 1 << 18) + struct.pack("<IQ", 0, 0) * (1 << 18))]
    ),
    "many values": gguf_header([named(b"%d" % i, 0, b"\1") for i in range(70_000)]),
    "a long text": gguf_header([named(b"k", 8, struct.pack("<Q", 17 << 20) + b"x" * (17 << 20))]),
    "a long key": gguf_header([named(b"k" * 70_000, 0, b"\1")]),
    "many tensors": gguf_header([], 200_000)
    + b"".join(struct.pack("<Q", 6) + b"%06d" % i + struct.pack("<IQIQ", 1, 1, 0, 0) for i in range(200_000)),
    "a wide character": gguf_header(
        [named(b"k", 8, struct.pack("<Q", (15 << 20) + 4) + b"x" * (15 << 20) + "🙂".encode())]
    ),
}


@pytest.mark.parametrize("content", HEADERS.values(), ids=HEADERS.keys())
def test_headers_take_memory_in_proportion(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content + bytes(64))
    with bounded(4 * len(content) + 300e6):
        try:
            GGUFFile(path)
        except ModelError as error:
            names(error, path)


def with_number(data: bytes, key: bytes, value: int) -> bytes:
    at = data.index(key) + len(key) + 4
    return data[:at] + struct.pack("<I", value) + data[at + 4 :]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (b"llama.block_count", 1 << 24),
        (b"llama.block_count", 300_000),
        (b"llama.feed_forward_length", 1 << 24),
        (b"llama.embedding_length", 1 << 24),
        (b"llama.attention.head_count", 1),
        (b"llama.attention.head_count", 1 << 24),
        (b"llama.context_length", (1 << 32) - 1),
    ],
)
def test_counts_are_held_against_the_file(tiny: Any, tmp_path: Path, key: bytes, value: int) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(with_number(tiny.path.read_bytes(), key, value))
    with bounded(50e6), pytest.raises(ModelError, match=str(path)):
        load_model(path, pack=numpy_pack)


def test_bytes_of_gguf_files(tiny: Any, tmp_path: Path) -> None:
    whole, path = tiny.path.read_bytes(), tmp_path / "m.gguf"
    with bounded(300e6):
        for content in changed_bytes(whole[:9000], 120, seed=3):
            path.write_bytes(content + whole[9000:])
            try:
                loaded = load_model(path, pack=numpy_pack)
                loaded.tokenizer.encode("some <text> 123")
                loaded.chat_template.render([{"role": "user", "content": "x"}])
            except (NpuError, ValueError) as error:
                names(error)


# --- tokenizers and templates


def test_vocabularies(make_gguf: Callable[..., Path], tiny: Any) -> None:
    """Tokens, types and merges that do not go together are refused; no text takes longer than its length allows."""
    with GGUFFile(tiny.path) as file:
        given = {key: value for key, value in file.metadata.items() if key.startswith("tokenizer.")}
    rng = random.Random(1)
    for _ in range(25):
        values = dict(given)
        for _ in range(rng.choice((1, 2))):
            key = rng.choice([name for name, value in given.items() if isinstance(value, list)])
            each = list(given[key])
            for _ in range(3):
                at = rng.randrange(len(each))
                each[at] = rng.choice([each[rng.randrange(len(each))], type(each[at])(), each[at] * 2])
            values[key] = each

        def fill(writer: Any, values: dict[str, Any] = values) -> None:
            for name, value in values.items():
                if isinstance(value, list):
                    writer.add_array(name, value)
                elif isinstance(value, bool):
                    writer.add_bool(name, value)
                elif isinstance(value, int):
                    writer.add_uint32(name, value)
                else:
                    writer.add_string(name, value)

        path = make_gguf(fill, "llama")
        try:
            tokenizer = GGUFTokenizer(GGUFFile(path))
            ids = tokenizer.encode("the quick brown fox " * 50, parse_special=True)
            tokenizer.decode(ids)
        except ModelError as error:
            names(error, path)


def test_changed_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever text stands there: a prompt, or an error of ours."""
    monkeypatch.setattr(template_budget, "_STEPS", 20_000)
    source = (
        "{% macro show(value, depth=0) %}{% if value is mapping %}{% for k, v in value | dictsort %}{{ k }}:"
        "{{ show(v, depth + 1) }}{% endfor %}{% else %}{{ '%5s' % value }}{% endif %}{% endmacro %}"
        "{% set ns = namespace(text='', parts=[]) %}{% for m in messages[::-1] if m.role != 'x' %}"
        "{% set ns.text = ns.text ~ m.content.strip() * 3 %}{% set ns.parts = ns.parts + [m] %}{% if loop.index0 > 3 %}"
        "{% break %}{% endif %}{{ m | tojson(indent=2) }}"
        "{{ show(m) }}{% endfor %}{% set b %}{{ ns.text }}{% endset %}{{ b | indent(4) | upper }}{{ 2 ** 5 // 3 % 4 }}"
        "{{ range(5) | map('string') | join('-') }}{{ '{:>9}'.format('x') }}"
    )
    messages = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "x"}]
    assert "HI THERE" in ChatTemplate(source).render(messages)
    rendered = 0
    for content in changed_bytes(source.encode(), 600, seed=9):
        try:
            ChatTemplate(content.decode("utf-8", "replace")).render(messages)
            rendered += 1
        except ValueError as error:  # ModelError is one
            names(error)
    assert rendered > amount(600) // 30
