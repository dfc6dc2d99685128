"""Long computations tell how far they are, and their blocks compute what one call would."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from npumatmul.llm.quantize import LayerRecipe, LayerStatistics, quantize_layer
from npumatmul.quant import Hessian, gptq, meter, refine, round_weight, systems, weight_params, weight_scales

RNG = np.random.default_rng(0)
N, K = 24, 96
WEIGHT = RNG.normal(size=(N, K))


@pytest.fixture
def hessian() -> Hessian:
    made, x = Hessian(K), np.random.default_rng(1).normal(size=(200, K)) @ np.random.default_rng(2).normal(size=(K, K))
    made.add(x, x + 0.1)
    return made


WORK: dict[str, Callable[[Hessian, Any], Any]] = {
    "channels": lambda h, p: gptq(WEIGHT, h, progress=p).codes,
    "ordered": lambda h, p: gptq(WEIGHT, h, act_order=True, symmetric=False, progress=p).codes,
    "groups": lambda h, p: gptq(WEIGHT, h, group_size=32, progress=p).codes,
    "refined": lambda h, p: gptq(WEIGHT, h, rounds=2, progress=p).codes,
    "refined groups": lambda h, p: gptq(WEIGHT, h, group_size=32, rounds=1, progress=p).codes,
    "refine": lambda h, p: refine(round_weight(WEIGHT, bits=4), WEIGHT, h, rounds=2, progress=p).codes,
    "target": lambda h, p: h.target(WEIGHT, progress=p),
    "wide target": lambda h, p: h.target(np.tile(WEIGHT, (5, 1)), progress=p),
    "error": lambda h, p: h.error(WEIGHT, progress=p),
    "search": lambda h, p: weight_params(WEIGHT, bits=4, clip="mse", progress=p).scale,
    "search of groups": lambda h, p: round_weight(WEIGHT, granularity="group", group_size=32, progress=p).codes,
}


@pytest.mark.parametrize("name", WORK)
def test_no_step_is_long(hessian: Hessian, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With steps as small against this weight as a second is against a large one, all that is done is told."""
    whole = WORK[name](hessian, None)
    monkeypatch.setattr(meter, "_STEP", K * K * 4)
    monkeypatch.setattr(systems, "_BLOCK", 16)
    monkeypatch.setattr(weight_scales, "_CHUNK_ELEMENTS", 4 * K)
    told: list[float] = []
    result = WORK[name](hessian, told.append)
    np.testing.assert_allclose(result, whole, rtol=1e-9, atol=1e-12 * np.abs(whole).max())
    steps = [0.0, *told]
    assert steps == sorted(steps)
    assert 0.9 < steps[-1] <= 1
    assert max(b - a for a, b in itertools.pairwise(steps)) < 0.35


@pytest.mark.parametrize("recipe", [LayerRecipe("w4a8", rounding="gptq"), LayerRecipe("w8a8", clip_search=True)])
def test_layers_tell_too(recipe: LayerRecipe) -> None:
    statistics, told = LayerStatistics(K), list[float]()
    x = RNG.normal(size=(300, K)).astype(np.float32)
    statistics.add(x, x)
    quantize_layer(WEIGHT.astype(np.float32), recipe, statistics, progress=told.append)
    assert told
    assert told == sorted(told)
    assert 0.9 < told[-1] <= 1


@pytest.mark.parametrize(("k", "block"), [(1, 4), (16, 16), (17, 16), (50, 16), (64, 16)])
def test_factors_and_systems_in_blocks(monkeypatch: pytest.MonkeyPatch, k: int, block: int) -> None:
    monkeypatch.setattr(systems, "_BLOCK", block)
    rng = np.random.default_rng(k)
    x = rng.normal(size=(k, 2 * k))
    matrix, right = x @ x.T, rng.normal(size=(k, 3))
    nobody = meter.Meter(None, 1)
    lower = systems.cholesky(matrix, nobody)
    np.testing.assert_allclose(lower, np.linalg.cholesky(matrix), rtol=1e-9, atol=1e-12 * np.abs(lower).max())
    np.testing.assert_array_equal(lower, np.tril(lower))
    solution = systems.solve(lower, right, nobody)
    np.testing.assert_allclose(matrix @ solution, right, rtol=1e-8, atol=1e-9)
    indefinite = matrix - np.eye(k) * 2 * np.linalg.eigvalsh(matrix)[-1]
    with pytest.raises(np.linalg.LinAlgError):
        systems.cholesky(indefinite, nobody)
