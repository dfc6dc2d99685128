"""`CrossAttention`: attention of one sequence to another, whose keys and values are made once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from npumatmul.device.device import Device
from npumatmul.nn.attend import Mask, scaled_dot_product_attention
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.module import Module, check_number, check_size
from npumatmul.ops import NpuArray
from npumatmul.ops.array.array import unread
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["CrossAttention", "KeysAndValues"]

_KEPT = (np.dtype(np.float16), np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16))


class KeysAndValues(NamedTuple):
    """What a sequence is to those that attend to it; `CrossAttention.keep` makes it.

    Attributes
    ----------
    keys, values : ndarray, shape (S, kv_heads * head_dim) or (B, S, kv_heads * head_dim), by heads
        ``(B, kv_heads, S, head_dim)``.
    """

    keys: NDArray[Any]
    values: NDArray[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.keys.nbytes + self.values.nbytes


class CrossAttention(Module):
    """Attention to another sequence, such as a decoder's to what an encoder made.

    Parameters
    ----------
    hidden_size : int
        Width of what attends.
    heads : int
        Query heads.
    kv_heads : int, optional
        Heads of keys and values; as many by default.
    head_dim : int, optional
        Values of each head; ``hidden_size / heads`` by default.
    kv_size : int, optional
        Width of what is attended to; `hidden_size` by default.
    bias : bool
        Whether q, k and v have biases.
    out_bias : bool, optional
        Whether the last projection has one; as `bias` by default.
    scale : float, optional
        On scores; ``1 / sqrt(head_dim)`` by default.
    scheme, device
        As for `Linear`.

    Attributes
    ----------
    q_proj, o_proj : Linear
    kv : LinearGroup

    Raises
    ------
    ValueError
        If sizes do not go together.

    Notes
    -----
    Parameters are ``q_proj.weight``, ``k_proj.weight``, ``v_proj.weight``, ``o_proj.weight`` and their biases; keys and
    values are one product, which `pack` of `load_state_dict` is given by the path of ``kv``.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> attention = nn.CrossAttention(8, heads=2, kv_size=6, scheme="float32")
    >>> rng = np.random.default_rng(0)
    >>> state = {name: rng.standard_normal(shape) for name, shape in attention.parameter_shapes().items()}
    >>> _ = attention.load_state_dict(state)
    >>> kept = attention.keep(rng.standard_normal((1, 10, 6), np.float32))
    >>> attention(rng.standard_normal((1, 3, 8), np.float32), kept).shape
    (1, 3, 8)
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        *,
        kv_size: int | None = None,
        bias: bool = False,
        out_bias: bool | None = None,
        scale: float | None = None,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        kv_heads = heads if kv_heads is None else kv_heads
        kv_size = hidden_size if kv_size is None else kv_size
        check_size("CrossAttention", hidden_size=hidden_size, heads=heads, kv_heads=kv_heads, kv_size=kv_size)
        if head_dim is None:
            if hidden_size % heads:
                raise ValueError(
                    f"CrossAttention: hidden_size {hidden_size} is no multiple of {heads} heads; give head_dim"
                )
            head_dim = hidden_size // heads
        check_size("CrossAttention", head_dim=head_dim)
        if heads % kv_heads:
            raise ValueError(f"CrossAttention: {heads} heads cannot share {kv_heads} heads of keys evenly")
        if scale is not None:
            check_number("CrossAttention", scale=scale)
        self._heads, self._kv_heads, self._dim = heads, kv_heads, head_dim
        self._scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
        how: dict[str, Any] = {"scheme": scheme, "device": device}
        self.q_proj = Linear(hidden_size, heads * head_dim, bias, **how)
        sizes: Mapping[str, int] = {"k_proj": kv_heads * head_dim, "v_proj": kv_heads * head_dim}
        self.kv = LinearGroup(kv_size, sizes, bias, **how)
        self.o_proj = Linear(heads * head_dim, hidden_size, bool(bias if out_bias is None else out_bias), **how)

    def __repr__(self) -> str:
        sizes = f"{self._heads} heads over {self._kv_heads} of {self._dim}"
        return f"CrossAttention({self.o_proj.out_features}, {sizes})"

    def keep(self, states: Any, dtype: DTypeLike = np.float32) -> KeysAndValues:
        """Make keys and values of a sequence, for all that will attend to it.

        Parameters
        ----------
        states : ndarray or NpuArray, shape (S, kv_size) or (B, S, kv_size)
        dtype : data-type
            In which they are kept: float32, float16 or bfloat16.

        Raises
        ------
        ValueError
            If `states` has another width, or no positions.
        TypeError
            If `dtype` is another one.
        """
        kind = np.dtype(dtype)
        if kind not in _KEPT:
            raise TypeError(f"CrossAttention.keep: dtype is {kind}; it can be float32, float16 or bfloat16")
        if len(states.shape) not in (2, 3) or 0 in states.shape:
            raise ValueError(f"CrossAttention.keep takes (S, width) or (B, S, width); states have shape {states.shape}")
        both = self.kv.whole(states)
        whole = both.numpy(writable=False) if isinstance(both, NpuArray) else both
        lead = (1, *whole.shape[:-1])[-2:]
        keys, values = (
            np.ascontiguousarray(part.reshape(*lead, self._kv_heads, self._dim).swapaxes(1, 2), kind)
            for part in self.kv.split(whole)
        )
        return KeysAndValues(keys, values)

    def __call__(self, x: Any, kept: KeysAndValues, *, mask: Mask = None) -> Any:
        """Attend.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (T, hidden_size) or (B, T, hidden_size)
        kept : KeysAndValues
            Of one sequence, or of B.
        mask : None or ndarray
            As for `scaled_dot_product_attention`.

        Returns
        -------
        ndarray or NpuArray, of the shape and dtype of `x`

        Raises
        ------
        ValueError
            If shapes do not fit.
        """
        q = self.q_proj(x)
        if type(x) is not NpuArray:
            return self.o_proj(self._attend(q, kept, mask))
        y = self._attend(q.numpy(writable=False), kept, mask)
        return self.o_proj(unread(np.ascontiguousarray(y), y.shape, x.device))

    def _attend(self, q: NDArray[Any], kept: KeysAndValues, mask: Mask) -> NDArray[Any]:
        """Everything between the projections."""
        lead = q.shape[:-1]
        keys, values = kept
        if len(lead) not in (1, 2) or ((1, *lead)[-2] not in (len(keys), 0) and len(keys) != 1):
            raise ValueError(
                f"{self!r} takes (T, hidden) or (B, T, hidden) for keys of B sequences; queries have shape {q.shape}, "
                f"and there are {len(keys)}"
            )
        heads = q.reshape(*(1, *lead)[-2:], self._heads, self._dim).swapaxes(1, 2)
        if len(keys) != len(heads):  # queries of several sequences attend to one
            keys, values = (np.broadcast_to(each, (len(heads), *each.shape[1:])) for each in (keys, values))
        y = scaled_dot_product_attention(heads, keys, values, scale=self._scale, mask=mask)
        attended: NDArray[Any] = y.swapaxes(1, 2).reshape(*lead, self._heads * self._dim)
        return attended
