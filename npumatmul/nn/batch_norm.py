"""`BatchNorm1d` and `BatchNorm2d` as they are after training, and folding them into the layer before."""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import numpy as np

from npumatmul.device.device import Device
from npumatmul.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d, Transposed
from npumatmul.nn.convolution import Conv1d, Conv2d, Convolution
from npumatmul.nn.linear import Linear
from npumatmul.nn.module import Module, Take, check_number, check_size, float32_of, initial, rounded_to
from npumatmul.nn.product import FLOAT32, Float32, Pack
from npumatmul.ops import PackedWeight
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["BatchNorm1d", "BatchNorm2d", "fold_batch_norm"]

_Layer = TypeVar("_Layer", Linear, Conv1d, Conv2d, ConvTranspose1d, ConvTranspose2d)


class _BatchNorm(Module):
    """What both share: a factor and an offset for each channel."""

    unused: ClassVar[frozenset[str]] = frozenset({"num_batches_tracked"})
    _dims: ClassVar[tuple[int, ...]]
    _takes: ClassVar[str]

    def __init__(self, num_features: int, eps: float = 1e-5, *, affine: bool = True) -> None:
        called = type(self).__name__
        check_size(called, num_features=num_features)
        check_number(called, eps=eps)
        self.weight: Float32 | None = initial(1.0, num_features) if affine else None
        self.bias: Float32 | None = initial(0.0, num_features) if affine else None
        self.running_mean: Float32 = initial(0.0, num_features)
        self.running_var: Float32 = initial(1.0, num_features)
        self._eps, self._channels = float(eps), num_features
        self._factor, self._offset = (each.astype(np.float32) for each in self._folded())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._channels}, eps={self._eps:g}, affine={self.weight is not None})"

    @property
    def num_features(self) -> int:
        """Channels."""
        return self._channels

    def _folded(self) -> tuple[Any, Any]:
        """Factor and offset of each channel, in float64."""
        scale = 1 / np.sqrt(self.running_var.astype(np.float64) + self._eps)
        if self.weight is not None:
            scale = scale * self.weight
        offset = -self.running_mean * scale
        return scale, offset if self.bias is None else offset + self.bias

    def load_own(self, names: list[str], take: Take, pack: Pack | None, path: str) -> None:
        """Load parameters and running statistics."""
        variance = take("running_var") if "running_var" in names else self.running_var
        if not (variance.astype(np.float64) + self._eps > 0).all():
            raise ValueError(f"{path or repr(self)}: running_var + eps has to be positive everywhere")
        super().load_own(names, take, pack, path)
        self._factor, self._offset = (each.astype(np.float32) for each in self._folded())

    def __call__(self, x: Any) -> Any:
        """Normalize channels by what was found in training.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (B, C) or (B, C, L); of `BatchNorm2d` (B, C, H, W)

        Returns
        -------
        ndarray or NpuArray, of the shape and dtype of `x`
            A new array.

        Raises
        ------
        ValueError
            If it has other dimensions or channels.
        """
        if type(x) is not np.ndarray:
            return self._of_other(x)
        if x.ndim not in self._dims or x.shape[1] != self._channels:
            raise ValueError(f"{self!r} takes {self._takes}; the input has shape {x.shape}")
        shape = (-1,) + (1,) * (x.ndim - 2)
        y: Float32 = float32_of(x, repr(self)) * self._factor.reshape(shape)
        y += self._offset.reshape(shape)
        return rounded_to(y, x.dtype)


class BatchNorm1d(_BatchNorm):
    """Batch normalization with the statistics of training: a factor and an offset for each channel.

    Parameters
    ----------
    num_features : int
        Channels.
    eps : float
        Added to the variance.
    affine : bool
        Whether there are a weight and a bias.

    Raises
    ------
    ValueError
        If `num_features` is not positive, or `eps` not finite.

    Notes
    -----
    Parameters are ``weight``, ``bias``, ``running_mean`` and ``running_var``, ``(num_features,)``, as of
    `torch.nn.BatchNorm1d` in ``eval`` mode; ``num_batches_tracked`` is passed over. `fold_batch_norm` does without
    the layer. With v = 2**-24, f = weight / sqrt(running_var + eps) and o = bias - f running_mean, results are off by
    at most 3 v |f x| + 2 v |o|; a float16 result is rounded once more, by 2**-11 of itself.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> norm = nn.BatchNorm1d(2, eps=0.0)
    >>> _ = norm.load_state_dict({"running_mean": [1.0, 2.0], "running_var": [4.0, 1.0]}, strict=False)
    >>> norm(np.array([[3, 3]], np.float32))
    array([[1., 1.]], dtype=float32)
    """

    _dims: ClassVar[tuple[int, ...]] = (2, 3)
    _takes: ClassVar[str] = "(B, C) or (B, C, L)"


class BatchNorm2d(_BatchNorm):
    """Batch normalization of images with the statistics of training.

    Parameters
    ----------
    num_features, eps, affine
        As for `BatchNorm1d`.

    Raises
    ------
    ValueError
        As `BatchNorm1d`.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> nn.BatchNorm2d(3)(np.zeros((1, 3, 4, 4), np.float32)).shape
    (1, 3, 4, 4)
    """

    _dims: ClassVar[tuple[int, ...]] = (4,)
    _takes: ClassVar[str] = "(B, C, H, W)"


def fold_batch_norm(
    layer: _Layer,
    norm: BatchNorm1d | BatchNorm2d,
    *,
    scheme: Scheme | SchemeName | str | None = None,
    device: Device | str | None = None,
) -> _Layer:
    """Make one layer of a layer and the batch normalization behind it.

    Parameters
    ----------
    layer : Linear, Conv1d, Conv2d, ConvTranspose1d or ConvTranspose2d
        It is left as it is.
    norm : BatchNorm1d or BatchNorm2d
        Of as many channels as `layer` gives.
    scheme : Scheme or str, optional
        Of the new layer; that of `layer` by default.
    device : Device or str, optional
        Where its weight is put; that of `layer` by default.

    Returns
    -------
    Linear, Conv1d, Conv2d, ConvTranspose1d or ConvTranspose2d
        Of the class of `layer`, with a bias.

    Raises
    ------
    ValueError
        If channels differ.
    TypeError
        If there is nothing to fold into, or no batch normalization.
    ModelError
        If the weight of `layer` was not loaded yet, or cannot be read back.

    Notes
    -----
    A weight that is stored in few bits is read back as it is stored, and rounded again. To round it once, load it into
    a layer of scheme ``"float32"``, and give `scheme` here.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> layer, norm = nn.Linear.from_arrays(np.eye(2), scheme="float32"), nn.BatchNorm1d(2, eps=0.0)
    >>> _ = norm.load_state_dict({"running_mean": [1.0, 2.0], "running_var": [4.0, 1.0]}, strict=False)
    >>> nn.fold_batch_norm(layer, norm, scheme="w8a8")(np.array([[3, 3]], np.float32))
    array([[1., 1.]], dtype=float32)
    """
    if not isinstance(norm, _BatchNorm):
        raise TypeError(f"fold_batch_norm: {type(norm).__name__} is no batch normalization")
    if not isinstance(layer, Linear | Convolution):
        raise TypeError(f"fold_batch_norm: nothing can be folded into a {type(layer).__name__}")
    channels = layer.out_features if isinstance(layer, Linear) else layer.out_channels
    if channels != norm.num_features:
        raise ValueError(f"fold_batch_norm: {layer!r} gives {channels} channels, and {norm!r} takes others")
    factor, offset = norm._folded()
    weight = layer.own_values("weight", "").astype(np.float64)
    bias = offset if layer.bias is None else offset + layer.bias * factor
    if isinstance(layer, Transposed):  # (inputs, outputs of a group, kernel): groups follow one another in inputs
        groups = channels // weight.shape[1]
        parts = weight.reshape(groups, -1, *weight.shape[1:]) * factor.reshape(groups, 1, -1, *(1,) * (weight.ndim - 2))
        weight = parts.reshape(weight.shape)
    else:
        weight = weight * factor.reshape(-1, *(1,) * (weight.ndim - 1))
    kept, place = _represented(layer)
    how: Any = kept if scheme is None else scheme
    where = place if device is None else device
    made: Any
    if isinstance(layer, Linear):
        made = Linear(layer.in_features, channels, scheme=how, device=where)
    else:
        made = layer.emptied(True, how, where)
    made.load_state_dict({"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)})
    return made  # type: ignore[no-any-return]


def _represented(layer: Linear | Convolution) -> tuple[Scheme | str, Device | None]:
    """Scheme and device of a layer's weight."""
    products = [layer.product] if isinstance(layer, Linear) else layer.products
    weight = getattr(products[0], "weight", None) if products else None
    return (weight.scheme, weight.device) if isinstance(weight, PackedWeight) else (FLOAT32, None)
