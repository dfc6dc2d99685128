"""MXFP4, in which gpt-oss was published: 32 values of 4 bits and the exponent of their scale, in a byte."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.files.model_source import Float32

__all__ = ["BLOCK", "BLOCK_BYTES", "mxfp4_values"]

BLOCK, BLOCK_BYTES = 32, 16
#: Values by their codes: a sign, two bits of an exponent and one of a fraction.
_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = np.array([*_SIZES, *(-each for each in _SIZES)], np.float32)
_BIAS = 127


def mxfp4_values(blocks: NDArray[np.uint8], exponents: NDArray[np.uint8]) -> Float32:
    """Values of blocks as checkpoints have them.

    Parameters
    ----------
    blocks : ndarray of uint8, shape (..., n, 16)
        Two codes in each byte, that of the lower bits first.
    exponents : ndarray of uint8, shape (..., n)
        127 means a scale of 1.

    Returns
    -------
    ndarray of float32, shape (..., 32 n)
        An infinity where a scale is beyond float32.

    Examples
    --------
    >>> import numpy as np
    >>> blocks = np.zeros((1, 16), np.uint8)
    >>> blocks[0, 0] = 0x92
    >>> mxfp4_values(blocks, np.array([128], np.uint8))[:3]
    array([ 2., -1.,  0.], dtype=float32)
    """
    values = np.empty((*blocks.shape[:-1], BLOCK), np.float32)
    values[..., 0::2] = _VALUES[blocks & 15]
    values[..., 1::2] = _VALUES[blocks >> 4]
    with np.errstate(over="ignore"):
        np.ldexp(values, (exponents.astype(np.int32) - _BIAS)[..., None], out=values)
    return values.reshape(*blocks.shape[:-2], -1)
