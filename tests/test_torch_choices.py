"""Which modules of a model are offloaded, where to, and which mistakes are told."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch_models import cosine

import npumatmul as npu
from npumatmul.torch import offload

pytestmark = pytest.mark.usefixtures("plain_torch")


class Own(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


class Named(nn.Linear):
    """A linear layer under another name."""


def test_subclasses_go_if_they_compute_the_same() -> None:
    replaced = nn.Linear(64, 64)
    replaced.forward = lambda x: 2 * x  # type: ignore[method-assign]
    model = nn.Sequential(Named(64, 64), Own(64, 64), replaced, nn.ConvTranspose2d(32, 32, 3))
    attention = nn.MultiheadAttention(64, 4)
    model.append(attention)
    report = offload(model)
    assert [(row.name, row.kind) for row in report] == [("0", "Named")]
    assert {name: text.split(",")[0].split(" ")[0] for name, text in report.left.items()} == {
        "1": "its", "2": "its", "3": "its", "4.out_proj": "nn.MultiheadAttention",
    }  # fmt: skip
    assert "Own" in report.left["1"]
    assert "forward was replaced" in report.left["2"]


def test_an_interrupt_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from npumatmul.torch import offloading

    made: list[str] = []
    row_of = offloading.row_of

    def interrupted(name: str, *rest: Any) -> Any:
        made.append(name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return row_of(name, *rest)

    monkeypatch.setattr(offloading, "row_of", interrupted)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Dropout())
    model[0].register_forward_hook(lambda *each: None)
    model[2].eval()
    before = list(model)
    with pytest.raises(KeyboardInterrupt):
        offload(model, example_inputs=torch.randn(99, 64))
    assert list(model) == before
    assert [each.training for each in model.modules()] == [True, True, True, False]
    assert all(each.requires_grad for each in model.parameters())
    monkeypatch.undo()
    assert len(offload(model)) == 2


class Shared(nn.Module):
    """One layer under two names, and one that is only looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 64)
        self.again = self.first
        self.norm = nn.LayerNorm(64)
        self.lm_head = nn.Linear(64, 9)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> Any:
        x = self.norm(self.again(self.first(x)))
        return self.lm_head(self.attention(x, x, x)[0])


def test_shared_modules_stay_shared_and_attention_stays() -> None:
    model = Shared().eval()
    original = copy.deepcopy(model)
    report = offload(model, "w16a16")
    assert model.first is model.again
    assert [row.name for row in report] == ["first", "again"]
    assert report.left["lm_head"] == "skip_modules names it"
    assert report.left.keys() == {"lm_head", "attention.out_proj"}
    x = torch.randn(2, 5, 64)
    assert cosine(model(x), original(x)) > 0.99999


def test_layers_that_multiply_in_ways_of_their_own_are_named() -> None:
    model = nn.ModuleDict(
        {
            "taken": nn.Linear(64, 64), "lstm": nn.LSTM(64, 64), "cell": nn.GRUCell(64, 64),
            "both": nn.Bilinear(8, 8, 8), "volume": nn.Conv3d(64, 64, 3), "table": nn.Embedding(9, 64),
        }
    )  # fmt: skip
    report = offload(model)
    assert [row.name for row in report] == ["taken"]
    kinds = {"lstm": "LSTM", "cell": "GRUCell", "both": "Bilinear", "volume": "Conv3d"}
    assert report.left == {name: f"{kind} is not supported" for name, kind in kinds.items()}


def test_devices_by_name() -> None:
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64), "c": nn.Linear(64, 64)})
    report = offload(model, device_map={"": "sim:rk3588", "b": "sim:rk3576", "c": "cpu"})
    assert [(row.name, row.where) for row in report] == [("a", "sim:rk3588"), ("b", "sim:rk3576")]
    assert report.left == {"c": "device_map leaves it on the CPU"}
    assert type(model["c"]) is nn.Linear
    for name in "ab":
        model[name](torch.zeros(1, 64))
    text = str(report)
    assert "sim:rk3576" in text
    assert "modelled, not measured" in text or report.gain() is None
    assert report.nbytes == sum(row.nbytes for row in report) >= 2 * 64 * 64


def test_filters_choose() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Conv1d(3, 4, 3), nn.Linear(64, 64))
    asked = []
    report = offload(model, filter_fn=lambda module, name: asked.append(name) or name != "2")  # type: ignore[func-returns-value]
    assert asked == ["0", "1", "2"]
    assert [row.name for row in report] == ["0", "1"]
    assert report.left == {"2": "filter_fn leaves it out"}


@pytest.mark.parametrize(
    ("make", "how", "kind", "message"),
    [
        (lambda: nn.Linear(3, 3), {}, TypeError, "cannot be replaced in place"),
        (lambda: nn.Sequential(nn.ReLU()), {}, ValueError, "has none of Linear"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"skip_modules": ["0"]}, ValueError, "skip_modules names it"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"scheme": "w9a9"}, ValueError, "w9a9"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"scheme": 8}, TypeError, "scheme is a name"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"scheme": "int8"}, TypeError, "int8"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"device_map": {"5": "sim:rk3588"}}, ValueError, "name of nothing"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"device_map": {"": None}}, TypeError, "no device"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"device_map": "cpu"}, ValueError, "leaves it on the CPU"),
        (lambda: nn.Sequential(nn.Linear(3, 3)), {"example_text": "a"}, ValueError, "needs a tokenizer"),
        (lambda: nn.Sequential(nn.Linear(3, 3, dtype=torch.float64)), {}, ValueError, "float64"),
        (lambda: nn.Sequential(nn.Linear(3, 3, device="meta")), {}, ValueError, "on meta"),
        (lambda: "model", {}, TypeError, "a torch.nn.Module"),
    ],
)  # fmt: skip
def test_what_cannot_be_offloaded_says_why(make: Any, how: Any, kind: type[Exception], message: str) -> None:
    model = make()
    before = dict(model.named_modules()) if isinstance(model, nn.Module) else None
    with pytest.raises(kind, match=message):
        offload(model, **how)
    assert before is None or dict(model.named_modules()) == before


def test_a_weight_that_is_not_finite_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    model[1].weight[3, 4] = np.nan
    with pytest.raises(npu.errors.NotFiniteError, match="1: the weight"):
        offload(model)
    assert all(type(each) is nn.Linear for each in model)
    assert model.training
