"""Reading GGUF files: values as the gguf package wrote them, and clear errors for every kind of damage."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st

from npumatmul.errors import ModelError
from npumatmul.llm import DecoderConfig, GGUFFile, load_model, numpy_pack
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.models import registry
from npumatmul.llm.models.decoder_config import LayerConfig, Rotation

QUANTIZABLE = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1]


@pytest.mark.parametrize("kind", QUANTIZABLE, ids=lambda kind: kind.name)
@pytest.mark.parametrize("shape", [(64,), (1, 32), (48, 64), (37, 96), (3, 5, 32)])
def test_tensor_equals_gguf_package(make_gguf: Callable[..., Path], kind: Kind, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    stored = gguf.quants.quantize(values, kind)
    path = make_gguf(lambda w: w.add_tensor("x", stored, raw_dtype=kind))
    with GGUFFile(path) as file:
        got = file.tensor("x", shape)
    expected = gguf.quants.dequantize(stored, kind).reshape(shape)
    np.testing.assert_array_equal(got, expected)
    assert got.dtype == np.float32
    assert got.flags.writeable


@pytest.mark.parametrize("kind", [Kind.Q4_K, Kind.Q6_K, Kind.IQ4_NL], ids=lambda kind: kind.name)
def test_types_that_only_llama_cpp_writes(make_gguf: Callable[..., Path], kind: Kind) -> None:
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 128, (20, 2 * 256 // block * nbytes), dtype=np.uint8) & 0x3B  # no exponent of inf or NaN
    path = make_gguf(lambda w: w.add_tensor("x", stored, raw_dtype=kind))
    got = GGUFFile(path).tensor("x", (20, 512))
    np.testing.assert_array_equal(got, gguf.quants.dequantize(stored, kind))


@pytest.mark.parametrize("kind", QUANTIZABLE, ids=lambda kind: kind.name)
def test_rows_equal_the_rows_of_the_whole(make_gguf: Callable[..., Path], kind: Kind) -> None:
    values = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    stored = gguf.quants.quantize(values, kind)
    file = GGUFFile(make_gguf(lambda w: w.add_tensor("x", stored, raw_dtype=kind)))
    rows = file.rows("x")
    file.close()  # a reader keeps its own hold on the file
    ids = np.array([39, 0, 7, 7], np.int64)
    np.testing.assert_array_equal(rows(ids), gguf.quants.dequantize(stored, kind)[ids])


def test_metadata_as_python_values(make_gguf: Callable[..., Path]) -> None:
    def fill(w: gguf.GGUFWriter) -> None:
        w.add_uint8("u8", 255)
        w.add_int16("i16", -300)
        w.add_uint64("u64", 2**64 - 1)
        w.add_float32("f32", 0.5)
        w.add_float64("f64", 1e300)
        w.add_bool("bool", True)
        w.add_string("string", "Grüße 🙂")
        w.add_array("strings", ["a", "", "汉"])
        w.add_array("numbers", [1, 2, 3])

    assert GGUFFile(make_gguf(fill)).metadata == {
        "general.architecture": "llama",
        "u8": 255,
        "i16": -300,
        "u64": 2**64 - 1,
        "f32": 0.5,
        "f64": 1e300,
        "bool": True,
        "string": "Grüße 🙂",
        "strings": ["a", "", "汉"],
        "numbers": [1, 2, 3],
    }


def test_whole_header_equals_gguf_reader(demo_path: Path) -> None:
    """The demo model as the gguf package's own reader sees it."""
    reader = gguf.GGUFReader(demo_path)
    with GGUFFile(demo_path) as file:
        expected = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
        assert file.metadata == expected
        assert [
            (t.name, tuple(reversed(t.shape.tolist())), t.tensor_type, t.data_offset, t.n_bytes) for t in reader.tensors
        ] == [(t.name, t.shape, t.kind, t.offset, t.nbytes) for t in file.tensors.values()]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no model file .*nowhere\.gguf"):
        GGUFFile(tmp_path / "nowhere.gguf")
    with pytest.raises(ModelError, match="it is a folder"):
        GGUFFile(tmp_path)


def test_typed_access(make_gguf: Callable[..., Path]) -> None:
    file = GGUFFile(make_gguf(lambda w: (w.add_uint32("n", 3), w.add_bool("b", True))))
    assert file.require("n", float) == 3.0
    assert file.get("nothing", int) is None
    with pytest.raises(ModelError, match="'nothing' is missing"):
        file.require("nothing", int)
    with pytest.raises(ModelError, match="'n' is a int, a str is needed"):
        file.require("n", str)
    with pytest.raises(ModelError, match="'b' is a bool, a int is needed"):
        file.require("b", int)


def test_tensor_errors(make_gguf: Callable[..., Path]) -> None:
    file = GGUFFile(
        make_gguf(lambda w: (w.add_tensor("x", np.ones((2, 4), np.float32)), w.add_tensor("i", np.ones(4, np.int32))))
    )
    with pytest.raises(ModelError, match="'y' is missing"):
        file.tensor("y")
    with pytest.raises(ModelError, match=r"'x' has shape \(2, 4\), its metadata asks for \(4, 2\)"):
        file.tensor("x", (4, 2))
    with pytest.raises(ModelError, match="'i' is stored as I32, which cannot be dequantized"):
        file.tensor("i")
    file.close()
    with pytest.raises(ValueError, match="has been closed"):
        file.tensor("x")


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def header(tensors: int, values: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, values)


U8, U32, STRING, ARRAY = 0, 4, 8, 9
F32 = 0


def tensor(name: bytes = b"x", dims: tuple[int, ...] = (4,), kind: int = F32, offset: int = 0) -> bytes:
    packed_dims = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + packed_dims + struct.pack("<IQ", kind, offset)


DAMAGED = {
    "empty": (b"", "it is empty"),
    "other file": (b"PK\x03\x04" + bytes(100), "not a GGUF file"),
    "magic only": (b"GGUF", "ends inside the version"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "version 1": (header(0, 0, version=1), "version 1"),
    "version 99": (header(0, 0, version=99), "version 99"),
    "tensor count": (header(2**60, 0), "the tensor count is 1152921504606846976"),
    "value count": (header(0, 2**63), "the metadata count is"),
    "key length": (header(0, 1) + struct.pack("<Q", 2**62) + bytes(40), "ends inside a metadata key"),
    "key not UTF-8": (header(0, 1) + string(b"\xff\xfe") + struct.pack("<IB", U8, 1), "not valid UTF-8"),
    "value type": (header(0, 1) + string(b"k") + struct.pack("<IQ", 77, 0), "unknown value type 77"),
    "array of 2**60 bytes": (
        header(0, 1) + string(b"k") + struct.pack("<IIQ", ARRAY, U8, 2**60) + bytes(64),
        "the length of the array 'k' is 1152921504606846976",
    ),
    "array of strings": (
        header(0, 1) + string(b"k") + struct.pack("<IIQ", ARRAY, STRING, 5) + bytes(39),
        "the length of the array 'k' is 5",
    ),
    "nested arrays": (
        header(0, 1) + string(b"k") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 50 + bytes(64),
        "nested more than",
    ),
    "key twice": (header(0, 2) + 2 * (string(b"k") + struct.pack("<IB", U8, 1)), "'k' is listed twice"),
    "alignment": (
        header(0, 1) + string(b"general.alignment") + struct.pack("<II", U32, 3),
        "general.alignment is 3; it must be a power of two",
    ),
    "dimensions": (header(1, 0) + tensor(dims=(1, 1, 1, 1, 1)) + bytes(64), "has 5 dimensions"),
    "dimension count": (header(1, 0) + string(b"x") + struct.pack("<IQ", 2**31, 1) + bytes(40), "dimensions; 1 to 4"),
    "huge dimensions": (header(1, 0) + tensor(dims=(2**63, 2**63)) + bytes(64), "beyond the end of the file"),
    "tensor type": (header(1, 0) + tensor(kind=250) + bytes(64), "unknown storage type 250"),
    "row size": (header(1, 0) + tensor(dims=(33,), kind=int(Kind.Q8_0)) + bytes(99), "not a multiple of Q8_0's 32"),
    "offset": (header(1, 0) + tensor(offset=7) + bytes(99), "not a multiple of the alignment"),
    "offset beyond": (header(1, 0) + tensor(offset=2**62) + bytes(99), "beyond the end of the file"),
    "tensors on each other": (
        header(2, 0) + tensor(dims=(16,)) + tensor(b"y", dims=(16,), offset=32) + bytes(199),
        "'x' and 'y' overlap",
    ),
    "tensor twice": (header(2, 0) + tensor() + tensor() + bytes(99), "'x' is listed twice"),
}


@pytest.mark.parametrize(("content", "message"), DAMAGED.values(), ids=DAMAGED.keys())
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        GGUFFile(path)
    assert str(path) in str(caught.value)


def load_damaged(folder: Path, content: bytes) -> None:
    """Load a file with this content; only ModelError may come out, and it names the file."""
    path = folder / "damaged.gguf"
    path.unlink(missing_ok=True)  # a new file: the last one may still be mapped
    path.write_bytes(content)
    message = str(path)
    try:
        load_model(path, pack=numpy_pack).tokenizer.encode("the text <think> 123")
    except ModelError as error:
        message = str(error)
    assert str(path) in message


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def test_every_truncation_is_an_error(tiny: Any, folder: Path) -> None:
    content = tiny.path.read_bytes()
    data_start = min(t.offset for t in GGUFFile(tiny.path).tensors.values())
    path = folder / "short.gguf"
    # a prime step meets every kind of field; the last tensor's padding may be cut without harm
    for length in [*range(0, data_start, 13), *range(data_start, len(content) - 32, 4999)]:
        path.unlink(missing_ok=True)
        path.write_bytes(content[:length])
        with pytest.raises(ModelError):
            GGUFFile(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_damage_gives_model_error_or_nothing(tiny: Any, folder: Path, data: st.DataObject) -> None:
    content = bytearray(tiny.path.read_bytes())
    data_start = min(t.offset for t in GGUFFile(tiny.path).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, data_start + 2000))
        new = data.draw(
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([b"\xff" * 8, b"\x00" * 8, struct.pack("<Q", 2**40), struct.pack("<I", 2**31)]),
            )
        )
        content[where : where + len(new)] = new
    load_damaged(folder, bytes(content))


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([b"", b"GGUF", header(1, 1), header(0, 3), header(3, 0)]))
def test_random_bytes_give_model_error(folder: Path, rest: bytes, start: bytes) -> None:
    path = folder / "random.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(start + rest)
    with pytest.raises(ModelError):
        GGUFFile(path)


def config_of(make_gguf: Callable[..., Path], changes: dict[str, Any], arch: str = "llama") -> DecoderConfig:
    values: dict[str, Any] = {
        "block_count": 2,
        "context_length": 512,
        "embedding_length": 32,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": 264,
        **changes,
    }

    def fill(w: gguf.GGUFWriter) -> None:
        for key, value in values.items():
            if isinstance(value, str):
                w.add_string(f"{arch}.{key}", value)
            elif isinstance(value, float):
                w.add_float32(f"{arch}.{key}", value)
            elif isinstance(value, list):
                w.add_array(f"{arch}.{key}", value)
            elif value is not None:
                w.add_uint32(f"{arch}.{key}", value)

    with GGUFSource(make_gguf(fill, arch)) as source:
        return registry.config_of(source)


def test_config_defaults(make_gguf: Callable[..., Path]) -> None:
    config = config_of(make_gguf, {})
    assert (config.n_kv_heads, config.head_dim) == (4, 8)
    assert config.layers == (LayerConfig(Rotation(8, 10000.0, interleaved=True)),) * 2
    assert (config.q_size, config.kv_size) == (32, 32)


def test_config_values(make_gguf: Callable[..., Path]) -> None:
    config = config_of(
        make_gguf,
        {
            "attention.head_count_kv": 2,
            "attention.key_length": 16,
            "attention.value_length": 16,
            "rope.dimension_count": 8,
            "rope.freq_base": 5e5,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 2.0,
        },
    )
    assert (config.n_kv_heads, config.head_dim) == (2, 16)
    scaling = {"rope_type": "linear", "factor": 2.0}
    assert config.layers == (LayerConfig(Rotation(8, 5e5, scaling, interleaved=True)),) * 2
    assert (config.q_size, config.kv_size) == (64, 32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_count": 0}, "is 0; n_layers must be between 1"),
        ({"block_count": None}, r"'llama\.block_count' is missing"),
        ({"block_count": "two"}, "must be an integer"),
        ({"embedding_length": 33}, "33 cannot be divided among 4 heads"),
        ({"attention.head_count": 0}, "it must be between 1"),
        ({"attention.head_count": [4, 2]}, "it must be an integer"),
        ({"attention.head_count_kv": 3}, "n_heads is 4, not a multiple of n_kv_heads, which is 3"),
        ({"attention.value_length": 4}, "must be equal"),
        ({"rope.dimension_count": 7}, "7 values of a head are to be rotated; it must be an even"),
        ({"rope.dimension_count": 10}, "10 values of a head are to be rotated, and it has 8"),
        ({"rope.freq_base": -1.0}, "base of the rotation frequencies is -1.0"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "it must be a finite number"),
        ({"rope.scaling.type": "dynamic"}, "scaled with 'dynamic', which is not known; known: none, linear"),
        ({"expert_count": 8}, "mixture of 8 experts"),
        ({"vocab_size": None}, r"'llama\.vocab_size' is missing"),
        ({"vocab_size": 2**31}, "vocab_size.* is 2147483648"),
    ],
)
def test_config_errors(make_gguf: Callable[..., Path], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        config_of(make_gguf, changes)


def test_other_architectures_are_refused(make_gguf: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"architecture is 'mamba'; supported: .*llama"):
        config_of(make_gguf, {}, arch="mamba")
