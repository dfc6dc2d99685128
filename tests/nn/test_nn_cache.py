"""Caches of keys and values: what is stored is what is seen, however it comes and whatever is given up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npumatmul import nn
from npumatmul.errors import NotFiniteError, UnusableFileError
from npumatmul.host.checksums import text_checksum

STEPS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=12)


def tokens(count: int, seed: int, batch: int = 2, heads: int = 3, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(seed).standard_normal((2, batch, heads, count, dim), np.float32))


def as_kept(rows: np.ndarray, dtype: str) -> np.ndarray:
    """What is left of rows, by the definition of their type."""
    if dtype != "int8":
        return rows.astype(dtype).astype(np.float32)
    scale = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
    scale = np.maximum(scale, np.finfo(np.float32).tiny)
    return np.rint(rows / scale).astype(np.int8) * scale


@given(
    steps=STEPS,
    window=st.none() | st.integers(1, 20),
    chunk=st.integers(1, 16),
    dtype=st.sampled_from(["float16", "float32", "int8"]),
)
def test_every_layer_sees_what_it_was_given(
    steps: list[tuple[int, int]], window: int | None, chunk: int, dtype: str
) -> None:
    cache = nn.KVCache(2, 3, 4, dtype=dtype, window=[None, window], chunk=chunk, batch=2)
    whole: list[Any] = [np.zeros((2, 2, 3, 0, 4), np.float32) for _ in range(2)]
    for i, (count, back) in enumerate(steps):
        before = cache.offset
        for layer in range(2):
            assert cache.offset == before  # of the last layer only
            k, v = tokens(count, 10 * i + layer)
            seen = cache.update(layer, k, v)
            whole[layer] = np.concatenate([whole[layer], as_kept(np.stack([k, v]), dtype)], axis=3)
            first = 0 if layer == 0 or window is None else max(0, before - window + 1)
            for ours, wanted in zip(seen, whole[layer], strict=True):
                assert ours.shape == wanted[:, :, first:].shape
                np.testing.assert_array_equal(np.asarray(ours), wanted[:, :, first:])
        assert cache.offset == before + count
        back = min(back, cache.offset)
        try:
            cache.trim(back)
        except ValueError as error:
            assert window is not None
            assert "keeps the last tokens only" in str(error)  # noqa: PT017
        else:
            whole = [each[:, :, :, : cache.offset] for each in whole]


def test_what_ends_half_way_leaves_the_cache_as_it_was() -> None:
    for window in (None, 5):
        cache = nn.KVCache(2, 3, 4, dtype="float32", window=window, chunk=8, batch=2)
        first, second, third = tokens(6, 1), tokens(30, 2), tokens(2, 3)
        for layer in range(2):
            cache.update(layer, *first)
        cache.update(0, *second)  # and then an interrupt
        for layer in range(2):
            keys, values = cache.update(layer, *third)
            start = 0 if window is None else 2
            np.testing.assert_array_equal(keys, np.concatenate([first[0][:, :, start:], third[0]], axis=2))
            np.testing.assert_array_equal(values, np.concatenate([first[1][:, :, start:], third[1]], axis=2))
        assert cache.offset == 8


def test_memory_grows_in_chunks_and_stays_bounded_with_a_window() -> None:
    cache = nn.KVCache(1, 3, 4, batch=2)
    k, v = tokens(1, 1)
    sizes = set()
    for _ in range(300):
        cache.update(0, k, v)
        sizes.add(cache.nbytes)
    of_a_token = 2 * 2 * 3 * 4 * 2  # k and v, sequences, heads, values, bytes
    assert sizes == {256 * of_a_token, 512 * of_a_token}
    sliding = nn.KVCache(1, 3, 4, batch=2, window=100)
    for _ in range(2000):
        sliding.update(0, k, v)
    assert sliding.nbytes <= 512 * of_a_token


def test_what_does_not_go_is_explained() -> None:
    cache = nn.KVCache(2, 3, 4, batch=2, limit=5)
    k, v = tokens(3, 1)
    cache.update(0, k, v)
    cache.update(1, k, v)
    with pytest.raises(nn.CacheFullError, match="3 more tokens do not fit: there are 3, and may be 5"):
        cache.update(0, k, v)
    assert cache.offset == 3
    with pytest.raises(ValueError, match=r"have to be \(2, 3, 'T', 4\)"):
        cache.update(0, k[:1], v[:1])
    for count in (4, -1):
        with pytest.raises(ValueError, match=f"{count} of 3 tokens"):
            cache.trim(count)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "int4"}, "dtype is 'int4'; it can be 'float16'"),
        ({"window": [3]}, "2 layers, but windows for 1"),
        ({"window": 0}, "window is 0"),
        ({"limit": 0}, "limit is 0"),
        ({"chunk": -1}, "chunk is -1"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            nn.KVCache(2, 3, 4, **options)


class Twin:
    """A cache beside arrays of everything that it was given."""

    def __init__(self, cache: nn.KVCache, whole: list[np.ndarray]) -> None:
        self.cache, self.whole = cache, whole

    def fork(self) -> Twin:
        return Twin(self.cache.fork(), [each.copy() for each in self.whole])

    def add(self, count: int, seed: int) -> None:
        before = self.cache.offset
        for layer, window in enumerate(self.cache.windows):
            k, v = tokens(count, 10 * seed + layer)
            seen = self.cache.update(layer, k, v)
            self.whole[layer] = np.concatenate([self.whole[layer], as_kept(np.stack([k, v]), KEPT(self.cache))], axis=3)
            first = 0 if window is None else max(0, before - window + 1)
            for ours, wanted in zip(seen, self.whole[layer], strict=True):
                np.testing.assert_array_equal(np.asarray(ours), wanted[:, :, first:])

    def trim(self, count: int) -> None:
        count = min(count, self.cache.offset)
        try:
            self.cache.trim(count)
        except ValueError as error:
            assert any(self.cache.windows)
            assert "keeps the last tokens only" in str(error)  # noqa: PT017
        else:
            self.whole = [each[:, :, :, : self.cache.offset] for each in self.whole]


def KEPT(cache: nn.KVCache) -> str:
    return repr(cache).rpartition(" ")[2].rstrip(">")


WORK = st.lists(
    st.tuples(st.sampled_from(["add", "fork", "trim", "file"]), st.integers(0, 3), st.integers(0, 13)), max_size=16
)


@given(
    work=WORK,
    windows=st.sampled_from([(None,), (None, 6), (3,)]),
    dtype=st.sampled_from(["float16", "float32", "int8"]),
    chunk=st.integers(1, 8),
)
def test_caches_that_share_a_beginning_do_not_see_each_other(
    tmp_path_factory: pytest.TempPathFactory,
    work: list[tuple[str, int, int]],
    windows: tuple[int | None, ...],
    dtype: str,
    chunk: int,
) -> None:
    """Any order of adding, forgetting, forking and saving, with a few caches at once."""
    first = nn.KVCache(len(windows), 3, 4, dtype=dtype, window=windows, chunk=chunk, batch=2)
    twins = [Twin(first, [np.zeros((2, 2, 3, 0, 4), np.float32) for _ in windows])]
    for i, (kind, which, count) in enumerate(work):
        twin = twins[which % len(twins)]
        if kind == "add":
            twin.add(count, i)
        elif kind == "trim":
            twin.trim(count)
        elif kind == "fork":
            twins.append(twin.fork())
        else:
            path = tmp_path_factory.mktemp("cache") / "cache.safetensors"
            twin.cache.notes["step"] = str(i)
            twin.cache.save(path)
            twins.append(Twin(nn.KVCache.load(path), list(twin.whole)))
            assert twins[-1].cache.notes == {"step": str(i)}
            assert twins[-1].cache.offset == twin.cache.offset
    for i, twin in enumerate(twins):
        twin.add(1, 100 + i)
        twin.add(2, 200 + i)


def test_memory_of_what_caches_have_in_common_is_shared() -> None:
    cache = nn.KVCache(1, 3, 4, batch=2)
    k, v = tokens(200, 1)
    cache.update(0, k, v)
    whole = cache.nbytes
    others = [cache.fork() for _ in range(3)]
    assert [each.nbytes for each in others] == [0, 0, 0]
    one = tokens(1, 2)
    for other in others:
        keys, _ = other.update(0, *one)
        assert isinstance(keys, nn.CachedRows)
        assert keys.cuts == (200, 201)
        assert other.nbytes == whole  # a chunk of its own
    keys, _ = cache.update(0, *one)  # behind what the others read there is room
    assert isinstance(keys, np.ndarray)
    assert cache.nbytes == whole
    for _ in range(100):
        keys, _ = cache.update(0, *one)
    assert keys.cuts == (200, 301)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_attention_over_shared_rows_and_codes_is_attention_over_their_values(dtype: str) -> None:
    cache = nn.KVCache(1, 3, 4, dtype=dtype, batch=2)
    cache.update(0, *tokens(9, 1))
    other = cache.fork()
    keys, values = other.update(0, *tokens(5, 2))
    q = np.random.default_rng(3).standard_normal((2, 6, 5, 4), np.float32)
    for options in ({}, {"window": 7}, {"softcap": 2.0}):
        y = nn.scaled_dot_product_attention(q, keys, values, mask="causal", **options)
        whole = np.asarray(keys), np.asarray(values)
        np.testing.assert_allclose(y, nn.scaled_dot_product_attention(q, *whole, mask="causal", **options), atol=1e-6)


def test_int8_is_within_its_bound_and_refuses_what_is_not_finite() -> None:
    cache = nn.KVCache(1, 3, 4, dtype="int8", batch=2)
    k, v = tokens(7, 1)
    k[0, 0, 3] = 0
    for ours, wanted in zip(cache.update(0, k, v), (k, v), strict=True):
        error = np.abs(np.asarray(ours) - wanted)
        assert (error <= np.abs(wanted).max(axis=-1, keepdims=True) / 254 * (1 + 1e-5)).all()
    k[1, 2, 0, 0] = np.inf
    with pytest.raises(NotFiniteError, match="inf or nan"):
        cache.update(0, k, v)
    assert cache.offset == 7
    half = nn.KVCache(1, 3, 4, dtype="int8", batch=2)
    half.update(0, v.astype(np.float16), v.astype(np.float16))


def saved(path: Path) -> bytes:
    cache = nn.KVCache(2, 3, 4, dtype="int8", window=[None, 5], batch=2, limit=50)
    for layer in range(2):
        cache.update(layer, *tokens(9, layer))
    cache.save(path)
    return path.read_bytes()


def test_a_loaded_cache_has_the_limit_and_windows_of_the_saved_one(tmp_path: Path) -> None:
    saved(tmp_path / "c")
    cache = nn.KVCache.load(tmp_path / "c")
    assert cache.limit == 50
    assert cache.windows == (None, 5)
    assert cache.offset == 9
    with pytest.raises(nn.CacheFullError):
        cache.update(0, *tokens(42, 1))


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    good = saved(tmp_path / "c")
    rng = np.random.default_rng(1)
    for at in {*range(0, len(good), 37), *rng.integers(0, len(good), 60).tolist()}:
        damaged = bytearray(good)
        damaged[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "c").write_bytes(damaged)
        try:
            cache = nn.KVCache.load(tmp_path / "c")
        except UnusableFileError:
            continue
        # blanks of the header and of what fills gaps between arrays mean nothing
        (tmp_path / "d").unlink(missing_ok=True)
        cache.save(tmp_path / "d")
        assert (tmp_path / "d").read_bytes() == good, at
    for length in (0, 7, 100, len(good) - 1):
        (tmp_path / "c").write_bytes(good[:length])
        with pytest.raises(UnusableFileError):
            nn.KVCache.load(tmp_path / "c")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("layers", 1 << 23), ("layers", 3), ("layers", True), ("kv_heads", -1), ("kv_heads", 1 << 24), ("head_dim", 0),
        ("chunk", 1 << 40), ("chunk", 1 << 24), ("batch", "2"), ("offset", -1), ("offset", 51), ("offset", 10),
        ("window", [5]), ("window", [None, 0]), ("window", 5), ("limit", 0), ("limit", 1.5), ("dtype", "int4"),
        ("dtype", "float16"), ("notes", {"a": 1}), ("notes", []), ("checksums", None), ("checksums", {}),
    ],
)  # fmt: skip
def test_descriptions_that_say_something_else_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    good = saved(tmp_path / "c")
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    content = json.loads(header["__metadata__"]["description"])
    content[name] = value
    text = json.dumps(content)
    header["__metadata__"] |= {"description": text, "checksum": text_checksum(text)}
    new = json.dumps(header).encode()
    (tmp_path / "c").write_bytes(len(new).to_bytes(8, "little") + new + good[8 + length :])
    with pytest.raises(UnusableFileError, match="cannot be used"):
        nn.KVCache.load(tmp_path / "c")


@pytest.mark.parametrize("what", ["version", "text", "type"])
def test_files_of_other_versions_texts_and_types_are_refused(tmp_path: Path, what: str) -> None:
    good = saved(tmp_path / "c")
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    if what == "version":
        header["__metadata__"]["version"] = "4"
    elif what == "text":
        header["__metadata__"] |= {"description": "[", "checksum": text_checksum("[")}
    else:
        header["layers.0.keys.codes"]["dtype"] = "BOOL"
    new = json.dumps(header).encode()
    (tmp_path / "c").write_bytes(len(new).to_bytes(8, "little") + new + good[8 + length :])
    with pytest.raises(
        UnusableFileError, match={"version": "version is '4'", "text": "JSON", "type": "not of type"}[what]
    ):
        nn.KVCache.load(tmp_path / "c")


def test_other_files_are_refused(tmp_path: Path) -> None:
    import npumatmul as npu

    npu.save_packed(npu.pack(np.eye(32, dtype=np.float32)), tmp_path / "w")
    with pytest.raises(UnusableFileError, match="no file of KVCache"):
        nn.KVCache.load(tmp_path / "w")
    with pytest.raises(FileNotFoundError):
        nn.KVCache.load(tmp_path / "none")


def test_numbers_beyond_float16_are_refused_and_infinities_kept() -> None:
    cache = nn.KVCache(1, 3, 4, batch=2)
    k, v = tokens(2, 1)
    k[0, 0, 0, 0] = 65519  # rounds to 65504
    k[0, 0, 0, 1] = -np.inf
    keys, _ = cache.update(0, k, v)
    assert keys[0, 0, 0].tolist()[:2] == [65504, -np.inf]
    for dtype in (np.float32, ml_dtypes.bfloat16):
        k[0, 0, 0, 0] = -65536
        with pytest.raises(OverflowError, match="is beyond float16's range; make the cache with dtype='float32'"):
            cache.update(0, k.astype(dtype), v.astype(dtype))
    assert cache.offset == 2
    nn.KVCache(1, 3, 4, batch=2, dtype="float32").update(0, k, v)
    with pytest.raises(ValueError, match="there is no layer 1; layers are 0 to 0"):
        cache.update(1, k, v)
    with pytest.raises(ValueError, match="there is no layer -1"):
        cache.update(-1, k, v)


class Remembering(nn.KVCache):
    """A cache of another class, with arguments and a list of its own."""

    def __init__(self, tokens: list[int]) -> None:
        super().__init__(1, 3, 4, batch=2)
        self.tokens = tokens


def test_a_fork_is_of_the_same_class_and_shares_no_lists() -> None:
    cache = Remembering([1, 2])
    other = cache.fork()
    other.tokens.append(3)
    other.notes["a"] = "b"
    other.update(0, *tokens(2, 1))
    assert isinstance(other, Remembering)
    assert (cache.tokens, cache.notes, cache.offset) == ([1, 2], {}, 0)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_is_shared_can_be_forgotten_by_one_and_kept_by_the_other(dtype: str) -> None:
    first = Twin(nn.KVCache(1, 3, 4, dtype=dtype, batch=2, chunk=4), [np.zeros((2, 2, 3, 0, 4), np.float32)])
    first.add(7, 1)
    second = first.fork()
    second.add(3, 2)
    third = second.fork()  # of two stretches of memory
    for twin, back, more in ((second, 6, 2), (third, 9, 5), (first, 3, 1), (first, 5, 9)):
        twin.trim(back)
        assert twin.cache.offset == twin.whole[0].shape[3]
        fourth = twin.fork()  # while nothing was written after that
        twin.add(more, 3)
        fourth.add(1, 4)
        for each in (first, second, third):
            each.fork().add(1, 5)


def test_what_was_forgotten_is_not_saved(tmp_path: Path) -> None:
    first = Twin(nn.KVCache(1, 3, 4, dtype="float32", batch=2, chunk=4), [np.zeros((2, 2, 3, 0, 4), np.float32)])
    first.add(7, 1)
    second = first.fork()
    second.trim(3)
    second.cache.save(tmp_path / "c")
    loaded = Twin(nn.KVCache.load(tmp_path / "c"), list(second.whole))
    assert loaded.cache.offset == 4
    loaded.add(2, 2)
    second.add(2, 3)
    first.add(1, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sizes", None), ("sizes", [[1, 4]]), ("sizes", [[1, 4], [2, 0], [1, 4]]), ("sizes", [[1, 4], [2], [1, 4]]),
        ("sizes", [[1, 4], [1 << 20, 1 << 20], [1, 4]]), ("sizes", [[1, 4], [2, 9], [1, 4]]), ("follows", [None, None]),
        ("follows", [None, None, 2]), ("follows", [None, None, 1]), ("follows", [None, None, -1]),
        ("follows", [None, None, True]), ("follows", [None, 0, 1]), ("follows", [0, None, 0]), ("window", [None, 3, 3]),
        ("follows", [None, None, None]), ("states", [[[2]], None, None]), ("kv_heads", 1 << 24),
    ],
)  # fmt: skip
def test_sizes_of_layers_that_files_cannot_have_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    cache = nn.KVCache(3, [1, 2, 1], [4, 8, 4], follows=[None, None, 0], dtype="float32")
    for layer, (heads, dim) in ((0, (1, 4)), (1, (2, 8))):
        cache.update(layer, np.ones((1, heads, 3, dim), np.float32), np.ones((1, heads, 3, dim), np.float32))
    cache.shared(2, 3)
    cache.save(tmp_path / "c")
    assert nn.KVCache.load(tmp_path / "c").offset == 3
    good = (tmp_path / "c").read_bytes()
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    text = json.dumps({**json.loads(header["__metadata__"]["description"]), name: value})
    header["__metadata__"] |= {"description": text, "checksum": text_checksum(text)}
    new = json.dumps(header).encode()
    (tmp_path / "c").write_bytes(len(new).to_bytes(8, "little") + new + good[8 + length :])
    with pytest.raises(UnusableFileError, match="cannot be used"):
        nn.KVCache.load(tmp_path / "c")


def test_layers_of_several_sizes_and_layers_that_follow(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    cache = nn.KVCache(4, [1, 2, 1, 2], [4, 8, 4, 8], follows=[None, None, 0, 1], dtype="float32")
    given: dict[int, list[Any]] = {0: [], 1: []}
    for count in (3, 1, 2):
        for layer, shape in ((0, (1, 1, count, 4)), (1, (1, 2, count, 8))):
            k = rng.standard_normal(shape, np.float32)
            given[layer].append(k)
            cache.update(layer, k, k + 1)
        for layer in (2, 3):
            k, v = cache.shared(layer, count)
            np.testing.assert_array_equal(k, np.concatenate(given[layer - 2], axis=2))
            np.testing.assert_array_equal(v, k + 1)
    assert cache.offset == 6
    cache.save(tmp_path / "cache.safetensors")
    for each in (nn.KVCache.load(tmp_path / "cache.safetensors"), cache.fork()):
        assert each.offset == 6
        assert each.trimmable
        with pytest.raises(ValueError, match="follows none that was given keys"):
            each.shared(2, 1)
        k, _ = each.update(0, np.zeros((1, 1, 1, 4), np.float32), np.zeros((1, 1, 1, 4), np.float32))
        np.testing.assert_array_equal(np.asarray(k)[:, :, :6], np.concatenate(given[0], axis=2))
    with pytest.raises(ValueError, match="layer 2 has keys of another, and no keys of its own; shared"):
        cache.update(2, np.zeros((1, 1, 1, 4), np.float32), np.zeros((1, 1, 1, 4), np.float32))
    with pytest.raises(ValueError, match="update is for its own"):
        cache.shared(0, 1)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kv_heads": [1]}, "sizes for 1 and 2"),
        ({"kv_heads": [1, 0]}, "kv_heads"),
        ({"follows": [None]}, "follows for 1"),
        ({"follows": [0, None]}, "layer 0 cannot follow 0"),
        ({"follows": [None, 1]}, "layer 1 cannot follow 1"),
        ({"follows": [None, 0], "kv_heads": [1, 2]}, "another size"),
        ({"follows": [None, 0], "window": [None, 3]}, "another window"),
    ],
)
def test_layers_that_cannot_follow(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        nn.KVCache(2, **{"kv_heads": 1, "head_dim": 4, **options})
