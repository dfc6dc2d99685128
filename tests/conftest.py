from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

import npumatmul as npu

# The examples of one run are those of every run; a machine under load must not fail a property.
hypothesis.settings.register_profile("project", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("project")

# What a developer's shell says must not decide what the tests test.
for name in [name for name in os.environ if name.startswith("NPUMATMUL_")]:
    del os.environ[name]
os.environ["NPUMATMUL_PROBE_FILE"] = ""  # nor what somebody probed on this machine


@pytest.fixture(scope="session")
def device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened


@pytest.fixture
def fresh_device() -> Iterator[npu.Device]:
    with npu.Device("sim:rk3588") as opened:
        yield opened
