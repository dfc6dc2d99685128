"""Loading a language model with its tokenizer and chat template."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.arguments import check_progress
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.decoder_config import DecoderConfig
from npumatmul.llm.models.part import part_of
from npumatmul.llm.models.registry import config_of
from npumatmul.llm.models.sentence import SentenceConfig, sentence_config_of
from npumatmul.llm.models.weights import LayerTensors, Progress, load_decoder
from npumatmul.llm.run.chat import ChatTemplate, Message
from npumatmul.llm.tokenizers.opening import tokenizer_of
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.product import Float32, FloatProduct, Pack, Product

logger = logging.getLogger(__name__)

TEMPLATE_ARGUMENTS = frozenset({"self", "messages", "add_generation_prompt", "tools"})
"""What has an argument of its own."""


@dataclass(frozen=True)
class LoadedModel:
    """A model with what belongs to it.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    name : str
        Name of the model, from the metadata or else of the file.
    config : DecoderConfig
        Sizes and constants.
    model : Decoder
        The model.
    tokenizer : Tokenizer
        Its tokenizer.
    chat_template : ChatTemplate
        Its chat template; a plain one if it has none.
    load_seconds : float
        How long loading took.
    sentence : SentenceConfig
        How its states become embeddings.
    """

    path: Path
    name: str
    config: DecoderConfig
    model: Decoder
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    load_seconds: float
    sentence: SentenceConfig = field(default_factory=SentenceConfig)

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        variables: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Turn a conversation into the tokens of a prompt.

        Parameters
        ----------
        messages : sequence of mappings
            Each with ``role`` and ``content``.
        add_generation_prompt : bool, default True
            Whether to end with the start of an answer.
        tools : sequence of mappings, optional
            Descriptions of tools, for templates that know them.
        variables : mapping, optional
            Further variables of the template.

        Returns
        -------
        list of int
            Token numbers. Control tokens spelled in messages become control tokens; see `npumatmul.llm.run.chat`.

        Raises
        ------
        ValueError
            If the messages are malformed, or the template refuses them.
        """
        given = dict(variables or {})
        wrong = [name for name in given if not isinstance(name, str) or name in TEMPLATE_ARGUMENTS]
        if wrong:
            raise ValueError(f"variables of a chat template cannot be called {wrong[0]!r}")
        text = self.chat_template.render(messages, add_generation_prompt=add_generation_prompt, tools=tools, **given)
        has_template = self.chat_template.source is not None
        return self.tokenizer.encode(text, parse_special=has_template, add_special=not has_template)


def numpy_pack(weight: NDArray[np.float32], name: str = "") -> FloatProduct:
    """Make a `Product` that numpy computes in float32: the reference, and a way to run a model without an NPU.

    Parameters
    ----------
    weight : ndarray of float32, shape (N, K)
        The weight.
    name : str
        Name of the layer; not used.

    Returns
    -------
    FloatProduct
        Its product.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm import numpy_pack
    >>> linear = numpy_pack(np.array([[1, 2, 3]], np.float32))
    >>> linear.shape, linear(np.ones((1, 3), np.float32))
    ((3, 1), array([[6.]], dtype=float32))
    """
    return FloatProduct(weight)


def load_model(
    path: str | os.PathLike[str],
    *,
    pack: Pack,
    context_length: int | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a language model, its products made by a function.

    Weights are dequantized and packed one after another, so besides what `pack` keeps, only one is in memory. The
    embedding table stays in the file as it is stored, and its rows are dequantized as tokens need them: exact, and
    without a float32 copy that for some models is larger than all that `pack` keeps.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file, or a folder as Hugging Face has it.
    pack : callable
        Makes a `Product` of a float32 weight ``(N, K)`` and the layer's name (`layer_names`). It may keep the array.
    context_length : int, optional
        Longest sequence, in tokens; by default, and at most, the model's own.
    progress : callable, optional
        Called before each matrix and at the end with (matrices done, matrices in all, name).

    Returns
    -------
    LoadedModel
        The model with tokenizer and chat template.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    npumatmul.errors.ModelError
        If the file is damaged or the model is not supported.
    TypeError
        If `pack` is no function.
    ValueError
        If `context_length` is not positive.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model, load_model, numpy_pack
    >>> loaded = load_model(fetch_demo_model(), pack=numpy_pack)
    >>> loaded.config.n_layers
    30
    """
    check_progress("load_model", progress)
    if not callable(pack):
        raise TypeError(f"load_model: pack is a function, such as npu_pack('w8a8') makes, not {pack!r}")
    with open_source(path) as source:
        return load_from(
            source,
            lambda layer: pack(layer.weight(source), layer.name),
            context_length=context_length,
            progress=progress,
        )


class Build(Protocol):
    """Makes products of layers, or has them already."""

    def check(self, names: Sequence[str]) -> None:
        """Look at what is asked for when the names of layers are known, before anything is read."""
        ...

    def ready(self, name: str) -> Product | None:
        """The product of a layer, if nobody has to read its weight."""
        ...

    def __call__(self, weight: Float32, name: str) -> Product:
        """Make the product of a layer."""
        ...


def load_source(
    source: ModelSource,
    build: Build,
    *,
    context_length: int | None = None,
    progress: Progress | None = None,
    layers: tuple[int, int] | None = None,
) -> LoadedModel:
    """Load a model from an open file or folder, with products that need not be made of its weights.

    Parameters
    ----------
    source : ModelSource
        The model.
    build : Build
        Makes products of its layers.
    context_length, progress
        As for `load_model`.
    layers : (int, int), optional
        A part of the model, as of a slice of its blocks.

    Returns
    -------
    LoadedModel
        The model.

    Raises
    ------
    npumatmul.errors.ModelError, ValueError
        As `load_model`.
    """
    build.check(part_of(config_of(source), layers).layer_names)

    def linear(layer: LayerTensors) -> Product:
        ready = build.ready(layer.name)
        return build(layer.weight(source), layer.name) if ready is None else ready

    return load_from(source, linear, context_length=context_length, progress=progress, layers=layers)


def load_from(
    source: ModelSource,
    linear: Callable[[LayerTensors], Product],
    *,
    context_length: int | None = None,
    elsewhere: int = 0,
    progress: Progress | None = None,
    layers: tuple[int, int] | None = None,
) -> LoadedModel:
    """Load a model whose linear layers may come from elsewhere.

    Parameters
    ----------
    source : ModelSource
        An open model with everything but, perhaps, the tensors of linear layers.
    linear : callable
        Makes the product of a layer.
    elsewhere : int
        How many layers are known to be stored elsewhere.
    context_length, progress
        As for `load_model`.
    layers : (int, int), optional
        As for `load_source`.

    Returns
    -------
    LoadedModel
        The model.

    Raises
    ------
    npumatmul.errors.ModelError, ValueError
        As `load_model`.
    """
    started = time.perf_counter()
    config = config_of(source)
    tokenizer = tokenizer_of(source, config.vocab_size)
    template = ChatTemplate.of(source, tokenizer)
    sentence = sentence_config_of(source)
    model = load_decoder(
        source, linear, context_length=context_length, elsewhere=elsewhere, progress=progress, layers=layers
    )
    seconds = time.perf_counter() - started
    logger.info("loaded %s (%s) in %.1f s", source.path, source.name, seconds)
    return LoadedModel(source.path, source.name, model.config, model, tokenizer, template, seconds, sentence)
