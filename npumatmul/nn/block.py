"""`TransformerBlock`: attention, or what takes its place, and a feed-forward network, with norms around them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.host.layers import add, scale_by
from npumatmul.nn.attend import Mask
from npumatmul.nn.attention import Attention
from npumatmul.nn.cache import KVCache
from npumatmul.nn.cache_batch import CacheBatch
from npumatmul.nn.delta_net import GatedDeltaNet
from npumatmul.nn.linear import Linear
from npumatmul.nn.mlp import MLP, ActivationName, activate
from npumatmul.nn.module import Module, check_number
from npumatmul.nn.norm import LayerNorm, RMSNorm
from npumatmul.nn.product import Float32
from npumatmul.nn.recordable import passed
from npumatmul.nn.short_conv import ShortConv

__all__ = ["TransformerBlock"]


class TransformerBlock(Module):
    """A block of a language model: ``x + attention(norm(x))``, then ``x + mlp(norm(x))``.

    Parameters
    ----------
    attention : Attention, GatedDeltaNet or ShortConv
    mlp : MLP, or Module that maps rows to rows
    eps : float
        Of the norms.
    norm_offset : float
        Of the norms: 1.0 for the gemma family.
    post_norms : bool
        Whether what attention and network give is normalized, too, before it is added, as in the gemma family.
    residual_multiplier : float
        On what is added, as in the granite family.
    layer_norm : bool
        Whether norms are `LayerNorm` instead of `RMSNorm`.
    beside : tuple of Linear and Linear, optional
        What something beside the tokens' states passes through, as in Gemma 4: ``norm(up(act(gate(x)) * beside))`` is
        added behind the network.
    act : str
        Of `beside`.
    scalar : bool
        Whether all that leaves the block is multiplied by a parameter.

    Attributes
    ----------
    mixer : Attention, GatedDeltaNet or ShortConv
        What it was given as `attention`.
    self_attn, linear_attn, conv : Module or None
        The same, by the name that its parameters have, and None twice.
    mlp : Module
    input_layernorm, post_attention_layernorm : Module
        Before attention and network; with `post_norms` the second one is after attention.
    pre_feedforward_layernorm, post_feedforward_layernorm : Module or None
        With `post_norms`: before and after the network.
    per_layer_input_gate, per_layer_projection, post_per_layer_input_norm : Module or None
        With `beside`.
    layer_scalar : ndarray of float32, shape (1,), or None

    Raises
    ------
    ValueError
        If a constant is not finite.

    Notes
    -----
    Parameters are named as Hugging Face's: ``self_attn.q_proj.weight``, ``mlp.gate_proj.weight``,
    ``input_layernorm.weight`` and so on.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> how = {"scheme": "float32"}
    >>> block = nn.TransformerBlock(nn.Attention(8, 2, rope=nn.RoPE(4), **how), nn.MLP(8, 16, **how))
    >>> shapes = block.parameter_shapes()
    >>> len(shapes), shapes["post_attention_layernorm.weight"]
    (9, (8,))
    >>> _ = block.load_state_dict({name: np.zeros(shape) for name, shape in shapes.items()})
    >>> x = np.ones((3, 8), np.float32)
    >>> bool((block(x) == x).all())  # nothing is added to it
    True
    """

    def __init__(
        self,
        attention: Attention | GatedDeltaNet | ShortConv,
        mlp: MLP | Module,
        *,
        eps: float = 1e-6,
        norm_offset: float = 0.0,
        post_norms: bool = False,
        residual_multiplier: float = 1.0,
        layer_norm: bool = False,
        beside: tuple[Linear, Linear] | None = None,
        act: ActivationName | str = "gelu_tanh",
        scalar: bool = False,
    ) -> None:
        check_number("TransformerBlock", eps=eps, residual_multiplier=residual_multiplier)
        last = attention.o_proj if isinstance(attention, Attention) else attention.out_proj
        hidden = last.out_features

        def norm() -> Module:
            return LayerNorm(hidden, eps) if layer_norm else RMSNorm(hidden, eps, offset=norm_offset)

        self._multiplier = None if residual_multiplier == 1.0 else float(residual_multiplier)
        self.use(attention)
        self.mlp = mlp
        self.input_layernorm: Any = norm()
        self.post_attention_layernorm: Any = norm()
        self.pre_feedforward_layernorm: Any = norm() if post_norms else None
        self.post_feedforward_layernorm: Any = norm() if post_norms else None
        self._act = act
        self.per_layer_input_gate: Linear | None = None
        self.per_layer_projection: Linear | None = None
        if beside is not None:
            self.per_layer_input_gate, self.per_layer_projection = beside
        self.post_per_layer_input_norm: Any = norm() if beside else None
        self.layer_scalar: Float32 | None = np.ones(1, np.float32) if scalar else None

    def __repr__(self) -> str:
        return f"TransformerBlock({self.mixer!r}, {self.mlp!r})"

    @property
    def recordable(self) -> bool:
        """Unless one of its norms does more than a step; attention and network are asked themselves."""
        return all(each.recordable for _, each in self.children() if each is not self.mixer and each is not self.mlp)

    def use(self, attention: Attention | GatedDeltaNet | ShortConv) -> None:
        """Mix tokens with another module from now on."""
        self.self_attn: Attention | None = attention if isinstance(attention, Attention) else None
        self.linear_attn: GatedDeltaNet | None = attention if isinstance(attention, GatedDeltaNet) else None
        self.conv: ShortConv | None = attention if isinstance(attention, ShortConv) else None

    @property
    def mixer(self) -> Attention | GatedDeltaNet | ShortConv:
        """What mixes tokens with those before them."""
        found = self.self_attn or self.linear_attn or self.conv
        assert found is not None
        return found

    def __call__(
        self,
        x: Any,
        *,
        cache: KVCache | CacheBatch | None = None,
        layer: int = 0,
        mask: Mask = "causal",
        positions: ArrayLike | None = None,
        beside: NDArray[Any] | None = None,
    ) -> Any:
        """Run tokens through the block.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (T, hidden) or (B, T, hidden)
        cache, layer, mask, positions
            As for `Attention`. Where something else takes its place, the mask is causal, and positions mean nothing.
        beside : ndarray, shape (T, n) or (B, T, n), optional
            For blocks that were made with `beside`.

        Returns
        -------
        ndarray or NpuArray, of the shape and dtype of `x`
            A new array.

        Raises
        ------
        ValueError
            As `Attention`, or if something else takes its place and the mask is not causal.
        """
        if type(x) is not np.ndarray:
            return self._of_other(x, cache=cache, layer=layer, mask=mask, positions=positions, beside=beside)
        mixer, normed = self.mixer, self.input_layernorm(x)
        if isinstance(mixer, Attention):
            attended = passed(
                mixer, normed, lambda x, kept: mixer(x, cache=kept, layer=layer, mask=mask, positions=positions), cache
            )
        elif isinstance(mask, str) and mask == "causal":
            attended = passed(mixer, normed, lambda x, kept: mixer(x, cache=kept, layer=layer), cache)
        else:
            raise ValueError(f"{self!r} looks back at all tokens and never ahead; mask has to be 'causal'")
        x = self.after_attention(x, attended)
        mlp: Any = self.mlp
        x = self.after_mlp(x, passed(mlp, self.before_mlp(x), lambda x, _: mlp(x)))
        if self.per_layer_input_gate is not None:
            x = self._with_beside(x, beside)
        if self.layer_scalar is not None:
            x = self._scaled(x)
        return x

    def _scaled(self, x: Any) -> Any:
        """All that leaves the block, multiplied by its parameter, which is read anew each time."""
        scalar = self.layer_scalar
        assert scalar is not None
        if x.dtype != np.float32:
            return x * scalar
        return scale_by(x, scalar)

    def _with_beside(self, x: Any, beside: NDArray[Any] | None) -> Any:
        """The sum with what comes of a row beside each token: a new array."""
        assert self.per_layer_input_gate is not None
        assert self.per_layer_projection is not None
        if beside is None:
            raise ValueError(f"{self!r} needs something beside the states of its tokens; give beside")
        inner = activate(self.per_layer_input_gate(x), self._act, beside)
        return _added(x, self.post_per_layer_input_norm(self.per_layer_projection(inner)), None)

    def after_attention(self, x: Any, attended: Any) -> Any:
        """The sum of what came in and what attention gave: a new array."""
        if self.post_feedforward_layernorm is not None:
            attended = self.post_attention_layernorm(attended)
        return _added(x, attended, self._multiplier)

    def before_mlp(self, x: Any) -> Any:
        """What goes into the feed-forward network."""
        if self.pre_feedforward_layernorm is not None:
            return self.pre_feedforward_layernorm(x)
        return self.post_attention_layernorm(x)

    def after_mlp(self, x: Any, y: Any) -> Any:
        """The sum with what the network gave: a new array."""
        if self.post_feedforward_layernorm is not None:
            y = self.post_feedforward_layernorm(y)
        return _added(x, y, self._multiplier)


def _added(x: Any, y: Any, factor: float | None) -> Any:
    """The sum with `y`, or with a product of that and a number, as narrow as `y`: bfloat16 would become float32."""
    if x.dtype == y.dtype == np.float32:
        return add(x, y, 1.0 if factor is None else factor)
    return x + (y if factor is None else (y * factor).astype(y.dtype, copy=False))
