"""What the tiles in a file stand for, found without a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips import chip, layout
from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.errors import DeviceError, PackedFileError
from npumatmul.files.reading import shown
from npumatmul.ops.packed.files.description import Reader
from npumatmul.ops.packed.files.parts import checked_tile, slices_of, tile_rows_of
from npumatmul.ops.packed.files.tensors import check_version, params_of, transform_of
from npumatmul.quant.params import InputTransform, QuantizedWeight, QuantParams

__all__ = ["HostValues", "host_values"]


@dataclass(frozen=True, eq=False)
class HostValues:
    """A weight as it is stored on the device, in plain arrays.

    Attributes
    ----------
    values : ndarray, shape (N, K)
        Codes (int8) or float16.
    params : QuantParams or None
        Scales and zero points of codes.
    transform : InputTransform or None
        What activations go through first.
    row_scale : ndarray of float32, shape (N,), or None
        What rows of float16 are multiplied with.
    """

    values: NDArray[Any]
    params: QuantParams | None
    transform: InputTransform | None
    row_scale: NDArray[np.float32] | None

    @property
    def weight(self) -> QuantizedWeight | NDArray[np.float16]:
        """Codes with what belongs to them, or the floats."""
        return self.values if self.params is None else QuantizedWeight(self.values, self.params, self.transform)


def host_values(content: Any, array: Callable[[str], NDArray[Any]], where: str) -> HostValues:
    """Read a weight of codes or of float16, of any chip's layout.

    Parameters
    ----------
    content : object
        Its description, as JSON gave it back.
    array : callable
        Gives arrays and tiles by name.
    where : str
        What it is read from, for messages.

    Returns
    -------
    HostValues

    Raises
    ------
    PackedFileError
        If description and tiles contradict each other, or it is a weight of another kind.
    """
    outer = Reader(content, where)
    check_version(outer)
    k, n = (outer.checked_integer(extent, "shape", 1) for extent in outer.pair("shape"))
    reader = Reader(outer.get("stored"), where)
    if (reader.integer("k", 1), reader.integer("n", 1)) != (k, n):
        raise reader.wrong(f"its tiles are not those of shape {(k, n)}")
    soc, name = reader.text("soc"), reader.text("mm_type")
    if name not in MatmulType.__members__:
        raise reader.wrong(f"there is no matmul type {shown(name)}")
    mm_type = MatmulType[name]
    try:
        here = chip(soc)
        tile = list(here.b_tile(mm_type))
    except DeviceError as error:
        raise PackedFileError(f"{where} is for a chip that this npumatmul does not know: {error}") from error
    if reader.list("b_tile") != tile:
        raise reader.wrong(f"tiles of {soc} are {tile} for {name}, not {shown(reader.list('b_tile'))}")
    k_spans, n_spans = reader.spans("k_spans", k), reader.spans("n_spans", n)
    slices = slices_of(reader, n, k_spans, array)
    if any(each.part for each in slices):
        raise PackedFileError(f"{where} holds floats in two parts, not codes")
    rows = tile_rows_of(reader, slices)
    sums = reader.list("tile_checksums")
    if len(sums) != len(rows) * len(n_spans):
        raise reader.wrong(f"it has {len(sums)} checksums for {len(rows) * len(n_spans)} tiles")
    low_first = reader.get("int4_low_first") is not False
    places = [(row, column) for row in rows for column in n_spans]
    try:
        layouts = [layout.b_native_of(r.length, c.length, mm_type, here, (r.padded, c.padded)) for r, c in places]
    except ValueError as error:
        raise reader.wrong(f"its tiles are none of {soc}: {error}") from error
    tiles = [
        checked_tile(reader, index, of.nbytes, array(f"tile.{index}"), sums) for index, of in enumerate(layouts)
    ]  # all of them before memory is taken for what they claim to be
    floats = mm_type.b is ElementType.FLOAT16
    values = np.empty((n, k), np.float16 if floats else np.int8)
    for (row, column), of, data in zip(places, layouts, tiles, strict=True):
        part = layout.unpack(data, of.in_nibble_order(low_first)).T
        values[column.start : column.start + column.length, row.start : row.start + row.length] = part
    params = params_of(outer, array, (n, k))
    if (params is None) != floats:
        raise reader.wrong("its scales do not go with its type")
    row_scale = slices[0].column_scale if floats else None
    return HostValues(values, params, transform_of(outer, k), row_scale)
