"""Loading a language model from a GGUF file."""

from __future__ import annotations

import dataclasses
import logging
import operator
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.models.config import LlamaConfig
from npumatmul.llm.models.decoder import Block, Float32, Linear, LlamaModel, Pack
from npumatmul.llm.run.chat import ChatTemplate, Message
from npumatmul.llm.tokenizers.gguf_tokenizer import GGUFTokenizer
from npumatmul.llm.tokenizers.protocol import Tokenizer

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
"""Called with what is done, what there is to do, and a name."""

IGNORED_TENSORS = (
    ".attn_rot_embd",
    ".rotary_emb.inv_freq",
)  # tables that old converters stored: they are computed


@dataclass(frozen=True)
class LoadedModel:
    """A model with what belongs to it.

    Attributes
    ----------
    path : pathlib.Path
        The file.
    name : str
        Name of the model, from the metadata or else of the file.
    config : LlamaConfig
        Sizes and constants.
    model : LlamaModel
        The model.
    tokenizer : Tokenizer
        Its tokenizer.
    chat_template : ChatTemplate
        Its chat template; a plain one if it has none.
    load_seconds : float
        How long loading took.
    """

    path: Path
    name: str
    config: LlamaConfig
    model: LlamaModel
    tokenizer: Tokenizer
    chat_template: ChatTemplate
    load_seconds: float

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Turn a conversation into the tokens of a prompt.

        Parameters
        ----------
        messages : sequence of mappings
            Each with ``role`` and ``content``.
        add_generation_prompt : bool, default True
            Whether to end with the start of an answer.

        Returns
        -------
        list of int
            Token numbers. Control tokens spelled in messages become control tokens; see `npumatmul.llm.run.chat`.

        Raises
        ------
        ValueError
            If the messages are malformed, or the template refuses them.
        """
        text = self.chat_template.render(messages, add_generation_prompt=add_generation_prompt)
        has_template = self.chat_template.source is not None
        return self.tokenizer.encode(text, parse_special=has_template, add_special=not has_template)


class NumpyLinear:
    """A `Linear` computed by numpy in float32: the reference, and a way to run a model without an NPU.

    Parameters
    ----------
    weight : ndarray of float32, shape (N, K)
        The weight; it is not copied.
    """

    def __init__(self, weight: Float32) -> None:
        self._weight = weight

    @property
    def shape(self) -> tuple[int, int]:
        return self._weight.shape[1], self._weight.shape[0]

    def __call__(self, x: Float32) -> Float32:
        """Multiply ``(M, K)`` to ``(M, N)``."""
        y: Float32 = x @ self._weight.T
        return y


def numpy_pack(weight: NDArray[np.float32], name: str = "") -> Linear:
    """Make a `Linear` that numpy computes in float32.

    Parameters
    ----------
    weight : ndarray of float32, shape (N, K)
        The weight.
    name : str
        Name of the layer; not used.

    Returns
    -------
    Linear
        Its product.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm import numpy_pack
    >>> linear = numpy_pack(np.array([[1, 2, 3]], np.float32))
    >>> linear.shape, linear(np.ones((1, 3), np.float32))
    ((3, 1), array([[6.]], dtype=float32))
    """
    return NumpyLinear(weight)


def load_model(
    path: str | os.PathLike[str],
    *,
    pack: Pack,
    context_length: int | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a language model.

    Weights are dequantized and packed one after another, so besides what `pack` keeps, only one is in memory. The
    embedding table stays in the file as it is stored, and its rows are dequantized as tokens need them: exact, and
    without a float32 copy that for some models is larger than all that `pack` keeps.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file of the llama architecture.
    pack : callable
        Makes a `Linear` of a float32 weight ``(N, K)`` and the layer's name (`layer_names`). It may keep the array.
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
    if not callable(pack):
        raise TypeError(f"load_model: pack is a function, such as npu_pack('w8a8') makes, not {pack!r}")
    with GGUFFile(path) as file:
        return load_from(
            file,
            lambda layer: pack(layer.weight(file), layer.name),
            context_length=context_length,
            progress=progress,
        )


def load_from(
    file: GGUFFile,
    linear: Callable[[LayerTensors], Linear],
    *,
    context_length: int | None = None,
    progress: Progress | None = None,
) -> LoadedModel:
    """Load a model whose linear layers may come from elsewhere.

    Parameters
    ----------
    file : GGUFFile
        An open file with everything but, perhaps, the tensors of linear layers.
    linear : callable
        Makes the `Linear` of a layer.
    context_length, progress
        As for `load_model`.

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
    config = _limited(LlamaConfig.from_gguf(file), context_length)
    tokenizer = GGUFTokenizer(file)
    if tokenizer.vocab_size != config.vocab_size:
        raise file.error(f"its tokenizer has {tokenizer.vocab_size} tokens, its model {config.vocab_size}")
    template = ChatTemplate.from_gguf(file, tokenizer)
    model = _Weights(file, config, linear, progress).model()
    name = file.get("general.name", str, file.path.stem)
    seconds = time.perf_counter() - started
    logger.info("loaded %s (%s) in %.1f s", file.path, name, seconds)
    return LoadedModel(file.path, name, config, model, tokenizer, template, seconds)


@dataclass(frozen=True)
class LayerTensors:
    """Which tensors of a file make up a linear layer.

    Attributes
    ----------
    name : str
        Name of the layer, one of `npumatmul.llm.models.decoder.layer_names`.
    stems : tuple of str
        Names of the tensors without ``.weight``; their rows follow one another in the layer's weight.
    rows : tuple of int
        Rows of each.
    k : int
        Columns of all of them.
    """

    name: str
    stems: tuple[str, ...]
    rows: tuple[int, ...]
    k: int

    @property
    def shape(self) -> tuple[int, int]:
        """``(N, K)`` of the layer's weight."""
        return sum(self.rows), self.k

    @property
    def tensors(self) -> tuple[str, ...]:
        """Full names of the tensors."""
        return tuple(f"{stem}.weight" for stem in self.stems)

    def weight(self, file: GGUFFile) -> Float32:
        """Read and dequantize the layer's weight.

        Parameters
        ----------
        file : GGUFFile
            The open file.

        Returns
        -------
        ndarray of float32, shape (N, K)
            The rows of all tensors.

        Raises
        ------
        npumatmul.errors.ModelError
            If a tensor is missing, of another shape, or cannot be dequantized.
        """
        parts = [file.tensor(name, (n, self.k)) for name, n in zip(self.tensors, self.rows, strict=True)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def layer_tensors(file: GGUFFile, config: LlamaConfig) -> dict[str, LayerTensors]:
    """List a model's linear layers.

    Parameters
    ----------
    file : GGUFFile
        The open file; it decides where the head is: the embedding table is used twice if there is no other.
    config : LlamaConfig
        The model's configuration.

    Returns
    -------
    dict of str to LayerTensors
        By name, in the order of `npumatmul.llm.models.decoder.layer_names`.

    Raises
    ------
    npumatmul.errors.ModelError
        If there are more layers than tensors.
    """
    c = config
    if c.n_layers > len(file.tensors):  # each has several
        raise file.error(f"it says that it has {c.n_layers} layers, but holds {len(file.tensors)} tensors")
    found = {}
    for i in range(c.n_layers):
        p = f"blk.{i}"
        qkv = (f"{p}.attn_q", f"{p}.attn_k", f"{p}.attn_v")
        for layer in (
            LayerTensors(f"{p}.qkv", qkv, (c.q_size, c.kv_size, c.kv_size), c.hidden_size),
            LayerTensors(f"{p}.attn_out", (f"{p}.attn_output",), (c.hidden_size,), c.q_size),
            LayerTensors(f"{p}.gate_up", (f"{p}.ffn_gate", f"{p}.ffn_up"), (c.ffn_size, c.ffn_size), c.hidden_size),
            LayerTensors(f"{p}.down", (f"{p}.ffn_down",), (c.hidden_size,), c.ffn_size),
        ):
            found[layer.name] = layer
    head = "output" if "output.weight" in file.tensors else "token_embd"
    found["head"] = LayerTensors("head", (head,), (c.vocab_size,), c.hidden_size)
    return found


def _limited(config: LlamaConfig, context_length: int | None) -> LlamaConfig:
    if context_length is None:
        return config
    if operator.index(context_length) < 1:
        raise ValueError(f"context_length is {context_length}; it must be 1 or more")
    return dataclasses.replace(config, context_length=min(context_length, config.context_length))


class _Weights:
    """Takes the weights of a model out of a file, and notes which ones it took."""

    def __init__(
        self,
        file: GGUFFile,
        config: LlamaConfig,
        linear: Callable[[LayerTensors], Linear],
        progress: Progress | None,
    ) -> None:
        self._file = file
        self._config = config
        self._make = linear
        self._progress = progress
        self._layers = layer_tensors(file, config)
        self._done = 0
        self._taken: set[str] = set()

    def model(self) -> LlamaModel:
        c = self._config
        table = (c.vocab_size, c.hidden_size)
        self._taken.add("token_embd.weight")
        model = LlamaModel(
            c,
            embedding=self._file.rows("token_embd.weight", table),
            blocks=[self._block(f"blk.{i}") for i in range(c.n_layers)],
            output_norm=self._tensor("output_norm.weight", c.hidden_size),
            head=self._linear("head"),
            rope_factors=self._optional("rope_freqs.weight", c.rope_dim // 2),
        )
        self._check_all_taken()
        if self._progress is not None:
            self._progress(len(self._layers), len(self._layers), "done")
        return model

    def _block(self, prefix: str) -> Block:
        hidden = self._config.hidden_size
        return Block(
            attn_norm=self._tensor(f"{prefix}.attn_norm.weight", hidden),
            qkv=self._linear(f"{prefix}.qkv"),
            qkv_bias=self._bias(f"{prefix}.qkv"),
            attn_out=self._linear(f"{prefix}.attn_out"),
            attn_out_bias=self._bias(f"{prefix}.attn_out"),
            ffn_norm=self._tensor(f"{prefix}.ffn_norm.weight", hidden),
            gate_up=self._linear(f"{prefix}.gate_up"),
            down=self._linear(f"{prefix}.down"),
        )

    def _linear(self, name: str) -> Linear:
        """Make one layer, of one matrix or of several with the same input stacked into one."""
        if self._progress is not None:
            self._progress(self._done, len(self._layers), name)
        self._done += 1
        self._taken.update(self._layers[name].tensors)
        return self._make(self._layers[name])

    def _bias(self, name: str) -> Float32 | None:
        layer = self._layers[name]
        biases = [self._optional(f"{stem}.bias", n) for stem, n in zip(layer.stems, layer.rows, strict=True)]
        if all(bias is None for bias in biases):
            return None
        return np.concatenate(
            [np.zeros(n, np.float32) if b is None else b for b, n in zip(biases, layer.rows, strict=True)]
        )

    def _tensor(self, name: str, *shape: int) -> Float32:
        self._taken.add(name)
        return self._file.tensor(name, shape)

    def _optional(self, name: str, *shape: int) -> Float32 | None:
        return self._tensor(name, *shape) if name in self._file.tensors else None

    def _check_all_taken(self) -> None:
        """Refuse a model with weights that this code does not know: without them its output would be wrong."""
        left = [name for name in self._file.tensors if name not in self._taken]
        left = [name for name in left if not any(ignored in name for ignored in IGNORED_TENSORS)]
        if left:
            raise self._file.error(f"it has {len(left)} tensors of a kind that is not supported, such as {left[0]!r}")
