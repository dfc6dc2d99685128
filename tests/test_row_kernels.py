"""The binding of the kernels that convert and pack rows, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from npumatmul.errors import NotFiniteError
from npumatmul.host import kernels
from npumatmul.host.kernels import Conversion, Tiling

_VALUES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 70)),
    elements=st.just(0.0) | st.floats(2.0**-100, 2.0**100, width=32) | st.floats(-(2.0**100), -(2.0**-100), width=32),
)


@given(_VALUES, st.sampled_from([7, 119, 127]), st.sampled_from([1.0, 0.75, 0.1]))
@settings(max_examples=60, deadline=None)
def test_symmetric_scales(values, levels, clip):
    for source in (values, values[:, ::-1], np.asfortranarray(values)):
        scale = kernels.symmetric_scales(source, levels, clip)
        wanted = np.abs(source.astype(np.float64)).max(axis=1) * clip / levels
        np.testing.assert_allclose(scale, np.where(wanted > 0, wanted, 1), rtol=3e-7)


@given(_VALUES, st.sampled_from([7, 119, 127]), st.sampled_from([1.0, 0.75]))
@settings(max_examples=60, deadline=None)
def test_asymmetric_quantization_keeps_zero_and_its_error_within_a_step(values, levels, clip):
    scale, zero = kernels.asymmetric_scales(values, levels, clip)
    assert ((zero >= -levels - 1) & (zero <= levels)).all()
    exact = values.astype(np.float64)
    low, high = clip * np.minimum(exact.min(axis=1), 0), clip * np.maximum(exact.max(axis=1), 0)
    flat = high == low
    np.testing.assert_allclose(scale[~flat], ((high - low) / (2 * levels + 1))[~flat], rtol=3e-7)
    steps = np.rint(exact / scale[:, None]) + zero[:, None]
    restored = scale[:, None] * (np.clip(steps, -levels - 1, levels) - zero[:, None])
    clipped = np.clip(exact, low[:, None], high[:, None])
    # Half a step of rounding, and one more half where the rounded zero point pushes an end of the range outside.
    assert (np.abs(restored - clipped) <= scale[:, None] * 1.001).all()


@given(_VALUES)
@settings(max_examples=60, deadline=None)
def test_a_float_is_nearly_the_sum_of_its_two_halves(values):
    values = values / np.float32(2.0**86)  # within float16's range
    rows, cols = values.shape
    tiling = Tiling(rows, cols, rows, cols, rows, cols)
    halves = np.empty((2, rows, cols), np.float16)
    for half, conversion in zip(halves, (Conversion.F32_TO_F16, Conversion.F32_TO_F16_LOW), strict=True):
        kernels.pack(tiling, conversion, values, half.ctypes.data, half.nbytes)
    np.testing.assert_array_equal(halves[0], values.astype(np.float16))
    error = np.abs(values.astype(np.float64) - halves.astype(np.float64).sum(axis=0))
    assert (error <= np.maximum(np.abs(values) * 2.0**-22, 2.0**-25)).all()


def test_bad_arguments_say_which():
    source, image = np.ones((3, 4), np.float32), np.empty(64, np.uint8)
    tiling = Tiling(3, 4, 3, 4, 3, 4)
    where = image.ctypes.data, image.nbytes
    with pytest.raises(ValueError, match="row_zero must be a contiguous array of 3 int32"):
        kernels.pack(tiling, Conversion.F32_TO_I8, source, *where, row_zero=np.zeros(3, np.int64))
    with pytest.raises(ValueError, match="row_scale must be a contiguous array of 3 float32"):
        kernels.pack(tiling, Conversion.F32_TO_I8, source, *where, row_scale=np.ones(2, np.float32))
    with pytest.raises(ValueError, match="COPY_8 does not read float32"):
        kernels.pack(tiling, Conversion.COPY_8, source, *where)
    with pytest.raises(ValueError, match="the tiling says"):
        kernels.pack(tiling, Conversion.F32_TO_I4_SPLIT, source, *where)
    source[1, 2] = np.nan
    with pytest.raises(NotFiniteError, match="inf or nan"):
        kernels.pack(tiling, Conversion.F32_TO_I8, source, *where)
    for scales in (kernels.symmetric_scales, kernels.asymmetric_scales):
        with pytest.raises(NotFiniteError, match="row 1 holds"):
            scales(source)
