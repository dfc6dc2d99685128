"""Results of a few rows: values in memory of the host, which become memory of the NPU when somebody asks for that."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from chaining import KINDS, READERS, floats, layer

import npumatmul as npu
from npumatmul import MatmulType, sim
from npumatmul.errors import ClosedError
from npumatmul.ops.array import pending
from npumatmul.ops.array.multiply import AT_ONCE


@pytest.fixture(autouse=True)
def _here(device: npu.Device) -> Iterator[None]:
    with npu.use_device(device):
        yield


def stored(m: int = 37, seed: int = 1) -> tuple[npu.NpuArray, np.ndarray[Any, Any]]:
    """A result that stands in memory of the host, and its values."""
    w, _ = layer("w8a8", 64, 96)
    a = floats(m, 64, seed=seed)
    result = npu.asarray(a) @ w
    assert result.nbytes <= AT_ONCE
    assert result.domain is None  # there is no buffer yet
    return result, npu.matmul(a, w)


# ---- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("m", [1, 3, 37])
def test_chains_give_the_bits_of_ndarrays(device: npu.Device, kind: str, m: int) -> None:
    layers = [layer(kind, k, n, seed) for seed, (k, n) in enumerate([(96, 160), (160, 200), (200, 40)])]
    expected, x = floats(m, 96), npu.asarray(floats(m, 96))
    passes = device.stats().conversions
    for weight, options in layers:
        expected, x = npu.matmul(expected, weight, **options), npu.matmul(x, weight, **options)
        passes += 4  # two of each chain
        assert isinstance(x, npu.NpuArray)
        assert device.stats().conversions == passes
        np.testing.assert_array_equal(np.asarray(x), expected)
        assert x.dtype == expected.dtype
        assert device.stats().conversions == passes  # they stand there already


def test_what_cannot_be_deferred_is_stored_too(device: npu.Device) -> None:
    rng = np.random.default_rng(4)
    a, b = rng.integers(0, 200, (5, 60)).astype(np.uint8), rng.integers(-9, 9, (60, 100)).astype(np.int8)
    w, x = npu.pack(b), npu.asarray(a)
    sums = npu.matmul(x, b)
    np.testing.assert_array_equal(sums.numpy(), a.astype(np.int32) @ b)
    np.testing.assert_array_equal((x @ w).numpy(), a.astype(np.int32) @ b)
    residual = floats(5, 100)
    epilogue = npu.Epilogue(residual=residual)
    got = npu.matmul(x, w, epilogue=epilogue)
    expected = npu.matmul(a, w, epilogue=epilogue)
    residual[...] = 99
    np.testing.assert_array_equal(got.numpy(), expected)
    stack = npu.asarray(floats(3, 4, 64)) @ floats(3, 64, 8, seed=2)
    np.testing.assert_array_equal(stack.numpy(), npu.matmul(floats(3, 4, 64), floats(3, 64, 8, seed=2)))
    assert (npu.asarray(floats(64)) @ layer("w8a8", 64, 96)[0]).shape == (96,)


@pytest.mark.parametrize("reader", READERS)
def test_everybody_who_reads_sees_the_values(reader: str) -> None:
    result, values = stored()
    read = READERS[reader]
    expected, got = read(npu.asarray(values)), read(result)
    assert type(got) is type(expected)
    np.testing.assert_array_equal(got, expected)
    w = layer("w8a8", 96, 32)[0]
    np.testing.assert_array_equal((result @ w).numpy(), npu.matmul(values, w))


# ---- one memory ----------------------------------------------------------------------------------------------------


WRITERS: dict[str, Callable[[npu.NpuArray], Any]] = {
    "numpy": lambda x: x.numpy(),
    "asarray": np.asarray,
    "data": lambda x: np.asarray(x.data),
    "dlpack": lambda x: torch.from_dlpack(x).numpy(),
    "reshaped": lambda x: x.reshape(-1).numpy().reshape(x.shape),
    "turned": lambda x: x.T.numpy().T,
    "again": lambda x: npu.asarray(np.asarray(x), copy=False).numpy(),
    "of a part": lambda x: npu.asarray(np.asarray(x)[:, ::-1], copy=False).numpy()[:, ::-1],
}


@pytest.mark.parametrize("writer", WRITERS)
def test_all_who_see_it_share_it(writer: str) -> None:
    """Also with the buffer that is asked for while they see it, and before."""
    result, values = stored()
    w = layer("w8a8", 96, 32)[0]
    for _ in range(2):
        view = WRITERS[writer](result)
        view[3] = 7
        values[3] = 7
        np.testing.assert_array_equal(result.numpy(), values)
        np.testing.assert_array_equal((result @ w).numpy(), npu.matmul(values, w))
        np.testing.assert_array_equal(result[2:5].numpy(), values[2:5])
        bytes_there = result.buffer.array[: values.nbytes].view(np.float32)  # from here on it has a buffer
        np.testing.assert_array_equal(bytes_there.reshape(values.shape), values)
        view[5] = values[5] = 3
        np.testing.assert_array_equal(bytes_there.reshape(values.shape), values)
        np.testing.assert_array_equal(result.numpy(), values)
        del bytes_there


@pytest.mark.parametrize("seen", [True, False], ids=["seen before", "not seen"])
def test_contexts_of_users_read_and_write_it(device: npu.Device, seen: bool) -> None:
    """Caches are not coherent here (conftest.py): what is forgotten shows as old values."""
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-3, 4, shape).astype(np.float16) for shape in ((4, 64), (64, 64)))
    identity = npu.pack(np.eye(64, dtype=np.float32), "w8a8")

    def rows() -> npu.NpuArray:
        """Of a product whose result is float16, in memory of the host."""
        made = npu.matmul(npu.asarray(a.astype(np.float32)), identity, dtype=np.float16)
        assert made.domain is None
        return made

    x, out = rows(), rows()
    views = (x.numpy(), out.numpy()) if seen else None
    start = x.numpy().copy()
    with device.context(MatmulType.FLOAT16_FLOAT16_FLOAT16, 4, 64, 64) as context, device.buffer(64 * 64 * 2) as right:
        right.put(context.b, b)
        context.bind(a=x.buffer, b=right, c=out.buffer)
        for factor in (1, 2):
            x.numpy()[...] = start * factor
            context.run()
            expected = (start.astype(np.float32) * factor) @ b.astype(np.float32)
            np.testing.assert_array_equal(out.numpy(), expected.astype(np.float16))
            if views is not None:
                np.testing.assert_array_equal(views[1], expected.astype(np.float16))
                views[0][...] = start * factor
            with out.buffer.write(np.float16) as written:
                written[:64] = 5
            np.testing.assert_array_equal(out.numpy()[0], np.full(64, 5, np.float16))


def test_parts_of_a_buffer_that_is_seen_elsewhere_too(device: npu.Device) -> None:
    result, values = stored(m=64)
    view = result.numpy()
    alignment = device.chip.memory.slice_alignment
    with result.buffer.slice(alignment, alignment) as part:
        np.testing.assert_array_equal(part.array, values.reshape(-1).view(np.uint8)[alignment : 2 * alignment])
        view[...] = 6
        np.testing.assert_array_equal(part.array.view(np.float32), np.full(alignment // 4, 6, np.float32))


def test_products_in_place_go_on_from_it_unless_somebody_sees_it(device: npu.Device) -> None:
    rng = np.random.default_rng(1)
    a, first = rng.integers(-3, 4, (8, 60)).astype(np.float16), rng.integers(-2, 3, (60, 64)).astype(np.float16)
    second = rng.integers(-2, 3, (64, 32)).astype(np.float16)
    packed = npu.pack(first), npu.pack(second)
    expected = a.astype(np.float64) @ first.astype(np.float64)
    for seen in (False, True):
        halfway = npu.matmul(npu.asarray(a), packed[0], dtype=np.float16)
        view = halfway.numpy() if seen else None
        before = device.stats().conversions
        result = npu.matmul(halfway, packed[1], dtype=np.float16)
        assert device.stats().conversions == before + (2 if seen else 1)  # or a copy to where the NPU reads it
        assert (halfway.domain is None) == seen
        np.testing.assert_array_equal(result.numpy(), (expected @ second.astype(np.float64)).astype(np.float16))
        del view


# ---- lifetime ------------------------------------------------------------------------------------------------------


def test_they_hold_nothing_of_the_npu(fresh_device: npu.Device) -> None:
    with npu.use_device(fresh_device):
        x, w = npu.asarray(floats(7, 64)), layer("w8a8", 64, 96)[0]
        x @ w
        before = fresh_device.stats()
        held = [x @ w for _ in range(50)]
        views = [np.asarray(each) for each in held]
        assert fresh_device.stats().descriptors == before.descriptors
        assert fresh_device.stats().npu_bytes == before.npu_bytes
        assert len(views) == 50


def test_closing_refuses_while_somebody_sees_it() -> None:
    result, values = stored()
    view, tensor, part = result.numpy(), torch.from_dlpack(result), result.numpy()[3:]
    with pytest.raises(BufferError, match="views of this array"):
        result.close()
    del tensor, part
    with pytest.raises(BufferError, match="1 views"):
        result.close()
    np.testing.assert_array_equal(view, values)
    del view
    result.close()
    assert result.closed
    assert "closed" in repr(result)
    for read in (npu.NpuArray.numpy, np.asarray, lambda each: each.buffer, lambda each: each @ floats(96, 8)):
        with pytest.raises(ClosedError):
            read(result)


def test_views_of_a_stack_count_too() -> None:
    result = npu.asarray(floats(2, 3, 64)) @ layer("w8a8", 64, 96)[0]
    view = result.numpy()[1]
    with pytest.raises(BufferError, match="views of this array"):
        result.close()
    assert npu.asarray(view, copy=False).buffer is result.buffer
    view[...] = 4
    assert (result.numpy()[1] == 4).all()
    del view
    result.close()


def test_leaving_a_with_block_lets_views_keep_their_memory() -> None:
    result, values = stored()
    with result as inside:
        view = inside.numpy()
    assert result.closed
    np.testing.assert_array_equal(view, values)


def test_what_outlives_the_device() -> None:
    with npu.Device("sim:rk3588") as opened, npu.use_device(opened):
        result, values = stored()
        view = np.asarray(result)
    np.testing.assert_array_equal(view, values)
    for use in (result.numpy, lambda: np.asarray(result), lambda: result @ floats(96, 8), lambda: result.buffer):
        with pytest.raises(ClosedError, match="closed"):
            use()


def test_views_that_went_leave_nothing_known(fresh_device: npu.Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of results that were read it is known whose values an ndarray shows, as long as there is one."""
    monkeypatch.setattr(pending, "_SHOWN", 16)  # as many are known before those that went are looked for
    with npu.use_device(fresh_device):
        x, w = npu.asarray(floats(2, 64)), layer("w8a8", 64, 96)[0]
        for _ in range(50):
            np.asarray(x @ w)
        gc.collect()
        foreign = floats(2, 96)
        with pytest.raises(ValueError, match="needs a copy"):
            npu.asarray(foreign, copy=False)
        kept = x @ w
        assert npu.asarray(np.asarray(kept)[1:], copy=False).buffer is kept.buffer


def test_threads_see_one_memory(fresh_device: npu.Device) -> None:
    """Some ask for a buffer while others look and multiply."""
    with npu.use_device(fresh_device):
        second = layer("w8a8", 96, 32)[0]
        barrier = threading.Barrier(6)
        expected = npu.matmul(stored()[1], second)

        def work(index: int, x: npu.NpuArray) -> np.ndarray[Any, Any]:
            barrier.wait()
            if index % 3 == 0:
                return x.buffer.array[: x.nbytes].view(np.float32).reshape(x.shape)
            if index % 3 == 1:
                np.testing.assert_array_equal((x @ second).numpy()[6:], expected[6:])  # others write above
            view = x.numpy()
            view[index] = index
            return view

        with ThreadPoolExecutor(6) as pool:
            for _ in range(30):
                x, values = stored()
                views = list(pool.map(work, range(6), [x] * 6))
                for index in (2, 5):
                    values[index] = index
                for index in (1, 4):
                    values[index] = index
                for view in views:
                    np.testing.assert_array_equal(view, values)


def test_bfloat16_has_no_array_interface_there_either() -> None:
    result = npu.matmul(npu.asarray(floats(3, 64)), layer("w8a8", 64, 96)[0], dtype=ml_dtypes.bfloat16)
    with pytest.raises(AttributeError, match="bfloat16"):
        _ = result.__array_interface__
    assert np.asarray(result).dtype == ml_dtypes.bfloat16
    assert sys.getrefcount(result) < 5


def test_a_run_that_fails_is_repeated(fresh_device: npu.Device) -> None:
    with npu.use_device(fresh_device):
        w = layer("w8a8", 64, 96)[0]
        x = npu.asarray(floats(3, 64))
        expected = npu.matmul(floats(3, 64), w)
        x @ w
        with sim.configured(fresh_device, faults="run:times=1:code=-2"):
            np.testing.assert_array_equal((x @ w).numpy(), expected)
