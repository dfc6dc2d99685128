"""Recipes and quantized layers: their emulation on the host, and blocks of GGUF files taken over."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from npumatmul.errors import NotFiniteError
from npumatmul.host import kernels
from npumatmul.llm import GGUFFile
from npumatmul.llm.quantize import (
    LayerRecipe,
    LayerStatistics,
    QuantizedLayer,
    Recipe,
    best_recipe,
    emulate,
    parse_scheme,
    quantize_layer,
)
from npumatmul.llm.quantize.build import centred_layer
from npumatmul.llm.quantize.emulation import quantize_rows_asymmetric
from npumatmul.llm.quantize.gguf_blocks import layer_of_blocks
from npumatmul.quant.params import QuantizedWeight, QuantParams


def random_matrix(n: int, k: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


# --- recipes


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("w16a16", None),
        ("w8a8", 127),
        ("w8a8_layer", 127),
        ("w4a8", 119),
        ("w4a8_g64", 119),
        ("w4a4_g32", 7),
        ("w4a8_g32_agroup", 119),
        ("w4a16_g32", None),
        ("w8a16", None),
    ],
)
def test_levels_of_activations(name: str, levels: int | None) -> None:
    assert quantize_layer(random_matrix(3, 64), LayerRecipe(name)).activation_levels == levels


@pytest.mark.parametrize(
    "name",
    ["w3a3", "w8a4", "w8a8_g16", "", "int8", "w16a16_high", "w8a8_static", "w8a8_aasym", "w8a8_wasym", "w8a8_agroup"],
)
def test_names_that_are_no_schemes_of_models(name: str) -> None:
    with pytest.raises(ValueError, match="scheme"):
        parse_scheme(name)


def test_later_patterns_win() -> None:
    recipe = Recipe(
        LayerRecipe("w4a8", clip_search=True),
        {"blk.*": {"transform": "hadamard"}, "blk.1?.down": {"scheme": "w8a8"}, "blk.10.down": {"transform": "none"}},
    )
    assert recipe.for_layer("head") == LayerRecipe("w4a8", clip_search=True)
    assert recipe.for_layer("blk.1.down") == LayerRecipe("w4a8", "hadamard", clip_search=True)
    assert recipe.for_layer("blk.11.down") == LayerRecipe("w8a8", "hadamard", clip_search=True)
    assert recipe.for_layer("blk.10.down") == LayerRecipe("w8a8", "none", clip_search=True)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ('{"schema": "w8a8"}', "no field 'schema'"),
        ('{"scheme": 8}', "scheme is 8; a str"),
        ('{"scheme": "w2a2"}', "no scheme is called 'w2a2'"),
        ('{"clip_search": 1}', "clip_search is 1; a bool"),
        ('{"refine": true}', "refine is True; a int"),
        ('{"refine": -1}', "refine is -1"),
        ('{"transform": "rotate"}', "transform is 'rotate'"),
        ('{"rounding": "up"}', "rounding is 'up'"),
        ('{"activation_clip": 0}', "activation_clip is 0"),
        ('{"scheme": "gguf", "transform": "hadamard"}', "as they are"),
        ('{"scheme": "w8a8_layer", "rounding": "gptq"}', "one per layer"),
        ('{"layers": {"head": "w8a8"}}', "'layers' maps"),
        ('{"layers": {"head": {"bits": 8}}}', "set 'bits'"),
        ('{"layers": {"*.qkv": {"scheme": "w2a2"}}}', "no scheme is called 'w2a2'"),
        ('{"seed": -1}', "seed is -1"),
    ],
)
def test_recipes_that_make_no_sense(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"recipe\.json.*{message}"):
        Recipe.read(path)


# --- layers


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(
        ["w8a8", "w8a8_layer", "w4a8", "w4a4", "w8a8_g32", "w4a8_g64", "w4a4_g32", "w8a8_g64_agroup", "w4a8_g32_agroup"]
    ),
    st.integers(1, 5),
    st.integers(1, 130),
    st.integers(1, 7),
    st.integers(0, 3),
)
def test_emulation_against_exact_arithmetic(scheme: str, m: int, k: int, n: int, seed: int) -> None:
    """Quantize activations per token, or token and group, by the definition, multiply in float64, and compare."""
    layer = quantize_layer(random_matrix(n, k, seed) + 1, LayerRecipe(scheme))
    x = random_matrix(m, k, seed + 1) * 3
    got = emulate(layer)(x)
    levels = {"a8": 127, "a4": 7}[scheme[2:4]] if scheme[:4] != "w4a8" else 119
    scale = np.empty_like(x)
    size = (layer.recipe.parts.group_size or k) if scheme.endswith("_agroup") else k
    for start in range(0, k, size):
        group = x[:, start : start + size]
        scale[:, start : start + size] = np.abs(group).max(axis=1, keepdims=True) / np.float32(levels)
    codes = np.clip(np.rint(x / scale), -levels, levels)
    weight = layer.restored().astype(np.float64)
    expected = (codes.astype(np.float64) * scale) @ weight.T
    bound = np.abs(codes * scale) @ np.abs(weight).T * 2.0**-21
    assert (np.abs(got - expected) <= bound).all()


def test_sums_beyond_float32_are_exact() -> None:
    """K = 4096 of largest codes: sums of 2**26 and odd differences that float32 could not hold."""
    codes = np.full((2, 4096), 127, np.int8)
    codes[1, ::2] = -127
    codes[1, 5] = 126
    layer = QuantizedLayer(LayerRecipe("w8a8"), QuantizedWeight(codes, QuantParams([1, 1], granularity="channel")))
    x = np.full((1, 4096), 127, np.float32)
    x[0, 7] = 1  # one odd product
    exact = codes.astype(np.int64) @ x[0].astype(np.int64)
    np.testing.assert_array_equal(emulate(layer)(x)[0], exact.astype(np.float32))


def test_float16_activations() -> None:
    x, w = random_matrix(3, 64) * 1e-9, random_matrix(5, 64, 1)
    layer = quantize_layer(w, LayerRecipe("w8a16"))
    np.testing.assert_allclose(emulate(layer)(x), x @ layer.restored().T, rtol=1e-2, atol=1e-12)


def test_half_weights_of_any_size() -> None:
    """Rows far beyond float16's range keep their precision through a power of two."""
    w = random_matrix(4, 32) * np.array([[1e-12], [1.0], [1e6], [1e20]], np.float32)
    layer = quantize_layer(w, LayerRecipe("w16a16"))
    np.testing.assert_allclose(layer.restored(), w, rtol=2.0**-11)
    assert quantize_layer(random_matrix(4, 32), LayerRecipe("w16a16")).row_scale is None


@pytest.mark.parametrize("transform", ["hadamard", "smooth", "smooth+hadamard", "balance", "balance+hadamard"])
def test_transforms_help_against_outliers(transform: str) -> None:
    w, x = random_matrix(48, 96), random_matrix(200, 96, 1)
    x[:, 11] *= 60
    statistics = LayerStatistics(96)
    statistics.add(x)
    errors = {}
    for name in ("none", transform):
        layer = quantize_layer(w, LayerRecipe("w8a8", name), statistics, name="blk.0.down")
        np.testing.assert_allclose(layer.restored(), w, atol=0.2)
        errors[name] = np.linalg.norm(emulate(layer)(x) - x @ w.T)
    assert errors[transform] < 0.7 * errors["none"]


@given(st.integers(0, 2**32 - 1), st.sampled_from(["none", "balance+hadamard"]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_centres_change_nothing_but_errors(seed: int, transform: str, symmetric: bool) -> None:
    """In 8 bits, a layer with a centre is as close to the product as one without; its means are exact."""
    rng = np.random.default_rng(seed)
    w, x = random_matrix(24, 64, seed), rng.normal(rng.normal(size=64) * 5, 1, (50, 64)).astype(np.float32)
    statistics = LayerStatistics(64)
    statistics.add(x)
    recipe = LayerRecipe("w8a8", transform, centre=True, symmetric=symmetric, symmetric_activations=symmetric)
    layer = quantize_layer(w, recipe, statistics)
    got, want = emulate(layer)(x), x.astype(np.float64) @ w.T
    plain = emulate(quantize_layer(w, LayerRecipe("w8a8"), statistics))(x)
    assert np.linalg.norm(got - want) < 0.5 * np.linalg.norm(plain - want)
    at_mean = emulate(layer)(x.mean(axis=0, dtype=np.float64).astype(np.float32)[np.newaxis])[0]
    np.testing.assert_allclose(at_mean, want.mean(axis=0), rtol=1e-4, atol=1e-3)


@given(
    st.integers(1, 9), st.integers(1, 70), st.sampled_from([7, 119, 127]), st.floats(0.5, 1), st.integers(0, 2**32 - 1)
)
@settings(max_examples=50, deadline=None)
def test_asymmetric_activations_are_what_the_kernels_make(m: int, k: int, levels: int, clip: float, seed: int) -> None:
    x = random_matrix(m, k, seed) + np.float32(0.3)
    scale, zero = kernels.asymmetric_scales(x, levels, clip)
    codes, got_scale = quantize_rows_asymmetric(x, levels, clip)
    np.testing.assert_allclose(got_scale, scale, rtol=1e-6)
    codes = codes + zero[:, np.newaxis]
    assert codes.min() >= -levels - 1
    assert codes.max() <= levels
    inside = (codes > -levels - 1) & (codes < levels)
    assert (
        np.abs((codes - zero[:, np.newaxis]) * scale[:, np.newaxis] - x)[inside].max(initial=0) <= 0.501 * scale.max()
    )


def test_each_ingredient_of_the_best_recipes_helps() -> None:
    """On activations as language models have them: outlier features, means far from 0, dependent on each other."""
    rng = np.random.default_rng(5)
    k = 192
    mixing = rng.standard_normal((k, k)) * np.geomspace(1, 0.05, k)[:, None]
    x = rng.standard_normal((1200, k)) @ mixing
    x[:, [3, 50, 77]] *= 25
    x += np.where(np.arange(k) % 16 == 0, 40.0, 0.5)
    x, w = x.astype(np.float32), random_matrix(96, k)
    statistics = LayerStatistics(k)
    statistics.add(x[:900])
    want = x[900:] @ w.T
    for scheme in ("w8a8", "w4a8", "w4a4"):
        recipes = [
            LayerRecipe(scheme),
            LayerRecipe(scheme, "hadamard"),
            LayerRecipe(scheme, "hadamard", rounding="gptq", clip_search=True, act_order=True),
            best_recipe(scheme).default,
        ]
        layers = [quantize_layer(w, recipe, statistics, name="blk.0.qkv") for recipe in recipes]
        errors = [float(np.linalg.norm(emulate(layer)(x[900:]) - want)) for layer in layers]
        assert errors == sorted(errors, reverse=True), (scheme, errors)
        assert errors[-1] < 0.5 * errors[1], (scheme, errors)


def test_gptq_and_clip_search_help() -> None:
    """On activations with strongly dependent features, as calibration shows them."""
    rng = np.random.default_rng(3)
    mixing = rng.standard_normal((96, 96)) * np.geomspace(1, 0.03, 96)[:, None]
    x = (rng.standard_normal((600, 96)) @ mixing).astype(np.float32)
    w = random_matrix(48, 96)
    statistics = LayerStatistics(96)
    statistics.add(x[:400])
    errors = {}
    for name, options in {
        "nearest": {},
        "clip": {"clip_search": True},
        "gptq": {"rounding": "gptq", "clip_search": True},
        "both": {"rounding": "gptq", "clip_search": True, "transform": "hadamard"},
    }.items():
        layer = quantize_layer(w, LayerRecipe("w4a16", **options), statistics)  # type: ignore[arg-type]
        errors[name] = np.linalg.norm(x[400:] @ (layer.restored() - w).T)
    assert errors["clip"] < errors["nearest"]
    assert errors["gptq"] < 0.7 * errors["clip"]
    assert errors["both"] < 0.7 * errors["clip"]


def test_layers_refuse_what_does_not_fit() -> None:
    w = random_matrix(4, 64)
    with pytest.raises(ValueError, match="'head': its recipe needs a calibration text"):
        quantize_layer(w, LayerRecipe(rounding="gptq"), name="head")
    with pytest.raises(ValueError, match="statistics of 32 features"):
        quantize_layer(w, LayerRecipe(rounding="gptq"), LayerStatistics(32))
    with pytest.raises(ValueError, match="takes blocks over from a file"):
        quantize_layer(w, LayerRecipe("gguf"))
    with pytest.raises(NotFiniteError, match="'head'"):
        quantize_layer(np.full((2, 32), np.nan, np.float32), LayerRecipe("w16a16"), name="head")
    weight = QuantizedWeight(np.zeros((4, 64), np.int8), QuantParams(np.ones(4), granularity="channel"))
    with pytest.raises(ValueError, match="offsets belong to weights"):
        QuantizedLayer(LayerRecipe(), weight, offset=np.zeros((4, 2), np.float32))
    with pytest.raises(ValueError, match="a bias is float32"):
        QuantizedLayer(LayerRecipe(), weight, bias=np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="row scales belong"):
        QuantizedLayer(LayerRecipe(), weight, row_scale=np.ones(4, np.float32))


# --- blocks of GGUF files


def block_file(tmp_path: Path, kinds: list[GGMLQuantizationType], values: list[NDArray[np.float32]]) -> GGUFFile:
    path = tmp_path / "blocks.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    for i, (kind, each) in enumerate(zip(kinds, values, strict=True)):
        writer.add_tensor(f"t{i}", gguf.quants.quantize(each, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile(path)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_stand_for_what_the_file_says(tmp_path: Path, kind: str) -> None:
    values = random_matrix(6, 128)
    values[1] = 0
    values[2] = 1.5  # blocks without a spread
    values[3] = np.abs(values[3]) + 2
    values[4] = -values[3]
    with block_file(tmp_path, [GGMLQuantizationType[kind]], [values]) as file:
        layer = layer_of_blocks(file, ["t0"], LayerRecipe("gguf"))
        assert layer is not None
        np.testing.assert_array_equal(layer.restored(), file.tensor("t0"))
    assert isinstance(layer.weight, QuantizedWeight)
    assert layer.weight.params.bits == (8 if kind == "Q8_0" else 4)
    if kind == "Q4_0":
        blocks = values.reshape(6, 4, 32)
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
        assert (largest > 0).any()  # ggml's scale is negative then: blocks had to be turned around


def test_layers_of_several_tensors(tmp_path: Path) -> None:
    kinds = [GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0, GGMLQuantizationType.Q4_0]
    with block_file(tmp_path, kinds, [random_matrix(n, 64, n) for n in (3, 2, 4)]) as file:
        layer = layer_of_blocks(file, ["t0", "t1", "t2"], LayerRecipe("gguf"))
        assert layer is not None
        expected = np.concatenate([file.tensor(f"t{i}") for i in range(3)])
        np.testing.assert_array_equal(layer.restored(), expected)
        x = random_matrix(5, 64, 9)
        np.testing.assert_allclose(emulate(layer)(x), x @ expected.T, atol=0.6)


def test_groups_that_are_taken_over_have_activations_of_their_own(tmp_path: Path) -> None:
    """Groups of other magnitudes lose nothing to each other, and a centre changes nothing but bits."""
    x = random_matrix(200, 96, 1) + np.float32(0.5)
    x[:, 32:64] *= 1000
    statistics = LayerStatistics(96)
    statistics.add(x)
    with block_file(tmp_path, [GGMLQuantizationType.Q4_1], [random_matrix(8, 96)]) as file:
        weight = file.tensor("t0")
        plain = layer_of_blocks(file, ["t0"], LayerRecipe("gguf"))
        taken = layer_of_blocks(file, ["t0"], LayerRecipe("gguf", centre=True))
    assert plain is not None
    assert taken is not None
    layer = centred_layer(taken, weight, statistics)
    np.testing.assert_allclose(layer.restored(), weight, rtol=1e-5, atol=1e-6)
    assert plain.bits_per_weight == 5  # as in the file
    assert layer.bits_per_weight == pytest.approx(5 + 32 * (1 / 8 + 1 / 96))  # bias of N, centre of K values
    reach = sum(  # half a step of each group's own, for every weight that meets it
        np.abs(x[:, g : g + 32]).max(axis=1, keepdims=True) / 238 * np.abs(weight[:, g : g + 32]).sum(axis=1)
        for g in (0, 32, 64)
    )
    for each in (plain, layer):
        assert (np.abs(emulate(each)(x) - x.astype(np.float64) @ weight.T) <= 2.1 * reach).all()
    x[:, 32:64] = 0
    reach = np.abs(x).max(axis=1, keepdims=True) / 238 * np.abs(weight).sum(axis=1)
    assert (np.abs(emulate(plain)(x) - x.astype(np.float64) @ weight.T) <= 1.01 * reach).all()
    with pytest.raises(ValueError, match="or transform"):
        LayerRecipe("gguf", "balance")


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_scales_of_groups_are_float16_where_that_holds_them(size: float) -> None:
    w = random_matrix(8, 128) * np.float32(size)
    layer = quantize_layer(w, LayerRecipe("w4a8_g32", symmetric=False))
    assert isinstance(layer.weight, QuantizedWeight)
    scale = layer.weight.params.scale
    halves = size == 1.0
    with np.errstate(over="ignore"):
        assert (scale.astype(np.float16) == scale).all() == halves
    # 4 bits of codes, an int8 zero point, and the scale
    assert layer.bits_per_weight == 4 + 8 / 32 + (16 if halves else 32) / 32
    # codes were chosen with scales that differ by a rounding at most
    step = np.repeat(scale, 32, axis=1)
    assert (np.abs(layer.restored() - w) <= step * (0.5 + 16 * 2.0**-11)).all()


def test_types_that_are_not_taken_over(tmp_path: Path) -> None:
    with block_file(tmp_path, [GGMLQuantizationType.F16], [random_matrix(3, 64)]) as file:
        assert layer_of_blocks(file, ["t0"], LayerRecipe("gguf")) is None
