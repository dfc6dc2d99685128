"""The shape of a Llama model, read from GGUF metadata and checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from npumatmul.errors import ModelError
from npumatmul.llm.files.gguf import GGUFFile

SUPPORTED_ARCHITECTURES = ("llama",)
SUPPORTED_ROPE_SCALING = ("none", "linear")
MAX_SIZE = 1 << 24  # no dimension of a real model comes near; keeps a damaged file from asking for terabytes


@dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a Llama model.

    Attributes
    ----------
    n_layers : int
        Transformer blocks.
    hidden_size : int
        Width of the residual stream.
    n_heads, n_kv_heads : int
        Query heads, and the key and value heads they share; the first is a multiple of the second.
    head_dim : int
        Values per head.
    ffn_size : int
        Width inside the feed-forward network.
    vocab_size : int
        Rows of the embedding table.
    rms_eps : float
        Added to the mean square in RMSNorm.
    rope_theta : float
        Base of the rotation frequencies.
    rope_dim : int
        Leading values of each head that are rotated; even, at most `head_dim`.
    rope_scale : float
        Positions are divided by this (linear scaling); 1 means not scaled.
    context_length : int
        Longest sequence the model was made for, in tokens.

    Raises
    ------
    ValueError
        If the values do not fit together.

    Examples
    --------
    >>> from npumatmul.llm import LlamaConfig
    >>> config = LlamaConfig(n_layers=30, hidden_size=576, n_heads=9, n_kv_heads=3, head_dim=64, ffn_size=1536,
    ...                      vocab_size=49152, rms_eps=1e-5, rope_theta=1e5, rope_dim=64, context_length=8192)
    >>> config.q_size, config.kv_size
    (576, 192)
    """

    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    rms_eps: float
    rope_theta: float
    rope_dim: int
    context_length: int
    rope_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in (
            "n_layers",
            "hidden_size",
            "n_heads",
            "n_kv_heads",
            "head_dim",
            "ffn_size",
            "vocab_size",
            "rope_dim",
            "context_length",
        ):
            if not 1 <= getattr(self, name) <= MAX_SIZE:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 1 and {MAX_SIZE}")
        for name in ("rms_eps", "rope_theta", "rope_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be a positive number")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads is {self.n_heads}, not a multiple of n_kv_heads, which is {self.n_kv_heads}")
        if self.rope_dim % 2 or self.rope_dim > self.head_dim:
            raise ValueError(f"rope_dim is {self.rope_dim}; it must be even and at most head_dim, {self.head_dim}")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, or of all value heads."""
        return self.n_kv_heads * self.head_dim

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> LlamaConfig:
        """Read the configuration from the metadata of a GGUF file.

        Parameters
        ----------
        file : GGUFFile
            An open file.

        Returns
        -------
        LlamaConfig
            The checked configuration.

        Raises
        ------
        npumatmul.errors.ModelError
            If the architecture or a feature is not supported, a value is missing, or the values do not fit together.
        """
        arch = file.require("general.architecture", str)
        if arch not in SUPPORTED_ARCHITECTURES:
            raise file.error(
                f"its architecture is {arch!r}; supported: {', '.join(SUPPORTED_ARCHITECTURES)} "
                f"with a byte-level BPE vocabulary, such as SmolLM2 and Llama 3"
            )
        if file.get(f"{arch}.expert_count", int, 0):
            raise file.error("it is a mixture of experts; only dense models are supported")
        hidden = file.require(f"{arch}.embedding_length", int)
        heads = file.require(f"{arch}.attention.head_count", int)
        head_dim = file.get(f"{arch}.attention.key_length", int)
        if head_dim is None:
            if heads < 1 or hidden % heads:
                raise file.error(f"its width {hidden} cannot be divided among {heads} heads")
            head_dim = hidden // heads
        value_dim = file.get(f"{arch}.attention.value_length", int, head_dim)
        if value_dim != head_dim:
            raise file.error(f"its values have {value_dim} and its keys {head_dim} dimensions; they must be equal")
        try:
            return cls(
                n_layers=file.require(f"{arch}.block_count", int),
                hidden_size=hidden,
                n_heads=heads,
                n_kv_heads=file.get(f"{arch}.attention.head_count_kv", int, heads),
                head_dim=head_dim,
                ffn_size=file.require(f"{arch}.feed_forward_length", int),
                vocab_size=_vocab_size(file, arch),
                rms_eps=file.require(f"{arch}.attention.layer_norm_rms_epsilon", float),
                rope_theta=file.get(f"{arch}.rope.freq_base", float, 10000.0),
                rope_dim=file.get(f"{arch}.rope.dimension_count", int, head_dim),
                rope_scale=_rope_scale(file, arch),
                context_length=file.require(f"{arch}.context_length", int),
            )
        except ModelError:
            raise
        except ValueError as error:
            raise file.error(str(error)) from error


def _vocab_size(file: GGUFFile, arch: str) -> int:
    size = file.get(f"{arch}.vocab_size", int)
    if size is not None:
        return size
    return len(file.require("tokenizer.ggml.tokens", list))


def _rope_scale(file: GGUFFile, arch: str) -> float:
    kind = file.get(f"{arch}.rope.scaling.type", str)
    if kind is not None and kind not in SUPPORTED_ROPE_SCALING:
        raise file.error(
            f"its rotary positions are scaled with {kind!r}; supported: {', '.join(SUPPORTED_ROPE_SCALING)}, "
            f"and Llama 3's rope_freqs.weight"
        )
    if kind == "none":
        return 1.0
    factor = file.get(f"{arch}.rope.scaling.factor", float)
    if factor is None:
        factor = file.get(f"{arch}.rope.scale_linear", float)  # the older key
    return 1.0 if factor is None or factor == 0 else factor
