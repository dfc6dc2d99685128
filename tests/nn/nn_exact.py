"""Attention as it is defined, for tests to compare with."""

from __future__ import annotations

import numpy as np


def exact(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, *, scale: float, seen: np.ndarray | None = None,
    softcap: float | None = None, sinks: np.ndarray | None = None,
) -> np.ndarray:  # fmt: skip
    """In float64, with heads repeated, and every score there at once."""
    group = q.shape[-3] // k.shape[-3]
    q, k, v = (each.astype(np.float64) for each in (q, k, v))
    k, v = np.repeat(k, group, -3), np.repeat(v, group, -3)
    scores = scale * q @ k.swapaxes(-1, -2)
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    if seen is not None:
        scores = np.where(seen, scores, -np.inf)
    more = 0.0
    high = scores.max(-1, keepdims=True, initial=-np.inf)
    if sinks is not None:
        high = np.maximum(high, sinks.astype(np.float64)[:, None, None])
        more = np.exp(sinks.astype(np.float64)[:, None, None] - high)
    high = np.where(high == -np.inf, 0, high)
    p = np.exp(scores - high)
    total = p.sum(-1, keepdims=True) + more
    return p @ v / np.where(total == 0, 1, total)


def causal(t: int, s: int, window: int | None = None) -> np.ndarray:
    at, keys = np.arange(s - t, s)[:, None], np.arange(s)
    return (keys <= at) & (keys > at - (s + t + 1 if window is None else window))
