"""What a decoder is made of: sizes, and the ways in which architectures differ; checked when it is made."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Literal

from npumatmul.llm.models.mixers import Mixer
from npumatmul.llm.models.part import Part
from npumatmul.llm.models.settings import MAX_HEAD, MAX_LAYERS, MAX_SIZE
from npumatmul.nn.expert_names import MAX_EXPERTS

__all__ = ["BLOCK_LAYERS", "DecoderConfig", "Experts", "LayerConfig", "Rotation"]

BLOCK_LAYERS = ("qkv", "attn_out", "gate_up", "down")
_BESIDE = ("inp_gate", "inp_proj")
"""Names of the linear layers of most blocks, without the block's own."""

_MIXER_LAYERS = ("in_proj", "out_proj")

_FACTORS = (
    "norm_eps",
    "query_scale",
    "attention_softcap",
    "logit_softcap",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
)
_HEADS = ("n_heads", "n_kv_heads", "head_dim")
_SIZES = ("hidden_size", "ffn_size", "vocab_size", "context_length")


@dataclass(frozen=True)
class Rotation:
    """How queries and keys are rotated by their positions.

    Attributes
    ----------
    dim : int
        Leading values of each head that are rotated; even.
    theta : float
        Base of the rotation frequencies.
    scaling : mapping, optional
        How frequencies are changed for long contexts, as Hugging Face's ``rope_scaling`` writes it: ``linear``,
        ``llama3``, ``yarn`` or ``longrope``.
    interleaved : bool
        Whether neighbours make a pair, as in GGUF files of the llama family, instead of values half of `dim` apart.
    factors : tuple of float, optional
        Divisors of the frequencies, as GGUF files have them instead of a scaling.
    sections : tuple of int, optional
        Frequencies of time, height and width, where positions are told on three axes.
    alternate : bool
        Whether frequencies of the axes take turns.
    """

    dim: int
    theta: float = 10000.0
    scaling: Mapping[str, Any] | None = None
    interleaved: bool = False
    factors: tuple[float, ...] | None = None
    sections: tuple[int, int, int] | None = None
    alternate: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"{self.dim} values of a head are to be rotated; it must be an even number")
        if not (math.isfinite(self.theta) and self.theta > 0):
            raise ValueError(f"the base of the rotation frequencies is {self.theta}; it must be a positive number")
        if self.factors is not None:
            if len(self.factors) != self.dim // 2:
                raise ValueError(f"there are {len(self.factors)} factors of frequencies; {self.dim // 2} are needed")
            if not all(math.isfinite(each) and each > 0 for each in self.factors):
                raise ValueError("the factors of frequencies must be positive numbers")
        if self.sections is not None and (min(self.sections) < 0 or sum(self.sections) != self.dim // 2):
            raise ValueError(
                f"frequencies of three axes are {self.sections}; together there must be {self.dim // 2} of them"
            )


@dataclass(frozen=True)
class Experts:
    """Networks of a block, of which each token passes a few.

    Attributes
    ----------
    count : int
        How many there are.
    chosen : int
        How many a token passes.
    size : int
        Width inside each.
    softmax : {"all", "chosen", None}
        Over whose scores the softmax is taken; None: weights are sigmoids of scores.
    normalize : bool
        Whether weights of the chosen ones are divided by their sum.
    scale : float
        What weights are multiplied by in the end.
    preferred : bool
        Whether a parameter says which ones are preferred when some are chosen.
    shared_size : int, optional
        Width inside a further one that all tokens pass, with a gate of its own.
    bias : bool
        Whether projections and scores have biases.
    clamp : tuple of float, optional
        ``(alpha, limit)`` of gpt-oss's network; see `npumatmul.nn.MLP`.
    """

    count: int
    chosen: int
    size: int
    softmax: Literal["all", "chosen"] | None = "all"
    normalize: bool = False
    scale: float = 1.0
    preferred: bool = False
    shared_size: int | None = None
    bias: bool = False
    clamp: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not 1 <= self.count <= MAX_EXPERTS:
            raise ValueError(f"there are {self.count} experts; there must be between 1 and {MAX_EXPERTS}")
        if not 1 <= self.chosen <= self.count:
            raise ValueError(f"{self.chosen} experts are to be chosen of {self.count}")
        if not 1 <= self.size <= MAX_SIZE:
            raise ValueError(f"experts are {self.size} wide; they must be between 1 and {MAX_SIZE}")
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"weights of experts are multiplied by {self.scale}; it must be a positive number")
        if self.shared_size is not None and not 1 <= self.shared_size <= MAX_SIZE:
            raise ValueError(f"the shared expert is {self.shared_size} wide; it must be between 1 and {MAX_SIZE}")
        if self.clamp is not None and not all(math.isfinite(each) and each > 0 for each in self.clamp):
            raise ValueError(f"alpha and limit of experts are {self.clamp}; they must be positive numbers")


@dataclass(frozen=True)
class LayerConfig:
    """How one transformer block differs from the others of its model.

    Attributes
    ----------
    rotation : Rotation or None
        How positions are told; None where they are not.
    window : int, optional
        Tokens that a token looks back at, itself among them; all by default.
    experts : Experts, optional
        What takes the place of the feed-forward network.
    mixer : DeltaNet or ShortConv, optional
        What takes the place of attention; it has neither rotation nor window.
    head_dim, n_kv_heads, ffn_size : int, optional
        As of the model, where this layer has others.
    values : {"own", "keys"}
        As of `npumatmul.nn.Attention`.
    follows : int, optional
        Number of the layer whose keys and values are looked at; by default it has its own.
    beside : bool
        Whether there are embeddings of tokens for each layer (`DecoderConfig.layer_embedding`).
    """

    rotation: Rotation | None = None
    window: int | None = None
    experts: Experts | None = None
    mixer: Mixer | None = None
    head_dim: int | None = None
    n_kv_heads: int | None = None
    ffn_size: int | None = None
    values: Literal["own", "keys"] = "own"
    follows: int | None = None
    beside: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.window is not None and self.window < 1:
            raise ValueError(f"a sliding window of {self.window} tokens holds none")
        if self.mixer is not None and (self.rotation is not None or self.window is not None):
            raise ValueError("a layer without attention has positions or a sliding window")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the block's linear layers without the block's own, in the order in which a token passes them."""
        before = BLOCK_LAYERS[:2] if self.mixer is None else _MIXER_LAYERS
        after = BLOCK_LAYERS[2:]
        if self.experts is None:
            return (*before, *after, *(_BESIDE if self.beside else ()))
        stems = [f"expert.{i}" for i in range(self.experts.count)]
        stems += [] if self.experts.shared_size is None else ["shared"]
        return (*before, *(f"{stem}.{part}" for stem in stems for part in after))


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder, and which of the usual parts it has.

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
    context_length : int
        Longest sequence the model was made for, in tokens.
    layers : tuple of LayerConfig
        One for each block. One alone, or none, is taken for all of them; none at all means positions that are rotated
        with the usual base.
    architecture : str
        Its name in `npumatmul.llm.models.registry`.
    norm_eps : float
        Added to the mean square in normalization.
    norm : {"rms", "layer"}
        RMSNorm, or LayerNorm with a bias.
    norm_offset : float
        What is added to the weights of RMSNorm.
    norm_places : {"before", "around"}
        Whether attention and feed-forward network have their input normalized, or their output, too.
    qk_norm : {None, "head", "all"}
        Whether queries and keys are normalized before they are rotated: each head, or all heads together.
    attention_gate : {None, "sigmoid"}
        As `gate` of `npumatmul.nn.Attention`.
    qkv_bias, out_bias, mlp_bias : bool
        Whether queries, keys and values have biases, what follows attention, and the feed-forward network.
    sinks : bool
        Whether heads have a score to which attention can go in vain.
    activation : {"silu", "gelu", "gelu_tanh", "relu2"}
        Function of the feed-forward network.
    gated : bool
        Whether the function is applied to a gate beside what is gated.
    fused : bool
        Whether checkpoints hold queries, keys and values in one matrix, and gate and up in another.
    tied : bool
        Whether the embedding table is the output matrix, too.
    query_scale : float, optional
        Factor of the scores of attention; one over the root of `head_dim` by default.
    query_growth : tuple of float and int, optional
        By what queries grow with their position; see `npumatmul.nn.Attention`.
    attention_softcap, logit_softcap : float, optional
        Bounds that scores of attention and logits approach.
    value_norm : bool
        As of `npumatmul.nn.Attention`.
    layer_embedding, layer_vocab : int
        Width of the embedding that each layer has of each token, and rows of their table; 0 without.
    layer_scalar : bool
        Whether all that leaves a block is multiplied by a parameter.
    deep_layers : int
        Behind how many of the first blocks something is added to rows from outside.
    placeholders : tuple of int
        Tokens that stand for rows from outside.
    embedding_scale, residual_scale, logit_scale : float
        Factors of embeddings, of what each part of a block adds, and of logits.
    part : Part, optional
        Which blocks of a larger model these are.

    Raises
    ------
    ValueError
        If the values do not fit together.

    Examples
    --------
    >>> from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig, Rotation
    >>> config = DecoderConfig(n_layers=30, hidden_size=576, n_heads=9, n_kv_heads=3, head_dim=64, ffn_size=1536,
    ...                        vocab_size=49152, context_length=8192, layers=(LayerConfig(Rotation(64, 1e5)),))
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
    context_length: int
    _: KW_ONLY
    layers: tuple[LayerConfig, ...] = ()
    architecture: str = "llama"
    norm_eps: float = 1e-5
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    norm_places: Literal["before", "around"] = "before"
    qk_norm: Literal["head", "all"] | None = None
    attention_gate: Literal["sigmoid"] | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    sinks: bool = False
    activation: Literal["silu", "gelu", "gelu_tanh", "relu2"] = "silu"
    gated: bool = True
    fused: bool = False
    tied: bool = field(default=False, compare=False)  # how a head is stored; models that differ in it compute the same
    query_scale: float | None = None
    query_growth: tuple[float, int] | None = None
    attention_softcap: float | None = None
    logit_softcap: float | None = None
    value_norm: bool = False
    layer_embedding: int = 0
    layer_vocab: int = 0
    layer_scalar: bool = False
    deep_layers: int = 0
    placeholders: tuple[int, ...] = field(default=(), compare=False)
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    part: Part | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not 1 <= self.n_layers <= MAX_LAYERS:
            raise ValueError(f"n_layers is {self.n_layers}; it must be between 1 and {MAX_LAYERS}")
        for names, most in ((_HEADS, MAX_HEAD), (_SIZES, MAX_SIZE)):
            for name in names:
                if not 1 <= getattr(self, name) <= most:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be between 1 and {most}")
        for name in _FACTORS:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; it must be a positive number")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads is {self.n_heads}, not a multiple of n_kv_heads, which is {self.n_kv_heads}")
        if not 0 <= self.deep_layers <= MAX_LAYERS:
            raise ValueError(f"deep_layers is {self.deep_layers}; it must be between 0 and {MAX_LAYERS}")
        layers = self.layers or (LayerConfig(Rotation(self.head_dim)),)
        layers = layers * self.n_layers if len(layers) == 1 else layers
        if len(layers) != self.n_layers:
            raise ValueError(f"{len(layers)} layers are described, and n_layers is {self.n_layers}")
        if self.layer_embedding:
            for name in ("layer_embedding", "layer_vocab"):
                if not 1 <= getattr(self, name) <= MAX_SIZE:
                    raise ValueError(f"{name} is {getattr(self, name)}; it must be between 1 and {MAX_SIZE}")
            layers = tuple(replace(each, beside=True) for each in layers)
        for i, each in enumerate(layers):
            self._check_layer(each)
            if each.follows is not None:
                source = layers[each.follows] if 0 <= each.follows < i else each
                same = (each.head_dim, each.n_kv_heads, each.window) == (
                    source.head_dim,
                    source.n_kv_heads,
                    source.window,
                )
                if source.follows is not None or not same:
                    raise ValueError(f"layer {i} looks at keys of layer {each.follows}, which has none of that kind")
        object.__setattr__(self, "layers", layers)

    def _check_layer(self, layer: LayerConfig) -> None:
        for name, most in (("head_dim", MAX_HEAD), ("n_kv_heads", MAX_HEAD), ("ffn_size", MAX_SIZE)):
            value = getattr(layer, name)
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name} of a layer is {value}; it must be between 1 and {most}")
        head_dim, kv_heads = layer.head_dim or self.head_dim, layer.n_kv_heads or self.n_kv_heads
        if self.n_heads % kv_heads:
            raise ValueError(f"n_heads is {self.n_heads}, not a multiple of {kv_heads}, the heads of keys of a layer")
        if layer.rotation is not None and layer.rotation.dim > head_dim:
            raise ValueError(f"{layer.rotation.dim} values of a head are to be rotated, and it has {head_dim}")

    @property
    def cache_layers(self) -> dict[str, Any]:
        """What layers keep in a cache, as arguments of `npumatmul.nn.KVCache`."""
        return {
            "layers": self.n_layers,
            "kv_heads": [each.n_kv_heads or self.n_kv_heads for each in self.layers],
            "head_dim": [each.head_dim or self.head_dim for each in self.layers],
            "window": [each.window for each in self.layers],
            "states": self.states,
            "follows": [each.follows for each in self.layers],
        }

    @property
    def whole_only(self) -> str | None:
        """Why blocks cannot be computed one by one, as a part of a sentence; None if they can."""
        if self.layer_embedding:
            return "each of its layers has embeddings of tokens"
        if any(each.follows is not None for each in self.layers):
            return "layers look at keys of others"
        return None

    @property
    def has_axes(self) -> bool:
        """Whether positions are told on three axes."""
        return any(each.rotation is not None and each.rotation.sections is not None for each in self.layers)

    @property
    def longest_short(self) -> int | None:
        """Tokens of the longest sequence that is rotated as a short one; None where length makes no difference."""
        for layer in self.layers:
            scaling = None if layer.rotation is None else layer.rotation.scaling
            if scaling is not None and scaling["rope_type"] == "longrope":
                return int(scaling["original_max_position_embeddings"])
        return None

    @property
    def layer_names(self) -> list[str]:
        """Names of the linear layers; see `npumatmul.llm.models.decoder.layer_names`."""
        inside = [f"blk.{i}.{part}" for i, layer in enumerate(self.layers, self.first_block) for part in layer.parts]
        beside = ["layer_inputs"] if self.layer_embedding else []
        return [*beside, *inside, *(["head"] if self.has_head else [])]

    @property
    def first_block(self) -> int:
        """Number of its first block in the whole model."""
        return 0 if self.part is None else self.part.first

    @property
    def has_head(self) -> bool:
        """Whether the output matrix belongs to it."""
        return self.part is None or self.part.is_last

    @property
    def states(self) -> tuple[tuple[tuple[int, ...], ...] | None, ...]:
        """Shapes of what a cache keeps of each layer that has a state instead of keys and values; None for others."""
        return tuple(None if each.mixer is None else each.mixer.state_shapes(self.hidden_size) for each in self.layers)

    @property
    def expert_counts(self) -> tuple[int, ...]:
        """How many experts each layer has; 0 where it has one network."""
        return tuple(0 if each.experts is None else each.experts.count for each in self.layers)

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together, or of all value heads."""
        return self.n_kv_heads * self.head_dim
