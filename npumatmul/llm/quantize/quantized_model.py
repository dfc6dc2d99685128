"""Quantizing a model by a recipe, and what comes of it."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from npumatmul.llm.arguments import check_progress
from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.loading import LoadedModel, load_from
from npumatmul.llm.measure.evaluation import Window
from npumatmul.llm.models.weights import LayerTensors, Progress, layer_tensors
from npumatmul.llm.quantize.build import centred_layer, quantize_layer
from npumatmul.llm.quantize.calibration import LayerStatistics, collect_statistics
from npumatmul.llm.quantize.emulation import emulate
from npumatmul.llm.quantize.gguf_blocks import layer_of_blocks
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.packed_layer import PackedLayer
from npumatmul.llm.quantize.recipe import GGUF_SCHEME, LayerRecipe, Recipe
from npumatmul.llm.quantize.sequential import SEEN, quantize_in_sequence, weights_of
from npumatmul.llm.quantize.steps import Steps
from npumatmul.nn.expert_names import Unstacked
from npumatmul.nn.product import Product
from npumatmul.quant.meter import Share

__all__ = ["MakeLinear", "QuantizedModel", "Source", "layers_to_calibrate", "quantize_model"]

logger = logging.getLogger(__name__)

FEWEST_ROWS = 8
"""Rows that an expert has to be seen with: moments of fewer say more of those tokens than of the expert."""

MakeLinear = Callable[[QuantizedLayer | PackedLayer, str], Product]
"""Makes a `Product` of a quantized layer and its name."""


@dataclass(frozen=True)
class Source:
    """The file that a quantized model was made of.

    Attributes
    ----------
    name : str
        Name of the file.
    sha256 : str
        Digest of its bytes.
    """

    name: str
    sha256: str

    @classmethod
    def of(cls, file: GGUFFile, progress: Progress | None = None) -> Source:
        """The source of what is made of an open file, all of which is read."""
        name = file.path.name
        return cls(name, file.sha256(lambda done, total: progress and progress(done, total, f"reading {name}")))


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A model whose linear layers are quantized.

    Attributes
    ----------
    path : pathlib.Path
        The file that it was made of or loaded from.
    rest : GGUFFile
        Everything but the linear layers: configuration, tokenizer, embeddings, norms, biases.
    recipe : Recipe
        How it was made.
    source : Source
        What it was made of.
    layers : mapping of str to QuantizedLayer or PackedLayer
        The layers by name; those of a file that was packed for a chip are `PackedLayer`.
    notes : tuple of str
        What was done otherwise than a reader might expect.
    """

    path: Path
    rest: GGUFFile
    recipe: Recipe
    source: Source
    layers: Mapping[str, QuantizedLayer | PackedLayer]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return size and bits."""
        return (
            f"<QuantizedModel {self.path.name}: {self.nbytes / 1e6:.1f} MB, {self.bits_per_weight:.2f} bits per weight>"
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all layers as they are stored."""
        return sum(layer.nbytes for layer in self.layers.values())

    @property
    def soc(self) -> str | None:
        """The chip that its layers are packed for; None where they are codes, for any."""
        return next((layer.soc for layer in self.layers.values() if isinstance(layer, PackedLayer)), None)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits for each value of the layers' weights, scales included."""
        return 8 * self.nbytes / max(1, sum(layer.shape[0] * layer.shape[1] for layer in self.layers.values()))

    def load(
        self,
        make: MakeLinear = emulate,
        *,
        context_length: int | None = None,
        progress: Progress | None = None,
    ) -> LoadedModel:
        """Make a model that runs.

        Parameters
        ----------
        make : callable
            What computes the layers: `emulate`, by numpy on the host (the default), or what `npu_layers` makes.
        context_length : int, optional
            Longest sequence, in tokens; by default, and at most, the model's own.
        progress : callable, optional
            Called before each layer and at the end.

        Returns
        -------
        LoadedModel
            The model with tokenizer and chat template.
        """
        check_progress("load", progress)

        def linear(tensors: LayerTensors) -> Product:
            layer = self.layers[tensors.name]
            if layer.shape != tensors.shape:
                raise self.rest.error(f"layer {tensors.name!r} has shape {layer.shape}, {tensors.shape} is needed")
            return make(layer, tensors.name)

        return load_from(
            GGUFSource.of(self.rest),
            linear,
            context_length=context_length,
            elsewhere=len(self.layers),
            progress=progress,
        )


def quantize_model(
    path: str | os.PathLike[str],
    recipe: Recipe,
    calibration: Sequence[Window] = (),
    *,
    statistics: Mapping[str, LayerStatistics] | None = None,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantize the linear layers of a model.

    A file whose blocks have 4 or 8 bits already is dequantized and rounded a second time, unless the recipe's scheme
    is ``gguf``; the result's notes say so.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file.
    recipe : Recipe
        What to do to each layer.
    calibration : sequence of Window
        A text, where layers need one; see `npumatmul.llm.windows`. It should not be the text of an evaluation.
    statistics : mapping of str to LayerStatistics, optional
        What was seen on a calibration text before, instead of one; of no use to a sequential recipe.
    progress : callable, optional
        Called with what is done, what there is to do, and a name.

    Returns
    -------
    QuantizedModel
        The model.

    Raises
    ------
    ValueError
        If a layer needs calibration and there is no text.
    npumatmul.errors.ModelError
        If the file cannot be used.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model, generate
    >>> from npumatmul.llm.quantize import LayerRecipe, Recipe, quantize_model
    >>> model = quantize_model(fetch_demo_model(), Recipe(LayerRecipe("w8a8")))
    >>> round(model.bits_per_weight, 2)
    8.05
    """
    check_progress("quantize_model", progress)
    source = GGUFSource(path)
    file, names = source.file, layer_tensors(source)
    recipes = {name: recipe.for_layer(name) for name in names}
    needing = layers_to_calibrate(path, recipe)
    if needing and recipe.sequential:
        if not calibration:
            raise ValueError("the recipe is sequential, and calibrates as a text runs through the layers: give a text")
        steps = Steps(progress)

        def make(tensors: LayerTensors, seen: LayerStatistics) -> QuantizedLayer:
            share = steps.within(weights_of([tensors]), SEEN, 1)
            return layer_of_recipe(source, tensors, recipes[tensors.name], seen, seed=recipe.seed, progress=share)

        layers = quantize_in_sequence(source, make, calibration, progress=steps)
    else:
        known = dict(statistics or {})
        missing = [name for name in needing if name not in known]
        if missing:
            if not calibration:
                raise ValueError(f"the recipe calibrates {len(missing)} layers, such as {missing[0]!r}: give a text")
            known.update(collect_statistics(path, calibration, missing, progress=progress))
        layers, steps = {}, Steps(progress)
        for name, tensors in names.items():
            steps(weights_of(names[each] for each in layers), weights_of(names.values()), f"quantizing {name}")
            share = steps.within(weights_of([tensors]))
            layers[name] = layer_of_recipe(
                source, tensors, recipes[name], known.get(name), seed=recipe.seed, progress=share
            )
    requantized, left_out, unseen = [], [], []
    for name, layer in layers.items():
        if recipes[name].needs_calibration and not layer.recipe.needs_calibration:
            unseen.append(name)
        if layer.recipe.scheme == GGUF_SCHEME:
            continue
        if recipes[name].scheme == GGUF_SCHEME:
            left_out.append(name)
        if recipes[name].parts.weight_bits < 16 and any(
            "Q" in source.weights.stored_as(each) for each in names[name].parameters
        ):
            requantized.append(name)
    steps(len(names), len(names), "done")
    notes = []
    if requantized:
        notes.append(
            f"{len(requantized)} of {len(names)} layers were quantized in {file.path.name} already and are rounded a "
            f"second time; scheme 'gguf' takes blocks of Q4_0, Q4_1 and Q8_0 over as they are"
        )
    if left_out:
        notes.append(
            f"{len(left_out)} layers, such as {left_out[0]!r}, are stored in types whose blocks cannot be taken over; "
            f"they are w8a8 instead"
        )
    if unseen:
        notes.append(
            f"{len(unseen)} layers, such as {unseen[0]!r}, are of experts that fewer than {FEWEST_ROWS} tokens of the "
            "calibration text chose; they are rounded to nearest without it"
        )
    for note in notes:
        logger.info("%s", note)
    return QuantizedModel(file.path, file, recipe, Source.of(file, progress), layers, tuple(notes))


def layers_to_calibrate(path: str | os.PathLike[str], recipe: Recipe) -> list[str]:
    """Names of the layers of a model whose recipe looks at activations.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file.
    recipe : Recipe
        What is to be done.

    Returns
    -------
    list of str
        None where no calibration text is needed.
    """
    with GGUFSource(path) as source:
        names = layer_tensors(source)
    return [name for name in names if recipe.for_layer(name).needs_calibration]


def layer_of_recipe(
    source: GGUFSource,
    tensors: LayerTensors,
    recipe: LayerRecipe,
    statistics: LayerStatistics | None,
    *,
    seed: int = 0,
    progress: Share | None = None,
) -> QuantizedLayer:
    """Make one layer of a file.

    Parameters
    ----------
    source : GGUFSource
        The open file.
    tensors : LayerTensors
        Which of its tensors make up the layer.
    recipe : LayerRecipe
        What to do. Where it is ``gguf`` and blocks cannot be taken over, the layer becomes ``w8a8_g32_agroup``, as its
        own recipe says then; an expert that fewer than `FEWEST_ROWS` tokens chose is rounded to nearest.
    statistics : LayerStatistics, optional
        Of its activations.
    seed : int
        Of random signs.
    progress : callable, optional
        Called with the share that is done, 0 to 1, about every second.

    Returns
    -------
    QuantizedLayer
        The layer.
    """
    if recipe.scheme == GGUF_SCHEME:
        weights = source.weights
        names = [weights.tensor_name(each) for each in tensors.parameters]
        rows = [weights.rows_of(each) if isinstance(weights, Unstacked) else None for each in tensors.parameters]
        taken = layer_of_blocks(source.file, names, recipe, rows)
        if taken is not None:
            return centred_layer(taken, tensors.weight(source), statistics) if recipe.centre else taken
        recipe = dataclasses.replace(recipe, scheme="w8a8_g32_agroup")
    if statistics is not None and statistics.rows < FEWEST_ROWS and ".expert." in tensors.name:
        recipe = recipe.without_calibration()
    weight = tensors.weight(source)
    return quantize_layer(weight, recipe, statistics, name=tensors.name, seed=seed, progress=progress)
