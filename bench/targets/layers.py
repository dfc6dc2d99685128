"""Layers without their products: a token's way through a block, and attention beside the same written out in numpy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle, product
from typing import Any

import numpy as np

from npumatmul import nn
from npumatmul.host.attention import attend
from npumatmul.nn.attend import options
from targets.lines import Turns, line

RNG = np.random.default_rng(0)
HEADS, KV_HEADS, DIM = 32, 8, 64


class Ready:
    """A product that is computed already."""

    def __init__(self, k: int, n: int) -> None:
        self.shape = k, n
        self.result = RNG.standard_normal((1, n), np.float32)

    def __call__(self, x: Any) -> Any:
        """Return it."""
        return self.result


def loaded(module: Any, pack: Any = None) -> Any:
    """A module with random parameters."""
    shapes = module.parameter_shapes().items()
    module.load_state_dict({name: RNG.standard_normal(shape, np.float32) for name, shape in shapes}, pack=pack)
    return module


@line(
    "block of 1 token after {0}, {1}", "its products by numpy", over=product((16, 1024), ("float32", "float16", "int8"))
)
def block_of_one_token(tokens: int, dtype: str) -> Iterator[Turns]:
    """All that a block does but its products, beside these in float32 by numpy; on an NPU they take a share of that."""
    hidden, inner = HEADS * DIM, 8192

    def block(pack: Any = None) -> Any:
        attention = nn.Attention(hidden, HEADS, KV_HEADS, rope=nn.RoPE(DIM), scheme="float32")
        return loaded(nn.TransformerBlock(attention, nn.MLP(hidden, inner, scheme="float32")), pack)

    layers = block(lambda w, _: Ready(w.shape[1], w.shape[0]))
    cache = nn.KVCache(1, KV_HEADS, DIM, dtype=dtype)
    cache.update(0, *RNG.standard_normal((2, 1, KV_HEADS, tokens, DIM), np.float32))
    x = RNG.standard_normal((1, hidden), np.float32)
    products = [each.product for each in (block().self_attn.qkv, block().self_attn.o_proj)]
    mlp = block().mlp
    products += [mlp.gate_up.product, mlp.down_proj.product]
    rows = [RNG.standard_normal((1, each.shape[0]), np.float32) for each in products]

    def token() -> None:
        layers(x, cache=cache)
        cache.trim(1)

    def multiplied() -> None:
        for each, row in zip(products, rows, strict=True):
            each(row)

    yield Turns(token, multiplied)


def written_out(q: Any, k: Any, v: Any) -> Any:
    """Attention with heads repeated and all scores at once."""
    k, v = (np.repeat(each.astype(np.float32), HEADS // KV_HEADS, 1) for each in (k, v))
    t, s = q.shape[2], k.shape[2]
    scores = q @ k.swapaxes(-1, -2) / np.float32(math.sqrt(DIM))
    if t > 1:
        scores = np.where(np.arange(s) <= np.arange(s - t, s)[:, None], scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores @ v / scores.sum(-1, keepdims=True)


@line(
    "attention of {0} to {1}, {2}",
    "written out",
    least=1.0,
    over=[(*sizes, dtype) for sizes in ((1, 1024), (128, 1024), (512, 512)) for dtype in ("float32", "float16")],
)
def attention(tokens: int, keys: int, dtype: str) -> Iterator[Turns]:
    """A token, a part of a prompt, and a prompt."""
    q = RNG.standard_normal((1, HEADS, tokens, DIM), np.float32)
    k, v = RNG.standard_normal((2, 1, KV_HEADS, keys, DIM), np.float32).astype(dtype)
    yield Turns(
        lambda: nn.scaled_dot_product_attention(q, k, v, mask="causal"),
        lambda: written_out(q, k, v),
    )


#: Bytes of the caches that are read in turns: more than any processor's caches hold of them.
READ_BYTES = 96 << 20


@line(
    "attention of a token to 2048, {0} heads over {1} of {2}, {3}",
    "reading its cache",
    least=0.6,
    over=[(*sizes, dtype) for sizes in ((9, 3, 64), (32, 8, 128)) for dtype in ("float16", "int8")],
    counted="npumm_attend_all",
)
def attention_of_a_token(heads: int, kv_heads: int, dim: int, dtype: str) -> Iterator[Turns]:
    """By one thread, layer after layer; the reference goes over as many bytes with numpy's ``bitwise_or``."""
    tokens = 2048
    k, v = RNG.standard_normal((2, 1, kv_heads, tokens, dim), np.float32)
    first = nn.KVCache(1, kv_heads, dim, dtype=dtype, chunk=tokens)
    first.update(0, k, v)
    layers = max(2, READ_BYTES // first.nbytes)
    cache = nn.KVCache(layers, kv_heads, dim, dtype=dtype, chunk=tokens)
    for i in range(layers):
        cache.update(i, k, v)
    q, how = RNG.standard_normal((1, heads, 1, dim), np.float32), options(heads, dim)
    structs = cycle(cache.structs)
    stretches = cycle(np.array_split(np.ones(cache.nbytes // 8, np.uint64), layers))
    yield Turns(
        lambda: attend(how, next(structs), tokens - 1, q, threads=1),
        lambda: np.bitwise_or.reduce(next(stretches)),
    )
