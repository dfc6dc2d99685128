"""Functions of `npumatmul.quant` and arrays of other classes: taken as they are or refused, never a part of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import npumatmul as npu
from npumatmul import quant
from npumatmul.quant.params import QuantizedWeight, QuantParams

VALUES = np.arange(16, dtype=np.float32).reshape(4, 4) % 7 - 3
CODES = VALUES.astype(np.int8)
PARAMS = QuantParams(0.5)
ROTATED = quant.round_weight(VALUES)


def hessian() -> quant.Hessian:
    made = quant.Hessian(4)
    made.add(np.eye(4) + 0.1)
    return made


def observed(x: Any) -> Any:
    calibrator = quant.MinMax()
    calibrator.observe(x)
    return calibrator.params()


def seen_by_hessian(x: Any, reference: Any = None) -> Any:
    made = quant.Hessian(4)
    made.add(x, reference)
    return made.matrix


Takes = Callable[[Any], Any]
#: Each argument that is an array of two dimensions.
MATRICES: dict[str, Takes] = {
    "quantize": lambda x: quant.quantize(x, PARAMS),
    "fake_quantize": lambda x: quant.fake_quantize(x, PARAMS),
    "token_params": lambda x: quant.token_params(x).scale,
    "weight_params": lambda x: quant.weight_params(x).scale,
    "round_weight": lambda x: quant.round_weight(x).codes,
    "gptq": lambda x: quant.gptq(x, hessian()).codes,
    "refine": lambda x: quant.refine(ROTATED, x, hessian()).codes,
    "smooth weights": lambda x: quant.smooth(np.ones(4), [x]).scale,
    "search_smooth x": lambda x: quant.search_smooth(x, [VALUES]).scale,
    "search_smooth weights": lambda x: quant.search_smooth(VALUES, [x]).scale,
    "fold_into_linear": lambda x: quant.fold_into_linear(quant.ChannelScale(np.full(4, 2.0)), x)[0],
    "bias_correction": lambda x: quant.bias_correction(x, ROTATED, np.ones(4)),
    "Hessian.add": seen_by_hessian,
    "Hessian.add reference": lambda x: seen_by_hessian(VALUES, x),
    "Hessian.target": lambda x: hessian().target(x),
    "Hessian.error": lambda x: hessian().error(x),
    "Hessian.from_sums": lambda x: quant.Hessian.from_sums(x, 1).matrix,
    "observe": lambda x: observed(x).scale,
    "Hadamard": lambda x: quant.Hadamard(4).activation(x),
    "ChannelScale": lambda x: quant.ChannelScale(np.full(4, 2.0)).inverse_weight(x),
    "Permutation": lambda x: quant.Permutation([1, 0, 2, 3]).weight(x),
    "Chain": lambda x: quant.Chain([quant.Hadamard(4)]).activation(x),
}
VECTORS: dict[str, Takes] = {
    "scale": lambda x: QuantParams(x, granularity="channel").scale,
    "ChannelScale": lambda x: quant.ChannelScale(x).scale,
    "smooth": lambda x: quant.smooth(x, [VALUES]).scale,
    "importance": lambda x: quant.weight_params(VALUES, clip="mse", importance=x).scale,
    "mean": lambda x: quant.bias_correction(VALUES, ROTATED, x),
    "reference mean": lambda x: quant.bias_correction(VALUES, ROTATED, np.ones(4), x),
    "bias": lambda x: quant.bias_correction(VALUES, ROTATED, np.ones(4), bias=x),
    "gain": lambda x: quant.fold_into_norm(quant.ChannelScale(np.full(4, 2.0)), x)[0],
    "bias of a norm": lambda x: quant.fold_into_norm(quant.ChannelScale(np.full(4, 2.0)), np.ones(4), x)[1],
    "bias of a layer": lambda x: quant.fold_into_linear(quant.ChannelScale(np.full(4, 2.0)), VALUES, x)[1],
}
INTEGERS: dict[str, Takes] = {
    "dequantize": lambda x: quant.dequantize(x, PARAMS),
    "zero point": lambda x: QuantParams(np.ones(4), x, granularity="channel").zero_point,
    "Permutation": lambda x: quant.Permutation(x).order,
}
CASES = [
    *((name, takes, VALUES) for name, takes in MATRICES.items()),
    *((name, takes, np.array([1, 2, 3, 0.5], np.float32)) for name, takes in VECTORS.items()),
    *((name, takes, np.array([2, 0, 3, 1], np.int8)) for name, takes in INTEGERS.items()),
]


class Length(np.ndarray):
    """With a unit, as astropy's."""

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented


class Frame:
    """With labels, as pandas'."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.values

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        return NotImplemented

    def to_numpy(self) -> np.ndarray:
        return self.values


class Sparse:
    """Nothing that numpy knows, as scipy's."""

    def __init__(self, _: np.ndarray) -> None:
        pass

    def toarray(self) -> None:
        raise NotImplementedError


def masked(x: np.ndarray) -> Any:
    return np.ma.masked_array(x, mask=x == x.max())


def ids(value: Any) -> str:
    return value if isinstance(value, str) else ""


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize(("name", "takes", "values"), CASES, ids=ids)
def test_what_an_ndarray_would_be_without_is_refused(name: str, takes: Takes, values: np.ndarray) -> None:
    with pytest.raises(TypeError, match=r"masked elements.*x\.filled\(0\)"):
        takes(masked(values))
    for made, way in ((values.view(Length), r"numpy\.asarray\(x\)"), (np.matrix(values), r"numpy\.asarray\(x\)"),
                      (Frame(values), r"x\.to_numpy\(\)"), (Sparse(values), r"x\.toarray\(\)")):  # fmt: skip
        with pytest.raises(TypeError, match=rf"{type(made).__name__}, which .*; give {way}"):
            takes(made)


@pytest.mark.parametrize(("name", "takes", "values"), CASES, ids=ids)
def test_what_holds_nothing_but_values_is_read(name: str, takes: Takes, values: np.ndarray, tmp_path: Path) -> None:
    expected = takes(values.copy())
    mapped = np.memmap(tmp_path / "values", values.dtype, "w+", shape=values.shape)
    mapped[...] = values
    with npu.use_device("sim:rk3588"):
        for given in (mapped, values.tolist(), torch.from_numpy(values.copy()), np.ma.masked_array(values),
                      npu.asarray(values)):  # fmt: skip
            result = takes(given)
            assert type(result) is np.ndarray
            np.testing.assert_allclose(result, expected, rtol=1e-6)


def test_tensors_of_bfloat16() -> None:
    tensor = torch.from_numpy(VALUES.copy()).to(torch.bfloat16)
    np.testing.assert_array_equal(quant.quantize(tensor, PARAMS), quant.quantize(VALUES, PARAMS))
    assert isinstance(quant.gptq(tensor, hessian()), QuantizedWeight)
