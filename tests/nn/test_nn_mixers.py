"""Layers with a state in the place of attention, against those of transformers; and what caches keep of them."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul import nn
from npumatmul.errors import UnusableFileError
from npumatmul.host.checksums import text_checksum
from npumatmul.nn.block import TransformerBlock

sys.path.insert(0, str(Path(__file__).parents[1]))
from interrupts import interrupted_at

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

Array = NDArray[np.float32]
HIDDEN = 24
DELTA = {
    "hidden_size": HIDDEN,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 5,
    "linear_conv_kernel_dim": 3,
    "num_hidden_layers": 4,
}


def randomized(module: Any, seed: int = 0) -> tuple[Any, dict[str, Array]]:
    """A module of torch whose parameters are random, and these."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            scale = 1.0 if value.ndim == 1 else 1.5 * value.shape[-1] ** -0.5
            shift = 1.0 if name == "norm.weight" else 0.0
            value.copy_(torch.tensor(rng.normal(shift, scale, value.shape)))
    return module, {name: value.detach().numpy() for name, value in module.named_parameters()}


def pair(kind: str) -> tuple[Any, Any]:
    """A layer of transformers, and ours with its parameters."""
    if kind == "ShortConv":
        config: Any = transformers.Lfm2Config(
            hidden_size=HIDDEN, num_attention_heads=2, num_hidden_layers=1, conv_L_cache=4, conv_bias=True,
            layer_types=["conv"],
        )  # fmt: skip
        theirs, state = randomized(Lfm2ShortConv(config, 0))
        ours: Any = nn.ShortConv(HIDDEN, 4, bias=True, scheme="float32")
    elif kind == "Qwen3.5":
        theirs, state = randomized(Qwen3_5GatedDeltaNet(transformers.Qwen3_5TextConfig(**DELTA), 0))
        ours = nn.GatedDeltaNet(HIDDEN, 2, 6, 8, 5, kernel=3, scheme="float32")
    else:
        theirs, state = randomized(Qwen3NextGatedDeltaNet(transformers.Qwen3NextConfig(**DELTA), 0))
        ours = nn.GatedDeltaNet(HIDDEN, 2, 6, 8, 5, kernel=3, fused=("qkvz", "ba"), scheme="float32")
    ours.load_state_dict(state)
    return theirs, ours


def cache_of(*layers: Any, batch: int = 1, **options: Any) -> nn.KVCache:
    return nn.KVCache(len(layers), 1, 2, batch=batch, states=[each.state_shapes for each in layers], **options)


def rows(*shape: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.mark.parametrize("kind", ["ShortConv", "Qwen3.5", "Qwen3-Next"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_layers_compute_what_transformers_computes(kind: str, length: int) -> None:
    theirs, ours = pair(kind)
    x = rows(2, length, HIDDEN)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).numpy()
    bound = 1e-4 * np.abs(expected).max()  # where results of the rule are small, their norm makes errors large
    np.testing.assert_allclose(ours(x), expected, rtol=0, atol=bound)
    np.testing.assert_allclose(ours(x[0]), expected[0], rtol=0, atol=bound)


@pytest.mark.parametrize("kind", ["ShortConv", "Qwen3.5", "Qwen3-Next"])
def test_pieces_of_a_sequence_give_what_the_whole_gives(kind: str) -> None:
    _, ours = pair(kind)
    x = rows(2, 90, HIDDEN)
    whole = ours(x)
    for pieces in ([90], [1] * 90, [3, 1, 70, 1, 1, 14], [65, 25]):
        cache = cache_of(ours, batch=2)
        stops = np.cumsum(pieces)
        got = [ours(x[:, stop - count : stop], cache=cache) for count, stop in zip(pieces, stops, strict=True)]
        np.testing.assert_allclose(np.concatenate(got, axis=1), whole, rtol=0, atol=1e-4 * np.abs(whole).max())
        assert cache.offset == 90


@pytest.mark.parametrize("kind", ["ShortConv", "Qwen3.5"])
def test_layers_take_halves_and_arrays_on_the_npu(kind: str) -> None:
    _, ours = pair(kind)
    x = rows(7, HIDDEN)
    expected = ours(x)
    halves = ours(x.astype(np.float16))
    assert halves.dtype == np.float16
    np.testing.assert_allclose(halves, expected, rtol=0, atol=2e-2 * np.abs(expected).max())
    there = ours(npu.asarray(x, device="sim:rk3588"))
    assert isinstance(there, npu.NpuArray)
    np.testing.assert_array_equal(np.asarray(there), expected)


@given(
    count=st.integers(1, 40),
    chunk=st.integers(1, 40),
    heads=st.integers(1, 3),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 1 << 30),
)
def test_chunks_give_what_single_tokens_give(
    count: int, chunk: int, heads: int, sizes: tuple[int, int], seed: int
) -> None:
    """By the definition, in float64; equal keys, which make the system as badly conditioned as it can be, included."""
    rng = np.random.default_rng(seed)
    width, value_width = sizes
    q, k = rng.standard_normal((2, 1, heads, count, width))
    k[..., rng.random(count) < 0.3, :] = k[..., :1, :]
    q, k = (each / np.linalg.norm(each, axis=-1, keepdims=True) for each in (q, k))
    v = rng.standard_normal((1, heads, count, value_width))
    g, beta = -rng.exponential(rng.choice([0.01, 1, 30]), (1, heads, count)), rng.random((1, heads, count))
    first = rng.standard_normal((1, heads, width, value_width))
    state, expected, largest = first.copy(), np.empty(v.shape), np.abs(v).max()
    for t in range(count):
        state *= np.exp(g[..., t, None, None])
        error = (v[..., t, :] - np.einsum("bhde,bhd->bhe", state, k[..., t, :])) * beta[..., t, None]
        state += np.einsum("bhd,bhe->bhde", k[..., t, :], error)
        expected[..., t, :] = np.einsum("bhde,bhd->bhe", state, q[..., t, :])
        largest = max(largest, np.abs(state).max(), np.abs(error).max())
    halves = [each.astype(np.float32) for each in (q, k, v, g, beta, first)]
    y, after = nn.gated_delta_rule(*halves, chunk=chunk)
    bound = 8 * (count + width) * 2.0**-24 * largest
    np.testing.assert_allclose(y, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(after, state, rtol=0, atol=bound)
    np.testing.assert_array_equal(halves[-1], first.astype(np.float32))


def test_value_heads_in_tiles_are_those_in_groups_in_another_order() -> None:
    _, grouped = pair("Qwen3.5")
    tiled = nn.GatedDeltaNet(HIDDEN, 2, 6, 8, 5, kernel=3, tiled=True, scheme="float32")
    state = grouped.state_dict()
    order = np.arange(6).reshape(2, 3).T.reshape(-1)  # of two key heads, the first value head of each, the second ...
    columns = (order[:, None] * 5 + np.arange(5)).reshape(-1)
    wide = np.concatenate([np.arange(32), 32 + columns])
    for name, places in {"in_proj_qkv.weight": wide, "conv1d.weight": wide, "in_proj_z.weight": columns}.items():
        state[name] = state[name][places]
    for name in ("in_proj_b.weight", "in_proj_a.weight", "A_log", "dt_bias"):
        state[name] = state[name][order]
    state["out_proj.weight"] = state["out_proj.weight"][:, columns]
    tiled.load_state_dict(state)
    x = rows(20, HIDDEN)
    expected = grouped(x)
    np.testing.assert_allclose(tiled(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# ---- caches ---------------------------------------------------------------------------------------------------------


def blocks() -> list[TransformerBlock]:
    """A short convolution, attention and a delta net, with random weights."""
    how: dict[str, Any] = {"scheme": "float32"}
    mixers: list[Any] = [
        nn.ShortConv(HIDDEN, 3, **how),
        nn.Attention(HIDDEN, 2, 1, 2, rope=nn.RoPE(2), **how),
        nn.GatedDeltaNet(HIDDEN, 1, 2, 4, **how),
    ]
    made = [TransformerBlock(mixer, nn.MLP(HIDDEN, 8, **how)) for mixer in mixers]
    for i, block in enumerate(made):
        rng = np.random.default_rng(i)
        block.load_state_dict(
            {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in block.parameter_shapes().items()}
        )
    return made


def cache_for(made: list[TransformerBlock], **options: Any) -> nn.KVCache:
    states = [None if each.self_attn else each.mixer.state_shapes for each in made]  # type: ignore[union-attr]
    return nn.KVCache(3, 1, 2, dtype="float32", states=states, **options)


def run(made: list[TransformerBlock], x: Array, cache: nn.KVCache) -> Array:
    for i, block in enumerate(made):
        x = block(x, cache=cache, layer=i)
    return x


def test_an_interrupted_run_leaves_states_as_they_were() -> None:
    made, x = blocks(), rows(12, HIDDEN)
    expected = run(made, x, cache_for(made))
    cache = cache_for(made)
    run(made, x[:5], cache)
    made[0](x[7:], cache=cache, layer=0)  # as far as some other run came
    made[1](x[7:], cache=cache, layer=1)
    assert cache.offset == 5
    np.testing.assert_allclose(run(made, x[5:], cache), expected[5:], rtol=0, atol=1e-5)


def test_an_interrupt_anywhere_leaves_a_cache_that_goes_on() -> None:
    made, x = blocks(), rows(12, HIDDEN)
    expected = run(made, x, cache_for(made))
    begun = cache_for(made)
    run(made, x[:5], begun)
    position = 0
    cache = begun.fork()
    run(made, x[5:6], cache)
    while interrupted_at(position, lambda: run(made, x[6:7], cache)):  # noqa: B023
        assert cache.nbytes > 0
        assert cache.offset in (6, 7)
        fork = cache.fork()
        at = fork.offset
        np.testing.assert_allclose(run(made, x[at:], fork), expected[at:], rtol=0, atol=1e-5)
        cache = begun.fork()
        run(made, x[5:6], cache)
        position += 5


def test_states_go_back_to_where_the_last_call_began_and_no_further() -> None:
    made, x = blocks(), rows(12, HIDDEN)
    expected = run(made, x, cache_for(made))
    cache = cache_for(made)
    assert not cache.trimmable
    run(made, x[:5], cache)
    run(made, rows(4, HIDDEN, seed=5), cache)
    for count in (1, 3, 5):
        with pytest.raises(ValueError, match="layer 0 has a state, which cannot forget single tokens; fork the cache"):
            cache.trim(count)
    assert cache.offset == 9
    cache.trim(0)
    cache.trim(4)
    np.testing.assert_allclose(run(made, x[5:], cache), expected[5:], rtol=0, atol=1e-5)
    cache.trim(12)  # nothing is left, so that there is nothing to go back to
    np.testing.assert_allclose(run(made, x, cache), expected, rtol=0, atol=1e-5)
    cache.clear()
    assert (cache.offset, cache.nbytes) == (0, 0)
    np.testing.assert_allclose(run(made, x, cache), expected, rtol=0, atol=1e-5)


def test_caches_say_whether_they_can_be_trimmed() -> None:
    row = np.ones((1, 1, 30, 2), np.float32)
    for window, trimmable in ((None, True), (8, False), (64, True)):
        cache = nn.KVCache(1, 1, 2, window=window, chunk=4)
        assert cache.trimmable
        for _ in range(2):
            cache.update(0, row[:, :, :15], row[:, :, :15])
        assert cache.trimmable is trimmable


def test_forks_share_states_and_go_their_own_ways(tmp_path: Path) -> None:
    made, x = blocks(), rows(12, HIDDEN)
    expected = run(made, x, cache_for(made))
    cache = cache_for(made)
    run(made, x[:5], cache)
    fork = cache.fork()
    assert fork.nbytes == 0 < cache.nbytes
    run(made, rows(3, HIDDEN, seed=7), fork)
    assert (cache.offset, fork.offset) == (5, 8)
    cache.save(tmp_path / "cache")
    loaded = nn.KVCache.load(tmp_path / "cache")
    for each in (cache, loaded):
        np.testing.assert_allclose(run(made, x[5:], each), expected[5:], rtol=0, atol=1e-5)
    for array in cache.state(2):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_a_cache_without_tokens_is_saved_and_loaded(tmp_path: Path) -> None:
    made, x = blocks(), rows(4, HIDDEN)
    cache_for(made).save(tmp_path / "cache")
    loaded = nn.KVCache.load(tmp_path / "cache")
    np.testing.assert_array_equal(run(made, x, loaded), run(made, x, cache_for(made)))


def test_files_of_states_that_lie_are_refused(tmp_path: Path) -> None:
    made = blocks()
    cache = cache_for(made)
    run(made, rows(4, HIDDEN), cache)
    cache.save(tmp_path / "cache")
    whole = (tmp_path / "cache").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    description = header["__metadata__"]["description"]
    states = '"states":[[[2,24]],null,[[3,16],[2,4,4]]]'
    assert states in description
    for wrong, message in (
        ('"states":[[[2,25]],null,[[3,16],[2,4,4]]]', "no array layers.0.state.0 of shape"),
        ('"states":[[[2,24]],null,[[3,16]]]', None),
        ('"states":[[[2,24]],null]', "its states have shapes that are none"),
        ('"states":[[],null,[[3,16],[2,4,4]]]', "its states have shapes that are none"),
        ('"states":[[[2,0]],null,[[3,16],[2,4,4]]]', "its states have shapes that are none"),
        ('"states":[[[16777216,16777216]],null,[[3,16],[2,4,4]]]', "its states have shapes that are none"),
        ('"states":7', "its states have shapes that are none"),
    ):
        text = description.replace(states, wrong)
        header["__metadata__"] |= {"description": text, "checksum": text_checksum(text)}
        new = json.dumps(header).encode()
        (tmp_path / "wrong").write_bytes(len(new).to_bytes(8, "little") + new + whole[8 + length :])
        if message is None:
            nn.KVCache.load(tmp_path / "wrong")  # an array that nobody asks for changes nothing
            continue
        with pytest.raises(UnusableFileError, match=message):
            nn.KVCache.load(tmp_path / "wrong")
    at = whole.rindex(cache.state(2)[1].tobytes())
    (tmp_path / "wrong").write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    with pytest.raises(UnusableFileError, match=r"checksum of layers\.2\.state\.1 differs"):
        nn.KVCache.load(tmp_path / "wrong")


def test_wrong_arguments_are_named() -> None:
    made = blocks()
    cache = cache_for(made, limit=3)
    row = np.ones((1, 1, 1, 2), np.float32)
    state = [np.zeros((1, *shape), np.float32) for shape in made[0].mixer.state_shapes]  # type: ignore[union-attr]
    for wrong, message in (
        (lambda: cache.update(0, row, row), "layer 0 has a state, and no keys"),
        (lambda: cache.state(1), "layer 1 has keys and values, and no state"),
        (lambda: cache.set_state(3, 1, ()), "there is no layer 3"),
        (lambda: cache.set_state(0, 0, state), "count is 0"),
        (lambda: cache.set_state(0, 1, ()), "have to be float32 of shapes"),
        (lambda: cache.set_state(0, 1, [state[0].astype(np.float64)]), "have to be float32 of shapes"),
        (lambda: cache.set_state(0, 4, state), "4 more tokens do not fit"),
        (lambda: nn.KVCache(2, 1, 1, states=[None]), "2 layers, but states for 1"),
        (lambda: nn.KVCache(1, 1, 1, states=[()]), "write None for a layer that has no state"),
        (lambda: nn.KVCache(1, 1, 1, states=[((0,),)]), "states is 0"),
        (lambda: nn.ShortConv(4, 1), "a kernel of 1 looks at no other token"),
        (lambda: nn.GatedDeltaNet(4, 2, 3), "3 heads of values cannot share 2 of keys"),
        (lambda: nn.GatedDeltaNet(4, 2, fused=("qkv",)), "fused names 'qkv'"),
        (lambda: nn.GatedDeltaNet(4, 2, fused=("ba",), tiled=True), "cannot be tiled"),
        (lambda: nn.gated_delta_rule(*[np.ones((1, 1, 2), np.float32)] * 5), "q has shape"),
        (lambda: made[0](rows(2, HIDDEN), mask=None), "mask has to be 'causal'"),
        (lambda: made[2](rows(2, HIDDEN), mask=np.ones((2, 2), bool)), "mask has to be 'causal'"),
        (lambda: made[2].mixer(np.ones((1, 1, 1, HIDDEN), np.float32)), r"takes \(T, hidden\) or \(B, T, hidden\)"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    cache.offset = 2
    with pytest.raises(ValueError, match="layer 0 was given no state after 2 tokens"):
        cache.state(0)
