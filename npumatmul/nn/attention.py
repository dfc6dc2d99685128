"""`Attention`: projections of queries, keys and values, attention, and the projection of what was attended to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ModelError
from npumatmul.host import layers
from npumatmul.host.executor import Function
from npumatmul.host.layers import rms_norm
from npumatmul.nn.attend import Mask, check_softcap, options, scaled_dot_product_attention
from npumatmul.nn.cache import KVCache
from npumatmul.nn.cache_batch import CacheBatch
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.module import Module, check_number, check_size, float32_of, initial, rounded_to
from npumatmul.nn.norm import RMSNorm
from npumatmul.nn.prefill import NpuProducts
from npumatmul.nn.product import Float32
from npumatmul.nn.rope import RoPE
from npumatmul.ops import NpuArray, PackedWeight
from npumatmul.ops.array.array import unread
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["MANY", "Attention"]

#: Queries of a sequence from which on it is asked whether the NPU should multiply them.
MANY = 16


class Attention(Module):
    """Attention of several heads over a sequence, or over what a cache holds of it.

    Parameters
    ----------
    hidden_size : int
        Width of what comes in and goes out.
    heads : int
        Query heads.
    kv_heads : int, optional
        Heads of keys and values, which `heads` is a multiple of: as many by default (multi-head), fewer (grouped), or
        one (multi-query).
    head_dim : int, optional
        Values of each head; ``hidden_size / heads`` by default.
    bias : bool
        Whether q, k and v have biases.
    out_bias : bool, optional
        Whether the last projection has one; as `bias` by default.
    rope : RoPE, optional
        Rotates queries and keys; without it nothing is.
    scale : float, optional
        On scores; ``1 / sqrt(head_dim)`` by default.
    window : int, optional
        Tokens that a token sees at most, itself among them; without a causal mask, so many before it and as many behind
        it, each time itself among them.
    softcap : float, optional
        As for `scaled_dot_product_attention`.
    qk_norm : {None, "head", "all"}
        An RMSNorm of queries and keys before they are rotated: over each head, or over all heads together.
    eps, norm_offset : float
        Of these.
    gate : {None, "sigmoid"}
        ``"sigmoid"``: what was attended to is multiplied by ``sigmoid(gate)`` before the last projection. Rows of the
        gate follow those of the queries, head by head, in a ``q_proj`` of twice as many rows.
    query_growth : tuple of float and int, optional
        ``(beta, length)``: rotated queries at position p are multiplied by ``1 + beta * log(1 + p // length)``, so that
        attention stays sharp over long texts, as in the third generation of Ministral.
    sinks : bool
        Whether each head has a score to which attention can go in vain.
    value_norm : bool
        Whether values of each head are divided by the root of their mean square.
    values : {"own", "keys", "shared"}
        ``"keys"``: there is no projection of values, and that of keys gives both. ``"shared"``: there is none of keys
        either; those of another layer are looked at, which the cache knows (`KVCache.shared`).
    fused : str, optional
        Name of the tensor that holds q, k and v in one, such as ``"qkv_proj"``.
    products : {"auto", "cpu", "npu"}
        Who multiplies queries, keys and values where there are many queries, as in a prompt. ``"npu"``: the NPU that
        has the projections, as float16. ``"auto"``: it where that is modelled to be faster (`plan_attention`), on a
        board; on a simulated one, whose times are not those of this machine, the CPU.
    scheme, device
        As for `Linear`.

    Attributes
    ----------
    qkv : LinearGroup
    o_proj : Linear
    q_norm, k_norm : RMSNorm
        Where there are any.
    sinks : ndarray of float32, shape (heads,), or None

    Raises
    ------
    ValueError
        If sizes do not go together, or there is no such option.

    Notes
    -----
    Parameters are named as Hugging Face's: ``q_proj.weight``, ``k_proj.weight``, ``v_proj.weight``, ``o_proj.weight``,
    their biases, ``q_norm.weight``, ``k_norm.weight`` and ``sinks``.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> attention = nn.Attention(8, heads=4, kv_heads=2, rope=nn.RoPE(2), scheme="float32")
    >>> shapes = attention.parameter_shapes()
    >>> shapes
    {'q_proj.weight': (8, 8), 'k_proj.weight': (4, 8), 'v_proj.weight': (4, 8), 'o_proj.weight': (8, 8)}
    >>> rng = np.random.default_rng(0)
    >>> _ = attention.load_state_dict({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    >>> x = rng.standard_normal((1, 5, 8), np.float32)
    >>> y = attention(x)
    >>> cache = nn.KVCache(1, 2, 2, dtype="float32")
    >>> steps = [attention(x[:, i : i + 1], cache=cache) for i in range(5)]
    >>> np.allclose(np.concatenate(steps, axis=1), y, atol=1e-5)
    True
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        bias: bool = False,
        out_bias: bool | None = None,
        rope: RoPE | None = None,
        scale: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        qk_norm: Literal["head", "all"] | None = None,
        eps: float = 1e-6,
        norm_offset: float = 0.0,
        gate: Literal["sigmoid"] | None = None,
        query_growth: tuple[float, int] | None = None,
        sinks: bool = False,
        value_norm: bool = False,
        values: Literal["own", "keys", "shared"] = "own",
        fused: str | None = None,
        products: Literal["auto", "cpu", "npu"] = "auto",
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        kv_heads = heads if kv_heads is None else kv_heads
        check_size("Attention", hidden_size=hidden_size, heads=heads, kv_heads=kv_heads)
        if head_dim is None:
            if hidden_size % heads:
                raise ValueError(f"Attention: hidden_size {hidden_size} is no multiple of {heads} heads; give head_dim")
            head_dim = hidden_size // heads
        check_size("Attention", head_dim=head_dim, **({} if window is None else {"window": window}))
        check_softcap("Attention", softcap)
        if heads % kv_heads:
            raise ValueError(f"Attention: {heads} heads cannot share {kv_heads} heads of keys evenly")
        for name, value, allowed in (("qk_norm", qk_norm, ("head", "all")), ("gate", gate, ("sigmoid",))):
            if value is not None and value not in allowed:
                raise ValueError(f"Attention: {name} is {value!r}; it can be None or {' or '.join(map(repr, allowed))}")
        if rope is not None and rope.dim > head_dim:
            raise ValueError(f"Attention: rope rotates {rope.dim} values, but a head has {head_dim}")
        if products not in ("auto", "cpu", "npu"):
            raise ValueError(f"Attention: products is {products!r}; it can be 'auto', 'cpu' or 'npu'")
        if values not in ("own", "keys", "shared"):
            raise ValueError(f"Attention: values is {values!r}; it can be 'own', 'keys' or 'shared'")
        if values != "own" and (fused is not None or gate is not None or qk_norm == "all"):
            raise ValueError(
                f"Attention: values {values!r} go with no fused projections, no gate and no norm of all heads"
            )
        if scale is not None:
            check_number("Attention", scale=scale)
        self._heads, self._kv_heads, self._dim = heads, kv_heads, head_dim
        self._scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
        self._window, self._softcap, self._gate, self._qk_norm = window, softcap, gate, qk_norm
        self._products = products
        if query_growth is not None:
            if not isinstance(query_growth, Sequence) or len(query_growth) != 2:
                raise ValueError(f"Attention: query_growth is {query_growth!r}; it has to be (beta, length)")
            check_number("Attention", query_growth=query_growth[0])
            check_size("Attention", query_growth=query_growth[1])
        self._growth = query_growth
        self.rope = rope
        q, kv = heads * head_dim, kv_heads * head_dim
        #: Whether queries and keys, which stand beside each other in one result, are only rotated.
        self._turns_at_once = rope is not None and qk_norm is None and gate is None and values == "own"
        self._q_and_k = q + kv
        how: dict[str, Any] = {"scheme": scheme, "device": device}
        sizes = {"q_proj": 2 * q if gate else q, "k_proj": kv, "v_proj": kv}
        for name in {"own": (), "keys": ("v_proj",), "shared": ("k_proj", "v_proj")}[values]:
            del sizes[name]
        self._values, self._eps = values, np.float32(eps)
        self._normalizes_values = value_norm and values != "shared"
        self.qkv = LinearGroup(hidden_size, sizes, bias, fused=fused, **how)
        self.q_norm: RMSNorm | None = None
        self.k_norm: RMSNorm | None = None
        if qk_norm is not None:
            widths = (q, kv) if qk_norm == "all" else (head_dim, head_dim)
            self.q_norm, self.k_norm = (RMSNorm(width, eps, offset=norm_offset) for width in widths)
            if values == "shared":
                self.k_norm = None
        self.sinks: Float32 | None = initial(0.0, heads) if sinks else None
        self.o_proj = Linear(q, hidden_size, bool(bias if out_bias is None else out_bias), **how)

    def __repr__(self) -> str:
        sizes = f"{self._heads} heads over {self._kv_heads} of {self._dim}"
        return f"Attention({self.o_proj.out_features}, {sizes})"

    @property
    def recordable(self) -> bool:
        """Unless numpy computes something between the projections, or one of its parts does more than a step."""
        return self._growth is None and all(each.recordable for _, each in self.children())

    @property
    def window(self) -> int | None:
        """Tokens that a token sees at most; None: all before it."""
        return self._window

    def __call__(
        self,
        x: Any,
        *,
        cache: KVCache | CacheBatch | None = None,
        layer: int = 0,
        mask: Mask = "causal",
        positions: ArrayLike | None = None,
    ) -> Any:
        """Attend.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (T, hidden_size) or (B, T, hidden_size)
            T tokens of each of B sequences.
        cache : KVCache or CacheBatch, optional
            What came before; keys and values of the tokens go there. With a `CacheBatch` the T tokens are those of its
            sequences, one after the other.
        layer : int
            The layer's number in the cache.
        mask : {"causal", None} or ndarray
            As for `scaled_dot_product_attention`.
        positions : array_like of int, shape (T,) or (B, 1, T), or (3, T) or (3, B, 1, T), optional
            For the rotation; by default they follow those in the cache. Three where `rope` has sections.

        Returns
        -------
        ndarray or NpuArray, of the shape and dtype of `x`

        Raises
        ------
        ValueError
            If shapes do not fit, or the cache keeps fewer tokens than are looked at.
        CacheFullError
            If the cache has no room.
        """
        qkv = self.qkv.whole(x)
        if type(x) is not NpuArray:
            return self.o_proj(self.attend(qkv, cache=cache, layer=layer, mask=mask, positions=positions))
        y = self.attend(qkv.numpy(writable=False), cache=cache, layer=layer, mask=mask, positions=positions)
        return self.o_proj(unread(np.ascontiguousarray(y), y.shape, x.device))

    def attend(
        self,
        qkv: NDArray[Any] | Sequence[NDArray[Any]],
        *,
        cache: KVCache | CacheBatch | None = None,
        layer: int = 0,
        mask: Mask = "causal",
        positions: ArrayLike | None = None,
        by_row: bool = False,
    ) -> NDArray[Any]:
        """Everything between the projections.

        Parameters
        ----------
        qkv : ndarray, shape (..., T, N), or sequence of three ndarrays, shapes (..., T, n)
            What `qkv.whole` gave, or `qkv`: queries, keys and values.
        cache, layer, mask, positions
            As for a call.
        by_row : bool
            Whether each token attends as if it had come alone, bit for bit, as the CPU does and an NPU does not. The
            mask is causal then.

        Returns
        -------
        ndarray, shape (..., T, heads * head_dim)
            What goes to `o_proj`.
        """
        if isinstance(cache, CacheBatch):
            return self._attend_each(qkv, cache, layer, mask, positions)
        dim, kv_heads = self._dim, self._kv_heads
        lead = (qkv if isinstance(qkv, np.ndarray) else qkv[0]).shape[:-1]
        if len(lead) not in (1, 2):
            raise ValueError(
                f"{self!r} takes (T, hidden) or (B, T, hidden); queries have shape {(*lead, self._q_and_k)}"
            )
        split = (1, *lead) if len(lead) == 1 else lead
        offset = 0 if cache is None else cache.offset + cache.shift
        gate = None
        if self._values == "shared":
            return self._attend_to_shared(qkv, split, offset, cache, layer, mask, positions, by_row)
        if self._turns_at_once and isinstance(qkv, np.ndarray):
            assert self.rope is not None
            both = qkv[..., : self._q_and_k].reshape(*split, self._heads + kv_heads, dim).swapaxes(1, 2)
            both = self.rope(both, offset, positions)
            q, k, v = both[:, : self._heads], both[:, self._heads :], qkv[..., self._q_and_k :]
        else:
            q, k, *own = self.qkv.split(qkv) if isinstance(qkv, np.ndarray) else qkv
            v = own[0] if own else k
            q, k, gate = self._queries_and_keys(q, k, split)
            if self.rope is not None:
                q, k = self.rope(q, offset, positions), self.rope(k, offset, positions)
        if self._growth is not None:
            q = q * self._growth_at(offset, split[1], positions)
        v = v.reshape(*split, kv_heads, dim).swapaxes(1, 2)
        if self._normalizes_values:
            v = self._normalized(v)
        if cache is not None:
            kept = cache.windows[layer]
            if kept is not None and (self._window is None or kept < self._window):
                raise ValueError(
                    f"{self!r}: the cache keeps {kept} tokens of layer {layer}, but {self._window or 'all'} are seen"
                )
        return self._attended(q, k, v, gate, mask, lead, by_row, cache, layer)

    def _attend_to_shared(
        self,
        qkv: NDArray[Any] | Sequence[NDArray[Any]],
        split: tuple[int, ...],
        offset: int,
        cache: KVCache | None,
        layer: int,
        mask: Mask,
        positions: ArrayLike | None,
        by_row: bool,
    ) -> NDArray[Any]:
        """As `attend`, to keys and values of another layer."""
        if cache is None:
            raise ValueError(f"{self!r}: keys and values of another layer are looked at; give a cache that has them")
        q = qkv if isinstance(qkv, np.ndarray) else qkv[0]
        lead = q.shape[:-1]
        q = q.reshape(*split, self._heads, self._dim).swapaxes(1, 2)
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.rope is not None:
            q = self.rope(q, offset, positions)
        if self._growth is not None:
            q = q * self._growth_at(offset, split[1], positions)
        return self._attended(q, None, None, None, mask, lead, by_row, cache, layer)

    def _normalized(self, v: NDArray[Any]) -> NDArray[Any]:
        """Values divided by the root of their mean square, in float32, and as wide as they came."""
        y = rms_norm(v.astype(np.float32, copy=False), None, 1 / self._dim, self._eps)
        return y.astype(v.dtype, copy=False)

    def _attended(
        self,
        q: NDArray[Any],
        k: NDArray[Any] | None,
        v: NDArray[Any] | None,
        gate: NDArray[Any] | None,
        mask: Mask,
        lead: tuple[int, ...],
        by_row: bool,
        cache: KVCache | None,
        layer: int,
    ) -> NDArray[Any]:
        """What heads give, beside each other; without k those of the cache are looked at, as they are."""
        dim, count = self._dim, q.shape[2]
        device = None if by_row else self.npu_for(q.shape[0], count, cache)
        if self.sinks is not None and self.sinks.shape != (self._heads,):
            raise ValueError(f"{self!r}: sinks has shape {self.sinks.shape}; there are {self._heads} heads")
        if cache is not None and device is None and type(mask) is str:
            how = options(
                self._heads, dim, scale=self._scale, window=self._window, softcap=self._softcap, sinks=self.sinks,
                batch=q.shape[0],
            )  # fmt: skip
            rows = q if q.dtype == np.float32 else float32_of(q, repr(self))
            y: NDArray[Any] = cache.attend(layer, how, rows, k, v)
            y = y if rows is q else rounded_to(y, q.dtype)
        else:
            if cache is not None:
                k, v = cache.shared(layer, count) if k is None or v is None else cache.update(layer, k, v)
            y = scaled_dot_product_attention(
                q, k, v, scale=self._scale, mask=mask, window=self._window, softcap=self._softcap, sinks=self.sinks,
                device=device,
            )  # fmt: skip
        y = y.swapaxes(1, 2)
        if gate is not None:
            shares, given = (each.astype(np.float32, copy=False) for each in (gate, y))
            y = rounded_to(layers.gate(shares, Function.SIGMOID, given), y.dtype)
        attended: NDArray[Any] = y.reshape(*lead, self._heads * dim)
        return attended

    def _attend_each(
        self,
        qkv: NDArray[Any] | Sequence[NDArray[Any]],
        batch: CacheBatch,
        layer: int,
        mask: Mask,
        positions: ArrayLike | None,
    ) -> NDArray[Any]:
        """As `attend`, for each sequence of a batch."""
        first = qkv if isinstance(qkv, np.ndarray) else qkv[0]
        if first.ndim != 2 or positions is not None or not isinstance(mask, str):
            raise ValueError(f"{self!r}: with a CacheBatch x is (T, hidden), and positions and mask are not given")
        return batch.each(
            len(first),
            lambda cache, rows: self.attend(
                qkv[rows] if isinstance(qkv, np.ndarray) else [each[rows] for each in qkv],
                cache=cache,
                layer=layer,
                mask=mask,
                by_row=True,
            ),
        )

    def _growth_at(self, offset: int, count: int, positions: ArrayLike | None) -> Float32:
        """Factors of queries, ``(..., T, 1)``."""
        assert self._growth is not None
        beta, length = self._growth
        at = np.arange(offset, offset + count) if positions is None else np.asarray(positions)
        factors: Float32 = (1 + beta * np.log1p(at // length)).astype(np.float32)[..., None]
        return factors

    def _queries_and_keys(
        self, q: NDArray[Any], k: NDArray[Any], split: tuple[int, ...]
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
        """Heads of both, normalized, and the gate."""
        dim, gate = self._dim, None
        if self._gate is not None:
            both = q.reshape(*split, self._heads, 2 * dim)
            q, gate = both[..., :dim], both[..., dim:]
        if self._qk_norm == "all" and self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q.reshape(*split, self._heads * dim))
            k = self.k_norm(k)
        q = q.reshape(*split, self._heads, dim).swapaxes(1, 2)
        k = k.reshape(*split, self._kv_heads, dim).swapaxes(1, 2)
        if self._qk_norm == "head" and self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, gate

    def npu_for(self, batch: int, count: int, cache: KVCache | None) -> Device | None:
        """The device that multiplies so many queries of each sequence, after what is in a cache; None: the CPU does.

        It may change as the cache grows.
        """
        if count < MANY or self._products == "cpu":
            return None
        before = 0 if cache is None else cache.offset if self._window is None else min(cache.offset, self._window)
        q, k = (batch, self._heads, count, self._dim), (batch, self._kv_heads, before + count, self._dim)
        return self._npu_for(q, k)

    @property
    def choosing(self) -> tuple[object, ...] | None:
        """What decides beside lengths whether an NPU attends, alike for like layers; None: that never changes."""
        weight = getattr(self.qkv.product, "weight", None)
        device = weight.device if isinstance(weight, PackedWeight) else None
        if self._products != "auto" or device is None or device.simulated:
            return None
        return self._heads, self._kv_heads, self._dim, self._window, device

    def _npu_for(self, q: tuple[int, ...], k: tuple[int, ...]) -> Device | None:
        """The device that multiplies queries and keys of such shapes, or None."""
        weight = getattr(self.qkv.product, "weight", None)
        device = weight.device if isinstance(weight, PackedWeight) else None
        if self._products == "npu":
            if device is None:
                raise ModelError(f"{self!r}: products='npu', but no NPU has its projections")
            return device
        if device is None or device.simulated:
            return None
        return device if NpuProducts.of(device, q, k, always=False) is not None else None
