"""A `PackedWeight` apart from its device, as files and pickles have it, and put together again."""

from __future__ import annotations

import copyreg
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import ClosedError, DeviceError, PackedFileError
from npumatmul.host.checksums import array_checksum
from npumatmul.ops.packed.files.consistency import check_params
from npumatmul.ops.packed.files.description import AGAIN, Reader
from npumatmul.ops.packed.files.parts import VERSION, check_tile, parts_of, stored_from
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.quant.params import InputTransform, QuantParams
from npumatmul.quant.routes import Route, route_for
from npumatmul.quant.schemes import Scheme
from npumatmul.quant.transforms import transform_from

__all__ = ["check_version", "described", "params_of", "restored", "transform_of", "unpickled"]

_Arrays = Callable[[str], NDArray[Any]]
#: Reads a tensor of so many bytes into memory and tells its checksum; None if it is of another type or shape.
_ReadInto = Callable[[str, NDArray[np.uint8]], "int | None"]


def described(packed: PackedWeight) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Description and arrays of a weight; tiles are views of device memory, for as long as its lock is held."""
    scheme, params, transform = packed.scheme, packed.params, packed.input_transform
    arrays: dict[str, NDArray[Any]] = {}
    if packed.column_sums is not None:
        arrays["column_sums"] = packed.column_sums
    if params is not None:
        arrays["params.scale"], arrays["params.zero_point"] = params.scale, params.zero_point
    content: dict[str, Any] = {
        "version": VERSION,
        "shape": list(packed.shape),
        "scheme": scheme.name,
        "activation_clip": scheme.activation_clip,
        "activation_params": None if scheme.activation_params is None else scheme.activation_params.as_dict(),
        "zero_point": packed.zero_point,
        **({} if scheme.result_params is None else {"result_params": scheme.result_params.as_dict()}),
        "params": None if params is None else params.description(),
        "input_transform": None if transform is None else transform.describe(),
        "checksums": {name: array_checksum(array) for name, array in arrays.items()},
        "stored": None,
    }
    if packed.stored is not None:
        parts = parts_of(packed.stored)
        content["stored"] = parts.content
        arrays.update(parts.arrays)
        arrays.update({f"tile.{index}": tile for index, tile in enumerate(parts.tiles)})
    return content, arrays


def restored(
    content: Any,
    array: _Arrays,
    device: Device,
    where: str,
    again: str = AGAIN,
    read_into: _ReadInto | None = None,
) -> PackedWeight:
    """A weight from its description and arrays, which `array` gives by name; `again` says what helps in another layout.

    Raises
    ------
    PackedFileError
        If they contradict each other, or are for another version or layout.
    """
    reader = Reader(content, where, again)
    check_version(reader)
    k, n = (reader.checked_integer(extent, "shape", 0) for extent in reader.pair("shape"))
    route = _route(reader, device)
    zero_point = reader.integer("zero_point", 0, 255)
    sums = None
    if "column_sums" in reader.dict("checksums"):
        sums = _array(reader, array, "column_sums", np.int32)
        if sums.shape != (n,):
            raise reader.wrong(f"'column_sums' has shape {sums.shape}, not ({n},)")
    params, transform = params_of(reader, array, (n, k)), transform_of(reader, k)
    check_params(reader, route, params)
    tiles = reader.get("stored")
    if tiles is None:
        if k and n:
            raise reader.wrong("it has elements but no tiles")
        device.check_usable()
        return PackedWeight((k, n), route, device, None, None, zero_point, sums, params, transform)

    def tile(index: int, memory: NDArray[np.uint8]) -> int:
        name = f"tile.{index}"
        read = None if read_into is None else read_into(name, memory)
        if read is not None:
            return read
        values = array(name)
        check_tile(reader, index, memory.size, values.dtype, values.shape)
        memory[...] = values
        return array_checksum(memory)

    stored = stored_from(tiles, (k, n), route, params, array, tile, device, where, again)
    if any(
        (zero_point and each.column_zero is None) or (sums is not None and each.column_sums is None)
        for each in stored.slices
    ):
        stored.close()
        raise reader.wrong("its slices lack what corrects unsigned integers")
    return PackedWeight((k, n), route, device, stored.plan, stored, zero_point, sums, params, transform)


def check_version(reader: Reader) -> None:
    """Refuse a description that a newer npumatmul made."""
    if reader.integer("version", 0) > VERSION:
        raise PackedFileError(
            f"{reader.where} was made by a newer npumatmul (version {reader.get('version')}); update it"
        )


def unpickled(content: Any, arrays: Any) -> PackedWeight:
    """What a pickle calls: the weight on the current device."""
    where = "this pickle of a packed weight"

    def array(name: str) -> NDArray[Any]:
        found = arrays.get(name) if isinstance(arrays, dict) else None
        if not isinstance(found, np.ndarray):
            raise PackedFileError(f"{where} is damaged: array {name!r} is missing")
        return found

    return restored(content, array, current_device(None), where)


def _pickled(packed: PackedWeight) -> tuple[Callable[..., PackedWeight], tuple[Any, ...]]:
    """Tiles as bytes; unpickling puts them onto the current device, if its layout is the same."""
    with packed.device.lock:
        if packed.closed:
            raise ClosedError("a packed weight that is closed cannot be pickled")
        content, arrays = described(packed)
        return unpickled, (content, {name: array.copy() for name, array in arrays.items()})


copyreg.pickle(PackedWeight, _pickled)


def _route(reader: Reader, device: Device) -> Route:
    name, clip, given = reader.text("scheme"), reader.get("activation_clip"), reader.get("activation_params")
    try:
        plain = Scheme.parse(name)
    except ValueError as error:
        raise PackedFileError(f"{reader.where} has a scheme that this npumatmul does not know: {error}") from error
    try:
        params = None if given is None else QuantParams(**given)
        result = reader.content.get("result_params")  # files of other schemes do not have it
        result_params = None if result is None else QuantParams(**result)
        scheme = replace(plain, activation_clip=float(clip), activation_params=params, result_params=result_params)
        return route_for(scheme, device.chip, device.runtime_version)
    except DeviceError as error:
        raise PackedFileError(f"{reader.where} does not fit this device: {error}; {reader.again}") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise reader.wrong(f"its scheme {name!r} cannot be made: {error}") from error


def _array(reader: Reader, array: _Arrays, name: str, dtype: type[Any]) -> NDArray[Any]:
    values = array(name)
    if values.dtype != dtype:
        raise reader.wrong(f"{name!r} is {values.dtype}, not {np.dtype(dtype)}")
    if array_checksum(values) != reader.dict("checksums").get(name):
        raise reader.wrong(f"the checksum of {name!r} differs")
    return values


def params_of(reader: Reader, array: _Arrays, shape: tuple[int, int]) -> QuantParams | None:
    """Scales and zero points of a weight (N, K), if it has some."""
    given = reader.get("params")
    if given is None:
        return None
    scale = _array(reader, array, "params.scale", np.float32)
    zero = _array(reader, array, "params.zero_point", np.int32)
    try:
        params = QuantParams(scale, zero, **given)
        params.check_shape(shape)
    except (ValueError, TypeError, IndexError) as error:
        raise reader.wrong(f"its scales and zero points do not fit together: {error}") from error
    return params


def transform_of(reader: Reader, k: int) -> InputTransform | None:
    """The transform that activations go through, if there is one."""
    given = reader.get("input_transform")
    if given is None:
        return None
    try:
        transform = transform_from(given)
    except (ValueError, OverflowError, RecursionError) as error:
        raise reader.wrong(f"its input transform cannot be made: {error}") from error
    if transform.features != k:
        raise reader.wrong(f"its input transform is for K={transform.features}, not {k}")
    return transform
