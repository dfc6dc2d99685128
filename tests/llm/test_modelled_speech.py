"""Modelled times of models of speech add up the products that are computed."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from npumatmul.llm.modelled.built import speech_shape
from npumatmul.llm.models.whisper import Whisper, WhisperConfig
from npumatmul.nn import FloatProduct, Product


@pytest.mark.parametrize("tied", [True, False])
def test_speech_is_planned_by_the_products_that_it_computes(tied: bool) -> None:
    """Counted: which products of how many rows are computed when a window is heard and when a token is written."""
    config = WhisperConfig(80, 64, 2, 4, 96, 3, 4, 80, 200, positions=20, context_length=16, tied=tied)
    shape = speech_shape("tiny", config)
    model = Whisper(config)
    counted: Counter[tuple[int, int, int]] = Counter()

    def pack(weight: np.ndarray, path: str) -> Product:
        product = FloatProduct(weight)

        class Counted(FloatProduct):
            def __call__(self, x: np.ndarray) -> np.ndarray:
                counted[(len(x), *self.shape)] += 1
                return product(x)

        return Counted(weight)

    rng = np.random.default_rng(0)
    shapes = model.parameter_shapes()
    model.load_state_dict({name: rng.standard_normal(size) for name, size in shapes.items()}, pack=pack)
    heard = model.hear(rng.standard_normal((40, 80)).astype(np.float32))
    wanted: Counter[tuple[int, int, int]] = Counter()
    assert shape.hearing is not None
    for each in shape.hearing.every_linear:
        wanted[each.whole_rows(shape.states), each.k, each.n] += each.times
    assert counted == wanted
    counted.clear()
    model.logits([1], heard, model.new_cache())
    wanted.clear()
    for each in shape.every_linear:
        wanted[1, each.k, each.n] += each.times
    assert counted == wanted
    matrices = sum(math.prod(size) for name, size in shapes.items() if len(size) > 1 and name != "head.weight")
    assert shape.parameters == matrices + (0 if tied else 64 * 200)
    assert shape.layers == 5
