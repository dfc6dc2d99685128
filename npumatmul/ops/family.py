"""The relatives of `matmul`, each with numpy's signature: they arrange their operands and call it.

Dtypes, errors, ``config(fallback="numpy")`` and what numpy does not have, `scheme`, `precision` and `device`, are those
of `matmul`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex, cast, overload

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.ops.array.array import NpuArray
from npumatmul.ops.array.products import (
    as_array,
    giving_npu_arrays,
    host,
    involves_npu_arrays,
    reshaped,
    taking_npu_arrays,
    turned,
)
from npumatmul.ops.foreign import as_numpy
from npumatmul.ops.matmul import matmul
from npumatmul.ops.packed.weight import PackedWeight
from npumatmul.ops.results import checked_out, fits
from npumatmul.ops.settings import settings
from npumatmul.ops.shapes import npu_kind, operand
from npumatmul.ops.typed import How, Into, Operand, Place, Unpack
from npumatmul.quant.names import Precision, SchemeName
from npumatmul.quant.schemes import Scheme

__all__ = ["dot", "inner", "matvec", "outer", "tensordot", "vdot", "vecdot", "vecmat"]

_Where = Device | str | None
#: What `tensordot` takes as axes: a number, or those of a and of b.
Axes = SupportsIndex | Sequence[SupportsIndex | Sequence[SupportsIndex]] | NDArray[np.integer[Any]]


@overload
def dot(a: NpuArray, b: Operand, out: None = None, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def dot(a: Operand, b: NpuArray, out: None = None, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def dot(a: Operand, b: Operand, out: None = None, **how: Unpack[How]) -> NDArray[Any]: ...
@overload
def dot(a: Operand, b: Operand, out: Place, **how: Unpack[How]) -> Place: ...
@as_numpy
def dot(
    a: Operand,
    b: Operand,
    out: NDArray[Any] | NpuArray | None = None,
    *,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: _Where = None,
) -> Any:
    """Sum of products over the last axis of `a` and the second last of `b`; see `numpy.dot`.

    Parameters
    ----------
    a : array_like, shape (..., K)
    b : array_like, shape (..., K, N) or (K,)
    out : ndarray, optional
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray, shape ``a.shape[:-1] + b.shape[:-2] + b.shape[-1:]``
        With a scalar operand, the other one multiplied by it.

    Raises
    ------
    ValueError, TypeError
        As `matmul`.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.dot(np.ones((2, 3), np.int8), np.ones((5, 3, 4), np.int8)).shape
    (2, 5, 4)
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    if involves_npu_arrays(a, b, out):
        ranks = [each.ndim if isinstance(each, NpuArray) else np.ndim(host(each)) for each in (a, b)]
        plain = min(ranks) > 0 and ranks[1] <= 2
        return cast("Any", matmul)(a, b, out, **how) if plain else _dot_of_arrays(a, b, out=out, **how)
    x, y = host(as_array(a, "a", "dot")), as_array(b, "b", "dot")
    if _is_numpys(x, y):
        return np.dot(x, y) if out is None else np.dot(x, y, out=host(out))
    if x.ndim == 0 or y.ndim == 0:
        y = host(y)
        product = matmul(x.reshape(-1, 1), y.reshape(1, -1), **how).reshape(x.shape or y.shape)
    elif y.ndim <= 2:
        product = matmul(x, y, **how)
    else:
        product = tensordot(x, y, axes=(-1, -2), **how)
    return _into(product, out, "dot")


_dot_of_arrays: Any = giving_npu_arrays(dot)


@as_numpy
@giving_npu_arrays
def vdot(
    a: Operand,
    b: Operand,
    /,
    *,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: _Where = None,
) -> np.number[Any]:
    """Sum of products of all elements, both operands read as vectors; see `numpy.vdot`.

    Parameters
    ----------
    a, b : array_like
        Of equal size.
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    scalar

    Raises
    ------
    ValueError, TypeError
        As `matmul`.

    Examples
    --------
    >>> import npumatmul as npu
    >>> int(npu.vdot(np.ones((2, 3), np.int8), np.ones((3, 2), np.int8)))
    6
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    x, y = np.ravel(operand(a, "a", "vdot")), np.ravel(operand(b, "b", "vdot"))
    product: np.number[Any] = np.vdot(x, y) if _is_numpys(x, y) else matmul(x, y, **how)
    return product


@overload
def vecdot(  # type: ignore[overload-overlap]
    x1: NpuArray, x2: Operand, /, out: None = None, *, axis: SupportsIndex = -1, **how: Unpack[How]
) -> NpuArray: ...
@overload
def vecdot(  # type: ignore[overload-overlap]
    x1: Operand, x2: NpuArray, /, out: None = None, *, axis: SupportsIndex = -1, **how: Unpack[How]
) -> NpuArray: ...
@overload
def vecdot(
    x1: Operand, x2: Operand, /, out: None = None, *, axis: SupportsIndex = -1, **how: Unpack[How]
) -> NDArray[Any]: ...
@overload
def vecdot(
    x1: Operand, x2: Operand, /, out: Place | tuple[Place], *, axis: SupportsIndex = -1, **how: Unpack[How]
) -> Place: ...
@as_numpy
@giving_npu_arrays
def vecdot(
    x1: Operand,
    x2: Operand,
    /,
    out: Into = None,
    *,
    axis: SupportsIndex = -1,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: _Where = None,
) -> Any:
    """Sum of products over one axis, the others broadcast; see `numpy.vecdot`.

    Parameters
    ----------
    x1, x2 : array_like
        With the same length along `axis`.
    axis : int
    out : ndarray, optional
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray or scalar
        The broadcast shape without `axis`.

    Raises
    ------
    ValueError, TypeError
        As `matmul`.

    Notes
    -----
    Each vector is a matmul of its own with one row and one column: correct, but no use of an NPU. Where one operand is
    the same for all, `matvec` or `matmul` compute all products at once.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.vecdot(np.ones((2, 3), np.int8), np.arange(3, dtype=np.int8))
    array([3, 3], dtype=int32)
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    x, y = (np.moveaxis(operand(v, "an operand", "vecdot"), axis, -1) for v in (x1, x2))
    if _is_numpys(x, y):
        if (theirs := getattr(np, "vecdot", None)) is not None:  # numpy 2.0
            return theirs(x1, x2, out=out, axis=axis)
        product = np.matmul(_conjugated(x)[..., np.newaxis, :], y[..., :, np.newaxis])[..., 0, 0]
    else:
        product = matmul(x[..., np.newaxis, :], y[..., :, np.newaxis], **how)[..., 0, 0]
    return _broadcast_into(product, out, 0, "vecdot")


@overload
def matvec(x1: NpuArray, x2: Operand, /, out: None = None, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def matvec(x1: Operand, x2: NpuArray, /, out: None = None, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def matvec(x1: Operand, x2: Operand, /, out: None = None, **how: Unpack[How]) -> NDArray[Any]: ...
@overload
def matvec(x1: Operand, x2: Operand, /, out: Place | tuple[Place], **how: Unpack[How]) -> Place: ...
@as_numpy
@giving_npu_arrays
def matvec(
    x1: Operand,
    x2: Operand,
    /,
    out: Into = None,
    *,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: _Where = None,
) -> Any:
    """Products of matrices with vectors; see `numpy.matvec`.

    Parameters
    ----------
    x1 : array_like, shape (..., M, K)
    x2 : array_like, shape (..., K)
    out : ndarray, optional
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray, shape (..., M)

    Raises
    ------
    ValueError, TypeError
        As `matmul`.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.matvec(np.ones((4, 3), np.int8), np.arange(6, dtype=np.int8).reshape(2, 3)).shape
    (2, 4)
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    x, y = _with_dimensions(x1, 2, "matvec"), _with_dimensions(x2, 1, "matvec")
    if _is_numpys(x, y) and (theirs := getattr(np, "matvec", None)) is not None:  # numpy 2.2
        return theirs(x1, x2, out=out)
    # one matrix for all vectors: the vectors are rows
    product = matmul(y, x.T, **how) if x.ndim == 2 else matmul(x, y[..., np.newaxis], **how)[..., 0]
    return _broadcast_into(product, out, 1, "matvec")


@overload
def vecmat(x1: NpuArray, x2: Operand, /, out: None = None, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def vecmat(x1: Operand, x2: NpuArray, /, out: None = None, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def vecmat(x1: Operand, x2: Operand, /, out: None = None, **how: Unpack[How]) -> NDArray[Any]: ...
@overload
def vecmat(x1: Operand, x2: Operand, /, out: Place | tuple[Place], **how: Unpack[How]) -> Place: ...
@as_numpy
@giving_npu_arrays
def vecmat(
    x1: Operand,
    x2: Operand,
    /,
    out: Into = None,
    *,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: _Where = None,
) -> Any:
    """Products of vectors with matrices; see `numpy.vecmat`.

    Parameters
    ----------
    x1 : array_like, shape (..., K)
    x2 : array_like, shape (..., K, N)
    out : ndarray, optional
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray, shape (..., N)

    Raises
    ------
    ValueError, TypeError
        As `matmul`.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.vecmat(np.ones((5, 3), np.int8), np.ones((3, 4), np.int8)).shape
    (5, 4)
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    x, y = _with_dimensions(x1, 1, "vecmat"), _with_dimensions(x2, 2, "vecmat")
    if _is_numpys(x, y):
        if (theirs := getattr(np, "vecmat", None)) is not None:  # numpy 2.2
            return theirs(x1, x2, out=out)
        product = np.matmul(_conjugated(x)[..., np.newaxis, :], y)[..., 0, :]
    else:
        product = matmul(x[..., np.newaxis, :], y, **how)[..., 0, :]
    return _broadcast_into(product, out, 1, "vecmat")


@overload
def inner(a: NpuArray, b: Operand, /, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def inner(a: Operand, b: NpuArray, /, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def inner(a: Operand, b: Operand, /, **how: Unpack[How]) -> NDArray[Any]: ...
@as_numpy
@taking_npu_arrays
def inner(
    a: Operand,
    b: Operand,
    /,
    *,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: _Where = None,
) -> Any:
    """Sum of products over the last axes of both; see `numpy.inner`.

    Parameters
    ----------
    a : array_like, shape (..., K)
    b : array_like, shape (..., K)
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray, shape ``a.shape[:-1] + b.shape[:-1]``
        With a scalar operand, the other one multiplied by it.

    Raises
    ------
    ValueError, TypeError
        As `matmul`.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.inner(np.ones((2, 3), np.int8), np.ones((4, 3), np.int8)).shape
    (2, 4)
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    x, y = as_array(a, "a", "inner"), as_array(b, "b", "inner")
    if _is_numpys(x, y):
        return np.inner(host(x), host(y))
    if x.ndim == 0 or y.ndim == 0:
        return dot(x, y, **how)
    return tensordot(x, y, axes=(-1, -1), **how)[()]


@overload
def outer(a: NpuArray, b: Operand, out: None = None, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def outer(a: Operand, b: NpuArray, out: None = None, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def outer(a: Operand, b: Operand, out: None = None, **how: Unpack[How]) -> NDArray[Any]: ...
@overload
def outer(a: Operand, b: Operand, out: Place, **how: Unpack[How]) -> Place: ...
@as_numpy
@giving_npu_arrays
def outer(
    a: Operand,
    b: Operand,
    out: NDArray[Any] | NpuArray | None = None,
    *,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: _Where = None,
) -> Any:
    """Products of each element of `a` with each of `b`, both read as vectors; see `numpy.outer`.

    Parameters
    ----------
    a : array_like of M elements
    b : array_like of N elements
    out : ndarray, optional
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray, shape (M, N)

    Raises
    ------
    TypeError
        As `matmul`.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.outer(np.array([1, 2], np.int8), np.array([3, 4], np.int8))
    array([[3, 4],
           [6, 8]], dtype=int32)
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    x, y = operand(a, "a", "outer"), operand(b, "b", "outer")
    if _is_numpys(x, y):
        return np.outer(x, y, host(out))
    product = matmul(x.reshape(-1, 1), y.reshape(1, -1), **how)
    return _into(product, out, "outer")


@overload
def tensordot(a: NpuArray, b: Operand, axes: Axes = 2, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def tensordot(a: Operand, b: NpuArray, axes: Axes = 2, **how: Unpack[How]) -> NpuArray: ...  # type: ignore[overload-overlap]
@overload
def tensordot(a: Operand, b: Operand, axes: Axes = 2, **how: Unpack[How]) -> NDArray[Any]: ...
@as_numpy
@taking_npu_arrays
def tensordot(
    a: Operand,
    b: Operand,
    axes: Axes = 2,
    *,
    scheme: Scheme | SchemeName | None = None,
    precision: Precision | None = None,
    device: _Where = None,
) -> Any:
    """Sum of products over several axes; see `numpy.tensordot`.

    Parameters
    ----------
    a, b : array_like
    axes : int or (axes of a, axes of b)
        An integer N takes the last N axes of `a` and the first N of `b`.
    scheme, precision, device
        As for `matmul`.

    Returns
    -------
    ndarray
        The remaining axes of `a`, then those of `b`.

    Raises
    ------
    ValueError, TypeError
        As `matmul`; or if the axes do not fit.

    Examples
    --------
    >>> import npumatmul as npu
    >>> npu.tensordot(np.ones((2, 3, 4), np.int8), np.ones((4, 3, 5), np.int8), axes=([1, 2], [1, 0])).shape
    (2, 5)
    """
    how: dict[str, Any] = {"scheme": scheme, "precision": precision, "device": device}
    x, y = as_array(a, "a", "tensordot"), as_array(b, "b", "tensordot")
    if _is_numpys(x, y):
        return np.tensordot(host(x), host(y), axes=axes)  # type: ignore[call-overload]
    x_given, y_given = _axes_of_both(axes)
    x_axes, y_axes = _normalized(x_given, x.ndim, "a"), _normalized(y_given, y.ndim, "b")
    if len(x_axes) != len(y_axes):
        raise ValueError(f"tensordot: {len(x_axes)} axes of a and {len(y_axes)} axes of b are to be summed over")
    for i, j in zip(x_axes, y_axes, strict=True):
        if x.shape[i] != y.shape[j]:
            raise ValueError(
                f"tensordot: axis {i} of a has length {x.shape[i]}, axis {j} of b {y.shape[j]} "
                f"(shapes {x.shape} and {y.shape})"
            )
    x_kept = [i for i in range(x.ndim) if i not in x_axes]
    y_kept = [j for j in range(y.ndim) if j not in y_axes]
    x_shape, y_shape = [x.shape[i] for i in x_kept], [y.shape[j] for j in y_kept]
    k = int(np.prod([x.shape[i] for i in x_axes], dtype=np.int64))
    m = int(np.prod(x_shape, dtype=np.int64))
    n = int(np.prod(y_shape, dtype=np.int64))
    rows = reshaped(turned(x, x_kept + x_axes), m, k)
    columns = reshaped(turned(y, y_axes + y_kept), k, n)
    return matmul(rows, columns, **how).reshape((*x_shape, *y_shape))


def _is_numpys(x: NDArray[Any] | NpuArray, y: NDArray[Any] | NpuArray) -> bool:
    """Whether the fallback is on and the NPU cannot multiply these."""
    if isinstance(x, PackedWeight) or isinstance(y, PackedWeight):
        return False
    return settings().fallback == "numpy" and (npu_kind(x.dtype) is None or npu_kind(x.dtype) != npu_kind(y.dtype))


def _broadcast_into(product: Any, out: Any, core: int, function: str) -> Any:
    """The product in `out`, or as numpy's functions of stacks hand it out."""
    result = np.asarray(product)
    place = checked_out(out, result.shape, result.dtype, core, function)
    if place is None:
        return result[()]
    np.copyto(place, result, casting="same_kind")
    return place


def _conjugated(x: NDArray[Any]) -> NDArray[Any]:
    return np.conj(x) if x.dtype.kind in "cO" else x


def _with_dimensions(x: Operand, at_least: int, function: str) -> NDArray[Any]:
    array: NDArray[Any] = as_array(x, "an operand", function)
    if array.ndim < at_least:
        raise ValueError(f"{function}: an operand has {array.ndim} dimensions, at least {at_least} are needed")
    return array


def _axes_of_both(axes: Any) -> tuple[list[Any], list[Any]]:
    """Axes of a and of b, from all that numpy takes: a number, or a pair of numbers or of sequences of numbers."""
    try:
        pair = list(axes)
    except TypeError:  # no sequence
        count = operator.index(axes)
        return list(range(-count, 0)), list(range(count))
    if len(pair) != 2:
        raise ValueError(f"tensordot: axes is a pair (axes of a, axes of b), not {axes!r}")
    x_given, y_given = ([each] if np.ndim(each) == 0 else list(each) for each in pair)
    return x_given, y_given


def _normalized(axes: list[int], ndim: int, name: str) -> list[int]:
    result = []
    for axis in axes:
        index = operator.index(axis)
        if not -ndim <= index < ndim:
            raise ValueError(f"tensordot: {name} has no axis {axis}; it has {ndim} dimensions")
        result.append(index % ndim)
    if len(set(result)) != len(result):
        raise ValueError(f"tensordot: an axis of {name} is named twice: {axes}")
    return result


def _into(product: Any, out: Any, function: str) -> Any:
    """The product, or `out` with the product in it; numpy's dot wants the exact shape, its outer can broadcast."""
    if out is None:
        return product
    if not isinstance(out, np.ndarray):
        raise TypeError(f"{function}: out has to be an ndarray, not {type(out).__name__}")
    shape = np.shape(product)
    if out.shape != shape and not (function == "outer" and fits(out.shape, shape, 0)):
        raise ValueError(f"{function}: out has shape {out.shape}, the result has {shape}")
    np.copyto(out, product, casting="same_kind")
    return out
