"""The tile algebra against the documented index formulas, hand-written in numpy, and against recorded bytes."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npumatmul.chips import CHIPS, layout
from npumatmul.chips.types import ElementType
from npumatmul.errors import DeviceError

GOLDEN = Path(__file__).parent / "golden"

# Facts 4.2, written out again: (matrix, element) -> group of A and C, or (n, k) tile of B.
A_GROUP = {
    "rk3562": {"int8": 16, "float16": 8},
    "rk3566": {"int8": 8, "float16": 4},
    "rk3568": {"int8": 8, "float16": 4},
    "rk3576": {"int4": 32, "int8": 16, "float16": 8},
    "rk3588": {"int4": 32, "int8": 16, "float16": 8},
}
B_TILE = {
    "rk3562": {"int8": (16, 32), "float16": (8, 32)},
    "rk3566": {"int8": (16, 32), "float16": (8, 16)},
    "rk3568": {"int8": (16, 32), "float16": (8, 16)},
    "rk3576": {"int4": (64, 32), "int8": (32, 32), "float16": (16, 32)},
    "rk3588": {"int4": (64, 32), "int8": (32, 32), "float16": (16, 32)},
}
C_GROUP = {
    "rk3562": {"int32": 4, "float32": 4},
    "rk3566": {"int32": 4, "float32": 4},
    "rk3568": {"int32": 4, "float32": 4},
    "rk3576": {"int16": 8, "int32": 4, "float32": 4},
    "rk3588": {"int16": 8, "int32": 4, "float32": 4},
}
DTYPES = {
    "int4": np.dtype(ml_dtypes.int4),
    "int8": np.dtype(np.int8),
    "float16": np.dtype(np.float16),
    "int16": np.dtype(np.int16),
    "int32": np.dtype(np.int32),
    "float32": np.dtype(np.float32),
}
A_CASES = [(soc, name) for soc, row in A_GROUP.items() for name in row]
B_CASES = [(soc, name) for soc, row in B_TILE.items() for name in row]
C_CASES = [(soc, name) for soc, row in C_GROUP.items() for name in row]


def to_bytes(elements: np.ndarray) -> np.ndarray:
    """Elements in the order of their offsets -> bytes; int4: even element in the low nibble."""
    if elements.dtype == ml_dtypes.int4:
        nibbles = elements.astype(np.int8).view(np.uint8) & 0x0F
        return nibbles[0::2] | (nibbles[1::2] << 4)
    return elements.view(np.uint8)


def grouped(matrix: np.ndarray, group: int) -> np.ndarray:
    """[cols/g, rows, g] by the formula (c // g * rows + r) * g + c % g, facts 4.3."""
    rows, cols = matrix.shape
    out = np.zeros(-(-cols // group) * rows * group, matrix.dtype)
    r, c = np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")
    out[(c // group * rows + r) * group + c % group] = matrix
    return to_bytes(out)


def tiled_b(b: np.ndarray, tile_n: int, tile_k: int) -> np.ndarray:
    """[N/tn, K/tk, tn, tk] by the formula of facts 4.3 for one segment."""
    k_extent, n_extent = b.shape
    tiles_k = -(-k_extent // tile_k)
    out = np.zeros(-(-n_extent // tile_n) * tiles_k * tile_n * tile_k, b.dtype)
    k, n = np.meshgrid(np.arange(k_extent), np.arange(n_extent), indexing="ij")
    out[((n // tile_n * tiles_k + k // tile_k) * tile_n + n % tile_n) * tile_k + k % tile_k] = b
    return to_bytes(out)


def random_matrix(rng: np.random.Generator, rows: int, cols: int, dtype: np.dtype) -> np.ndarray:
    if dtype == ml_dtypes.int4:
        return rng.integers(-8, 8, (rows, cols)).astype(dtype)
    if dtype.kind == "f":
        return rng.standard_normal((rows, cols)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (rows, cols), dtype, endpoint=True)


def strided(matrix: np.ndarray, how: str) -> np.ndarray:
    """The same values in memory of another kind."""
    if how == "fortran":
        return np.asfortranarray(matrix)
    if how == "reversed":
        return np.ascontiguousarray(matrix[::-1, ::-1])[::-1, ::-1]
    if how == "every_third":
        wide = np.zeros((matrix.shape[0] * 2, matrix.shape[1] * 3), matrix.dtype)
        wide[::2, ::3] = matrix
        return wide[::2, ::3]
    if how == "unaligned":
        raw = np.zeros(matrix.nbytes + 1, np.uint8)[1:]
        view = raw.view(matrix.dtype).reshape(matrix.shape)
        view[...] = matrix
        return view
    if how == "read_only":
        copy = matrix.copy()
        copy.flags.writeable = False
        return copy
    return matrix


extents = st.integers(1, 150)
ways = st.sampled_from(["plain", "fortran", "reversed", "every_third", "unaligned", "read_only"])
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(("soc", "name"), A_CASES)
@given(m=extents, k=extents, how=ways, seed=seeds)
def test_pack_a(soc: str, name: str, m: int, k: int, how: str, seed: int) -> None:
    a = random_matrix(np.random.default_rng(seed), m, k, DTYPES[name])
    packed = layout.pack_a(strided(a, how), soc)
    np.testing.assert_array_equal(packed, grouped(a, A_GROUP[soc][name]))
    np.testing.assert_array_equal(layout.unpack_a(packed, m, k, ElementType.of(a.dtype), soc), a)


@pytest.mark.parametrize(("soc", "name"), B_CASES)
@given(k=extents, n=extents, how=ways, seed=seeds)
def test_pack_b(soc: str, name: str, k: int, n: int, how: str, seed: int) -> None:
    b = random_matrix(np.random.default_rng(seed), k, n, DTYPES[name])
    packed = layout.pack_b(strided(b, how), soc)
    np.testing.assert_array_equal(packed, tiled_b(b, *B_TILE[soc][name]))
    np.testing.assert_array_equal(layout.unpack_b(packed, k, n, ElementType.of(b.dtype), soc), b)


@pytest.mark.parametrize(("soc", "name"), C_CASES)
@given(m=extents, n=extents, how=ways, seed=seeds)
def test_pack_c(soc: str, name: str, m: int, n: int, how: str, seed: int) -> None:
    c = random_matrix(np.random.default_rng(seed), m, n, DTYPES[name])
    packed = layout.pack_c(strided(c, how), soc)
    np.testing.assert_array_equal(packed, grouped(c, C_GROUP[soc][name]))
    np.testing.assert_array_equal(layout.unpack_c(packed, m, n, ElementType.of(c.dtype), soc), c)


@pytest.mark.parametrize(("soc", "name"), B_CASES)
def test_pack_b_exhaustively_over_small_shapes(soc: str, name: str) -> None:
    rng = np.random.default_rng(5)
    tile_n, tile_k = B_TILE[soc][name]
    for k in (1, tile_k - 1, tile_k, tile_k + 1, 3 * tile_k - 1):
        for n in range(1, 2 * tile_n + 2):
            b = random_matrix(rng, k, n, DTYPES[name])
            np.testing.assert_array_equal(layout.pack_b(b, soc), tiled_b(b, tile_n, tile_k))


def test_the_table_says_no_more_and_no_less_than_the_documents() -> None:
    for soc, chip in CHIPS.items():
        assert {e.label: g for e, g in chip.native.a.items()} == A_GROUP[soc]
        assert {e.label: t for e, t in chip.native.b.items()} == B_TILE[soc]
        assert {e.label: g for e, g in chip.native.c.items()} == C_GROUP[soc]


@given(m=extents, k=extents, extra_m=st.integers(0, 9), extra_k=st.integers(0, 3), seed=seeds)
def test_padding_is_zeros(m: int, k: int, extra_m: int, extra_k: int, seed: int) -> None:
    a = random_matrix(np.random.default_rng(seed), m, k, np.dtype(np.int8))
    padded = (m + extra_m, layout.round_up(k, 16) + 16 * extra_k)
    bigger = np.zeros(padded, np.int8)
    bigger[:m, :k] = a
    packed = layout.pack(a, layout.a_native(m, k, ElementType.INT8, "rk3588", padded))
    np.testing.assert_array_equal(packed, grouped(bigger, 16))


@given(k=extents, n=extents, seed=seeds)
def test_normal_layouts_are_row_major(k: int, n: int, seed: int) -> None:
    b = random_matrix(np.random.default_rng(seed), k, n, np.dtype(np.float16))
    rows = layout.pack(b, layout.b_normal(k, n, ElementType.FLOAT16))
    columns = layout.pack(b, layout.b_transposed(k, n, ElementType.FLOAT16))
    np.testing.assert_array_equal(rows, np.ascontiguousarray(b).view(np.uint8).ravel())
    np.testing.assert_array_equal(columns, np.ascontiguousarray(b.T).view(np.uint8).ravel())


def test_int4_low_nibble_first_by_hand() -> None:
    b = np.zeros((32, 64), ml_dtypes.int4)
    b[0, 0], b[1, 0], b[0, 1] = 3, -2, 7
    packed = layout.pack_b(b, "rk3588")
    assert packed[0] == 0xE3  # k = 0 in the low nibble, k = 1 (-2 = 0xE) in the high one
    assert packed[16] == 0x07  # the next n starts 32 elements on
    assert packed.size == 32 * 64 // 2


GOLDEN_TYPES = {"t1": "float16", "t2": "int8", "t10": "int4"}


def _golden_keys() -> list[str]:
    with np.load(GOLDEN / "pack_b_v1.6.0.npz") as recorded:
        return sorted({key.rsplit("_", 1)[0] for key in recorded.files})


@pytest.mark.parametrize("key", _golden_keys())
def test_recorded_bytes_of_packed_b(key: str) -> None:
    soc, matmul_type, k_text, n_text = key.split("_")
    k, n = int(k_text[1:]), int(n_text[1:])
    dtype = DTYPES[GOLDEN_TYPES[matmul_type]]
    with np.load(GOLDEN / "pack_b_v1.6.0.npz") as recorded:
        given_bytes, packed = recorded[f"{key}_normal"].view(np.uint8), recorded[f"{key}_packed"].view(np.uint8)
    if dtype == ml_dtypes.int4:
        # runtime 1.6.0 has the even element in the high nibble; from 2.0.0b0 on it is the low one (facts 4.6)
        given_bytes, packed = (bytes_ >> 4 | bytes_ << 4 for bytes_ in (given_bytes, packed))
        nibbles = np.stack([given_bytes & 0x0F, given_bytes >> 4], axis=-1).ravel()
        b = ((nibbles ^ 8).astype(np.int8) - 8).astype(dtype).reshape(k, n)
    else:
        b = given_bytes.view(dtype).reshape(k, n)
    np.testing.assert_array_equal(layout.pack_b(b, soc), packed)
    np.testing.assert_array_equal(
        layout.unpack_b(packed.copy(), k, n, ElementType.of(dtype), soc).astype(np.float32), b.astype(np.float32)
    )


def test_wrong_input_is_refused() -> None:
    with pytest.raises(DeviceError, match="no source documents"):
        layout.c_native(4, 8, ElementType.FLOAT16, "rk3588")
    with pytest.raises(DeviceError, match="rk9999"):
        layout.pack_b(np.zeros((4, 4), np.int8), "rk9999")
    with pytest.raises(ValueError, match="2 dimensions"):
        layout.pack_b(np.zeros(4, np.int8), "rk3588")
    with pytest.raises(TypeError, match="float64"):
        layout.pack_b(np.zeros((4, 4)), "rk3588")
    b = layout.b_native(32, 32, ElementType.INT8, "rk3588")
    with pytest.raises(ValueError, match="shape"):
        layout.pack(np.zeros((32, 33), np.int8), b)
    with pytest.raises(TypeError, match="int8"):
        layout.pack(np.zeros((32, 32), np.int16), b)
    with pytest.raises(ValueError, match="1024 bytes"):
        layout.unpack(np.zeros(1023, np.uint8), b)


def test_byte_swapped_input_is_read_right() -> None:
    a = np.arange(64, dtype=np.float16).reshape(4, 16)
    np.testing.assert_array_equal(layout.pack_a(a.astype(">f2"), "rk3588"), layout.pack_a(a, "rk3588"))
