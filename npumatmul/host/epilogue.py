"""What is done to the result of a matmul in the pass that stores it."""

from __future__ import annotations

import ctypes as C
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.host.arrays import address_of
from npumatmul.host.executor import Element, EpilogueStruct, Function, Matrix, finish

__all__ = ["FUNCTIONS", "Activation", "Epilogue"]

#: Names of functions, for type checkers.
Activation = Literal["relu", "gelu", "gelu_tanh", "silu", "relu2"]

#: The functions by name.
FUNCTIONS: dict[str | None, Function] = {
    None: Function.IDENTITY,
    "relu": Function.RELU,
    "gelu": Function.GELU,
    "gelu_tanh": Function.GELU_TANH,
    "silu": Function.SILU,
    "relu2": Function.RELU2,
}
#: What results, and the matrices that an epilogue reads, can consist of.
ELEMENTS: dict[np.dtype[Any], Element] = {
    np.dtype(np.float32): Element.FLOAT32,
    np.dtype(np.float16): Element.FLOAT16,
    np.dtype(ml_dtypes.bfloat16): Element.BFLOAT16,
}
_F32 = np.dtype(np.float32)
_NO_LIMITS = (-math.inf, math.inf)


@dataclass(frozen=True, eq=False)
class Epilogue:
    """Steps on the result of a matmul, in this order, in float32, in one pass over it.

    Attributes
    ----------
    scale : float
        Factor on every element; joins the quantization's own scales before the first rounding.
    bias : array_like of float, shape (N,), or None
        Added to every row.
    activation : str or None
        ``"relu"``, ``"gelu"`` (with erf), ``"gelu_tanh"`` (with tanh), ``"silu"`` or ``"relu2"`` (the square of
        relu).
    multiply : array_like of float, shape of the result, or None
        Multiplied elementwise: SwiGLU is ``activation="silu"`` with the other projection here.
    residual : array_like of float, shape of the result, or None
        Added elementwise.
    clip : (float, float) or None
        Lower and upper limit.
    dtype : data-type
        Of the result: float32, float16 or bfloat16, rounded to nearest even at the very end.

    Raises
    ------
    TypeError
        If an array is no float16, bfloat16 or float32, or `dtype` is none of them.
    ValueError
        If there is no such activation, scale is not finite, or the limits are not in order.

    Notes
    -----
    gelu is within 6 ulp of the exact function of its float32 argument, gelu_tanh and silu within 4; relu2 is rounded
    once. A nan stays one; relu, clip and the functions treat infinities as their limits do.

    Examples
    --------
    >>> import numpy as np
    >>> Epilogue(bias=np.zeros(3, np.float32), activation="relu", clip=(0, 6)).activation
    'relu'
    """

    scale: float = 1.0
    bias: ArrayLike | None = None
    activation: Activation | None = None
    multiply: ArrayLike | None = None
    residual: ArrayLike | None = None
    clip: tuple[float, float] | None = None
    dtype: DTypeLike = np.float32

    def __post_init__(self) -> None:
        if self.activation not in FUNCTIONS:
            names = ", ".join(repr(name) for name in FUNCTIONS if name)
            raise ValueError(f"epilogue: no activation is called {self.activation!r}; there are {names}")
        if not math.isfinite(self.scale):
            raise ValueError(f"epilogue: scale is {self.scale}; it has to be finite")
        if self.clip is not None and not self.clip[0] <= self.clip[1]:
            raise ValueError(f"epilogue: clip is {self.clip}; the lower limit comes first, and neither is a nan")
        if np.dtype(self.dtype) not in ELEMENTS:
            raise TypeError(f"epilogue: the result can be float32, float16 or bfloat16, not {np.dtype(self.dtype)}")

    @cached_property
    def does_nothing(self) -> bool:
        """Whether the result is only cast."""
        nothing = self.bias is None and self.multiply is None and self.residual is None
        return nothing and self.scale == 1 and self.activation is None and self.clip is None

    def apply(self, sums: NDArray[Any], out: NDArray[Any]) -> None:
        """Do it to sums that stand in an array already.

        Parameters
        ----------
        sums : ndarray of float32 or int32, shape (M, N)
        out : ndarray, shape (M, N)
            Of `dtype`; its rows are contiguous and aligned. It may be `sums` itself.

        Raises
        ------
        TypeError, ValueError
            If shapes or dtypes do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> values = np.array([[-1, 2], [3, -4]], np.float32)
        >>> Epilogue(scale=2, activation="relu").apply(values, values)
        >>> values
        array([[0., 4.],
               [6., 0.]], dtype=float32)
        """
        if sums.ndim != 2 or sums.shape != out.shape or sums.dtype not in (np.float32, np.int32):
            raise ValueError(f"epilogue: sums are {sums.dtype} of shape {sums.shape}, the result has {out.shape}")
        if out.dtype != np.dtype(self.dtype):
            raise TypeError(f"epilogue: it makes {np.dtype(self.dtype)}, out is {out.dtype}")
        if out.size == 0:
            return
        if not (out.strides[1] == out.itemsize and out.flags.aligned and out.flags.writeable):
            raise ValueError("epilogue: rows of out have to be contiguous, aligned and writable")
        # only what starts at the same element is read before it is written
        same = sums.ctypes.data == out.ctypes.data and sums.strides == out.strides and sums.itemsize == out.itemsize
        apart = sums.copy() if not same and np.may_share_memory(sums, out) else np.ascontiguousarray(sums)
        placed = PlacedEpilogue(self, out)
        finish(apart, out, ELEMENTS[out.dtype], placed.struct)


class PlacedEpilogue:
    """An epilogue for one result: arrays checked and laid out as the kernels read them, and the C struct.

    Parameters
    ----------
    epilogue : Epilogue
    out : ndarray, shape (M, N)
        The result's array. Operands that share memory with it are copied, but for one that is `out` itself: each of
        its elements is read before it is overwritten.
    bias : array_like, optional
        Instead of the epilogue's.
    fresh : bool
        Whether nobody else knows `out`, so that nothing shares memory with it.

    Attributes
    ----------
    given : (Epilogue, array_like or None)
        What it was made of.
    reads_out : bool
        Whether an operand is `out` itself.
    lasts : bool
        Whether it serves other results as well that share no memory with `bias`, since it reads nothing but that, where
        it stands.
    bias : ndarray or None
        As the kernels read it.

    Raises
    ------
    TypeError, ValueError
        If an operand's dtype or shape does not fit.
    """

    def __init__(self, epilogue: Epilogue, out: NDArray[Any], bias: Any = None, *, fresh: bool = False) -> None:
        self.reads_out = False
        self.given = epilogue, bias
        bias = epilogue.bias if bias is None else bias
        self.lasts = epilogue.multiply is None and epilogue.residual is None
        self.struct = struct = EpilogueStruct(epilogue.scale, None, FUNCTIONS[epilogue.activation])
        struct.low, struct.high = _NO_LIMITS if epilogue.clip is None else epilogue.clip
        if bias is not None:
            usual = type(bias) is np.ndarray and bias.dtype == _F32 and bias.flags.c_contiguous
            if not usual or bias.shape != out.shape[1:] or (not fresh and np.may_share_memory(bias, out)):
                bias = self._bias(bias, out)
                self.lasts = False
            struct.bias = address_of(bias)
        self.bias = bias
        self._matrices: list[NDArray[Any]] = []  # what stands in the struct as a bare address
        for name in ("multiply", "residual"):
            matrix: Any = getattr(epilogue, name)
            if matrix is not None:
                usual = type(matrix) is np.ndarray and matrix.dtype in ELEMENTS and matrix.shape == out.shape
                if not (
                    usual
                    and matrix.flags.c_contiguous
                    and matrix.flags.aligned
                    and (fresh or not np.may_share_memory(matrix, out))
                ):
                    matrix = self._matrix(name, matrix, out)
                self._matrices.append(matrix)
                setattr(struct, name, Matrix(address_of(matrix), matrix.strides[0], ELEMENTS[matrix.dtype]))
        self.pointer = C.pointer(struct)

    def _bias(self, given: ArrayLike, out: NDArray[Any]) -> NDArray[np.float32]:
        bias = _float_array("bias", given)
        if bias.shape != out.shape[1:]:
            raise ValueError(f"epilogue: bias has shape {bias.shape}, the result has N = {out.shape[1]} columns")
        if bias.dtype != _F32 or not bias.flags.c_contiguous:
            bias = np.ascontiguousarray(bias, _F32)
        return bias.copy() if np.may_share_memory(bias, out) else bias

    def _matrix(self, name: str, given: ArrayLike, out: NDArray[Any]) -> NDArray[Any]:
        array = _float_array(name, given)
        if array.shape != out.shape:
            raise ValueError(f"epilogue: {name} has shape {array.shape}, the result has {out.shape}")
        if (address_of(array), array.strides, array.dtype) == (address_of(out), out.strides, out.dtype):
            self.reads_out = True
        elif np.may_share_memory(array, out):
            array = array.copy()
        if array.strides[1] != array.itemsize or not array.flags.aligned or array.strides[0] % array.itemsize:
            array = np.ascontiguousarray(array)
        return array


def _float_array(name: str, given: ArrayLike) -> NDArray[Any]:
    array = given if isinstance(given, np.ndarray) else np.asarray(given, np.float32)
    if array.dtype in ELEMENTS:  # which are of the machine's byte order
        return array
    if array.dtype.newbyteorder("=") not in ELEMENTS:
        raise TypeError(f"epilogue: {name} has to be float32, float16 or bfloat16, not {array.dtype}; cast it")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
