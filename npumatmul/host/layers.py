"""Typed binding of what stands between products: norms, rotations, gates and sums of float32 rows.

Each function makes one `Op` and has `libnpumm.so` run it. A recorder, where one listens, is told of it, so that the
same steps can be run again without Python (`npumatmul.running.recording`).
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Sequence
from contextvars import ContextVar
from enum import IntEnum
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from npumatmul.host import kernels
from npumatmul.host.arrays import address_of
from npumatmul.host.executor import Call, Function, PlacedMatmul

__all__ = [
    "RECORDER",
    "Kind",
    "Op",
    "Recording",
    "Rotation",
    "RowsAt",
    "RowsShape",
    "add",
    "add_to",
    "gate",
    "kth_largest",
    "layer_norm",
    "rms_norm",
    "rotate",
    "scale",
    "scale_by",
]

Float32 = NDArray[np.float32]
_F32 = np.dtype(np.float32)
TOP_K_MOST = 256


class Kind(IntEnum):
    """`npumm_op_kind`: what a step does."""

    PRODUCT = 0
    RMS_NORM = 1
    LAYER_NORM = 2
    ROTATE = 3
    GATE = 4
    ADD = 5
    SCALE = 6
    CALL = 7
    APPEND = 8
    ATTEND = 9
    SKIP = 10


class RowsShape(C.Structure):
    """`npumm_rows_shape`: how many rows, and their width."""

    _fields_ = tuple((name, C.c_int64) for name in ("outer", "inner", "width"))


class RowsAt(C.Structure):
    """`npumm_rows_from` and `npumm_rows_to`: where rows stand."""

    _fields_ = (("data", C.c_void_p), ("outer_stride", C.c_int64), ("inner_stride", C.c_int64))


class Rotation(C.Structure):
    """`npumm_rotation`: cosines and sines of positions."""

    _fields_ = (
        ("cos", C.c_void_p),
        ("sin", C.c_void_p),
        ("count", C.c_int64),
        ("half", C.c_int64),
        ("interleaved", C.c_int32),
    )


CALLBACK = C.CFUNCTYPE(C.c_int)


class Op(C.Structure):
    """`npumm_op`: one step."""

    _fields_ = (
        ("kind", C.c_int),
        ("function", C.c_int),
        ("shape", RowsShape),
        ("x", RowsAt),
        ("y", RowsAt),
        ("out", RowsAt),
        ("weight", C.c_void_p),
        ("bias", C.c_void_p),
        ("share", C.c_float),
        ("eps", C.c_float),
        ("scale", C.c_float),
        ("rotation", C.POINTER(Rotation)),
        ("placed", C.POINTER(PlacedMatmul)),
        ("call", C.POINTER(Call)),
        ("sequence", C.c_int64),
        ("layer", C.c_int64),
        ("attention", C.c_void_p),
        ("proven", C.c_int64),
        ("callback", CALLBACK),
    )


class Recording(Protocol):
    """Who wants to know of steps."""

    def step(self, op: Op, reads: Sequence[tuple[str, Float32]], out: Float32, keeps: object) -> None:
        """A step was run: it reads arrays, by the names of fields, and wrote another one."""
        ...


#: Who listens to the steps of the present context.
RECORDER: ContextVar[Any] = ContextVar("npumatmul_recorder", default=None)


@lru_cache(maxsize=1)
def _op_run() -> Any:
    function = kernels.library().npumm_op_run
    function.restype = C.c_int
    function.argtypes = (C.POINTER(Op), C.c_int64)
    return function


def _placed(x: Float32) -> tuple[Float32, int, int, int, int]:
    """Rows as ``outer`` times ``inner``, the last axis but one, with strides; a copy where they do not stand so."""
    shape, strides = x.shape, x.strides
    if len(shape) == 2 and strides[1] == 4:
        return x, 1, shape[0], 0, strides[0]
    if len(shape) == 1:
        x, shape, strides = x[None], (1, *shape), (0, *strides)
    if strides[-1] != 4 and shape[-1] > 1:
        x = np.ascontiguousarray(x)
        strides = x.strides
    outer, outer_stride = 1, 0
    for size, stride in zip(shape[-3::-1], strides[-3::-1], strict=True):
        if size == 1:
            continue
        if outer > 1 and stride != outer * outer_stride:
            x = np.ascontiguousarray(x)
            return x, int(np.prod(shape[:-2])), shape[-2], shape[-2] * shape[-1] * 4, shape[-1] * 4
        if outer == 1:
            outer_stride = stride
        outer *= size
    return x, outer, shape[-2], outer_stride, strides[-2]


def _whole(x: NDArray[Any]) -> Float32:
    """Floats one behind the other, each where a float can begin; a copy where they are not."""
    return np.require(x, _F32, ("C", "A"))


def _run(op: Op, x: Float32, y: Float32 | None, out: Float32 | None, position: int, keeps: object) -> Float32:
    """Run a step on rows of `x`, and of `y`, of one shape."""
    if out is None:
        out = np.empty(x.shape, np.float32)
    if not x.size:
        return out
    reads = _place(op, x, y, out)
    code = _op_run()(op, position)
    if code and not (x.flags.aligned and (y is None or y.flags.aligned)):  # floats of packed records, or of files
        return _run(op, _whole(x), None if y is None else _whole(y), out, position, keeps)
    assert code == 0, f"npumm_op_run: code {code}"
    recorder = RECORDER.get()
    if recorder is not None:
        recorder.step(op, reads, out, keeps)
    return out


def _place(op: Op, x: Float32, y: Float32 | None, out: Float32) -> list[tuple[str, Float32]]:
    """Tell a step where rows of arrays stand; what it reads, by name."""
    shape, strides = x.shape, x.strides
    axes = len(shape)
    if (axes == 2 or (axes == 4 and shape[0] == 1)) and strides[-1] == 4 and y is None and out.flags.c_contiguous:
        inner, width = shape[-2:]  # nearly always
        outer, outer_stride = (1, 0) if axes == 2 else (shape[1], strides[1])
        op.shape = RowsShape(outer, inner, width)
        op.x = RowsAt(address_of(x), outer_stride, strides[-2])
        op.out = RowsAt(address_of(out), 4 * inner * width, 4 * width)
        return [("x", x)]
    x, outer, inner, outer_stride, inner_stride = _placed(x)
    op.shape = RowsShape(outer, inner, x.shape[-1])
    op.x = RowsAt(address_of(x), outer_stride, inner_stride)
    reads = [("x", x)]
    if y is not None:
        y, _, _, outer_stride, inner_stride = _placed(y)
        op.y = RowsAt(address_of(y), outer_stride, inner_stride)
        reads.append(("y", y))
    placed, _, _, outer_stride, inner_stride = _placed(out)
    assert placed is out or placed.base is not None, "results have room of their own"
    op.out = RowsAt(address_of(placed), outer_stride, inner_stride)
    return reads


def _told(op: Op, x: Float32, y: Float32 | None, out: Float32) -> Float32:
    """Tell a recorder of a step that numpy has done: its bits are those that the kernel gives."""
    RECORDER.get().step(op, _place(op, x, y, out), out, None)
    return out


def rms_norm(x: Float32, factor: Float32 | None, share: float, eps: float) -> Float32:
    """``x / sqrt(sum(x**2) * share + eps) * factor``, row by row.

    Parameters
    ----------
    x : ndarray of float32, shape (..., D)
    factor : ndarray of float32, shape (D,), or None
    share, eps : float

    Returns
    -------
    ndarray of float32, shape (..., D)
        A new array.

    Examples
    --------
    >>> rms_norm(np.array([[3, 4]], np.float32), None, 0.5, 0.0).round(3)
    array([[0.849, 1.131]], dtype=float32)
    """
    if factor is not None and not (factor.flags.carray and factor.dtype == _F32):
        factor = _whole(factor)
    op = Op(kind=Kind.RMS_NORM, weight=None if factor is None else address_of(factor), share=share, eps=eps)
    return _run(op, x, None, None, 0, factor)


def layer_norm(x: Float32, weight: Float32, bias: Float32 | None, share: float, eps: float) -> Float32:
    """``d / sqrt(sum(d**2) * share + eps) * weight + bias``, where d is x less ``sum(x) * share``.

    Parameters
    ----------
    x : ndarray of float32, shape (..., D)
    weight, bias : ndarray of float32, shape (D,); bias may be None
    share, eps : float

    Returns
    -------
    ndarray of float32, shape (..., D)
        A new array.

    Examples
    --------
    >>> layer_norm(np.array([[3, 1]], np.float32), np.ones(2, np.float32), None, 0.5, 0.0)
    array([[ 1., -1.]], dtype=float32)
    """
    given = weight, bias
    weight = _whole(weight)
    bias = None if bias is None else _whole(bias)
    if (recorder := RECORDER.get()) is not None and (weight is not given[0] or bias is not given[1]):
        recorder.refuse("the weights of a norm are copied for each call")
    at = None if bias is None else address_of(bias)
    return _run(
        Op(kind=Kind.LAYER_NORM, weight=address_of(weight), bias=at, share=share, eps=eps),
        x, None, None, 0, (weight, bias),
    )  # fmt: skip


def rotate(x: Float32, rotation: Rotation, position: int, keeps: object, out: Float32 | None = None) -> Float32:
    """Turn pairs of values by the angles of ``position``, ``position + 1`` and so on.

    Parameters
    ----------
    x : ndarray of float32, shape (..., T, D)
    rotation : Rotation
        Of ``position + T`` positions or more, and no more than D values.
    position : int
    keeps : object
        What keeps the rotation up to date, for a recorder.
    out : ndarray of float32, shape (..., T, D), optional
        Not the memory of `x`.

    Returns
    -------
    ndarray of float32, shape (..., T, D)
        `out`, or a new array.

    Examples
    --------
    >>> cos, sin = np.array([[1], [0]], np.float32), np.array([[0], [1]], np.float32)
    >>> rotation = Rotation(cos.ctypes.data, sin.ctypes.data, 2, 1, 0)
    >>> rotate(np.array([[1, 2]], np.float32), rotation, 1, None)
    array([[-2.,  1.]], dtype=float32)
    """
    return _run(Op(kind=Kind.ROTATE, rotation=C.pointer(rotation)), x, None, out, position, keeps)


def gate(x: Float32, function: Function, up: Float32 | None) -> Float32:
    """``function(x) * up``.

    Parameters
    ----------
    x, up : ndarray of float32, shape (..., D)
        `up` may be None.
    function : Function

    Returns
    -------
    ndarray of float32, shape (..., D)
        A new array.

    Examples
    --------
    >>> gate(np.array([[-1, 2]], np.float32), Function.RELU, np.full((1, 2), 3, np.float32))
    array([[0., 6.]], dtype=float32)
    """
    return _run(Op(kind=Kind.GATE, function=function), x, up, None, 0, None)


def add(x: Float32, y: Float32, factor: float = 1.0) -> Float32:
    """``x + y * factor``.

    Parameters
    ----------
    x, y : ndarray of float32, shape (..., D)
    factor : float

    Returns
    -------
    ndarray of float32, shape (..., D)
        A new array.

    Examples
    --------
    >>> add(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), 0.5)
    array([[1.5, 1.5]], dtype=float32)
    """
    out: Float32 = x + (y if factor == 1.0 else y * np.float32(factor))
    return out if RECORDER.get() is None else _told(Op(kind=Kind.ADD, scale=factor), x, y, out)


def add_to(total: Float32, y: Float32, factor: Float32 | None, is_added: bool = True) -> None:
    """``total += y * factor``, by what stands in an array of one value whenever it is done.

    Parameters
    ----------
    total, y : ndarray of float32, shape (..., D)
    factor : ndarray of float32, shape (1,), optional
    is_added : bool
        Whether it is done now; if not, a recorder is told of it all the same.

    Examples
    --------
    >>> total = np.ones((1, 2), np.float32)
    >>> add_to(total, np.full((1, 2), 4, np.float32), np.array([0.5], np.float32))
    >>> total
    array([[3., 3.]], dtype=float32)
    """
    if is_added:
        total += y if factor is None else y * factor[0]
    recorder = RECORDER.get()
    if recorder is not None:
        op = Op(kind=Kind.ADD, scale=1.0)
        reads = _place(op, total, y, total)
        recorder.step(op, reads if factor is None else [*reads, ("weight", factor)], total, None)


@lru_cache(maxsize=1)
def _kth_largest() -> Any:
    function = kernels.library().npumm_kth_largest
    function.restype = C.c_int
    function.argtypes = (C.c_void_p, C.c_int64, C.c_int64, C.POINTER(C.c_float))
    return function


def kth_largest(values: Float32, k: int) -> float:
    """The k-th largest of values, none of which is a nan.

    Parameters
    ----------
    values : ndarray of float32, shape (N,)
    k : int
        From 1 to N.

    Examples
    --------
    >>> kth_largest(np.array([3, 1, 3, 2], np.float32), 3)
    2.0
    """
    if k > TOP_K_MOST or not (values.flags.c_contiguous and values.flags.aligned) or values.dtype != _F32:
        return float(np.partition(values, len(values) - k)[len(values) - k])
    found = C.c_float()
    code = _kth_largest()(address_of(values), len(values), k, found)
    assert code == 0, f"npumm_kth_largest: code {code}"
    return float(found.value)


def scale(x: Float32, factor: float, out: Float32 | None = None) -> Float32:
    """``x * factor``.

    Parameters
    ----------
    x : ndarray of float32, shape (..., D)
    factor : float
    out : ndarray of float32, shape (..., D), optional

    Returns
    -------
    ndarray of float32, shape (..., D)
        `out`, or a new array.

    Examples
    --------
    >>> scale(np.ones((1, 2), np.float32), 0.5)
    array([[0.5, 0.5]], dtype=float32)
    """
    out = np.multiply(x, np.float32(factor), out=out)
    return out if RECORDER.get() is None else _told(Op(kind=Kind.SCALE, scale=factor), x, None, out)


def scale_by(x: Float32, factor: NDArray[Any]) -> Float32:
    """``x * factor``, by what stands in an array of one value whenever it is done.

    Parameters
    ----------
    x : ndarray of float32, shape (..., D)
    factor : ndarray of float, shape (1,)

    Returns
    -------
    ndarray of float32, shape (..., D)
        A new array.

    Examples
    --------
    >>> scale_by(np.ones((1, 2), np.float32), np.array([0.5], np.float32))
    array([[0.5, 0.5]], dtype=float32)
    """
    out: Float32 = x * np.float32(factor[0])
    recorder = RECORDER.get()
    if recorder is not None:
        if factor.dtype != _F32 or not factor.flags.aligned:
            recorder.refuse("what rows are multiplied by is no float32")
        op = Op(kind=Kind.SCALE, weight=address_of(factor))
        recorder.step(op, _place(op, x, None, out), out, factor)
    return out
