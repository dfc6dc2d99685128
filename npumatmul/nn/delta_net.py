"""`GatedDeltaNet`: linear attention with a state of fixed size, in the place of attention over all tokens."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.nn.cache import KVCache
from npumatmul.nn.cache_batch import CacheBatch
from npumatmul.nn.causal_conv import CausalConv
from npumatmul.nn.delta_rule import gated_delta_rule
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.mlp import activate
from npumatmul.nn.module import Module, check_size, float32_of, initial, rounded_to
from npumatmul.nn.norm import RMSNorm
from npumatmul.nn.product import Float32
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["GatedDeltaNet"]

_NORM_EPS = np.float32(1e-6)
_FUSED = ("qkvz", "ba")


class GatedDeltaNet(Module):
    """What Qwen3-Next and Qwen3.5 have in most layers: a short convolution, and the gated delta rule.

    Parameters
    ----------
    hidden_size : int
        Width of what comes in and goes out.
    key_heads : int
        Heads of queries and keys.
    value_heads : int, optional
        Heads of values, a multiple of `key_heads`; as many by default.
    key_dim, value_dim : int
        Values of each head; `value_dim` is as `key_dim` by default.
    kernel : int
        Tokens that the convolution looks at, itself among them.
    eps : float
        Of the norm of results.
    fused : collection of {"qkvz", "ba"}
        Projections that checkpoints hold in one matrix, of one key head after the other, as Qwen3-Next has them.
    tiled : bool
        Whether value head h belongs to key head ``h % key_heads``, as in GGUF files, and not to ``h // (value_heads /
        key_heads)``.
    scheme, device
        As for `Linear`.

    Attributes
    ----------
    in_proj : LinearGroup
        Queries, keys and values; z, the gate of results; b, from which what is learned of a token follows; and a, from
        which what is forgotten does.
    conv1d : Module
        A convolution of queries, keys and values over time.
    A_log, dt_bias : ndarray of float32, shape (value_heads,)
    norm : RMSNorm
        Of each head of results.
    out_proj : Linear

    Raises
    ------
    ValueError
        If sizes do not go together.

    Notes
    -----
    Parameters are named as Hugging Face's: ``in_proj_qkv.weight``, ``in_proj_z.weight``, ``in_proj_b.weight``,
    ``in_proj_a.weight`` (or ``in_proj_qkvz.weight`` and ``in_proj_ba.weight``), ``conv1d.weight``, ``A_log``,
    ``dt_bias``, ``norm.weight`` and ``out_proj.weight``. What lies between the projections is computed in float32; see
    `gated_delta_rule` for its error.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> layer = nn.GatedDeltaNet(8, key_heads=1, value_heads=2, key_dim=4, scheme="float32")
    >>> rng = np.random.default_rng(0)
    >>> shapes = layer.parameter_shapes()
    >>> shapes["in_proj_qkv.weight"], shapes["conv1d.weight"]
    ((16, 8), (16, 1, 4))
    >>> _ = layer.load_state_dict({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    >>> x = rng.standard_normal((1, 5, 8), np.float32)
    >>> cache = nn.KVCache(1, 1, 1, states=[layer.state_shapes])
    >>> steps = [layer(x[:, i : i + 1], cache=cache) for i in range(5)]
    >>> np.allclose(np.concatenate(steps, axis=1), layer(x), atol=1e-4)
    True
    """

    def __init__(
        self,
        hidden_size: int,
        key_heads: int,
        value_heads: int | None = None,
        key_dim: int = 128,
        value_dim: int | None = None,
        *,
        kernel: int = 4,
        eps: float = 1e-6,
        fused: Collection[str] = (),
        tiled: bool = False,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        value_heads = key_heads if value_heads is None else value_heads
        value_dim = key_dim if value_dim is None else value_dim
        check_size(
            "GatedDeltaNet", hidden_size=hidden_size, key_heads=key_heads, value_heads=value_heads, key_dim=key_dim,
            value_dim=value_dim,
        )  # fmt: skip
        if value_heads % key_heads:
            raise ValueError(f"GatedDeltaNet: {value_heads} heads of values cannot share {key_heads} of keys evenly")
        wrong = [each for each in fused if each not in _FUSED]
        if wrong:
            raise ValueError(f"GatedDeltaNet: fused names {wrong[0]!r}; it can name {' and '.join(map(repr, _FUSED))}")
        if tiled and fused:
            raise ValueError(
                "GatedDeltaNet: matrices that are fused by key heads hold value heads in groups; they cannot be tiled"
            )
        q, v = key_heads * key_dim, value_heads * value_dim
        self._heads, self._shares = (key_heads, value_heads), value_heads // key_heads
        self._dims, self._widths = (key_dim, value_dim), (q, q, v)
        self._hidden, self._fused = hidden_size, frozenset(fused)
        each = np.arange(value_heads)
        self._key_of = each % key_heads if tiled else each // self._shares
        how: dict[str, Any] = {"scheme": scheme, "device": device}
        sizes = {"in_proj_qkvz": 2 * q + 2 * v} if "qkvz" in fused else {"in_proj_qkv": 2 * q + v, "in_proj_z": v}
        rates = {"in_proj_b": value_heads, "in_proj_a": value_heads}
        sizes |= {"in_proj_ba": 2 * value_heads} if "ba" in fused else rates
        self.in_proj = LinearGroup(hidden_size, sizes, **how)
        self.conv1d = CausalConv(2 * q + v, kernel)
        self.A_log: Float32 = initial(0.0, value_heads)
        self.dt_bias: Float32 = initial(1.0, value_heads)
        self.norm = RMSNorm(value_dim, eps)
        self.out_proj = Linear(v, hidden_size, False, **how)

    def __repr__(self) -> str:
        (keys, values), (key_dim, value_dim) = self._heads, self._dims
        return f"GatedDeltaNet({self._hidden}, {keys} heads of {key_dim}, {values} of {value_dim})"

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a `KVCache` keeps of each sequence: of the convolution, and of the rule."""
        return self.conv1d.state_shape, (self._heads[1], *self._dims)

    def __call__(self, x: Any, *, cache: KVCache | CacheBatch | None = None, layer: int = 0) -> Any:
        """Mix tokens with those before them.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (T, hidden_size) or (B, T, hidden_size)
            T tokens of each of B sequences.
        cache : KVCache or CacheBatch, optional
            What came before; the state after the tokens goes there. With a `CacheBatch` the T tokens are those of its
            sequences, one after the other.
        layer : int
            The layer's number in the cache.

        Returns
        -------
        ndarray or NpuArray, of the shape and dtype of `x`

        Raises
        ------
        ValueError
            If shapes do not fit, or the cache has no state for the layer.
        CacheFullError
            If the cache has no room.
        """
        if type(x) is not np.ndarray:
            return self._of_other(x, cache=cache, layer=layer)
        return self.out_proj(self.mix(self.in_proj.whole(x), cache=cache, layer=layer))

    def mix(
        self, projected: NDArray[Any], *, cache: KVCache | CacheBatch | None = None, layer: int = 0
    ) -> NDArray[Any]:
        """Everything between the projections.

        Parameters
        ----------
        projected : ndarray, shape (T, N) or (B, T, N)
            What ``in_proj.whole`` gave.
        cache, layer
            As for a call.

        Returns
        -------
        ndarray, shape (..., value_heads * value_dim)
            What goes to `out_proj`.
        """
        if isinstance(cache, CacheBatch):
            return cache.each(len(projected), lambda own, rows: self.mix(projected[rows], cache=own, layer=layer))
        if projected.ndim not in (2, 3):
            raise ValueError(f"{self!r} takes (T, hidden) or (B, T, hidden); the input has {projected.ndim} dimensions")
        rows = float32_of(projected, "GatedDeltaNet")
        rows = rows[None] if rows.ndim == 2 else rows
        qkv, z, b, a = self._parts(rows)
        conv, state = (None, None) if cache is None else cache.state(layer)
        qkv, conv = self.conv1d(qkv, conv)
        y, state = gated_delta_rule(*self._heads_of(activate(qkv, "silu")), *self._rates(b, a), state)
        if cache is not None:
            cache.set_state(layer, rows.shape[1], (conv, state))
        y = self.norm(y.swapaxes(1, 2))
        y *= activate(z, "silu").reshape(y.shape)
        return rounded_to(y.reshape(*projected.shape[:-1], self._widths[2]), projected.dtype)

    def _parts(self, rows: Float32) -> tuple[Float32, Float32, Float32, Float32]:
        """Queries, keys and values beside each other; z; b; and a, each of all heads."""
        parts = list(self.in_proj.split(rows))
        lead, keys = rows.shape[:2], self._heads[0]
        if "qkvz" in self._fused:
            key_dim, shared = self._dims[0], self._shares * self._dims[1]
            grouped = parts.pop(0).reshape(*lead, keys, -1)
            stops = (key_dim, 2 * key_dim, 2 * key_dim + shared)
            q, k, v, z = (each.reshape(*lead, -1) for each in np.split(grouped, stops, axis=-1))
            parts[:0] = [np.concatenate([q, k, v], axis=-1), z]
        if "ba" in self._fused:
            grouped = parts.pop().reshape(*lead, keys, -1)
            parts += [each.reshape(*lead, -1) for each in np.split(grouped, 2, axis=-1)]
        qkv, z, b, a = parts
        return qkv, z, b, a

    def _heads_of(self, qkv: Float32) -> tuple[Float32, Float32, Float32]:
        """Queries and keys of unit length, and values, of each value head."""
        q, _, _ = self._widths
        keys, values = self._heads
        key_dim, value_dim = self._dims
        lead = qkv.shape[:2]
        pairs: Float32 = qkv[..., : 2 * q].reshape(*lead, 2, keys, key_dim)
        pairs = pairs / np.sqrt(np.add.reduce(pairs * pairs, axis=-1, keepdims=True) + _NORM_EPS)
        pairs[..., 0, :, :] *= np.float32(1 / math.sqrt(key_dim))
        both = pairs[..., self._key_of, :].transpose(2, 0, 3, 1, 4)
        return both[0], both[1], qkv[..., 2 * q :].reshape(*lead, values, value_dim).swapaxes(1, 2)

    def _rates(self, b: Float32, a: Float32) -> tuple[Float32, Float32]:
        """Logarithms of what stays, and how much is learned, ``(B, H, T)``."""
        with np.errstate(over="ignore"):  # exp of a large number is inf, and 1 / inf is the 0 that is wanted
            beta: Float32 = np.exp(-b)
        beta += np.float32(1)
        np.divide(np.float32(1), beta, out=beta)
        g: Float32 = a + self.dt_bias
        np.logaddexp(g, np.float32(0), out=g)
        g *= -np.exp(self.A_log)
        return g.swapaxes(1, 2), beta.swapaxes(1, 2)
