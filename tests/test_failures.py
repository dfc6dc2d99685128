"""What happens when a function of the runtime fails: the right exception, and everything usable afterwards."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from compiling import compile_c

import npumatmul as npu
from npumatmul import errors
from npumatmul.rknn.discovery import simulator_path

Arm = Callable[..., None]


@pytest.fixture(scope="module")
def faulty_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    simulator = simulator_path()
    return compile_c(
        tmp_path_factory.mktemp("faulty") / "libfaulty.so",
        [Path(__file__).parent / "faulty_runtime.c", simulator],
        "-shared",
        "-fPIC",
        f"-Wl,-rpath,{simulator.parent}",
        "-Wl,--no-as-needed",
    )


@pytest.fixture
def faulty(faulty_library: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[npu.Device, Arm]]:
    monkeypatch.setenv("NPUMATMUL_LIBRARY", str(faulty_library))
    # it hands its calls to the simulator, which may still be on the chip that another test selected in this thread
    ctypes.CDLL(str(simulator_path())).npumm_sim_select(None)
    with npu.Device() as device:
        library = ctypes.CDLL(str(faulty_library))

        def arm(function: str, after: int, code: int, times: int = 1) -> None:
            library.faulty_arm(function.encode(), after, code, times)

        yield device, arm
        arm("", 0, 0)


RNG = np.random.default_rng(1)
A = RNG.integers(-9, 9, (600, 9000), dtype=np.int8)  # 6 ranges of rows, two on each core, 2 slices of K
B = RNG.integers(-9, 9, (9000, 40), dtype=np.int8)
EXPECTED = A.astype(np.int32) @ B.astype(np.int32)


ALWAYS = 10**6


@pytest.mark.parametrize("code", sorted(errors.RKNN_ERRORS))
def test_every_code_has_its_exception(faulty: tuple[npu.Device, Arm], code: int) -> None:
    device, arm = faulty
    arm("rknn_matmul_run", 0, code, ALWAYS)
    with pytest.raises(errors.RKNN_ERRORS[code]) as caught:
        npu.matmul(A[:2], B, device=device)
    error = caught.value
    assert (error.function, error.code) == ("rknn_matmul_run", code)
    text = str(error)
    assert f"returned {code} ({error.name}): {error.meaning}" in text
    assert "(2, 9000) @ (9000, 40)" in text
    assert "its context was made anew" in text
    assert "INT8_INT8_INT32" in text
    assert isinstance(error.__cause__, errors.RKNN_ERRORS[code])  # the first time
    arm("", 0, 0)
    np.testing.assert_array_equal(npu.matmul(A[:2], B, device=device), EXPECTED[:2])


def test_an_unknown_code_is_told_too(faulty: tuple[npu.Device, Arm]) -> None:
    device, arm = faulty
    arm("rknn_matmul_run", 0, -77, 2)
    with pytest.raises(errors.RknnError, match=r"returned -77 \(unknown code") as caught:
        npu.matmul(A[:2], B, device=device)
    assert type(caught.value) is errors.RknnError


@pytest.mark.parametrize(
    ("function", "calls"), [("rknn_matmul_run", 12), ("rknn_matmul_set_io_mem", 36), ("rknn_mem_sync", 24)]
)
def test_one_failure_at_any_call_is_made_good(faulty: tuple[npu.Device, Arm], function: str, calls: int) -> None:
    """Its context is made anew and the call repeated; a second failure is raised and leaves the weight usable."""
    device, arm = faulty
    with npu.pack(B, device=device) as packed:
        np.testing.assert_array_equal(A @ packed, EXPECTED)  # from here on only the executor calls `function`
        before = device.stats()
        np.testing.assert_array_equal(A @ packed, EXPECTED)
        after = device.stats()
        assert after.run_calls - before.run_calls == 12
        assert after.set_io_mem_calls - before.set_io_mem_calls == 36
        assert after.mem_sync_calls - before.mem_sync_calls == 24
        for position in range(calls):
            arm(function, position, -1)
            np.testing.assert_array_equal(A @ packed, EXPECTED)
            arm(function, position, -1, ALWAYS)
            with pytest.raises(errors.RknnFail, match="in vain") as caught:
                A @ packed
            assert caught.value.function == function
            arm("", 0, 0)
            np.testing.assert_array_equal(A @ packed, EXPECTED)
        assert device.stats().contexts == after.contexts


@pytest.mark.parametrize(
    ("function", "calls"), [("rknn_matmul_run", 1), ("rknn_matmul_set_io_mem", 3), ("rknn_mem_sync", 2)]
)
def test_one_failure_of_a_product_in_place_is_made_good(
    faulty: tuple[npu.Device, Arm], function: str, calls: int
) -> None:
    device, arm = faulty
    a, b = (RNG.integers(-9, 9, shape).astype(np.float16) for shape in ((64, 576), (576, 512)))
    expected = a.astype(np.float32) @ b.astype(np.float32)
    x, w, out = npu.asarray(a, device=device), npu.pack(b, device=device), npu.empty((64, 512), device=device)

    def product() -> np.ndarray:
        with out.buffer.write():  # its cache lines have to be cleaned before the NPU writes there
            out.numpy()
        npu.matmul(x, w, out=out)
        return out.numpy()

    np.testing.assert_array_equal(product(), expected)
    before = device.stats()
    np.testing.assert_array_equal(product(), expected)
    after = device.stats()
    assert after.conversions == before.conversions
    assert after.run_calls - before.run_calls == 1
    assert after.set_io_mem_calls - before.set_io_mem_calls == 3
    assert after.mem_sync_calls - before.mem_sync_calls == 2
    for position in range(calls):
        arm(function, position, -1)
        np.testing.assert_array_equal(product(), expected)
        arm(function, position, -1, ALWAYS)
        with pytest.raises(errors.RknnFail, match="in vain") as caught:
            product()
        assert caught.value.function == function
        arm("", 0, 0)
        np.testing.assert_array_equal(product(), expected)
    arm("rknn_matmul_*", 3, -5, ALWAYS)  # the run fails, then the creation of the next context
    with pytest.raises(errors.RknnParamInvalid, match="create") as caught:
        product()
    assert isinstance(caught.value.__cause__, errors.RknnParamInvalid)
    assert caught.value.__cause__.function == "rknn_matmul_run"
    arm("", 0, 0)
    np.testing.assert_array_equal(product(), expected)
    assert device.stats().contexts == after.contexts


def test_a_context_that_cannot_be_made_anew(faulty: tuple[npu.Device, Arm]) -> None:
    device, arm = faulty
    a, expected = A[:4], EXPECTED[:4]  # on one core, whose calls come in one order
    with npu.pack(B, device=device) as packed:
        np.testing.assert_array_equal(a @ packed, expected)
        library_calls = device.stats().contexts
        arm("rknn_matmul_*", 5, -5, ALWAYS)  # a binding fails, then the creation of the next context
        with pytest.raises(errors.RknnParamInvalid, match="create") as caught:
            a @ packed
        assert isinstance(caught.value.__cause__, errors.RknnParamInvalid)
        assert caught.value.__cause__.function == "rknn_matmul_set_io_mem"
        arm("", 0, 0)
        np.testing.assert_array_equal(a @ packed, expected)
        assert device.stats().contexts == library_calls


@pytest.mark.parametrize("position", range(3))
def test_failed_allocations_leak_nothing(faulty: tuple[npu.Device, Arm], position: int) -> None:
    device, arm = faulty
    before, files = device.stats(), len(os.listdir("/proc/self/fd"))
    if position:
        arm("rknn_create_mem_from_fd", position - 1, -4)
    else:
        arm("rknn_create_mem", 0, -4, ALWAYS)  # a smaller arena is refused, too, and other domains
    expected = errors.RknnMallocFail if position else errors.NpuMemoryError
    with pytest.raises(expected) as caught:
        npu.pack(B, device=device)  # two tiles
    assert isinstance(caught.value, MemoryError)
    assert device.weights.bytes_used == 0
    assert device.stats().contexts == before.contexts
    arm("", 0, 0)
    assert len(os.listdir("/proc/self/fd")) <= files + 1  # at most the one empty arena that is kept
    np.testing.assert_array_equal(npu.matmul(A, B, device=device), EXPECTED)


@pytest.mark.parametrize("function", ["rknn_matmul_create*", "rknn_matmul_set_core_mask"])
def test_a_context_that_cannot_be_made(faulty: tuple[npu.Device, Arm], function: str) -> None:
    device, arm = faulty
    arm(function, 0, -5, ALWAYS)
    with pytest.raises(errors.RknnParamInvalid, match=function.strip("*")):
        npu.matmul(A, B, device=device)
    assert device.stats().contexts == 1
    assert device.weights.bytes_used == 0
    arm("", 0, 0)
    np.testing.assert_array_equal(npu.matmul(A, B, device=device), EXPECTED)


@pytest.mark.parametrize("code", [-1, -5])
def test_where_several_shapes_cannot_be_made_contexts_have_one(
    faulty: tuple[npu.Device, Arm], code: int, caplog: pytest.LogCaptureFixture
) -> None:
    device, arm = faulty
    arm("rknn_matmul_create_dynamic_shape", 0, code, ALWAYS)
    for m in (1, 5, 300):
        np.testing.assert_array_equal(npu.matmul(A[:m], B, device=device), EXPECTED[:m])
    assert "contexts of one shape each serve instead" in caplog.text
    assert device.stats().set_dynamic_shape_calls == 0


def test_a_runtime_that_does_not_tell_its_version_is_judged_by_its_symbols(
    faulty: tuple[npu.Device, Arm], faulty_library: Path
) -> None:
    _, arm = faulty
    arm("rknn_query", 0, -5)
    with npu.Device() as device:
        assert device.api_version == "unknown"
        assert str(device.runtime_version) == "2.1.0"  # the oldest that exports all that 2.3.2 does
        np.testing.assert_array_equal(npu.matmul(A, B, device=device), EXPECTED)


def test_a_device_that_cannot_be_opened_leaves_nothing(faulty: tuple[npu.Device, Arm]) -> None:
    _, arm = faulty
    files = len(os.listdir("/proc/self/fd"))
    arm("rknn_matmul_create", 0, -1)
    with pytest.raises(errors.RknnFail, match="rknn_matmul_create"):
        npu.Device()
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_failure_in_the_background_arrives_in_the_future(faulty: tuple[npu.Device, Arm]) -> None:
    device, arm = faulty
    with npu.Matmul(A, B, device=device) as product:
        product.plan()
        arm("rknn_matmul_run", 1, -1, 2)  # and when it is repeated
        first, second = product.submit(), product.submit()
        with pytest.raises(errors.RknnFail, match="rknn_matmul_run"):
            first.result(60)
        np.testing.assert_array_equal(second.result(60), EXPECTED)  # what comes after it is computed
        assert device.weights.bytes_used > 0
    assert device.weights.bytes_used == 0  # though the exception still knows the operands


def test_a_failure_while_packing_leaves_a_matmul_usable(faulty: tuple[npu.Device, Arm]) -> None:
    device, arm = faulty
    stack = np.stack([B, -B])
    with npu.Matmul(A[:3], stack, device=device) as product:
        arm("rknn_create_mem_from_fd", 3, -1)  # in the second matrix of the stack
        with pytest.raises(errors.NpuError):
            product.plan()
        arm("", 0, 0)
        np.testing.assert_array_equal(product.execute(), np.stack([EXPECTED[:3], -EXPECTED[:3]]))
