"""What an encoder is made of: sizes, and the ways in which architectures differ; checked when it is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from npumatmul.llm.models.decoder_config import LayerConfig
from npumatmul.llm.models.from_gguf import GGUFSettings
from npumatmul.llm.models.settings import MAX_LAYERS, MAX_SIZE, Settings

__all__ = ["EncoderArchitecture", "EncoderConfig", "HeadConfig"]

_SIZES = ("hidden_size", "n_heads", "ffn_size", "vocab_size", "context_length")
MAX_LABELS = 1 << 16


@dataclass(frozen=True)
class HeadConfig:
    """What turns the states of a text into scores.

    Attributes
    ----------
    labels : int
        How many scores.
    pooling : {"cls", "mean"}
        Which state it begins with.
    activation : {"tanh", "gelu", "gelu_tanh", "silu"}
        After the first of its two matrices.
    norm : bool
        Whether a LayerNorm follows.
    dense_bias : bool
        Whether the first matrix has a bias.
    scores : {"sigmoid", "identity"}
        What is done to the score of one label.
    """

    labels: int
    pooling: Literal["cls", "mean"] = "cls"
    activation: str = "tanh"
    norm: bool = False
    dense_bias: bool = True
    scores: Literal["sigmoid", "identity"] = "sigmoid"

    def __post_init__(self) -> None:
        """Check the values."""
        if not 1 <= self.labels <= MAX_LABELS:
            raise ValueError(f"there are {self.labels} labels; it must be between 1 and {MAX_LABELS}")


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes and constants of an encoder, and which of the usual parts it has.

    Attributes
    ----------
    architecture : str
        Its name in `npumatmul.llm.models.encoders`.
    n_layers : int
        Transformer blocks.
    hidden_size : int
        Width of states.
    n_heads : int
        Heads, each as wide as the others.
    ffn_size : int
        Width inside the feed-forward network.
    vocab_size : int
        Rows of the embedding table.
    context_length : int
        Longest text, in tokens.
    layers : tuple of LayerConfig
        One for each block: its rotation, and its window (tokens that are fewer positions away are seen).
    norm_eps : float
        Of all norms.
    norm_bias : bool
        Whether norms have biases.
    norms : {"after", "before"}
        Where they are: with norms after there is none behind the last block; with norms before the first block has none
        before attention.
    qkv_bias, out_bias, mlp_bias : bool
        Whether queries, keys and values have biases, what follows attention, and the feed-forward network.
    activation : {"silu", "gelu", "gelu_tanh", "relu2"}
        Function of the feed-forward network.
    gated : bool
        Whether it is applied to a gate, which is in one matrix with what is gated.
    fused : bool
        Whether checkpoints hold queries, keys and values in one matrix.
    positions : int
        Rows of the table of positions; 0 where positions are told by rotations.
    pad_id : int, optional
        The token whose number precedes that of the first position, and at which positions do not go on, as in RoBERTa;
        by default positions begin with 0.
    types : int
        Rows of the table of types of tokens; 0 where there is none.
    pair_types : bool
        Whether tokens of the second text of a pair have the type that the tokenizer says, and not 0.
    head : HeadConfig, optional
        What makes scores of states.

    Raises
    ------
    ValueError
        If values do not fit together.
    """

    architecture: str
    n_layers: int
    hidden_size: int
    n_heads: int
    ffn_size: int
    vocab_size: int
    context_length: int
    layers: tuple[LayerConfig, ...]
    norm_eps: float = 1e-12
    norm_bias: bool = True
    norms: Literal["after", "before"] = "after"
    qkv_bias: bool = True
    out_bias: bool = True
    mlp_bias: bool = True
    activation: str = "gelu"
    gated: bool = False
    fused: bool = False
    positions: int = 0
    pad_id: int | None = None
    types: int = 0
    pair_types: bool = False
    head: HeadConfig | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name in _SIZES:
            value = getattr(self, name)
            if not 1 <= value <= MAX_SIZE:
                raise ValueError(f"{name} is {value}; it must be between 1 and {MAX_SIZE}")
        if not 1 <= self.n_layers <= MAX_LAYERS or len(self.layers) != self.n_layers:
            raise ValueError(f"there are {self.n_layers} blocks, and {len(self.layers)} are described")
        if self.hidden_size % self.n_heads:
            raise ValueError(f"hidden_size is {self.hidden_size}, which cannot be divided among {self.n_heads} heads")
        if not 0 <= self.norm_eps <= 1:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be between 0 and 1")
        if not (0 <= self.positions <= MAX_SIZE and 0 <= self.types <= MAX_SIZE):
            raise ValueError(f"there are {self.positions} positions and {self.types} types of tokens")
        if self.pad_id is not None and not 0 <= self.pad_id < self.vocab_size:
            raise ValueError(f"the token for padding is {self.pad_id}; tokens are 0 to {self.vocab_size - 1}")

    @property
    def head_dim(self) -> int:
        """Values per head."""
        return self.hidden_size // self.n_heads


@dataclass(frozen=True)
class EncoderArchitecture:
    """A way to read the configuration of some encoders, and what checkpoints call their parameters.

    Attributes
    ----------
    name : str
        What we call it.
    model_types : tuple of str
        ``model_type`` of the config.json that it reads.
    from_config : callable
        From those values to an `EncoderConfig`.
    prefix : str
        What names begin with where a model is part of a larger one.
    names : tuple of pairs of str
        What begins or follows a name in an `Encoder`, and what it is called in a checkpoint.
    head_names : tuple of pairs of str
        Parameters of the head, which have no prefix but what is given here.
    others : tuple of str
        Beginnings of names that checkpoints have for other tasks than this, after the prefix.
    gguf : tuple of str
        ``general.architecture`` of the GGUF files that it reads.
    from_gguf : callable, optional
        From their values to an `EncoderConfig`, and rows of tables that only the tensors tell.
    classes : tuple of str
        Classes of transformers whose checkpoints it reads, as ``architectures`` of the config.json names them.
    models : str
        Models that people run, for lists.
    """

    name: str
    model_types: tuple[str, ...]
    from_config: Callable[[Settings], EncoderConfig]
    prefix: str
    names: tuple[tuple[str, str], ...]
    head_names: tuple[tuple[str, str], ...]
    others: tuple[str, ...] = ()
    gguf: tuple[str, ...] = ()
    from_gguf: Callable[[GGUFSettings, Callable[[str], int]], EncoderConfig] | None = None
    classes: tuple[str, ...] = ()
    models: str = ""

    def stored_name(self, name: str, prefix: str) -> str:
        """What a checkpoint calls a parameter of an `Encoder`; `prefix` is what it begins with there."""
        for ours, theirs in self.head_names:
            if name.startswith(ours):
                return theirs + name[len(ours) :]
        for ours, theirs in self.names:
            name = name.replace(ours, theirs)
        return prefix + name
