"""Quantizing layer after layer: what each layer is calibrated on, what its results become, and what has to be given."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from npumatmul.llm import evaluate, load_model, numpy_pack, windows
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.loading import LayerTensors
from npumatmul.llm.models.decoder import PREFILL_CHUNK, Decoder, layer_names
from npumatmul.llm.models.taps import TappedLinear
from npumatmul.llm.quantize import (
    LayerRecipe,
    LayerStatistics,
    QuantizedLayer,
    Recipe,
    emulate,
    quantize_layer,
    quantize_model,
)
from npumatmul.llm.quantize.quantized_model import layer_of_recipe
from npumatmul.llm.quantize.sequential import quantize_in_sequence
from npumatmul.quant import Hessian

PIECES = windows(np.random.default_rng(0).integers(0, 256, 200), 50)
FULL = LayerRecipe("w4a8", "balance+hadamard", centre=True, rounding="gptq", symmetric=False, correction=0.5)


def seen_by(model: Decoder) -> dict[str, NDArray[np.float64]]:
    """What enters each layer of a model on the text."""
    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in model.linears}

    def note(name: str, x: NDArray[np.float32], _: NDArray[np.float32]) -> None:
        found[name].append(x.copy())

    tapped = model.with_linears({name: TappedLinear(linear, name, note) for name, linear in model.linears.items()})
    for piece in PIECES:
        tapped.forward(piece.tokens, tapped.new_cache(len(piece.tokens)), all_logits=True)
    return {name: np.concatenate(rows).astype(np.float64) for name, rows in found.items()}


def test_layers_see_the_quantized_model_so_far(tiny: Any) -> None:
    collected: dict[str, LayerStatistics] = {}
    calls: list[tuple[int, int]] = []
    with GGUFSource(tiny.path) as source:

        def make(tensors: LayerTensors, statistics: LayerStatistics) -> QuantizedLayer:
            collected[tensors.name] = statistics
            return layer_of_recipe(source, tensors, LayerRecipe("w4a8"), statistics)

        layers = quantize_in_sequence(source, make, PIECES, progress=lambda done, total, _: calls.append((done, total)))
    assert list(layers) == list(collected) == layer_names(2)
    exact = load_model(tiny.path, pack=numpy_pack).model
    sizes = [math.prod(linear.shape) for linear in exact.linears.values()]
    assert {total for _, total in calls} == {sum(sizes)}
    assert {sum(sizes[:i]) for i in range(10)} <= {done for done, _ in calls}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len(calls) == 10 + 9 * len(PIECES)  # every window of the text moves it
    quantized = seen_by(exact.with_linears({name: emulate(layer) for name, layer in layers.items()}))
    expected = seen_by(exact)
    for name, found in collected.items():
        x, reference = quantized[name], expected[name]
        size = np.abs(x).max() ** 2 * len(x)
        assert found.rows == len(x)
        np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-3 * np.abs(x).max())
        np.testing.assert_allclose(found.reference_mean, reference.mean(0), atol=1e-4 * np.abs(x).max())
        np.testing.assert_allclose(found.second_moment * len(x), x.T @ x, atol=1e-3 * size)
        assert found.drift is not None
        np.testing.assert_allclose(found.drift, (reference - x).T @ x, atol=1e-3 * size)
    assert np.abs(collected["blk.1.down"].drift).max() > np.abs(collected["blk.0.qkv"].drift).max() == 0  # type: ignore[arg-type]


@pytest.mark.parametrize("correction", [0.0, 0.25, 1.0])
def test_means_of_results_go_as_far_as_the_correction(tiny: Any, correction: float) -> None:
    """Where activations are not rounded, a centred layer adds no mean error; corrected in full it has none at all."""
    recipe = Recipe(dataclasses.replace(FULL, scheme="w4a16", correction=correction), sequential=True)
    model = quantize_model(tiny.path, recipe, PIECES)
    exact = load_model(tiny.path, pack=numpy_pack).model
    quantized, expected = seen_by(model.load().model), seen_by(exact)
    for name, layer in model.layers.items():
        got = emulate(layer)(quantized[name].astype(np.float32)).mean(0)
        given, reference = (exact.linears[name](x[name].astype(np.float32)) for x in (quantized, expected))
        wanted = (1 - correction) * given.mean(0) + correction * reference.mean(0)
        np.testing.assert_allclose(got, wanted, atol=2e-3 * np.abs(reference).max())


@pytest.mark.parametrize("transform", ["none", "hadamard", "balance+hadamard"])
@pytest.mark.parametrize("centre", [False, True])
def test_weights_make_up_for_errors_before_them(transform: str, centre: bool) -> None:
    """Eight-bit weights follow the least-squares solution as numpy finds it, in the space of plain activations."""
    rng = np.random.default_rng(3)
    reference = (rng.standard_normal((400, 24)) @ rng.standard_normal((24, 24)) + 1).astype(np.float32)
    x = (reference + 0.3 * reference @ rng.standard_normal((24, 24)) / 5 + 0.2).astype(np.float32)
    w = rng.standard_normal((40, 24)).astype(np.float32)
    statistics = LayerStatistics(24)
    for start in (0, 150):
        rows = slice(start, 150 if start == 0 else None)
        statistics.add(x[rows], reference[rows])
    errors = []
    for correction in (0.0, 0.5, 1.0):
        recipe = LayerRecipe("w8a16", transform, centre=centre, rounding="gptq", correction=correction)
        errors.append(np.linalg.norm(emulate(quantize_layer(w, recipe, statistics))(x) - reference @ w.T))
    means = (x.mean(0), reference.mean(0)) if centre else (np.zeros(24), np.zeros(24))
    best = np.linalg.lstsq(x - means[0], (reference - means[1]) @ w.T, rcond=None)[0]
    least = np.linalg.norm((x - means[0]) @ best - (reference - means[1]) @ w.T)
    assert least <= errors[2] * (1 + 1e-6)
    assert errors[2] < 0.1 * errors[0]  # x is a linear function of the reference: nearly all can be made up for
    assert errors[2] < errors[1] < errors[0]


def test_sums_of_references() -> None:
    rng = np.random.default_rng(1)
    x, reference = rng.standard_normal((2, 30, 5))
    added = Hessian(5)
    added.add(x, reference)
    given = Hessian.from_sums(x.T @ x, 30, (reference - x).T @ x)
    w = rng.standard_normal((3, 5))
    np.testing.assert_allclose(given.target(w), added.target(w))
    np.testing.assert_allclose(given.target(np.tile(w, (3, 1))), np.tile(added.target(w), (3, 1)))
    with pytest.raises(ValueError, match=r"of shape \(K, K\)"):
        Hessian.from_sums(np.zeros((2, 3)), 1)
    with pytest.raises(ValueError, match=r"of shape \(K, K\)"):
        Hessian.from_sums(np.eye(2), 1, np.eye(3))
    with pytest.raises(ValueError, match="inf or nan"):
        Hessian.from_sums(np.full((1, 1), np.nan), 1)


def test_models_in_sequence_are_close_to_the_model(tiny: Any) -> None:
    exact = load_model(tiny.path, pack=numpy_pack).model
    recipe = Recipe(FULL, {"head": {"scheme": "w16a16"}}, sequential=True)
    model = quantize_model(tiny.path, recipe, PIECES)
    assert model.layers["blk.0.qkv"].recipe == FULL
    got = evaluate(model.load().model, exact, PIECES).mean_kl
    rounded = Recipe(LayerRecipe("w4a8"), {"head": {"scheme": "w16a16"}})
    worse = evaluate(quantize_model(tiny.path, rounded).load().model, exact, PIECES).mean_kl
    assert got is not None
    assert worse is not None
    assert got.value < 0.5 * worse.value


def test_whole_windows_pass_a_block_as_parts_of_them_do(tiny: Any) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    tokens = np.random.default_rng(2).integers(0, 256, PREFILL_CHUNK + 37)
    x, whole = model.embed(tokens), model.embed(tokens)
    parts, cache, once = [], model.new_cache(len(tokens)), model.new_cache(len(tokens))
    for start in (0, PREFILL_CHUNK):
        parts.append(model.run_blocks(x[start : start + PREFILL_CHUNK], cache, len(tokens)))
        cache.tokens.extend(tokens[start : start + PREFILL_CHUNK].tolist())
    at_once = model.run_block(1, model.run_block(0, whole, once), once)
    np.testing.assert_allclose(at_once, np.concatenate(parts), rtol=1e-4, atol=1e-4)


def test_what_a_sequential_recipe_needs(tiny: Any) -> None:
    with pytest.raises(ValueError, match="is sequential"):
        quantize_model(tiny.path, Recipe(FULL, sequential=True))
    with pytest.raises(ValueError, match=r"correction is 1\.5"):
        LayerRecipe(correction=1.5)
    with pytest.raises(ValueError, match="sequential is 1"):
        Recipe.from_json('{"sequential": 1}')
    recipe = Recipe(FULL, sequential=True)
    assert Recipe.from_json(recipe.to_json()) == recipe
    plain = Recipe(LayerRecipe("w8a8"), sequential=True)  # nothing to calibrate
    assert list(quantize_model(tiny.path, plain).layers) == layer_names(2)
