"""Attention to caches in C: a token's bits do not depend on what is computed with it, nor on where its keys stand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npumatmul import nn
from npumatmul.host.attention import NO_ROOM, KvType, append, tell
from npumatmul.nn.attend import options

Three = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def tokens(count: int, heads: int, kv_heads: int, dim: int, batch: int = 1, seed: int = 0) -> Three:
    rng = np.random.default_rng(seed)
    sizes = (heads, kv_heads, kv_heads)
    q, k, v = (rng.standard_normal((batch, count, h, dim), np.float32).swapaxes(1, 2) for h in sizes)
    return q, k, v


def some(all_of: Three, start: int, stop: int) -> Three:
    q, k, v = (each[:, :, start:stop] for each in all_of)
    return q, k, v


class Story:
    """Two layers, the second of which follows the first, and what each token's queries gave."""

    def __init__(self, all_of: Three, dtype: str, window: int | None, how: dict[str, Any]) -> None:
        self.all_of = all_of
        batch, heads, count, dim = all_of[0].shape
        self.how = options(heads, dim, window=window, batch=batch, **how)
        kv_heads = all_of[1].shape[1]
        self.cache = nn.KVCache(
            2, kv_heads, dim, dtype=dtype, window=window, chunk=8, batch=batch, follows=[None, 0], limit=count
        )

    def step(self, count: int, cache: nn.KVCache | None = None) -> NDArray[np.float32]:
        cache = self.cache if cache is None else cache
        q, k, v = some(self.all_of, cache.offset, cache.offset + count)
        first = cache.attend(0, self.how, q, k, v)
        second = cache.attend(1, self.how, q, None, None)
        assert np.array_equal(first, second)
        return first


@given(
    splits=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    others=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    dtype=st.sampled_from(["float16", "float32", "int8"]),
    heads=st.sampled_from([(1, 1), (4, 2), (9, 3)]),
    dim=st.sampled_from([4, 16, 20, 64]),
    batch=st.sampled_from([1, 1, 2]),
    window=st.sampled_from([None, None, 1, 5, 40]),
    softcap=st.sampled_from([None, 3.0]),
    sinks=st.booleans(),
)
def test_a_token_alone_gives_the_bits_that_it_gives_among_others(
    splits: list[int],
    others: list[int],
    dtype: str,
    heads: tuple[int, int],
    dim: int,
    batch: int,
    window: int | None,
    softcap: float | None,
    sinks: bool,
) -> None:
    count = max(sum(splits), sum(others))
    sink = np.linspace(-1, 2, heads[0], dtype=np.float32) if sinks else None
    how = {"softcap": softcap, "sinks": sink}
    all_of = tokens(count, *heads, dim, batch)
    at_once = Story(all_of, dtype, window, how).step(count)
    for each in (splits, others):
        story, at = Story(all_of, dtype, window, how), 0
        for part in each:
            other = story.cache.fork()  # its own way goes on beside, over the same memory
            y = story.step(part)
            assert np.array_equal(y, at_once[:, :, at : at + part])
            assert np.array_equal(story.step(part, other), y)
            story.cache, at = other, at + part
            if story.cache.trimmable:
                story.cache.trim(1)
                assert np.array_equal(story.step(1), y[:, :, -1:])
    # What the cache says that it keeps, attended to in float64.
    story = Story(all_of, dtype, None, how)
    q, k, v = all_of
    keys, values = (np.asarray(each, np.float64) for each in story.cache.update(0, k, v))
    group = heads[0] // heads[1]
    scores = np.einsum("bhtd,bhsd->bhts", q.astype(np.float64), np.repeat(keys, group, 1)) / np.sqrt(dim)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    at_key, at_query = np.arange(count), np.arange(count)[:, None]
    scores[:, :, (at_key > at_query) | (at_key <= at_query - (window or count))] = -np.inf
    most = scores.max(-1, keepdims=True)
    if sink is not None:
        most = np.maximum(most, sink[:, None, None])
    weights = np.exp(scores - most)
    total = weights.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink[:, None, None] - most))
    unit = 2.0**-24
    product = np.abs(q).max() * np.abs(keys).max() * np.sqrt(dim)
    bound = 2 * (dim + 4) * unit * product + 8 * unit * (softcap or 0) + (2 * count + 16) * unit
    assert np.abs(at_once - weights @ np.repeat(values, group, 1) / total).max() <= bound * np.abs(values).max()


def test_attention_layers_give_the_same_bits_by_one_token_and_by_many() -> None:
    layer = nn.Attention(32, 4, 2, rope=nn.RoPE(8), window=20, scheme="float32")
    rng = np.random.default_rng(3)
    shapes = layer.parameter_shapes().items()
    layer.load_state_dict({name: rng.standard_normal(shape, np.float32) for name, shape in shapes})
    qkv = rng.standard_normal((50, sum(layer.parameter_shapes()[f"{x}_proj.weight"][0] for x in "qkv")), np.float32)
    at_once = layer.attend(qkv, cache=nn.KVCache(1, 2, 8, window=20))
    cache = nn.KVCache(1, 2, 8, window=20, chunk=4)
    alone = [layer.attend(qkv[i : i + 1], cache=cache) for i in range(50)]
    assert np.array_equal(np.concatenate(alone), at_once)
    batch = [nn.KVCache(1, 2, 8, window=20) for _ in range(2)]
    assert np.array_equal(layer.attend(qkv, cache=nn.CacheBatch(batch, [17, 33]))[:17], at_once[:17])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_structs_say_where_rows_are(dtype: str) -> None:
    """As a program in C uses them: it stores what there is room for, and asks for room otherwise."""
    cache = nn.KVCache(2, 2, 16, dtype=dtype, chunk=8, limit=20, states=[None, [(3,)]])
    assert cache.structs[1].type == KvType.NONE
    q, k, v = tokens(20, 4, 2, 16)
    part = some((q, k, v), 0, 3)
    assert append(cache.structs[0], 0, *part[1:]) == NO_ROOM
    cache.make_room(3)
    struct = cache.structs[0]
    assert (struct.capacity, struct.base, struct.shared, struct.before_count) == (8, 0, 0, 0)
    assert append(cache.structs[0], 0, *part[1:]) == 0
    cache.offset = 3
    other = cache.fork()
    assert (cache.structs[0].shared, other.structs[0].before_count, other.structs[0].base) == (3, 1, 3)
    assert append(cache.structs[0], 2, *part[1:]) == NO_ROOM  # the fork reads row 2
    assert append(other.structs[0], 3, *part[1:]) == NO_ROOM
    with pytest.raises(nn.CacheFullError, match="18 more tokens"):
        other.make_room(18)
    other.make_room(5, [0])
    assert append(other.structs[0], 3, *some((q, k, v), 3, 8)[1:]) == 0
    other.offset = 8
    whole = nn.KVCache(1, 2, 16, dtype=dtype)
    whole.update(0, k[:, :, :8], v[:, :, :8])
    how = options(4, 16)
    assert np.array_equal(other.attend(0, how, *some((q, k, v), 8, 9)), whole.attend(0, how, *some((q, k, v), 8, 9)))
    address = id(cache.structs)
    cache.clear()
    assert id(cache.structs) == address
    assert cache.structs[0].capacity == 0


def test_memory_that_changed_is_told_although_an_interrupt_came_between(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tokens(40, 4, 2, 16)
    how = options(4, 16)
    wanted = nn.KVCache(1, 2, 16).attend(0, how, q, k, v)
    cache = nn.KVCache(1, 2, 16, chunk=8)
    cache.attend(0, how, *some((q, k, v), 0, 8))
    place = "npumatmul.nn.cache_rows.tell"

    def interrupted(*_: Any) -> None:
        monkeypatch.setattr(place, tell)
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.attend(0, how, *some((q, k, v), 8, 16))
    assert cache.offset == 8
    assert append(cache.structs[0], 8, k[:, :, 8:16], v[:, :, 8:16]) == NO_ROOM
    for start in range(8, 40, 8):
        part = cache.attend(0, how, *some((q, k, v), start, start + 8))
        assert np.array_equal(part, wanted[:, :, start : start + 8])


def test_many_tokens_are_shared_by_threads() -> None:
    """Enough work for several: the bits are those of tokens that come one by one."""
    q, k, v = tokens(400, 8, 2, 64)
    cache = nn.KVCache(1, 2, 64)
    y = cache.attend(0, options(8, 64), q, k, v)
    for i in (399, 256, 255, 64, 63, 0):
        cache.trim(cache.offset - i)
        assert np.array_equal(cache.attend(0, options(8, 64), *some((q, k, v), i, i + 1)), y[:, :, i : i + 1])
