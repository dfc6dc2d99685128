"""float16 to float32 in passes that numpy has vector instructions for; its own cast goes value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.nn.product import Float32

__all__ = ["widened"]

#: Sign, exponent and mantissa of a float16 that was extended to 32 bits and moved by 13.
_BITS = np.array(0x8FFFE000, np.uint32).view(np.int32)
#: Of the bias of exponents in both types: 127 - 15. Where the exponent is all ones it makes 2**16 or more.
_BIAS = np.float32(2.0**112)
_ENDS = np.float32(65536)


def widened(halves: NDArray[np.float16], out: Float32) -> Float32:
    """The same values as float32; exact, infinities and nans included.

    Parameters
    ----------
    halves : ndarray of float16
    out : ndarray of float32, of its shape

    Returns
    -------
    ndarray
        `out`.

    Examples
    --------
    >>> widened(np.array([1.5, -0.0, np.inf], np.float16), np.empty(3, np.float32))
    array([ 1.5, -0. ,  inf], dtype=float32)
    """
    bits: NDArray[Any] = out.view(np.int32)
    np.copyto(bits, halves.view(np.int16))
    np.left_shift(bits, 13, out=bits)
    np.bitwise_and(bits, _BITS, out=bits)
    np.multiply(out, _BIAS, out=out)
    if out.size and (np.maximum.reduce(out, axis=None) >= _ENDS or np.minimum.reduce(out, axis=None) <= -_ENDS):
        np.copyto(out, halves)  # there is an inf or a nan
    return out
