"""bfloat16 through DLPack, which numpy's own exchange lacks: the type field of a capsule is rewritten.

A capsule named ``dltensor`` holds a `DLManagedTensor`, which begins with its `DLTensor` (dlpack.h, ABI 0.x; those with
a version are another struct and are never asked for here).
"""

from __future__ import annotations

import ctypes as C
from contextlib import suppress
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

__all__ = ["as_ndarray", "export", "take"]

_CPU = (1, 0)  # kDLCPU, device 0
_UINT, _BFLOAT = 1, 4  # kDLUInt, kDLBfloat
_BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)


class _DLTensor(C.Structure):
    _fields_ = (
        ("data", C.c_void_p),
        ("device_type", C.c_int32),
        ("device_id", C.c_int32),
        ("ndim", C.c_int32),
        ("code", C.c_uint8),
        ("bits", C.c_uint8),
        ("lanes", C.c_uint16),
        ("shape", C.POINTER(C.c_int64)),
        ("strides", C.POINTER(C.c_int64)),
        ("byte_offset", C.c_uint64),
    )


def _tensor(capsule: Any) -> _DLTensor:
    pointer_of = C.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = C.c_void_p, (C.py_object, C.c_char_p)
    return _DLTensor.from_address(pointer_of(capsule, b"dltensor"))


def export(array: NDArray[Any], max_version: tuple[int, int] | None = None) -> Any:
    """A DLPack capsule of an array in host memory; it shares the memory and keeps the array alive.

    Parameters
    ----------
    array : ndarray
    max_version : (int, int), optional
        Newest version that the taker understands; without it, and for bfloat16, the capsule has no version.

    Raises
    ------
    BufferError
        If DLPack has no such dtype, as int4.
    """
    if array.dtype != _BFLOAT16:
        if array.dtype.kind == "V":
            raise BufferError(f"DLPack cannot express {array.dtype}; export .numpy().astype(np.int8) instead")
        if max_version is None or np.lib.NumpyVersion(np.__version__) < "2.1.0":
            return array.__dlpack__()
        return array.__dlpack__(max_version=max_version)
    capsule = array.view(np.uint16).__dlpack__()
    _tensor(capsule).code = _BFLOAT
    return capsule


class _Retyped:
    """What numpy asks for a capsule, with the bfloat16 of the original shown as uint16."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return _CPU


def take(source: Any) -> NDArray[Any]:
    """A read-only array that shares the memory of an object with ``__dlpack__``; bfloat16 becomes that of `ml_dtypes`.

    Raises
    ------
    BufferError
        If the object is not in memory of the CPU, or numpy has no such type.
    """
    if tuple(int(part) for part in source.__dlpack_device__()) != _CPU:
        raise BufferError(f"this {type(source).__name__} is not in memory of the CPU; move it there first")
    capsule = source.__dlpack__()
    tensor = _tensor(capsule)
    if (tensor.code, tensor.bits, tensor.lanes) != (_BFLOAT, 16, 1):
        return np.from_dlpack(_Retyped(capsule))
    tensor.code = _UINT
    return np.from_dlpack(_Retyped(capsule)).view(_BFLOAT16)


def as_ndarray(x: Any, called: str) -> NDArray[Any]:
    """An ndarray of anything that numpy can make one of, and of tensors of bfloat16, which it cannot.

    Parameters
    ----------
    x : array_like
    called : str
        Function and argument, for errors.

    Raises
    ------
    TypeError, ValueError
        If there is no way from `x` to an ndarray: what numpy, or the object's own class, says about it.
    """
    try:
        return np.asarray(x)
    except TypeError as error:
        if hasattr(type(x), "__dlpack__"):
            with suppress(BufferError, ValueError):  # sparse, or on another device: its class has said so already
                return take(x)
        raise TypeError(f"{called} cannot become an ndarray: {error}") from error
    except ValueError as error:
        raise ValueError(f"{called} cannot become an ndarray: {error}") from error
