"""Typed binding of `libnpumm_onnx.so`: operators of ONNX Runtime that this process computes (`npumatmul_onnx.h`)."""

from __future__ import annotations

import ctypes as C
import itertools
import re
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import LibraryNotFoundError
from npumatmul.rknn.discovery import native_directory

__all__ = ["DOMAIN", "Allocate", "Compute", "connect", "failure_of"]

#: Of the operators.
DOMAIN = "npumatmul"

Allocate = Callable[[int, Sequence[int], Any], "NDArray[Any] | None"]
"""Makes the output of a number, of a shape and dtype; None if the model leaves that output out."""
Compute = Callable[[int, list["NDArray[Any] | None"], int, Allocate], None]
"""Computes a node of a number: from inputs, None for those that were left out, it makes so many outputs."""

#: ONNX's numbers of element types.
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype(np.float32), 2: np.dtype(np.uint8), 3: np.dtype(np.int8), 6: np.dtype(np.int32),
    10: np.dtype(np.float16),
}  # fmt: skip


class _Tensor(C.Structure):
    _fields_ = (("type", C.c_int32), ("rank", C.c_int32), ("dims", C.POINTER(C.c_int64)), ("data", C.c_void_p))


_Function = C.CFUNCTYPE(
    C.c_int, C.c_int64, C.c_size_t, C.POINTER(_Tensor), C.c_size_t, C.c_void_p, C.c_void_p, C.c_size_t
)
_kept: dict[Compute, Any] = {}  # what C has a pointer to
_DONE = 0x6E70  #: what says that a node was computed; an exception that ctypes swallows makes it 0
_OUTPUT_LEFT_OUT = 1

#: Exceptions by numbers, which are in the texts that ONNX Runtime passes on; the last of those nobody asked for.
_failures: dict[int, BaseException] = {}
_numbers = itertools.count(1)
_KEPT_FAILURES = 32


@lru_cache(maxsize=1)
def _library() -> tuple[C.CDLL, Path]:
    path = native_directory() / "libnpumm_onnx.so"
    try:
        library = C.CDLL(str(path))
    except OSError as error:
        raise LibraryNotFoundError(f"the package's own library cannot be loaded ({error}); reinstall npumatmul") from (
            error
        )
    library.npumm_onnx_set_compute.argtypes = (_Function,)
    library.npumm_onnx_set_compute.restype = None
    library.npumm_onnx_output.argtypes = (
        C.c_void_p, C.c_size_t, C.POINTER(C.c_int64), C.c_size_t, C.POINTER(C.c_void_p),
    )  # fmt: skip
    library.npumm_onnx_output.restype = C.c_int
    return library, path


def connect(compute: Compute) -> Path:
    """Have nodes computed by a function from now on.

    Parameters
    ----------
    compute : callable
        An exception makes the node fail with its text.

    Returns
    -------
    Path
        Of the library, for ``SessionOptions.register_custom_ops_library``.
    """
    library, path = _library()
    if compute in _kept:
        return path
    output = library.npumm_onnx_output

    def called(number: int, inputs: int, given: Any, outputs: int, call: int | None, message: int, room: int) -> int:
        def allocate(index: int, shape: Sequence[int], dtype: Any) -> NDArray[Any] | None:
            data = C.c_void_p()
            code = output(call, index, (C.c_int64 * len(shape))(*shape), len(shape), C.byref(data))
            if code == _OUTPUT_LEFT_OUT:
                return None
            if code:
                raise MemoryError(f"ONNX Runtime has no memory for an output of shape {tuple(shape)}")
            return _array(data.value, shape, np.dtype(dtype))

        try:
            compute(number, [_of(given[i]) for i in range(inputs)], outputs, allocate)
        except BaseException as error:  # nothing can be raised through C; whoever runs the session raises it again
            text = _told(error, room - 1)
            C.memmove(message, text + b"\0", len(text) + 1)
            return 0
        return _DONE

    function = _kept[compute] = _Function(called)
    library.npumm_onnx_set_compute(function)
    return path


def failure_of(error: Exception) -> BaseException | None:
    """The exception of a node that made ONNX Runtime raise another, with its text."""
    found = re.search(r"npumatmul: failure (\d+):", str(error))
    return None if found is None else _failures.pop(int(found[1]), None)


def _told(error: BaseException, room: int) -> bytes:
    """The text of an exception, which is kept without the arrays of its frames: their memory is ONNX Runtime's."""
    number = next(_numbers)
    chained: BaseException | None = error
    while chained is not None:
        traceback.clear_frames(chained.__traceback__)
        chained = chained.__cause__ or chained.__context__
    _failures[number] = error
    for old in list(_failures)[:-_KEPT_FAILURES]:
        _failures.pop(old, None)
    text = f"npumatmul: failure {number}: {type(error).__name__}: {error}"
    return text.encode(errors="replace")[:room].decode(errors="ignore").encode()


def _of(tensor: Any) -> NDArray[Any] | None:
    if not tensor.type:
        return None
    return _array(tensor.data, tensor.dims[: tensor.rank], _DTYPES[tensor.type])


def _array(data: int | None, shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    size = dtype.itemsize
    for each in shape:
        size *= each
    if not size:
        return np.empty(tuple(shape), dtype)
    assert data is not None
    memory: Any = (C.c_char * size).from_address(data)
    made: NDArray[Any] = np.ndarray(tuple(shape), dtype, memory)
    return made
