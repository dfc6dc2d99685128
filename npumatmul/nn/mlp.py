"""`MLP`: the feed-forward network of a transformer block, and its activations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.host.executor import Function
from npumatmul.host.layers import gate
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.module import Module, check_number, check_size, float32_of, rounded_to
from npumatmul.nn.product import Float32
from npumatmul.ops import NpuArray
from npumatmul.ops.array.array import unread
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["ACTIVATIONS", "MLP", "ActivationName", "activate"]

ActivationName = Literal["silu", "gelu", "gelu_tanh", "relu", "relu2"]
_F32 = np.dtype(np.float32)
_ONE = np.float32(1)


#: Functions of float32 by their names.
ACTIVATIONS: dict[str, Function] = {
    "silu": Function.SILU,
    "gelu": Function.GELU,
    "gelu_tanh": Function.GELU_TANH,
    "relu": Function.RELU,
    "relu2": Function.RELU2,
}


def activate(x: NDArray[Any], name: ActivationName | str, up: NDArray[Any] | None = None) -> NDArray[Any]:
    """Apply an activation, and multiply by the other half of a gated network.

    Parameters
    ----------
    x : ndarray, shape (..., F)
        The gate, if `up` is given.
    name : str
        ``"silu"``, ``"gelu"`` (with erf), ``"gelu_tanh"``, ``"relu"`` or ``"relu2"`` (the square of relu).
    up : ndarray, shape (..., F), optional

    Returns
    -------
    ndarray, shape (..., F)
        A new array of the dtype of `x`, computed in float32.

    Raises
    ------
    ValueError
        If there is no such activation.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.nn import activate
    >>> activate(np.array([-2, 0, 3], np.float32), "relu2")
    array([0., 0., 9.], dtype=float32)
    """
    function = ACTIVATIONS.get(name)
    if function is None:
        raise ValueError(f"activate: no activation is called {name!r}; there are {', '.join(map(repr, ACTIVATIONS))}")
    whole = x if x.dtype == _F32 else float32_of(x, "activate")
    fits = type(up) is np.ndarray and up.dtype == _F32 and up.shape == x.shape
    y = gate(whole, function, up if fits else None)
    if up is not None and not fits:
        y *= up
    return y if x.dtype == _F32 else rounded_to(y, x.dtype)


class MLP(Module):
    """A feed-forward network: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate.

    Parameters
    ----------
    hidden_size : int
        Width of what comes in and goes out.
    intermediate_size : int
        Width inside.
    act : str
        As for `activate`: with a gate ``"silu"`` is SwiGLU, ``"gelu_tanh"`` or ``"gelu"`` GeGLU.
    gated : bool
        Whether there is a gate.
    bias : bool
        Whether projections have biases.
    fused : str, optional
        Name of the tensor that holds gate and up in one, in this order, such as ``"gate_up_proj"``.
    clamp : tuple of float, optional
        ``(alpha, limit)``: the network is gpt-oss's, ``down(gate * sigmoid(alpha * gate) * (up + 1))`` with gates of
        at most `limit` and ups within it.
    scheme, device
        As for `Linear`.

    Attributes
    ----------
    gate_up : LinearGroup
        With a gate.
    up_proj : Linear
        Without.
    down_proj : Linear

    Raises
    ------
    ValueError
        If a size is not positive, or there is no such activation.

    Notes
    -----
    Parameters are ``gate_proj.weight``, ``up_proj.weight``, ``down_proj.weight`` and their biases.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> mlp = nn.MLP(2, 4, scheme="float32")
    >>> shapes = mlp.parameter_shapes()
    >>> shapes
    {'gate_proj.weight': (4, 2), 'up_proj.weight': (4, 2), 'down_proj.weight': (2, 4)}
    >>> _ = mlp.load_state_dict({name: np.ones(shape) for name, shape in shapes.items()})
    >>> mlp(np.array([[0.5, 0.5]], np.float32)).round(3)
    array([[2.924, 2.924]], dtype=float32)
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        act: ActivationName | str = "silu",
        *,
        gated: bool = True,
        bias: bool = False,
        fused: str | None = None,
        clamp: tuple[float, float] | None = None,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        check_size("MLP", hidden_size=hidden_size, intermediate_size=intermediate_size)
        if act not in ACTIVATIONS:
            raise ValueError(f"MLP: no activation is called {act!r}; there are {', '.join(map(repr, ACTIVATIONS))}")
        if fused is not None and not gated:
            raise ValueError("MLP: without a gate there is nothing to be fused")
        if clamp is not None:
            check_number("MLP", alpha=clamp[0], limit=clamp[1])
            if not gated or act != "silu" or clamp[1] <= 0:
                raise ValueError(
                    f"MLP: clamp is {clamp}, act {act!r} and gated {gated}; a positive limit goes with a gated silu"
                )
        how: dict[str, Any] = {"scheme": scheme, "device": device}
        self._act, self._clamp = act, clamp
        self.gate_up: LinearGroup | None = None
        self.up_proj: Linear | None = None
        if gated:
            sizes = {"gate_proj": intermediate_size, "up_proj": intermediate_size}
            self.gate_up = LinearGroup(hidden_size, sizes, bias, fused=fused, **how)
        else:
            self.up_proj = Linear(hidden_size, intermediate_size, bias, **how)
        self.down_proj = Linear(intermediate_size, hidden_size, bias, **how)

    @property
    def recordable(self) -> bool:
        """Unless numpy computes what is between the products, or a projection does more than a step."""
        return self._clamp is None and all(each.recordable for _, each in self.children())

    def __repr__(self) -> str:
        down, gated = self.down_proj, self.gate_up is not None
        return f"MLP({down.out_features}, {down.in_features}, {self._act!r}, gated={gated})"

    def __call__(self, x: Any) -> Any:
        """Compute it.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (..., hidden_size)

        Returns
        -------
        ndarray or NpuArray, of the shape and dtype of `x`

        Raises
        ------
        ValueError
            If `x` has another width.
        """
        if self.gate_up is not None:
            parts = self.gate_up(x)
        else:
            assert self.up_proj is not None
            parts = (self.up_proj(x),)
        if type(x) is not NpuArray:
            return self.down_proj(self.activate(parts))
        y = self.activate([part.numpy(writable=False) for part in parts])
        return self.down_proj(unread(y, y.shape, x.device))

    def activate(self, parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """What stands between the projections: from what `gate_up` or `up_proj` gave to what `down_proj` takes."""
        if self._clamp is not None:  # by numpy: a recorder refuses what follows
            return _clamped(parts[0], parts[1], *self._clamp)
        return activate(parts[0], self._act, parts[1] if len(parts) == 2 else None)


def _clamped(gate: NDArray[Any], up: NDArray[Any], alpha: float, limit: float) -> NDArray[Any]:
    """The gated network of gpt-oss, in float32."""
    most = np.float32(limit)
    x: Float32 = np.minimum(float32_of(gate, "MLP"), most)
    with np.errstate(over="ignore"):  # as in silu
        y: Float32 = np.exp(np.float32(-alpha) * x)
    y += _ONE
    np.divide(x, y, out=y)
    y *= np.clip(float32_of(up, "MLP"), -most, most) + _ONE
    return rounded_to(y, gate.dtype)
