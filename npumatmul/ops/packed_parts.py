"""A `PackedWeight` apart from its device, as files and pickles have it, and put together again."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device import Device, current_device
from npumatmul.errors import PackedFileError
from npumatmul.ops.description import Reader
from npumatmul.ops.packed import PackedWeight
from npumatmul.ops.parts import VERSION, parts_of, stored_from
from npumatmul.quant.schemes import SCHEMES

__all__ = ["described", "restored", "unpickled"]


def described(packed: PackedWeight) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Description and arrays of a weight; tiles are views of device memory, for as long as its lock is held."""
    content: dict[str, Any] = {
        "version": VERSION,
        "shape": list(packed.shape),
        "scheme": packed.scheme.name,
        "zero_point": packed.zero_point,
        "column_sums": None if packed.column_sums is None else zlib.crc32(packed.column_sums.data),
        "stored": None,
    }
    arrays: dict[str, NDArray[Any]] = {}
    if packed.column_sums is not None:
        arrays["column_sums"] = packed.column_sums
    if packed.stored is not None:
        parts = parts_of(packed.stored)
        content["stored"] = parts.content
        arrays.update(parts.arrays)
        arrays.update({f"tile.{index}": tile for index, tile in enumerate(parts.tiles)})
    return content, arrays


def restored(content: Any, array: Callable[[str], NDArray[Any]], device: Device, where: str) -> PackedWeight:
    """A weight from its description and arrays, which `array` gives by name.

    Raises
    ------
    PackedFileError
        If they contradict each other, or are for another version or layout.
    """
    reader = Reader(content, where)
    if reader.integer("version", 0) > VERSION:
        raise PackedFileError(f"{where} was made by a newer npumatmul (version {content['version']}); update it")
    shape = reader.list("shape")
    if len(shape) != 2:
        raise reader.wrong("a weight has two dimensions")
    k, n = (reader.checked_integer(extent, "shape", 0) for extent in shape)
    name = reader.text("scheme")
    if name not in SCHEMES:
        raise PackedFileError(f"{where} has the scheme {name[:40]!r}, which this npumatmul does not know")
    scheme = SCHEMES[name]
    zero_point = reader.integer("zero_point", 0, 255)
    sums: NDArray[np.int32] | None = None
    if reader.get("column_sums") is not None:
        sums = np.ascontiguousarray(array("column_sums"))
        if sums.dtype != np.int32 or sums.shape != (n,):
            raise reader.wrong(f"'column_sums' is {sums.dtype} of shape {sums.shape}")
        if zlib.crc32(sums.data) != reader.get("column_sums"):
            raise reader.wrong("the checksum of 'column_sums' differs")
    if reader.get("stored") is None:
        if k and n:
            raise reader.wrong("it has elements but no tiles")
        device.check_usable()
        return PackedWeight((k, n), scheme, device, None, None, zero_point, sums)
    tiles = reader.get("stored")
    stored = stored_from(tiles, (k, n), scheme.mm_type, array, lambda index: array(f"tile.{index}"), device, where)
    return PackedWeight((k, n), scheme, device, stored.plan, stored, zero_point, sums)


def unpickled(content: Any, arrays: Any) -> PackedWeight:
    """What a pickle calls: the weight on the current device."""
    where = "this pickle of a packed weight"

    def array(name: str) -> NDArray[Any]:
        found = arrays.get(name) if isinstance(arrays, dict) else None
        if not isinstance(found, np.ndarray):
            raise PackedFileError(f"{where} is damaged: array {name!r} is missing")
        return found

    return restored(content, array, current_device(None), where)
