"""`ShortConv`: a gated convolution over the last few tokens, in the place of attention."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.nn.cache import KVCache
from npumatmul.nn.cache_batch import CacheBatch
from npumatmul.nn.causal_conv import CausalConv
from npumatmul.nn.linear import Linear
from npumatmul.nn.module import Module, check_size, float32_of, rounded_to
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["ShortConv"]


class ShortConv(Module):
    """What LFM2 has in most layers: ``out_proj(c * conv(b * x))`` where ``in_proj`` gives b, c and x.

    Parameters
    ----------
    hidden_size : int
        Width of what comes in and goes out.
    kernel : int
        Tokens that the convolution looks at, itself among them.
    bias : bool
        Whether projections and convolution have biases.
    scheme, device
        As for `Linear`.

    Attributes
    ----------
    in_proj, out_proj : Linear
    conv : Module

    Raises
    ------
    ValueError
        If a size is not positive, or the kernel has 1 token.

    Notes
    -----
    Parameters are named as Hugging Face's: ``in_proj.weight``, ``conv.weight``, ``out_proj.weight`` and their biases.
    What lies between the projections is computed in float32: with v = 2**-24 off by at most (kernel + 3) v of the sum
    of the magnitudes of what is added; a float16 result is rounded once more, by 2**-11 of itself.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> layer = nn.ShortConv(4, 3, scheme="float32")
    >>> shapes = layer.parameter_shapes()
    >>> shapes
    {'in_proj.weight': (12, 4), 'conv.weight': (4, 1, 3), 'out_proj.weight': (4, 4)}
    >>> rng = np.random.default_rng(0)
    >>> _ = layer.load_state_dict({name: rng.standard_normal(shape) for name, shape in shapes.items()})
    >>> x = rng.standard_normal((1, 5, 4), np.float32)
    >>> cache = nn.KVCache(1, 1, 1, states=[layer.state_shapes])
    >>> steps = [layer(x[:, i : i + 1], cache=cache) for i in range(5)]
    >>> np.allclose(np.concatenate(steps, axis=1), layer(x), atol=1e-5)
    True
    """

    def __init__(
        self,
        hidden_size: int,
        kernel: int = 3,
        *,
        bias: bool = False,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        check_size("ShortConv", hidden_size=hidden_size, kernel=kernel)
        how: dict[str, Any] = {"scheme": scheme, "device": device}
        self.in_proj = Linear(hidden_size, 3 * hidden_size, bias, **how)
        self.conv = CausalConv(hidden_size, kernel, bias)
        self.out_proj = Linear(hidden_size, hidden_size, bias, **how)
        self._hidden, self._kernel = hidden_size, kernel

    def __repr__(self) -> str:
        return f"ShortConv({self._hidden}, {self._kernel})"

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of what a `KVCache` keeps of each sequence."""
        return (self.conv.state_shape,)

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
        return self.out_proj(self.mix(self.in_proj(x), cache=cache, layer=layer))

    def mix(
        self, projected: NDArray[Any], *, cache: KVCache | CacheBatch | None = None, layer: int = 0
    ) -> NDArray[Any]:
        """Everything between the projections.

        Parameters
        ----------
        projected : ndarray, shape (T, N) or (B, T, N)
            What `in_proj` gave.
        cache, layer
            As for a call.

        Returns
        -------
        ndarray, shape (..., hidden_size)
            What goes to `out_proj`.
        """
        if isinstance(cache, CacheBatch):
            return cache.each(len(projected), lambda own, rows: self.mix(projected[rows], cache=own, layer=layer))
        if projected.ndim not in (2, 3):
            raise ValueError(f"{self!r} takes (T, hidden) or (B, T, hidden); the input has {projected.ndim} dimensions")
        rows = float32_of(projected, "ShortConv")
        rows = rows[None] if rows.ndim == 2 else rows
        b, c, x = (rows[..., i * self._hidden : (i + 1) * self._hidden] for i in range(3))
        y, last = self.conv(b * x, None if cache is None else cache.state(layer)[0])
        if cache is not None:
            cache.set_state(layer, rows.shape[1], (last,))
        y *= c
        return rounded_to(y.reshape(*projected.shape[:-1], self._hidden), projected.dtype)
