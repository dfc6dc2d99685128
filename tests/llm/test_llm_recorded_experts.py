"""Experts in recorded programs: Python chooses, and those that a token does not pass are left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from test_llm_recorded import IDS, by_python, calls_of, decoder, same, steps, trusted

import npumatmul as npu
from npumatmul import nn
from npumatmul.llm import Decoder

Float32 = NDArray[np.float32]


def expert_decoder(layers: int = 3, experts: int = 6, top_k: int = 2, **more: Any) -> Decoder:
    """A small model whose networks are experts."""
    model = decoder(layers)
    rng = np.random.default_rng(8)
    blocks: list[Any] = list(model.model.layers)
    for block in blocks:
        own = nn.MixtureOfExperts(64, 32, experts, top_k, scheme="w8a8", **more)
        shapes = own.parameter_shapes()
        own.load_state_dict({n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in shapes.items()})
        block.mlp = own
    return model


def calls(model: Decoder) -> int:
    """Steps of programs for single tokens that are calls of Python."""
    (found,) = [each for key, each in model._recorded._programs.items() if key[0][0] == 1]  # type: ignore[index]
    return sum(entry.call is not None for entry in found.program._keeps)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"softmax": "chosen", "bias": True},
        {"softmax": None, "normalize": True, "scale": 2.5, "preferred": True},
        {"shared_size": 32},
        {"shared_size": 32, "shared_gate": True, "normalize": True},
    ],
    ids=["plain", "biases", "sigmoids", "shared", "gated"],
)
def test_experts_give_the_same_bits(more: dict[str, Any]) -> None:
    model = expert_decoder(**more)
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config():
            found.append(steps(model, nn.KVCache(3, 2, 16), [1] * 16 + [3, 3, 3, 3]))
    assert same(*found)
    assert trusted(model) == {1, 3}
    assert calls(model) == 3 * (1 + ("shared_gate" in more))


def test_only_those_that_are_chosen_are_multiplied_with() -> None:
    with npu.Device("sim:rk3588") as device, npu.config():
        model = decoder(2, device=device)
        own = nn.MixtureOfExperts(64, 32, 8, 3, scheme="w8a8", device=device)
        rng = np.random.default_rng(8)
        shapes = own.parameter_shapes()
        own.load_state_dict({n: rng.standard_normal(s).astype(np.float32) * 0.3 for n, s in shapes.items()})
        blocks: list[Any] = list(model.model.layers)
        blocks[1].mlp = own
        cache = nn.KVCache(2, 2, 16)
        steps(model, cache, [1] * 4)
        assert trusted(model) == {1}
        before = device.stats().run_calls
        steps(model, cache, [1] * 10)
        assert device.stats().run_calls - before == 10 * (4 + 2 + 2 * 3)


def test_calls_do_not_grow_with_experts() -> None:
    taken = []
    for experts, top_k in ((4, 1), (32, 8)):
        model = expert_decoder(4, experts, top_k)
        cache = model.new_cache(300)
        for token in IDS[:5]:
            model.forward([token], cache)
        taken.append(calls_of(lambda model=model, cache=cache: model.forward([3], cache)))  # type: ignore[misc]
    assert taken[0] == taken[1]
    assert taken[0] <= 75 + 4 * 15


def test_many_experts_are_called() -> None:
    model = expert_decoder(2, 65, 2)
    found = []
    for guard in (by_python, None):
        with guard() if guard else npu.config():
            found.append(steps(model, nn.KVCache(2, 2, 16), [1] * 5))
    assert same(*found)
    assert trusted(model) == {1}
    assert calls(model) == 2


@pytest.mark.parametrize("part", ["expert", "router"])
def test_changes_of_experts_are_seen(part: str) -> None:
    model = expert_decoder()
    steps(model, nn.KVCache(3, 2, 16), [1] * 6)
    mlp: Any = model.model.layers[1].mlp
    if part == "router":
        mlp.gate.weight.fill(0.5)  # where it stands
    else:
        for each in mlp.experts:
            each.down_proj.use(nn.PackedProduct(npu.pack(np.eye(32, 64, dtype=np.float32), "w8a8")))
    changed = steps(model, nn.KVCache(3, 2, 16), [1] * 6)
    with by_python():
        assert same(changed, steps(model, nn.KVCache(3, 2, 16), [1] * 6))


def test_weights_that_are_no_numbers_spread_as_by_python() -> None:
    """A weight that is a nan counts: what is left out is what is not chosen."""
    model = expert_decoder(1)
    mlp: Any = model.model.layers[0].mlp
    cache = nn.KVCache(1, 2, 16)
    steps(model, cache, [1] * 4)
    mlp.gate._scale = np.float32(np.nan)  # a private attribute: nothing is recorded anew
    made = steps(model, cache, [1])[0]
    assert np.isnan(made).all()
