"""Windows of what a convolution slides over: padding them, seeing them without a copy, cutting them into pieces.

Arrays are channels-last here, ``(B, *sizes, C)``: what stands in one window is in as few runs of memory as can be, and
its values become the K of a product, kernel by kernel, channels inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

__all__ = ["PADDING_MODES", "PaddingMode", "padded", "pieces", "positions", "windows"]

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

#: PyTorch's names, and numpy's.
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def padded(x: NDArray[Any], sides: Sequence[tuple[int, int]], mode: PaddingMode, called: str) -> NDArray[Any]:
    """`x` with so much before and behind each of its sizes, in one piece of memory.

    Raises
    ------
    ValueError
        If the mode makes padding of values that there are not so many of.
    """
    if not any(map(any, sides)):
        return np.ascontiguousarray(x)
    for size, (before, behind) in zip(x.shape[1:-1], sides, strict=True):
        most = {"reflect": size - 1, "circular": size, "replicate": before + behind if size else 0}.get(mode)
        if most is not None and max(before, behind) > most:
            raise ValueError(f"{called}: {max(before, behind)} values of padding cannot be made by {mode} of {size}")
    if mode == "zeros":
        y = np.zeros(
            (len(x), *(n + b + e for n, (b, e) in zip(x.shape[1:-1], sides, strict=True)), x.shape[-1]), x.dtype
        )
        inside = [slice(None)]
        inside += [slice(before, before + n) for n, (before, _) in zip(x.shape[1:-1], sides, strict=True)]
        y[tuple(inside)] = x
        return y
    how: Any = PADDING_MODES[mode]
    return np.ascontiguousarray(np.pad(x, ((0, 0), *sides, (0, 0)), how))


def positions(sizes: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """How many windows there are along each size; less than one where a window is longer than all there is."""
    return [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True)]


def windows(
    x: NDArray[Any], count: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> NDArray[Any]:
    """All windows of `x`, ``(B, *count, *kernel, C)``, without a copy; nobody may write there."""
    batch, *steps, channel = x.strides
    strides = (
        batch,
        *(step * s if n > 1 else 0 for step, s, n in zip(steps, stride, count, strict=True)),
        *(step * d if n > 1 else 0 for step, d, n in zip(steps, dilation, kernel, strict=True)),
        channel,
    )  # of what stands alone nothing is far away, however large a number says how far
    return as_strided(x, (x.shape[0], *count, *kernel, x.shape[-1]), strides, writeable=False)


def pieces(shape: Sequence[int], most: int) -> Iterator[tuple[slice, ...]]:
    """Boxes of at most so many places that cover an array, in order; boxes of one place where `most` is less."""
    if 0 in shape:
        return
    if not shape or math.prod(shape) <= most:
        yield tuple(slice(0, n) for n in shape)
        return
    rest = math.prod(shape[1:])
    step = max(1, most // rest)
    for start in range(0, shape[0], step):
        stop = min(start + step, shape[0])
        if rest <= most:
            yield (slice(start, stop), *(slice(0, n) for n in shape[1:]))
        else:
            for inner in pieces(shape[1:], most):
                yield (slice(start, stop), *inner)
