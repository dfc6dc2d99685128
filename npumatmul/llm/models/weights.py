"""From the tensors of a model on disk to a `Decoder`: each is taken once, and none may be left over."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from npumatmul.files.reading import shown
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.models.architecture import Architecture
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.llm.models.part import part_of
from npumatmul.llm.models.registry import architecture_of, config_of
from npumatmul.nn.module import Module
from npumatmul.nn.product import Float32, Product

__all__ = ["LayerTensors", "Progress", "layer_tensors", "left_out", "load_decoder"]

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is to do, and a name."""

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class LayerTensors:
    """Which tensors of a model make up a linear layer.

    Attributes
    ----------
    name : str
        Name of the layer, one of `npumatmul.llm.models.decoder.layer_names`.
    parameters : tuple of str
        Names of the weights in `ModelSource.weights`; their rows follow one another in the layer's.
    rows : tuple of int
        Rows of each.
    k : int
        Columns of all of them.
    """

    name: str
    parameters: tuple[str, ...]
    rows: tuple[int, ...]
    k: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)`` of the layer's weight."""
        return sum(self.rows), self.k

    def weight(self, source: ModelSource) -> Float32:
        """Read and dequantize the layer's weight.

        Parameters
        ----------
        source : ModelSource
            The open model.

        Returns
        -------
        ndarray of float32, shape (N, K)
            The rows of all tensors.

        Raises
        ------
        npumatmul.errors.ModelError
            If a tensor is missing, of another shape, or cannot be dequantized.
        """
        for name, n in zip(self.parameters, self.rows, strict=True):
            _check_shape(source, name, (n, self.k))
        parts = [source.weights[name] for name in self.parameters]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def layer_tensors(
    source: ModelSource,
    config: DecoderConfig | None = None,
    *,
    elsewhere: int = 0,
    layers: tuple[int, int] | None = None,
) -> dict[str, LayerTensors]:
    """List a model's linear layers.

    Parameters
    ----------
    source : ModelSource
        The open model.
    config : DecoderConfig, optional
        Its configuration; read by default.
    elsewhere : int
        How many layers are known to be stored elsewhere.
    layers : (int, int), optional
        Only those of a part of it, as of a slice of its blocks.

    Returns
    -------
    dict of str to LayerTensors
        By name, in the order of `npumatmul.llm.models.decoder.layer_names`.

    Raises
    ------
    npumatmul.errors.ModelError
        If the configuration cannot be used, or names more layers than there are tensors.
    """
    config = config_of(source) if config is None else config
    _check_sizes(source, config, elsewhere)
    return _layers_of(_decoder(source, part_of(config, layers)), architecture_of(source))


def load_decoder(
    source: ModelSource,
    linear: Callable[[LayerTensors], Product],
    *,
    context_length: int | None = None,
    elsewhere: int = 0,
    progress: Progress | None = None,
    layers: tuple[int, int] | None = None,
) -> Decoder:
    """Make a model of what is on disk.

    Weights are taken one after another, so besides what `linear` keeps, only one is in memory. The embedding table
    stays in the file as it is stored, and its rows are dequantized as tokens need them: exact, and without a float32
    copy that for some models is larger than all that `linear` keeps.

    Parameters
    ----------
    source : ModelSource
        The open model, with everything but, perhaps, the weights of linear layers.
    linear : callable
        Makes the product of a layer; ``layer.weight(source)`` reads its weight.
    context_length : int, optional
        Longest sequence, in tokens; by default, and at most, the model's own.
    elsewhere : int
        How many layers are known to be stored elsewhere.
    progress : callable, optional
        Called before each layer and at the end with (layers done, layers in all, name).
    layers : (int, int), optional
        A part of the model, as of a slice of its blocks; nothing of the others is read. The embedding table, whose rows
        stay in the file, is in all parts, the output matrix in the last one.

    Returns
    -------
    Decoder
        The model.

    Raises
    ------
    npumatmul.errors.ModelError
        If the architecture or one of its features is not known, a tensor is missing, left over or of another shape, or
        cannot be dequantized.
    ValueError
        If `context_length` is not positive, or the model has no such blocks.
    """
    whole = _limited(config_of(source), context_length)
    _check_sizes(source, whole, elsewhere)
    config, architecture = part_of(whole, layers), architecture_of(source)
    model = _decoder(source, config)
    note = left_out(source)
    if note is not None:
        logger.info("%s: %s", source.name, note)
    products = _layers_of(model, architecture)
    in_products = {name for layer in products.values() for name in layer.parameters}
    names = {name: _called(name, config, architecture) for name in model.parameter_shapes()}
    if not config.has_head:
        names.pop(HEAD, None)
    beside = {ours: theirs for ours, theirs in names.items() if theirs not in in_products or theirs == EMBEDDINGS}
    others = () if config is whole else _decoder(source, whole).parameter_shapes()
    _check_names(
        source, model, {*names.values(), *map(architecture.in_checkpoint, others)}, beside, architecture.left_out
    )
    _check_products(source, products.values())
    Module.load_state_dict(model, _Beside(source, beside), strict=False)  # a tied head comes with the others
    for done, (name, module) in enumerate(model.linear_modules().items()):
        if progress is not None:
            progress(done, len(products), name)
        product = linear(products[name])
        module.use(product)
    if progress is not None:
        progress(len(products), len(products), "done")
    return model


def _decoder(source: ModelSource, config: DecoderConfig) -> Decoder:
    """A model without weights; layers look at what they are made with once more."""
    try:
        return Decoder(config)
    except ValueError as error:
        raise source.error(f"its configuration makes no model: {error}") from error


def _limited(config: DecoderConfig, context_length: int | None) -> DecoderConfig:
    if context_length is None:
        return config
    count_from_one(context_length, "context_length", "load_model")
    return dataclasses.replace(config, context_length=min(context_length, config.context_length))


def _check_sizes(source: ModelSource, config: DecoderConfig, elsewhere: int) -> None:
    """Hold what memory is taken by against the file, before there are norms of that width."""
    _check_shape(source, EMBEDDINGS, (config.vocab_size, config.hidden_size))
    held = len(source.weights) + elsewhere  # each layer has several, and so has each expert
    for what, count in (("layers", config.n_layers), ("experts", sum(config.expert_counts))):
        if count > held:
            raise source.error(f"it says that it has {count} {what}, but holds {held} tensors")


def _layers_of(model: Decoder, architecture: Architecture) -> dict[str, LayerTensors]:
    paths = {id(module): path for path, module in model.named_modules()}
    found = {}
    for name, module in model.linear_modules().items():
        path = paths[id(module)]
        stem = path if module.is_named else path.rpartition(".")[0]
        own = {key: shape for key, shape in module.own_shapes().items() if key.endswith("weight")}
        names = tuple(_called(f"{stem}.{key}", model.config, architecture) for key in own) or (
            EMBEDDINGS,
        )  # a tied head has none of its own
        shapes = list(own.values()) or [(model.config.vocab_size, model.config.hidden_size)]
        found[name] = LayerTensors(name, names, tuple(n for n, _ in shapes), shapes[0][1])
    return found


def _called(name: str, config: DecoderConfig, architecture: Architecture) -> str:
    """What checkpoints call a parameter of a model, or of a part of it."""
    return architecture.in_checkpoint(name if config.part is None else config.part.parameter(name))


def _check_names(
    source: ModelSource,
    model: Decoder,
    names: Collection[str],
    beside: Mapping[str, str],
    begun: tuple[str, ...] = (),
) -> None:
    """Refuse a model that lacks a tensor or has one too many: its output would be wrong."""
    missing = [name for name in beside.values() if name not in source.weights]
    if missing:
        raise source.error(f"{_counted(len(missing), 'tensor')} missing, such as {_told(source, missing[0])}")
    known = {*names, HEAD} if model.config.tied else set(names)
    known |= _not_needed(model.config)
    left = [name for name in source.weights if name not in known and not name.startswith(begun)]
    if left:
        raise source.error(
            f"it has {len(left)} tensors of a kind that is not supported, such as {_told(source, left[0])}"
        )
    shapes = model.parameter_shapes()
    for ours, theirs in beside.items():
        _check_shape(source, theirs, shapes[ours])


def _not_needed(config: DecoderConfig) -> set[str]:
    """Parameters that checkpoints have of layers which look at keys and values of others, for nothing."""
    parts = ("k_proj.weight", "v_proj.weight", "k_norm.weight", "v_norm.weight", "k_proj.bias", "v_proj.bias")
    followers = [i for i, each in enumerate(config.layers) if each.follows is not None]
    return {f"model.layers.{i}.self_attn.{part}" for i in followers for part in parts}


def _check_products(source: ModelSource, layers: Iterable[LayerTensors]) -> None:
    """Look at names and shapes of weights before the first is read; a quantized model has none of them here."""
    wanted = {name: (n, layer.k) for layer in layers for name, n in zip(layer.parameters, layer.rows, strict=True)}
    if any(name in source.weights for name in wanted if name != EMBEDDINGS):
        if HEAD in wanted and HEAD not in source.weights:
            raise source.error(
                f"it has no output matrix ({HEAD}), and does not say that the embedding table is it "
                "(tie_word_embeddings): it was saved from a class without a head, and continues no texts; save it from "
                "the class with one, whose name ends with ForCausalLM"
            )
        for name, shape in wanted.items():
            _check_shape(source, name, shape)


def _check_shape(source: ModelSource, name: str, wanted: tuple[int, ...]) -> None:
    if name not in source.weights:
        raise source.error(f"tensor {_told(source, name)} is missing")
    found = tuple(source.weights.shape(name))
    if found != wanted:
        raise source.error(f"tensor {_told(source, name)} has shape {found}, its metadata asks for {wanted}")


def _told(source: ModelSource, name: str) -> str:
    """A parameter's name, and what the file calls it."""
    called = getattr(source.weights, "tensor_name", None)
    own = called(name) if called is not None and name in source.weights else name
    return shown(own) if own == name else f"{shown(own)} ({name})"


def _counted(count: int, what: str) -> str:
    return f"{count} {what} is" if count == 1 else f"{count} {what}s are"


class _Beside(Mapping[str, Any]):
    """Parameters that are not in products of linear layers; the embedding table by its rows."""

    def __init__(self, source: ModelSource, names: Mapping[str, str]) -> None:
        self._weights, self._names = source.weights, names

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __getitem__(self, name: str) -> Float32:
        return self._weights[self._names[name]]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shape(self._names[name])

    def rows(self, name: str) -> Any:
        return self._weights.rows(self._names[name])


def left_out(source: ModelSource) -> str | None:
    """What is in a model's files and is not computed, as a sentence; None where all of it is.

    Parameters
    ----------
    source : ModelSource
        The open model.

    Raises
    ------
    npumatmul.errors.ModelError
        If its architecture is not known.
    """
    begun = architecture_of(source).left_out
    names = [name for name in source.weights if name.startswith(begun)]
    if not names:
        return None
    parts = sorted({re.split(r"\.(?!\d)", name.removeprefix("model."))[0] for name in names})
    return f"{_counted(len(names), 'tensor')} not read ({', '.join(parts)}): the language model alone is computed"
