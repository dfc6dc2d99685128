"""Back from tiles in device memory to a plain array."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import layout
from npumatmul.errors import ClosedError
from npumatmul.planning.product import Span
from npumatmul.running.stored import StoredWeight

__all__ = ["stored_floats", "stored_integers"]


def stored_integers(stored: StoredWeight) -> NDArray[Any]:
    """The integers of a weight without scales, shape (K, N), of the type that the device holds."""
    plan = stored.plan
    values: NDArray[Any] = np.empty((plan.k, plan.n), plan.mm_type.b.dtype)
    with stored.device.lock:
        _check_open(stored)
        for each in stored.slices:
            values[each.k_span.start : each.k_span.start + each.k_span.length] = _row_of_tiles(stored, each)
    return values


def stored_floats(stored: StoredWeight) -> NDArray[np.float32]:
    """What the codes of a weight stand for, (q - zero point) x scale, shape (K, N), computed in float32.

    Where values are split, they are the sum of their parts: the part of activations that is their value, or its
    higher part, meets all of them.
    """
    plan = stored.plan
    values = np.zeros((plan.k, plan.n), np.float32)
    with stored.device.lock:
        _check_open(stored)
        for each in stored.slices:
            if each.part == 2:
                continue
            part = _row_of_tiles(stored, each).astype(np.float32)
            if each.column_zero is not None:
                part -= each.column_zero
            if each.column_scale is not None:
                part *= each.column_scale
            values[each.k_span.start : each.k_span.start + each.k_span.length] += part
    return values


def _check_open(stored: StoredWeight) -> None:
    stored.device.check_usable()
    if stored.closed:
        raise ClosedError("this packed weight is closed; pack it again")


def _row_of_tiles(stored: StoredWeight, each: Any) -> NDArray[Any]:
    spans = stored.plan.n_spans
    tiles = stored.tiles[each.tiles * len(spans) : (each.tiles + 1) * len(spans)]
    return np.concatenate(
        [_tile(stored, each.k_span, n, tile.bytes()) for n, tile in zip(spans, tiles, strict=True)], 1
    )


def _tile(stored: StoredWeight, k: Span, n: Span, data: NDArray[np.uint8]) -> NDArray[Any]:
    device = stored.device
    padded = (k.padded, n.padded)
    of = layout.b_native_of(k.length, n.length, stored.plan.mm_type, device.chip, padded)
    return layout.unpack(data, of.in_nibble_order(device.runtime.int4_low_nibble_first))
