"""Packed models on disk: a second load reads no weight and computes the same; damage and limits cost a rebuild."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_zoo import VARIANTS, torch_model, write_gguf
from numpy.typing import NDArray
from typer.testing import CliRunner

import npumatmul as npu
from npumatmul import llm
from npumatmul.cli.app import app
from npumatmul.device.current import current_device
from npumatmul.errors import ModelError
from npumatmul.files.locking import locked
from npumatmul.files.reading import RegularFile
from npumatmul.files.sizes import parsed_size
from npumatmul.host.checksums import text_checksum
from npumatmul.llm import npu_layers, npu_pack, packed_cache
from npumatmul.llm.files import digests
from npumatmul.llm.files.gguf_source import GGUFWeights
from npumatmul.llm.packed_cache import PackedCache, key_of, set_limit
from npumatmul.llm.packing import Packing, packing
from npumatmul.llm.quantize import LayerRecipe, quantize_layer
from npumatmul.ops.packed.files.reader import TensorFile, TensorWriter
from npumatmul.running.autotune import tuning_cache

DEVICE = "sim:rk3588"
RNG = np.random.default_rng(5)
WEIGHTS = {f"layers.{i}.up": RNG.standard_normal((64, 96)).astype(np.float32) for i in range(3)}
X = RNG.standard_normal((2, 96)).astype(np.float32)
HOW = {"scheme": "w8a8"}


class Source:
    """What `packing` asks of a model."""

    name, path = "tiny", Path("tiny.gguf")

    def __init__(self, content: str = "a") -> None:
        self._content = content

    def digest(self) -> str:
        return self._content


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackedCache:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return PackedCache()


def load(
    cache: PackedCache | None, content: str = "a", how: dict[str, Any] = HOW, build: Any = None
) -> tuple[list[NDArray[np.float32]], int]:
    """Results of all layers, and how many of them were built."""
    built: list[str] = []
    make = npu_pack("w8a8", DEVICE) if build is None else build

    def counted(weight: NDArray[np.float32], name: str) -> Any:
        built.append(name)
        return make(weight, name)

    def product(pack: Packing, name: str) -> Any:
        found = pack.ready(name)
        return pack(WEIGHTS[name], name) if found is None else found

    with packing(Source(content), how, counted, device=DEVICE, cache=cache) as pack:  # type: ignore[arg-type]
        products = [product(pack, name) for name in WEIGHTS]
    return [each(X) for each in products], len(built)


def same(first: list[NDArray[np.float32]], second: list[NDArray[np.float32]]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def quantized(weight: NDArray[np.float32], name: str) -> Any:
    layer = quantize_layer(weight, LayerRecipe("w4a8_g32", symmetric=False, transform="hadamard"))
    layer = type(layer)(
        layer.recipe, layer.weight, np.full((64, 3), 0.5, np.float32), np.arange(64, dtype=np.float32), centre=X[0]
    )
    return npu_layers(DEVICE)(layer, name)


@pytest.mark.parametrize("build", [None, quantized], ids=["packed", "with offset, bias and centre"])
def test_a_second_load_reads_no_weight_and_computes_the_same(cache: PackedCache, build: Any) -> None:
    without, _ = load(None, build=build)
    first, built = load(cache, build=build)
    second, built_again = load(cache, build=build)
    assert (built, built_again) == (3, 0)
    assert same(first, without)
    assert same(second, without)
    (entry,) = cache.entries()
    assert entry.nbytes == entry.path.stat().st_size == cache.nbytes()
    assert entry.label()["scheme"] == "w8a8"
    assert entry.label()["model"] == "tiny"
    assert all(key in entry.label() for key in ("path", "soc", "runtime"))


def test_what_packs_is_of_no_use_after_its_block_and_does_no_harm(cache: PackedCache) -> None:
    load(cache)
    with packing(Source(), HOW, npu_pack("w8a8", DEVICE), device=DEVICE, cache=cache) as pack:  # type: ignore[arg-type]
        pass
    (name, weight), *_ = WEIGHTS.items()
    assert pack.ready(name) is None
    assert pack(weight, name).shape == (96, 64)
    assert load(cache)[1] == 0


@pytest.mark.parametrize("scheme", ["w8a8", "w16a16"])
def test_biases_are_added_alike_in_both_loads(
    scheme: str, cache: PackedCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("npumatmul.llm.loader.PackedCache", lambda: cache)
    variant = next(each for each in VARIANTS if each.gguf == "qwen2")  # its q, k and v have biases
    path = write_gguf(tmp_path / "m.gguf", variant, torch_model(variant))

    def logits() -> NDArray[np.float32]:
        with llm.load(path, scheme, device=DEVICE) as model:
            return model.logits([1, 104, 105])

    first = logits()
    np.testing.assert_array_equal(logits(), first)
    assert len(cache.entries()) == 1


def test_one_layer_at_a_time_is_floats(tiny: Any, cache: PackedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, Any]] = []
    take = GGUFWeights.__getitem__

    def noted(weights: GGUFWeights, name: str) -> NDArray[np.float32]:
        alive = {each.rpartition(".")[0] for each, array in read if array() is not None}
        assert {stem.rpartition(".")[0] for stem in alive} <= {name.rpartition(".")[0].rpartition(".")[0]}, (
            name,
            alive,
        )
        values = take(weights, name)
        if values.ndim == 2:  # norms stay
            read.append((name, weakref.ref(values)))
        return values

    monkeypatch.setattr(GGUFWeights, "__getitem__", noted)
    monkeypatch.setattr("npumatmul.llm.loader.PackedCache", lambda: cache)
    with llm.load(tiny.path, device=DEVICE) as model:
        expected = model.logits([1, 104, 105])
    assert len(read) == 15
    read.clear()
    with llm.load(tiny.path, device=DEVICE) as model:
        np.testing.assert_array_equal(model.logits([1, 104, 105]), expected)
    assert read == []
    with llm.load(tiny.path, device=DEVICE, cache=False) as model:
        np.testing.assert_array_equal(model.logits([1, 104, 105]), expected)
    assert len(read) == 15
    assert [each.label()["scheme"] for each in cache.entries()] == ["w8a8"]


def test_an_entry_is_for_one_content_scheme_chip_version_and_tuning(
    cache: PackedCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = current_device(DEVICE)
    keys = {key_of("a", HOW, device), key_of("b", HOW, device), key_of("a", {"scheme": "w8a8", "seed": 1}, device)}
    keys.add(key_of("a", HOW, current_device("sim:rk3576")))
    assert len(keys) == 4
    assert key_of("a", dict(reversed([*HOW.items()])), device) in keys
    with npu.config(tuned=True):
        path = tuning_cache(device).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
        keys.add(key_of("a", HOW, device))
    with npu.config(cores=(0, 1)):
        keys.add(key_of("a", HOW, device))
    with npu.config(cores=(1, 2)):
        assert key_of("a", HOW, device) in keys
    with npu.config(cores=(0, 1, 2)):
        assert key_of("a", HOW, device) in keys
    monkeypatch.setattr(npu, "__version__", "99")
    keys.add(key_of("a", HOW, device))
    assert len(keys) == 7


def test_whatever_is_damaged_is_made_anew(cache: PackedCache, caplog: pytest.LogCaptureFixture) -> None:
    expected, _ = load(cache)
    (entry,) = cache.entries()
    whole = entry.path.read_bytes()
    file = TensorFile(entry.path)
    first_tile, last_tile = (file.place(f"layers.{i}.up/tile.0") for i in (0, 2))
    rng = random.Random(1)
    at = [8, 20, first_tile[0], last_tile[0] + 5, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(6))]
    header = int.from_bytes(whole[:8], "little")
    blank = len(whole[8 : 8 + header].rstrip()) + 8
    for place in at:
        data = bytearray(whole)
        data[place] ^= 0x41
        entry.path.write_bytes(data)
        caplog.clear()
        found, built = load(cache)
        assert same(found, expected)
        if place < blank or place >= 8 + header:
            padding = not built
            assert padding == (entry.path.read_bytes() == bytes(data)), place
            assert built or not caplog.records
            if built:
                assert [r.levelname for r in caplog.records] == ["WARNING"]
                assert "made anew" in caplog.text
                assert str(entry.path) in caplog.text
        assert load(cache)[1] == 0
    entry.path.write_bytes(whole)
    data = bytearray(whole)
    data[last_tile[0]] ^= 1
    entry.path.write_bytes(data)
    assert load(cache)[1] == 1  # layers that are whole are taken from the device
    assert len(cache.entries()) == 1


@pytest.mark.parametrize("size", [0, 5, 1000, -1])
def test_an_entry_that_was_cut_off_is_made_anew(cache: PackedCache, size: int) -> None:
    expected, _ = load(cache)
    (entry,) = cache.entries()
    whole = entry.path.read_bytes()
    entry.path.write_bytes(whole[:size])
    found, built = load(cache)
    assert built == 3
    assert same(found, expected)
    assert entry.path.read_bytes() == whole


def test_what_is_no_file_in_the_place_of_an_entry_is_made_anew(cache: PackedCache) -> None:
    expected, _ = load(cache)
    (entry,) = cache.entries()
    entry.path.unlink()
    os.mkfifo(entry.path)
    found, built = load(cache)
    assert built == 3
    assert same(found, expected)
    assert load(cache)[1] == 0


def test_an_entry_by_the_name_of_another_is_made_anew(cache: PackedCache, caplog: pytest.LogCaptureFixture) -> None:
    """Layers of other models have the same names and shapes."""
    expected, _ = load(cache)
    (own,), before = cache.entries(), dict(WEIGHTS)
    WEIGHTS.update({name: weight + weight for name, weight in WEIGHTS.items()})
    try:
        load(cache, "b")
        (other,) = (each for each in cache.entries() if each.key != own.key)
    finally:
        WEIGHTS.update(before)
    own.path.write_bytes(other.path.read_bytes())
    found, built = load(cache)
    assert built == 3
    assert same(found, expected)
    assert f"is the entry '{other.key}' by another name" in caplog.text
    assert load(cache)[1] == 0


def test_a_label_of_nothing_but_brackets_is_that_of_a_damaged_entry(cache: PackedCache) -> None:
    load(cache)
    (entry,) = cache.entries()
    with TensorWriter(entry.path) as writer:
        writer.add("some", np.zeros(3, np.int32))
        writer.finish({packed_cache.LABEL: "[" * 100_000})
    assert cache.entries()[0].label() == {}
    assert load(cache)[1] == 3


def test_an_entry_of_another_version_is_told_in_a_sentence(
    cache: PackedCache, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = load(cache)
    (entry,) = cache.entries()
    file = TensorFile(entry.path)
    metadata, label = dict(file.metadata), json.dumps({"extras": {}})
    arrays = {name: file[name] for name in file.names}
    file.close()
    with TensorWriter(entry.path) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        metadata |= {packed_cache.LABEL: label, f"{packed_cache.LABEL}.checksum": text_checksum(label)}
        writer.finish(metadata)
    found, built = load(cache)
    assert built == 3
    assert same(found, expected)
    assert "says nothing of 'key', as files of another version do not" in caplog.text


def test_an_entry_without_a_layer_is_made_anew(cache: PackedCache) -> None:
    load(cache)
    WEIGHTS["other"] = WEIGHTS["layers.0.up"]
    try:
        assert load(cache)[1] == 1
        assert load(cache)[1] == 0
    finally:
        del WEIGHTS["other"]


def test_a_load_that_fails_leaves_nothing(cache: PackedCache) -> None:
    def build(weight: NDArray[np.float32], name: str) -> Any:
        if name == "layers.2.up":
            raise ModelError("mine")
        return npu_pack("w8a8", DEVICE)(weight, name)

    with pytest.raises(ModelError, match="mine"):
        load(cache, build=build)
    assert cache.entries() == []
    assert all(each.name.endswith(".lock") for each in cache.folder.iterdir())


def test_a_folder_that_cannot_be_written_costs_a_line_of_the_log(
    cache: PackedCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.folder.parent.mkdir(parents=True)
    cache.folder.write_text("a file")
    expected, _ = load(None)
    found, built = load(cache)
    assert built == 3
    assert same(found, expected)
    assert "not kept" in caplog.text


def test_a_user_without_a_home_loads_models(
    cache: PackedCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", home)
    assert load(PackedCache())[1] == 3
    assert "set XDG_CACHE_HOME" in caplog.text
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert load(PackedCache(tmp_path / "own"))[1] == 3
    assert load(PackedCache(tmp_path / "own"))[1] == 0
    (tmp_path / "f").write_bytes(b"abc")
    monkeypatch.setattr(digests, "_SETTLED", -1e9)
    with RegularFile(tmp_path / "f") as file:
        assert len(digests.digest_of([file])) == 64


def test_a_disk_that_is_full_costs_a_line_of_the_log(
    cache: PackedCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("npumatmul.ops.packed.files.reader.TensorWriter.add", full)
    assert load(cache)[1] == 3
    assert "No space left" in caplog.text
    assert cache.entries() == []


def _hold(path: Path, ready: Any, done: Any) -> None:
    with locked(path):
        ready.set()
        done.wait(60)


def test_one_process_writes_an_entry_and_others_do_without(
    cache: PackedCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.folder.mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    path = cache.path(key_of("a", HOW, current_device(DEVICE)))
    other = context.Process(target=_hold, args=(path, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        assert load(cache)[1] == 3
        assert "another process" in caplog.text
        assert cache.entries() == []
        cache.clear()
        assert len(list(cache.folder.iterdir())) == 1  # the lock that is held
    finally:
        done.set()
        other.join()
    assert load(cache)[1] == 3
    assert load(cache)[1] == 0


def test_what_was_not_used_for_longest_goes_first(cache: PackedCache) -> None:
    for i, content in enumerate("abc"):
        load(cache, content)
        os.utime(cache.entries()[0].path, (5000 - i, 1000 + i))
    size = cache.entries()[0].nbytes
    assert load(cache, "a")[1] == 0  # used now
    assert cache.entries()[0].used > 2000
    set_limit(3 * size)
    load(cache, "d")
    assert load(cache, "a")[1] == 0
    assert load(cache, "c")[1] == 0
    assert load(cache, "d")[1] == 0
    assert len(cache.entries()) == 3
    set_limit(size)
    (newest, *others) = cache.entries()
    assert cache.prune() == others[::-1]
    assert [each.key for each in cache.entries()] == [newest.key]


def test_what_is_larger_than_the_limit_is_not_kept(cache: PackedCache, caplog: pytest.LogCaptureFixture) -> None:
    set_limit(10_000)
    assert load(cache)[1] == 3
    assert "limit of the cache" in caplog.text
    assert cache.entries() == []


def test_the_usual_limit_leaves_half_of_what_is_free(cache: PackedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_cache, "_free", lambda folder: 10**9)
    assert cache.limit() == 5 * 10**8
    monkeypatch.setattr(packed_cache, "_free", lambda folder: 10**12)
    assert cache.limit() == 20 * 10**9
    set_limit(0)
    assert cache.limit() == 0
    set_limit(None)
    assert cache.limit() == 20 * 10**9
    with pytest.raises(ValueError, match="-1"):
        set_limit(-1)


@pytest.mark.parametrize("content", ["", "[]", '{"limit": "all"}', '{"limit": -1}', '{"limit": true}'])
def test_a_limit_that_cannot_be_read_is_ignored_with_a_warning(
    cache: PackedCache, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    set_limit(1)
    packed_cache._limit_path().write_text(content)
    assert cache.limit() > 1
    assert "is ignored" in caplog.text


def command(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["cache", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_the_command_lists_removes_clears_and_limits(cache: PackedCache) -> None:
    assert "empty" in command()
    assert command("where").strip() == str(cache.folder)
    for content in "ab":
        load(cache, content)
    newest, oldest = cache.entries()
    listed = command("list")
    assert all(each in listed for each in (newest.key, oldest.key, "tiny", "w8a8", "rk3588"))
    (first, second) = json.loads(command("list", "--json"))["entries"]
    assert (first["key"], first["bytes"], first["model"]) == (newest.key, newest.nbytes, "tiny")
    assert second["key"] == oldest.key
    command("remove", oldest.key[:6])
    assert cache.entries() == [newest]
    assert "nothing" in str(CliRunner().invoke(app, ["cache", "remove", "zz"]).exception)
    load(cache, "a")
    command("--limit", f"{newest.nbytes // 1000 + 1}kB")
    assert len(cache.entries()) == 1
    assert "usual" in command("--limit", "usual")
    assert "free" in command("clear")
    assert cache.entries() == []


@pytest.mark.parametrize(
    ("text", "nbytes"), [("0", 0), ("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2KiB", 2048), ("3tb", 3 * 10**12)]
)
def test_sizes_in_words(text: str, nbytes: int) -> None:
    assert parsed_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "-1", "5 apples", "1e400", "nan", "GB", "1" * 400])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parsed_size(text)
