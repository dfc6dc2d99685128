"""The model against transformers, on small random models that exercise every option."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.llm import ContextFullError, DecoderConfig, KVCache, load_model, numpy_pack
from npumatmul.llm.models.decoder import PREFILL_CHUNK, layer_names

IDS = [int(i) for i in np.random.default_rng(0).integers(0, 264, 300)]


def llama3_factors(head_dim: int, factor: float, low: float, high: float, original: int) -> NDArray[np.float32]:
    """Divisors of the frequencies as Llama 3.1 defines them."""
    values = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * 10000.0 ** (i / head_dim)
        if wavelength < original / high:
            values.append(1.0)
        elif wavelength > original / low:
            values.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            values.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(values, np.float32)


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="plain"),
        pytest.param({"tied": True}, id="tied"),
        pytest.param({"bias": True}, id="bias"),
        pytest.param({"head_dim": 16}, id="head_dim"),
        pytest.param({"rope": {"rope_type": "linear", "factor": 4.0}}, id="linear"),
        pytest.param({"rope": LLAMA3, "rope_factors": llama3_factors(8, 8.0, 1.0, 4.0, 64)}, id="llama3"),
    ],
)
def test_logits_equal_transformers(make_tiny_model: Callable[..., Any], options: dict[str, Any]) -> None:
    tiny = make_tiny_model(**options)
    model = load_model(tiny.path, pack=numpy_pack).model
    got = model.forward(IDS, model.new_cache(), all_logits=True)
    np.testing.assert_allclose(got, tiny.torch_logits(IDS), rtol=1e-3, atol=2e-3)


def test_cached_steps_equal_transformers_on_the_whole(tiny: Any) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    cache = model.new_cache()
    pieces = [model.forward(IDS[:5], cache, all_logits=True)]
    pieces += [model.forward([token], cache)[None] for token in IDS[5:40]]
    pieces.append(model.forward(IDS[40:], cache, all_logits=True))
    np.testing.assert_allclose(np.concatenate(pieces), tiny.torch_logits(IDS), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("count", [1, PREFILL_CHUNK - 1, PREFILL_CHUNK, PREFILL_CHUNK + 1, 2 * PREFILL_CHUNK + 1])
def test_last_logits_at_chunk_borders(tiny: Any, count: int) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    got = model.forward(IDS[:count], model.new_cache())
    assert got.shape == (264,)
    np.testing.assert_allclose(got, tiny.torch_logits(IDS[:count])[-1], rtol=1e-3, atol=2e-3)


def test_truncated_cache_continues_as_if_never_longer(tiny: Any) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    cache = model.new_cache(64)
    model.forward(IDS[:60], cache)
    cache.truncate(10)
    got = model.forward(IDS[100:110], cache)
    expected = tiny.torch_logits(IDS[:10] + IDS[100:110])[-1]
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=2e-3)


def test_overflow_is_refused_before_anything_changes(tiny: Any) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    cache = model.new_cache(8)
    model.forward(IDS[:6], cache)
    with pytest.raises(ContextFullError, match="3 more tokens do not fit: the cache holds 6 of at most 8"):
        model.forward(IDS[:3], cache)
    assert cache.tokens == IDS[:6]
    expected = tiny.torch_logits(IDS[:8])[-1]
    np.testing.assert_allclose(model.forward(IDS[6:8], cache), expected, rtol=1e-3, atol=2e-3)


def test_interrupt_leaves_the_cache_consistent(tiny: Any) -> None:
    interrupt_in: list[int] = []

    def pack(weight: NDArray[np.float32], name: str) -> Any:
        linear = numpy_pack(weight)

        class Interrupting:
            shape = linear.shape

            def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
                if interrupt_in:
                    interrupt_in[0] -= 1
                    if interrupt_in[0] == 0:
                        interrupt_in.clear()
                        raise KeyboardInterrupt
                return linear(x)

        return Interrupting()

    model = load_model(tiny.path, pack=pack).model
    cache = model.new_cache()
    model.forward(IDS[:10], cache)
    interrupt_in.append(6)  # in the second block
    with pytest.raises(KeyboardInterrupt):
        model.forward(IDS[10:20], cache)
    assert cache.tokens == IDS[:10]
    got = model.forward(IDS[30:35], cache)
    np.testing.assert_allclose(got, tiny.torch_logits(IDS[:10] + IDS[30:35])[-1], rtol=1e-3, atol=2e-3)


def test_every_weight_product_goes_through_linear(tiny: Any) -> None:
    macs = 0

    def pack(weight: NDArray[np.float32], name: str) -> Any:
        linear = numpy_pack(weight)

        class Counting:
            shape = linear.shape

            def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
                nonlocal macs
                assert x.dtype == np.float32
                assert x.flags.c_contiguous
                macs += x.shape[0] * self.shape[0] * self.shape[1]
                return linear(x)

        return Counting()

    model = load_model(tiny.path, pack=pack).model
    # per token and block: q, o (32 x 32), k, v (32 x 16), gate, up, down (32 x 48); head 32 x 264
    per_token = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    model.forward(IDS[:200], model.new_cache())
    assert macs == 200 * per_token + 32 * 264 == model.weight_macs(200)
    macs = 0
    model.forward(IDS[:7], model.new_cache(), all_logits=True)
    assert macs == 7 * (per_token + 32 * 264) == model.weight_macs(7, logit_rows=7)


def test_results_do_not_alias_what_a_linear_returns(tiny: Any) -> None:
    """A backend may hand out the same buffer on every call."""

    def pack(weight: NDArray[np.float32], name: str) -> Any:
        linear = numpy_pack(weight)
        buffers: dict[int, NDArray[np.float32]] = {}

        class Reusing:
            shape = linear.shape

            def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
                buffer = buffers.setdefault(len(x), np.empty((len(x), self.shape[1]), np.float32))
                buffer[:] = linear(x)
                view = buffer.view()
                view.flags.writeable = False
                return view

        return Reusing()

    model = load_model(tiny.path, pack=pack).model
    cache = model.new_cache()
    first, second = model.forward([IDS[0]], cache), model.forward([IDS[1]], cache)
    np.testing.assert_allclose(np.stack([first, second]), tiny.torch_logits(IDS[:2]), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("tokens", [[], [264], [-1], [[1, 2]]])
def test_bad_tokens_are_refused(tiny: Any, tokens: Any) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    with pytest.raises(ValueError, match="token"):
        model.forward(tokens, model.new_cache())


def test_context_length_limits_the_cache(tiny: Any) -> None:
    loaded = load_model(tiny.path, pack=numpy_pack, context_length=50)
    assert loaded.model.new_cache().capacity == 50
    assert loaded.model.new_cache(1000).capacity == 50
    assert load_model(tiny.path, pack=numpy_pack, context_length=10**6).model.new_cache().capacity == 512
    with pytest.raises(ValueError, match="context_length is 0"):
        load_model(tiny.path, pack=numpy_pack, context_length=0)


def test_progress_counts_matrices(tiny: Any) -> None:
    calls: list[tuple[int, int, str]] = []
    load_model(tiny.path, pack=numpy_pack, progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(10))
    assert {total for _, total, _ in calls} == {9}
    assert [name for _, _, name in calls] == [*layer_names(2), "done"]
    assert calls[0][2] == "blk.0.qkv"


def test_unknown_weights_are_refused(make_tiny_model: Callable[..., Any]) -> None:
    tiny = make_tiny_model(change=lambda w: w.add_tensor("blk.0.attn_q_norm.weight", np.ones(8, np.float32)))
    with pytest.raises(ModelError, match=r"not supported, such as 'blk\.0\.attn_q_norm\.weight'"):
        load_model(tiny.path, pack=numpy_pack)


def test_weights_with_nan_are_refused(make_tiny_model: Callable[..., Any]) -> None:
    def spoil(writer: Any) -> None:
        writer.tensors[0]["blk.1.ffn_down.weight"].tensor[3, 5] = np.nan

    tiny = make_tiny_model(change=spoil)
    with pytest.raises(ModelError, match=r"'blk\.1\.ffn_down\.weight' holds NaN"):
        load_model(tiny.path, pack=numpy_pack)


def test_cache_arguments() -> None:
    config = DecoderConfig(1, 8, 2, 1, 4, 16, 32, 64)
    with pytest.raises(ValueError, match="capacity of a cache is 0"):
        KVCache(config, 0)
    with pytest.raises(ValueError, match="holds 0 tokens and cannot be cut to 1"):
        KVCache(config, 4).truncate(1)
