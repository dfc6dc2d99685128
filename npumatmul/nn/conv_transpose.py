"""`ConvTranspose1d` and `ConvTranspose2d`: products of inputs, each a window; windows are added up."""

from __future__ import annotations

import math
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.device import Device
from npumatmul.nn.convolution import Convolution, Sizes
from npumatmul.nn.module import check_size, floats
from npumatmul.nn.product import Float32
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["ConvTranspose1d", "ConvTranspose2d", "Transposed"]

_Self = TypeVar("_Self", bound="Transposed")


class Transposed(Convolution):
    """A transposed convolution.

    Parameters, attributes and errors are those of its subclasses.
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
            raise ValueError(f"{type(self).__name__}: padding is {padding!r}; it has to be a number of values")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, scheme, device
        )  # fmt: skip
        self._more = self._sizes("output_padding", output_padding, least=0)
        for more, stride, dilation in zip(self._more, self._stride, self._dilation, strict=True):
            if more and more >= max(stride, dilation):
                raise ValueError(
                    f"{type(self).__name__}: output_padding is {self._shown(self._more)}; it has to be less than the "
                    f"stride ({stride}) or the dilation ({dilation})"
                )

    def _weight_shape(self) -> tuple[int, ...]:
        return (self._in, self._out // self._groups, *self._kernel)

    def _matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(weight, (0, 1), (-1, -2)).reshape(-1, len(weight))

    def _part(self, matrix: Float32) -> Float32:
        whole = matrix.reshape(*self._kernel, self._out // self._groups, -1)
        return np.ascontiguousarray(np.moveaxis(whole, (-1, -2), (0, 1)))

    @classmethod
    def from_arrays(
        cls: type[_Self], weight: ArrayLike, bias: ArrayLike | None = None, *, groups: int = 1, **options: Any
    ) -> _Self:
        """Make a layer of a weight ``(in_channels, out_channels / groups, *kernel_size)`` and a bias.

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
        if w.ndim != cls._dims + 2 or 0 in w.shape:
            raise ValueError(
                f"{cls.__name__}.from_arrays: a weight is (in_channels, out_channels / groups, *kernel_size), with "
                f"{cls._dims} sizes of the kernel; this has shape {w.shape}"
            )
        check_size(cls.__name__, groups=groups)
        made = cls(w.shape[0], w.shape[1] * groups, w.shape[2:], groups=groups, bias=bias is not None, **options)
        return cls._made(made, w, bias)

    def _places(self, sizes: tuple[int, ...]) -> list[int]:
        return list(sizes)

    def _values_of_a_place(self) -> int:
        return math.prod(self._kernel) * self._out

    def _rows(self, x: NDArray[Any]) -> Float32:
        batch, *lengths, _ = x.shape
        steps = list(zip(self._kernel, self._stride, self._dilation, strict=True))
        sizes = [(n - 1) * s + d * (k - 1) + 1 + m for n, (k, s, d), m in zip(lengths, steps, self._more, strict=True)]
        left = [size - before - behind for size, (before, behind) in zip(sizes, self._sides, strict=True)]
        if min(lengths) < 1 or min(left) < 1:
            many = f"{lengths[0]} values" if self._dims == 1 else f"{tuple(lengths)} values"
            raise ValueError(f"{self!r}: nothing is left of the result of {many} after its padding")
        whole: Float32 = np.zeros((batch, *sizes, self._out), np.float32)
        for piece in self._pieces((batch, *lengths)):
            made = self._windows(np.ascontiguousarray(x[piece], np.float32))
            at, *places = piece
            before = (slice(None),) * (1 + self._dims)
            for within in reversed(list(np.ndindex(*self._kernel))):  # so that inputs are added in their order,
                into = [  # however they are cut into pieces
                    _every(place, s, j * d) for place, (_, s, d), j in zip(places, steps, within, strict=True)
                ]
                whole[(at,) + tuple(into)] += made[before + within]  # noqa: RUF005
        inside = tuple(slice(before, before + n) for n, (before, _) in zip(left, self._sides, strict=True))
        y = whole[(slice(None),) + inside]  # noqa: RUF005
        if self._bias is not None:
            y = y + self._bias
        return y

    def _windows(self, x: Float32) -> Float32:
        """The window that each of some values becomes, ``(B, *sizes, *kernel_size, out_channels)``."""
        shape, inputs, outputs = x.shape[:-1], self._in // self._groups, self._out // self._groups
        if self._own is not None:
            weight = np.moveaxis(self._own, (0, 1), (-2, -1))  # (kernel_size, groups, outputs of each)
            each: Float32 = x.reshape(*shape, *(1,) * self._dims, self._groups, 1) * weight
            return each.reshape(*shape, *self._kernel, self._out)
        made: Float32 = np.empty((*shape, *self._kernel, self._out), np.float32)
        for i, product in enumerate(self._products):
            rows = np.ascontiguousarray(x[..., i * inputs : (i + 1) * inputs]).reshape(-1, inputs)
            made[..., i * outputs : (i + 1) * outputs] = product(rows).reshape(*shape, *self._kernel, outputs)
        return made


def _every(place: slice, step: int, first: int) -> slice:
    """Where windows put one of their values that belong to some inputs."""
    start = place.start * step + first
    return slice(start, start + (place.stop - place.start - 1) * step + 1, step)


class ConvTranspose1d(Transposed):
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


class ConvTranspose2d(Transposed):
    """A transposed convolution over two dimensions.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels that come in and go out.
    kernel_size, stride, padding, output_padding, dilation : int or tuple of int
        As for `ConvTranspose1d`, for both directions or for each.
    groups, bias, scheme, device
        As for `ConvTranspose1d`.

    Raises
    ------
    ValueError, TypeError
        If sizes do not go together, or there is no such scheme for floats.

    Notes
    -----
    Parameters are ``weight``, ``(in_channels, out_channels / groups, *kernel_size)``, and ``bias``, as of
    `torch.nn.ConvTranspose2d`. All else is as for `ConvTranspose1d`, with as many values of a window as the kernel has.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> layer = nn.ConvTranspose2d.from_arrays(np.array([[[[1.0, 0.5]]]]), stride=(1, 2), scheme="float32")
    >>> layer(np.array([[[2, 4]]], np.float32))
    array([[[2., 1., 4., 2.]]], dtype=float32)
    """

    _dims: ClassVar[int] = 2
