"""Products with an `NpuArray` among the operands, or as the place of the result."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import NpuMemoryError
from npumatmul.ops.array.array import NpuArray, asarray, empty, room_for
from npumatmul.ops.array.memory import DTYPES
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.shapes import operand
from npumatmul.running.direct import Room, Rows, direct_type, multiply, ranges_in_place

__all__ = [
    "as_array",
    "as_npu_array",
    "device_of",
    "giving_npu_arrays",
    "host",
    "involves_npu_arrays",
    "on_cpu",
    "product_in_place",
    "reshaped",
    "taking_npu_arrays",
    "turned",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def host(x: Any) -> Any:
    """What numpy can read: an NpuArray as an ndarray that shares its memory, the values of a packed weight."""
    if isinstance(x, PackedWeight):
        return x.unpack()
    return x.numpy(writable=False) if isinstance(x, NpuArray) else x


def involves_npu_arrays(*given: Any) -> bool:
    """Whether one of the operands, or of a tuple of places for results, is an NpuArray."""
    return any(isinstance(x, NpuArray) or (isinstance(x, tuple) and involves_npu_arrays(*x)) for x in given)


def giving_npu_arrays(function: _Function) -> _Function:
    """Make a function of ndarrays take NpuArrays, and then give one and work on their device."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        if not involves_npu_arrays(*args, *options.values()):
            return function(*args, **options)
        device = device_of([*args, *options.values()], options.pop("device", None))
        out = options.pop("out", None)
        if out is None:
            result = function(*map(host, args), device=device, **{k: host(v) for k, v in options.items()})
            return as_npu_array(result, device)
        target = out[0] if isinstance(out, tuple) else out
        place = target.numpy() if isinstance(target, NpuArray) else target
        function(*map(host, args), out=place, device=device, **{k: host(v) for k, v in options.items()})
        return target

    return wrapped  # type: ignore[return-value]


def taking_npu_arrays(function: _Function) -> _Function:
    """As `giving_npu_arrays`, for a function that takes NpuArrays as they are: results that nobody read stay so."""

    @functools.wraps(function)
    def wrapped(*args: Any, **options: Any) -> Any:
        if not involves_npu_arrays(*args, *options.values()):
            return function(*args, **options)
        device = device_of([*args, *options.values()], options.pop("device", None))
        out = options.pop("out", None)
        result = function(*args, device=device, **options)
        if out is None:
            if isinstance(result, NpuArray):
                return result if result.ndim else result.numpy()
            return as_npu_array(result, device)
        target = out[0] if isinstance(out, tuple) else out
        place = target.numpy() if isinstance(target, NpuArray) else target
        if place.shape != np.shape(host(result)):
            raise ValueError(f"{function.__name__}: out has shape {place.shape}, the result has {host(result).shape}")
        np.copyto(place, host(result), casting="same_kind")
        return target

    return wrapped  # type: ignore[return-value]


def as_array(x: Any, name: str, function: str) -> Any:
    """NpuArrays and packed weights as they are, else an ndarray; for errors, what it is called in which function."""
    return x if isinstance(x, NpuArray | PackedWeight) else operand(x, name, function)


def turned(x: Any, axes: list[int]) -> Any:
    """An array with its axes in another order, which the CPU reads an NpuArray or a packed weight for."""
    return x if axes == list(range(x.ndim)) else host(x).transpose(axes)


def reshaped(x: Any, *shape: int) -> Any:
    """An array in another shape; a packed weight, which has one only, is read where that differs."""
    return x if x.shape == shape else (host(x) if isinstance(x, PackedWeight) else x).reshape(shape)


def on_cpu(function: Callable[..., Any], a: Any, b: Any, options: dict[str, Any]) -> Any:
    """Call a product of numpy's with NpuArrays seen as ndarrays; it gives an NpuArray, or `out` as it was given."""
    out = options.get("out")
    target = out[0] if isinstance(out, tuple) else out
    if target is not None:
        options = {**options, "out": target.numpy() if isinstance(target, NpuArray) else target}
    result = function(host(a), host(b), **options)
    return target if target is not None else as_npu_array(result, device_of([a, b], None))


def product_in_place(a: Any, b: Any, out: Any, dtype: Any) -> NpuArray | None:
    """The product of an NpuArray and a packed weight, if the NPU can read the one and write the result where they are.

    Parameters
    ----------
    a, b, out, dtype
        Arguments of `npumatmul.matmul`.

    Returns
    -------
    NpuArray or None
        None where it has to be computed otherwise, and where an argument is wrong.
    """
    target = out[0] if isinstance(out, tuple) and len(out) == 1 else out
    if isinstance(a, NpuArray) and isinstance(b, PackedWeight) and b.input_transform is None:
        return _in_place(a, b, target, dtype)
    return None


def _in_place(a: NpuArray, b: PackedWeight, out: Any, dtype: Any) -> NpuArray | None:
    """The product if the NPU can read `a` and write the result where they are, else None."""
    stored = b.stored
    if stored is None or b.zero_point or not a.contiguous or a.ndim == 0 or a.size == 0 or a.shape[-1] != b.shape[0]:
        return None
    if a.domain not in (None, stored.domain):
        return None
    wanted = b.scheme.result if dtype is None else np.dtype(dtype)
    mm_type = direct_type(stored, a.dtype, wanted) if a.dtype in b.scheme.activations else None
    if mm_type is None:
        return None
    shape = (*a.shape[:-1], b.shape[1])
    if not (
        out is None or (isinstance(out, NpuArray) and out.contiguous and (out.shape, out.dtype) == (shape, wanted))
    ):
        return None
    m = math.prod(a.shape[:-1])
    a._check_usable()
    readable = Room(a.offset, a.room - a.offset)
    writable = Room(0, room_for(shape, wanted, b.device)) if out is None else _writable(out)
    ranges = ranges_in_place(m, stored, mm_type, readable, writable)
    if ranges is None:
        return None  # nothing was allocated, and a result that nobody read yet stays so
    try:
        source = a.buffer_in(stored.domain)
        result = empty(shape, wanted, device=b.device, domain=stored.domain) if out is None else out
    except NpuMemoryError:
        return None  # where it is computed otherwise it may be in another domain
    rows_of_a, rows_of_c = Rows(source, readable), Rows(result.buffer, _writable(result))
    return result if multiply(rows_of_a, m, stored, mm_type, rows_of_c, ranges) else None


def _writable(result: NpuArray) -> Room:
    """Behind the last row of the memory that arrays use there is room for rows that nobody sees."""
    ends = result.offset + result.nbytes
    return Room(result.offset, (result.room if ends == result.extent else ends) - result.offset)


def device_of(given: list[Any], device: Device | str | None) -> Device:
    """The device that was named, else that of the arrays."""
    if device is not None:
        return current_device(device)
    found = {id(x.device): x.device for x in given if isinstance(x, NpuArray)}
    if len(found) > 1:
        names = " and ".join(sorted(each.name for each in found.values()))
        raise ValueError(f"the NpuArrays are on different devices ({names}): say which one with device=")
    return next(iter(found.values())) if found else current_device(None)


def as_npu_array(result: Any, device: Device) -> Any:
    """An array as an NpuArray; scalars, and what an NpuArray cannot hold (of a fallback to numpy), as they are."""
    if not isinstance(result, np.ndarray) or result.ndim == 0 or result.dtype not in DTYPES:
        return result
    values: NDArray[Any] = result
    made = asarray(values, device=device)
    with device.lock:
        device.counters.conversions += 1
    return made
