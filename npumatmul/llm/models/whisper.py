"""`Whisper`: an encoder that hears windows of a spectrum, and a decoder that writes what was said.

Shapes: T tokens, S positions of a window, d the width of states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.files.reading import shown
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.models.whisper_config import WhisperConfig, whisper_config_of
from npumatmul.nn.attention import Attention
from npumatmul.nn.cache import KVCache
from npumatmul.nn.convolution import Conv1d
from npumatmul.nn.cross_attention import CrossAttention, KeysAndValues
from npumatmul.nn.embedding import Embedding
from npumatmul.nn.encoder_block import EncoderBlock
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.mlp import MLP, activate
from npumatmul.nn.module import Module, initial
from npumatmul.nn.norm import LayerNorm
from npumatmul.nn.product import Float32, Pack, Product
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["Whisper", "WhisperConfig", "load_whisper", "speech_layer_names"]

Progress = Callable[[int, int, str], None]

_EPS = 1e-5
_PREFIX = "model."
#: What begins or follows a name in a `Whisper`, and what checkpoints have there.
_NAMES = (
    ("encoder.positions", "encoder.embed_positions.weight"),
    ("decoder.positions", "decoder.embed_positions.weight"),
    ("decoder.tokens.", "decoder.embed_tokens."),
    ("encoder.norm.", "encoder.layer_norm."),
    ("decoder.norm.", "decoder.layer_norm."),
    (".cross_attn.", ".encoder_attn."),
    (".cross_norm.", ".encoder_attn_layer_norm."),
    (".attn_norm.", ".self_attn_layer_norm."),
    (".mlp_norm.", ".final_layer_norm."),
    (".mlp.up_proj.", ".fc1."),
    (".mlp.down_proj.", ".fc2."),
    (".o_proj.", ".out_proj."),
)
_HEAD = "proj_out.weight"
#: Keys have no bias, which makes no difference to a softmax: zeros stand where a product of all three has one.
_NO_BIAS = ".k_proj.bias"

_ENCODER_PARTS = {
    "self_attn.qkv": "qkv",
    "self_attn.o_proj": "attn_out",
    "mlp.up_proj": "gate_up",
    "mlp.down_proj": "down",
}
_DECODER_PARTS = {
    "self_attn.qkv": "qkv",
    "self_attn.o_proj": "attn_out",
    "cross_attn.q_proj": "cross_q",
    "cross_attn.kv": "cross_kv",
    "cross_attn.o_proj": "cross_out",
    "mlp.up_proj": "gate_up",
    "mlp.down_proj": "down",
}


def speech_layer_names(config: WhisperConfig) -> list[str]:
    """Names of linear layers and convolutions: ``encoder.blk.<i>.qkv`` and so on, and ``head`` at the end."""
    return [
        "encoder.conv1",
        "encoder.conv2",
        *(f"encoder.blk.{i}.{part}" for i in range(config.encoder_layers) for part in _ENCODER_PARTS.values()),
        *(f"decoder.blk.{i}.{part}" for i in range(config.decoder_layers) for part in _DECODER_PARTS.values()),
        "head",
    ]


class _Hearing(Module):
    """The encoder: two convolutions, of which the second halves the frames, and blocks."""

    def __init__(self, c: WhisperConfig, how: Mapping[str, Any]) -> None:
        self.conv1 = Conv1d(c.mel_bins, c.hidden_size, 3, padding=1, **how)
        self.conv2 = Conv1d(c.hidden_size, c.hidden_size, 3, stride=2, padding=1, **how)
        self.positions: Float32 = initial(0.0, c.positions, c.hidden_size)
        self.layers = [
            EncoderBlock(
                Attention(c.hidden_size, c.encoder_heads, bias=True, **how),
                MLP(c.hidden_size, c.encoder_ffn, c.activation, gated=False, bias=True, **how),
                norms="before",
                eps=_EPS,
            )
            for _ in range(c.encoder_layers)
        ]
        self.norm = LayerNorm(c.hidden_size, _EPS)

    def __call__(self, frames: Float32) -> Float32:
        """From frames ``(2 S, bins)`` to states ``(S, d)``."""
        x = activate(self.conv1.rows(frames[None]), "gelu")  # whatever networks apply
        x = activate(self.conv2.rows(x), "gelu")[0]
        x += self.positions
        for block in self.layers:
            x = block(x)
        y: Float32 = self.norm(x)
        return y


class _WritingBlock(Module):
    """A block of the decoder: attention to what was written, to what was heard, and a network, with norms before."""

    def __init__(self, c: WhisperConfig, how: Mapping[str, Any]) -> None:
        self.self_attn = Attention(c.hidden_size, c.decoder_heads, bias=True, **how)
        self.attn_norm = LayerNorm(c.hidden_size, _EPS)
        self.cross_attn = CrossAttention(c.hidden_size, c.decoder_heads, bias=True, **how)
        self.cross_norm = LayerNorm(c.hidden_size, _EPS)
        self.mlp = MLP(c.hidden_size, c.decoder_ffn, c.activation, gated=False, bias=True, **how)
        self.mlp_norm = LayerNorm(c.hidden_size, _EPS)

    def __call__(self, x: Float32, heard: KeysAndValues, cache: KVCache, layer: int) -> Float32:
        x = x + self.self_attn(self.attn_norm(x), cache=cache, layer=layer)
        x += self.cross_attn(self.cross_norm(x), heard)
        x += self.mlp(self.mlp_norm(x))
        return x


class _Writing(Module):
    """The decoder up to its last states."""

    def __init__(self, c: WhisperConfig, how: Mapping[str, Any]) -> None:
        self.tokens = Embedding(c.vocab_size, c.hidden_size)
        self.positions: Float32 = initial(0.0, c.context_length, c.hidden_size)
        self.layers = [_WritingBlock(c, how) for _ in range(c.decoder_layers)]
        self.norm = LayerNorm(c.hidden_size, _EPS)

    def __call__(self, ids: Sequence[int], heard: Sequence[KeysAndValues], cache: KVCache) -> Float32:
        x: Float32 = self.tokens(np.asarray(ids, np.int64)) + self.positions[cache.offset : cache.offset + len(ids)]
        for i, block in enumerate(self.layers):
            x = block(x, heard[i], cache, i)
        y: Float32 = self.norm(x)
        return y


class Whisper(Module):
    """A model that turns speech into text.

    Parameters
    ----------
    config : WhisperConfig
        What it is made of.
    scheme, device
        As for `npumatmul.nn.Linear`: of layers that `load_state_dict` loads without a `pack`.

    Attributes
    ----------
    config : WhisperConfig

    Examples
    --------
    >>> import numpy as np
    >>> model = Whisper(WhisperConfig(80, 8, 1, 2, 16, 1, 2, 16, 32, positions=10, context_length=8), scheme="float32")
    >>> rng = np.random.default_rng(0)
    >>> shapes = model.parameter_shapes()
    >>> _ = model.load_state_dict({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    >>> heard = model.hear(rng.standard_normal((20, 80), np.float32))
    >>> cache = model.new_cache()
    >>> model.logits([1, 2, 3], heard, cache).shape, cache.offset
    ((3, 32), 3)
    """

    def __init__(
        self,
        config: WhisperConfig,
        *,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        c = self.config = config
        how: dict[str, Any] = {"scheme": scheme, "device": device}
        self.encoder = _Hearing(c, how)
        self.decoder = _Writing(c, how)
        self.head = Linear(c.hidden_size, c.vocab_size, False, **how)

    def __repr__(self) -> str:
        """Return the main sizes."""
        c = self.config
        return f"<Whisper: {c.encoder_layers} and {c.decoder_layers} layers of {c.hidden_size}, {c.vocab_size} tokens>"

    def states(self, frames: Float32) -> Float32:
        """Hear a window.

        Parameters
        ----------
        frames : ndarray of float32, shape (2 S, bins)

        Returns
        -------
        ndarray of float32, shape (S, d)

        Raises
        ------
        ValueError
            If these are not as many frames and bins as a window has.
        """
        wanted = (self.config.frames, self.config.mel_bins)
        if frames.shape != wanted:
            raise ValueError(f"a window has (frames, bins) = {wanted}; these have shape {frames.shape}")
        return self.encoder(frames)

    def hear(self, frames: Float32, dtype: str = "float32") -> list[KeysAndValues]:
        """Hear a window, and keep what each block of the decoder attends to, in a dtype."""
        states = self.states(frames)
        return [block.cross_attn.keep(states, dtype) for block in self.decoder.layers]

    def new_cache(self, dtype: str = "float32") -> KVCache:
        """A cache of what will be written about a window."""
        c = self.config
        return KVCache(
            c.decoder_layers, c.decoder_heads, c.hidden_size // c.decoder_heads, dtype=dtype, limit=c.context_length
        )

    def written(self, ids: Sequence[int], heard: Sequence[KeysAndValues], cache: KVCache) -> Float32:
        """Last states ``(T, d)`` of tokens that follow those in a cache.

        Raises
        ------
        ValueError
            If there are none, more than there is room for, or some that do not exist.
        """
        if not len(ids):
            raise ValueError("no tokens were given")
        if cache.offset + len(ids) > self.config.context_length:
            raise ValueError(
                f"{cache.offset + len(ids)} tokens are more than the {self.config.context_length} of a window"
            )
        return self.decoder(ids, heard, cache)

    def logits(self, ids: Sequence[int], heard: Sequence[KeysAndValues], cache: KVCache) -> Float32:
        """What follows each of some tokens, ``(T, vocab_size)``.

        Raises
        ------
        ValueError
            As `written`.
        """
        made: Float32 = self.head(self.written(ids, heard, cache))
        return made

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """``(N, K)`` of all layers by name, in the order of `speech_layer_names`."""
        found: dict[str, tuple[int, int]] = {}
        for path, module in self.named_modules():
            if isinstance(module, Linear | LinearGroup | Conv1d):
                found[_layer_name(path)] = module.product_shape[::-1]
        return {name: found[name] for name in speech_layer_names(self.config)}

    @property
    def linears(self) -> dict[str, Product]:
        """The products of all layers by name; biases are not in them."""
        found: dict[str, Product] = {}
        for path, module in self.named_modules():
            if isinstance(module, Linear | LinearGroup):
                found[_layer_name(path)] = module.product
            elif isinstance(module, Conv1d):
                found[_layer_name(path)] = module.products[0]
        return found


def load_whisper(source: ModelSource, pack: Pack, *, progress: Progress | None = None) -> Whisper:
    """Make a model of a folder.

    Weights are taken one after another, so besides what `pack` keeps, only one is in memory. The table of tokens stays
    in the file, and its rows are read as tokens need them.

    Parameters
    ----------
    source : ModelSource
        The open model.
    pack : callable
        Makes a product of a float32 weight ``(N, K)`` and the layer's name (`speech_layer_names`); where it has a
        method ``ready(name)`` that gives one, that is taken.
    progress : callable, optional
        Called before each layer and at the end with (layers done, layers in all, name).

    Raises
    ------
    npumatmul.errors.ModelError
        If the architecture or one of its features is not known, or a tensor is missing, left over or of another shape.
    """
    config = whisper_config_of(source)
    _check_sizes(source, config)
    try:
        model = Whisper(config)
    except ValueError as error:  # layers look at what they are made with once more
        raise source.error(f"its configuration makes no model: {error}") from error
    shapes = model.parameter_shapes()
    names = {name: _stored_name(name, config) for name in shapes if not name.endswith(_NO_BIAS)}
    _check_tensors(source, names, shapes)
    total = len(speech_layer_names(config))
    model.load_state_dict(_Renamed(source, names, shapes), pack=_ByLayer(pack, total, progress))
    if progress is not None:
        progress(total, total, "done")
    return model


def _check_sizes(source: ModelSource, config: WhisperConfig) -> None:
    """Hold what memory is taken by against the file, before there are tables of that size."""
    layers, held = config.encoder_layers + config.decoder_layers, len(source.weights)
    if layers > held:
        raise source.error(f"it says that it has {layers} layers, but holds {held} tensors")
    tables = {"encoder.positions": config.positions, "decoder.positions": config.context_length}
    _check_tensors(
        source,
        {name: _stored_name(name, config) for name in tables},
        {name: (rows, config.hidden_size) for name, rows in tables.items()},
        left_over=True,
    )


def _stored_name(name: str, config: WhisperConfig) -> str:
    """What checkpoints call a parameter."""
    if name == "head.weight":
        return f"{_PREFIX}decoder.embed_tokens.weight" if config.tied else _HEAD
    for ours, theirs in _NAMES:
        name = name.replace(ours, theirs)
    return _PREFIX + name


def _check_tensors(
    source: ModelSource,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    left_over: bool = False,
) -> None:
    """All have to be there, of their shapes, and nothing else."""
    weights = source.weights
    missing = [each for each in names.values() if each not in weights]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise source.error(f"tensor {shown(missing[0])}{more} is missing")
    for name, each in names.items():
        found = tuple(weights.shape(each))
        if found != shapes[name]:
            raise source.error(f"tensor {shown(each)} has shape {found}, its config.json asks for {shapes[name]}")
    known = {*names.values(), _HEAD}
    left = [] if left_over else [name for name in weights if name not in known]
    if left:
        raise source.error(f"it has {len(left)} tensors of a kind that is not supported, such as {shown(left[0])}")


class _Renamed(Mapping[str, Any]):
    """The weights of a folder by the names in a `Whisper`."""

    def __init__(self, source: ModelSource, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._weights, self._names, self._shapes = source.weights, names, shapes

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        stored = self._names.get(name)
        return np.zeros(self._shapes[name], np.float32) if stored is None else self._weights[stored]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def rows(self, name: str) -> Any:
        return self._weights.rows(self._names[name]) if name.startswith("decoder.tokens.") else None


class _ByLayer:
    """Packs by the names of layers instead of their paths."""

    def __init__(self, pack: Pack, total: int, progress: Progress | None) -> None:
        self._pack, self._total, self._progress, self._done = pack, total, progress, 0

    def ready(self, path: str) -> Product | None:
        name = _layer_name(path)
        if self._progress is not None:
            self._progress(self._done, self._total, name)
        self._done += 1
        ready = getattr(self._pack, "ready", None)
        found: Product | None = ready(name) if callable(ready) else None
        return found

    def __call__(self, weight: Float32, path: str) -> Product:
        return self._pack(weight, _layer_name(path))


def _layer_name(path: str) -> str:
    """The name of a layer by the path of its module."""
    if ".layers." not in path:
        return path
    half, _, number, inside = path.split(".", 3)
    return f"{half}.blk.{number}.{(_ENCODER_PARTS if half == 'encoder' else _DECODER_PARTS)[inside]}"
