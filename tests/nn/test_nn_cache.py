"""Caches of keys and values: what is stored is what is seen, however it comes and whatever is given up."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from npumatmul import nn

STEPS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=12)


def tokens(count: int, seed: int, batch: int = 2, heads: int = 3, dim: int = 4) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(seed).standard_normal((2, batch, heads, count, dim), np.float32))


@given(
    steps=STEPS,
    window=st.none() | st.integers(1, 20),
    chunk=st.integers(1, 16),
    dtype=st.sampled_from(["float16", "float32"]),
)
def test_every_layer_sees_what_it_was_given(
    steps: list[tuple[int, int]], window: int | None, chunk: int, dtype: str
) -> None:
    cache = nn.KVCache(2, 3, 4, dtype=dtype, window=[None, window], chunk=chunk, batch=2)
    whole: list[Any] = [np.zeros((2, 2, 3, 0, 4), dtype) for _ in range(2)]
    for i, (count, back) in enumerate(steps):
        before = cache.offset
        for layer in range(2):
            assert cache.offset == before  # of the last layer only
            k, v = tokens(count, 10 * i + layer)
            seen = cache.update(layer, k, v)
            whole[layer] = np.concatenate([whole[layer], np.stack([k, v]).astype(dtype)], axis=3)
            first = 0 if layer == 0 or window is None else max(0, before - window + 1)
            for ours, wanted in zip(seen, whole[layer], strict=True):
                np.testing.assert_array_equal(ours, wanted[:, :, first:])
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
