"""`ConvTranspose1d`: a transposed convolution as a product of its inputs, whose results are added up."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.device import Device
from npumatmul.nn.convolution import Convolution, Sizes
from npumatmul.nn.module import check_size, floats
from npumatmul.nn.product import Float32
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["ConvTranspose1d"]


class ConvTranspose1d(Convolution):
    """A transposed convolution over one dimension: each value becomes a window, and windows are added up.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels that come in and go out.
    kernel_size, stride : int
        Values of a window, and how far windows are apart.
    padding : int
        Values that are left out on each side of the result.
    output_padding : int
        How many more there are at its end; less than `stride` or than `dilation`.
    groups : int
        As for `Conv1d`.
    bias : bool
        Whether there is one.
    dilation : int
        How far the values of a window are apart.
    scheme, device
        As for `Linear`.

    Raises
    ------
    ValueError, TypeError
        If sizes do not go together, or there is no such scheme for floats.

    Notes
    -----
    Parameters are ``weight``, ``(in_channels, out_channels / groups, kernel_size)``, and ``bias``, as of
    `torch.nn.ConvTranspose1d`. The product has K = in_channels / groups and N = kernel_size x out_channels / groups, in
    this order; what it gives is added up in float32, 8 MiB at a time. With v = 2**-24 results are off by at most the
    sum of the products' bounds (`npumatmul.matmul`) and (kernel_size + 1) v times the sum of magnitudes.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> layer = nn.ConvTranspose1d.from_arrays(np.array([[[1.0, 0.5]]]), stride=2, scheme="float32")
    >>> layer(np.array([[2, 4]], np.float32))
    array([[2., 1., 4., 2.]], dtype=float32)
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes = 0,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Sizes = 1,
        *,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        if isinstance(padding, str):
            raise ValueError(f"ConvTranspose1d: padding is {padding!r}; it has to be a number of values")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, scheme, device
        )  # fmt: skip
        self._more = self._sizes("output_padding", output_padding, least=0)
        if self._more[0] and self._more[0] >= max(self._stride[0], self._dilation[0]):
            raise ValueError(
                f"ConvTranspose1d: output_padding is {self._more[0]}; it has to be less than the stride "
                f"({self._stride[0]}) or the dilation ({self._dilation[0]})"
            )

    def _weight_shape(self) -> tuple[int, ...]:
        return (self._in, self._out // self._groups, *self._kernel)

    def _matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        matrix: NDArray[Any] = weight.transpose(2, 1, 0).reshape(-1, len(weight))
        return matrix

    def _part(self, matrix: Float32) -> Float32:
        whole = matrix.reshape(*self._kernel, self._out // self._groups, -1)
        return np.ascontiguousarray(whole.transpose(2, 1, 0))

    @classmethod
    def from_arrays(
        cls, weight: ArrayLike, bias: ArrayLike | None = None, *, groups: int = 1, **options: Any
    ) -> ConvTranspose1d:
        """Make a layer of a weight ``(in_channels, out_channels / groups, kernel_size)`` and a bias.

        Parameters
        ----------
        weight, bias : array_like
        groups : int
        **options
            `stride`, `padding` and so on, as of the class.

        Raises
        ------
        ValueError, TypeError
            As the class, and if shapes do not fit together.

        Examples
        --------
        >>> import numpy as np
        >>> from npumatmul import nn
        >>> nn.ConvTranspose1d.from_arrays(np.ones((4, 2, 3)))(np.ones((4, 1), np.float32)).shape
        (2, 3)
        """
        w = floats(weight, "weight")
        if w.ndim != 3 or 0 in w.shape:
            raise ValueError(
                "ConvTranspose1d.from_arrays: a weight is (in_channels, out_channels / groups, kernel_size); "
                f"this has shape {w.shape}"
            )
        check_size("ConvTranspose1d", groups=groups)
        made = cls(w.shape[0], w.shape[1] * groups, w.shape[2], groups=groups, bias=bias is not None, **options)
        return cls._made(made, w, bias)

    def _places(self, sizes: tuple[int, ...]) -> list[int]:
        return list(sizes)

    def _values_of_a_place(self) -> int:
        return self._kernel[0] * self._out

    def _rows(self, x: NDArray[Any]) -> Float32:
        (k,), (s,), (d,), ((before, behind),) = self._kernel, self._stride, self._dilation, self._sides
        batch, length, _ = x.shape
        size = (length - 1) * s + d * (k - 1) + 1 + self._more[0]
        if length < 1 or size - before - behind < 1:
            raise ValueError(f"{self!r}: nothing is left of the result of {length} values after its padding")
        whole: Float32 = np.zeros((batch, size, self._out), np.float32)
        for at, places in self._pieces((batch, length)):
            made = self._windows(np.ascontiguousarray(x[at, places], np.float32))
            first, count = places.start * s, places.stop - places.start
            for j in reversed(range(k)):  # so that inputs are added in their order, however they are cut into pieces
                start = first + j * d
                whole[at, start : start + (count - 1) * s + 1 : s] += made[:, :, j]
        y = whole[:, before : size - behind]
        if self._bias is not None:
            y = y + self._bias
        return y

    def _windows(self, x: Float32) -> Float32:
        """The window that each of some values becomes, ``(B, L, kernel_size, out_channels)``."""
        b, length, _ = x.shape
        inputs, outputs = self._in // self._groups, self._out // self._groups
        if self._own is not None:
            weight = self._own.transpose(2, 0, 1)  # (kernel_size, groups, outputs of each)
            each: Float32 = x[:, :, None, :, None] * weight
            return each.reshape(b, length, -1, self._out)
        made: Float32 = np.empty((b, length, self._kernel[0], self._out), np.float32)
        for i, product in enumerate(self._products):
            rows = np.ascontiguousarray(x[..., i * inputs : (i + 1) * inputs]).reshape(-1, inputs)
            made[..., i * outputs : (i + 1) * outputs] = product(rows).reshape(b, length, -1, outputs)
        return made
