"""Weights of a model on a device: equal ones are packed once, whichever nodes have them."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

import npumatmul as npu
from npumatmul.llm.quantize.calibration import LayerStatistics
from npumatmul.offload.products import Way, make_product
from npumatmul.onnx.integers import Integers

__all__ = ["Packing"]


class Packing:
    """Packs weights.

    Parameters
    ----------
    way : Way
    """

    def __init__(self, way: Way) -> None:
        self.way = way
        self._packed: dict[tuple[Any, ...], Any] = {}

    def product(self, weight: NDArray[Any], name: str, statistics: LayerStatistics | None = None) -> Any:
        """A product with a weight ``(N, K)``; where statistics decide how it is rounded it is the node's own."""
        values = np.ascontiguousarray(weight, np.float32)
        if statistics is not None:
            return make_product(values, self.way, statistics, name)
        key = _key(values)
        if key not in self._packed:
            self._packed[key] = make_product(values, self.way, None, name)
        return self._packed[key]

    def integers(self, weight: NDArray[Any], zero: NDArray[Any] | None) -> Integers:
        """Integers of 8 bits ``(K, N)``, without rounding."""
        n = weight.shape[1]
        offsets = np.zeros(n, np.int64)
        if zero is not None:
            offsets = np.broadcast_to(zero.astype(np.int64).reshape(-1), (n,)).copy()
        values = np.ascontiguousarray(weight)
        if weight.dtype == np.uint8:  # the same integers, 128 lower
            values = (values.astype(np.int16) - 128).astype(np.int8)
            offsets = offsets - 128
        key = _key(values)
        if key not in self._packed:
            self._packed[key] = npu.pack(values, device=self.way.device)
        return Integers(self._packed[key], values.sum(axis=0, dtype=np.int64), offsets)


def _key(values: NDArray[Any]) -> tuple[Any, ...]:
    return values.shape, values.dtype.str, hashlib.sha256(values.data if values.size else b"").digest()
