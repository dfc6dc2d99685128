"""Blocks of GGUF files taken over as they are: 32 values with a scale, and for some types a minimum.

The codes become those of a group of 32. What signed codes and a positive scale cannot say goes to the group's offset,
which is added to each of its values: ``scale * code + offset`` is the value that the file stands for, bit for bit
unless scale and minimum are more than some thousandfold apart, where the last bit of a float32 may differ.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from gguf.constants import GGMLQuantizationType
from numpy.typing import NDArray

from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.recipe import LayerRecipe
from npumatmul.quant.params import Granularity, QuantizedWeight, QuantParams

__all__ = ["BLOCK", "TAKEN_OVER", "layer_of_blocks"]

BLOCK = 32
TAKEN_OVER = (GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0)
"""Storage types whose blocks can be taken over."""

Parts = tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32]]
"""Codes (N, K), scales and offsets (N, K / 32)."""


def layer_of_blocks(
    file: GGUFFile, tensors: Sequence[str], recipe: LayerRecipe, rows: Sequence[slice | None] | None = None
) -> QuantizedLayer | None:
    """Take over the blocks of a layer's tensors.

    Parameters
    ----------
    file : GGUFFile
        The open file.
    tensors : sequence of str
        Names of the tensors whose rows, one after another, are the layer's weight.
    recipe : LayerRecipe
        What to note as the layer's recipe.
    rows : sequence of slice or None, optional
        Which rows of each tensor; all by default.

    Returns
    -------
    QuantizedLayer or None
        The layer, int4 where all its tensors are; None if one is of a type whose blocks cannot be taken over.
    """
    wanted = [None] * len(tensors) if rows is None else rows
    stored = []
    for name, part in zip(tensors, wanted, strict=True):
        kind, blocks = file.stored(name, rows=part)
        if kind not in TAKEN_OVER:
            return None
        stored.append((kind, blocks))
    parts = [_read(kind, blocks) for kind, blocks in stored]
    codes, scale, offset = (np.concatenate(each) for each in zip(*parts, strict=True))
    if not (np.isfinite(scale).all() and np.isfinite(offset).all()):
        raise file.error(f"tensor {tensors[0]!r} holds NaN or infinity; fetch or convert the file again")
    bits = 8 if any(kind == GGMLQuantizationType.Q8_0 for kind, _ in stored) else 4
    params = QuantParams(scale, granularity=Granularity.GROUP, bits=bits, axis=-1, group_size=BLOCK)
    return QuantizedLayer(recipe, QuantizedWeight(codes, params), offset if offset.any() else None)


def _read(kind: GGMLQuantizationType, blocks: NDArray[np.uint8]) -> Parts:
    rows = len(blocks)
    if kind == GGMLQuantizationType.Q8_0:
        each = blocks.reshape(rows, -1, 34)
        scale = _half(each[:, :, 0:2])
        codes = np.ascontiguousarray(each[:, :, 2:]).view(np.int8).copy()
        offset = np.zeros_like(scale)
    elif kind == GGMLQuantizationType.Q4_0:
        each = blocks.reshape(rows, -1, 18)
        scale = _half(each[:, :, 0:2])
        codes = _nibbles(each[:, :, 2:])
        offset = np.zeros_like(scale)
    else:
        each = blocks.reshape(rows, -1, 20)
        scale, minimum = _half(each[:, :, 0:2]), _half(each[:, :, 2:4])
        codes = _nibbles(each[:, :, 4:])
        offset = minimum + 8 * scale
    return _with_positive_scales(codes, scale, offset)


def _with_positive_scales(codes: NDArray[np.int8], scale: NDArray[np.float32], offset: NDArray[np.float32]) -> Parts:
    """Turn blocks of negative scale around, and give blocks of scale 0 codes of 0."""
    negative = scale < 0
    if negative.any():
        # scale * code = |scale| * (-1 - code) + |scale|, and -1 - code of an int4 or int8 is one again
        codes[negative] = -1 - codes[negative]
        offset[negative] -= scale[negative]
    zero = scale == 0
    codes[zero] = 0
    scale = np.where(zero, np.float32(1), np.abs(scale))
    return codes.reshape(len(codes), -1), scale, offset


def _half(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    values: NDArray[np.float32] = np.ascontiguousarray(raw).view("<f2")[..., 0].astype(np.float32)
    return values


def _nibbles(raw: NDArray[np.uint8]) -> NDArray[np.int8]:
    """The 32 codes of each block less 8: low nibbles are the first half, high nibbles the second."""
    codes = np.concatenate([raw & 15, raw >> 4], axis=-1).astype(np.int8)
    codes -= 8
    return codes
