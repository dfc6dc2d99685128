"""What a packed weight can do besides multiplying: unpacking, saving, pickling, standing on the left."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import npumatmul as npu
from npumatmul import QuantizedWeight
from npumatmul.device.arenas import ArenaBlock
from npumatmul.errors import ClosedError, PackedFileError
from npumatmul.quant import Hadamard, round_weight

BF16: Any = ml_dtypes.bfloat16
INT4: Any = ml_dtypes.int4
#: Scheme, dtype of the weight, dtype of activations.
CASES = [
    (None, np.float16, np.float16),
    (None, np.float32, np.float32),
    (None, BF16, BF16),
    ("w8a8", np.float32, np.float32),
    ("w4a8", np.float32, np.float32),
    ("w4a8_g32_wasym", np.float32, np.float32),
    ("w8a8_aasym", np.float32, np.float32),
    ("w4a8_g64_aasym_agroup", np.float32, np.float32),
    ("w16a16_high", np.float32, np.float32),
    ("int8", np.int8, np.int8),
    ("int8", np.uint8, np.uint8),
    ("int4", INT4, INT4),
]
SHAPES = [(64, 32), (70, 50), (2500, 40), (40, 4200), (0, 5), (5, 0)]


@pytest.fixture(autouse=True)
def _here(device: npu.Device) -> Iterator[None]:
    with npu.use_device(device):
        yield


def used(device: npu.Device) -> int:
    device.stats()  # which takes back what was dropped
    return device.weights.bytes_used


def known(scheme: str | None) -> bool:
    try:
        npu.pack(np.zeros((1, 1), np.float32 if scheme != "int8" else np.int8), scheme)
    except ValueError:
        return False
    except TypeError:
        return True
    return True


def weight(shape: tuple[int, int], dtype: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype) in (np.dtype(np.float16), np.dtype(np.float32), np.dtype(BF16)):
        return (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, (1, shape[1]))).astype(dtype)
    low, high = {np.dtype(np.int8): (-128, 128), np.dtype(np.uint8): (0, 256)}.get(np.dtype(dtype), (-8, 8))
    return rng.integers(low, high, shape).astype(dtype)


# ---- unpacking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.uint8, INT4])
def test_what_is_stored_as_it_is_comes_back(dtype: Any, shape: tuple[int, int]) -> None:
    w = weight(shape, dtype)
    for packed in (npu.pack(w), npu.pack(w.T, transposed=True)):
        values = packed.unpack()
        assert values.dtype == (np.float32 if dtype is np.float16 else w.dtype)
        np.testing.assert_array_equal(values, w)


@pytest.mark.parametrize("dtype", [np.float32, BF16])
def test_floats_come_back_as_float16_of_their_scaled_values(dtype: Any) -> None:
    w = weight((300, 50), dtype) * np.asarray(10.0, dtype) ** np.arange(-25, 25).astype(dtype)
    values = npu.pack(w).unpack()
    largest = np.abs(w.astype(np.float32)).max(axis=0)
    # a normal float16 is within 2**-11; columns are scaled so that only values 2**-12 of the largest may be subnormal
    np.testing.assert_allclose(values, w.astype(np.float32), rtol=2.0**-11, atol=0.5 * 2.0**-24 * 4 * largest.max())
    assert np.isfinite(values).all()


@given(k=st.integers(1, 80), n=st.integers(1, 70), seed=st.integers(0, 9))
def test_quantized_values_come_back_within_half_a_step(k: int, n: int, seed: int) -> None:
    w = weight((k, n), np.float32, seed)
    values = npu.pack(w, "w8a8").unpack()
    step = np.abs(w).max(axis=0) / 127
    assert (np.abs(values - w) <= step * (0.5 + 1e-5)).all()
    codes = np.divide(values, step, out=np.zeros_like(values), where=step > 0)
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w8a8_aasym", "w8a16"])
@pytest.mark.parametrize(("k", "n"), [(64, 32), (97, 131), (300, 4200), (9000, 70)])
def test_weights_are_rounded_to_the_nearest_code_of_their_columns(
    scheme: str, k: int, n: int, transposed: bool, dtype: Any
) -> None:
    if not known(scheme):
        pytest.skip("not on this chip")
    rng = np.random.default_rng(k)
    w = (rng.standard_normal((k, n)) * 10.0 ** rng.integers(-5, 3, n)).astype(np.float32)
    w[:, 1] = 0
    w[:, 2] = rng.integers(-127, 128, k)  # halves of a step, where the scale is 1
    w[0, 2], w[3:9, 2] = 127, [0.5, 1.5, 2.5, -0.5, -1.5, -2.5]
    if dtype is np.float32:
        w[:, 3] *= 1e-38 / np.abs(w[:, 3]).max()  # scales would have few bits there
        w[:, 4] = np.where(np.arange(k) % 2, 2e-45, -6e-45)  # or none
    w = w.astype(dtype)
    levels = 127 if scheme.startswith("w8") else 7
    exact = w.astype(np.float64)
    peaks = np.abs(exact).max(axis=0)
    scale = np.where(peaks > 0, np.maximum(peaks / levels, 2.0**-126), 1).astype(np.float32)
    codes = np.rint(w.astype(np.float32) / scale)
    with npu.pack(w.T if transposed else w, scheme, transposed=transposed) as packed:
        assert packed.params is not None
        np.testing.assert_array_equal(packed.params.scale, scale)
        assert not packed.params.zero_point.any()
        np.testing.assert_array_equal(packed.unpack(), codes.astype(np.float32) * scale)
        x = rng.standard_normal((3, k)).astype(np.float32)
        error = np.abs(npu.matmul(x, packed) - x.astype(np.float64) @ (codes * scale))
        assert (error <= 0.01 * np.abs(x).sum(axis=1, keepdims=True) * levels * scale).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("granularity", "group"), [("layer", None), ("channel", None), ("group", 32), ("group", 96)])
@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_come_back_exactly(bits: int, granularity: str, group: int | None, symmetric: bool) -> None:
    w = weight((70, 300), np.float32)
    quantized = round_weight(w, granularity=granularity, group_size=group, bits=bits, symmetric=symmetric)
    packed = npu.pack(quantized)
    np.testing.assert_array_equal(packed.unpack(), quantized.dequantize().T)


def test_a_transform_is_undone_unless_its_values_are_asked_for(tmp_path: Path) -> None:
    w = weight((50, 64), np.float32)
    transform = Hadamard(64, seed=3)
    rounded = round_weight(transform.weight(w))
    quantized = QuantizedWeight(rounded.codes, rounded.params, transform)
    packed = npu.pack(quantized)
    packed.save(tmp_path / "w")
    for each in (packed, npu.load_packed(tmp_path / "w"), pickle.loads(pickle.dumps(packed))):
        np.testing.assert_array_equal(each.unpack(transformed=True), quantized.dequantize().T)
        np.testing.assert_array_equal(each.unpack(), quantized.restored().T)
        assert each.params == rounded.params
        assert repr(each.input_transform) == repr(transform)
        a = weight((5, 64), np.float32, 1)
        np.testing.assert_array_equal(a @ each, a @ packed)
    x = weight((50, 3), np.float32, 2)
    expected = quantized.restored().T.astype(np.float64) @ x
    bound = np.abs(quantized.restored().T).astype(np.float64) @ np.abs(x)
    assert (np.abs(packed @ x - expected) <= 2.0**-9 * bound).all()


def test_both_halves_of_a_value_come_back() -> None:
    w = weight((300, 40), np.float32)
    values = npu.pack(w, "w16a16_high").unpack()
    # two float16 hold 22 bits beside the largest of a column; what is tiny beside it loses some of them
    largest = np.abs(w).max(axis=0)
    assert (np.abs(values - w) <= 2.0**-21 * np.abs(w) + 2.0**-36 * largest).all()


def test_a_closed_weight_cannot_be_unpacked_saved_or_pickled(tmp_path: Path) -> None:
    packed = npu.pack(np.ones((32, 32), np.float16))
    packed.close()
    for use in (packed.unpack, lambda: pickle.dumps(packed), lambda: packed.save(tmp_path / "w")):
        with pytest.raises(ClosedError, match="closed"):
            use()
    assert not list(tmp_path.iterdir())


# ---- immutability --------------------------------------------------------------------------------------------------


def test_a_packed_weight_cannot_be_changed() -> None:
    packed = npu.pack(np.ones((32, 32), np.int8))
    for name in ("shape", "scheme", "device", "column_sums", "_stored", "other"):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(packed, name, None)
        with pytest.raises(AttributeError, match="immutable"):
            delattr(packed, name)
    assert packed.column_sums is not None
    with pytest.raises(ValueError, match="read-only"):
        packed.column_sums[0] = 1
    quantized = npu.pack(np.ones((32, 32), np.float32), "w8a8").stored
    assert quantized is not None
    scale = quantized.slices[0].column_scale
    assert scale is not None
    with pytest.raises(ValueError, match="read-only"):
        scale[0] = 1


# ---- on the left ---------------------------------------------------------------------------------------------------


def test_a_packed_weight_can_stand_on_either_side() -> None:
    w, a, x = weight((48, 33), np.int8), weight((5, 48), np.int8, 1), weight((2, 33, 7), np.int8, 2)
    packed = npu.pack(w)
    wide = w.astype(np.int32)
    np.testing.assert_array_equal(a @ packed, a.astype(np.int32) @ wide)
    np.testing.assert_array_equal(packed @ x, wide @ x.astype(np.int32))
    np.testing.assert_array_equal(npu.matmul(packed, x[0]), wide @ x[0].astype(np.int32))
    np.testing.assert_array_equal(packed @ x[0, :, 0], wide @ x[0, :, 0].astype(np.int32))
    np.testing.assert_array_equal(packed @ npu.pack(x[0]), wide @ x[0].astype(np.int32))
    for y in (npu.asarray(a) @ packed, packed @ npu.asarray(x[0]), npu.matmul(npu.asarray(a), packed)):
        assert isinstance(y, npu.NpuArray)
    np.testing.assert_array_equal((packed @ npu.asarray(x[0])).numpy(), wide @ x[0].astype(np.int32))
    with pytest.raises(ValueError, match="K = 33"):
        packed @ w
    floats = npu.pack(weight((16, 24), np.float32), "w8a8")
    y = weight((24, 3), np.float16, 1).astype(np.float16)
    exact = floats.unpack().astype(np.float64) @ y.astype(np.float64)
    # float32 rows are rounded to float16: 2**-11 relative to each product (documented for `matmul`)
    bound = np.abs(floats.unpack()).astype(np.float64) @ np.abs(y).astype(np.float64)
    assert (np.abs((floats @ y) - exact) <= 2.0**-10 * bound).all()


# ---- files and pickles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "dtype", "activation"), CASES)
def test_saved_and_pickled_weights_multiply_alike(
    device: npu.Device, tmp_path: Path, scheme: str | None, dtype: Any, activation: Any
) -> None:
    if not known(scheme):
        pytest.skip(f"no scheme {scheme}")
    weights = {f"w{k}x{n}": npu.pack(weight((k, n), dtype, k), scheme) for k, n in SHAPES}
    npu.save_packed(weights, tmp_path / "all.safetensors")
    pickled = pickle.loads(pickle.dumps(weights))
    with npu.open_packed(tmp_path / "all.safetensors") as file:
        assert list(file) == list(weights)
        for name, packed in weights.items():
            a = weight((9, packed.shape[0]), activation, 3)
            expected = a @ packed
            for again in (file[name], pickled[name]):
                assert repr(again) == repr(packed)
                assert (again.nbytes, again.plan) == (packed.nbytes, packed.plan)
                np.testing.assert_array_equal(a @ again, expected)
                np.testing.assert_array_equal(again.unpack(), packed.unpack())


def test_loading_packs_nothing_and_opening_loads_nothing(
    device: npu.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = npu.pack(np.ones((64, 64), np.float16))
    npu.save_packed({"a": packed, "b": packed}, tmp_path / "w")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr("npumatmul.host.kernels.pack", refuse)
    before = used(device)
    with npu.open_packed(tmp_path / "w") as file:
        assert used(device) == before
        loaded = file["a"]
        assert used(device) == before + loaded.nbytes
        assert loaded.nbytes == 64 * 64 * 2
        with pytest.raises(KeyError, match="it holds a, b"):
            file["c"]
    with pytest.raises(ClosedError):
        file["a"]
    with pytest.raises(KeyError, match="holds 2 weights"):
        npu.load_packed(tmp_path / "w")
    np.testing.assert_array_equal(npu.load_packed(tmp_path / "w", "b").unpack(), 1)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    npu.pack(np.full((3, 3), 5, np.int8)).save(path)
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        npu.pack(np.full((3, 3), 6, np.int8)).save(path)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    assert (npu.load_packed(path).unpack() == 5).all()


def test_what_saving_refuses(tmp_path: Path) -> None:
    packed = npu.pack(np.ones((3, 3), np.int8))
    with pytest.raises(ValueError, match="no weight"):
        npu.save_packed({}, tmp_path / "w")
    for name in ("", "a/b", 3):
        with pytest.raises(ValueError, match="names are texts"):
            npu.save_packed({name: packed}, tmp_path / "w")  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="pack it first"):
        npu.save_packed({"a": np.ones((3, 3))}, tmp_path / "w")  # type: ignore[dict-item]
    with pytest.raises(FileNotFoundError):
        npu.load_packed(tmp_path / "none")
    with pytest.raises(OSError, match="directory"):
        npu.load_packed(tmp_path)


def test_files_need_no_other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    packed = npu.pack(np.eye(3, dtype=np.int8))
    packed.save(tmp_path / "w")
    assert npu.load_packed(tmp_path / "w").unpack().tolist() == np.eye(3).tolist()


def test_pickles_cross_processes() -> None:
    w = weight((70, 40), np.float32)
    packed = npu.pack(w, "w8a8")
    code = (
        "import pickle, sys\n"
        "w = pickle.load(sys.stdin.buffer)\n"
        "sys.stdout.buffer.write(pickle.dumps((w.unpack(), repr(w))))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=pickle.dumps(packed), capture_output=True, check=True)
    values, shown = pickle.loads(done.stdout)
    np.testing.assert_array_equal(values, packed.unpack())
    assert shown == repr(packed)


def test_weights_are_saved_while_others_multiply(tmp_path: Path) -> None:
    packed = npu.pack(weight((256, 256), np.int8))
    a = weight((8, 256), np.int8, 1)
    expected = a @ packed
    wrong: list[object] = []

    def multiply() -> None:
        for _ in range(20):
            if not np.array_equal(npu.matmul(a, packed), expected):
                wrong.append(1)

    threads = [threading.Thread(target=multiply) for _ in range(2)]
    for thread in threads:
        thread.start()
    for index in range(5):
        packed.save(tmp_path / f"w{index}")
    for thread in threads:
        thread.join()
    assert not wrong
    np.testing.assert_array_equal(a @ npu.load_packed(tmp_path / "w4"), expected)


# ---- other chips, other versions, damage ---------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["sim:rk3562", "sim:rk3566", "sim:rk3576"])
@pytest.mark.parametrize(("scheme", "dtype"), [(None, np.float16), ("w8a8", np.float32), (None, INT4)])
def test_other_chips_take_it_only_with_the_same_layout(
    tmp_path: Path, scheme: str | None, dtype: Any, other: str
) -> None:
    """Tiles of rk3576 are those of rk3588 (facts 4.2); int4 products, and other tiles, are not there."""
    w = weight((96, 64), dtype)
    packed = npu.pack(w, scheme)
    packed.save(tmp_path / "w")
    text = pickle.dumps(packed)
    with npu.Device(other) as chip, npu.use_device(chip):
        before = used(chip)
        if other == "sim:rk3576" and dtype is not INT4:
            for loaded in (npu.load_packed(tmp_path / "w"), pickle.loads(text)):
                assert loaded.device is chip
                np.testing.assert_array_equal(loaded.unpack(), packed.unpack())
                a = weight((3, 96), np.float32, 1)
                np.testing.assert_array_equal(a @ loaded, a @ packed)
            return
        for load in (lambda: npu.load_packed(tmp_path / "w"), lambda: pickle.loads(text)):
            with pytest.raises(PackedFileError, match=rf"'rk3588' .*this is {other[4:]}.*pack the weight again"):
                load()
        assert used(chip) == before


def test_the_order_of_int4_is_part_of_the_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """High nibble first under 1.6.0, low nibble first later (facts 4.6)."""
    npu.pack(weight((64, 64), INT4)).save(tmp_path / "w")
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "1.6.0")
    with npu.Device("sim:rk3588") as old, pytest.raises(PackedFileError, match="other order of int4"):
        npu.load_packed(tmp_path / "w", device=old)


def _rewritten(path: Path, change: Any) -> Path:
    """A copy of a file with another description, whose checksum is right."""
    with safetensors.safe_open(path, "np") as file:
        metadata = dict(file.metadata())
    content = json.loads(metadata["description"])
    tensors = load_file(path)
    content = change(content, tensors) or content
    text = content if isinstance(content, str) else json.dumps(content)
    metadata["description"] = text
    metadata["checksum"] = str(zlib.crc32(text.encode()))
    changed = path.with_suffix(".changed")
    save_file(tensors, changed, metadata)
    return changed


def _set(*where: Any) -> Any:
    *keys, last, value = where

    def change(content: Any, _: Any) -> None:
        for key in ("weight", *keys):
            content = content[key]
        content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("stored", "k", 65), "end|K"),
        (_set("stored", "n", 2**40), "'n' is"),
        (_set("stored", "k", True), "'k' is"),
        (_set("stored", "mm_type", "NONE"), "matmul type"),
        (_set("stored", "b_tile", [1, 1]), "tiles of"),
        (_set("stored", "k_spans", [[0, 64, 2**30]]), "damaged|tiles of"),
        (_set("stored", "k_spans", [[0, 32, 32], [40, 24, 32]]), "gap"),
        (_set("stored", "k_spans", []), "ends at 0"),
        (_set("stored", "n_spans", [[0, 64, 65]]), "multiples"),
        (_set("stored", "k_group", 1), "groups"),
        (_set("stored", "row_images", 3), "row_images"),
        (_set("stored", "slices", []), "cover"),
        (_set("stored", "slices", 0, "tiles", 1), "in their order"),
        (_set("stored", "slices", 0, "part", 7), "part"),
        (_set("stored", "slices", 0, "group", [0, 32, 32]), "group"),
        (_set("stored", "slices", 0, "group", [0, 96, 96]), "group"),
        (_set("stored", "slices", 0, "group", 5), "group"),
        (_set("stored", "slices", 0, "column_scale", "nothing"), "without a checksum"),
        (_set("stored", "slices", 0, "column_zero", "column_scale.0"), "damaged"),
        (_set("stored", "tile_checksums", []), "checksums"),
        (_set("stored", "tile_checksums", [0]), "checksum of tile 0"),
        (_set("stored", "array_checksums", {}), "without a checksum"),
        (_set("stored", None), "no tiles"),
        (_set("shape", [64]), "two dimensions"),
        (_set("shape", [64, 32]), "do not fit"),
        (_set("scheme", "w99"), "does not know"),
        (_set("version", 9), "newer"),
        (lambda content, tensors: "[]", "no object"),
        (lambda content, tensors: "[" * 100_000, "not JSON"),
        (lambda content, tensors: {"weight": 5}, "no object"),
        (lambda content, tensors: (tensors.pop("weight/tile.0"), None)[1], "missing"),
        (lambda content, tensors: tensors.update({"weight/tile.0": np.zeros(5, np.uint8)}), "5"),
        (lambda content, tensors: tensors.update({"weight/tile.0": np.zeros(4096, np.float32)}), "float32"),
        (lambda content, tensors: tensors.update({"weight/column_scale.0": np.zeros(3, np.float32)}), "shape"),
    ],
)  # fmt: skip
def test_a_description_that_lies_is_refused(device: npu.Device, tmp_path: Path, change: Any, message: str) -> None:
    npu.pack(weight((64, 64), np.float32), "w8a8").save(tmp_path / "w")
    before = used(device)
    with pytest.raises(PackedFileError, match=message):
        npu.load_packed(_rewritten(tmp_path / "w", change))
    assert used(device) == before


@pytest.mark.parametrize("missing", ["column_zero", "column_sums"])
def test_unsigned_integers_need_their_corrections(device: npu.Device, tmp_path: Path, missing: str) -> None:
    npu.pack(weight((64, 64), np.uint8)).save(tmp_path / "w")
    before = used(device)
    with pytest.raises(PackedFileError, match="corrects unsigned"):
        npu.load_packed(_rewritten(tmp_path / "w", _set("stored", "slices", 0, missing, None)))
    assert used(device) == before


def test_versions_and_formats_are_named(tmp_path: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other")
    with pytest.raises(PackedFileError, match="no packed weights"):
        npu.load_packed(tmp_path / "other")
    npu.pack(np.ones((3, 3), np.int8)).save(tmp_path / "w")
    with safetensors.safe_open(tmp_path / "w", "np") as file:
        metadata = dict(file.metadata())
    save_file(load_file(tmp_path / "w"), tmp_path / "newer", {**metadata, "version": "2"})
    with pytest.raises(PackedFileError, match=r"version '2'.*update npumatmul"):
        npu.load_packed(tmp_path / "newer")
    save_file(load_file(tmp_path / "w"), tmp_path / "altered", {**metadata, "checksum": "0"})
    with pytest.raises(PackedFileError, match="checksum of its description"):
        npu.load_packed(tmp_path / "altered")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, device: npu.Device, data: st.DataObject
) -> None:
    """Any change of a file is an error that says so, or leaves the weight what it was (names of the header's)."""
    path = tmp_path_factory.getbasetemp() / f"damaged-{device.runtime_version}"
    scheme, dtype = data.draw(st.sampled_from([("w8a8", np.float32), ("int8", np.uint8)]))
    packed = npu.pack(weight((40, 33), dtype), scheme)
    packed.save(path)
    whole = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
    at = data.draw(st.integers(0, len(whole) - 1))
    if kind == "change":
        for offset in range(data.draw(st.integers(1, 4))):
            whole[(at + offset) % len(whole)] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del whole[at : at + data.draw(st.integers(1, 64))]
    else:
        whole[at:at] = data.draw(st.binary(min_size=1, max_size=64))
    path.write_bytes(whole)
    before = used(device)
    try:
        loaded = npu.load_packed(path, device=device)
    except PackedFileError:
        assert used(device) == before
    else:
        np.testing.assert_array_equal(loaded.unpack(), packed.unpack())
        np.testing.assert_array_equal(loaded.column_sums, packed.column_sums)
        loaded.close()
    packed.close()


def test_damaged_pickles_are_refused(device: npu.Device) -> None:
    from npumatmul.ops.packed.files.tensors import described, unpickled

    packed = npu.pack(weight((40, 33), np.float32), "w8a8")
    content, arrays = described(packed)
    for broken in ((None, arrays), (content, None), (content, {}), ({**content, "shape": 3}, arrays)):
        with pytest.raises(PackedFileError, match=r"this pickle .*damaged"):
            unpickled(*broken)


def test_memory_is_given_back_where_a_weight_does_not_fit(
    device: npu.Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npu.pack(weight((2500, 64), np.float16)).save(tmp_path / "w")
    before = used(device)
    fill, calls = ArenaBlock.fill, [0]

    def failing(self: ArenaBlock, values: Any) -> None:
        calls[0] += 1
        if calls[0] == 2:
            raise MemoryError
        fill(self, values)

    monkeypatch.setattr(ArenaBlock, "fill", failing)
    with pytest.raises(MemoryError):
        npu.load_packed(tmp_path / "w")
    assert used(device) == before
