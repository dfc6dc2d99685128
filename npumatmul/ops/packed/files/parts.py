"""What a packed weight consists of apart from its device: a description that JSON can hold, arrays, and tiles.

Files and pickles are made of this. Whoever reads them has no reason to trust them, so everything is checked against
the chip's own layout, before memory is allocated, and against checksums.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.chips.types import ElementType, MatmulType
from npumatmul.device.device import Device
from npumatmul.errors import DeviceError, PackedFileError
from npumatmul.files.reading import shown
from npumatmul.host.checksums import array_checksum
from npumatmul.ops.packed.files.consistency import check_slices
from npumatmul.ops.packed.files.description import AGAIN, Reader
from npumatmul.planning.product import Span, WeightPlan, plan_weight
from npumatmul.planning.weight import largest_rows
from npumatmul.quant.params import QuantParams
from npumatmul.quant.routes import Route
from npumatmul.running.stored import KSlice, StoredWeight
from npumatmul.running.storing import PackedRow, store

__all__ = [
    "FORMAT",
    "VERSION",
    "Parts",
    "check_tile",
    "checked_tile",
    "parts_of",
    "slices_of",
    "stored_from",
    "tile_rows_of",
]

FORMAT = "npumatmul packed weights"
#: Of the description and of the order of tiles. Older ones are read, newer ones refused.
VERSION = 1


@dataclass(frozen=True)
class Parts:
    """A stored weight apart from its device.

    Attributes
    ----------
    content : dict
        What JSON can hold: layout, spans, slices, checksums.
    arrays : mapping of str to ndarray
        Scales, zero points and sums of columns.
    tiles : sequence of ndarray of uint8
        Rows of tiles one after the other, each from the first columns on; exactly the bytes that the NPU reads.
    """

    content: dict[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    tiles: Sequence[NDArray[np.uint8]]


_ARRAYS: tuple[tuple[str, type[Any]], ...] = (
    ("column_scale", np.float32),
    ("column_zero", np.int32),
    ("column_sums", np.int32),
)


def parts_of(stored: StoredWeight) -> Parts:
    """Take a weight apart. The tiles are views of device memory: hold the device's lock while they are used."""
    plan, device = stored.plan, stored.device
    arrays: dict[str, NDArray[Any]] = {}
    names: dict[tuple[str, int], str] = {}
    slices = []
    for each in stored.slices:
        described: dict[str, Any] = {"k": _of_span(each.k_span), "part": each.part, "tiles": each.tiles}
        for field, _ in _ARRAYS:
            array = getattr(each, field)
            if array is not None:  # slices share what they can
                name = names.setdefault((field, array.ctypes.data), f"{field}.{len(names)}")
                arrays[name] = array
                described[field] = name
        if each.group is not None:
            described["group"] = _of_span(each.group)
        slices.append(described)
    tiles = [tile.bytes() for tile in stored.tiles]
    content = {
        "k": plan.k,
        "n": plan.n,
        "soc": plan.soc,
        "mm_type": plan.mm_type.name,
        "b_tile": list(device.chip.b_tile(plan.mm_type)),
        "int4_low_first": device.runtime.int4_low_nibble_first if plan.mm_type.b is ElementType.INT4 else None,
        "row_images": plan.row_images,
        "k_group": plan.k_group,
        "k_spans": [_of_span(span) for span in plan.k_spans],
        "n_spans": [_of_span(span) for span in plan.n_spans],
        "slices": slices,
        "tile_checksums": [array_checksum(tile) for tile in tiles],
        "array_checksums": {name: array_checksum(array) for name, array in arrays.items()},
    }
    return Parts(content, arrays, tiles)


def _of_span(span: Span) -> list[int]:
    return [span.start, span.length, span.padded]


def stored_from(
    content: Any,
    shape: tuple[int, int],
    route: Route,
    params: QuantParams | None,
    array: Callable[[str], NDArray[Any]],
    tile: Callable[[int, NDArray[np.uint8]], int],
    device: Device,
    where: str,
    again: str = AGAIN,
) -> StoredWeight:
    """Put a weight together again, in memory of a device: tiles byte for byte.

    Parameters
    ----------
    content : object
        Of `Parts`, as JSON gave it back.
    shape : (int, int)
    route : Route
    params : QuantParams or None
        What the weight has to be.
    array : callable
        Gives arrays by name.
    tile : callable
        Writes a tile, by its index, into memory of its size, and tells its checksum. A tile whose checksum differs is
        in memory that no weight has yet, and none gets.
    device : Device
    where, again : str
        What it is read from, and what to do if it is for another layout, for messages.

    Raises
    ------
    PackedFileError
        If the description contradicts itself or what it describes, or is for another layout than the device has.
    NpuMemoryError
        If it does not fit.
    """
    reader = Reader(content, where, again)
    plan = _plan(reader, device)
    if (plan.k, plan.n) != shape:
        raise reader.wrong(f"shape {shape} does not fit its tiles, of {(plan.k, plan.n)}")
    if plan.mm_type is not route.mm_type:
        raise PackedFileError(
            f"{where} is for {plan.mm_type.name}, as {shown(reader.text('soc'))} computes its scheme; this is "
            f"{device.chip.soc}, which computes it by {route.mm_type.name}; {again}"
        )
    slices = slices_of(reader, plan.n, plan.k_spans, array)
    check_slices(reader, route, params, plan, slices)
    rows = tile_rows_of(reader, slices)
    sums = reader.list("tile_checksums")
    if len(sums) != len(rows) * len(plan.n_spans):
        raise reader.wrong(f"it has {len(sums)} checksums for {len(rows) * len(plan.n_spans)} tiles")

    def write(first: int, index: int, memory: NDArray[np.uint8]) -> None:
        if tile(first + index, memory) != sums[first + index]:
            raise differs(reader, first + index)

    sources = [PackedRow(k, partial(write, row * len(plan.n_spans))) for row, k in enumerate(rows)]
    return store(device, plan, sources, slices)


def checked_tile(
    reader: Reader, index: int, nbytes: int, data: NDArray[Any], checksums: Sequence[Any]
) -> NDArray[np.uint8]:
    """The bytes of a tile, if there are as many as there have to be, and the right ones."""
    check_tile(reader, index, nbytes, data.dtype, data.shape)
    data = np.ascontiguousarray(data)
    if array_checksum(data) != checksums[index]:
        raise differs(reader, index)
    return data


def check_tile(reader: Reader, index: int, nbytes: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    """Refuse a tile that is not of so many bytes."""
    if dtype != np.uint8 or shape != (nbytes,):
        raise reader.wrong(f"tile {index} is {dtype} of shape {shape}, not {nbytes} bytes")


def differs(reader: Reader, index: int) -> PackedFileError:
    """The error of a tile whose bytes are not those that were stored."""
    return reader.wrong(f"the checksum of tile {index} differs")


def _plan(reader: Reader, device: Device) -> WeightPlan:
    """The plan that the device has for these tiles, or an error that says what they are for."""
    k, n = reader.integer("k", 1), reader.integer("n", 1)
    soc, type_name = reader.text("soc"), reader.text("mm_type")
    if type_name not in MatmulType.__members__:
        raise reader.wrong(f"there is no matmul type {shown(type_name)}")
    mm_type = MatmulType[type_name]
    made_for = f"{reader.where} is for {shown(soc)} and {type_name}"
    here = f"this is {device.chip.soc} with runtime {device.runtime_version}"
    again = reader.again
    try:
        limits = device.chip.type_limits(mm_type, device.runtime_version)
        tile = list(device.chip.b_tile(mm_type))
    except DeviceError as error:
        raise PackedFileError(f"{made_for}; {here}: {error}; {again}") from error
    if reader.list("b_tile") != tile:
        raise PackedFileError(f"{made_for}, in tiles of {shown(reader.list('b_tile'))}; {here}: {tile}; {again}")
    low_first = device.runtime.int4_low_nibble_first
    if mm_type.b is ElementType.INT4 and reader.get("int4_low_first") is not low_first:
        raise PackedFileError(f"{made_for} under a runtime with the other order of int4 in a byte; {here}; {again}")
    k_spans, n_spans = reader.spans("k_spans", k), reader.spans("n_spans", n)
    for name, spans, multiple, most in (
        ("K", k_spans, limits.k_multiple, limits.k_max),
        ("N", n_spans, limits.n_multiple, limits.n_max),
    ):
        for span in spans:
            if span.padded % multiple or span.padded - span.length >= max(multiple, span.padded // 2 + 1):
                raise reader.wrong(f"a tile has {span.padded} along {name} for {span.length}, multiples of {multiple}")
            if span.padded > most or span.padded in limits.avoid:
                raise PackedFileError(f"{made_for}, with tiles of {span.padded} along {name}; {here}: {most}; {again}")
    if mm_type.c is ElementType.INT8 and len(k_spans) > 1:
        raise reader.wrong("sums that are rounded to int8 are of one slice of K")
    group = reader.get("k_group")
    if group is not None and -(-k // reader.integer("k_group", 1)) > len(k_spans):
        raise reader.wrong(f"it has {len(k_spans)} slices of K for groups of {group}")
    images = reader.integer("row_images", 1, 2)
    made = plan_weight(
        k, n, mm_type, device.chip, device.runtime_version,
        k_group=None if group is None else reader.integer("k_group", 1),
        row_images=images, k_slices=None if group is not None else len(k_spans), n_tiles=len(n_spans),
    )  # fmt: skip
    if (made.k_spans, made.n_spans) == (k_spans, n_spans):
        return made
    # Cut otherwise than it would be today: buckets that suit the tiles of today suit these where they are allowed.
    m_max = min(made.m_max, largest_rows(limits, k_spans, n_spans, made.ac_native, made.row_multiple))
    buckets = tuple(size for size in made.buckets if size <= m_max)
    if not buckets:
        raise PackedFileError(f"{made_for}, with slices of K too deep for this runtime; {here}; {again}")
    cores = min(made.cores, len(n_spans))
    return replace(made, k_spans=k_spans, n_spans=n_spans, m_max=m_max, buckets=buckets, cores=cores)


def slices_of(reader: Reader, n: int, k_spans: Sequence[Span], array: Callable[[str], NDArray[Any]]) -> list[KSlice]:
    """The slices of K that a description has, with their arrays."""
    k = k_spans[-1].start + k_spans[-1].length
    sums = reader.get("array_checksums")
    if not isinstance(sums, dict):
        raise reader.wrong("'array_checksums' is no object")
    loaded: dict[str, NDArray[Any]] = {}

    def load(name: Any, dtype: type[Any]) -> NDArray[Any]:
        if not isinstance(name, str) or name not in sums:
            raise reader.wrong(f"it names an array {shown(name)} without a checksum")
        if name not in loaded:
            values = array(name)
            if values.dtype != dtype or values.shape != (n,):
                raise reader.wrong(f"array {name!r} is {values.dtype} of shape {values.shape}, not ({n},)")
            if array_checksum(values) != sums[name]:
                raise reader.wrong(f"the checksum of array {name!r} differs")
            loaded[name] = values
        if loaded[name].dtype != dtype:
            raise reader.wrong(f"array {name!r} is used as two types")
        return loaded[name]

    slices = []
    for described in reader.list("slices"):
        each = Reader(described, reader.where)
        span = each.span(each.get("k"), "k")
        if span not in k_spans:
            raise reader.wrong(f"a slice of K from {span.start} is none of the plan's")
        arrays = {field: load(described[field], dtype) for field, dtype in _ARRAYS if described.get(field) is not None}
        group = None
        if "group" in each.content:  # of activations that are scaled in groups
            group = each.span(each.content["group"], "group")
            if not group.start <= span.start <= span.start + span.length <= group.start + group.length <= k:
                raise reader.wrong(f"the group from {group.start} does not hold the slice of K from {span.start}")
        slices.append(KSlice(span, each.integer("part", 0, 2), each.integer("tiles", 0), **arrays, group=group))
    covered = {each.k_span for each in slices}
    if covered != set(k_spans):
        raise reader.wrong("its slices do not cover K")
    return slices


def tile_rows_of(reader: Reader, slices: Sequence[KSlice]) -> list[Span]:
    """The range of K of each row of tiles."""
    spans: dict[int, Span] = {}
    for each in slices:
        if spans.setdefault(each.tiles, each.k_span) != each.k_span:
            raise reader.wrong(f"row {each.tiles} of tiles serves two ranges of K")
    if sorted(spans) != list(range(len(spans))):
        raise reader.wrong("rows of tiles are missing")
    return [spans[index] for index in range(len(spans))]
