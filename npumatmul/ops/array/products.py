"""Products with an `NpuArray` among the operands, or as the place of the result."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.ops.array.array import NpuArray, asarray
from npumatmul.ops.array.memory import DTYPES
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.shapes import operand

__all__ = [
    "as_array",
    "as_npu_array",
    "device_of",
    "giving_npu_arrays",
    "host",
    "involves_npu_arrays",
    "on_cpu",
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
