"""`matmul` and `pack` against numpy."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import npumatmul as npu
from npumatmul import sim
from npumatmul.errors import ClosedError, NotFiniteError

extents = st.integers(1, 200)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    """(M, K, N): mostly small and odd, now and then across the tile limits of K or N (`BOTH`: of both)."""
    m = draw(st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 600])))
    k = draw(st.one_of(st.integers(1, 200), st.sampled_from([2047, 2048, 2049, 4097, 8191, 8193])))
    n = draw(st.integers(1, 200) if k > 200 else st.one_of(st.integers(1, 200), st.sampled_from([4095, 4096, 4097])))
    return m, k, n


#: Across the limits of K and N at once: a weight of 34 million values, for the cheapest of the tests.
BOTH = (5, 8193, 4097)


def strided(rng: np.random.Generator, matrix: np.ndarray) -> np.ndarray:
    """The same matrix in one of several memory orders."""
    way = rng.integers(5)
    if way == 0:
        return np.asfortranarray(matrix)
    if way == 1:
        return np.ascontiguousarray(matrix[::-1])[::-1]
    if way == 2:
        spaced = np.empty((2 * matrix.shape[0], 3 * matrix.shape[1]), matrix.dtype)[::2, ::3]
        spaced[...] = matrix
        return spaced
    if way == 3:
        return matrix.astype(matrix.dtype.newbyteorder(">"))
    return matrix


@given(shape=shapes(), seed=seeds)
@example(shape=BOTH, seed=0)
def test_int8_is_exact(device: npu.Device, shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = shape
    a = rng.integers(-128, 128, (m, k), dtype=np.int8)
    b = rng.integers(-128, 128, (k, n), dtype=np.int8)
    result = npu.matmul(strided(rng, a), strided(rng, b), device=device)
    assert result.dtype == np.int32
    # float64 holds every partial sum exactly: K * 2**14 < 2**53
    np.testing.assert_array_equal(result, (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int32))


def test_int8_extremes(device: npu.Device) -> None:
    a = np.full((3, 20_000), -128, np.int8)
    np.testing.assert_array_equal(npu.matmul(a, a.T, device=device), np.full((3, 3), 20_000 * 128 * 128))


def bound(a: np.ndarray, b: np.ndarray, input_rounding: float) -> np.ndarray:
    """Largest |error| that fp16 inputs and float32 sums allow, elementwise.

    With u the relative rounding error of an input (2**-11 for float32 values rounded to float16, 0 for float16
    values) and v = 2**-24: each product carries (1 + u)**2, each of at most K + 1 float32 additions (1 + v), so
    |error| <= ((1 + u)**2 * (1 + v)**(K + 1) - 1) * sum |a| |b|. Products of two float16 are exact in float32.
    """
    v = 2.0**-24
    factor = (1 + input_rounding) ** 2 * (1 + v) ** (a.shape[1] + 1) - 1
    return factor * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))


@given(shape=shapes(), seed=seeds)
def test_float16_within_the_bound(device: npu.Device, shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = shape
    a = rng.standard_normal((m, k)).astype(np.float16)
    b = rng.standard_normal((k, n)).astype(np.float16)
    result = npu.matmul(strided(rng, a), strided(rng, b), device=device)
    assert result.dtype == np.float32
    error = np.abs(result - a.astype(np.float64) @ b.astype(np.float64))
    assert (error <= bound(a, b, 0.0) + 1e-30).all()


@given(shape=shapes(), seed=seeds, exponents=st.tuples(st.integers(-120, 45), st.integers(-120, 45)))
def test_float32_within_the_bound_at_every_magnitude(
    device: npu.Device, shape: tuple[int, int, int], seed: int, exponents: tuple[int, int]
) -> None:
    rng = np.random.default_rng(seed)
    m, k, n = shape
    # uniform in [1, 2) with random signs: no element is small beside its row's largest, whatever the row's scale
    a = (rng.uniform(1, 2, (m, k)) * rng.choice([-1, 1], (m, k))).astype(np.float32)
    b = (rng.uniform(1, 2, (k, n)) * rng.choice([-1, 1], (k, n))).astype(np.float32)
    row = np.exp2(rng.integers(-6, 7, (m, 1)) + float(exponents[0])).astype(np.float32)
    column = np.exp2(rng.integers(-6, 7, (1, n)) + float(exponents[1])).astype(np.float32)
    a, b = a * row, b * column
    result = npu.matmul(strided(rng, a), strided(rng, b), device=device)
    assert result.dtype == np.float32
    exact = a.astype(np.float64) @ b.astype(np.float64)
    # results below float32's normal range are rounded to steps of 2**-149
    assert (np.abs(result - exact) <= bound(a, b, 2.0**-11) + 2.0**-149).all()


def test_float32_neither_overflows_nor_vanishes(device: npu.Device) -> None:
    big = np.full((2, 64), 1e6, np.float32)
    small = np.full((64, 2), 1e-7, np.float32)
    np.testing.assert_allclose(npu.matmul(big, small, device=device), 6.4, rtol=2e-3)


def test_inf_and_nan_pass_through_float(device: npu.Device) -> None:
    a = np.ones((3, 40), np.float32)
    a[1, 3], a[2, 5] = np.inf, np.nan
    result = npu.matmul(a, np.ones((40, 2), np.float32), device=device)
    np.testing.assert_array_equal(result[0], [40, 40])
    np.testing.assert_array_equal(result[1], [np.inf, np.inf])
    assert np.isnan(result[2]).all()


@given(shape=shapes(), seed=seeds)
def test_w8a8_equals_its_integers(device: npu.Device, shape: tuple[int, int, int], seed: int) -> None:
    """Quantized by hand in numpy, multiplied in int64, rescaled: the device's part is exact."""
    rng = np.random.default_rng(seed)
    m, k, n = shape
    a = (rng.standard_normal((m, k)) * np.exp(rng.standard_normal((m, 1)))).astype(np.float32)
    w = (rng.standard_normal((k, n)) * np.exp(rng.standard_normal((1, n)))).astype(np.float32)
    with npu.pack(strided(rng, w), "w8a8", device=device) as packed:
        result = npu.matmul(strided(rng, a), packed)
    a_scale = np.abs(a).max(axis=1, keepdims=True) / np.float32(127)
    w_scale = np.abs(w).max(axis=0, keepdims=True) / np.float32(127)
    a_scale[a_scale == 0] = 1
    w_scale[w_scale == 0] = 1
    qa = np.clip(np.rint(a / a_scale), -127, 127).astype(np.float64)
    qw = np.clip(np.rint(w / w_scale), -127, 127).astype(np.float64)
    expected = (qa @ qw) * a_scale.astype(np.float64) * w_scale.astype(np.float64)
    np.testing.assert_allclose(result, expected, rtol=2**-23, atol=0)


def test_w8a8_of_zeros_and_of_float16(device: npu.Device) -> None:
    w = np.zeros((50, 4), np.float32)
    w[:, 1] = 2
    with npu.pack(w, "w8a8", device=device) as packed:
        x = np.zeros((3, 50), np.float16)
        x[1] = 1
        np.testing.assert_allclose(npu.matmul(x, packed), [[0, 0, 0, 0], [0, 100, 0, 0], [0, 0, 0, 0]], rtol=1e-6)


def test_w8a8_refuses_what_cannot_be_quantized(device: npu.Device) -> None:
    w = np.ones((50, 4), np.float32)
    w[7, 2] = np.nan
    with pytest.raises(NotFiniteError, match=r"nan in row 7 and column 2 of \(K, N\)"):
        npu.pack(w, "w8a8", device=device)
    x = np.ones((300, 50), np.float32)
    x[277, 3] = np.inf
    with npu.pack(np.ones((50, 4), np.float32), "w8a8", device=device) as packed:
        with pytest.raises(NotFiniteError, match="row 277"):
            npu.matmul(x, packed)
        assert npu.matmul(x[:3], packed).shape == (3, 4)  # and goes on working


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8])
@pytest.mark.parametrize(("m", "k", "n"), [(0, 5, 4), (3, 0, 4), (3, 5, 0), (0, 0, 0)])
def test_empty_matrices(device: npu.Device, dtype: type, m: int, k: int, n: int) -> None:
    result = npu.matmul(np.ones((m, k), dtype), np.ones((k, n), dtype), device=device)
    assert result.shape == (m, n)
    assert result.dtype == (np.int32 if dtype is np.int8 else np.float32)
    assert not result.any()


@given(seed=seeds, transposed=st.booleans())
def test_a_packed_weight_serves_many_times(device: npu.Device, seed: int, transposed: bool) -> None:
    rng = np.random.default_rng(seed)
    k, n = rng.integers(1, 300, 2)
    w = rng.integers(-128, 128, (k, n), dtype=np.int8)
    with npu.pack(w.T if transposed else w, transposed=transposed, device=device) as packed:
        original = w.copy()
        w[...] = 0  # the packed weight does not look at the array again
        assert packed.shape == (k, n)
        for m in rng.integers(1, 70, 4):
            a = rng.integers(-128, 128, (m, k), dtype=np.int8)
            np.testing.assert_array_equal(a @ packed, a.astype(np.int32) @ original.astype(np.int32))


def test_many_weights_of_one_shape_share_contexts(fresh_device: npu.Device) -> None:
    rng = np.random.default_rng(3)
    weights = [rng.integers(-9, 9, (96, 64), dtype=np.int8) for _ in range(40)]
    packed = [npu.pack(w, device=fresh_device) for w in weights]
    a = rng.integers(-9, 9, (1, 96), dtype=np.int8)
    for _ in range(2):
        for w, p in zip(weights, packed, strict=True):
            np.testing.assert_array_equal(a @ p, a.astype(np.int32) @ w.astype(np.int32))
    stats = fresh_device.stats()
    assert stats.contexts == 2  # the one that memory is allocated under, and the shared one
    assert stats.run_calls == 80
    assert stats.macs == 80 * 96 * 64
    assert stats.descriptors == 3  # one arena for 40 weights, A, C


@pytest.fixture
def few_contexts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[npu.Device]]:
    """Three devices that may have forty contexts, beside those that other tests left in their library."""
    monkeypatch.setenv("NPUMATMUL_SIM_RUNTIME", "2.3.0")
    with ExitStack() as stack:
        devices = [stack.enter_context(npu.Device("sim:rk3588")) for _ in range(3)]
        gc.collect()
        others = int(sim.counter_details(devices[0])["contexts"]) - len(devices)
        stack.enter_context(sim.configured(devices[0], contexts=40 + others))
        yield devices


def test_more_shapes_than_contexts(few_contexts: list[npu.Device]) -> None:
    """Where a runtime makes no further context, the least recently used give way."""
    one, device = np.ones((1, 1000), np.int8), few_contexts[0]
    for n in range(32, 32 * 30, 32):
        for k in (64, 96):
            assert (npu.matmul(one[:, :k], np.ones((k, n), np.int8), device=device) == k).all()
    assert device.stats().contexts <= 38, "the other devices have one each"


def test_devices_share_the_contexts_of_the_process(few_contexts: list[npu.Device]) -> None:
    """Three devices that each want more contexts than a third of them: the idle ones give theirs up."""
    for device in (*few_contexts, few_contexts[0]):
        for n in range(32, 32 * 30, 32):
            assert (npu.matmul(np.ones((1, 64), np.int8), np.ones((64, n), np.int8), device=device) == 64).all()


def test_nothing_grows_with_use(fresh_device: npu.Device) -> None:
    rng = np.random.default_rng(11)

    def work() -> None:
        for _ in range(30):
            m, k, n = rng.integers(1, 120, 3)
            a, b = rng.integers(-9, 9, (m, k), dtype=np.int8), rng.integers(-9, 9, (k, n), dtype=np.int8)
            np.testing.assert_array_equal(
                npu.matmul(a, b, device=fresh_device), a.astype(np.int32) @ b.astype(np.int32)
            )

    for _ in range(5):  # until there are workspaces of every size
        work()
    before, files = fresh_device.stats(), len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        work()
    after = fresh_device.stats()
    assert (after.descriptors, after.npu_bytes) == (before.descriptors, before.npu_bytes)
    assert len(os.listdir("/proc/self/fd")) == files
    assert fresh_device.weights.bytes_used == 0


def test_a_dropped_weight_gives_its_memory_back(fresh_device: npu.Device) -> None:
    packed = npu.pack(np.ones((512, 512), np.float32), device=fresh_device)
    assert packed.nbytes == 512 * 512 * 2
    assert fresh_device.weights.bytes_used == packed.nbytes
    del packed
    gc.collect()
    fresh_device.stats()
    assert fresh_device.weights.bytes_used == 0


def test_closing_a_device_closes_everything() -> None:
    files = len(os.listdir("/proc/self/fd"))
    device = npu.Device("sim:rk3588")
    packed = npu.pack(np.ones((64, 64), np.float32), device=device)
    assert (np.ones((2, 64), np.float32) @ packed == 64).all()
    device.close()
    device.close()
    assert len(os.listdir("/proc/self/fd")) == files
    assert packed.closed
    with pytest.raises(ClosedError, match="closed"):
        np.ones((2, 64), np.float32) @ packed
    with pytest.raises(ClosedError, match="open another"):
        npu.matmul(np.ones((1, 1), np.int8), np.ones((1, 1), np.int8), device=device)
    packed.close()


def test_a_closed_weight_says_so(device: npu.Device) -> None:
    packed = npu.pack(np.ones((64, 64), np.float32), device=device)
    packed.close()
    packed.close()
    with pytest.raises(ClosedError, match="pack it again"):
        npu.matmul(np.ones((2, 64), np.float32), packed)
    assert "closed" in repr(packed)


BAD_DTYPES = [np.float64, np.int16, np.int32, np.int64, np.uint16, np.complex64, np.bool_, object, "U3"]


@pytest.mark.parametrize("dtype", BAD_DTYPES)
def test_other_dtypes_are_refused_with_advice(device: npu.Device, dtype: Any) -> None:
    bad, good = np.zeros((2, 2), dtype), np.zeros((2, 2), np.float32)
    advice = "an array of numbers is needed" if bad.dtype.kind in "OU" else "without losing information; cast to"
    for a, b in ((bad, good), (good, bad)):
        with pytest.raises(TypeError, match=advice):
            npu.matmul(a, b, device=device)


def test_mixed_kinds_are_refused(device: npu.Device) -> None:
    with pytest.raises(TypeError, match="cast one of them"):
        npu.matmul(np.zeros((2, 2), np.int8), np.zeros((2, 2), np.float32), device=device)
    with pytest.raises(TypeError, match="int8"), npu.pack(np.zeros((2, 2), np.int8), device=device) as packed:
        npu.matmul(np.zeros((2, 2), np.float32), packed)
    with pytest.raises(TypeError, match="scheme 'w8a8' takes"):
        npu.pack(np.zeros((2, 2), np.int8), "w8a8", device=device)
    with pytest.raises(ValueError, match=r"no scheme is called 'w1a1'.*w16a16.*w8a8"):
        npu.pack(np.zeros((2, 2), np.float32), "w1a1", device=device)


def test_shape_mistakes_are_named(device: npu.Device) -> None:
    a = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"last dimension of a is K = 3, but K of b is 4"):
        npu.matmul(a, np.zeros((4, 5), np.float32), device=device)
    with pytest.raises(ValueError, match="b looks transposed"):
        npu.matmul(a, np.zeros((5, 3), np.float32), device=device)
    with pytest.raises(ValueError, match="a is a scalar"):
        npu.matmul(np.float32(1), np.zeros((3, 5), np.float32), device=device)
    with pytest.raises(ValueError, match=r"stacks of a and b cannot be broadcast together: \(4,\) and \(5,\)"):
        npu.matmul(np.zeros((4, 2, 3), np.int8), np.zeros((5, 3, 1), np.int8), device=device)
    with pytest.raises(ValueError, match="2 dimensions"):
        npu.pack(np.zeros(3, np.float32), device=device)


def test_many_threads_agree_with_numpy(fresh_device: npu.Device) -> None:
    failures: list[str] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(25):
            m, k, n = rng.integers(1, 90, 3)
            a, b = rng.integers(-99, 99, (m, k), dtype=np.int8), rng.integers(-99, 99, (k, n), dtype=np.int8)
            if not (npu.matmul(a, b, device=fresh_device) == a.astype(np.int32) @ b.astype(np.int32)).all():
                failures.append(f"seed {seed}, shape {(m, k, n)}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_after_a_fork_the_child_gets_a_clear_error_and_can_open_its_own(device: npu.Device) -> None:
    one = np.ones((2, 2), np.int8)
    npu.matmul(one, one, device=device)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # the child reports through the pipe and ends without running pytest's clean-up
        try:
            try:
                npu.matmul(one, one, device=device)
                message = "no error"
            except ClosedError as error:
                message = str(error)
            with npu.Device("sim:rk3588") as own:
                message += f" | {npu.matmul(one, one, device=own).tolist()}"
        except BaseException as error:
            message = f"unexpected: {error!r}"
        os.write(write, message.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        message = pipe.read()
    os.waitpid(child, 0)
    assert "after a fork" in message
    assert message.endswith("| [[2, 2], [2, 2]]")


def test_use_device_is_scoped(fresh_device: npu.Device) -> None:
    outside = npu.current_device()
    with npu.use_device(fresh_device):
        assert npu.current_device() is fresh_device
        seen: list[npu.Device] = []
        thread = threading.Thread(target=lambda: seen.append(npu.current_device()))
        thread.start()
        thread.join()
        assert seen == [outside], "another thread keeps the default"
    assert npu.current_device() is outside
