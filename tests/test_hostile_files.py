"""Files that somebody made to do harm: our errors or a correct result, in bounded memory, and nothing else."""

from __future__ import annotations

import json
import os
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from mutations import changed_bytes, changed_json
from safetensors.numpy import load, load_file, save, save_file

import npumatmul as npu
from npumatmul.bench import parse_shapes
from npumatmul.chips.probe_file import ProbeResults
from npumatmul.cli.files import read_matrix
from npumatmul.errors import NpuError, PackedFileError
from npumatmul.llm.quantize import LayerRecipe, Recipe
from npumatmul.ops.packed.files.reader import TensorFile, WrongTensorFile
from npumatmul.planning.choices import Machine, Tuned, TuningCache, WeightShape
from npumatmul.quant import round_weight
from npumatmul.quant.hadamard import Hadamard
from npumatmul.quant.params import QuantizedWeight
from npumatmul.quant.transforms import Chain, ChannelScale, Permutation, transform_from


@contextmanager
def bounded(most: float) -> Iterator[None]:
    """Refuse code that takes more bytes of memory."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()


def names(error: Exception, *texts: Any) -> None:
    """It says what it is about, and not at length."""
    assert any(str(text) in str(error) for text in texts), error
    assert len(str(error)) < 1500


# --- packed weights


def packed_kinds() -> dict[str, Callable[[npu.Device], npu.PackedWeight]]:
    rng = np.random.default_rng(0)
    w = rng.standard_normal((96, 64)).astype(np.float32)
    rounded = round_weight(Hadamard(96, seed=3).weight(w.T))
    turned = QuantizedWeight(rounded.codes, rounded.params, Hadamard(96, seed=3))
    return {
        "hadamard": lambda device: npu.pack(turned, device=device),
        "w8a8": lambda device: npu.pack(w, "w8a8", device=device),
        "w4a8_g32_agroup": lambda device: npu.pack(w, "w4a8_g32_agroup", device=device),
        "w16a16": lambda device: npu.pack(w, "w16a16", device=device),
        "uint8": lambda device: npu.pack((w * 9 + 100).astype(np.uint8), device=device),
    }


@pytest.mark.parametrize("kind", packed_kinds())
def test_descriptions_of_packed_weights(tmp_path: Path, kind: str) -> None:
    path, changed = tmp_path / "w", tmp_path / "changed"
    with npu.Device("sim:rk3588") as device:
        packed_kinds()[kind](device).save(path)
        with safetensors.safe_open(path, "np") as file:
            metadata = dict(file.metadata())
        tensors = load_file(path)
        x = np.ones((3, 96), np.uint8 if kind == "uint8" else np.float32)
        before = device.memory_stats().weights_used
        with bounded(100e6):
            for content in changed_json(json.loads(metadata["description"]), 120):
                text = json.dumps(content)
                meta = {**metadata, "description": text, "checksum": str(zlib.crc32(text.encode()))}
                save_file(tensors, changed, meta)
                try:
                    with npu.open_packed(changed, device=device) as file:
                        for name in file:
                            with file[name] as weight:
                                if weight.shape == (96, 64):
                                    npu.matmul(x, weight)
                except PackedFileError as error:
                    names(error, changed)
                assert device.memory_stats().weights_used == before, content


def test_bytes_of_packed_weights(tmp_path: Path) -> None:
    path, changed = tmp_path / "w", tmp_path / "changed"
    with npu.Device("sim:rk3588") as device:
        w = npu.pack(np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32), "w8a8", device=device)
        w.save(path)
        expected = w.unpack()
        for data in changed_bytes(path.read_bytes(), 150):
            changed.write_bytes(data)
            try:
                with npu.load_packed(changed, device=device) as weight:
                    np.testing.assert_array_equal(weight.unpack(), expected)
            except (PackedFileError, KeyError) as error:  # KeyError: it has another name
                names(error, changed)


def test_descriptions_of_transforms() -> None:
    scale = ChannelScale(np.ones(6, np.float32))
    chain = Chain([Hadamard(6, seed=1), Permutation(np.arange(6)), scale]).describe()
    huge = {"kind": "hadamard", "features": (1 << 70) - 1, "block": None, "seed": 0}
    deep: dict[str, Any] = Hadamard(4).describe()
    for _ in range(400):
        deep = {"kind": "chain", "transforms": [deep]}
    with bounded(50e6):
        for content in [huge, deep, *changed_json(chain, 300)]:
            try:
                made = transform_from(content)
            except (ValueError, OverflowError, RecursionError):  # which readers of files expect
                continue
            assert made.features == 6 or not np.array_equal(content, chain)


# --- safetensors


def test_headers_as_the_package_reads_them(tmp_path: Path) -> None:
    """What is accepted here the package accepts, too, and it finds the same there."""
    arrays = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b/c": np.zeros((0, 4), np.int8),
        "d": np.ones(5, np.uint8),
    }
    whole = save(arrays, {"some": "text"})
    length = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    path, accepted = tmp_path / "f", 0
    texts = [json.dumps(each).encode() for each in changed_json(header, 300)]
    files = [len(text).to_bytes(8, "little") + text + data for text in texts] + list(changed_bytes(whole, 400))
    for content in files:
        path.write_bytes(content)
        try:
            ours = TensorFile(path)
        except WrongTensorFile:
            continue
        theirs = load(content)
        assert theirs.keys() == ours.names
        for name, array in theirs.items():
            if ours._places[name][2] in ("U8", "I8", "I32", "F16", "F32"):
                np.testing.assert_array_equal(ours[name].view(np.uint8), array.view(np.uint8))
        accepted += 1
    assert accepted > len(files) // 35


def test_headers_are_bounded_by_the_file(tmp_path: Path) -> None:
    for text in (
        b'{"a":' + b"[" * 8_000_000,
        b'{"a":[' + b"[]," * 700_000 + b"[]]}",
        b'{"__metadata__":{}}' + b" " * 9_000_000,
    ):
        (tmp_path / "f").write_bytes(len(text).to_bytes(8, "little") + text)
        with bounded(4 * len(text) + 300e6), pytest.raises(WrongTensorFile):
            TensorFile(tmp_path / "f")


# --- texts: recipes, shapes, matrices


def test_recipes(tmp_path: Path) -> None:
    recipe = Recipe(LayerRecipe("w4a8"), {"head": {"scheme": "w8a8"}, "blk.*": {"transform": "hadamard", "refine": 3}})
    for content in changed_json(recipe.as_dict(), 400):
        try:
            read = Recipe.from_json(json.dumps(content))
        except ValueError as error:
            names(error, "recipe", "scheme")
        else:
            assert Recipe.from_json(read.to_json()) == read
            assert read.for_layer("blk.1.down").refine <= 100
    many = {"layers": {f"blk.{i}": {} for i in range(50_000)}}
    for text in ("[" * 100_000, '{"layers": ' + "[" * 100_000, json.dumps(many), '{"seed": 1' + "0" * 50 + "}", "\x00"):
        (tmp_path / "r").write_text(text)
        with bounded(300e6), pytest.raises(ValueError, match=str(tmp_path / "r")):
            Recipe.read(tmp_path / "r")


def test_shapes(tmp_path: Path) -> None:
    path = tmp_path / "shapes.csv"
    path.write_text("M,K,N\n1,64,32\n4,128,32\n")
    assert parse_shapes(str(path)) == [(1, 64, 32), (4, 128, 32)]
    for content in changed_bytes(path.read_bytes(), 300):
        path.write_bytes(content)
        try:
            shapes = parse_shapes(str(path))
        except ValueError as error:
            names(error, path)
        else:
            assert all(type(extent) is int and extent > 0 for shape in shapes for extent in shape)
    for text in (
        "M,K,N\n" + "1" * 200_000 + ",2,3\n",
        'M,K,N\n"' + "1" * 200_000,
        "M,K,N\n1\n",
        "M,K,N\n" + "1,2,3\n" * 200_000,
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"shapes\.csv"):
            parse_shapes(str(path))


def test_matrices(tmp_path: Path) -> None:
    """An array that would be larger than its file is refused before it is made; archives are, too."""
    path = tmp_path / "m.npy"
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save(path, np.asfortranarray(matrix))
    np.testing.assert_array_equal(read_matrix(path, "weight"), matrix)
    whole = path.read_bytes()
    for content in changed_bytes(whole, 200):
        path.write_bytes(content)
        try:
            assert read_matrix(path, "weight").ndim == 2
        except ValueError as error:
            names(error, path)
    path.write_bytes(whole.replace(b"(3, 4)", b"(9999999999, 9999999999)"[:24].ljust(6)))
    with bounded(10e6), pytest.raises(ValueError, match=r"m\.npy"):
        read_matrix(path, "weight")
    np.savez_compressed(tmp_path / "bomb.npz", weight=np.zeros((20_000, 10_000), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 1e6
    with bounded(30e6), pytest.raises(ValueError, match="would have 200000128 bytes"):
        read_matrix(tmp_path / "bomb.npz", "weight")
    np.save(path, np.array([[object()]]), allow_pickle=True)
    with pytest.raises(ValueError, match="a matrix of real numbers"):
        read_matrix(path, "weight")


# --- what was found and measured


def products_of(device: npu.Device) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 8, (5, 96)).astype(np.int8), rng.integers(-8, 8, (96, 64)).astype(np.int8)
    np.testing.assert_array_equal(npu.matmul(x, w, device=device), x.astype(np.int32) @ w.astype(np.int32))
    half = npu.matmul(x.astype(np.float16), w.astype(np.float16), device=device)
    np.testing.assert_array_equal(half, (x.astype(np.int32) @ w.astype(np.int32)).astype(half.dtype))


def test_probe_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a probe file says, products are right, or an error of ours says why there are none."""
    path = tmp_path / "probe.json"
    monkeypatch.setenv("NPUMATMUL_PROBE_FILE", str(path))
    cells = {
        "core_masks": [1, 2, 4], "row_multiple": 4, "contexts": 100, "iommu_domains": 4, "domain_bytes": 1 << 31,
        "slice_alignment": 64, "dynamic_kn": False, "INT8_INT8_INT32.k_max": 4096, "INT8_INT8_INT32.k_multiple": 32,
        "INT8_INT8_INT32.n_multiple": 32, "INT8_INT8_INT32.n_max": 4096, "INT8_INT8_INT32.k_limit": 8192,
        "INT8_INT8_INT32.b_tile": [32, 32], "INT8_INT8_INT32.a_group": 16, "INT8_INT8_INT32.c_group": 4,
        "INT8_INT8_INT32.group_sizes": [32], "INT8_INT8_INT32.k_segment": 8192, "INT8_INT8_INT32.supported": True,
        "FLOAT16_FLOAT16_FLOAT32.b_tile": [16, 32], "FLOAT16_FLOAT16_FLOAT32.a_group": 8,
        "INT4_INT4_INT16.b_tile": [64, 32],
        "FLOAT16_FLOAT16_FLOAT32.ac_native": True, "INT8_INT8_INT32.m_limit": None, "int4_even_nibble": "low",
    }  # fmt: skip
    content = {
        "format": "npumatmul-probe", "version": 1, "soc": "rk3588", "runtime": "2.3.2", "simulated": True,
        "cells": {name: {"value": value, "source": "Q1"} for name, value in cells.items()},
    }  # fmt: skip
    path.write_text(json.dumps(content))
    with warnings.catch_warnings(), npu.Device("sim:rk3588") as device:
        warnings.simplefilter("error")
        products_of(device)
    refused = 0
    for changed in changed_json(content, 150):
        path.write_text(json.dumps(changed))
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                with npu.Device("sim:rk3588") as device:
                    products_of(device)
        except NpuError:
            refused += 1
        assert all("are ignored" in str(each.message) for each in said)
    assert refused < 40


@pytest.mark.parametrize(
    "cells",
    [
        {"INT8_INT8_INT32.k_max": 16},
        {"INT8_INT8_INT32.n_max": 16},
        {"INT8_INT8_INT32.b_tile": [32, 33]},
        {"INT8_INT8_INT32.b_tile": [1 << 30, 32]},
        {"INT8_INT8_INT32.a_group": 7},
        {"INT8_INT8_INT32.c_group": 1 << 30},
        {"INT8_INT8_INT32.k_multiple": 33},
        {"INT8_INT8_INT32.k_limit": 8},
        {"INT8_INT8_INT32.group_sizes": [33]},
        {"INT8_INT8_INT32.k_segment": 48},
        {"row_multiple": 3},
        {"row_multiple": 1 << 39},
        {"core_masks": [1 << 40]},
        {"slice_alignment": 3},
        {"iommu_domains": 1 << 30},
        {"FLOAT16_FLOAT16_FLOAT32.b_tile": [24, 32]},
    ],
)
def test_cells_that_contradict_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cells: dict[str, Any]
) -> None:
    results = {name: {"value": value, "source": "Q1"} for name, value in cells.items()}
    content = {
        "format": "npumatmul-probe",
        "version": 1,
        "soc": "rk3588",
        "runtime": "2.3.2",
        "simulated": True,
        "cells": results,
    }
    path = tmp_path / "probe.json"
    path.write_text(json.dumps(content))
    ProbeResults.from_json(path.read_text())  # each is one that a cell can have
    monkeypatch.setenv("NPUMATMUL_PROBE_FILE", str(path))
    with pytest.warns(UserWarning, match="are ignored: .*contradict"), npu.Device("sim:rk3588") as device:
        products_of(device)


def test_tuning_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    int8 = npu.MatmulType.INT8_INT8_INT32
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 8, (5, 96)).astype(np.int8), rng.integers(-8, 8, (96, 64)).astype(np.int8)
    with npu.Device("sim:rk3588") as device:
        from npumatmul.running.autotune import tuning_cache

        cache = tuning_cache(device)
        cache.record(WeightShape(96, 64, int8), Tuned(1, 1, True, (1, 4, 8), ((1, 1), (8, 2)), ((1, 0.5),), (8,)))
    whole = cache.path.read_bytes()
    contents = [json.dumps(each).encode() for each in changed_json(json.loads(whole), 90)]
    for content in [*contents, *changed_bytes(whole, 50)]:
        cache.path.write_bytes(content)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with npu.Device("sim:rk3588") as device, npu.config(tuned=True):
                np.testing.assert_array_equal(npu.matmul(x, w, device=device), x.astype(np.int32) @ w.astype(np.int32))
        assert all("ignored" in str(each.message) for each in said)
    os.truncate(cache.path, 0)
    assert TuningCache(Machine("rk3588", True, "2.3.2", "0.9.8"), tmp_path).find(WeightShape(96, 64, int8)) is None
