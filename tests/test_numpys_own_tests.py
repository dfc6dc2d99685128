"""numpy's own tests of matmul and its relatives, run against ours with ``fallback="numpy"``; and those of products of
arrays of other types again with the types of the NPU, without it.

What cannot apply is left out here, each with its reason; what is documented to be otherwise is replaced by a test of
the documented behaviour.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy._core.tests import test_multiarray as numpys
from numpy._core.tests import test_ufunc as numpys_ufuncs

import npumatmul as npu


class _NumpyWithOurs:
    """What numpy's test modules know as ``np``: numpy, but for the functions under test."""

    dot, vdot, inner = staticmethod(npu.dot), staticmethod(npu.vdot), staticmethod(npu.inner)
    vecdot, matvec, vecmat = staticmethod(npu.vecdot), staticmethod(npu.matvec), staticmethod(npu.vecmat)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (numpys, numpys_ufuncs):
        monkeypatch.setattr(module, "np", _NumpyWithOurs())
    with npu.config(fallback="numpy"):
        yield


class TestMatmul(numpys.TestMatmul):
    matmul = staticmethod(npu.matmul)

    def test_result_types(self) -> None:
        """Products of int8 are int32 and those of float16 float32 here; all other types are numpy's."""
        for code in self.types:
            array = np.ones((2, 2), code)
            ours = {"b": np.int32, "B": np.int32, "e": np.float32}
            assert self.matmul(array, array).dtype == ours.get(code, array.dtype)


class TestMatmulOperator(numpys.TestMatmulOperator):
    """The tests of ``@``; ndarrays have numpy's, so it is our function that stands for it."""

    matmul = staticmethod(npu.matmul)
    # About how Python chooses between the operands' own __matmul__ and __rmatmul__, which is before any function.
    test_array_priority_override = None
    test_result_types = TestMatmul.test_result_types

    def test_matmul_raises(self) -> None:
        """The operator refuses scalars by TypeError; the function, numpy's as ours, by ValueError."""
        for function in (np.matmul, npu.matmul):
            with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
                function(np.int8(5), np.int8(5))


# test_matmul_axes: `axes` is an option of numpy's generalized ufuncs, as are `where` and `signature`; ours have none.


class TestMatmulInplace(numpys.TestMatmulInplace):
    """``a @= b`` is numpy's own on ndarrays; what it does is `matmul` with ``out=a``."""

    @pytest.mark.parametrize(("dtype1", "dtype2"), numpys.TestMatmulInplace.DTYPES.values(),
                             ids=list(numpys.TestMatmulInplace.DTYPES))  # fmt: skip
    def test_basic(self, dtype1: np.dtype[Any], dtype2: np.dtype[Any]) -> None:
        a, b = np.arange(10).reshape(5, 2).astype(dtype1), np.ones((2, 2), dtype=dtype2)
        expected = a.astype(np.result_type(dtype1, np.int32)) @ b.astype(np.result_type(dtype2, np.int32))
        result = npu.matmul(a, b)
        if not np.can_cast(result.dtype, dtype1, "same_kind"):  # bool and uint8: ours are int32
            with pytest.raises(TypeError):
                npu.matmul(a, b, out=a)
            return
        assert npu.matmul(a, b, out=a) is a
        assert a.dtype == dtype1
        np.testing.assert_array_equal(a, expected.astype(dtype1))

    @pytest.mark.parametrize(("a_shape", "b_shape"), numpys.TestMatmulInplace.SHAPES.values(),
                             ids=list(numpys.TestMatmulInplace.SHAPES))  # fmt: skip
    def test_shapes(self, a_shape: tuple[int, ...], b_shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(int(sum(a_shape)))
        a, b = rng.integers(-4, 5, a_shape).astype(np.float32), rng.integers(-4, 5, b_shape).astype(np.float32)
        try:
            expected = np.matmul(a, b, out=a.copy())  # which broadcasts, where the operator does not
        except ValueError:
            with pytest.raises(ValueError, match="out has shape"):
                npu.matmul(a, b, out=a)
        else:
            assert npu.matmul(a, b, out=a) is a
            np.testing.assert_array_equal(a, expected)


NPU_TYPES = [np.dtype(t) for t in (np.int8, np.uint8, ml_dtypes.int4, np.float16, np.float32, ml_dtypes.bfloat16)]


def _on_the_npu(a: Any, b: Any) -> Any:
    """`matmul` that must not fall back; but for bool, which numpy's tests have beside every type."""
    if np.asarray(a).dtype == np.bool_:
        return npu.matmul(a, b)
    with npu.config(fallback=None):
        return npu.matmul(a, b)


class TestMatmulOfNpuTypes(numpys.MatmulCommon):
    """numpy's tests of shapes and values once more, computed by the NPU."""

    types = (np.dtype(np.int8), *NPU_TYPES)  # several tests take all but the first, which is bool there
    matmul = staticmethod(_on_the_npu)

    def test_result_types(self) -> None:
        for dtype in self.types:
            array = np.ones((1, 1), dtype)
            expected = np.float32 if dtype in NPU_TYPES[3:] else np.int32
            for operands in ((array, array[0]), (array[0], array), (array, array)):
                assert self.matmul(*operands).dtype == expected
            assert type(self.matmul(array[0], array[0])) is expected


class TestDot(numpys.TestDot):
    test_huge_vectordot = None  # 2**31 elements of float64, which numpy itself computes: a test of its BLAS

    def test_accelerate_framework_sgemv_fix(self) -> None:
        """numpy's case is about the alignment of float32 operands; here products are those of float16."""
        raw = np.ones(101 * 4 + 2, np.uint8)
        for offset in (0, 1, 2):
            vector = raw[offset : offset + 400].view(np.float32)
            vector[:] = np.arange(100) % 7
            assert npu.dot(vector, vector) == float((np.arange(100) % 7) @ (np.arange(100) % 7))


class TestVdot(numpys.TestVdot):
    pass


class TestInner(numpys.TestInner):
    def test_3d_tensor(self) -> None:
        """numpy's int8 result wraps around; here it is an int32."""
        a = np.arange(24, dtype=np.int8).reshape(2, 3, 4)
        b = np.arange(24, 48, dtype=np.int8).reshape(2, 3, 4)
        result = npu.inner(a, b)
        assert result.dtype == np.int32
        np.testing.assert_array_equal(result, np.inner(a.astype(np.int64), b.astype(np.int64)))


class TestVectorProducts:
    """Those of numpy's tests of ufuncs that are about vecdot, matvec and vecmat, where the installed numpy has them.

    Not among them: test_matvec, which is about `axes`; test_vecdot_matvec_vecmat_complex, whose parameters are numpy's
    functions themselves.
    """

    for _name in (
        "test_vecdot",
        "test_vecmatvec_identity",
        "test_matvec_vecmat_out",
        "test_vecdot_subclass",
        "test_vecdot_object_no_conjugate",
        "test_vecdot_object_breaks_outer_loop_on_error",
        "test_broadcast",
        "test_type_cast",
        "test_endian",
        "test_incontiguous_array",
        "test_output_argument",
        "test_out_broadcasts",
    ):
        if hasattr(np, "vecmat") and hasattr(numpys_ufuncs.TestUfunc, _name):
            locals()[_name] = getattr(numpys_ufuncs.TestUfunc, _name)
    del _name

    @pytest.mark.parametrize("name", ["vecdot", "matvec", "vecmat"])
    def test_out_and_subclasses_on_the_npu(self, name: str) -> None:
        class Labelled(np.ndarray):
            pass

        rng = np.random.default_rng(1)
        shapes = {"vecdot": [(4, 3), (2, 1, 3)], "matvec": [(4, 5, 3), (2, 1, 3)], "vecmat": [(4, 3), (2, 1, 3, 5)]}
        einsum = {"vecdot": "...n,...n->...", "matvec": "...mn,...n->...m", "vecmat": "...n,...nm->...m"}
        a, b = (rng.integers(-9, 9, shape, np.int8) for shape in shapes[name])
        expected = np.einsum(einsum[name], a.astype(int), b.astype(int))
        function = getattr(npu, name)
        out = np.zeros((*expected.shape[:-1], 2 * expected.shape[-1]), np.int32)[..., ::2]
        with npu.config(fallback=None):
            assert function(a, b, out) is out
            np.testing.assert_array_equal(out, expected)
            assert isinstance(function(a.view(Labelled), b), Labelled)
            with pytest.raises(ValueError, match="out has shape"):
                function(a, b, out=out[..., :1])
