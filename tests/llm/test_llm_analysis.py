"""Errors of layers: figures by hand, and what is compared with what against torch."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from npumatmul.llm import Linear, load_model, numpy_pack, windows
from npumatmul.llm.measure.analysis import ErrorSums, LayerError, analyze_layers, error_plot, errors_as_csv
from npumatmul.llm.models.decoder import layer_names

TOKENS = np.random.default_rng(0).integers(0, 256, 200)


@given(st.integers(0, 20), st.integers(1, 6), st.integers(0, 5))
def test_figures_of_arrays_in_pieces(n: int, pieces: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    expected, got = rng.standard_normal((2, n + 1, 7))
    sums = ErrorSums()
    for part in np.array_split(np.arange(n + 1), pieces):
        sums.add(expected[part], got[part])
    error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
    assert sums.relative_error == pytest.approx(error)
    assert sums.snr_db == pytest.approx(10 * math.log10(np.sum(expected**2) / np.sum((got - expected) ** 2)))
    assert sums.max_error == np.abs(got - expected).max()
    assert sums.cosine == pytest.approx(
        float((got * expected).sum() / np.linalg.norm(got) / np.linalg.norm(expected)), abs=1e-12
    )


def test_figures_of_zeros() -> None:
    zero, one = np.zeros(3), np.ones(3)
    nothing, same, lost, made_up = ErrorSums(), ErrorSums(), ErrorSums(), ErrorSums()
    same.add(one, one)
    lost.add(one, zero)
    made_up.add(zero, one)
    assert (nothing.cosine, nothing.relative_error, nothing.snr_db) == (1, 0, math.inf)
    assert (same.cosine, same.relative_error, same.snr_db) == (pytest.approx(1), 0, math.inf)
    assert (lost.cosine, lost.relative_error, lost.snr_db) == (0, 1, 0)
    assert (made_up.cosine, made_up.relative_error, made_up.snr_db) == (0, math.inf, -math.inf)
    with pytest.raises(ValueError, match="do not compare"):
        same.add(one, np.ones(4))


def with_error_in(layer: str) -> Any:
    """A `Pack` that spoils one layer: its weights lose half of their mantissa."""

    def pack(weight: NDArray[np.float32], name: str) -> Linear:
        if name == layer:
            weight = (weight.view(np.uint32) & 0xFFF80000).view(np.float32)
        return numpy_pack(weight)

    return pack


def test_alone_and_entire(tiny: Any) -> None:
    """Only the spoilt layer is wrong alone; with all before it, everything behind it is wrong too."""
    reference = load_model(tiny.path, pack=numpy_pack).model
    spoilt = load_model(tiny.path, pack=with_error_in("blk.0.down")).model
    errors = analyze_layers(spoilt, reference, windows(TOKENS, 100))
    assert [error.name for error in errors] == layer_names(2)
    assert errors[0].shape == (32, 64)
    place = layer_names(2).index("blk.0.down")
    for i, error in enumerate(errors):
        assert (error.alone.error_square > 0) == (i == place)
        assert (error.entire.error_square > 0) == (i >= place)
        assert (error.alone.cosine < 1 - 1e-7) == (i == place)


def test_against_torch(tiny: Any) -> None:
    """Inputs and outputs of a layer as hooks on transformers' model see them."""
    spoilt = load_model(tiny.path, pack=with_error_in("blk.1.down")).model
    reference = load_model(tiny.path, pack=numpy_pack).model
    piece = windows(TOKENS, 100, limit=1)
    error = {each.name: each for each in analyze_layers(spoilt, reference, piece)}["blk.1.down"]
    seen: list[Any] = []
    module = tiny.torch_model.model.layers[1].mlp.down_proj
    hook = module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0][0], output[0])))
    with torch.no_grad():
        tiny.torch_model(torch.from_numpy(TOKENS[:100])[None])
        weight = (module.weight.numpy().view(np.uint32) & 0xFFF80000).view(np.float32)
        x, y = (each.double().numpy() for each in seen[0])
    hook.remove()
    wrong = x @ weight.astype(np.float64).T
    assert error.alone.relative_error == pytest.approx(np.linalg.norm(wrong - y) / np.linalg.norm(y), rel=1e-3)
    assert error.alone.max_error == pytest.approx(np.abs(wrong - y).max(), rel=1e-3)
    assert error.entire.relative_error == pytest.approx(error.alone.relative_error, rel=1e-3)  # nothing before is wrong


def test_progress_and_mistakes(tiny: Any, demo: Any) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    calls: list[tuple[int, int]] = []
    analyze_layers(model, model, windows(TOKENS, 64), lambda done, total, _: calls.append((done, total)))
    tokens = sum(len(piece.tokens) for piece in windows(TOKENS, 64))
    assert {total for _, total in calls} == {2 * tokens}
    steps = [done for done, _ in calls]
    assert steps == sorted(steps)
    assert steps[-1] == 2 * tokens
    assert max(np.diff([0, *steps])) <= 32  # half a chunk of 64: the model has two blocks
    with pytest.raises(ValueError, match="no text"):
        analyze_layers(model, model, [])
    with pytest.raises(ValueError, match="different configurations"):
        analyze_layers(model, demo.model, windows(TOKENS, 64))


def test_layers_can_be_exchanged(tiny: Any) -> None:
    model = load_model(tiny.path, pack=numpy_pack).model
    assert list(model.linears) == layer_names(2)

    class Zero:
        shape = (48, 32)

        def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.zeros((len(x), 32), np.float32)

    changed = model.with_linears({"blk.1.down": Zero()})
    assert isinstance(changed.linears["blk.1.down"], Zero)
    assert changed.linears["blk.0.down"] is model.linears["blk.0.down"]
    same = model.with_linears({})
    logits = [each.forward(TOKENS[:9], each.new_cache()) for each in (model, same, changed)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert (logits[0] != logits[2]).any()
    with pytest.raises(ValueError, match=r"no layer 'blk\.2\.down'"):
        model.with_linears({"blk.2.down": Zero()})
    with pytest.raises(ValueError, match=r"blk\.1\.down has shape"):
        model.with_linears({"blk.1.down": model.linears["head"]})


def test_csv_and_plot() -> None:
    errors = [LayerError("blk.0.qkv", (32, 64)), LayerError("head", (32, 264))]
    errors[0].alone.add(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    errors[0].entire.add(np.array([1.0]), np.array([-1.0]))
    rows = list(csv.DictReader(io.StringIO(errors_as_csv(errors))))
    assert rows[0]["layer"] == "blk.0.qkv"
    assert (rows[0]["k"], rows[0]["n"]) == ("32", "64")
    assert float(rows[0]["alone_relative_error"]) == pytest.approx(0.1)
    assert float(rows[0]["alone_snr_db"]) == pytest.approx(20)
    assert float(rows[0]["entire_cosine"]) == -1
    assert float(rows[1]["alone_snr_db"]) == math.inf
    assert error_plot(errors, "two layers").startswith(b"\x89PNG")
