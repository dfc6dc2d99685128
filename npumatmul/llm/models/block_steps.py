"""Rows through a block one linear layer after another, whose products are somebody else's."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from npumatmul.llm.models.body import linears_of
from npumatmul.llm.models.cache import KVCache
from npumatmul.nn.attention import Attention
from npumatmul.nn.block import TransformerBlock
from npumatmul.nn.experts import MixtureOfExperts
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.product import Float32

__all__ = ["Steps", "steps_through"]

Steps = Generator[tuple[str, Float32], Float32, Float32]


def steps_through(block: TransformerBlock, parts: Sequence[str], x: Float32, cache: KVCache, layer: int) -> Steps:
    """Run rows through a block; see `npumatmul.llm.models.decoder.Decoder.block_steps`.

    Parameters
    ----------
    block : TransformerBlock
    parts : sequence of str
        Names of its linear layers (`LayerConfig.parts`).
    x : ndarray of float32, shape (T, hidden)
    cache : KVCache
    layer : int
        Number of the block in the cache.
    """
    into, out = linears_of(block)[:2]
    mixer, mlp = block.mixer, block.mlp
    between = mixer.attend if isinstance(mixer, Attention) else mixer.mix
    mixed = between(_biased(into, (yield parts[0], block.input_layernorm(x))), cache=cache, layer=layer)
    cache.settle()
    x = block.after_attention(x, _biased(out, (yield parts[1], mixed)))
    del mixed
    if isinstance(mlp, MixtureOfExperts):
        given = block.before_mlp(x)
        through = yield from _mixture(mlp, given)
    else:
        through = yield from _network(mlp, "", block.before_mlp(x))
    result: Float32 = block.after_mlp(x, through)
    if block.layer_scalar is not None:
        result *= block.layer_scalar
    return result


def _mixture(mixture: MixtureOfExperts, rows: Float32) -> Steps:
    """All experts, those that no row chose with none."""
    y = np.zeros_like(rows)
    chosen, weights = mixture.choice(rows)
    for number, expert in enumerate(mixture.experts):
        tokens, places = np.nonzero(chosen == number)
        own = yield from _network(expert, f"expert.{number}.", rows[tokens])
        y[tokens] += own * weights[tokens, places, None]
    if mixture.shared_expert is not None:
        shared = yield from _network(mixture.shared_expert, "shared.", rows)
        y += shared if mixture.shared_expert_gate is None else shared * mixture.shared_expert_gate(rows)
    return y


def _network(mlp: Any, stem: str, rows: Float32) -> Steps:
    gate_up = mlp.gate_up or mlp.up_proj
    y = _biased(gate_up, (yield f"{stem}gate_up", rows))
    inner = mlp.activate(gate_up.split(y) if isinstance(gate_up, LinearGroup) else (y,))
    return _biased(mlp.down_proj, (yield f"{stem}down", inner))


def _biased(module: Linear | LinearGroup, y: Float32) -> Float32:
    return y if module.bias is None else y + module.bias
