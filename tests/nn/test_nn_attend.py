"""Attention's products and softmax against torch, within the bound that is stated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nn_exact import causal, exact

import npumatmul as npu
from npumatmul.nn import KVCache, attend
from npumatmul.nn import scaled_dot_product_attention as sdpa
from npumatmul.nn.halves import widened

V = 2.0**-24


def operands(
    b: int, g: int, group: int, t: int, s: int, d: int, e: int, seed: int, dtype: Any = np.float32
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = (b, g * group, t, d), (b, g, s, d), (b, g, s, e)
    return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)


def bound(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, softcap: float = 0.0) -> float:
    """As the docstring states it."""
    d, s = k.shape[-1], k.shape[-2]
    group = q.shape[-3] // k.shape[-3]
    keys = np.abs(np.repeat(k.astype(np.float64), group, -3))
    p = scale * (np.abs(q.astype(np.float64)) @ keys.swapaxes(-1, -2)).max(initial=0)
    return (2 * (d + 4) * V * p + 8 * V * softcap + (2 * s + 16) * V) * np.abs(v.astype(np.float64)).max(initial=0)


SIZES = {
    "b": st.integers(1, 2), "g": st.integers(1, 3), "group": st.integers(1, 3), "t": st.integers(1, 7),
    "d": st.integers(1, 9), "e": st.integers(1, 9), "seed": st.integers(0, 99),
}  # fmt: skip


@given(**SIZES, s=st.integers(1, 20), masked=st.booleans(), half=st.booleans())
def test_it_is_torchs(
    b: int, g: int, group: int, t: int, s: int, d: int, e: int, seed: int, masked: bool, half: bool
) -> None:
    dtype = np.float16 if half else np.float32
    q, k, v = operands(b, g, group, t, s, d, e, seed, dtype)
    mask = np.random.default_rng(seed).random((b, 1, t, s)) < 0.7
    mask[..., 0] = True
    y = sdpa(q, k, v, mask=mask if masked else None)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(each).double() for each in (q, k, v)),
        attn_mask=torch.from_numpy(mask) if masked else None,
        enable_gqa=True,
    ).numpy()
    assert y.dtype == dtype
    assert y.shape == (b, g * group, t, e)
    error = bound(q, k, v, d**-0.5)
    assert (np.abs(y - wanted) <= error + (2.0**-11 * 1.01 * np.abs(wanted) + 2.0**-25 if half else 0)).all()


@given(
    **SIZES,
    s=st.integers(1, 150),
    window=st.none() | st.integers(1, 80),
    softcap=st.none() | st.sampled_from([0.5, 30.0]),
    sinks=st.booleans(),
    block=st.sampled_from([1, 7, 64]),
    queries=st.sampled_from([2, 256]),
)
def test_options_go_together_in_blocks_of_any_size(
    b: int, g: int, group: int, t: int, s: int, d: int, e: int, seed: int, window: int | None, softcap: float | None,
    sinks: bool, block: int, queries: int,
) -> None:  # fmt: skip
    q, k, v = operands(b, g, group, t, s, d, e, seed)
    sink = np.random.default_rng(seed).standard_normal(g * group).astype(np.float32) if sinks else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend, "_BLOCK_FLOATS", 1)
        patch.setattr(attend, "_LEAST_KEYS", block)
        patch.setattr(attend, "_QUERIES", queries)
        y = sdpa(q, k, v, scale=0.7, mask="causal", window=window, softcap=softcap, sinks=sink)
    wanted = exact(q, k, v, scale=0.7, seen=causal(t, s, window), softcap=softcap, sinks=sink)
    assert (np.abs(y - wanted) <= bound(q, k, v, 0.7, softcap or 0.0)).all()


def test_memory_does_not_grow_with_what_is_looked_at() -> None:
    import tracemalloc

    q, k, v = operands(1, 1, 4, 64, 1 << 14, 16, 16, 1, np.float16)
    tracemalloc.start()
    try:
        sdpa(q, k, v, mask="causal")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # scores of a block of keys and what is made of them; all would be 4 bytes x 256 x 16384, 16 MiB, several times
    assert peak < 3 * 4 * attend._BLOCK_FLOATS


def test_masks_of_floats_are_added() -> None:
    q, k, v = operands(2, 2, 2, 3, 5, 4, 4, 1)
    mask = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(each) for each in (q, k, v)), attn_mask=torch.from_numpy(mask), enable_gqa=True
    )
    np.testing.assert_allclose(sdpa(q, k, v, mask=mask), wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(sdpa(q, k, v, mask=mask[:, :1]), sdpa(q, k, v), atol=1e-6)


def test_who_sees_nothing_gets_zeros() -> None:
    q, k, v = operands(1, 1, 1, 3, 5, 4, 4, 1)
    mask = np.ones((3, 5), bool)
    mask[1] = False
    y = sdpa(q, k, v, mask=mask)
    assert not y[0, 0, 1].any()
    np.testing.assert_allclose(y[:, :, [0, 2]], sdpa(q, k, v)[:, :, [0, 2]], atol=1e-6)
    assert not sdpa(q, k[:, :, :0], v[:, :, :0]).any()
    assert not sdpa(q, k[:, :, :2], v[:, :, :2], mask="causal")[0, 0, 0].any()  # the first of three queries, two keys


def test_large_scores_do_not_overflow() -> None:
    q, k, v = operands(1, 1, 1, 2, 4, 4, 4, 1)
    y = sdpa(q * np.float32(1e15), k * np.float32(1e15), v)
    best = np.argmax(q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2), axis=-1)
    np.testing.assert_array_equal(y[0, 0], v[0, 0][best[0, 0]])


def test_npu_arrays_and_three_dimensions() -> None:
    q, k, v = operands(1, 2, 2, 3, 5, 4, 4, 1)
    y = sdpa(npu.asarray(q, device="sim:rk3588"), npu.asarray(k, device="sim:rk3588"), v)
    assert isinstance(y, npu.NpuArray)
    np.testing.assert_array_equal(np.asarray(y), sdpa(q, k, v))
    np.testing.assert_array_equal(sdpa(q[0], k[0], v[0]), sdpa(q, k, v)[0])


def test_what_does_not_fit_is_explained() -> None:
    q, k, v = operands(1, 2, 2, 3, 5, 4, 4, 1)
    for wrong in ((q[:, :3], k, v), (q, k, v[:, :, :4]), (q[..., :3], k, v), (q[0], k, v), (q, k[:, :0], v[:, :0])):
        with pytest.raises(ValueError, match=r"do not fit: they are \(\.\.\., H, T, D\)"):
            sdpa(*wrong)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mask": "casual"}, "mask is 'casual'"),
        ({"mask": np.ones((2, 5), bool)}, r"\(2, 5\) cannot be broadcast to .* \(1, 4, 3, 5\)"),
        ({"window": -1}, "window is -1; it has to be an integer of 1 or more"),
        ({"window": 0, "mask": "causal"}, "window is 0"),
        ({"softcap": 0.0}, "softcap is 0"),
        ({"softcap": float("nan")}, "softcap is nan"),
        ({"sinks": np.ones(3)}, r"sinks has shape \(3,\); there are 4 heads"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            sdpa(q, k, v, **options)
    with pytest.raises(TypeError, match="int64"):
        sdpa(q, k, v, mask=np.ones((3, 5), np.int64))
    with pytest.raises(TypeError, match="float64"):
        sdpa(q.astype(np.float64), k, v)
    with pytest.raises(TypeError, match="int8"):
        sdpa(q, k.astype(np.int8), v)


def test_every_float16_becomes_itself() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = halves[np.isfinite(halves)]
    for values in (halves, finite, finite[::3], np.zeros(0, np.float16)):
        wide = widened(values, np.empty(values.shape, np.float32))
        np.testing.assert_array_equal(wide, values.astype(np.float32))
        np.testing.assert_array_equal(np.signbit(wide), np.signbit(values))


@given(**SIZES, s=st.integers(1, 90), block=st.sampled_from([1, 7, 64]))
def test_keys_and_values_of_float16_are_their_values(
    b: int, g: int, group: int, t: int, s: int, d: int, e: int, seed: int, block: int
) -> None:
    q, k, v = operands(b, g, group, t, s, d, e, seed)
    k, v = k.astype(np.float16), v.astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend, "_COPIED_FLOATS", 1)
        patch.setattr(attend, "_LEAST_KEYS", block)
        y = sdpa(q, k, v, mask="causal")
    wanted = exact(q, k, v, scale=d**-0.5, seen=causal(t, s))
    assert (np.abs(y - wanted) <= bound(q, k, v, d**-0.5)).all()


def test_queries_that_see_no_key_of_the_first_blocks_keep_small_scores() -> None:
    """Whatever stands for the largest score of nothing must not be larger than scores that come later."""
    q, k, v = operands(1, 1, 1, 4, 130, 4, 4, 1)
    q, k = np.abs(q) * 40, -np.abs(k) * 40  # all scores are below -100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend, "_BLOCK_FLOATS", 1)
        y = sdpa(q, k, v, mask="causal", window=3)
        wanted = exact(q, k, v, scale=0.5, seen=causal(4, 130, 3))
        np.testing.assert_allclose(y, wanted, rtol=1e-2, atol=1e-3)
        mask = np.zeros((4, 130), bool)
        mask[:, 100:] = True
        wanted = exact(q, k, v, scale=0.5, seen=mask)
        np.testing.assert_allclose(sdpa(q, k, v, mask=mask), wanted, rtol=1e-2, atol=1e-3)


def test_half_of_a_causal_prompt_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = 0
    multiply = np.matmul

    def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        nonlocal computed
        y = multiply(a, b)
        computed += a.size * b.shape[-1]
        return y

    q, k, v = operands(1, 1, 1, 1024, 1024, 8, 8, 1)
    monkeypatch.setattr(np, "matmul", matmul)
    y = sdpa(q, k, v, mask="causal")
    monkeypatch.undo()
    assert computed <= 0.7 * 2 * 1024 * 1024 * 8
    assert np.abs(y - exact(q, k, v, scale=8**-0.5, seen=causal(1024, 1024))).max() <= bound(q, k, v, 8**-0.5)


@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), st.integers(0, 24)),
    s=st.integers(0, 80),
    kind=st.sampled_from(["none", "causal", "bool", "float"]),
    window=st.none() | st.integers(1, 30),
    options=st.tuples(st.none() | st.sampled_from([0.5, 30.0]), st.booleans()),
    shared=st.booleans(),
    limits=st.tuples(st.sampled_from([1, 3, 256]), st.sampled_from([1, 5, 64])),
    seed=st.integers(0, 999),
)
def test_any_mask_and_window_in_any_parts(
    sizes: tuple[int, int, int, int], s: int, kind: str, window: int | None, options: tuple[float | None, bool],
    shared: bool, limits: tuple[int, int], seed: int,
) -> None:  # fmt: skip
    """More queries than keys, none of either, whole rows that see nothing, and keys in two stretches of memory."""
    (b, g, group, t), (softcap, with_sinks) = sizes, options
    rng = np.random.default_rng(seed)
    q, k, v = operands(b, g, group, t, s, 4, 4, seed)
    at, keys = np.arange(s - t, s)[:, None], np.arange(s)
    seen, mask = np.ones((t, s), bool), None
    if kind == "causal":
        seen, mask = causal(t, s, window), "causal"
    elif window is not None:
        seen = np.abs(keys - at) < window
    if kind == "bool":
        mask = rng.random((b, 1, t, s)) < 0.6
        seen = seen & mask
    elif kind == "float":
        mask = np.where(rng.random((t, s)) < 0.3, -np.inf, 0).astype(np.float32)
        seen = seen & (mask == 0)
    sinks = rng.standard_normal(g * group).astype(np.float32) if with_sinks else None
    rows = k, v
    if shared and s > 1:
        cache = KVCache(1, g, 4, dtype="float32", batch=b, chunk=4)
        cache.update(0, k[:, :, : s // 2], v[:, :, : s // 2])
        rows = cache.fork().update(0, k[:, :, s // 2 :], v[:, :, s // 2 :])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attend, "_BLOCK_FLOATS", 1)
        patch.setattr(attend, "_QUERIES", limits[0])
        patch.setattr(attend, "_LEAST_KEYS", limits[1])
        y = sdpa(q, *rows, mask=mask, window=window, softcap=softcap, sinks=sinks)
    assert y.shape == q.shape
    if s and t:
        wanted = exact(q, k, v, scale=0.5, seen=seen, softcap=softcap, sinks=sinks)
        assert (np.abs(y - wanted) <= bound(q, k, v, 0.5, softcap or 0.0)).all()
    else:
        assert not y.any()
