"""`NpuArray`: memory, views, methods, numpy's and others' protocols."""

from __future__ import annotations

import functools
import gc
import pickle
import sys
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import npumatmul as npu
from npumatmul.errors import ClosedError

DTYPES = [np.float16, np.float32, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.int32, ml_dtypes.int4]


@pytest.fixture(autouse=True)
def _here(device: npu.Device) -> Iterator[None]:
    with npu.use_device(device):
        yield


def values(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(-8, 8, shape).clip(0 if dtype == np.uint8 else -8, 7).astype(dtype)


# ---- making, and sharing memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@given(shape=hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
def test_asarray_holds_the_values(dtype: Any, shape: tuple[int, ...]) -> None:
    expected = values(shape, dtype)
    x = npu.asarray(expected)
    assert (x.shape, x.dtype, x.size, x.nbytes, x.ndim) == (
        expected.shape, expected.dtype, expected.size, expected.nbytes, expected.ndim,
    )  # fmt: skip
    assert not x.size or x.strides == expected.strides
    np.testing.assert_array_equal(np.asarray(x), expected)
    np.testing.assert_array_equal(npu.zeros(shape, dtype).numpy(), np.zeros(shape, dtype))
    restored = pickle.loads(pickle.dumps(x))
    assert restored.dtype == x.dtype
    np.testing.assert_array_equal(restored.numpy(), expected)


@given(data=st.data(), shape=hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5))
def test_basic_indexing_gives_views_like_numpys(data: st.DataObject, shape: tuple[int, ...]) -> None:
    expected = values(shape, np.float32)
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    x = npu.asarray(expected)
    got, wanted = x[index], expected[index]
    np.testing.assert_array_equal(np.asarray(got), wanted)
    if isinstance(wanted, np.ndarray) and isinstance(got, npu.NpuArray) and wanted.size:
        assert got.strides == wanted.strides
        got.numpy()[...] = 99
        wanted[...] = 99
        np.testing.assert_array_equal(np.asarray(x), expected)


def test_other_indexing_gives_ndarrays() -> None:
    x = npu.asarray(np.arange(12, dtype=np.int32).reshape(3, 4))
    for index in ([0, 2], np.array([True, False, True]), (slice(None), [1, 1]), npu.asarray([1, 0], np.int32)):
        got = x[index]
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, x.numpy()[np.asarray(index) if isinstance(index, npu.NpuArray) else index])
    assert x[1, 2] == 6
    assert np.isscalar(x[1, 2])
    for wrong, error in (((3, 0), IndexError), ((0, 0, 0), IndexError), ("a", IndexError)):
        with pytest.raises(error):
            x[wrong]
    x[0] = 9
    x[:, 1] = npu.asarray([1, 2, 3], np.int32)
    np.testing.assert_array_equal(x.numpy(), [[9, 1, 9, 9], [4, 2, 6, 7], [8, 3, 10, 11]])


@given(axes=st.permutations(range(3)))
def test_transposing_and_reshaping(axes: list[int]) -> None:
    expected = values((2, 3, 4), np.int8)
    x = npu.asarray(expected)
    turned = x.transpose(axes)
    np.testing.assert_array_equal(turned.numpy(), expected.transpose(axes))
    assert turned.buffer is x.buffer
    np.testing.assert_array_equal(x.T.numpy(), expected.T)
    np.testing.assert_array_equal(x.mT.numpy(), np.swapaxes(expected, 1, 2))
    for shape in ((24,), (6, -1), (2, 2, 6), (1, 24, 1)):
        flat = turned.reshape(shape)
        np.testing.assert_array_equal(flat.numpy(), expected.transpose(axes).reshape(shape))
        assert (flat.buffer is x.buffer) == np.shares_memory(expected, expected.transpose(axes).reshape(shape))
    with pytest.raises(ValueError, match="reshape"):
        x.reshape(5, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numpy_shares_the_memory(dtype: Any) -> None:
    x = npu.zeros((3, 4), dtype)
    seen = np.asarray(x)
    assert seen.dtype == dtype
    seen[1] = 7
    assert (x.numpy()[1] == 7).all()
    copied = np.array(x)
    copied[2] = 7
    assert not x.numpy()[2].any()
    assert np.asarray(x, np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="without a copy"):
        x.__array__(np.float64, copy=False)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.uint8, np.int16, np.int32])
def test_array_interface_and_memoryviews_share_the_memory(dtype: Any) -> None:
    x = npu.asarray(values((4, 6), dtype))[1:, ::2]
    through = {"version", "shape", "typestr", "strides", "data", "offset"}
    assert set(x.__array_interface__) == through
    holder = type("Holder", (), {"__array_interface__": x.__array_interface__})()
    for seen in (np.asarray(holder), np.asarray(x.data)):
        np.testing.assert_array_equal(seen, x.numpy())
        seen[0, 0] = 5
        assert x[0, 0] == 5
        x[0, 0] = 1
    if sys.version_info >= (3, 12):
        assert memoryview(x).shape == (3, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16, np.int8, np.uint8, np.int16, np.int32])
def test_torch_shares_the_memory(dtype: Any) -> None:
    expected = values((4, 6), dtype)
    x = npu.asarray(expected)
    tensor = torch.from_dlpack(x[1:, ::2])
    assert str(tensor.dtype).removeprefix("torch.") == str(np.dtype(dtype))
    np.testing.assert_array_equal(tensor.to(torch.float32).numpy(), expected[1:, ::2].astype(np.float32))
    tensor[0, 0] = 3
    assert x[1, 0] == 3
    back = npu.asarray(tensor, copy=False)
    assert (back.buffer, back.offset, back.strides) == (x.buffer, x[1:, ::2].offset, x[1:, ::2].strides)
    foreign = torch.ones(3, dtype=tensor.dtype)
    np.testing.assert_array_equal(npu.asarray(foreign).numpy(), np.ones(3, dtype))
    with pytest.raises(ValueError, match="needs a copy"):
        npu.asarray(foreign, copy=False)


def test_dlpack_says_what_it_cannot() -> None:
    x = npu.zeros(3, np.float32)
    assert x.__dlpack_device__() == (1, 0)
    with pytest.raises(BufferError, match="no streams"):
        x.__dlpack__(stream=1)  # type: ignore[arg-type]
    with pytest.raises(BufferError, match="CPU"):
        x.__dlpack__(dl_device=(2, 0))
    with pytest.raises(BufferError, match="int4"):
        torch.from_dlpack(npu.zeros(3, ml_dtypes.int4))
    copied = np.from_dlpack(x)
    assert np.shares_memory(copied, x.numpy())
    torch.from_dlpack(x.copy())[0] = 4
    assert x[0] == 0


def test_what_asarray_refuses() -> None:
    with pytest.raises(TypeError, match="cannot hold float64; it holds float16"):
        npu.asarray([1.0])
    with pytest.raises(TypeError, match="cannot hold object"):
        npu.asarray([None])
    with pytest.raises(ValueError, match="needs a copy"):
        npu.asarray(np.zeros(3, np.float32), copy=False)
    with pytest.raises(ValueError, match="negative"):
        npu.empty((2, -1))
    x = npu.zeros(4, np.float16)
    assert npu.asarray(x) is x
    assert npu.asarray(x, copy=True).buffer is not x.buffer
    with pytest.raises(ValueError, match="leave"):
        npu.NpuArray(x.device, x.buffer, (4097,), np.int8)
    with pytest.raises(ValueError, match="leave"):
        npu.NpuArray(x.device, x.buffer, (2,), np.int8, (-1,))


# ---- lifetime ------------------------------------------------------------------------------------------------------


def test_views_keep_the_memory_and_closing_refuses_while_they_live(fresh_device: npu.Device) -> None:
    x = npu.zeros((4, 4), np.float32, device=fresh_device)
    row, seen, tensor = x[1], x.numpy(), torch.from_dlpack(x)
    with pytest.raises(BufferError, match="2 views"):
        x.close()
    del x
    gc.collect()
    seen[1], tensor[1, 0] = 4, 5
    np.testing.assert_array_equal(row.numpy(), [5, 4, 4, 4])
    del seen, tensor
    row.close()
    assert row.closed
    with pytest.raises(ClosedError):
        row.numpy()
    assert "closed" in repr(row)


def test_dropped_arrays_give_their_memory_back(fresh_device: npu.Device) -> None:
    before = fresh_device.stats()
    for _ in range(20):
        x = npu.asarray(np.ones((64, 64), np.float16), device=fresh_device)
        view = x[3:].numpy()
        del x
        assert fresh_device.stats().descriptors == before.descriptors + 1
        assert (view == 1).all()
        del view
        assert fresh_device.stats().npu_bytes == before.npu_bytes


def test_what_outlives_the_device(fresh_device: npu.Device) -> None:
    device = npu.Device("sim:rk3588")
    with device:
        x = npu.asarray(np.arange(4, dtype=np.int8), device=device)
        seen = x.numpy()
        with pytest.raises(BufferError):
            device.close()
    np.testing.assert_array_equal(seen, [0, 1, 2, 3])
    for use in (x.numpy, lambda: x[0], lambda: x @ x, lambda: npu.asarray(x), lambda: np.add(x, 1)):
        with pytest.raises(ClosedError, match="closed"):
            use()


# ---- numpy's functions ---------------------------------------------------------------------------------------------


def test_other_ufuncs_and_functions_give_ndarrays() -> None:
    a = values((3, 4), np.float32)
    x = npu.asarray(a)
    for got, wanted in (
        (x + 1, a + 1),
        (2 - x, 2 - a),
        (-x, -a),
        (x == x, a == a),
        (np.add.reduce(x), np.add.reduce(a)),
        (np.add.outer(x, x), np.add.outer(a, a)),
        (np.sum(x, axis=1), a.sum(axis=1)),
        (np.concatenate([x, x]), np.concatenate([a, a])),
        (np.where(x > 0, x, 0), np.where(a > 0, a, 0)),
        (np.einsum("ij->j", x), a.sum(0)),
        (np.linalg.norm(x, axis=0), np.linalg.norm(a, axis=0)),
    ):
        assert type(got) is np.ndarray
        np.testing.assert_array_equal(got, wanted)
    y = x
    y += 1
    assert y is x
    assert np.multiply(x, 2, out=x) is x
    np.testing.assert_array_equal(x.numpy(), (a + 1) * 2)
    out = npu.zeros(4, np.float32)
    assert np.sum(x, axis=0, out=out) is out
    np.copyto(x, a)
    np.testing.assert_array_equal(x.numpy(), a)


def test_products_of_every_name_run_on_the_npu(device: npu.Device) -> None:
    a, b = values((3, 4), np.int8), values((4, 5), np.int8, 1)
    x, y = npu.asarray(a), npu.asarray(b)
    wide_a, wide_b = a.astype(np.int32), b.astype(np.int32)
    product = wide_a @ wide_b
    packed = npu.pack(b)
    calls = [
        (lambda: x @ y, product), (lambda: x @ b, product), (lambda: a @ y, product), (lambda: x @ packed, product),
        (lambda: np.matmul(x, b), product), (lambda: np.dot(x, y), product), (lambda: npu.matmul(a, y), product),
        (lambda: np.dot(a, y), product), (lambda: npu.dot(x, b), product), (lambda: npu.linear(x, packed), product),
        (lambda: np.einsum("ij,jk->ik", x, b), product), (lambda: npu.einsum("ij,jk->ki", a, y), product.T),
        (lambda: np.inner(x, y.T), product), (lambda: np.tensordot(x, y, axes=1), product),
        (lambda: np.outer(x, a), np.outer(wide_a, wide_a)), (lambda: np.dot(np.int8(3), x), 3 * wide_a),
        (lambda: x @ b[:, 0], product[:, 0]), (lambda: np.inner(x[0], y.T), product[0]),
    ]  # fmt: skip
    for name, args, wanted in (
        ("vecdot", (x, a), (wide_a * wide_a).sum(1)),
        ("matvec", (x, b[:, 1]), product[:, 1]),
        ("vecmat", (x[1], b), product[1]),
    ):
        if hasattr(np, name):
            calls.append((functools.partial(getattr(np, name), *args), wanted))
        calls.append((functools.partial(getattr(npu, name), *args), wanted))
    for call, wanted in calls:
        before = device.stats().run_calls
        got = call()
        assert isinstance(got, npu.NpuArray)
        assert device.stats().run_calls > before
        np.testing.assert_array_equal(got.numpy(), wanted)
    for scalar in (np.vdot(x, a), npu.vdot(x, x), x[0] @ a[0], np.dot(x[0], a[0])):
        assert not isinstance(scalar, npu.NpuArray)
    assert np.vdot(x, a) == (wide_a * wide_a).sum()


def test_places_for_results() -> None:
    a, b = values((3, 4), np.float32), values((4, 5), np.float32, 1)
    x, out, place = npu.asarray(a), npu.zeros((3, 5), np.float32), np.zeros((3, 5), np.float32)
    assert npu.matmul(x, b, out=out) is out
    assert npu.matmul(x, b, out=place) is place
    np.testing.assert_array_equal(out.numpy(), a @ b)
    np.testing.assert_array_equal(place, a @ b)
    assert np.matmul(a, b, out=out) is out
    half = npu.zeros((3, 5), np.float16)
    assert np.dot(x, b, out=half) is half
    np.testing.assert_array_equal(half.numpy(), (a @ b).astype(np.float16))
    square = npu.asarray(a[:, :3])
    assert np.matmul(square, square, out=square) is square
    np.testing.assert_array_equal(square.numpy(), a[:, :3] @ a[:, :3])
    with pytest.raises(ValueError, match="out has shape"):
        npu.matmul(x, b, out=npu.zeros((2, 5), np.float32))
    with pytest.raises(TypeError, match="option 'axes'"):
        np.matmul(x, b, axes=[(0, 1), (0, 1), (0, 1)])


def test_what_products_refuse(fresh_device: npu.Device) -> None:
    x = npu.zeros((2, 3), np.int16)
    with pytest.raises(TypeError, match="int16"):
        x @ x.T
    with npu.config(fallback="numpy"):
        np.testing.assert_array_equal((x @ x.T).numpy(), np.zeros((2, 2)))
    elsewhere = npu.zeros((3, 2), np.int8, device=fresh_device)
    here = npu.zeros((2, 3), np.int8)
    with pytest.raises(ValueError, match="different devices"):
        here @ elsewhere
    assert npu.matmul(here, elsewhere, device=fresh_device).device is fresh_device
    with pytest.raises(ValueError, match="K = 3"):
        here @ here


# ---- methods of ndarrays -------------------------------------------------------------------------------------------

METHODS: dict[str, list[tuple[Any, ...]]] = {
    **{name: [(), (0,), (-1,)] for name in ("sum", "prod", "mean", "std", "var", "max", "min", "argmax", "argmin")},
    **{name: [(), (0,), (1,)] for name in ("any", "all", "cumsum", "cumprod")},
    "trace": [(), (1,)],
    "clip": [(2, 5), (None, 4)],
    "round": [(), (1,)],
    "conj": [()],
    "conjugate": [()],
    "ravel": [(), ("F",)],
    "flatten": [(), ("F",)],
    "squeeze": [(), (1,)],
    "swapaxes": [(0, 2)],
    "diagonal": [(), (1,)],
    "item": [(3,), (0, 0, 1)],
    "take": [([0, 2], 2), (5,)],
    "repeat": [(2,), (2, 0)],
    "nonzero": [()],
    "argsort": [(), (0,)],
    "searchsorted": [],
    "tobytes": [(), ("F",)],
    "tolist": [()],
}


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_methods_of_ndarrays_give_what_ndarrays_give(dtype: Any) -> None:
    plain = (np.arange(12).reshape(3, 1, 4) % 7).astype(dtype)
    whole, part = npu.asarray(plain), npu.asarray(np.concatenate([plain, plain]))[::2]
    for name, calls in METHODS.items():
        for arguments in calls:
            for array, expected in ((whole, plain), (part, np.concatenate([plain, plain])[::2])):
                wanted, got = getattr(expected, name)(*arguments), getattr(array, name)(*arguments)
                assert type(got) is type(wanted), name
                np.testing.assert_array_equal(got, wanted, err_msg=name)
                assert np.asarray(got).dtype == np.asarray(wanted).dtype, name
    assert whole.sum(axis=(0, 2), keepdims=True).shape == (1, 1, 1)
    assert whole.max(initial=9) == 9
    place = np.zeros(4, dtype)
    assert whole[:, 0].max(0, place) is place
    assert whole.flat[3] == plain.flat[3]
    assert npu.asarray(plain.ravel()[:4]).searchsorted(2) == 2
    for name in (name for name in METHODS if name not in ("item", "searchsorted")):
        with pytest.raises((TypeError, ValueError, np.exceptions.AxisError)):  # the mistakes of ndarrays, too
            getattr(whole, name)(7, 7, 7, 7, 7, 7, 7)


def test_views_by_methods_share_the_memory_and_changes_are_seen() -> None:
    x = npu.asarray(np.array([[3, 1, 2]], np.float32))
    for view in (x.ravel(), x.squeeze(), x.swapaxes(0, 1), x.real):
        view[...] += 1
    del view
    assert x.tolist() == [[7, 5, 6]]
    x.flatten()[:] = 0
    x.sort()
    assert x.tolist() == [[5, 6, 7]]
    x.fill(2)
    assert (x @ np.ones((3, 1), np.float32)).tolist() == [[6]]
    assert x.dot(np.ones((3, 1), np.float32)).tolist() == [[6]]
    assert isinstance(x.dot(x.T), npu.NpuArray)


def test_iteration_membership_and_comparison() -> None:
    plain = np.array([[3, 1, 2], [0, 1, 5]], np.int8)
    x = npu.asarray(plain)
    assert [row.tolist() for row in x] == plain.tolist()
    assert list(x[0]) == [3, 1, 2]
    assert all(type(value) is np.int8 for value in x[1])
    assert 5 in x
    assert 4 not in x
    with pytest.raises(TypeError, match="without dimensions"):
        iter(npu.zeros(()))
    for compared in (x == plain, plain == x, x == x.copy(), x >= plain, plain <= x):
        assert type(compared) is np.ndarray
        assert compared.all()
    assert not (x != plain).any()
    assert ((x > 1) == (plain > 1)).all()
    assert (x > 1).sum() == 3
    with pytest.raises(ValueError, match="ambiguous"):
        bool(x == plain)
    assert f"{npu.asarray(np.float32(1.5)):.2f}" == "1.50"
    assert complex(npu.asarray(np.float32(1.5))) == 1.5


def test_numpy_sees_parts_of_results_that_stand_in_memory_of_the_host() -> None:
    with npu.Device("sim:rk3588") as device:
        x = npu.asarray(np.arange(12, dtype=np.float32).reshape(3, 4), device=device)
        y = x @ np.eye(4, dtype=np.float32)
        values = np.asarray(y).copy()
        for part in (np.s_[:, 2:], np.s_[1:, ::2], np.s_[::-1], np.s_[:, 1]):
            seen = np.asarray(y[part])
            np.testing.assert_array_equal(seen, values[part])
            assert np.shares_memory(seen, np.asarray(y))
        np.testing.assert_array_equal(np.asarray(y.T), values.T)
