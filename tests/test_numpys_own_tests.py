"""numpy's own tests of matmul and its relatives, run against ours with ``fallback="numpy"``.

Three of them ask for what is documented to be otherwise here; each is replaced by a test of the documented behaviour.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy._core.tests import test_multiarray as numpys

import npumatmul as npu


class _NumpyWithOurs:
    """What numpy's test module knows as ``np``: numpy, but for the functions under test."""

    dot, vdot, inner = staticmethod(npu.dot), staticmethod(npu.vdot), staticmethod(npu.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


@pytest.fixture(autouse=True)
def _ours(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(numpys, "np", _NumpyWithOurs())
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
