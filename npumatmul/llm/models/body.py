"""What a `Decoder` is built of: embeddings, blocks and rotations, from its configuration."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from npumatmul.device.device import Device
from npumatmul.llm.models.decoder_config import DecoderConfig, LayerConfig, Rotation
from npumatmul.llm.models.mixers import DeltaNet
from npumatmul.nn.attention import Attention
from npumatmul.nn.block import TransformerBlock
from npumatmul.nn.delta_net import GatedDeltaNet
from npumatmul.nn.embedding import Embedding
from npumatmul.nn.experts import MixtureOfExperts
from npumatmul.nn.linear import Linear
from npumatmul.nn.mlp import MLP
from npumatmul.nn.module import Module
from npumatmul.nn.norm import LayerNorm, RMSNorm
from npumatmul.nn.rope import RoPE
from npumatmul.nn.short_conv import ShortConv
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["Body", "Ropes", "linears_of", "with_linears", "with_rope"]


class Body(Module):
    """Embeddings, blocks and the last norm of a `Decoder`.

    Parameters
    ----------
    config : DecoderConfig
    scheme, device
        As for `Decoder`.

    Attributes
    ----------
    embed_tokens : Embedding
    layers : list of TransformerBlock
    norm : RMSNorm or LayerNorm
    embed_tokens_per_layer, per_layer_model_projection, per_layer_projection_norm : Module or None
        Embeddings of tokens that layers have for themselves, and what is added to them of the usual ones.
    """

    def __init__(
        self, config: DecoderConfig, *, scheme: Scheme | SchemeName | str, device: Device | str | None
    ) -> None:
        c = config
        ropes = Ropes(c)
        self.embed_tokens = Embedding(c.vocab_size, c.hidden_size)
        self.layers = [_block(c, each, ropes.of(each), scheme, device) for each in c.layers]
        self.norm: Any = (
            LayerNorm(c.hidden_size, c.norm_eps)
            if c.norm == "layer"
            else RMSNorm(c.hidden_size, c.norm_eps, offset=c.norm_offset)
        )
        self.embed_tokens_per_layer: Embedding | None = None
        self.per_layer_model_projection: Linear | None = None
        self.per_layer_projection_norm: RMSNorm | None = None
        if c.layer_embedding:
            width = c.n_layers * c.layer_embedding
            self.embed_tokens_per_layer = Embedding(c.layer_vocab, width)
            self.per_layer_model_projection = Linear(c.hidden_size, width, False, scheme=scheme, device=device)
            self.per_layer_projection_norm = RMSNorm(c.layer_embedding, c.norm_eps, offset=c.norm_offset)


class Ropes:
    """Rotations of a model's layers; those that are alike share their tables."""

    def __init__(self, config: DecoderConfig, is_long: bool = False) -> None:
        self._config, self._is_long = config, is_long
        self._made: list[tuple[Rotation, RoPE]] = []

    def of(self, layer: LayerConfig) -> RoPE | None:
        if layer.rotation is None:
            return None
        for rotation, rope in self._made:
            if rotation == layer.rotation:
                return rope
        rope = self._rope(layer.rotation)
        self._made.append((layer.rotation, rope))
        return rope

    def _rope(self, rotation: Rotation) -> RoPE:
        before = self._config.longest_short
        return RoPE(
            rotation.dim,
            base=rotation.theta,
            interleaved=rotation.interleaved,
            scaling=rotation.scaling,
            max_position=self._config.context_length,
            factors=rotation.factors,
            length=None if before is None else before + self._is_long,
            sections=rotation.sections,
            alternate=rotation.alternate,
        )


def _block(
    c: DecoderConfig,
    layer: LayerConfig,
    rope: RoPE | None,
    scheme: Scheme | SchemeName | str,
    device: Device | str | None,
) -> TransformerBlock:
    how: dict[str, Any] = {"scheme": scheme, "device": device}
    beside = None
    if layer.beside:
        beside = (
            Linear(c.hidden_size, c.layer_embedding, False, **how),
            Linear(c.layer_embedding, c.hidden_size, False, **how),
        )
    return TransformerBlock(
        _mixer(c, layer, rope, how),
        _network(c, layer, how),
        eps=c.norm_eps,
        norm_offset=c.norm_offset,
        post_norms=c.norm_places == "around",
        residual_multiplier=c.residual_scale,
        layer_norm=c.norm == "layer",
        beside=beside,
        act=c.activation,
        scalar=c.layer_scalar,
    )


def _mixer(
    c: DecoderConfig, layer: LayerConfig, rope: RoPE | None, how: Mapping[str, Any]
) -> Attention | GatedDeltaNet | ShortConv:
    mixer = layer.mixer
    if isinstance(mixer, DeltaNet):
        return GatedDeltaNet(
            c.hidden_size,
            mixer.key_heads,
            mixer.value_heads,
            mixer.key_dim,
            mixer.value_dim,
            kernel=mixer.kernel,
            eps=c.norm_eps,
            fused=mixer.fused,
            tiled=mixer.tiled,
            **how,
        )
    if mixer is not None:
        return ShortConv(c.hidden_size, mixer.kernel, bias=mixer.bias, **how)
    return Attention(
        c.hidden_size,
        c.n_heads,
        layer.n_kv_heads or c.n_kv_heads,
        layer.head_dim or c.head_dim,
        bias=c.qkv_bias,
        out_bias=c.out_bias,
        rope=rope,
        scale=c.query_scale,
        window=layer.window,
        softcap=c.attention_softcap,
        qk_norm=c.qk_norm,
        query_growth=c.query_growth,
        sinks=c.sinks,
        value_norm=c.value_norm,
        values=layer.values if layer.follows is None else "shared",
        eps=c.norm_eps,
        norm_offset=c.norm_offset,
        gate=c.attention_gate,
        fused="qkv_proj" if c.fused else None,
        **how,
    )


def _network(c: DecoderConfig, layer: LayerConfig, how: Mapping[str, Any]) -> Module:
    experts = layer.experts
    if experts is None:
        fused = "gate_up_proj" if c.fused else None
        width = layer.ffn_size or c.ffn_size
        return MLP(c.hidden_size, width, c.activation, gated=c.gated, bias=c.mlp_bias, fused=fused, **how)
    return MixtureOfExperts(
        c.hidden_size,
        experts.size,
        experts.count,
        experts.chosen,
        act=c.activation,
        softmax=experts.softmax,
        normalize=experts.normalize,
        scale=experts.scale,
        preferred=experts.preferred,
        shared_size=experts.shared_size,
        shared_gate=experts.shared_size is not None,
        bias=experts.bias,
        clamp=experts.clamp,
        **how,
    )


def linears_of(block: TransformerBlock) -> list[Any]:
    """The linear layers of a block, in the order of `npumatmul.llm.models.decoder_config.LayerConfig.parts`."""
    mixer, mlp = block.mixer, block.mlp
    around = (mixer.qkv, mixer.o_proj) if isinstance(mixer, Attention) else (mixer.in_proj, mixer.out_proj)
    networks = [mlp]
    if isinstance(mlp, MixtureOfExperts):
        networks = [*mlp.experts, *([] if mlp.shared_expert is None else [mlp.shared_expert])]
    beside = [] if block.per_layer_input_gate is None else [block.per_layer_input_gate, block.per_layer_projection]
    return [*around, *(each for network in networks for each in _inside(network)), *beside]


def _inside(mlp: Any) -> tuple[Any, Any]:
    return mlp.gate_up or mlp.up_proj, mlp.down_proj


def with_linears(block: TransformerBlock, new: Mapping[str, Any]) -> TransformerBlock:
    """The same block with other linear layers, by their names without the block's."""
    made = copy.copy(block)
    mixer: Any = copy.copy(block.mixer)
    if isinstance(mixer, Attention):
        mixer.qkv, mixer.o_proj = new.get("qkv", mixer.qkv), new.get("attn_out", mixer.o_proj)
    else:
        mixer.in_proj, mixer.out_proj = new.get("in_proj", mixer.in_proj), new.get("out_proj", mixer.out_proj)
    made.use(mixer)
    if isinstance(block.mlp, MixtureOfExperts):
        mixture = made.mlp = copy.copy(block.mlp)
        mixture.experts = [_with_inside(mlp, new, f"expert.{i}.") for i, mlp in enumerate(mixture.experts)]
        if mixture.shared_expert is not None:
            mixture.shared_expert = _with_inside(mixture.shared_expert, new, "shared.")
    else:
        made.mlp = _with_inside(block.mlp, new, "")
    made.per_layer_input_gate = new.get("inp_gate", block.per_layer_input_gate)
    made.per_layer_projection = new.get("inp_proj", block.per_layer_projection)
    return made


def _with_inside(mlp: Any, new: Mapping[str, Any], stem: str) -> Any:
    made = copy.copy(mlp)
    inner = "gate_up" if mlp.gate_up is not None else "up_proj"
    setattr(made, inner, new.get(f"{stem}gate_up", getattr(mlp, inner)))
    made.down_proj = new.get(f"{stem}down", mlp.down_proj)
    return made


def with_rope(block: TransformerBlock, rope: RoPE | None) -> TransformerBlock:
    """The same block whose attention, if it has that, rotates otherwise."""
    if block.self_attn is None:
        return block
    made = copy.copy(block)
    made.self_attn = copy.copy(block.self_attn)
    made.self_attn.rope = rope
    return made
