"""Schemes chosen for each layer by measured sensitivity."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from npumatmul.cli import quantizing
from npumatmul.llm import Window, evaluate, load_model, numpy_pack, windows
from npumatmul.llm.models.decoder import layer_names
from npumatmul.llm.quantize import (
    Candidate,
    LayerRecipe,
    QuantizedLayer,
    QuantizedModel,
    Recipe,
    auto_quantize,
    choose,
    collect_statistics,
    emulate,
    load_quantized,
    measure_sensitivity,
    quantize_model,
    sensitivity,
)
from npumatmul.llm.quantize.measured import kept_measurements

TOKENS = np.random.default_rng(0).integers(0, 256, 200)


def candidate(bytes_per_row: int, kl: float) -> Candidate:
    """A layer of 4 rows that takes so many bytes in each row, and costs so much."""
    half = QuantizedLayer(LayerRecipe("w16a16"), np.zeros((4, bytes_per_row // 2), np.float16))
    return Candidate(half, kl)


def head(bytes_per_row: int, kl: float) -> Candidate:
    """The same of 40 rows."""
    return Candidate(QuantizedLayer(LayerRecipe("w16a16"), np.zeros((40, bytes_per_row // 2), np.float16)), kl)


def test_bits_go_where_they_help_most() -> None:
    """By hand: bytes 8 or 16 (or 32) in each of 4 rows; gains per step a: 0.3, then 0.1; b: 0.05; c: 0.2."""
    found = {
        "a": [candidate(8, 0.5), candidate(16, 0.2), candidate(24, 0.1)],
        "b": [candidate(8, 0.1), candidate(16, 0.05)],
        "c": [candidate(16, 0.0), candidate(8, 0.2)],
    }
    weights = 3 * 4 * 4  # the smallest candidates have rows of 4 float16, and say how many weights a layer has
    found = {name: sorted(each, key=lambda c: c.bits) for name, each in found.items()}

    def chosen(**limit: float) -> str:
        picked = choose(found, **limit)
        return " ".join(f"{name}{found[name].index(each)}" for name, each in picked.items())

    smallest = 3 * 4 * 8 * 8
    step = 4 * 8 * 8
    assert chosen(max_bits=smallest / weights) == "a0 b0 c0"
    assert chosen(max_bits=(smallest + step) / weights) == "a1 b0 c0"
    assert chosen(max_bits=(smallest + 2.9 * step) / weights) == "a1 b0 c1"
    assert chosen(max_bits=(smallest + 3 * step) / weights) == "a2 b0 c1"
    assert chosen(max_bits=100) == "a2 b1 c1"
    assert chosen(max_kl=0.81) == "a0 b0 c0"
    assert chosen(max_kl=0.5) == "a1 b0 c0"
    assert chosen(max_kl=0.31) == "a1 b0 c1"
    assert chosen(max_kl=0.2001) == "a2 b0 c1"
    with pytest.raises(ValueError, match="cannot be met: the smallest candidates take 16"):
        choose(found, max_bits=15)
    with pytest.raises(ValueError, match=r"cannot be met: the best candidates are expected at 0\.15"):
        choose(found, max_kl=0.1)
    with pytest.raises(ValueError, match="give either"):
        choose(found)


def test_a_layer_that_is_larger_than_what_is_left() -> None:
    """By hand: the head gains most for each bit, but fits only where one of the others takes less."""
    found = {
        "head": [head(8, 3.0), head(16, 0.0)],
        "a": [candidate(8, 0.4), candidate(16, 0.01)],
        "b": [candidate(8, 0.3)],
    }
    small = 40 * 8 * 8 + 2 * 4 * 8 * 8
    weights = 48 * 4
    picked = choose(found, max_bits=(small + 40 * 8 * 8) / weights)  # all that the head's step takes
    assert [each.kl for each in picked.values()] == [0.0, 0.4, 0.3]
    found["a"] = [
        candidate(8, 0.4),
        candidate(16, 0.0),
        candidate(4, 9.0),
    ]  # 4 takes less, and loses more than the head
    picked = choose(found, max_bits=(small + 39 * 8 * 8) / weights)
    assert [each.kl for each in picked.values()] == [3.0, 0.0, 0.3]
    found["a"][2] = candidate(4, 1.0)
    picked = choose(found, max_bits=(small + 39 * 8 * 8) / weights)
    assert [each.kl for each in picked.values()] == [0.0, 1.0, 0.3]


def test_candidates_that_are_never_worth_it() -> None:
    """One that takes more and loses more, and one above the line between its neighbours."""
    small, worse, above, large = candidate(8, 0.4), candidate(16, 0.41), candidate(24, 0.35), candidate(32, 0.0)
    found = {"head": [head(8, 0.0)], "a": [worse, small, large, above]}
    picked = [choose(found, max_bits=8 * (40 * 8 + 4 * row) / (40 * 4 + 4 * 8))["a"] for row in (8, 24, 32)]
    assert picked == [small, small, large]


def test_sensitivity_is_the_divergence_of_one_layer(tiny: Any) -> None:
    """Computed from the changed layer on only, it equals what a whole model with that layer changed shows."""
    recipes = [LayerRecipe("w4a4"), LayerRecipe("w8a8", "hadamard")]
    pieces = windows(TOKENS, 100)
    found = measure_sensitivity(tiny.path, recipes, pieces, tokens=200)
    assert list(found) == layer_names(2)
    exact = load_model(tiny.path, pack=numpy_pack).model
    for name, candidates in found.items():
        assert [each.layer.recipe for each in candidates] == recipes
        assert candidates[0].kl > 3 * candidates[1].kl > 0
        changed = exact.with_linears({name: emulate(candidates[0].layer)})
        whole = evaluate(changed, exact, [Window(np.append(piece.tokens, 0), 0) for piece in pieces]).mean_kl
        assert whole is not None
        assert candidates[0].kl == pytest.approx(whole.value, rel=1e-4)


def test_layers_that_are_kept_are_not_made_again(tiny: Any) -> None:
    recipe = LayerRecipe("w4a8", rounding="gptq")
    made = quantize_model(tiny.path, Recipe(recipe), windows(TOKENS, 100)).layers
    found = measure_sensitivity(tiny.path, [recipe], windows(TOKENS, 100), make=lambda name, recipe: made[name])
    assert {name: each[0].layer for name, each in found.items()} == made
    assert all(each[0].kl > 0 for each in found.values())


def test_others_count_in_proportion_to_their_change(tiny: Any) -> None:
    """What is not measured itself is near what a whole model shows."""
    recipes = [LayerRecipe("w4a4"), LayerRecipe("w4a8"), LayerRecipe("w4a8_g32")]
    pieces = windows(TOKENS, 100)
    found = measure_sensitivity(tiny.path, recipes, pieces, tokens=200)
    exact = load_model(tiny.path, pack=numpy_pack).model
    for name, candidates in found.items():
        for each in candidates:
            changed = exact.with_linears({name: emulate(each.layer)})
            whole = evaluate(changed, exact, [Window(np.append(piece.tokens, 0), 0) for piece in pieces]).mean_kl
            assert whole is not None
            assert each.kl == pytest.approx(whole.value, rel=0.5)


def test_models_within_a_budget(tiny: Any) -> None:
    recipes = [LayerRecipe("w4a8", "hadamard"), LayerRecipe("w8a8", "hadamard"), LayerRecipe("w16a16")]
    pieces = windows(TOKENS, 100)
    exact = load_model(tiny.path, pack=numpy_pack).model

    def divergence(model: QuantizedModel) -> float:
        found = evaluate(model.load().model, exact, [Window(piece.tokens, 0) for piece in pieces]).mean_kl
        assert found is not None
        return found.value

    smallest = quantize_model(tiny.path, Recipe(recipes[0]))
    by_bits = auto_quantize(tiny.path, recipes, pieces, max_bits=smallest.bits_per_weight + 2)
    assert smallest.bits_per_weight < by_bits.bits_per_weight <= smallest.bits_per_weight + 2
    assert divergence(by_bits) < divergence(smallest)
    for name, layer in by_bits.layers.items():
        assert by_bits.recipe.for_layer(name) == layer.recipe
    assert "schemes were chosen by sensitivity" in by_bits.notes[0]
    limit = divergence(smallest) / 5
    by_quality = auto_quantize(tiny.path, recipes, pieces, max_kl=limit)
    assert divergence(by_quality) <= limit
    assert by_quality.bits_per_weight < 12
    with pytest.raises(ValueError, match="cannot be met"):
        auto_quantize(tiny.path, recipes[:1], pieces, max_kl=1e-9)
    with pytest.raises(ValueError, match="give one"):
        measure_sensitivity(tiny.path, recipes, [])
    with pytest.raises(ValueError, match="nothing to choose from"):
        measure_sensitivity(tiny.path, [], pieces)


def test_calibration_leaves_out_what_is_measured_on(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On text that it has seen, GPTQ looks better than it is."""
    seen: list[tuple[int, ...]] = []

    def collect(path: Any, pieces: Any, names: Any, **options: Any) -> Any:
        seen.extend(tuple(piece.tokens) for piece in pieces)
        return collect_statistics(path, pieces, names, **options)

    monkeypatch.setattr(sensitivity, "collect_statistics", collect)
    pieces = windows(TOKENS, 40)
    measure_sensitivity(tiny.path, [LayerRecipe("w4a8", rounding="gptq")], pieces, tokens=256)
    assert seen == [tuple(pieces[i].tokens) for i in (1, 3, 4)]  # two of five, spread over the text, are left out


def test_an_interrupted_measurement_goes_on(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, output = tmp_path / "text", tmp_path / "auto.safetensors"
    text.write_text("a few words and some more of them " * 20)
    recipes = (LayerRecipe("w4a8"), LayerRecipe("w8a8"))
    request = quantizing.Request(
        output,
        tiny.path,
        quantizing.Budget(recipes, max_bits=7.0),
        portable=True,
        calibration=text,
        context=16,
        chunks=3,
    )
    measured: list[str] = []
    divergences = sensitivity._Reference.divergences
    last: list[int | None] = [7]

    def counted(self: Any, model: Any, changed: Any, name: str) -> list[float]:
        if name not in measured and len(measured) == last[0]:
            raise KeyboardInterrupt
        measured.extend([] if name in measured else [name])
        return divergences(self, model, changed, name)

    monkeypatch.setattr(sensitivity._Reference, "divergences", counted)
    with pytest.raises(KeyboardInterrupt):
        quantizing.quantize(request)
    kept = tmp_path / "auto.safetensors.measured.json"
    names = list(load_model(tiny.path, pack=numpy_pack).model.linears)
    assert measured == names[:7]
    assert list(json.loads(kept.read_text())["layers"]) == measured
    assert "what was measured of 7 layers is kept" in capsys.readouterr().err
    first, last[0] = list(measured), None
    measured.clear()
    quantizing.quantize(request)
    assert "going on with 7 layers that were measured before" in capsys.readouterr().err
    assert measured == names[len(first) :]
    assert not kept.exists()
    resumed = load_quantized(output)
    measured.clear()
    quantizing.quantize(dataclasses.replace(request, output=tmp_path / "whole.safetensors"))
    whole = load_quantized(tmp_path / "whole.safetensors")
    assert [each.recipe for each in resumed.layers.values()] == [each.recipe for each in whole.layers.values()]


def test_measurements_of_something_else_are_not_taken(tiny: Any, tmp_path: Path) -> None:
    recipes, pieces = [LayerRecipe("w4a8"), LayerRecipe("w8a8")], windows(TOKENS, 16)[:2]
    file = tmp_path / "kept.json"

    def found(*given: Any) -> dict[str, list[float]]:
        seen: dict[str, list[float]] = {}
        with contextlib.suppress(KeyError), kept_measurements(file, *given) as measured:
            seen.update(measured)
            measured.setdefault("blk.0.qkv", [0.5, 0.25])
            raise KeyError
        return seen

    assert found(tiny.path, recipes, pieces) == {}
    assert found(tiny.path, recipes, pieces) == {"blk.0.qkv": [0.5, 0.25]}
    assert found(tiny.path, recipes, pieces[:1]) == {}
    assert found(tiny.path, recipes[::-1], pieces[:1]) == {}
    for wrong in ("{", "[]", json.dumps({**json.loads(file.read_text()), "layers": {"blk.0.qkv": [1.0, "x"]}})):
        file.write_text(wrong)
        assert found(tiny.path, recipes[::-1], pieces[:1]) == {}
    with kept_measurements(file, tiny.path, recipes[::-1], pieces[:1]):
        pass
    assert not file.exists()
