"""Attention: every token looks back at the tokens of its sequence, by rotated queries and keys.

Shapes: B sequences, T new tokens of each, S tokens of each with them, H heads, G query heads for each key head, D
values per head.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.models.config import LlamaConfig

__all__ = ["Float32", "RotaryTable", "attention", "rotate"]

Float32 = NDArray[np.float32]


def attention(
    qkv: Float32, rotation: NDArray[np.complex64], keys: Float32, values: Float32, past: int, config: LlamaConfig
) -> Float32:
    """Attend to the tokens of the same sequence: to those before, and to the new ones up to the token itself.

    Parameters
    ----------
    qkv : ndarray of float32, shape (B T, (H + 2 H/G) D)
        Queries, keys and values of the new tokens, not rotated; the tokens of a sequence follow one another.
    rotation : ndarray of complex64, shape (T, 1, rope_dim / 2)
        Rotations of their positions, from a `RotaryTable`.
    keys, values : ndarray of float32, shape (B, H/G, capacity, D)
        Those of `past` tokens, the keys rotated; those of the new tokens are stored behind them.
    past : int
        Tokens of each sequence so far.
    config : LlamaConfig
        The model's configuration.

    Returns
    -------
    ndarray of float32, shape (B T, H D)
        What was attended to, a new array.
    """
    c, count, t = config, len(keys), len(rotation)
    kv_heads, group, total = c.n_kv_heads, c.n_heads // c.n_kv_heads, past + t
    heads = np.ascontiguousarray(qkv).reshape(count, t, c.n_heads + 2 * kv_heads, c.head_dim)
    q, k, v = heads[:, :, : c.n_heads], heads[:, :, c.n_heads : -kv_heads], heads[:, :, -kv_heads:]

    keys, values = keys[:, :, :total], values[:, :, :total]
    rotate(k, rotation, out=keys[:, :, past:].transpose(0, 2, 1, 3))
    values[:, :, past:] = v.transpose(0, 2, 1, 3)
    q = rotate(q, rotation, out=np.empty_like(q, order="C"))
    q *= np.float32(1 / math.sqrt(c.head_dim))

    # the G query heads of a key head are rows of one product: (B, kv heads, G T, D) @ (B, kv heads, D, S)
    grouped = q.reshape(count, t, kv_heads, group, c.head_dim).transpose(0, 2, 3, 1, 4)
    scores = grouped.reshape(count, kv_heads, group * t, c.head_dim) @ keys.transpose(0, 1, 3, 2)
    if t > 1:
        scores.reshape(count, kv_heads, group, t, total)[..., past:] += _causal(t)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    result: Float32 = scores @ values
    result /= scores.sum(axis=-1, keepdims=True)
    attended: Float32 = result.reshape(count, kv_heads, group, t, c.head_dim).transpose(0, 3, 1, 2, 4)
    return attended.reshape(count * t, c.q_size)


@functools.lru_cache(maxsize=4)
def _causal(tokens: int) -> Float32:
    """What is added to the scores of tokens that attend to one another."""
    mask = np.triu(np.full((tokens, tokens), -np.inf, np.float32), k=1)
    mask.setflags(write=False)
    return mask


class RotaryTable:
    """Rotations of rotary position embedding as complex numbers: row p holds ``exp(i p f)`` for all frequencies f."""

    def __init__(self, config: LlamaConfig, factors: Float32 | None) -> None:
        exponents = np.arange(0, config.rope_dim, 2, dtype=np.float64) / config.rope_dim
        self._frequencies = config.rope_theta**-exponents / config.rope_scale
        if factors is not None:
            if factors.shape != self._frequencies.shape:
                raise ValueError(f"rope_factors has shape {factors.shape}, {self._frequencies.shape} is needed")
            self._frequencies = self._frequencies / factors
        self._table = np.empty((0, 1, len(exponents)), np.complex64)

    def rows(self, start: int, stop: int) -> NDArray[np.complex64]:
        """Return the rotations of positions start to stop, shape ``(stop - start, 1, rope_dim / 2)``."""
        if stop > len(self._table):
            positions = np.arange(max(1024, 2 * stop), dtype=np.float64)
            self._table = np.exp(1j * positions[:, None, None] * self._frequencies).astype(np.complex64)
        return self._table[start:stop]


def rotate(x: Float32, rotation: NDArray[np.complex64], out: Float32) -> Float32:
    """Rotate the pairs of values (0, 1), (2, 3), ... of each head by the angles of its position.

    GGUF stores the rows of q and k of the llama architecture in the order that makes neighbours a pair, which is
    also how numpy lays out complex numbers: one multiplication rotates them all.

    Parameters
    ----------
    x : ndarray of float32, shape (T, heads, D)
        Queries or keys.
    rotation : ndarray of complex64, shape (T, 1, rope_dim / 2)
        Rotations; values beyond ``rope_dim`` are copied.
    out : ndarray of float32, shape (T, heads, D)
        Where the result goes.

    Returns
    -------
    ndarray of float32
        `out`.
    """
    rope_dim = 2 * rotation.shape[-1]
    if rope_dim < x.shape[-1]:
        out[..., rope_dim:] = x[..., rope_dim:]
        x, rotated = x[..., :rope_dim], out[..., :rope_dim]
    else:
        rotated = out
    np.multiply(x.view(np.complex64), rotation, out=rotated.view(np.complex64))
    return out
