"""What is done to the result of a product: an epilogue fitted to shapes, and what it is in the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from npumatmul.host.epilogue import ELEMENTS, Epilogue
from npumatmul.ops.shapes import Shapes, operand
from npumatmul.quant.schemes import FLOATS

__all__ = ["Finish"]


@dataclass(frozen=True, eq=False)
class Finish:
    """The last steps of a product, checked.

    Attributes
    ----------
    dtype : numpy.dtype
        Of the result.
    epilogue : Epilogue or None
        Its arrays are seen through views: `multiply` and `residual` of shape (..., M, N), `bias` of shape (N,).
    integer_bias : ndarray of int32, shape (N,), or None
        Added to an int32 result.
    """

    dtype: np.dtype[Any]
    epilogue: Epilogue | None = None
    integer_bias: NDArray[np.int32] | None = None

    @classmethod
    def of(
        cls,
        computed: np.dtype[Any],
        dtype: DTypeLike | None,
        epilogue: Epilogue | None,
        bias: ArrayLike | None,
        shapes: Shapes,
    ) -> Finish:
        """Check what was given to `matmul` against the product.

        Parameters
        ----------
        computed : numpy.dtype
            int32 for products of integers, int8 where the NPU requantizes, else float32.
        dtype, epilogue, bias
            As given.
        shapes : Shapes

        Raises
        ------
        TypeError
            If a dtype does not fit.
        ValueError
            If a shape does not, or two arguments say the same.
        """
        if epilogue is not None and not isinstance(epilogue, Epilogue):
            raise TypeError(f"matmul: epilogue has to be an npumatmul.Epilogue, not {type(epilogue).__name__}")
        if bias is not None and epilogue is not None and epilogue.bias is not None:
            raise ValueError("matmul: the epilogue has a bias already; give one")
        wanted = computed if dtype is None else np.dtype(dtype)
        if computed == np.int8:
            if epilogue is not None or bias is not None or wanted != np.int8:
                raise TypeError(
                    "matmul: results of this scheme are int8 codes, which the NPU rounded already; for an epilogue, "
                    "a bias or another dtype pack b as 'w8a8'"
                )
            return cls(wanted)
        if epilogue is None and computed == np.int32:
            if wanted != np.int32:
                raise TypeError(
                    f"matmul: dtype is {wanted}; the result of integer operands can be int32, or float with an epilogue"
                )
            return cls(wanted, None, None if bias is None else _integer_bias(bias, shapes))
        if epilogue is not None:
            own = np.dtype(epilogue.dtype)
            if dtype is not None and own not in (np.dtype(np.float32), wanted):
                raise ValueError(f"matmul: dtype is {wanted}, but the epilogue's is {own}; give one")
            wanted = own if dtype is None else wanted
        if wanted not in FLOATS:
            raise TypeError(
                f"matmul: dtype is {wanted}; the result of float operands, or with an epilogue, can be "
                f"{' or '.join(map(str, FLOATS))}"
            )
        if epilogue is None and bias is None:
            return cls(wanted)
        steps = epilogue or Epilogue()
        fitted = replace(
            steps,
            bias=_bias(steps.bias if bias is None else bias, shapes),
            multiply=_of_result("multiply", steps.multiply, shapes),
            residual=_of_result("residual", steps.residual, shapes),
            dtype=wanted,
        )
        return cls(wanted, fitted)

    @property
    def read(self) -> tuple[Any, ...]:
        """Arrays of the result's size that are read while it is written."""
        return () if self.epilogue is None else (self.epilogue.multiply, self.epilogue.residual)

    @property
    def bias(self) -> Any:
        return None if self.epilogue is None else self.epilogue.bias

    def at(self, where: tuple[int | slice, ...], dtype: np.dtype[Any], n: int) -> Epilogue | None:
        """The epilogue for the rows of one matrix of the right operand, whose result is wanted in a dtype."""
        if self.epilogue is None:
            return None
        multiply, residual = (None if x is None else np.asarray(x)[where].reshape(-1, n) for x in self.read)
        return replace(self.epilogue, multiply=multiply, residual=residual, dtype=dtype)


def _float_array(name: str, given: ArrayLike) -> NDArray[Any]:
    array: NDArray[Any]
    if isinstance(given, np.ndarray) or (hasattr(type(given), "__dlpack__") and not isinstance(given, np.generic)):
        array = operand(given, name, "matmul")
    else:
        array = np.asarray(given, np.float32)
    if array.dtype.newbyteorder("=") not in ELEMENTS:
        raise TypeError(f"matmul: {name} has to be float32, float16 or bfloat16, not {array.dtype}; cast it")
    return array


def _bias(given: ArrayLike | None, shapes: Shapes) -> NDArray[Any] | None:
    if given is None:
        return None
    return _of_columns(_float_array("bias", given), shapes)


def _integer_bias(given: ArrayLike, shapes: Shapes) -> NDArray[np.int32]:
    array = operand(given, "bias", "matmul")
    if not np.can_cast(array.dtype, np.int32, "same_kind"):
        raise TypeError(
            f"matmul: bias is {array.dtype} and the result int32: it is cast to that by 'same_kind' only; for a float "
            "result give epilogue=Epilogue(bias=...)"
        )
    return _of_columns(array, shapes).astype(np.int32, casting="same_kind")


def _of_columns(array: NDArray[Any], shapes: Shapes) -> NDArray[Any]:
    if array.shape != (shapes.n,) and not (array.ndim == 0 and len(shapes.result) < len(shapes.full)):
        raise ValueError(f"matmul: bias has shape {array.shape}; one element per column, ({shapes.n},), is needed")
    return array.reshape(shapes.n)


def _of_result(name: str, given: ArrayLike | None, shapes: Shapes) -> NDArray[Any] | None:
    if given is None:
        return None
    array = _float_array(name, given)
    try:
        return np.broadcast_to(array, shapes.result).reshape(shapes.full)
    except ValueError:
        raise ValueError(
            f"matmul: {name} has shape {array.shape} and cannot be broadcast to the result's {shapes.result}"
        ) from None
