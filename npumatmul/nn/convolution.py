"""`Conv1d` and `Conv2d`: convolutions as products of their windows, and what all convolutions share."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from npumatmul.device.device import Device
from npumatmul.errors import ModelError, NotFiniteError
from npumatmul.nn.module import Module, Take, check_size, float32_of, floats, rounded_to
from npumatmul.nn.product import Float32, Pack, PackedProduct, Product, check_scheme, packed_by, product_of
from npumatmul.nn.windows import PADDING_MODES, PaddingMode, padded, pieces, positions, windows
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["MOST", "Conv1d", "Conv2d", "Convolution", "Sizes"]

_Self = TypeVar("_Self", bound="Convolution")
Sizes = int | Sequence[int]

#: Values of windows, or of what a transposed convolution adds up, that are in memory at once: 8 MiB of float32.
MOST = 1 << 21


class Convolution(Module):
    """What convolutions share: sizes, a product for each group, loading, and how they are called."""

    _dims: ClassVar[int] = 1

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes,
        padding: Sizes | str,
        dilation: Sizes,
        groups: int,
        bias: bool,
        scheme: Scheme | SchemeName | str,
        device: Device | str | None,
    ) -> None:
        called = type(self).__name__
        check_size(called, in_channels=in_channels, out_channels=out_channels, groups=groups)
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
            if value % groups:
                raise ValueError(f"{called}: {name} is {value}, which cannot be divided among {groups} groups")
        self._in, self._out, self._groups = int(in_channels), int(out_channels), int(groups)
        self._kernel = self._sizes("kernel_size", kernel_size)
        self._stride = self._sizes("stride", stride)
        self._dilation = self._sizes("dilation", dilation)
        self._sides = self._padding(padding)
        self._has_bias = bool(bias)
        self._scheme, self._device = check_scheme(scheme, called), device
        self._products: list[Product] = []
        #: Of groups with one input each: the weight, which the CPU multiplies with.
        self._own: Float32 | None = None
        self._bias: Float32 | None = None

    def __repr__(self) -> str:
        more = f", groups={self._groups}" if self._groups > 1 else ""
        sizes = ", ".join(f"{name}={self._shown(value)}" for name, value in self._said())
        return f"{type(self).__name__}({self._in}, {self._out}, {sizes}{more}, bias={self._has_bias})"

    def _said(self) -> list[tuple[str, tuple[int, ...]]]:
        return [("kernel_size", self._kernel), ("stride", self._stride)]

    def _shown(self, value: tuple[int, ...]) -> str:
        return str(value[0]) if self._dims == 1 else str(value)

    def _sizes(self, name: str, value: Sizes, least: int = 1) -> tuple[int, ...]:
        """One number for all directions, or one for each."""
        each = tuple(value) if isinstance(value, Sequence) else (value,) * self._dims
        fits = len(each) == self._dims and all(
            isinstance(n, int | np.integer) and not isinstance(n, bool) and n >= least for n in each
        )
        if not fits:
            many = "an integer" if self._dims == 1 else f"an integer or {self._dims} of them"
            raise ValueError(f"{type(self).__name__}: {name} is {value!r}; it has to be {many} of {least} or more")
        return tuple(int(n) for n in each)

    def _padding(self, padding: Sizes | str) -> tuple[tuple[int, int], ...]:
        """How much stands before and behind each size."""
        if isinstance(padding, str):
            called = type(self).__name__
            if padding not in ("same", "valid"):
                raise ValueError(f"{called}: padding is {padding!r}; it can be 'same', 'valid' or a number of values")
            if padding == "same" and set(self._stride) != {1}:
                raise ValueError(f"{called}: padding='same' needs a stride of 1, which is {self._shown(self._stride)}")
            total = [d * (k - 1) * (padding == "same") for d, k in zip(self._dilation, self._kernel, strict=True)]
            return tuple((n // 2, n - n // 2) for n in total)
        return tuple((n, n) for n in self._sizes("padding", padding, least=0))

    # ---- what differs ------------------------------------------------------------------------------------------------

    @abstractmethod
    def _weight_shape(self) -> tuple[int, ...]:
        """As PyTorch has it."""

    @abstractmethod
    def _matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        """The matrix ``(N, K)`` of one group's part of the weight."""

    @abstractmethod
    def _part(self, matrix: Float32) -> Float32:
        """What `_matrix` was made of."""

    @abstractmethod
    def _places(self, sizes: tuple[int, ...]) -> list[int]:
        """How many rows of a product each size gives, for one input."""

    @abstractmethod
    def _values_of_a_place(self) -> int:
        """How many values are in memory for each row."""

    def _pieces(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """Rows that are multiplied at once."""
        return pieces(shape, MOST // self._values_of_a_place())

    @abstractmethod
    def _rows(self, x: NDArray[Any]) -> Float32:
        """From inputs ``(B, *sizes, in_channels)`` to outputs ``(B, *sizes, out_channels)``."""

    # ---- weights ---------------------------------------------------------------------------------------------------

    @property
    def in_channels(self) -> int:
        """Channels that come in."""
        return self._in

    @property
    def out_channels(self) -> int:
        """Channels that go out."""
        return self._out

    @property
    def bias(self) -> Float32 | None:
        """What is added to every position, ``(out_channels,)``, or None."""
        return self._bias

    @property
    def weight(self) -> Float32:
        """The weight as it is stored, in PyTorch's shape.

        Raises
        ------
        ModelError
            If none was loaded yet, or it cannot be read back.
        """
        return self._stored("")

    @property
    def products(self) -> list[Product]:
        """What it multiplies with, one for each group; none where each group has one input, which the CPU multiplies.

        Raises
        ------
        ModelError
            If no weight was loaded yet.
        """
        self._check_loaded()
        return self._products

    @property
    def _is_depthwise(self) -> bool:
        return self._groups > 1 and self._in == self._groups

    def emptied(self: _Self, bias: bool, scheme: Scheme | str, device: Device | str | None) -> _Self:
        """A layer of the same sizes without a weight."""
        made = copy.copy(self)
        made._has_bias, made._scheme, made._device = bias, check_scheme(scheme, type(self).__name__), device
        made._products, made._own, made._bias = [], None, None
        return made

    def _check_loaded(self) -> None:
        if not self._products and self._own is None:
            raise ModelError(f"{self!r} has no weight yet; load_state_dict loads one")

    def own_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight``, and ``bias`` if there is one."""
        shapes = {"weight": self._weight_shape()}
        return {**shapes, "bias": (self._out,)} if self._has_bias else shapes

    def own_values(self, name: str, path: str) -> NDArray[Any]:
        """The weight as it is stored, or the bias."""
        if name == "weight":
            return self._stored(path)
        if self._bias is None:
            raise ModelError(f"the bias of {path or self!r} was not loaded yet")
        return self._bias

    def _stored(self, path: str) -> Float32:
        self._check_loaded()
        if self._own is not None:
            return self._own
        parts = []
        for product in self._products:
            unpack = getattr(product, "unpack", None)
            if unpack is None:
                raise ModelError(f"the weight of {path or self!r} cannot be read back from a {type(product).__name__}")
            parts.append(self._part(unpack()))
        return np.concatenate(parts)

    def load_own(self, names: list[str], take: Take, pack: Pack | None, path: str) -> None:
        """Load the weight, the bias, or both."""
        if "bias" in names:
            self._bias = np.array(take("bias"), np.float32)
        if "weight" in names:
            try:
                self._load(take("weight"), pack, path)
            except NotFiniteError as error:
                raise NotFiniteError(f"{path or repr(self)}: {error}") from error
        self._products = [
            PackedProduct(each.weight, self._added(i)) if type(each) is PackedProduct else each
            for i, each in enumerate(self._products)
        ]

    def _load(self, weight: NDArray[Any], pack: Pack | None, path: str) -> None:
        if self._is_depthwise:
            self._own = np.array(weight, np.float32, order="C")
            return
        products = []
        for i, part in enumerate(np.split(weight, self._groups)):
            matrix = np.ascontiguousarray(self._matrix(part))
            name = path if self._groups == 1 else f"{path}.{i}"
            products.append(
                packed_by(pack, lambda rows=matrix: rows, name)  # type: ignore[misc]
                if pack is not None
                else product_of(matrix, self._scheme, self._device)
            )
        for each, shape in zip(products, self._product_shapes(), strict=True):
            if tuple(each.shape) != shape:
                raise ValueError(f"{path or self!r}: a product has shape {tuple(each.shape)}, {shape} is needed")
        self._products = products

    @property
    def product_shape(self) -> tuple[int, int]:
        """``(K, N)`` of the product of each group."""
        return self._product_shapes()[0]

    def product_rows(self, *sizes: int) -> list[int]:
        """How many rows each product of a call has, with each group's weight, for one input of such sizes.

        Examples
        --------
        >>> from npumatmul import nn
        >>> nn.Conv1d(512, 256, 7, padding=3).product_rows(1000)
        [585, 415]
        """
        shape = (1, *self._places(sizes))
        return [math.prod(each.stop - each.start for each in piece) for piece in self._pieces(shape)]

    def _product_shapes(self) -> list[tuple[int, int]]:
        """``(K, N)`` of the product of each group."""
        n, k = self._matrix(np.broadcast_to(np.float32(0), self._weight_shape())[: self._parted()]).shape
        return [(k, n)] * self._groups

    def _parted(self) -> int:
        """How much of the weight's first size each group has."""
        return self._weight_shape()[0] // self._groups

    def _added(self, group: int) -> Float32 | None:
        """What the product of a group adds in the pass that stores its result."""
        return None

    # ---- calls -------------------------------------------------------------------------------------------------------

    def __call__(self, x: Any) -> Any:
        """Convolve.

        Parameters
        ----------
        x : ndarray or NpuArray, shape (in_channels, *sizes) or (B, in_channels, *sizes)

        Returns
        -------
        ndarray or NpuArray, shape (out_channels, *sizes) or (B, out_channels, *sizes)
            A new array: float16 or bfloat16 where `x` is, else float32.

        Raises
        ------
        ValueError
            If `x` has other channels or dimensions, or is too small for a single window.
        ModelError
            If no weight was loaded yet.
        """
        if type(x) is not np.ndarray:
            return self._of_other(x)
        if x.ndim not in (self._dims + 1, self._dims + 2) or x.shape[-self._dims - 1] != self._in:
            sizes = ", ".join("LHW"[1:] if self._dims == 2 else "L")
            raise ValueError(
                f"{self!r} takes ({self._in}, {sizes}) or (B, {self._in}, {sizes}); the input has shape {x.shape}"
            )
        batch = x[None] if x.ndim == self._dims + 1 else x
        y = np.moveaxis(self.rows(np.moveaxis(batch, 1, -1)), -1, 1)
        return np.ascontiguousarray(y if batch is x else y[0])

    def rows(self, x: NDArray[Any]) -> NDArray[Any]:
        """The same with channels last, as products make them: what comes next may take them so.

        Parameters
        ----------
        x : ndarray, shape (B, *sizes, in_channels)

        Returns
        -------
        ndarray, shape (B, *sizes, out_channels)
            A new array.

        Raises
        ------
        ValueError, ModelError
            As for a call.
        """
        self._check_loaded()
        if x.ndim != self._dims + 2 or x.shape[-1] != self._in:
            raise ValueError(f"{self!r}: rows have {self._in} channels; the input has shape {x.shape}")
        given = x if x.dtype == np.float16 else float32_of(x, repr(self))
        return rounded_to(self._rows(given), x.dtype)

    @classmethod
    def _made(cls: type[_Self], layer: _Self, weight: NDArray[Any], bias: ArrayLike | None) -> _Self:
        """Load a layer that `from_arrays` has made."""
        state = {"weight": weight} if bias is None else {"weight": weight, "bias": floats(bias, "bias")}
        layer.load_state_dict(state)
        return layer


class _Sliding(Convolution):
    """A convolution: the values of each window times the weight.

    Parameters, attributes and errors are those of its subclasses.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        scheme: Scheme | SchemeName | str = "w16a16",
        device: Device | str | None = None,
    ) -> None:
        if padding_mode not in PADDING_MODES:
            known = ", ".join(map(repr, PADDING_MODES))
            raise ValueError(f"{type(self).__name__}: padding_mode is {padding_mode!r}; there are {known}")
        self._mode: PaddingMode = padding_mode
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, scheme, device
        )  # fmt: skip

    def _weight_shape(self) -> tuple[int, ...]:
        return (self._out, self._in // self._groups, *self._kernel)

    def _matrix(self, weight: NDArray[Any]) -> NDArray[Any]:
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)

    def _part(self, matrix: Float32) -> Float32:
        whole = matrix.reshape(len(matrix), *self._kernel, self._in // self._groups)
        return np.ascontiguousarray(np.moveaxis(whole, -1, 1))

    def _added(self, group: int) -> Float32 | None:
        each = self._out // self._groups
        return None if self._bias is None else self._bias[group * each : (group + 1) * each]

    @classmethod
    def from_arrays(cls: type[_Self], weight: ArrayLike, bias: ArrayLike | None = None, **options: Any) -> _Self:
        """Make a layer of a weight ``(out_channels, in_channels / groups, *kernel_size)`` and a bias.

        Parameters
        ----------
        weight, bias : array_like
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
        >>> differences = nn.Conv1d.from_arrays(np.array([[[-1.0, 1.0]]]), scheme="float32")
        >>> differences(np.array([[1, 4, 9, 16]], np.float32))
        array([[3., 5., 7.]], dtype=float32)
        """
        w = floats(weight, "weight")
        if w.ndim != cls._dims + 2 or 0 in w.shape:
            raise ValueError(
                f"{cls.__name__}.from_arrays: a weight is (out_channels, in_channels / groups, *kernel_size), with "
                f"{cls._dims} sizes of the kernel; this has shape {w.shape}"
            )
        groups = options.get("groups", 1)
        inputs = w.shape[1] * groups if isinstance(groups, int) else w.shape[1]
        made: Any = cls
        return cls._made(made(inputs, w.shape[0], w.shape[2:], bias=bias is not None, **options), w, bias)

    def _places(self, sizes: tuple[int, ...]) -> list[int]:
        whole = [n + sum(sides) for n, sides in zip(sizes, self._sides, strict=True)]
        return positions(whole, self._kernel, self._stride, self._dilation)

    def _values_of_a_place(self) -> int:
        return max(self._out, self._in * math.prod(self._kernel))

    def _rows(self, x: NDArray[Any]) -> Float32:
        x = padded(x, self._sides, self._mode, repr(self))
        count = positions(x.shape[1:-1], self._kernel, self._stride, self._dilation)
        if min(count) < 1:
            sizes = self._shown(x.shape[1:-1])
            raise ValueError(f"{self!r}: the input, padded to {sizes} values, is smaller than one window")
        seen = windows(x, count, self._kernel, self._stride, self._dilation)
        y: Float32 = np.empty((len(x), *count, self._out), np.float32)
        for piece in self._pieces(y.shape[:-1]):
            if self._own is None:
                self._multiply(seen[piece], y[piece])
            else:
                self._add_up(seen[piece], y[piece])
        return y

    def _multiply(self, seen: NDArray[Any], y: Float32) -> None:
        """Fill results of some windows by a product for each group."""
        inputs, outputs = self._in // self._groups, self._out // self._groups
        for i, product in enumerate(self._products):
            part = seen[..., i * inputs : (i + 1) * inputs]
            rows = np.ascontiguousarray(part, np.float32).reshape(-1, product.shape[0])
            made: Float32 = product(rows)
            added = self._added(i)
            if added is not None and type(product) is not PackedProduct:
                made = made + added
            y[..., i * outputs : (i + 1) * outputs] = made.reshape(*y.shape[:-1], outputs)

    def _add_up(self, seen: NDArray[Any], y: Float32) -> None:
        """Fill results of some windows, of groups with one input each."""
        assert self._own is not None
        each: Float32 = np.zeros((*y.shape[:-1], self._groups, self._out // self._groups), np.float32)
        weight = self._own.reshape(self._groups, -1, *self._kernel)
        before = (slice(None),) * (y.ndim - 1)
        for at in np.ndindex(*self._kernel):
            each += seen[before + at][..., None].astype(np.float32, copy=False) * weight[(slice(None),) * 2 + at]
        if self._bias is not None:
            each += self._bias.reshape(self._groups, -1)
        y[...] = each.reshape(y.shape)


class Conv1d(_Sliding):
    """A convolution over one dimension: windows become rows of a product with the weight on the NPU.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels that come in and go out.
    kernel_size, stride, dilation : int
        Values of a window, how far windows are apart, and how far the values of one are.
    padding : int, "same" or "valid"
        Values on each side; ``"same"``: as many results as values, with a stride of 1; ``"valid"``: none.
    groups : int
        Parts of the channels that know nothing of each other. Each has a product of its own; where each has one input
        (depthwise) the CPU multiplies in float32, whatever the scheme: a product would have one column.
    bias : bool
        Whether there is one; it is added in the pass that stores the result.
    padding_mode : {"zeros", "reflect", "replicate", "circular"}
        What the padding is made of.
    scheme, device
        As for `Linear`.

    Raises
    ------
    ValueError, TypeError
        If sizes do not go together, or there is no such scheme for floats.

    Notes
    -----
    Parameters are ``weight``, ``(out_channels, in_channels / groups, kernel_size)``, and ``bias``, as of
    `torch.nn.Conv1d`. The product has K = kernel_size x in_channels / groups, in this order, which is how `pack` of
    `load_state_dict` is given the weight; of several groups their numbers follow its path. Windows are worked on 8 MiB
    at a time, so that memory grows with input and result only. Bounds of errors are those of `npumatmul.matmul` with
    windows as rows; for groups of one input (kernel_size + 1) 2**-24 of the sum of magnitudes.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> layer = nn.Conv1d(80, 16, kernel_size=3, stride=2, padding=1)
    >>> layer.parameter_shapes()
    {'weight': (16, 80, 3), 'bias': (16,)}
    >>> _ = layer.load_state_dict({"weight": np.ones((16, 80, 3)), "bias": np.zeros(16)})
    >>> layer(np.ones((1, 80, 6), np.float32))[0, 0]
    array([160., 240., 240.], dtype=float32)
    """


class Conv2d(_Sliding):
    """A convolution over two dimensions.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels that come in and go out.
    kernel_size, stride, dilation : int or tuple of int
        As for `Conv1d`, for both directions or for each.
    padding : int, tuple of int, "same" or "valid"
    groups, bias, padding_mode, scheme, device
        As for `Conv1d`.

    Raises
    ------
    ValueError, TypeError
        As `Conv1d`.

    Notes
    -----
    Parameters are ``weight``, ``(out_channels, in_channels / groups, *kernel_size)``, and ``bias``, as of
    `torch.nn.Conv2d`; all else is as for `Conv1d`.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul import nn
    >>> blur = nn.Conv2d.from_arrays(np.full((1, 1, 3, 3), 1 / 9), padding="same", padding_mode="replicate")
    >>> blur(np.ones((1, 4, 5), np.float32)).shape
    (1, 4, 5)
    """

    _dims: ClassVar[int] = 2
