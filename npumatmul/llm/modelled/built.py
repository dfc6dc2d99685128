"""The dimensions of a model out of its configuration: those of the modules that are made of it, without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from npumatmul.llm.modelled.shape import BlockShape, HostWork, LinearShape, ModelShape
from npumatmul.llm.models.decoder import PREFILL_CHUNK, Decoder
from npumatmul.llm.models.decoder_config import DecoderConfig, Experts, LayerConfig, Rotation
from npumatmul.llm.models.encoder import Encoder
from npumatmul.llm.models.encoder_config import EncoderConfig
from npumatmul.llm.models.mixers import DeltaNet
from npumatmul.llm.models.settings import MAX_SIZE
from npumatmul.llm.models.whisper import Whisper
from npumatmul.llm.models.whisper_config import WhisperConfig

__all__ = ["THREE", "decoder_shape", "encoder_shape", "llama_shape", "speech_shape"]

#: Three arrays that go through memory, two read and one written, compared with the two of a copy.
THREE = 1.5
#: What is done to a row of an expert, in copies: it is gathered, multiplied by its weight, and added to the sum, which
#: is gathered and scattered.
_GATHERED = 5.0
#: Tokens that `npumatmul.nn.gated_delta_rule` works on at once.
_CHUNK = 64


def decoder_shape(name: str, config: DecoderConfig) -> ModelShape:
    """Dimensions of a decoder; a block of each kind is made, and its modules are asked.

    Parameters
    ----------
    name : str
        What it is called.
    config : DecoderConfig

    Examples
    --------
    >>> from npumatmul.llm.models.decoder_config import Experts
    >>> config = DecoderConfig(n_layers=4, hidden_size=64, n_heads=4, n_kv_heads=2, head_dim=16, ffn_size=96,
    ...                        vocab_size=300, context_length=64, layers=(LayerConfig(experts=Experts(8, 2, 32)),))
    >>> [(each.name, each.k, each.n, each.times) for each in decoder_shape("small", config).linears[2:]]
    [('expert.gate_up', 64, 64, 32), ('expert.down', 32, 64, 32)]
    """
    if config.whole_only is None:
        kinds = [*Counter(_sized(layer) for layer in config.layers).items()]
    else:  # layers need one another
        kinds = [(layer, 1) for layer in config.layers]
    small = replace(config, n_layers=len(kinds), layers=tuple(_one_expert(layer) for layer, _ in kinds))
    model = Decoder(small)
    modules = {
        layer: _size(module, (config.hidden_size, config.vocab_size))
        for layer, module in model.linear_modules().items()
    }
    blocks = [
        BlockShape(times, tuple(_linears(modules, i, layer.experts)), _decoder_work(config, layer))
        for i, (layer, times) in enumerate(kinds)
    ]
    if "layer_inputs" in modules:
        before = LinearShape("layer_inputs", *modules["layer_inputs"], 1)
        blocks[0] = replace(blocks[0], linears=(before, *blocks[0].linears))
    head = LinearShape("head", *modules["head"], 1)
    tables = 0 if config.tied else config.vocab_size * config.hidden_size
    tables += config.layer_vocab * config.n_layers * config.layer_embedding
    return ModelShape(name, "decoder", config.hidden_size, config.vocab_size, tuple(blocks), head, tables)


def encoder_shape(name: str, config: EncoderConfig) -> ModelShape:
    """Dimensions of an encoder; as `decoder_shape`."""
    model = Encoder(replace(config, n_layers=1, layers=config.layers[:1], head=None))
    modules = {layer: _size(module) for layer, module in model.linear_modules().items()}
    tables = (config.vocab_size + config.positions + config.types) * config.hidden_size
    block = BlockShape(config.n_layers, tuple(_linears(modules, 0, None)), _encoder_work(config))
    return ModelShape(name, "encoder", config.hidden_size, config.vocab_size, (block,), None, tables)


def speech_shape(name: str, config: WhisperConfig) -> ModelShape:
    """Dimensions of a model of speech; as `decoder_shape`."""
    c = config
    sizes = Whisper(replace(c, encoder_layers=1, decoder_layers=1)).linear_shapes()
    linears = {layer: LinearShape(layer.replace("blk.0.", ""), k, n, 1) for layer, (n, k) in sizes.items()}
    convolved = (linears["encoder.conv1"]._replace(each=2), linears["encoder.conv2"])  # frames, two for each state
    # patches of both, and their function
    copied = 2.0 * convolved[0].k + convolved[1].k + 3 * c.hidden_size
    conv = BlockShape(1, convolved, HostWork(copied, 3 * c.hidden_size, 0.0), further=True)
    kept = linears.pop("decoder.blk.0.cross_kv")
    hear = tuple(each for layer, each in linears.items() if layer.startswith("encoder.blk."))
    write = [(layer, each) for layer, each in linears.items() if layer.startswith("decoder.blk.")]
    across = tuple(each for layer, each in write if ".cross_" in layer)
    within = tuple(each for layer, each in write if ".cross_" not in layer)
    width = c.hidden_size // c.decoder_heads
    seen = HostWork(THREE * 2 * c.hidden_size, 0.0, 0.0, c.decoder_heads, width, width, cached=2 * c.hidden_size,
                    always=c.positions)  # fmt: skip
    hearing = ModelShape(
        name, "encoder", c.hidden_size, c.vocab_size,
        (
            conv,
            BlockShape(c.encoder_layers, hear, _plain_work(c.hidden_size, c.encoder_heads, c.encoder_ffn)),
            BlockShape(c.decoder_layers, (kept,), HostWork(2.0 * c.hidden_size, 0.0, 0.0), further=True),
        ),
        None, c.positions * c.hidden_size,
    )  # fmt: skip
    own = _plain_work(c.hidden_size, c.decoder_heads, c.decoder_ffn)
    blocks = (BlockShape(c.decoder_layers, within, replace(own, cached=2 * c.hidden_size)),
              BlockShape(c.decoder_layers, across, seen, further=True))  # fmt: skip
    tables = hearing.tables + (c.context_length + (0 if c.tied else c.vocab_size)) * c.hidden_size
    head = linears["head"]
    return ModelShape(name, "speech", c.hidden_size, c.vocab_size, blocks, head, tables, hearing, c.positions)


def _plain_work(hidden: int, heads: int, ffn: int) -> HostWork:
    """Of a block with two norms, two sums and a network without a gate."""
    return HostWork(THREE * 4 * hidden + ffn, ffn, 0.0, heads, hidden // heads, hidden // heads)


def _sized(layer: LayerConfig) -> LayerConfig:
    """A layer without what changes no size."""
    turned = layer.rotation
    return layer if turned is None else replace(layer, rotation=Rotation(turned.dim))


def _one_expert(layer: LayerConfig) -> LayerConfig:
    """A layer with one of its experts, which are alike."""
    if layer.experts is None:
        return layer
    return replace(layer, experts=replace(layer.experts, count=1, chosen=1))


def _size(module: Any, tied: tuple[int, int] = (0, 0)) -> tuple[int, int]:
    """K and N of a linear layer; those of a head that has no weight of its own are given."""
    weights = [shape for key, shape in module.own_shapes().items() if key.endswith("weight")]
    return (weights[0][1], sum(n for n, _ in weights)) if weights else tied


def _linears(sizes: Mapping[str, tuple[int, int]], block: int, experts: Experts | None) -> Iterator[LinearShape]:
    """Linear layers of a block."""
    stem = f"blk.{block}."
    for layer, (k, n) in sizes.items():
        if not layer.startswith(stem):
            continue
        part = layer.removeprefix(stem)
        if experts is not None and part.startswith("expert.0."):
            yield LinearShape(part.replace(".0.", "."), k, n, experts.count, experts.count, experts.chosen)
        else:
            yield LinearShape(part, k, n, 1)


def _decoder_work(c: DecoderConfig, layer: LayerConfig) -> HostWork:
    norms = 4 if c.norm_places == "around" else 2
    around = THREE * c.hidden_size * (norms + 2)  # two residual sums
    network, mixed = _network_work(c, layer), _mixer_work(c, layer)
    around += THREE * (3 * c.layer_embedding + 2 * c.hidden_size) if layer.beside else 0  # mixed, gated; norm and sum
    return replace(
        mixed,
        copied=mixed.copied + network.copied + around,
        exponentials=mixed.exponentials + network.exponentials,
        operations=mixed.operations + network.operations,
    )


def _network_work(c: DecoderConfig, layer: LayerConfig) -> HostWork:
    experts = layer.experts
    each = THREE if c.gated else 1.0  # a gate and what is gated, or a function in place
    if experts is None:
        width = layer.ffn_size or c.ffn_size
        return HostWork(each * width, width, 0.0)
    e, shared = experts, experts.shared_size or 0
    width = e.chosen * e.size + shared
    copied = each * width + e.chosen * c.hidden_size * _GATHERED + THREE * e.count
    copied += 2 * THREE * c.hidden_size if shared else 0  # its own gate, and the sum
    return HostWork(copied, width + e.count, 2.0 * c.hidden_size * (e.count + bool(shared)))


def _mixer_work(c: DecoderConfig, layer: LayerConfig) -> HostWork:
    mixer = layer.mixer
    if isinstance(mixer, DeltaNet):
        keys, values = mixer.key_heads * mixer.key_dim, mixer.value_heads * mixer.value_dim
        channels = 2 * keys + values
        matrix = mixer.key_dim * mixer.value_dim
        copied = 3.0 * channels + THREE * 2 * keys + 2 * THREE * values  # convolved, function; unit length; norm, gate
        # of each value head: the state fades, answers to a key, learns, and answers to a query
        operations = 2.0 * mixer.kernel * channels + 7.0 * mixer.value_heads * matrix
        return HostWork(
            copied, channels + values, operations, mixer.value_heads, 2 * mixer.key_dim, 2 * mixer.value_dim,
            state=mixer.value_heads * matrix + (mixer.kernel - 1) * channels, chunk=_CHUNK,
        )  # fmt: skip
    if mixer is not None:
        operations = 2.0 * mixer.kernel * c.hidden_size
        return HostWork((2 * THREE + 2) * c.hidden_size, 0.0, operations, state=(mixer.kernel - 1) * c.hidden_size,
                        chunk=PREFILL_CHUNK)  # fmt: skip
    copied, exponentials, dim = 0.0, 0.0, layer.head_dim or c.head_dim
    kv_heads = 0 if layer.follows is not None else layer.n_kv_heads or c.n_kv_heads
    if layer.rotation is not None:
        copied += (c.n_heads + kv_heads) * layer.rotation.dim
    if c.qk_norm is not None:
        copied += THREE * (c.n_heads + kv_heads * (2 if c.value_norm else 1)) * dim
    if c.attention_gate is not None:
        copied, exponentials = copied + THREE * c.q_size, exponentials + c.q_size
    return HostWork(copied, exponentials, 0.0, c.n_heads, dim, dim, layer.window, cached=2 * kv_heads * dim)


def _encoder_work(c: EncoderConfig) -> HostWork:
    """Windows save no scores: texts of up to 256 tokens are attended to at once."""
    copied = THREE * 4 * c.hidden_size + c.ffn_size * (THREE if c.gated else 1)
    copied += 0 if c.positions else 2 * c.hidden_size
    return HostWork(copied, c.ffn_size, 0.0, c.n_heads, c.head_dim, c.head_dim)


def llama_shape(
    name: str,
    *,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    ffn: int,
    vocab: int,
    tied: bool,
    q_rank: int | None = None,
    kv_rank: int | None = None,
    rope_dim: int | None = None,
    value_dim: int | None = None,
) -> ModelShape:
    """Dimensions of a decoder built as Llama is, by its numbers.

    Parameters
    ----------
    name : str
    layers, hidden, heads, kv_heads, head_dim, ffn, vocab : int
        `ffn` is the width of gate and up each.
    tied : bool
        Whether the output matrix is the embedding table.
    q_rank, kv_rank, rope_dim, value_dim : int, optional
        Of latent attention: ranks of queries and of keys with values, the part of each head that is rotated, and the
        width of a head's values.

    Raises
    ------
    ValueError
        If the numbers do not fit together.
    """
    numbers = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim,
               "ffn": ffn, "vocab": vocab, "q_rank": q_rank, "kv_rank": kv_rank, "rope_dim": rope_dim,
               "value_dim": value_dim}  # fmt: skip
    for what, number in numbers.items():
        if number is not None and not 1 <= number <= MAX_SIZE:
            raise ValueError(f"{name}: {what} is {number}; that is no size of a model")
    if heads % kv_heads:
        raise ValueError(f"{name}: {heads} heads are no multiple of {kv_heads} key heads")
    latent = (q_rank, kv_rank, rope_dim, value_dim)
    q_size, values, cached = heads * head_dim, heads * head_dim, 2 * kv_heads * head_dim
    attention = [("qkv", hidden, q_size + 2 * kv_heads * head_dim)]
    if q_rank is not None and kv_rank is not None and rope_dim is not None and value_dim is not None:
        values, cached = heads * value_dim, kv_rank + rope_dim
        attention = [
            ("q_kv_down", hidden, q_rank + cached),
            ("q_up", q_rank, q_size),
            ("kv_up", kv_rank, heads * (head_dim - rope_dim + value_dim)),
        ]
    elif any(each is not None for each in latent):
        raise ValueError(f"{name}: latent attention has two ranks, a rotated part and a width of values")
    every = (*attention, ("attn_out", values, hidden), ("gate_up", hidden, 2 * ffn), ("down", ffn, hidden))
    copied = THREE * (4 * hidden + ffn) + q_size + kv_heads * head_dim
    work = HostWork(copied, ffn, 0.0, heads, head_dim, values // heads, None, cached)
    block = BlockShape(layers, tuple(LinearShape(*each, 1) for each in every), work)
    return ModelShape(
        name, "decoder", hidden, vocab, (block,), LinearShape("head", hidden, vocab, 1), 0 if tied else vocab * hidden
    )
