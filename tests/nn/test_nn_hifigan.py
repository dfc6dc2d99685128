"""The HiFi-GAN generator against that of transformers' VITS, at any length, whole and in parts."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import VitsConfig
from transformers.models.vits.modeling_vits import VitsHifiGan

import npumatmul as npu
from npumatmul import nn
from npumatmul.errors import ModelError
from npumatmul.nn import convolution

SMALL: dict[str, Any] = {
    "flow_size": 48, "upsample_initial_channel": 128, "upsample_rates": [4, 3], "upsample_kernel_sizes": [8, 7],
    "resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 2]], "leaky_relu_slope": 0.1,
    "speaker_embedding_size": 40,
}  # fmt: skip
TINY: dict[str, Any] = {
    **SMALL, "flow_size": 8, "upsample_initial_channel": 16, "upsample_rates": [4, 2], "upsample_kernel_sizes": [8, 4],
}  # fmt: skip


def generator(seed: int = 0, **config: Any) -> VitsHifiGan:
    """Of transformers, with weights large enough that every layer matters, and small enough for tanh."""
    torch.manual_seed(seed)
    made = VitsHifiGan(VitsConfig(**config)).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim == 3:
                k = parameter[0].numel() if "upsampler" not in name else parameter.shape[0] * 2
                parameter.normal_(0, k**-0.5)
            else:
                parameter.normal_(0, 0.1)
        made.conv_post.weight.mul_(0.2)
    return made


def inputs(frames: int, config: dict[str, Any] = SMALL, batch: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(frames)
    z = rng.standard_normal((batch, config["flow_size"], frames), np.float32)
    g = rng.standard_normal((batch, config["speaker_embedding_size"], 1), np.float32)
    mask = np.ones((batch, 1, frames), np.float32)
    mask[-1, 0, frames - frames // 4 :] = 0
    return z, g, mask


def exact(of: VitsHifiGan, z: np.ndarray, g: np.ndarray | None, mask: np.ndarray | None = None) -> np.ndarray:
    """In float64."""
    x = torch.from_numpy(z if mask is None else z * mask).double()
    with torch.no_grad():
        made: np.ndarray = copy.deepcopy(of).double()(x, None if g is None else torch.from_numpy(g).double()).numpy()
    return made


def ours(of: VitsHifiGan, config: dict[str, Any] = SMALL, **options: Any) -> nn.HifiGan:
    made = nn.HifiGan.from_config(config, **options)
    made.load_state_dict(of.state_dict())
    return made


# largest error, and root of the mean square over that of the waveform: the bounds that docs/vits.md states
BOUNDS = {"float32": (1e-6, 2e-6), "w16a16": (1e-3, 2e-3), "w8a8": (0.03, 0.06)}


@pytest.mark.parametrize("scheme", BOUNDS)
@pytest.mark.parametrize("frames", [1, 20, 61])
def test_it_is_transformers_generator(scheme: str, frames: int) -> None:
    reference = generator(**SMALL)
    z, g, mask = inputs(frames, batch=2)
    wanted = exact(reference, z, g, mask)
    made = ours(reference, scheme=scheme)(z, g, mask)
    assert made.shape == (2, 1, frames * 12) == wanted.shape
    assert made.dtype == np.float32
    assert 0.04 < wanted.std() < 0.9
    largest, relative = BOUNDS[scheme]
    assert np.abs(made - wanted).max() < largest
    assert (made - wanted).std() < relative * wanted.std()


def test_weight_norm_is_folded_in_both_of_its_forms() -> None:
    reference = generator(1, **TINY)
    z, g, _ = inputs(9, TINY)
    plain = ours(reference, TINY, scheme="float32")(z, g)
    reference.apply_weight_norm()
    parted = reference.state_dict()
    assert "upsampler.0.parametrizations.weight.original1" in parted
    for ends in [("original0", "original1"), ("weight_g", "weight_v")]:
        state = {
            n.replace("parametrizations.weight.original0", ends[0]).replace(
                "parametrizations.weight.original1", ends[1]
            )
            if ends[0] == "weight_g"
            else n: value
            for n, value in parted.items()
        }
        if ends[0] == "weight_g":  # as the author's own checkpoints have it
            state = {f"dec.{n.replace('upsampler.', 'ups.')}": value for n, value in state.items()}
        made = nn.HifiGan.from_config(VitsConfig(**TINY), scheme="float32")
        made.load_state_dict(state, prefix="dec." if ends[0] == "weight_g" else "")
        assert np.allclose(made(z, g), plain, atol=2e-6)


def test_lengths_that_do_not_fit_their_directions() -> None:
    folded = nn.fold_weight_norm(
        {"a.weight_g": np.ones((2, 1)), "a.weight_v": np.ones((3, 4)), "b.weight_v": np.ones(2)}
    )
    assert sorted(folded) == ["a.weight", "b.weight_v"]
    with pytest.raises(ModelError, match=r"a\.weight_g of shape \(2, 1\) is no length of a\.weight_v, \(3, 4\)"):
        folded["a.weight"]


def test_any_number_of_frames_in_one_session() -> None:
    """Nothing is listed; contexts are those of buckets, of which there are few."""
    reference = generator(2, **TINY)
    with npu.Device("sim:rk3588") as device:
        made = ours(reference, TINY, device=device)
        for frames in (2000, 1, 2, 3, 20, 24, 50, 55, 61, 500, 777, 1999):
            z, g, _ = inputs(frames, TINY)
            y = made(z, g)
            assert y.shape == (1, 1, frames * 8)
            wanted = exact(reference, z, g)
            assert (y - wanted).std() < BOUNDS["w16a16"][1] * wanted.std()
        seen = device.stats().contexts
        for frames in range(4, 2000, 97):
            z, g, _ = inputs(frames, TINY)
            assert made(z, g).shape == (1, 1, frames * 8)
        assert device.stats().contexts == seen


@given(
    rates=st.lists(st.sampled_from([(1, 3), (2, 2), (2, 4), (3, 7), (4, 8), (4, 14)]), min_size=1, max_size=3),
    blocks=st.lists(
        st.tuples(st.sampled_from([1, 3, 5, 7]), st.lists(st.integers(1, 4), min_size=1, max_size=3)),
        min_size=1,
        max_size=2,
    ),
    kind=st.sampled_from(["1", "2"]),
    frames=st.integers(1, 40),
    chunk=st.integers(1, 45),
    batch=st.integers(1, 2),
    scheme=st.sampled_from(["float32", "float32", "w16a16", "w8a8"]),
    seed=st.integers(0, 9),
    most=st.sampled_from([convolution.MOST, 50]),
)
def test_parts_are_the_whole_to_the_bit(
    rates: Any, blocks: Any, kind: Any, frames: int, chunk: int, batch: int, scheme: str, seed: int, most: int
) -> None:
    made = nn.HifiGan(
        5, 8, [r for r, _ in rates], [k for _, k in rates], [k for k, _ in blocks], [d for _, d in blocks],
        speaker_embedding_size=3, resblock=kind, scheme=scheme,
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    made.load_state_dict({n: rng.normal(0, 0.3, shape) for n, shape in made.parameter_shapes().items()})
    z = rng.standard_normal((batch, 5, frames), np.float32)
    g = rng.standard_normal((1, 3, 1), np.float32)
    whole = made(z, g)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "MOST", most)  # windows are cut into other pieces
        parts = list(made.stream(z, g, chunk=chunk))
    assert [each.shape[2] for each in parts[:-1]] == [min(chunk, frames) * made.hop] * (len(parts) - 1)
    joined = np.concatenate(parts, -1)
    if (
        scheme == "w16a16"
    ):  # whose sums are in another order where a product has few rows, as simulators and chips please
        np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-5)
    else:
        assert np.array_equal(joined, whole)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("kind", ["1", "2"])
def test_products_are_those_that_are_made(kind: Any, chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "MOST", 1000)
    seen = []

    class Counted:
        def __init__(self, weight: np.ndarray) -> None:
            self.shape, self._b = weight.T.shape, weight.T

        def __call__(self, x: np.ndarray) -> np.ndarray:
            seen.append((len(x), *self.shape))
            return np.asarray(x @ self._b, np.float32)

    made = nn.HifiGan(**TINY, resblock=kind)
    zeros = {name: np.zeros(shape) for name, shape in made.parameter_shapes().items()}
    made.load_state_dict(zeros, pack=lambda weight, path: Counted(weight))
    z = np.zeros((1, 8, 23), np.float32)
    _ = made(z) if chunk is None else list(made.stream(z, chunk=chunk))
    assert made.products(23, chunk) == seen
    with pytest.raises(ValueError, match="frames is 0"):
        made.products(0)


@pytest.mark.parametrize("config", [SMALL, TINY, {**SMALL, "upsample_kernel_sizes": [4, 15]}])
def test_the_context_is_what_a_frame_depends_on_and_no_more(config: dict[str, Any]) -> None:
    made = ours(generator(3, **config), config, scheme="float32")
    before, behind = made.context
    frames, at = 2 * (before + behind) + 3, before + behind + 1
    z, g, _ = inputs(frames, config)
    part = slice(at * made.hop, (at + 1) * made.hop)
    usual = made(z, g)[0, 0, part]
    for there, depends in [(-before - 1, False), (-before, True), (behind, True), (behind + 1, False)]:
        other = z.copy()
        other[:, :, at + there] += 10
        assert (made(other, g)[0, 0, part] != usual).any() == depends


def test_memory_does_not_grow_with_the_frames() -> None:
    made = ours(generator(4, **TINY), TINY, scheme="w16a16")
    peaks = []
    for frames in (400, 400, 3200):
        z, g, _ = inputs(frames, TINY)
        tracemalloc.start()
        assert sum(each.shape[2] for each in made.stream(z, g, chunk=50)) == frames * 8
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    frames_themselves = 3200 * TINY["flow_size"] * 4
    assert peaks[2] < peaks[1] + 2 * frames_themselves


def test_narrow_types_arrays_of_the_npu_and_the_state() -> None:
    reference = generator(5, **TINY)
    made = ours(reference, TINY, scheme="float32")
    z, g, mask = inputs(6, TINY)
    usual = made(z, g, mask)
    half = made(z.astype(ml_dtypes.bfloat16), g, mask)
    assert half.dtype == ml_dtypes.bfloat16
    assert next(made.stream(z.astype(np.float16), g)).dtype == np.float16
    stored = made(npu.asarray(z), g, mask)
    assert isinstance(stored, npu.NpuArray)
    assert np.array_equal(stored.numpy(), usual)
    again = nn.HifiGan.from_config(TINY, scheme="float32")
    again.load_state_dict(made.state_dict())
    assert np.array_equal(again(z, g, mask), usual)
    assert set(made.state_dict()) == set(reference.state_dict())
    assert made.state_dict()["conv_post.weight"].shape == (1, 4, 7)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"upsample_rates": [4]}, "upsample_rates has 1 numbers, upsample_kernel_sizes 2"),
        ({"upsample_kernel_sizes": [8, 3]}, "a step of 2 has windows of 3"),
        ({"upsample_kernel_sizes": [2, 4]}, "a step of 4 has windows of 2"),
        ({"upsample_initial_channel": 10}, "cannot be halved 2 times"),
        ({"resblock_kernel_sizes": [3, 4]}, "holds 4; kernels of blocks are odd"),
        ({"resblock_kernel_sizes": [3]}, "resblock_kernel_sizes has 1 entries"),
        ({"resblock_dilation_sizes": [[1], []]}, "resblock_dilation_sizes is 0"),
        ({"leaky_relu_slope": float("nan")}, "leaky_relu_slope is nan"),
        ({"leaky_relu_slope": 2.0}, "between 0 and 1"),
        ({"resblock": "3"}, "resblock is '3'"),
        ({"scheme": "w9a9"}, "w9a9"),
    ],
)
def test_sizes_that_do_not_go_together(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nn.HifiGan(**{**TINY, **wrong})


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="does not say flow_size, upsample_rates"):
        nn.HifiGan.from_config({k: v for k, v in TINY.items() if k not in ("flow_size", "upsample_rates")})
    made = nn.HifiGan.from_config(TINY, scheme="float32")
    z, g, mask = inputs(4, TINY)
    with pytest.raises(ModelError, match="no weight yet"):
        made(z)
    made.load_state_dict(generator(6, **TINY).state_dict())
    for call in (made, made.stream):
        with pytest.raises(ValueError, match=r"takes frames \(B, 8, T\)"):
            call(z[:, :5])
        with pytest.raises(ValueError, match="T of 1 or more"):
            call(z[:, :, :0])
        with pytest.raises(ValueError, match=r"g has shape \(1, 39, 1\); \(1, 40, 1\) is needed"):
            call(z, g[:, 1:])
        with pytest.raises(ValueError, match="mask has shape"):
            call(z, g, mask[..., 1:])
        with pytest.raises(TypeError, match="float64"):
            call(z.astype(np.float64))
    with pytest.raises(ValueError, match="chunk is 0"):
        made.stream(z, chunk=0)
    alone = nn.HifiGan.from_config({**TINY, "speaker_embedding_size": 0}, scheme="float32")
    with pytest.raises(ValueError, match="there is one speaker"):
        alone(z, g)
