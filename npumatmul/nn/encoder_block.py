"""`EncoderBlock`: attention to both sides and a feed-forward network, with a `LayerNorm` before or after each."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from npumatmul.nn.attend import Mask
from npumatmul.nn.attention import Attention
from npumatmul.nn.mlp import MLP
from npumatmul.nn.module import Module, check_number
from npumatmul.nn.norm import LayerNorm

__all__ = ["EncoderBlock"]


class EncoderBlock(Module):
    """A block of an encoder.

    With norms after: ``x = norm(x + attention(x))``, then ``norm(x + mlp(x))``, as in BERT. With norms before:
    ``x + attention(norm(x))``, then ``x + mlp(norm(x))``, as in ModernBERT.

    Parameters
    ----------
    attention : Attention
    mlp : MLP, or Module that maps rows to rows
    norms : {"after", "before"}
        Where they are.
    eps : float
        Of the norms.
    norm_bias : bool
        Whether norms have biases.
    first_norm : bool
        False leaves out the norm of attention: of a first block with norms before, to which normalized embeddings come.

    Attributes
    ----------
    self_attn : Attention
    mlp : Module
    attn_norm, mlp_norm : LayerNorm
        Of attention and of the network; the first may be None.

    Raises
    ------
    ValueError
        If there is no such place for norms, or `eps` is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> how = {"bias": True, "scheme": "float32"}
    >>> block = nn.EncoderBlock(nn.Attention(8, 2, **how), nn.MLP(8, 16, "gelu", gated=False, **how))
    >>> shapes = block.parameter_shapes()
    >>> _ = block.load_state_dict({name: np.ones(shape) for name, shape in shapes.items()})
    >>> block(np.eye(3, 8, dtype=np.float32)).shape
    (3, 8)
    """

    def __init__(
        self,
        attention: Attention,
        mlp: MLP | Module,
        *,
        norms: Literal["after", "before"] = "after",
        eps: float = 1e-12,
        norm_bias: bool = True,
        first_norm: bool = True,
    ) -> None:
        check_number("EncoderBlock", eps=eps)
        if norms not in ("after", "before"):
            raise ValueError(f"EncoderBlock: norms is {norms!r}; it can be 'after' or 'before'")
        if norms == "after" and not first_norm:
            raise ValueError("EncoderBlock: first_norm=False leaves out a norm before attention; norms are after it")
        hidden = attention.o_proj.out_features
        self._before = norms == "before"
        self.self_attn, self.mlp = attention, mlp
        self.attn_norm: LayerNorm | None = LayerNorm(hidden, eps, norm_bias) if first_norm else None
        self.mlp_norm = LayerNorm(hidden, eps, norm_bias)

    def __repr__(self) -> str:
        return f"EncoderBlock({self.self_attn!r}, {self.mlp!r}, norms={'before' if self._before else 'after'!r})"

    def __call__(self, x: Any, *, mask: Mask = None, positions: ArrayLike | None = None) -> Any:
        """Run tokens through the block.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (T, hidden) or (B, T, hidden)
        mask, positions
            As for `Attention`; by default all tokens see each other. Of texts that were filled up to one length, a mask
            ``(B, 1, 1, T)`` says where there are tokens.

        Returns
        -------
        ndarray or NpuArray, of the shape and dtype of `x`
            A new array.

        Raises
        ------
        ValueError
            As `Attention`.
        """
        if type(x) is not np.ndarray:
            return self._of_other(x, mask=mask, positions=positions)
        x = self.after_attention(x, self.self_attn(self.before_attention(x), mask=mask, positions=positions))
        return self.after_mlp(x, self.mlp(self.before_mlp(x)))  # type: ignore[operator]

    def before_attention(self, x: Any) -> Any:
        """What goes into attention."""
        return self.attn_norm(x) if self._before and self.attn_norm is not None else x

    def after_attention(self, x: Any, attended: Any) -> Any:
        """What came in and what attention gave, together: a new array."""
        y = x + attended
        return y if self._before or self.attn_norm is None else self.attn_norm(y)

    def before_mlp(self, x: Any) -> Any:
        """What goes into the feed-forward network."""
        return self.mlp_norm(x) if self._before else x

    def after_mlp(self, x: Any, y: Any) -> Any:
        """The same with what the network gave; the memory of `x` may be taken for it."""
        x += y
        return x if self._before else self.mlp_norm(x)
