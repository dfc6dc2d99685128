"""Quantizing layer after layer, each by what it sees once those before it are quantized.

All windows of the text are brought to a layer before it is quantized, and go on through the quantized layer. Beside
them go the same windows through the float model, to whose products and means recipes with a `correction` fit weights
and biases. What is held is a row for each token, as wide as the layer's input, twice. Of experts, each stream has rows
of its own, as its own router chooses them; so they are not fitted to the float model's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.loading import load_from, numpy_pack
from npumatmul.llm.measure.evaluation import Window
from npumatmul.llm.models.block_steps import Steps as BlockSteps
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.weights import LayerTensors, Progress
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.llm.quantize.emulation import emulate
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.steps import Steps
from npumatmul.nn.product import Float32, Product

__all__ = ["SEEN", "MakeLayer", "quantize_in_sequence"]

SEEN = 0.3
"""Share of the time of a layer, roughly, that goes into looking at its activations."""

MakeLayer = Callable[[LayerTensors, LayerStatistics], QuantizedLayer]
"""Makes a quantized layer of its tensors and of what was seen of its activations."""


def quantize_in_sequence(
    source: GGUFSource, make: MakeLayer, pieces: Sequence[Window], *, progress: Progress | None = None
) -> dict[str, QuantizedLayer]:
    """Quantize the layers of a model in the order in which a token passes them.

    Parameters
    ----------
    source : GGUFSource
        The open file.
    make : callable
        Makes each layer.
    pieces : sequence of Window
        The text; every token counts.
    progress : callable, optional
        Called before each layer, while its activations are looked at, and at the end, with what is done, what there is
        to do (in weights, since layers take as long as they are large), and a name.

    Returns
    -------
    dict of str to QuantizedLayer
        By name.

    Raises
    ------
    ValueError
        If there are no windows.
    npumatmul.errors.ModelError
        If the file cannot be used.
    """
    if not pieces:
        raise ValueError("there is no calibration text")
    tensors: dict[str, LayerTensors] = {}
    steps = Steps(progress)

    def exact(layer: LayerTensors) -> Product:
        tensors[layer.name] = layer
        return numpy_pack(layer.weight(source))

    model = load_from(source, exact).model
    layers: dict[str, QuantizedLayer] = {}

    def next_layer(name: str, given: Sequence[Float32], references: Sequence[Float32]) -> tuple[Product, Product]:
        steps(weights_of(tensors[done] for done in layers), weights_of(tensors.values()), f"quantizing {name}")
        statistics, share = LayerStatistics(tensors[name].k), steps.within(weights_of([tensors[name]]), 0, SEEN)
        chosen = ".expert." in name  # by other rows in the float model: none of them is the reference of another
        for number, (x, reference) in enumerate(zip(given, references, strict=True), 1):
            statistics.add(x, None if chosen else reference)
            share(number / len(given))
        layers[name] = make(tensors[name], statistics)
        return emulate(layers[name]), model.linears[name]

    tokens = [piece.tokens for piece in pieces]
    streams = [[model.embed(ids) for ids in tokens] for _ in range(2)]  # quantized, float
    for block in range(model.config.n_layers):
        streams = _block(model, block, streams, next_layer)
    next_layer("head", *([model.entering_head(x) for x in stream] for stream in streams))
    steps(weights_of(tensors.values()), weights_of(tensors.values()), "done")
    return layers


def weights_of(layers: Iterable[LayerTensors]) -> int:
    """How many weights layers have together."""
    return sum(math.prod(layer.shape) for layer in layers)


def _block(
    model: Decoder,
    block: int,
    streams: list[list[Float32]],
    next_layer: Callable[[str, Sequence[Float32], Sequence[Float32]], tuple[Product, Product]],
) -> list[list[Float32]]:
    """Take both streams through a block, layer by layer."""
    # a cache reserves room for all blocks, of which memory is taken for what is written only: this one's
    steps: list[list[BlockSteps]] = [
        [model.block_steps(block, x, model.new_cache(len(x))) for x in stream] for stream in streams
    ]
    given = [[next(each)[1] for each in stream] for stream in steps]
    parts = model.config.layers[block].parts
    for part in parts[:-1]:
        linears = next_layer(f"blk.{block}.{part}", *given)
        for stream, inputs, linear in zip(steps, given, linears, strict=True):
            for i, each in enumerate(stream):
                inputs[i] = each.send(_product(linear, inputs[i]))[1]
    linears = next_layer(f"blk.{block}.{parts[-1]}", *given)
    return [
        [_last(each, _product(linear, x)) for each, x in zip(stream, inputs, strict=True)]
        for stream, inputs, linear in zip(steps, given, linears, strict=True)
    ]


def _product(linear: Product, x: Float32) -> Float32:
    """Of no rows, as those of an expert that none chose, none."""
    return linear(x) if len(x) else np.zeros((0, linear.shape[1]), np.float32)


def _last(steps: BlockSteps, result: Float32) -> Float32:
    try:
        steps.send(result)
    except StopIteration as end:
        leaving: Float32 = end.value
        return leaving
    raise AssertionError("a block has more layers than it has names for")
