"""Quantized layers and models on the simulated NPU, against their emulation by numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul.errors import DeviceError
from npumatmul.llm import npu_layers, windows
from npumatmul.llm.quantize import (
    LayerRecipe,
    LayerStatistics,
    QuantizedLayer,
    Recipe,
    emulate,
    load_quantized,
    quantize_layer,
    quantize_model,
    save_quantized,
)
from npumatmul.quant.params import QuantizedWeight, QuantParams

TOKENS = np.random.default_rng(0).integers(0, 256, 130)


def random_matrix(n: int, k: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def close(got: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Both computed the same sums of the same integers; scales were multiplied in another order, in float32."""
    return bool(np.abs(got - expected).max() <= 2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("transform", ["none", "hadamard"])
@pytest.mark.parametrize(
    ("soc", "scheme"),
    [
        ("rk3588", "w8a8"),
        ("rk3588", "w8a8_layer"),
        ("rk3588", "w8a8_g64"),
        ("rk3588", "w4a8"),
        ("rk3588", "w4a8_g32"),
        ("rk3588", "w4a8_g32_agroup"),
        ("rk3588", "w8a8_g64_agroup"),
        ("rk3588", "w4a4"),
        ("rk3588", "w4a4_g128"),
        ("rk3576", "w8a16"),
        ("rk3576", "w4a16_g32"),
        ("rk3566", "w8a8"),
    ],
)
def test_the_npu_computes_what_the_emulation_does(soc: str, scheme: str, transform: str) -> None:
    x = random_matrix(13, 256)
    x[:, 5] *= 20
    x[3] = 0
    clip = 1.0 if scheme.endswith("a16") or "a16_" in scheme else 0.9
    layer = quantize_layer(
        random_matrix(70, 256, 1), LayerRecipe(scheme, transform, activation_clip=clip), name="blk.0.qkv"
    )
    with npu.Device(f"sim:{soc}") as device:
        linear = npu_layers(device)(layer, "blk.0.qkv")
        assert linear.shape == (256, 70)
        assert close(linear(x), emulate(layer)(x))


@pytest.mark.parametrize("scheme", ["w8a8", "w4a8", "w4a8_g32", "w4a8_g32_agroup", "w4a4", "w4a4_g128"])
@pytest.mark.parametrize("symmetric_activations", [False, True])
def test_zero_points_and_centres(scheme: str, symmetric_activations: bool) -> None:
    """All that a recipe can ask for at once."""
    x = random_matrix(13, 256) + 3
    x[:, 5] *= 20
    x[3] = 0
    recipe = LayerRecipe(
        scheme,
        "balance+hadamard",
        centre=True,
        rounding="gptq",
        symmetric=False,
        symmetric_activations=symmetric_activations,
        clip_search=True,
        activation_clip=0.8,
    )
    statistics = LayerStatistics(256)
    statistics.add(random_matrix(300, 256, 2) + 3)
    layer = quantize_layer(random_matrix(70, 256, 1), recipe, statistics, name="blk.0.qkv")
    assert isinstance(layer.weight, QuantizedWeight)
    assert not layer.weight.params.symmetric
    with npu.Device("sim:rk3588") as device:
        got, expected = npu_layers(device)(layer, "blk.0.qkv")(x), emulate(layer)(x)
    # a value on the edge between two codes may fall to either side: a step of one activation, at most
    assert np.median(np.abs(got - expected)) <= 2e-6 * np.abs(expected).max()
    assert np.linalg.norm(got - expected) <= 2e-3 * np.linalg.norm(expected)


def test_half_weights() -> None:
    x, w = random_matrix(5, 96), random_matrix(40, 96, 1) * np.geomspace(1e-9, 1e9, 40, dtype=np.float32)[:, None]
    layer = quantize_layer(w, LayerRecipe("w16a16"))
    with npu.Device("sim:rk3588") as device:
        got = npu_layers(device)(layer, "head")(x)
    np.testing.assert_allclose(got / w.max(1), emulate(layer)(x) / w.max(1), atol=1e-4)


def test_offsets_and_biases() -> None:
    """A layer of blocks with minima: what it computes is near the float product with its weight."""
    rng = np.random.default_rng(2)
    params = QuantParams(rng.uniform(0.5, 2, (40, 3)), granularity="group", bits=4, group_size=32)
    layer = QuantizedLayer(
        LayerRecipe("gguf"),
        QuantizedWeight(rng.integers(-8, 8, (40, 96)).astype(np.int8), params),
        offset=rng.standard_normal((40, 3)).astype(np.float32),
        bias=rng.standard_normal(40).astype(np.float32),
    )
    x = random_matrix(6, 96)
    assert layer.bias is not None
    with npu.Device("sim:rk3588") as device:
        got = npu_layers(device)(layer, "head")(x)
    assert close(got, emulate(layer)(x))
    exact = x @ layer.restored().T + layer.bias
    assert np.linalg.norm(got - exact) < 0.02 * np.linalg.norm(exact)


def test_a_chip_that_cannot_says_so() -> None:
    layer = quantize_layer(random_matrix(32, 32), LayerRecipe("w8a16"))
    with npu.Device("sim:rk3588") as device, pytest.raises(DeviceError, match="w8a16"):
        npu_layers(device)(layer, "head")


def test_models_from_files_run_on_the_npu(tiny: Any, tmp_path: Path) -> None:
    recipe = Recipe(
        LayerRecipe("w4a8", "hadamard", rounding="gptq", clip_search=True),
        {"blk.0.*": {"scheme": "w8a8_g32"}, "head": {"scheme": "w8a8", "rounding": "nearest"}},
    )
    save_quantized(quantize_model(tiny.path, recipe, windows(TOKENS, 64)), tmp_path / "m")
    model = load_quantized(tmp_path / "m")
    with npu.Device("sim:rk3588") as device:
        on_npu, emulated = model.load(npu_layers(device)).model, model.load().model
        logits = [each.forward(TOKENS[:40], each.new_cache(), all_logits=True) for each in (on_npu, emulated)]
        assert device.stats().run_calls > 0
    # an activation that lies on the edge between two codes may fall to either side after float32 rounding
    assert np.linalg.norm(logits[0] - logits[1]) < 1e-2 * np.linalg.norm(logits[1])
