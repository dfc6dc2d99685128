"""Settings: those that cannot work raise at once, and those that were given without effect say so."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from interrupts import interrupted_at

import npumatmul as npu
from npumatmul import sim
from npumatmul.device import current
from npumatmul.errors import DeviceError, LibraryNotFoundError
from npumatmul.ops import settings
from npumatmul.ops.settings import CURRENT
from npumatmul.planning import choices
from npumatmul.planning.choices import consulting
from npumatmul.rknn.version import RuntimeVersion
from npumatmul.running import where
from npumatmul.running.where import Where, storing

#: What scopes change.
_SCOPES = CURRENT, current._chosen, where._where, choices._consulted
X, W = np.ones((4, 64), np.float32), np.ones((64, 32), np.float32)


@pytest.fixture
def default_device() -> Iterator[None]:
    yield
    npu.set_device(None)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: npu.config(fallback="torch"), ValueError, "fallback is 'torch'; it can be 'numpy' or None"),
        (lambda: npu.config(tuned="yes"), TypeError, "tuned is 'yes'; it can be True or False"),
        (lambda: npu.config(scheme="w8a8"), TypeError, "scheme"),
        (lambda: npu.use_device("sim:rk9"), DeviceError, "'sim:rk9' is not simulated"),
        (lambda: npu.use_device(None), TypeError, "use_device: a Device or a string such as"),
        (lambda: npu.use_device(3), TypeError, "a device is named by a string such as 'rknn' or 'sim:rk3588', not"),
        (lambda: npu.set_device("gpu"), DeviceError, "'gpu' is not known"),
        (lambda: npu.set_device(3), TypeError, "named by a string"),
        (lambda: npu.Device(3), TypeError, "named by a string"),
        (lambda: npu.matmul(X, W, device=3), TypeError, "named by a string"),
        (lambda: npu.pack(W, device=3), TypeError, "named by a string"),
        (lambda: npu.matmul(X, W, scheme="w8a7"), ValueError, "no scheme is called 'w8a7': w8a7 does not exist"),
        (lambda: npu.Matmul(X, W, scheme="w8a7"), ValueError, "no scheme is called 'w8a7'"),
        (lambda: npu.Matmul(X, W, options={"cores": 7}), ValueError, "option 'cores' is 7; rk3588 has 3"),
        (lambda: npu.Matmul(X, W, options={"buckets": [6]}), ValueError, "takes 1 and multiples of 4, not 6"),
        (lambda: npu.capabilities("rk3588", "9.9"), DeviceError, "nothing is known of runtime 9.9.0; versions from"),
        (lambda: npu.capabilities("rk3588", "1.4.0"), DeviceError, "to 2.3.2 are known"),
        (lambda: sim.configured(strikt=True), ValueError, r"no setting 'strikt' \(did you mean 'strict'\?\)"),
        (lambda: sim.configured(strict="maybe"), ValueError, "'strict' is 0 or 1, not 'maybe'"),
    ],
)  # fmt: skip
def test_what_cannot_work_raises_at_once(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """Not when a block begins, or a product is planned or computed."""
    with pytest.raises(error, match=message):
        call()


def test_a_newer_runtime_is_known_where_a_library_reports_it() -> None:
    reported = npu.capabilities("rk3588", RuntimeVersion(2, 5, 0))
    newest = npu.capabilities("rk3588")
    assert [cell.value for _, cell in reported.cells()] == [cell.value for _, cell in newest.cells()]


@pytest.mark.parametrize(
    ("forgotten", "call", "advice"),
    [
        (lambda path: npu.config(fallback="numpy"), "npumatmul.config", ""),
        (lambda path: npu.use_device("sim:rk3576"), "npumatmul.use_device", "set_device(...) chooses for the whole"),
        (lambda path: sim.configured(strict=True), "npumatmul.sim.configured", ""),
        (lambda path: sim.trace(path), "npumatmul.sim.trace", ""),
    ],
)
def test_a_forgotten_with_is_told(tmp_path: Path, forgotten: Callable[[Path], object], call: str, advice: str) -> None:
    with pytest.warns(UserWarning, match="did nothing") as caught:
        forgotten(tmp_path / "trace.json")
    (warning,) = caught
    assert str(warning.message).startswith(f"{call}(...) did nothing: it holds within a `with` block only")
    assert advice in str(warning.message)
    assert warning.filename == __file__
    assert npu.current_device().name == "sim:rk3588"
    assert settings().fallback is None
    assert not (tmp_path / "trace.json").exists()


def test_what_is_used_does_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with npu.config(fallback="numpy") as held:
            assert held.fallback == "numpy"
        with contextlib.ExitStack() as stack:
            assert stack.enter_context(npu.use_device("sim:rk3576")).name == "sim:rk3576"
        with npu.config(fallback="numpy"), npu.config(tuned=True) as both:
            assert (both.fallback, both.tuned) == ("numpy", True)


def test_functions_run_within() -> None:
    @npu.use_device("sim:rk3576")
    @npu.config(fallback="numpy")
    def inside(depth: int) -> list[tuple[str, str | None]]:
        """Say where it runs."""
        here = (npu.current_device().name, settings().fallback)
        return [here, *inside(depth - 1)] if depth else [here]

    assert inside(2) == [("sim:rk3576", "numpy")] * 3
    assert (inside.__name__, inside.__doc__) == ("inside", "Say where it runs.")
    assert (npu.current_device().name, settings().fallback) == ("sim:rk3588", None)


@pytest.mark.usefixtures("default_device")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_leaves_no_scope_behind() -> None:
    """Wherever one comes while a scope begins or ends, afterwards that holds what held before."""
    with npu.Device("sim:rk3576") as device:
        scopes: list[Callable[[], Any]] = [
            lambda: npu.config(cores=(1,)), lambda: npu.use_device(device), lambda: storing(Where(cores=(1,))),
            lambda: consulting(None, {"cores": 1}),
        ]  # fmt: skip
        for scope in scopes:

            def work(scope: Callable[[], Any] = scope) -> None:
                with scope():
                    pass

            work()
            held = [value.get(None) for value in _SCOPES]
            position = 0
            while interrupted_at(position, work):
                position += 1
                assert [value.get(None) for value in _SCOPES] == held
            assert position > 4


def test_set_device_is_the_default_of_every_thread() -> None:
    chosen = npu.set_device("sim:rk3576")
    assert npu.current_device() is chosen
    assert npu.pack(W).device is chosen
    found = []
    thread = threading.Thread(target=lambda: found.append(npu.current_device()))
    thread.start()
    thread.join()
    assert found == [chosen]
    with npu.use_device("sim:rk3562") as nearer:
        assert npu.current_device() is nearer
        assert npu.current_device("sim:rk3588").name == "sim:rk3588"
    with pytest.raises(DeviceError):
        npu.set_device("sim:rk9")
    assert npu.current_device() is chosen
    assert npu.set_device(None) is npu.current_device()
    assert npu.current_device().name == "sim:rk3588"


@pytest.mark.usefixtures("default_device")
def test_a_device_that_was_set_and_closed_is_not_replaced() -> None:
    """Nothing moves to another device unasked."""
    with npu.Device("sim:rk3576") as chosen:
        npu.set_device(chosen)
    with pytest.raises(npu.errors.ClosedError):
        npu.matmul(X, W)


@pytest.mark.usefixtures("default_device")
def test_set_device_without_a_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("npumatmul.rknn.discovery.LIBRARY_PLACES", ())
    monkeypatch.delenv("NPUMATMUL_LIBRARY", raising=False)
    with pytest.raises(LibraryNotFoundError, match="no librknnrt"):
        npu.set_device("rknn")


@pytest.mark.parametrize("nothing", [None, "text", object(), {"a": 1}])
def test_what_is_no_operand(nothing: Any) -> None:
    """The message names what was given, not what numpy makes of it."""
    found = "None" if nothing is None else f"an object of type {type(nothing).__name__}"
    for call, name in (
        (lambda: npu.matmul(nothing, W), "matmul: a"),
        (lambda: npu.matmul(X, nothing), "matmul: b"),
        (lambda: npu.Matmul(nothing, W), "matmul: a"),
        (lambda: npu.dot(nothing, W), "dot: a"),
        (lambda: npu.vdot(W, nothing), "vdot: b"),
        (lambda: npu.inner(nothing, W), "inner: a"),
        (lambda: npu.outer(nothing, W), "outer: a"),
        (lambda: npu.tensordot(W, nothing), "tensordot: b"),
        (lambda: npu.vecdot(nothing, W), "vecdot: an operand"),
        (lambda: npu.matvec(W, nothing), "matvec: an operand"),
        (lambda: npu.einsum("ij,jk", X, nothing), "einsum: an operand"),
        (lambda: npu.pack(nothing), "pack: the weight"),
    ):
        with pytest.raises(TypeError, match=f"{name} is {found}; an array of numbers is needed"):
            call()


def test_execute_says_what_it_takes() -> None:
    with npu.Matmul(X, W) as product:
        with pytest.raises(ValueError, match=r"Matmul.execute: out is an array of shape \(4, 63\), the result has"):
            product.execute(np.ones((4, 63), np.float32))
        with pytest.raises(
            TypeError, match=r"out is an object of type list.*other operands are given to reset_operands"
        ):
            product.execute([[1.0]])
