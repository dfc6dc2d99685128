"""A device that is gone, and a driver that cannot be used: one error that says so, and what failed first."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import npumatmul as npu
from npumatmul import errors, sim
from npumatmul.chips.types import MatmulType

RNG = np.random.default_rng(21)
A = RNG.integers(-9, 9, (40, 600), dtype=np.int8)
B = RNG.integers(-9, 9, (600, 32), dtype=np.int8)  # on one core: what fails first is not a matter of chance
EXPECTED = A.astype(np.int32) @ B.astype(np.int32)


class User:
    """A device in full use: a weight with contexts, arrays, a deferred result, and a context with buffers."""

    def __init__(self) -> None:
        self.device = npu.Device()
        self.packed = npu.pack(B, device=self.device)
        for m in (1, 40):
            np.testing.assert_array_equal(A[:m] @ self.packed, EXPECTED[:m])
        self.array = npu.asarray(A, device=self.device)
        self.deferred = npu.matmul(self.array, self.packed)
        self.context = self.device.context(MatmulType.INT8_INT8_INT32, 4, 64, 32)
        attrs = (self.context.a, self.context.b, self.context.c)
        self.buffers = [self.device.buffer(attr.size) for attr in attrs]
        a, b, c = self.buffers
        self.context.bind(a=a, b=b, c=c)
        self.context.run()

    def uses(self) -> dict[str, Callable[[], Any]]:
        return {
            "a product": lambda: A @ self.packed,
            "a product of other rows": lambda: A[:7] @ self.packed,
            "a product of an array": lambda: npu.matmul(self.array, self.packed),
            "a product of two arrays": lambda: npu.matmul(A, B, device=self.device),
            "packing": lambda: npu.pack(B, device=self.device),
            "a run": self.context.run,
            "a buffer": lambda: self.device.buffer(2**20),
            "an array": lambda: npu.asarray(A, device=self.device),
            "a context": lambda: self.device.context(MatmulType.INT8_INT8_INT32, 4, 96, 32),
            "a product in the background": lambda: npu.matmul_async(A, B, device=self.device).result(60),
        }


@pytest.fixture(scope="module")
def own_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulator that no other test has: what is lost stays there, as on a board."""
    return Path(shutil.copy(sim.library_path(), tmp_path_factory.mktemp("lost") / "libown.so"))


@pytest.fixture(autouse=True)
def _in_its_own_library(own_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NPUMATMUL_LIBRARY", str(own_library))


@pytest.fixture
def user() -> Iterator[User]:
    user = User()
    yield user
    user.device.close()


def worked_again() -> None:
    with npu.Device() as another:
        np.testing.assert_array_equal(npu.matmul(A, B, device=another), EXPECTED)


#: What is done when the device goes, by the call that finds out.
FIRST = {
    "run": "a product",
    "set_io_mem": "a product of an array",
    "mem_sync": "a product",
    "create_mem": "a buffer",
    "create_mem_from_fd": "packing",
    "create": "a context",
    "create_dynamic_shape": "a product of two arrays",
    "set_dynamic_shape": "a product of other rows",
}


@pytest.mark.parametrize("code", [-1, -3])
@pytest.mark.parametrize("call", FIRST)
def test_one_error_names_the_call_that_failed_first(
    user: User, call: str, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is done with the device, before and after it is closed; and one line is logged."""
    caplog.set_level(logging.WARNING, "npumatmul")
    uses = user.uses()
    if call.startswith("create_dynamic"):
        user.device.empty_cache()
    with sim.configured(user.device, faults=f"{call}:lost:code={code}"):
        told = []
        for name in (FIRST[call], *uses):
            with pytest.raises(errors.DeviceLostError) as caught:
                uses[name]()
            told.append(str(caught.value))
            cause = caught.value.__cause__
            assert isinstance(cause, errors.RknnError)
            assert cause.code == (-4 if call.startswith("create_mem") else code)  # NULL says no more
            assert call in cause.function
        assert len(set(told)) == 1, "the same whatever is tried"
        assert f"{call}(" in told[0]
        assert "is gone" in told[0]
        assert "A new Device may work" in told[0]
        assert "memory_limit" not in told[0]
        assert "ulimit" not in told[0]
        user.packed.close()
        for buffer in user.buffers:
            buffer.close()
        user.context.close()
        assert not user.device.usable
        user.device.close()
        user.device.close()
        assert [record.getMessage() for record in caplog.records] == told[:1]
    worked_again()


@pytest.mark.parametrize("call", ["destroy", "destroy_mem"])
def test_giving_back_is_no_error_where_the_device_is_gone(
    user: User, call: str, caplog: pytest.LogCaptureFixture
) -> None:
    with sim.configured(user.device, faults=f"{call}:lost"):
        user.buffers[0].close()
        user.context.close()
        with pytest.raises(errors.DeviceLostError, match=f"rknn_(matmul_)?{call}"):
            A @ user.packed
        user.device.close()
    assert len(caplog.records) == 1
    worked_again()


def test_the_default_device_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    npu.set_device(None)
    monkeypatch.setattr("npumatmul.device.current._default", None)
    first = npu.current_device()
    npu.matmul(A, B)
    with sim.configured(first, faults="run:lost"), pytest.raises(errors.DeviceLostError):
        npu.matmul(A, B)
    np.testing.assert_array_equal(npu.matmul(A, B), EXPECTED)
    assert npu.current_device() is not first
    npu.current_device().close()
    first.close()


def test_what_was_lost_does_not_count_any_more(user: User) -> None:
    """A device that is dropped without being closed, too: in the simulator, which is told so when it is there again."""
    gone = User()
    held = sim.counters(user.device)
    with sim.configured(user.device, faults="run:times=1:lost"), pytest.raises(errors.DeviceLostError):
        A @ gone.packed
    del gone
    after = sim.counters(user.device)
    assert after.contexts_now < held.contexts_now
    assert after.memories_now < held.memories_now
    np.testing.assert_array_equal(A @ user.packed, EXPECTED)  # a session of its own, which did not notice


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        ("create_mem:code=-4", errors.NpuMemoryError),
        ("run:code=-3", errors.RknnDeviceUnavailable),
        ("create:code=-1", errors.RknnFail),
        ("create:code=-1;create_mem:code=-1", errors.NpuMemoryError),
        ("mem_sync:code=-3", errors.RknnDeviceUnavailable),
    ],
)
def test_what_can_still_be_done_says_that_the_device_is_there(
    user: User, faults: str, error: type[errors.NpuError]
) -> None:
    """No room for anything, and runs that fail for ever, are errors of their own."""
    uses = {"create_mem:code=-4": "a buffer", "create:code=-1": "a context"}
    name = uses.get(faults, "a buffer" if "create_mem" in faults else "a product")
    with sim.configured(user.device, faults=faults), pytest.raises(error) as caught:
        user.uses()[name]()
    assert type(caught.value) is error
    np.testing.assert_array_equal(A @ user.packed, EXPECTED)


PROGRAM = """
import numpy as np
import npumatmul as npu
from npumatmul import errors, sim

a, b = np.ones((20, 600), np.int8), np.ones((600, 1000), np.int8)
with npu.Device() as other:
    packed, x = npu.pack(b), npu.asarray(a)
    for m in (1, 5, 20):
        a[:m] @ packed
    kept = [npu.matmul(x, packed) for _ in range(3)]
    faults = sim.configured(other, faults="run:lost")
    faults.__enter__()
    try:
        a @ packed
    except errors.DeviceLostError:
        print("lost")
"""


def test_a_program_that_lost_its_device_ends_without_a_word_more() -> None:
    """One line of ours; what the runtime says itself is not ours to keep back."""
    environment = {**os.environ, "NPUMATMUL_DEVICE": "sim:rk3588"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, timeout=60, check=False, env=environment,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (0, "lost\n")
    ours = [line for line in ended.stderr.splitlines() if "simulator: injected fault" not in line]
    assert len(ours) == 1, ended.stderr
    assert "is gone" in ours[0]


# ---- the driver ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["old", "missing"])
def test_a_driver_that_cannot_be_used_is_told_with_what_to_look_at(driver: str) -> None:
    program = "import npumatmul as npu\ntry: npu.Device()\nexcept npu.errors.RknnFail as error: print(error)"
    environment = {**os.environ, "NPUMATMUL_DEVICE": "sim:rk3588", "NPUMATMUL_SIM_DRIVER": driver}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, env=environment
    )
    text = ended.stdout
    for word in ("driver", "too old", "dmesg", "/dev/dri", "standard error"):
        assert word in text
    assert "memory" not in text
    own = {"old": "the kernel driver is too old", "missing": "failed to open rknpu module"}[driver]
    assert own in ended.stderr  # the runtime's own line


def test_no_room_for_another_device_is_not_the_drivers_fault() -> None:
    with npu.Device() as device:
        room = sim.counter_details(device)["chips"]["rk3588"]["contexts"]
        with sim.configured(device, contexts=room), pytest.raises(errors.RknnFail) as caught:
            npu.Device()
        assert "driver cannot be opened" not in str(caught.value)
