"""Products with a weight: what a layer multiplies with, whoever computes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.ops import PackedWeight, matmul, pack
from npumatmul.ops.settings import Processor
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import Scheme, scheme_for

__all__ = [
    "FLOAT32",
    "Float32",
    "FloatProduct",
    "Pack",
    "PackedProduct",
    "Product",
    "check_scheme",
    "named",
    "packed_by",
    "product_of",
]

Float32 = NDArray[np.float32]

#: Name of what numpy computes in float32, in the place of a scheme.
FLOAT32 = "float32"

#: Results that are as narrow as what was given; all others are float32.
_KEPT: dict[np.dtype[Any], Any] = {np.dtype(each): np.dtype(each) for each in (np.float16, ml_dtypes.bfloat16)}


class Product(Protocol):
    """A weight matrix, ready to be multiplied with.

    Attributes
    ----------
    shape : tuple of int
        ``(K, N)``.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``: input and output width."""
        ...

    def __call__(self, x: Float32) -> Float32:
        """Multiply: ``(M, K)`` to ``(M, N)``. `x` is C-contiguous; the result is read before the next call."""
        ...


Pack = Callable[[Float32, str], Product]
"""Makes a `Product` of a weight ``(N, K)``, as PyTorch and GGUF store it, and of the layer's path in the model.

Where it has a method ``ready(path)`` that returns a `Product` and not None, that is used and no weight is read."""


class PackedProduct:
    """A `Product` whose weight stays on the NPU; a bias is added in the pass that stores the result.

    Parameters
    ----------
    weight : PackedWeight
    bias : ndarray of float32, shape (N,), optional

    Examples
    --------
    >>> import numpy as np
    >>> import npumatmul as npu
    >>> product = PackedProduct(npu.pack(np.eye(32, dtype=np.float32)), np.ones(32, np.float32))
    >>> product(np.ones((1, 32), np.float32))[0, :3]
    array([2., 2., 2.], dtype=float32)
    """

    #: A recorder hears of all that it does.
    recordable: ClassVar[bool] = True

    def __init__(self, weight: PackedWeight, bias: Float32 | None = None) -> None:
        self.weight = weight
        self.bias = bias

    def __repr__(self) -> str:
        return f"PackedProduct({self.weight!r})"

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        return self.weight.shape

    def __call__(self, x: Any) -> Any:
        """Multiply ``(..., K)`` to ``(..., N)``, of an ndarray or an NpuArray; the result is of the same kind."""
        return matmul(x, self.weight, bias=self.bias, dtype=_KEPT.get(x.dtype))

    def on(self, processor: Processor | None) -> PackedProduct:
        """The same product, made by one processor: see `npumatmul.PackedWeight.on`."""
        return PackedProduct(self.weight.on(processor), self.bias)

    def unpack(self) -> Float32:
        """The values of the weight as they are stored, ``(N, K)``."""
        values: Float32 = np.asarray(self.weight.unpack().T, np.float32)
        return values


class FloatProduct:
    """A `Product` computed by numpy in float32: the reference, and a way to do without an NPU.

    Parameters
    ----------
    weight : ndarray of float32, shape (N, K)
        It is not copied.

    Examples
    --------
    >>> import numpy as np
    >>> FloatProduct(np.array([[1, 2, 3]], np.float32))(np.ones((1, 3), np.float32))
    array([[6.]], dtype=float32)
    """

    #: It may be called again for the same rows.
    recordable: ClassVar[bool] = False

    def __init__(self, weight: Float32) -> None:
        self.weight = weight
        self._b = weight.T

    def __repr__(self) -> str:
        return f"FloatProduct({self.weight.shape})"

    @property
    def shape(self) -> tuple[int, int]:
        """``(K, N)``."""
        return self.weight.shape[1], self.weight.shape[0]

    def __call__(self, x: Float32) -> Float32:
        """Multiply ``(M, K)`` to ``(M, N)``."""
        y: Float32 = x @ self._b
        return y

    def unpack(self) -> Float32:
        """The weight."""
        return self.weight


def check_scheme(scheme: Scheme | SchemeName | str | None, called: str) -> Scheme | str:
    """The scheme by which a weight of floats is to be packed; a mistake is told before anything is read.

    Raises
    ------
    ValueError
        If there is no such scheme.
    TypeError
        If it does not take floats, or gives something else.
    """
    if scheme == FLOAT32:
        return FLOAT32
    chosen = scheme_for(np.dtype(np.float32), scheme, called)
    if chosen.result != np.float32:
        raise TypeError(f"{called}: results of scheme {chosen.name!r} are {chosen.result}; layers give floats")
    return chosen


def packed_by(pack: Pack, weight: Callable[[], NDArray[Any]], path: str) -> Product:
    """What `pack` has ready for a layer, or makes of its weight; only then the weight is read."""
    ready = getattr(pack, "ready", None)
    found: Product | None = ready(path) if callable(ready) else None
    return named(pack(np.ascontiguousarray(weight(), np.float32), path) if found is None else found, path)


def named(product: Product, path: str) -> Product:
    """The same product, whose weight is called by a layer's path where a profile tells of it."""
    stored = getattr(getattr(product, "weight", None), "stored", None)
    if stored is not None:
        stored.name = path
    return product


def product_of(weight: NDArray[Any], scheme: Scheme | str, device: Device | str | None) -> Product:
    """The product with a weight ``(N, K)`` by a scheme, or in float32."""
    if scheme == FLOAT32:
        return FloatProduct(np.ascontiguousarray(weight, np.float32))
    return PackedProduct(pack(weight, scheme, transposed=True, device=device))  # type: ignore[arg-type]
