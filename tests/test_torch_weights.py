"""Weights of offloaded modules: read, copied, moved, saved, and replaced; what they leave as it was."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_models import cosine

from npumatmul.torch import offload
from npumatmul.torch.tensors import PackedTensor

pytestmark = pytest.mark.usefixtures("plain_torch")


@pytest.mark.parametrize("scheme", ["w16a16", "w8a8"])
def test_weights_are_read_back_and_loaded(scheme: str) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(32, 48, 3))
    original = copy.deepcopy(model)
    before = original.state_dict()
    offload(model, scheme)
    after = model.state_dict()
    assert list(after) == list(before)
    for name, values in after.items():
        assert values.dtype == before[name].dtype
        assert (values - before[name]).abs().max() <= before[name].abs().max() * (2e-3 if scheme == "w16a16" else 2e-2)
    x = torch.randn(3, 64)
    y = model[0](x)
    assert model.load_state_dict(after) == ([], [])
    assert cosine(model[0](x), y) > 0.99999
    other = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(32, 48, 3))
    model.load_state_dict(other.state_dict())
    assert cosine(model[0](x), other[0](x)) > 0.999
    with pytest.raises(RuntimeError, match=r"0\.weight has shape"):
        model.load_state_dict({**after, "0.weight": torch.zeros(3, 3)})
    assert cosine(model[0](x), other[0](x)) > 0.999
    found = model.load_state_dict({"0.bias": torch.zeros(48), "more": torch.zeros(1)}, strict=False)
    assert found.unexpected_keys == ["more"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        model.load_state_dict({"0.bias": torch.zeros(48)})


def test_a_weight_looks_like_one() -> None:
    model = nn.Sequential(nn.Linear(64, 48).to(torch.bfloat16))
    expected = model[0].weight.clone()
    offload(model, "w16a16")
    weight = model[0].weight
    assert isinstance(weight, PackedTensor)
    assert (weight.shape, weight.dtype, weight.device.type) == ((48, 64), torch.bfloat16, "cpu")
    torch.testing.assert_close(weight + 0, expected, rtol=1e-2, atol=1e-2)
    x = torch.randn(2, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(nn.functional.linear(x, weight, model[0].bias), model(x), rtol=2e-2, atol=2e-2)
    assert "on the NPU" in repr(weight)
    assert isinstance(weight, nn.Parameter)
    np.testing.assert_array_equal(weight.float().numpy(), weight.float().tolist())
    model[0].weight = nn.Parameter(torch.eye(48, 64))
    torch.testing.assert_close(model(x) - model[0].bias, x[:, :48], rtol=2e-2, atol=2e-2)
    assert dict(model.named_parameters()).keys() == {"0.bias"}


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.mul_(2),
        nn.init.zeros_,
        lambda weight: setattr(weight, "data", torch.zeros(48, 64)),
    ],
)
def test_a_weight_that_would_be_changed_in_place_says_how_to_change_it(change: Any) -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    offload(model, "w16a16")
    x = torch.randn(2, 64)
    y = model(x)
    with pytest.raises(RuntimeError, match=r"cannot be changed in place; assign"):
        change(model[0].weight)
    assert torch.equal(model(x), y)


def test_a_weight_that_was_taken_stays_what_it_was() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 32))
    offload(model, "w8a8")
    x = torch.randn(2, 64)
    y, weight, other = model(x), model[0].weight, copy.deepcopy(model)
    values = weight.clone()
    given_ = {name: 2 * each for name, each in model.state_dict().items()}
    swapped = torch.func.functional_call(model, given_, (x,))
    assert cosine(swapped, y) < 0.99999
    assert torch.equal(model(x), y)
    other.load_state_dict(given_)
    assert torch.equal(other(x), swapped)
    assert torch.equal(model(x), y)
    assert torch.equal(weight, values)
    model[0].weight = torch.zeros(48, 64)
    assert torch.equal(weight, values)
    model[0].weight = weight
    assert torch.equal(model(x), y)


def test_copies_share_weights_and_files_hold_them(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(32, 48, 3))
    offload(model, "w8a8")
    x = torch.randn(3, 64)
    other = copy.deepcopy(model)
    assert other[0]._held["weight"] is model[0]._held["weight"]
    assert other[0]._number != model[0]._number
    assert torch.equal(other[0](x), model[0](x))
    torch.save(model, tmp_path / "model.pt")
    for again in (torch.load(tmp_path / "model.pt", weights_only=False), pickle.loads(pickle.dumps(model))):
        assert cosine(again[0](x), model[0](x)) > 0.99999
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    assert list(torch.load(tmp_path / "weights.pt", weights_only=True)) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_weights_leave_with_their_module() -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    offload(model)
    gone = weakref.ref(model[0].products()[0].weight)
    number = model[0]._number
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(RuntimeError, match="is gone"):
        torch.ops.npumatmul.linear(torch.zeros(1, 64), number, 48)


def test_moving_and_casting_touch_biases_only() -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    offload(model, "w16a16")
    x = torch.randn(3, 64)
    y = model(x)
    half = model.half()
    assert half[0].bias.dtype == torch.float16
    assert half(x.half()).dtype == torch.float16
    torch.testing.assert_close(model.float().to("cpu")(x), y, rtol=1e-3, atol=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


def test_frozen_models_say_so() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48))
    report = offload(model)
    assert not model.training
    assert not any(each.requires_grad for each in model.parameters())
    assert len(report) == 1
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.train()
    model.eval()
    with torch.enable_grad():
        y = model(torch.randn(2, 64, requires_grad=True)).sum()
        with pytest.raises(RuntimeError, match="frozen"):
            y.backward()


def test_hooks_stay() -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    seen = []
    handle = model[0].register_forward_hook(lambda module, given, result: seen.append(result.shape))
    offload(model)
    model(torch.zeros(2, 64))
    assert seen == [torch.Size([2, 48])]
    handle.remove()
    model(torch.zeros(2, 64))
    assert len(seen) == 1


def test_hooks_of_state_dicts_stay_and_are_told_the_new_module() -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    seen: list[Any] = []

    def renamed(module: Any, state: Any, prefix: str, *rest: Any) -> None:
        seen.append(module)
        if prefix + "kernel" in state:
            state[prefix + "weight"] = state.pop(prefix + "kernel")

    def written(module: Any, state: Any, prefix: str, metadata: Any) -> None:
        seen.append(module)
        state[prefix + "kernel"] = state.pop(prefix + "weight")

    handle = model[0].register_load_state_dict_pre_hook(renamed)
    model[0].register_state_dict_post_hook(written)
    model[0].register_state_dict_pre_hook(lambda module, prefix, keep: seen.append(module))
    model[0].register_load_state_dict_post_hook(lambda module, keys: seen.append(module))
    offload(model, "w16a16")
    seen.clear()
    state = model.state_dict()
    assert list(state) == ["0.bias", "0.kernel"]
    state["0.kernel"] = torch.eye(48, 64)
    model.load_state_dict(state)
    assert seen == 4 * [model[0]]
    x = torch.randn(2, 64)
    torch.testing.assert_close(model(x) - model[0].bias, x[:, :48], rtol=2e-3, atol=2e-3)
    handle.remove()
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.weight"):
        model.load_state_dict(state)


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
@pytest.mark.parametrize("case", range(4))
def test_weights_that_are_made_of_others_are_made_once(case: int) -> None:
    layer = nn.Linear(64, 48)
    if case == 0:
        nn.utils.spectral_norm(layer)
    elif case == 1:
        nn.utils.parametrizations.spectral_norm(layer)
    elif case == 2:
        nn.utils.parametrizations.orthogonal(layer)
    else:
        nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
        nn.utils.prune.l1_unstructured(layer, "bias", 0.5)
    model = nn.Sequential(layer).eval()
    x = torch.randn(3, 64)
    expected = model(x)
    offload(model, "w16a16")
    assert cosine(model(x), expected) > 0.999999
    assert model.state_dict().keys() == {"0.weight", "0.bias"}
    model.load_state_dict(model.state_dict())
    assert cosine(model(x), expected) > 0.999999
