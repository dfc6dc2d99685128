"""Weights that are rounded by examples, and layers that are compared on them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch_models import cosine

import npumatmul as npu
from npumatmul.torch import analyze, offload

pytestmark = pytest.mark.usefixtures("plain_torch")


def test_examples_decide_how_four_bits_are_rounded() -> None:
    rng = torch.Generator().manual_seed(1)
    mixing = torch.randn(128, 128, generator=rng) * torch.logspace(-1, 1, 128)
    x = torch.randn(400, 128, generator=rng) @ mixing
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 64))
    original = copy.deepcopy(model)
    plain, calibrated = copy.deepcopy(model), copy.deepcopy(model)
    offload(plain, "w4a8")
    offload(calibrated, "w4a8", example_inputs=[x[:100], (x[100:200],), {"input": x[200:300]}])
    test = x[300:]
    errors = [float((each(test) - original(test)).square().mean()) for each in (plain, calibrated)]
    assert errors[1] < 0.7 * errors[0]
    assert original.training
    after = calibrated.state_dict()
    reloaded = copy.deepcopy(original)
    reloaded.load_state_dict(after)
    assert cosine(reloaded(test), original(test)) > 0.98


def test_layers_are_compared_on_what_comes_into_them() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    original = copy.deepcopy(model)
    offload(model, "w16a16")
    model[2].take("weight", original[2].weight + 0.05 * torch.randn(64, 64))
    found = analyze(model, original, [torch.randn(50, 64), torch.randn(3, 64)])
    assert found[0].name == "2"
    assert found[0].sqnr < 25 < 55 < found[1].sqnr
    assert 0 < found[1].largest < 1e-2
    assert found[1].cosine > 0.9999
    with pytest.raises(ValueError, match="nothing of the model is offloaded"):
        analyze(original, original, torch.randn(1, 64))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8"])
@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (torch.zeros(3, 64), ValueError, "layer 'inner.0': what came into it, 3 rows, is too little or too much alike"),
        (torch.ones(5, 64), ValueError, "layer 'inner.0': .* leave this layer out"),
        (torch.linspace(-1, 1, 64)[None], ValueError, "layer 'inner.0': what came into it, 1 rows"),
        (torch.zeros(0, 64), ValueError, "bring no rows to any of the linear layers"),
        (torch.full((3, 64), torch.nan), npu.errors.NotFiniteError, "layer 'inner.0': what came into it holds an inf"),
        (torch.full((3, 64), 1e30), npu.errors.NotFiniteError, "layer 'inner.0': .* squares overflow"),
    ],
)
def test_examples_that_say_too_little_name_the_layer(
    rows: torch.Tensor, kind: type[Exception], message: str, scheme: str
) -> None:
    model = nn.ModuleDict({"inner": nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))})
    model.forward = lambda x: model["inner"](x)  # type: ignore[method-assign]
    before = list(model.modules())
    with pytest.raises(kind, match=message):
        offload(model, scheme, example_inputs=rows)
    assert list(model.modules()) == before
