"""Recorded programs beside other caches, layers of other classes, changes in place, and memory of weights."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from test_llm_recorded import IDS, by_python, decoder, same, steps, trusted

import npumatmul as npu
from npumatmul import nn
from npumatmul.llm import Decoder
from npumatmul.llm.models.taps import TappedLinear


def warm(**more: Any) -> Decoder:
    """A model with a program for single tokens."""
    model = decoder(**more)
    steps(model, nn.KVCache(3, 2, 16), [1] * 4)
    assert trusted(model) == {1}
    return model


OTHER_CACHES: dict[str, Callable[[], nn.KVCache]] = {
    "window": lambda: nn.KVCache(3, 2, 16, window=2),
    "wide": lambda: nn.KVCache(3, 2, 32),
    "narrow": lambda: nn.KVCache(3, 2, 8),
    "fewer-layers": lambda: nn.KVCache(2, 2, 16),
    "more-layers": lambda: nn.KVCache(5, 2, 16),
    "two-texts": lambda: nn.KVCache(3, 1, 16, batch=2),
    "heads": lambda: nn.KVCache(3, 4, 16),
    "full": lambda: nn.KVCache(3, 2, 16, limit=2),
}


@pytest.mark.parametrize("kind", list(OTHER_CACHES))
def test_caches_of_other_models_are_treated_as_by_python(kind: str) -> None:
    """With the same errors, at the same token, and never by what was recorded with another layout."""
    model = warm()
    found = []
    for guard in (by_python, None):
        cache = OTHER_CACHES[kind]()
        rows: list[Any] = []
        with guard() if guard else npu.config():
            try:
                for i in range(4):
                    rows += [each.tobytes() for each in steps(model, cache, [1])] + [i]
            except (ValueError, IndexError) as error:
                rows.append((type(error), str(error)))
        found.append((rows, cache.offset))
    assert found[0] == found[1]


class Counting(nn.KVCache):
    """Notes what is stored."""

    stored = 0

    def update(self, layer: int, k: Any, v: Any) -> Any:
        self.stored += 1
        return super().update(layer, k, v)

    def attend(self, layer: int, how: Any, q: Any, k: Any, v: Any) -> Any:
        self.stored += 1
        return super().attend(layer, how, q, k, v)


def test_a_cache_of_a_derived_class_hears_of_every_token() -> None:
    model, cache = warm(), Counting(3, 2, 16)
    steps(model, cache, [1] * 5)
    assert cache.stored == 15


class HookedMLP(nn.MLP):
    calls = 0

    def __call__(self, x: Any) -> Any:
        type(self).calls += 1
        return super().__call__(x)


class HookedNorm(nn.RMSNorm):
    calls = 0

    def __call__(self, x: Any) -> Any:
        type(self).calls += 1
        return super().__call__(x)


class HookedBlock(nn.TransformerBlock):
    calls = 0

    def after_mlp(self, x: Any, y: Any) -> Any:
        type(self).calls += 1
        return super().after_mlp(x, y)


def test_layers_of_derived_classes_are_called_once_for_each_token() -> None:
    """They may count, print or keep something; only who says that calls can be repeated is called again."""
    kinds: list[tuple[Any, Callable[[Any], Any]]] = [
        (HookedMLP, lambda model: model.model.layers[1].mlp),
        (HookedNorm, lambda model: model.model.layers[1].input_layernorm),
        (HookedBlock, lambda model: model.model.layers[1]),
    ]
    for hooked, find in kinds:
        model = decoder()
        find(model).__class__ = hooked
        steps(model, nn.KVCache(3, 2, 16), [1] * 6)
        assert hooked.calls == 6, hooked


def test_replaced_methods_of_one_object_are_called_for_each_token() -> None:
    model, calls = decoder(), []
    attention: Any = model.model.layers[2].self_attn
    before = attention.attend

    def attend(*given: Any, **how: Any) -> Any:
        calls.append(1)
        return before(*given, **how)

    attention.attend = attend
    steps(model, nn.KVCache(3, 2, 16), [1] * 6)
    assert len(calls) == 6


def test_products_that_somebody_looks_at_show_every_token() -> None:
    model, seen = decoder(), []
    taps = {name: TappedLinear(each, name, lambda *of: seen.append(of[0])) for name, each in model.linears.items()}
    model = model.with_linears(taps)
    steps(model, nn.KVCache(3, 2, 16), [1] * 5)
    assert [seen.count(name) for name in taps] == [5] * 12 + [0], "the head comes behind the blocks"


def test_parameters_that_are_written_to_where_they_stand() -> None:
    model = decoder(norm="layer", qkv_bias=True, sinks=True)
    blocks: list[Any] = list(model.model.layers)
    for block in blocks:
        block.layer_scalar = np.ones(1, np.float32)
        block.input_layernorm.weight = block.input_layernorm.weight.astype(np.float16)
    cache = nn.KVCache(3, 2, 16)
    changes: list[Callable[[Any], None]] = [
        lambda block: block.layer_scalar.fill(2),
        lambda block: block.input_layernorm.weight.fill(3),
        lambda block: block.post_attention_layernorm.bias.fill(0.5),
        lambda block: block.self_attn.sinks.fill(1),
        lambda block: block.self_attn.qkv.bias.fill(0.25),
    ]
    for change in changes:
        steps(model, cache, [1] * 3)
        for block in blocks:
            change(block)
        made = steps(model, nn.KVCache(3, 2, 16), [1] * 3)
        with by_python():
            assert same(made, steps(model, nn.KVCache(3, 2, 16), [1] * 3))


def test_a_weight_that_is_replaced_gives_up_its_memory_at_once() -> None:
    model = warm()
    steps(model, nn.KVCache(3, 2, 16), [2] * 3)
    blocks: list[Any] = list(model.model.layers)
    layer = blocks[1].mlp.down_proj
    old: Any = layer.product
    gone = weakref.ref(old.weight)
    del old
    gc.disable()
    try:
        layer.use(nn.PackedProduct(npu.pack(np.eye(96, 64, dtype=np.float32), "w8a8")))
        assert gone() is None
        last = weakref.ref(blocks[0].mlp.down_proj.product.weight)
        steps(model, nn.KVCache(3, 2, 16), [1] * 4)
        assert trusted(model) == {1}
        del model, layer, blocks
        assert last() is None
    finally:
        gc.enable()


def test_progress_may_run_the_same_model() -> None:
    """Long prompts go through the blocks in several calls, between which others may have the program."""
    model = decoder(7)
    ids = [each % 64 for each in IDS]
    with by_python():
        right = model.run_blocks(model.embed(ids), nn.KVCache(7, 2, 16), len(ids))
        other = model.run_blocks(model.embed(ids[::-1]), nn.KVCache(7, 2, 16), len(ids))
    for _ in range(3):
        model.run_blocks(model.embed(ids), nn.KVCache(7, 2, 16), len(ids))
    assert trusted(model) == {len(ids)}
    inner = []

    def told(done: int) -> None:
        if done in (1, 4):
            inner.append(model.run_blocks(model.embed(ids[::-1]), nn.KVCache(7, 2, 16), len(ids)))

    made = model.run_blocks(model.embed(ids), nn.KVCache(7, 2, 16), len(ids), told)
    assert made.tobytes() == right.tobytes()
    assert len(inner) == 2
    assert all(each.tobytes() == other.tobytes() for each in inner)


def test_copies_of_a_model_record_their_own() -> None:
    model = warm()
    made = copy.deepcopy(model._recorded)
    assert made is not model._recorded
    assert not made._programs


def test_what_is_refused_is_not_remembered_for_ever() -> None:
    model = decoder(2, scheme="float32")
    for count in range(1, 300):
        x = model.embed([1] * (count % 2 + 1))
        cache = nn.KVCache(2, 2, 16, limit=count + 4)
        model.run_blocks(x, nn.CacheBatch([cache], [len(x)]), 4)
        model._recorded._refuse((count,), 0)
    assert len(model._recorded._refused) <= 256


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("shape", [(3,), (), (65,), (1, 64)])
def test_parameters_of_another_shape_are_refused_before_they_are_read(name: str, shape: tuple[int, ...]) -> None:
    norm = nn.LayerNorm(64)
    setattr(norm, name, np.ones(shape, np.float32))
    with pytest.raises(ValueError, match=r"values; one was set of shape"):
        norm(np.ones((2, 64), np.float32))


def test_sinks_of_another_shape_are_refused_before_they_are_read() -> None:
    model = decoder(sinks=True)
    attention: Any = model.model.layers[0].self_attn
    attention.sinks = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=r"sinks has shape \(1,\); there are 4 heads"):
        model.forward([1], model.new_cache())
