"""`gated_delta_rule`: a matrix for each head that forgets, and learns what to answer to keys; by tokens or in chunks.

With each token S becomes ``exp(g) S + k beta (v - exp(g) S^T k)^T``, and its result is ``S^T q``. Written out over a
chunk of tokens the corrections ``u = beta (v - ...)`` are the solution of a triangular system, so that all else are
products of matrices (Yang et al., "Gated Delta Networks", 2024, section 3.3).
"""

from __future__ import annotations

import numpy as np

from npumatmul.nn.module import check_size
from npumatmul.nn.product import Float32

__all__ = ["gated_delta_rule"]


def gated_delta_rule(
    q: Float32, k: Float32, v: Float32, g: Float32, beta: Float32, state: Float32 | None = None, *, chunk: int = 64
) -> tuple[Float32, Float32]:
    """Apply the gated delta rule to a sequence.

    Parameters
    ----------
    q, k : ndarray of float32, shape (B, H, T, D)
        Queries, with their scale, and keys, which should have unit length.
    v : ndarray of float32, shape (B, H, T, E)
        Values.
    g : ndarray of float32, shape (B, H, T)
        Logarithms of what stays of the state with each token: 0 or less.
    beta : ndarray of float32, shape (B, H, T)
        How much of a value is learned, 0 to 1.
    state : ndarray of float32, shape (B, H, D, E), optional
        What was learned before; zeros by default. It is not changed.
    chunk : int
        Tokens that are worked on at once; 1: one after the other, as they are defined.

    Returns
    -------
    y : ndarray of float32, shape (B, H, T, E)
    state : ndarray of float32, shape (B, H, D, E)
        After the last token, a new array.

    Raises
    ------
    ValueError
        If shapes do not fit.

    Notes
    -----
    Chunks change the order of sums in float32 only. With unit keys a chunk of C tokens is off by some C 2**-24 of the
    largest magnitude of state and values, as C single tokens are.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> k = np.eye(4, dtype=np.float32)[None, None, [1, 1]]  # one key twice: what is learned first is replaced
    >>> v = np.array([[[[1, 2], [3, 4]]]], np.float32)
    >>> one = np.ones((1, 1, 2), np.float32)
    >>> y, state = nn.gated_delta_rule(k, k, v, 0 * one, one)
    >>> y[0, 0]
    array([[1., 2.],
           [3., 4.]], dtype=float32)
    """
    batch, heads, count, width = k.shape if k.ndim == 4 else (0, 0, 0, 0)
    right = v.ndim == 4 and q.shape == k.shape and v.shape[:3] == g.shape == beta.shape == (batch, heads, count)
    before = (batch, heads, width, v.shape[-1])
    if not right or not count or (state is not None and state.shape != before):
        raise ValueError(
            f"gated_delta_rule: q has shape {q.shape}, k {k.shape}, v {v.shape}, g {g.shape}, beta {beta.shape}"
            f"{'' if state is None else f', state {state.shape}'}; needed are (B, H, T, D) twice, (B, H, T, E), "
            f"(B, H, T) twice and (B, H, D, E), with a token or more"
        )
    check_size("gated_delta_rule", chunk=chunk)
    y = np.empty(v.shape, np.float32)
    for start in range(0, count, chunk):
        at = (slice(None), slice(None), slice(start, start + chunk))
        step = _token if min(chunk, count - start) == 1 else _chunk
        if state is None:
            state = np.zeros(before, np.float32)
        y[at], state = step(q[at], k[at], v[at], g[at], beta[at], state)
    assert state is not None
    return y, state


def _token(q: Float32, k: Float32, v: Float32, g: Float32, beta: Float32, state: Float32) -> tuple[Float32, Float32]:
    """One token: a row of each, ``(B, H, 1, ...)``."""
    state = state * np.exp(g)[..., None]
    learned = (v - k @ state) * beta[..., None]
    state += k.swapaxes(-1, -2) * learned
    return q @ state, state


def _chunk(q: Float32, k: Float32, v: Float32, g: Float32, beta: Float32, state: Float32) -> tuple[Float32, Float32]:
    """A chunk of tokens."""
    since = np.cumsum(g, axis=-1)  # logarithm of what is left at a token of the state before the chunk
    between = since[..., :, None] - since[..., None, :]
    later = np.triu(np.ones(between.shape[-2:], bool), 1)
    between[..., later] = -np.inf
    np.exp(between, out=between)
    faded = np.exp(since)[..., None]
    keys = k.swapaxes(-1, -2)
    system = (k @ keys) * between
    system *= beta[..., None]
    diagonal = np.arange(system.shape[-1])
    system[..., diagonal, diagonal] = 1  # below it all is less than 1, so that elimination never exchanges rows
    learned = np.linalg.solve(system, (v - (k * faded) @ state) * beta[..., None])
    y = (q * faded) @ state
    y += ((q @ keys) * between) @ learned
    left = np.exp(since[..., -1:] - since)[..., None]
    state = state * faded[..., -1:, :]
    state += (k * left).swapaxes(-1, -2) @ learned
    return y, state
