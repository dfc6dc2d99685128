"""Products of arrays in blocks (dask's) with what is in NPU memory: each block is multiplied when it is computed."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.matmul import matmul
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.shapes import Shapes

__all__ = ["multiply_blocks"]


def multiply_blocks(a: Any, b: Any) -> Any:
    """The product of an array in blocks and a matrix of ours, as lazy as other functions of that array.

    Its blocks span all of K, and each gives rows of the result.

    Returns
    -------
    array of the class of `a`, or NotImplemented
        The latter if `a` has no blocks, or `b` is no matrix of ours.

    Raises
    ------
    TypeError, ValueError
        As `matmul`: if types or shapes do not fit.
    """
    in_blocks = all(hasattr(type(a), name) for name in ("rechunk", "map_blocks", "chunks"))
    if not (in_blocks and isinstance(b, NpuArray | PackedWeight) and len(b.shape) == 2):
        return NotImplemented
    k, n = b.shape
    Shapes.of(a.shape, b.shape)
    rows = a.rechunk({a.ndim - 1: -1})
    # no rows give the type of the result, and what is wrong with that of `a`
    nothing = _block(np.empty((0,) * (a.ndim - 1) + (k,), a.dtype), b)
    return rows.map_blocks(
        _block, other=b, dtype=nothing.dtype, meta=nothing, chunks=(*rows.chunks[:-1], (n,)),
        name=f"npumatmul-{uuid.uuid4().hex}",
    )  # fmt: skip


def _block(x: NDArray[Any], other: NpuArray | PackedWeight) -> NDArray[Any]:
    return np.asarray(matmul(x, other))
