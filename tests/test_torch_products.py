"""Offloaded layers against PyTorch's own in float32, and as operators of PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import weight_norm
from torch.nn.utils.parametrizations import weight_norm as parametrized_norm
from torch_models import tiny

import npumatmul as npu
from npumatmul.torch import NpuExperts, NpuLinear, offload

pytestmark = pytest.mark.usefixtures("plain_torch")


U, V = 2.0**-11, 2.0**-24


def bound(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """What `npumatmul.matmul` may be off in w16a16; the float32 reference itself is off a little, too."""
    k = w.shape[1]
    a, b = x.abs().double(), w.abs().double()
    tiny = 2.0**-21 * k * a.amax(-1, keepdim=True) * b.amax(-1)
    return ((1 + U) ** 2 * (1 + V) ** (2 * k + 3) - 1) * (a @ b.T) + tiny


@given(
    k=st.integers(1, 90), n=st.integers(1, 90), lead=st.lists(st.integers(0, 4), max_size=3), has_bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]), strided=st.booleans(),
)  # fmt: skip
@settings(max_examples=60)
def test_linear_is_pytorchs_within_the_bound_of_products(
    k: int, n: int, lead: list[int], has_bias: bool, dtype: torch.dtype, strided: bool
) -> None:
    torch.manual_seed(k * 91 + n)
    model = nn.Sequential(nn.Linear(k, n, bias=has_bias))
    original = copy.deepcopy(model)
    offload(model, "w16a16")
    x = torch.randn(*lead, k).to(dtype)
    if strided:
        x = torch.stack([x, x], dim=-1)[..., 0]
    with torch.no_grad():
        y = model(x)
        expected = original(x.float())
    assert y.dtype == dtype
    assert y.shape == expected.shape
    step = {torch.float32: 2 * V, torch.float16: U, torch.bfloat16: 2.0**-8}[dtype]
    allowed = bound(x.float(), original[0].weight) * (1 + step) + step * expected.abs() + 1e-6
    assert ((y.double() - expected).abs() <= allowed).all()


CONVOLUTIONS: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv1d(32, 40, 3),
    lambda: nn.Conv1d(32, 40, 5, stride=2, padding=2, dilation=2, bias=False),
    lambda: nn.Conv1d(64, 64, 3, padding="same", padding_mode="reflect", groups=2),
    lambda: nn.ConvTranspose1d(32, 40, 8, stride=4, padding=2, output_padding=1),
    lambda: nn.ConvTranspose1d(64, 64, 3, dilation=2, groups=2),
    lambda: nn.Conv2d(8, 40, (3, 5), stride=(1, 2), padding=(0, 1)),
    lambda: parametrized_norm(nn.Conv1d(32, 40, 3)),
    lambda: weight_norm(nn.Conv1d(32, 40, 3)),
]


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("scheme", ["w16a16", "w8a8", "float32"])
@pytest.mark.parametrize("case", range(len(CONVOLUTIONS)))
def test_convolutions(case: int, scheme: str) -> None:
    original = nn.Sequential(CONVOLUTIONS[case](), nn.ReLU())
    model = nn.Sequential(CONVOLUTIONS[case](), nn.ReLU())
    model.load_state_dict(original.state_dict())
    report = offload(model, scheme)
    assert len(report) == 1
    shape = (2, 8, 9, 11) if isinstance(original[0], nn.Conv2d) else (2, original[0].in_channels, 29)
    x = torch.randn(*shape)
    y, expected = model(x), original(x)
    assert y.shape == expected.shape
    off = {"w16a16": 2e-3, "w8a8": 3e-2, "float32": 1e-6}[scheme]
    assert (y - expected).abs().max() <= off * expected.abs().max()
    torch.testing.assert_close(model(x[0]), y[0], rtol=1e-5, atol=1e-5)
    found = torch.export.export(model, (x,)).module()(x)
    assert torch.equal(found, y)


def test_operators_pass_pytorchs_own_checks() -> None:
    model, _, _ = tiny("qwen3-moe")
    layers = nn.Sequential(nn.Linear(64, 33), nn.Conv1d(32, 40, 3, padding=1), nn.ConvTranspose1d(32, 40, 4, stride=2))
    offload(layers)
    offload(model)
    linear, convolution, transposed = layers
    torch.library.opcheck(torch.ops.npumatmul.linear.default, (torch.randn(2, 64), linear._number, 33))
    shape = list(convolution.weight.shape)
    torch.library.opcheck(
        torch.ops.npumatmul.convolve.default,
        (torch.randn(2, 32, 9), convolution._number, shape, [1], [1], [1], False, [0], 1),
    )
    shape = list(transposed.weight.shape)
    torch.library.opcheck(
        torch.ops.npumatmul.convolve.default,
        (torch.randn(2, 32, 9), transposed._number, shape, [2], [0], [1], True, [0], 1),
    )
    experts = next(each for each in model.modules() if isinstance(each, NpuExperts))
    chosen = torch.tensor([[0, 1], [3, 2]])
    torch.library.opcheck(
        torch.ops.npumatmul.experts.default, (torch.randn(2, 64), chosen, torch.rand(2, 2), experts._number)
    )


@pytest.mark.parametrize(
    ("x", "kind", "message"),
    [
        (torch.zeros(2, 64, dtype=torch.float64), TypeError, r"not float64.*x\.float\(\)"),
        (torch.zeros(2, 64, dtype=torch.int32), TypeError, "not int32"),
        (torch.zeros(2, 63), RuntimeError, r"shape \(2, 63\)"),
        (torch.full((2, 64), np.nan), npu.errors.NotFiniteError, "row"),
        (torch.zeros(2, 64, device="meta"), Exception, ""),
    ],
)
def test_wrong_inputs(x: torch.Tensor, kind: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Linear(64, 48))
    offload(model, "w8a8")
    if x.device.type == "meta":
        assert model(x).shape == (2, 48)
        return
    with pytest.raises(kind, match=message):
        model(x)


def test_repr_says_where_a_layer_is() -> None:
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv1d(32, 48, 3))
    offload(model)
    assert "NpuLinear(in_features=64, out_features=48, bias=True, scheme='w8a8', where='sim:" in repr(model)
    assert "NpuConv1d(32, 48, kernel_size=(3,)" in repr(model)
    assert isinstance(model[0], NpuLinear)


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.convolution = nn.Linear(64, 48), nn.Conv1d(48, 40, 3, padding=1)

    def forward(self, x: torch.Tensor) -> Any:
        return self.convolution(torch.relu(self.linear(x)).transpose(-1, -2))


class Inside(torch.fx.Tracer):
    """It goes into modules, as tools do that rewrite graphs."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:There is a performance drop")
def test_traced_programs_call_the_operators() -> None:
    model = Layers()
    offload(model)
    x, more = torch.randn(2, 9, 64), torch.randn(3, 17, 64)
    graphs = [torch.fx.symbolic_trace(model), torch.fx.GraphModule(model, Inside().trace(model))]
    for graph in graphs:
        called = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        assert called[0] == "npumatmul.linear"
        assert called[-1] == "npumatmul.convolve"
    for program in (*graphs, torch.jit.trace(model, x)):
        for rows in (x, more):  # of other shapes than it was traced with, too
            assert torch.equal(program(rows), model(rows))
    assert torch.equal(torch.vmap(model.linear)(x), model.linear(x))
