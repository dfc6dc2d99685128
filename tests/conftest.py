from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from long_tests import amount, is_long

import npumatmul as npu
from npumatmul import sim

# The examples of one run are those of every run; a machine under load must not fail a property.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.register_profile("fast", hypothesis.settings.get_profile("project"), max_examples=6)
hypothesis.settings.load_profile("project")

# What a developer's shell says must not decide what the tests test.
for name in [name for name in os.environ if name.startswith("NPUMATMUL_")]:
    del os.environ[name]
os.environ["NPUMATMUL_PROBE_FILE"] = ""  # nor what somebody probed on this machine
os.environ.pop("COLUMNS", None)  # nor how wide a terminal is; pytest-xdist tells its workers
# A shell that starts the tests in the background has them ignore interrupts, which some of them wait for.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Runtimes that stand in for a board's must not wait for each other, nor for a real one.
os.environ["NPUMATMUL_SHARE_BOARD"] = "1"
# Caches are not coherent and B is copied when it is bound: a forgotten call shows as a wrong result.
os.environ["NPUMATMUL_SIM_STRICT"] = "1"


#: Files of uses that type checkers read; running them is not meant.
collect_ignore = ["types_uses.py"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in filter(is_long, items):
        item.add_marker(pytest.mark.long)
    for item in items:
        _take_fewer_examples(getattr(item, "obj", None))


def _take_fewer_examples(test: Any) -> None:
    """Have a test that asks for a number of examples of its own take as much fewer as the profile says."""
    asked = getattr(test, "_hypothesis_internal_use_settings", None)
    if asked is not None and asked.max_examples != hypothesis.settings().max_examples:
        test = getattr(test, "__func__", test)
        test._hypothesis_internal_use_settings = hypothesis.settings(asked, max_examples=amount(asked.max_examples))


@pytest.fixture(scope="session", params=["observed-exact", "documented-ceil4"])
def device(request: pytest.FixtureRequest) -> Iterator[npu.Device]:
    """The simulated RK3588 under either reading of its limits, and of how it strides native rows.

    The second is set in the library of version 2.3.2, so that devices of other tests keep the default.
    """
    if request.param == "observed-exact":
        with npu.Device("sim:rk3588") as opened:
            yield opened
        return
    os.environ["NPUMATMUL_SIM_RUNTIME"] = "2.3.2"
    try:
        opened = npu.Device("sim:rk3588")
    finally:
        del os.environ["NPUMATMUL_SIM_RUNTIME"]
    with sim.configured(opened, limits="documented", rows="ceil4"), opened:
        yield opened


@pytest.fixture
def plain_torch() -> Iterator[None]:
    """PyTorch with a seed, and without gradients."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def fresh_device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened
