"""Parameters: what is accepted and refused, and the formula against torch's and against exact rational arithmetic."""

from __future__ import annotations

import json
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import npumatmul as npu
from npumatmul.errors import NotFiniteError
from npumatmul.quant import dequantize, fake_quantize, quantize
from npumatmul.quant.params import Granularity, QuantizedWeight, QuantParams

FLOATS = st.floats(-1e6, 1e6, width=32)
SCALES = st.floats(2.0**-30, 2.0**20, width=32)


@st.composite
def params_and_array(draw: st.DrawFn) -> tuple[QuantParams, np.ndarray]:
    kind = draw(st.sampled_from(list(Granularity)))
    bits = draw(st.integers(2, 8))
    full = (1 << (bits - 1)) - 1
    levels = draw(st.none() | st.integers(1, full))
    x = draw(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=7), elements=FLOATS))
    axis: int | None = None
    group_size = None
    shape: tuple[int, ...] = ()
    if kind in (Granularity.CHANNEL, Granularity.GROUP):
        axis = draw(st.integers(-x.ndim, x.ndim - 1))
    if kind is Granularity.CHANNEL:
        shape = (x.shape[axis],)
    elif kind is Granularity.TOKEN:
        shape = x.shape[:-1]
    elif kind is Granularity.GROUP:
        group_size = draw(st.integers(1, 8))
        groups = list(x.shape)
        groups[axis] = -(-groups[axis] // group_size)
        shape = tuple(groups)
    scale = draw(hnp.arrays(np.float32, shape, elements=SCALES))
    limit = full if levels is None else levels
    zero_point = draw(hnp.arrays(np.int32, shape, elements=st.integers(-limit, limit)))
    return QuantParams(scale, zero_point, kind, bits=bits, axis=axis, group_size=group_size, levels=levels), x


def pair_of(params: QuantParams, index: tuple[int, ...], ndim: int) -> tuple[float, int]:
    """Scale and zero point of one element, looked up by the definition of its granularity."""
    if params.granularity is Granularity.LAYER:
        at: tuple[int, ...] = ()
    elif params.granularity is Granularity.TOKEN:
        at = index[:-1]
    elif params.granularity is Granularity.CHANNEL:
        at = (index[params.axis],)
    else:
        at = tuple(i // params.group_size if d == params.axis % ndim else i for d, i in enumerate(index))
    return params.scale[at], int(params.zero_point[at])


@given(params_and_array())
def test_every_element_follows_the_formula(case: tuple[QuantParams, np.ndarray]) -> None:
    params, x = case
    codes = quantize(x, params)
    values = dequantize(codes, params, np.float64)
    assert codes.dtype == np.int8
    for index in np.ndindex(x.shape):
        scale, zero_point = pair_of(params, index, x.ndim)
        rounded = round(Fraction(float(np.float32(x[index]) / scale)))  # Python rounds halves to even
        expected = min(max(rounded + zero_point, params.qmin), params.qmax)
        assert codes[index] == expected
        assert Fraction(values[index]) == Fraction(float(scale)) * (expected - zero_point)


@given(params_and_array())
def test_errors_stay_within_half_a_step_unless_clamped(case: tuple[QuantParams, np.ndarray]) -> None:
    params, x = case
    scale, _ = params.expanded(x.shape)
    codes = quantize(x.astype(np.float64), params)
    error = np.abs(dequantize(codes, params, np.float64) - x)
    inside = (codes > params.qmin) & (codes < params.qmax)
    # half a step, and what the division in float64 may add to the quotient before it is rounded
    bound = np.broadcast_to(scale * (0.5 + 2.0**-40), x.shape)
    assert (error[inside] <= bound[inside]).all()


@given(params_and_array())
def test_codes_survive_a_round_trip(case: tuple[QuantParams, np.ndarray]) -> None:
    params, x = case
    codes = quantize(x, params)
    # (q - z) is a small integer and x' / s is within an ulp of it, so nothing can move to another code
    assert np.array_equal(quantize(dequantize(codes, params), params), codes)
    again = fake_quantize(x, params)
    assert again.dtype == np.float32
    assert np.array_equal(fake_quantize(again, params), again)


@given(params_and_array())
def test_json_and_pickle_keep_everything(case: tuple[QuantParams, np.ndarray]) -> None:
    params, _ = case
    for copy in (QuantParams(**json.loads(json.dumps(params.as_dict()))), pickle.loads(pickle.dumps(params))):
        assert copy == params
        assert hash(copy) == hash(params)
        assert np.array_equal(copy.scale, params.scale)
        assert np.array_equal(copy.zero_point, params.zero_point)
        assert (copy.qmin, copy.qmax, copy.symmetric) == (params.qmin, params.qmax, params.symmetric)


@pytest.mark.parametrize("scale", [2.0**-5, 2.0**3])
@pytest.mark.parametrize("zero_point", [-128, -3, 0, 127])
def test_torch_agrees(scale: float, zero_point: int) -> None:
    # torch multiplies by 1 / scale; for powers of two that is the same
    x = np.random.default_rng(3).normal(0, 300 * scale, 4096).astype(np.float32)
    x[:9] = np.arange(-4, 5) * scale / 2
    ours = fake_quantize(x, QuantParams(scale, zero_point))
    theirs = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), scale, zero_point, -128, 127)
    assert np.array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int16])
def test_dtypes_are_widened_never_narrowed(dtype: type) -> None:
    x = np.array([-100, -1, 0, 3, 50]).astype(dtype)
    params = QuantParams(0.5)
    assert quantize(x, params).tolist() == [-128, -2, 0, 6, 100]
    wide = np.dtype(dtype).kind == "i" or np.dtype(dtype) == np.float64
    assert fake_quantize(x, params).dtype == (np.float64 if wide else np.float32)


def test_scalars_and_empty_arrays() -> None:
    assert quantize(3.2, QuantParams(1.0)) == 3
    assert dequantize(np.int8(3), QuantParams(0.5)) == 1.5
    assert quantize(np.zeros((0, 4), np.float32), QuantParams(np.ones(0), granularity="channel")).shape == (0, 4)


def test_a_quotient_beyond_float_is_clamped() -> None:
    assert quantize(np.array([3e38, -3e38], np.float32), QuantParams(1e-38)).tolist() == [127, -128]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_refused_by_name(bad: float) -> None:
    x = np.zeros((2, 3), np.float32)
    x[1, 2] = bad
    with pytest.raises(NotFiniteError, match=r"element \(1, 2\)"):
        quantize(x, QuantParams(1.0))


@pytest.mark.parametrize("x", [np.array([1j]), np.array(["a"]), np.array([None])])
def test_what_is_not_a_number_is_refused(x: np.ndarray) -> None:
    with pytest.raises(TypeError, match="real numbers"):
        quantize(x, QuantParams(1.0))
    with pytest.raises(TypeError, match="integers"):
        dequantize(x, QuantParams(1.0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, "positive and finite"),
        ({"scale": -1.0}, "positive and finite"),
        ({"scale": np.nan}, "positive and finite"),
        ({"scale": 1e39}, "positive and finite in float32"),
        ({"scale": 1e-60}, "positive and finite in float32"),
        ({"scale": [1.0, 2.0]}, "a layer has one scale"),
        ({"scale": 1.0, "granularity": "channel"}, r"shape \(n,\)"),
        ({"scale": 1.0, "granularity": "group", "group_size": 32}, "not a single scale"),
        ({"scale": [1.0], "granularity": "group"}, "group_size"),
        ({"scale": [1.0], "granularity": "group", "group_size": 0}, "group_size"),
        ({"scale": [1.0], "granularity": "channel", "group_size": 32}, "group_size=32"),
        ({"scale": 1.0, "axis": 0}, "no axis"),
        ({"scale": 1.0, "granularity": "row"}, "no granularity"),
        ({"scale": 1.0, "bits": 1}, "2 to 8"),
        ({"scale": 1.0, "bits": 9}, "2 to 8"),
        ({"scale": 1.0, "levels": 128}, "levels"),
        ({"scale": 1.0, "levels": 0}, "levels"),
        ({"scale": 1.0, "zero_point": 128}, "zero point 128 is not a code"),
        ({"scale": 1.0, "zero_point": 2**40}, "zero point 2147483647 is not a code"),
        ({"scale": 1.0, "zero_point": -9, "bits": 4}, "zero point -9"),
        ({"scale": [1.0, 1.0], "zero_point": [0, 0, 0], "granularity": "channel"}, "do not belong"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantParams(**arguments)  # type: ignore[arg-type]


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="integers"):
        QuantParams(1.0, 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floats"):
        QuantParams(True)


def test_immutable() -> None:
    given_scale = np.ones(3, np.float32)
    params = QuantParams(given_scale, granularity="channel")
    given_scale[0] = 5
    assert params.scale[0] == 1
    for array in (params.scale, params.zero_point):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2
    with pytest.raises(AttributeError):
        params.bits = 4  # type: ignore[misc]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scales of shape \(4,\).*\(3,\)"):
        quantize(np.zeros((4, 2)), QuantParams(np.ones(3), granularity="channel"))
    with pytest.raises(ValueError, match="no axis 2"):
        quantize(np.zeros((4, 2)), QuantParams(np.ones(2), granularity="channel", axis=2))
    with pytest.raises(ValueError, match="no tokens"):
        quantize(np.float32(1), QuantParams(np.ones(2), granularity="token"))


def test_names_of_the_api() -> None:
    assert QuantParams(1.0).quant_type is npu.QuantType.PER_LAYER_SYM
    assert QuantParams([1.0], [1], "channel").quant_type is npu.QuantType.PER_CHANNEL_ASYM
    assert QuantParams([[1.0]], granularity="group", group_size=32).quant_type is npu.QuantType.PER_GROUP_SYM
    with pytest.raises(ValueError, match="no parameters per token"):
        _ = QuantParams([1.0], granularity="token").quant_type


def test_a_weight_describes_its_groups() -> None:
    codes = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    params = QuantParams([[1, 2, 4], [8, 16, 32]], [[0, 1, 2], [3, 4, 5]], "group", bits=4, group_size=3)
    weight = QuantizedWeight(codes, params)
    assert (weight.shape, weight.groups) == ((2, 8), 3)
    expected = [[-8, -7, -6, -12, -10, -8, -16, -12], [-24, -16, -8, -16, 0, 16, 32, 64]]
    assert weight.dequantize().tolist() == expected
    assert weight.restored(np.float64).tolist() == expected
    assert weight.description() == {"params": params.description(), "input_transform": None}
    with pytest.raises(ValueError, match="read-only"):
        weight.codes[0, 0] = 1
    codes[0, 0] = 3  # a view, not a copy: the owner may still write
    assert weight.codes[0, 0] == 3


@pytest.mark.parametrize(
    ("codes", "params", "error", "message"),
    [
        (np.zeros((2, 2), np.int16), QuantParams(1.0), TypeError, "int8"),
        (np.zeros(2, np.int8), QuantParams(1.0), ValueError, "2 dimensions"),
        (np.full((2, 2), 8, np.int8), QuantParams(1.0, bits=4), ValueError, "8..8"),
        (np.zeros((2, 2), np.int8), QuantParams(np.ones(3), granularity="channel"), ValueError, "shape"),
        (np.zeros((2, 2), np.int8), QuantParams(np.ones(2), granularity="channel", axis=1), ValueError, "axis 0"),
        (np.zeros((2, 2), np.int8), QuantParams(np.ones(2), granularity="token"), ValueError, "axis 0"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    codes: np.ndarray, params: QuantParams, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        QuantizedWeight(codes, params)
