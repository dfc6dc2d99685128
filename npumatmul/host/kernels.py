"""Typed binding of `libnpumm.so`: the host kernels (`native/include/npumatmul_kernels.h`)."""

from __future__ import annotations

import ctypes as C
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import LibraryNotFoundError, NotFiniteError
from npumatmul.rknn.discovery import native_directory

BAD_ARGUMENT = -100
BUFFER_TOO_SMALL = -101
NOT_FINITE = -102
NO_MEMORY = -103
INTERRUPTED = -104
GIVEN_UP = -105


class Conversion(IntEnum):
    """`npumm_conversion`: what happens to a value on its way into a tile."""

    COPY_8 = 0
    COPY_16 = 1
    COPY_32 = 2
    INT4 = 3
    F32_TO_F16 = 4
    F32_TO_I8 = 5
    INT4_HIGH_FIRST = 6
    F32_TO_I4 = 7
    F32_TO_I4_HIGH_FIRST = 8
    F32_TO_I4_SPLIT = 9
    F32_TO_I4_SPLIT_HIGH_FIRST = 10
    F32_TO_F16_LOW = 11
    F32_TO_F16_HIGH = 12

    @property
    def row_images(self) -> int:
        """Rows of the packed image per row of the source: 2 where a value is split into int4 halves, else 1."""
        return 2 if self in (Conversion.F32_TO_I4_SPLIT, Conversion.F32_TO_I4_SPLIT_HIGH_FIRST) else 1

    @property
    def levels(self) -> int:
        """Largest magnitude of a value that is quantized; 0 where none is.

        Examples
        --------
        >>> Conversion.F32_TO_I8.levels, Conversion.F32_TO_I4_SPLIT.levels, Conversion.COPY_8.levels
        (127, 119, 0)
        """
        return int(library().npumm_levels(self))


class RowScaling(IntEnum):
    """`npumm_row_scaling`: how a row of A gets its scale."""

    UNSCALED = 0
    POWER_OF_TWO = 1
    ABSMAX = 2
    MINMAX = 3
    STATIC = 4
    POWER_OF_TWO_HIGH = 5
    ABSMAX_GROUPS = 6
    MINMAX_GROUPS = 7

    @property
    def in_groups(self) -> bool:
        """Whether a row has a scale for each group of K."""
        return self in (RowScaling.ABSMAX_GROUPS, RowScaling.MINMAX_GROUPS)

    @property
    def zero_points(self) -> bool:
        """Whether rows may have zero points."""
        return self in (RowScaling.MINMAX, RowScaling.STATIC, RowScaling.MINMAX_GROUPS)


class Tiling(C.Structure):
    """`npumm_tiling`: extents of the data, padded extents, tile; see the header for the algebra."""

    _fields_ = tuple(
        (name, C.c_int64) for name in ("rows", "cols", "padded_rows", "padded_cols", "tile_rows", "tile_cols")
    )


class Values(C.Structure):
    """`npumm_values`: a conversion with what it needs per row and what it tells about each."""

    _fields_ = (("conversion", C.c_int), ("row_scale", C.c_void_p), ("row_zero", C.c_void_p), ("row_sum", C.c_void_p))


_SOURCE_BYTES = {
    Conversion.COPY_8: 1,
    Conversion.COPY_16: 2,
    Conversion.INT4: 1,
    Conversion.INT4_HIGH_FIRST: 1,
}


class Hadamard(C.Structure):
    """`npumm_hadamard`: which matrix rows are multiplied by; made by `hadamard`, keeps its arrays alive."""

    _fields_ = (
        ("features", C.c_int64),
        ("power", C.c_int64),
        ("dense_count", C.c_int32),
        ("order", C.c_int32 * 3),
        ("codes", C.c_void_p * 3),
        ("prescale", C.c_void_p),
        ("divisor", C.c_void_p),
    )
    alive: tuple[NDArray[Any], ...]


_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "npumm_pack": (
        C.c_int,
        (C.POINTER(Tiling), C.POINTER(Values), C.c_void_p, C.c_int64, C.c_int64, C.c_void_p, C.c_int64),
    ),
    "npumm_unpack": (
        C.c_int,
        (C.POINTER(Tiling), C.c_int, C.c_void_p, C.c_int64, C.c_void_p, C.c_int64, C.c_int64),
    ),
    "npumm_symmetric_scales": (
        C.c_int,
        (C.c_void_p, C.c_int64, C.c_int64, C.c_int64, C.c_int64, C.c_int32, C.c_float, C.c_void_p),
    ),
    "npumm_quantize": (
        C.c_int,
        (
            C.POINTER(Tiling),
            C.c_int,
            C.c_float,
            C.c_void_p,
            C.c_int64,
            C.c_int64,
            C.c_void_p,
            C.c_int64,
            C.c_void_p,
            C.c_void_p,
        ),
    ),
    "npumm_quantize_rows": (
        C.c_int,
        (
            C.POINTER(Hadamard),
            C.POINTER(Tiling),
            C.c_int,
            C.c_int32,
            C.c_float,
            *[C.c_int64] * 2,
            C.c_void_p,
            *[C.c_int64] * 2,
            C.c_void_p,
            C.c_int64,
            *[C.c_void_p] * 2,
        ),
    ),
    "npumm_asymmetric_scales": (
        C.c_int,
        (C.c_void_p, C.c_int64, C.c_int64, C.c_int64, C.c_int64, C.c_int32, C.c_float, C.c_void_p, C.c_void_p),
    ),
    "npumm_power_of_two_scales": (
        C.c_int,
        (C.c_void_p, C.c_int64, C.c_int64, C.c_int64, C.c_int64, C.c_int32, C.c_void_p),
    ),
    "npumm_rounding_sums": (
        C.c_int,
        (C.c_void_p, C.c_int64, C.c_int64, C.c_void_p, C.c_int64, *[C.c_void_p] * 2, *[C.c_int32] * 2, C.c_void_p),
    ),
    "npumm_hadamard_rows": (
        C.c_int,
        (C.POINTER(Hadamard), C.c_void_p, C.c_int64, C.c_int64, C.c_int64, C.c_void_p, C.c_int64),
    ),
    "npumm_levels": (C.c_int32, (C.c_int,)),
    "npumm_crc32_by": (C.c_int, (C.c_int32, C.c_void_p, C.c_int64, C.POINTER(C.c_uint32))),
    "npumm_crc32_set": (C.c_char_p, (C.c_int32,)),
    "npumm_read_summed": (
        C.c_int64,
        (
            C.c_int32,
            C.c_int,
            C.c_int64,
            C.c_void_p,
            C.c_int64,
            C.c_int32,
            C.POINTER(C.c_uint32),
            C.POINTER(C.c_int),
        ),
    ),
    "npumm_instruction_set": (C.c_char_p, ()),
}


@lru_cache(maxsize=1)
def library() -> C.CDLL:
    path = native_directory() / "libnpumm.so"
    try:
        library = C.CDLL(str(path))
    except OSError as error:
        raise LibraryNotFoundError(f"the package's own library cannot be loaded ({error}); reinstall npumatmul") from (
            error
        )
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)  # unlike library[name], this keeps the function object
        function.restype = result
        function.argtypes = arguments
    return library


def instruction_set() -> str:
    """Name of the instruction set that the kernels use here: ``"avx512"``, ``"avx2"``, ``"neon"`` or ``"scalar"``."""
    return str(library().npumm_instruction_set().decode())


def pack(
    tiling: Tiling,
    conversion: Conversion,
    source: NDArray[Any],
    destination: int,
    destination_bytes: int,
    row_scale: NDArray[np.float32] | None = None,
    row_zero: NDArray[np.int32] | None = None,
    row_sum: NDArray[np.int32] | None = None,
) -> None:
    """Pack a 2-D array of any strides into the tiles at the address `destination`.

    Parameters
    ----------
    tiling : Tiling
        Of the packed image, which has `Conversion.row_images` rows for each row of the source.
    conversion : Conversion
    source : ndarray, shape (M, K)
        Of the dtype that `conversion` reads.
    destination, destination_bytes : int
    row_scale : ndarray of float32, shape (M,), optional
    row_zero : ndarray of int32, shape (M,), optional
        Zero points: quantization is asymmetric then.
    row_sum : ndarray of int32, shape (M,), optional
        Receives the sum of the integers of each row.

    Raises
    ------
    NotFiniteError
        If a value to be quantized is an inf or nan.
    ValueError
        If the arguments do not fit together.
    """
    rows = source.shape[0]
    if source.ndim != 2 or (rows * conversion.row_images, source.shape[1]) != (tiling.rows, tiling.cols):
        raise ValueError(f"pack: source is {source.shape}, the tiling says {(tiling.rows, tiling.cols)}")
    if source.itemsize != _SOURCE_BYTES.get(conversion, 4):
        raise ValueError(f"pack: {conversion.name} does not read {source.dtype}")
    for name, array, dtype in (
        ("row_scale", row_scale, np.float32),
        ("row_zero", row_zero, np.int32),
        ("row_sum", row_sum, np.int32),
    ):
        if array is not None and (array.shape != (rows,) or array.dtype != dtype or not array.flags.c_contiguous):
            raise ValueError(f"pack: {name} must be a contiguous array of {rows} {np.dtype(dtype)}")
    addresses = (None if array is None else array.ctypes.data for array in (row_scale, row_zero, row_sum))
    code = library().npumm_pack(
        C.byref(tiling),
        C.byref(Values(conversion, *addresses)),
        source.ctypes.data,
        *source.strides,
        destination,
        destination_bytes,
    )
    if code == NOT_FINITE:
        raise NotFiniteError("the array holds an inf or nan, which cannot be quantized")
    _check("npumm_pack", code, tiling)


def quantize(
    tiling: Tiling,
    conversion: Conversion,
    source: NDArray[np.float32],
    destination: int,
    destination_bytes: int,
    row_sum: NDArray[np.int32] | None = None,
    clip: float = 1.0,
) -> NDArray[np.float32]:
    """`symmetric_scales` and `pack` with them in one pass: gives the scales, of shape (M,).

    Parameters and errors are those of both; what `NotFiniteError` leaves at the destination is undefined.
    """
    rows = source.shape[0]
    if source.ndim != 2 or (rows * conversion.row_images, source.shape[1]) != (tiling.rows, tiling.cols):
        raise ValueError(f"quantize: source is {source.shape}, the tiling says {(tiling.rows, tiling.cols)}")
    if source.dtype != np.float32 or not conversion.levels:
        raise ValueError(f"quantize: {conversion.name} does not quantize {source.dtype}")
    if row_sum is not None and (
        row_sum.shape != (rows,) or row_sum.dtype != np.int32 or not row_sum.flags.c_contiguous
    ):
        raise ValueError(f"quantize: row_sum must be a contiguous array of {rows} int32")
    scale = np.empty(rows, np.float32)
    code = library().npumm_quantize(
        C.byref(tiling), conversion, clip, source.ctypes.data, *source.strides, destination, destination_bytes,
        scale.ctypes.data, None if row_sum is None else row_sum.ctypes.data,
    )  # fmt: skip
    if code == NOT_FINITE:
        raise NotFiniteError("the array holds an inf or nan, which cannot be quantized")
    _check("npumm_quantize", code, tiling)
    return scale


def unpack(tiling: Tiling, conversion: Conversion, source: int, source_bytes: int, destination: NDArray[Any]) -> None:
    """Unpack the tiles at the address `source` into a 2-D array of any strides."""
    if destination.shape != (tiling.rows, tiling.cols):
        raise ValueError(f"unpack: destination is {destination.shape}, the tiling says {(tiling.rows, tiling.cols)}")
    code = library().npumm_unpack(
        C.byref(tiling), conversion, source, source_bytes, destination.ctypes.data, *destination.strides
    )
    _check("npumm_unpack", code, tiling)


def symmetric_scales(source: NDArray[np.float32], levels: int = 127, clip: float = 1.0) -> NDArray[np.float32]:
    """Scale of each row for symmetric quantization: ``clip * absmax / levels``, 1 for a row of zeros.

    Parameters
    ----------
    source : ndarray of float32, shape (rows, cols)
        Of any strides.
    levels : int
        Largest magnitude of a quantized value, `Conversion.levels`.
    clip : float
        Within (0, 1].

    Raises
    ------
    NotFiniteError
        If a row holds an inf or a nan.

    Examples
    --------
    >>> symmetric_scales(np.array([[1, -254], [0, 0]], np.float32))
    array([2., 1.], dtype=float32)
    """
    scale = np.empty(source.shape[0], np.float32)
    code = library().npumm_symmetric_scales(
        source.ctypes.data, *source.shape, *source.strides, levels, clip, scale.ctypes.data
    )
    _check("npumm_symmetric_scales", code)
    _check_finite(scale)
    return scale


def asymmetric_scales(
    source: NDArray[np.float32], levels: int = 127, clip: float = 1.0
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scale and zero point of each row for quantization onto ``-levels - 1 .. levels``; 0 is represented exactly.

    Parameters and errors are those of `symmetric_scales`.

    Examples
    --------
    >>> asymmetric_scales(np.array([[-51, 204]], np.float32))
    (array([1.], dtype=float32), array([-77], dtype=int32))
    """
    scale, zero = np.empty(source.shape[0], np.float32), np.empty(source.shape[0], np.int32)
    code = library().npumm_asymmetric_scales(
        source.ctypes.data, *source.shape, *source.strides, levels, clip, scale.ctypes.data, zero.ctypes.data
    )
    _check("npumm_asymmetric_scales", code)
    _check_finite(scale)
    return scale, zero


def power_of_two_scales(source: NDArray[np.float32], high: bool = False) -> NDArray[np.float32]:
    """Power of two per row that keeps a (rows, cols) float32 array within float16's range; 1 where it is already.

    With `high` it brings the largest magnitude of each row into [2**14, 2**15): what float16 loses is then a float16.
    """
    result = np.empty(source.shape[0], np.float32)
    code = library().npumm_power_of_two_scales(
        source.ctypes.data, *source.shape, *source.strides, high, result.ctypes.data
    )
    _check("npumm_power_of_two_scales", code)
    return result


def rounding_sums(
    values: NDArray[np.float32],
    weights: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.int32],
    qmin: int,
    qmax: int,
) -> NDArray[np.float64]:
    """What it costs to round rows with each of several scales and zero points.

    Parameters
    ----------
    values : ndarray of float32, shape (rows, cols)
        Finite.
    weights : ndarray of float32, shape (cols,)
        Of squared errors; finite.
    scale : ndarray of float32, shape (candidates, rows)
        Positive and finite.
    zero_point : ndarray of int32, shape (candidates, rows)
        Within the codes.
    qmin, qmax : int
        Range of the codes, within int8.

    Returns
    -------
    ndarray of float64, shape (candidates, rows, 3)
        With q the code less its zero point: the weighted sums of ``(values - scale * q)**2``, ``values * q`` and
        ``q**2``.

    Raises
    ------
    ValueError
        If the arguments do not fit together.
    """
    rows, cols = values.shape
    if weights.shape != (cols,) or scale.shape[1:] != (rows,) or zero_point.shape != scale.shape:
        raise ValueError(
            f"rounding_sums: values {values.shape}, weights {weights.shape}, scales {scale.shape} and zero points "
            f"{zero_point.shape} do not fit together"
        )
    values, weights, scale = (np.ascontiguousarray(array, np.float32) for array in (values, weights, scale))
    zero_point = np.ascontiguousarray(zero_point, np.int32)
    sums = np.empty((*scale.shape, 3), np.float64)
    code = library().npumm_rounding_sums(
        values.ctypes.data, rows, cols, weights.ctypes.data, len(scale), scale.ctypes.data, zero_point.ctypes.data,
        qmin, qmax, sums.ctypes.data,
    )  # fmt: skip
    _check("npumm_rounding_sums", code)
    return sums


def hadamard(
    matrices: tuple[NDArray[Any], ...],
    power: int,
    prescale: NDArray[np.float32] | None,
    divisor: NDArray[np.float32] | None = None,
) -> Hadamard:
    """Describe a transform: dense factors, outermost first, the power of two, and per feature a factor and a divisor.

    Of the dense factors only the signs count. Rows are divided first, then multiplied; one of both has to be given, for
    it says how many features there are.
    """
    if len(matrices) > 3 or any(m.ndim != 2 or len({*m.shape}) > 1 or len(m) not in range(4, 257, 4) for m in matrices):
        raise ValueError(
            f"hadamard: takes up to 3 square matrices of multiples of 4 up to 256, not {[m.shape for m in matrices]}"
        )
    sizes = {array.size for array in (prescale, divisor) if array is not None}
    if len(sizes) != 1:
        raise ValueError(f"hadamard: prescale and divisor have to be of one size, not of {sorted(sizes)}")
    result = Hadamard(features=sizes.pop(), power=power, dense_count=len(matrices))
    keep: list[NDArray[Any]] = []
    for i, matrix in enumerate(matrices):
        fours = (matrix < 0).reshape(-1, 4)
        keep.append(fours @ np.array([16, 32, 64, 128], np.uint8))
        result.order[i], result.codes[i] = len(matrix), keep[-1].ctypes.data
    for name, array in (("prescale", prescale), ("divisor", divisor)):
        if array is not None:
            keep.append(np.ascontiguousarray(array, np.float32))
            setattr(result, name, keep[-1].ctypes.data)
    result.alive = tuple(keep)
    return result


def hadamard_rows(transform: Hadamard, source: NDArray[np.float32], destination: NDArray[np.float32]) -> None:
    """Transform the rows of a float32 array of any strides into one whose rows are contiguous, or into itself."""
    if source.ndim != 2 or source.shape != destination.shape or source.shape[1] != transform.features:
        raise ValueError(
            f"hadamard_rows: source {source.shape} and destination {destination.shape} have to be of "
            f"{transform.features} columns"
        )
    if source.dtype != np.float32 or destination.dtype != np.float32 or not destination.flags.writeable:
        raise ValueError("hadamard_rows: source and destination have to be float32, the destination writeable")
    in_place = source.ctypes.data == destination.ctypes.data and source.strides == destination.strides
    if not in_place and np.may_share_memory(source, destination):
        raise ValueError("hadamard_rows: the destination overlaps the source")
    if destination.size and destination.strides[1] != destination.itemsize:
        raise ValueError("hadamard_rows: the destination's rows have to be contiguous")
    code = library().npumm_hadamard_rows(
        C.byref(transform),
        source.ctypes.data,
        source.shape[0],
        *source.strides,
        destination.ctypes.data,
        destination.strides[0],
    )
    _check("npumm_hadamard_rows", code)


def describe(tiling: Tiling) -> str:
    """A tiling as text for messages."""
    return (
        f"({tiling.rows}, {tiling.cols}) padded to ({tiling.padded_rows}, {tiling.padded_cols}) "
        f"in tiles of ({tiling.tile_rows}, {tiling.tile_cols})"
    )


def _check_finite(marked: NDArray[np.float32]) -> None:
    bad = np.flatnonzero(marked < 0)
    if bad.size:
        raise NotFiniteError(f"row {int(bad[0])} holds an inf or nan, which cannot be quantized")


def _check(function: str, code: int, tiling: Tiling | None = None) -> None:
    if code == 0:
        return
    shown = "" if tiling is None else f" for {describe(tiling)}"
    reason = {
        BAD_ARGUMENT: "extents, tiles or addresses do not fit together",
        BUFFER_TOO_SMALL: "the buffer is too small",
        NO_MEMORY: "out of memory",
    }.get(code, f"code {code}")
    raise ValueError(f"{function}{shown}: {reason}")
