"""Convolutions, batch normalization and what folds it, against torch, over odd shapes."""

from __future__ import annotations

import copy
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import npumatmul as npu
from npumatmul import nn
from npumatmul.errors import ModelError, NotFiniteError
from npumatmul.nn import convolution
from npumatmul.nn.product import FLOAT32
from npumatmul.nn.windows import pieces

# torch says that it copies where padding='same' is not the same on both sides
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")

U, V = 2.0**-11, 2.0**-24


def close(ours: np.ndarray, layer: torch.nn.Module, x: np.ndarray, scheme: str, added: int) -> None:
    """Within what rounding of operands and `added` additions may do to it."""
    exact = copy.deepcopy(layer).double()
    with torch.no_grad():
        wanted = exact(torch.from_numpy(x).double()).numpy()
        for parameter in exact.parameters():
            parameter.abs_()
        sums = exact(torch.from_numpy(np.abs(x)).double()).numpy()
        largest = float(exact.weight.max()) * float(np.abs(x).max(initial=0))
    assert ours.shape == wanted.shape
    assert ours.dtype == np.float32
    k = added
    if scheme == "w8a8":  # half a step of 1/127 of the largest of a row or a column, for both operands
        step = 0.5 / 127
        bound = k * largest * (2 * step + step**2) * 1.01 + 1e-4
    else:
        u = 0 if scheme == FLOAT32 else U
        bound = ((1 + u) ** 2 * (1 + V) ** (k + 3) - 1) * sums * 1.01 + (0 if u == 0 else 2.0**-20 * k * largest)
    assert (np.abs(ours - wanted) <= bound + 1e-30).all()


kernels = st.integers(1, 4)


@given(
    channels=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    groups=st.sampled_from([1, 1, 2, 3]),
    kernel=kernels,
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 4), st.sampled_from(["same", "valid"])),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    length=st.integers(1, 17),
    batch=st.sampled_from([None, 0, 1, 3]),
    bias=st.booleans(),
    scheme=st.sampled_from([FLOAT32, FLOAT32, "w16a16", "w8a8"]),
    seed=st.integers(0, 9),
)
def test_conv1d_is_torchs(
    channels: tuple[int, int], groups: int, kernel: int, stride: int, dilation: int, padding: Any, mode: Any,
    length: int, batch: int | None, bias: bool, scheme: str, seed: int,
) -> None:  # fmt: skip
    if padding == "same":
        stride = 1
    inputs, outputs = channels[0] * groups, channels[1] * groups
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "stride": stride, "dilation": dilation, "padding": padding, "groups": groups, "padding_mode": mode,
        "bias": bias,
    }  # fmt: skip
    theirs = torch.nn.Conv1d(inputs, outputs, kernel, **options)
    ours = nn.Conv1d(inputs, outputs, kernel, **options, scheme=scheme, device="sim:rk3588")
    ours.load_state_dict(theirs.state_dict())
    shape = (inputs, length) if batch is None else (batch, inputs, length)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    try:
        theirs(torch.from_numpy(x))
    except RuntimeError:
        if batch != 0:
            with pytest.raises(ValueError, match="Conv1d"):
                ours(x)
        return
    close(ours(x), theirs, x, scheme, kernel * channels[0] + 1)
    np.testing.assert_allclose(
        ours.state_dict()["weight"], theirs.weight.detach(), atol=0.02 if scheme == "w8a8" else 1e-3
    )


@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 1, 2]),
    kernel=st.tuples(kernels, kernels),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.one_of(st.tuples(st.integers(0, 3), st.integers(0, 3)), st.just("same")),
    mode=st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
    size=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    batch=st.sampled_from([None, 1, 2]),
    scheme=st.sampled_from([FLOAT32, "w16a16"]),
    seed=st.integers(0, 9),
)
def test_conv2d_is_torchs(
    channels: tuple[int, int], groups: int, kernel: Any, stride: Any, dilation: Any, padding: Any, mode: Any,
    size: tuple[int, int], batch: int | None, scheme: str, seed: int,
) -> None:  # fmt: skip
    if padding == "same":
        stride = 1
    inputs, outputs = channels[0] * groups, channels[1] * groups
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "stride": stride, "dilation": dilation, "padding": padding, "groups": groups, "padding_mode": mode,
    }  # fmt: skip
    theirs = torch.nn.Conv2d(inputs, outputs, kernel, **options)
    ours = nn.Conv2d(inputs, outputs, kernel, **options, scheme=scheme, device="sim:rk3588")
    ours.load_state_dict(theirs.state_dict())
    shape = (inputs, *size) if batch is None else (batch, inputs, *size)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    try:
        theirs(torch.from_numpy(x))
    except RuntimeError:
        with pytest.raises(ValueError, match="Conv2d"):
            ours(x)
        return
    close(ours(x), theirs, x, scheme, math.prod(kernel) * channels[0] + 1)


@given(
    channels=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    groups=st.sampled_from([1, 1, 2, 3]),
    kernel=kernels,
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 3),
    more=st.integers(0, 3),
    length=st.integers(1, 12),
    batch=st.sampled_from([None, 1, 3]),
    bias=st.booleans(),
    scheme=st.sampled_from([FLOAT32, FLOAT32, "w16a16", "w8a8"]),
    seed=st.integers(0, 9),
)
def test_conv_transpose_is_torchs(
    channels: tuple[int, int], groups: int, kernel: int, stride: int, dilation: int, padding: int, more: int,
    length: int, batch: int | None, bias: bool, scheme: str, seed: int,
) -> None:  # fmt: skip
    assume(more < max(stride, dilation))
    inputs, outputs = channels[0] * groups, channels[1] * groups
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "stride": stride, "dilation": dilation, "padding": padding, "output_padding": more, "groups": groups,
        "bias": bias,
    }  # fmt: skip
    theirs = torch.nn.ConvTranspose1d(inputs, outputs, kernel, **options)
    ours = nn.ConvTranspose1d(inputs, outputs, kernel, **options, scheme=scheme, device="sim:rk3588")
    ours.load_state_dict(theirs.state_dict())
    shape = (inputs, length) if batch is None else (batch, inputs, length)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    try:
        empty = theirs(torch.from_numpy(x)).numel() == 0  # with groups torch makes no error of this
    except RuntimeError:
        empty = True
    if empty:
        with pytest.raises(ValueError, match="nothing is left"):
            ours(x)
        return
    close(ours(x), theirs, x, scheme, kernel * channels[0] + 1)
    np.testing.assert_allclose(
        ours.state_dict()["weight"], theirs.weight.detach(), atol=0.02 if scheme == "w8a8" else 1e-3
    )


@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)), groups=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)), padding=st.tuples(st.integers(0, 1), st.integers(0, 1)),
    more=st.tuples(st.integers(0, 2), st.integers(0, 2)), sizes=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    scheme=st.sampled_from([FLOAT32, FLOAT32, "w16a16"]), seed=st.integers(0, 9),
)  # fmt: skip
def test_conv_transpose_of_images_is_torchs(
    channels: tuple[int, int], groups: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int],
    padding: tuple[int, int], more: tuple[int, int], sizes: tuple[int, int], scheme: str, seed: int,
) -> None:  # fmt: skip
    assume(all(m < max(s, d) for m, s, d in zip(more, stride, dilation, strict=True)))
    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "stride": stride, "dilation": dilation, "padding": padding, "output_padding": more, "groups": groups,
    }  # fmt: skip
    theirs = torch.nn.ConvTranspose2d(channels[0] * groups, channels[1] * groups, kernel, **options)
    ours = nn.ConvTranspose2d(channels[0] * groups, channels[1] * groups, kernel, **options, scheme=scheme)
    ours.load_state_dict(theirs.state_dict())
    x = np.random.default_rng(seed).standard_normal((2, channels[0] * groups, *sizes)).astype(np.float32)
    assume(min(theirs(torch.from_numpy(x)).shape) > 0)
    close(ours(x), theirs, x, scheme, kernel[0] * kernel[1] * channels[0] + 1)
    np.testing.assert_allclose(ours.state_dict()["weight"], theirs.weight.detach(), atol=1e-3)


@given(shape=st.lists(st.integers(0, 6), max_size=4), most=st.integers(0, 40))
def test_pieces_cover_every_place_once(shape: list[int], most: int) -> None:
    seen = np.zeros(shape, np.int64)
    for piece in pieces(shape, most):
        assert seen[piece].size <= max(most, 1)
        seen[piece] += 1
    assert (seen == 1).all()


@pytest.mark.parametrize("scheme", [FLOAT32, "w16a16"])
def test_long_inputs_are_worked_on_piece_by_piece(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 101), np.float32)
    made = []
    for layer in (
        nn.Conv1d(6, 4, 5, stride=2, padding=3, scheme=scheme),
        nn.Conv1d(6, 12, 3, groups=6),
        nn.ConvTranspose1d(6, 4, 5, stride=2, scheme=scheme),
        nn.ConvTranspose1d(6, 6, 3, stride=2, groups=6),
    ):
        layer.load_state_dict({n: rng.standard_normal(s, np.float32) for n, s in layer.parameter_shapes().items()})
        made.append((layer, layer(x)))
    rows: list[int] = []
    multiply = nn.PackedProduct.__call__

    def counted(self: nn.PackedProduct, x: Any) -> Any:
        rows.append(x.size)
        return multiply(self, x)

    monkeypatch.setattr(nn.PackedProduct, "__call__", counted)
    monkeypatch.setattr(convolution, "MOST", 400)
    for layer, whole in made:
        np.testing.assert_allclose(layer(x), whole, rtol=1e-6, atol=1e-6)
    assert max(rows, default=0) <= 400
    assert len(rows) > 8 or scheme == FLOAT32


def test_images_are_worked_on_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: inputs are added in one order, however they are cut.

    Of products of integers, whose sums depend on nothing else: those of floats may be added otherwise in few rows.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 9, 11), np.float32)
    for groups in (1, 2, 6):
        layer = nn.ConvTranspose2d(6, 12, (3, 4), stride=(2, 1), groups=groups, scheme="w8a8")
        layer.load_state_dict({n: rng.standard_normal(s, np.float32) for n, s in layer.parameter_shapes().items()})
        monkeypatch.undo()
        whole = layer(x)
        for most in (1, 700, 4000):
            monkeypatch.setattr(convolution, "MOST", most)
            np.testing.assert_array_equal(layer(x), whole)


def test_an_hour_of_audio_needs_no_im2col_of_it() -> None:
    import tracemalloc

    layer = nn.Conv1d(8, 8, 65, scheme=FLOAT32)
    layer.load_state_dict({"weight": np.ones((8, 8, 65)), "bias": np.zeros(8)})
    x = np.zeros((8, 100_000), np.float32)
    tracemalloc.start()
    try:
        layer(x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * x.nbytes + 3 * 4 * convolution.MOST  # all windows would take 65 times as much as the input


def test_types_and_other_arrays() -> None:
    rng = np.random.default_rng(1)
    device = npu.Device("sim:rk3588")
    layer = nn.Conv1d.from_arrays(rng.standard_normal((4, 3, 2)), rng.standard_normal(4), device=device)
    turned = nn.ConvTranspose1d.from_arrays(rng.standard_normal((3, 4, 2)), rng.standard_normal(4), device=device)
    for each in (layer, turned):
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            x = rng.standard_normal((3, 9)).astype(dtype)
            y = each(x)
            assert y.dtype == dtype
            np.testing.assert_array_equal(y, each(x.astype(np.float32)).astype(dtype))
            other = each(npu.asarray(x, device=device))
            assert isinstance(other, npu.NpuArray)
            np.testing.assert_array_equal(np.asarray(other), y)
    with pytest.raises(TypeError, match="float64"):
        layer(np.ones((3, 9)))


def test_a_products_weight_and_path_are_given_to_pack() -> None:
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 2, 3), np.float32)
    given: dict[str, np.ndarray] = {}

    def pack(matrix: np.ndarray, path: str) -> nn.Product:
        given[path] = matrix
        return nn.FloatProduct(matrix)

    layer = nn.Conv1d(4, 6, 3, groups=2, bias=False)
    layer.load_state_dict({"conv.weight": weight}, prefix="conv.", pack=pack)
    assert list(given) == ["conv.0", "conv.1"]
    np.testing.assert_array_equal(given["conv.1"], weight[3:].transpose(0, 2, 1).reshape(3, 6))
    np.testing.assert_array_equal(layer.state_dict()["weight"], weight)
    with pytest.raises(ValueError, match=r"a product has shape \(2, 2\), \(6, 3\) is needed"):
        layer.load_state_dict(
            {"weight": weight}, pack=lambda matrix, path: nn.FloatProduct(np.ones((2, 2), np.float32))
        )


@pytest.mark.parametrize("far", [2**31, 2**40, 2**62, 2**63, 2**70])
def test_how_far_away_nothing_is_makes_no_difference(far: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    one, three = (np.random.default_rng(n).standard_normal((2, 3, n)).astype(np.float32) for n in (1, 3))
    plain = nn.Conv1d.from_arrays(one, scheme="float32")(x)
    np.testing.assert_array_equal(nn.Conv1d.from_arrays(one, dilation=far, scheme="float32")(x), plain)
    np.testing.assert_array_equal(nn.Conv1d.from_arrays(one, stride=far, scheme="float32")(x), plain[..., :1])
    with pytest.raises(ValueError, match="Conv1d"):
        nn.Conv1d.from_arrays(three, dilation=far, scheme="float32")(x)
    wide = nn.Conv2d.from_arrays(one[..., None], stride=(1, far), dilation=(far, far), scheme="float32")
    np.testing.assert_array_equal(wide(x[..., None])[..., 0], plain)


def test_mistakes_are_explained() -> None:
    with pytest.raises(ValueError, match="in_channels is 3, which cannot be divided among 2 groups"):
        nn.Conv1d(3, 4, 1, groups=2)
    with pytest.raises(ValueError, match="padding='same' needs a stride of 1"):
        nn.Conv1d(1, 1, 3, stride=2, padding="same")
    with pytest.raises(ValueError, match="padding is 'full'"):
        nn.Conv1d(1, 1, 3, padding="full")
    with pytest.raises(ValueError, match="padding_mode is 'mirror'"):
        nn.Conv2d(1, 1, 3, padding_mode="mirror")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"kernel_size is \(1, 2, 3\)"):
        nn.Conv2d(1, 1, (1, 2, 3))
    with pytest.raises(ValueError, match="dilation is 0"):
        nn.Conv1d(1, 1, 1, dilation=0)
    with pytest.raises(ValueError, match="stride is True"):
        nn.Conv1d(1, 1, 1, stride=True)
    with pytest.raises(ValueError, match="output_padding is 2"):
        nn.ConvTranspose1d(1, 1, 3, stride=2, output_padding=2)
    with pytest.raises(ValueError, match="padding is 'same'"):
        nn.ConvTranspose1d(1, 1, 3, padding="same")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no weight yet"):
        nn.Conv1d(1, 1, 1)(np.ones((1, 1), np.float32))
    layer = nn.Conv2d.from_arrays(np.ones((1, 2, 1, 1)))
    with pytest.raises(ValueError, match=r"takes \(2, H, W\) or \(B, 2, H, W\); the input has shape \(2, 3\)"):
        layer(np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="a weight is"):
        nn.Conv2d.from_arrays(np.ones((1, 2, 1)))
    with pytest.raises(NotFiniteError, match="layer"):
        nn.Conv1d(1, 1, 1, bias=False, scheme="w8a8").load_state_dict(
            {"layer.weight": np.full((1, 1, 1), np.inf)}, prefix="layer."
        )


@given(
    channels=st.integers(1, 6),
    size=st.lists(st.integers(0, 5), min_size=0, max_size=2),
    batch=st.integers(1, 3),
    affine=st.booleans(),
    seed=st.integers(0, 5),
)
def test_batch_norm_is_torchs(channels: int, size: list[int], batch: int, affine: bool, seed: int) -> None:
    torch.manual_seed(seed)
    two = len(size) == 2
    theirs = (torch.nn.BatchNorm2d if two else torch.nn.BatchNorm1d)(channels, eps=1e-3, affine=affine)
    ours = (nn.BatchNorm2d if two else nn.BatchNorm1d)(channels, eps=1e-3, affine=affine)
    _stir(theirs, affine)
    assert ours.load_state_dict(theirs.state_dict()) == ([], [])
    x = np.random.default_rng(seed).standard_normal((batch, channels, *size)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs.double().eval()(torch.from_numpy(x).double()).numpy()
    factor, offset = ours._folded()
    shape = (-1,) + (1,) * len(size)
    bound = 3 * V * np.abs(factor.reshape(shape) * x) + 2 * V * np.abs(offset.reshape(shape))
    assert (np.abs(ours(x) - wanted) <= 1.01 * bound + 1e-30).all()


def _stir(norm: torch.nn.Module, affine: bool) -> None:
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        if affine:
            norm.weight.normal_()
            norm.bias.normal_()


@pytest.mark.parametrize("scheme", [FLOAT32, "w16a16", "w8a8"])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_gives_what_both_layers_give(scheme: str, bias: bool) -> None:
    torch.manual_seed(7)
    rng = np.random.default_rng(7)
    cases: list[tuple[torch.nn.Module, Any, tuple[int, ...]]] = [
        (torch.nn.Linear(10, 6, bias), nn.Linear(10, 6, bias, scheme=FLOAT32), (5, 10)),
        (torch.nn.Conv1d(4, 6, 3, 2, bias=bias), nn.Conv1d(4, 6, 3, 2, bias=bias, scheme=FLOAT32), (2, 4, 9)),
        (
            torch.nn.Conv1d(6, 6, 3, groups=6, bias=bias),
            nn.Conv1d(6, 6, 3, groups=6, bias=bias, scheme=FLOAT32),
            (2, 6, 9),
        ),
        (
            torch.nn.ConvTranspose1d(4, 6, 3, 2, groups=2, bias=bias),
            nn.ConvTranspose1d(4, 6, 3, 2, groups=2, bias=bias, scheme=FLOAT32),
            (2, 4, 5),
        ),
        (
            torch.nn.ConvTranspose2d(4, 6, (2, 3), 2, groups=2, bias=bias),
            nn.ConvTranspose2d(4, 6, (2, 3), 2, groups=2, bias=bias, scheme=FLOAT32),
            (2, 4, 5, 3),
        ),
        (
            torch.nn.Conv2d(2, 6, 3, padding=1, bias=bias),
            nn.Conv2d(2, 6, 3, padding=1, bias=bias, scheme=FLOAT32),
            (2, 2, 5, 4),
        ),
    ]
    for theirs, ours, shape in cases:
        two = len(shape) == 4
        norm, own = (
            (torch.nn.BatchNorm2d(6), nn.BatchNorm2d(6)) if two else (torch.nn.BatchNorm1d(6), nn.BatchNorm1d(6))
        )
        _stir(norm, True)
        ours.load_state_dict(theirs.state_dict())
        own.load_state_dict(norm.state_dict())
        x = rng.standard_normal(shape).astype(np.float32)
        with torch.no_grad():
            wanted = norm.eval()(theirs(torch.from_numpy(x))).numpy()
        folded = nn.fold_batch_norm(ours, own, scheme=scheme)
        assert type(folded) is type(ours)
        np.testing.assert_allclose(folded(x), wanted, atol={FLOAT32: 1e-5, "w16a16": 1e-2, "w8a8": 0.15}[scheme])
        with torch.no_grad():
            np.testing.assert_allclose(ours(x), theirs(torch.from_numpy(x)).numpy(), atol=1e-5)  # left as it was
        again = nn.fold_batch_norm(folded, nn.BatchNorm2d(6, eps=0.0) if two else nn.BatchNorm1d(6, eps=0.0))
        np.testing.assert_allclose(again(x), folded(x), rtol=1e-5, atol=1e-5)  # in the scheme that it has
    with pytest.raises(ValueError, match="gives 6 channels"):
        nn.fold_batch_norm(cases[0][1], nn.BatchNorm1d(5))
    with pytest.raises(TypeError, match="nothing can be folded into a RMSNorm"):
        nn.fold_batch_norm(nn.RMSNorm(5), nn.BatchNorm1d(5))  # type: ignore[type-var]
    with pytest.raises(ValueError, match="running_var"):
        nn.BatchNorm1d(1).load_state_dict({"running_var": [-1.0]}, strict=False)
