"""A runtime newer than any that is known is used as the newest that is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compiling import compile_c

import npumatmul as npu
from npumatmul.chips import NEWEST_RUNTIME
from npumatmul.rknn import RuntimeVersion
from npumatmul.sim import library_path


@pytest.fixture(scope="module")
def newer_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The simulator of 2.3.2, which calls itself 2.5.0."""
    folder = tmp_path_factory.mktemp("newer")
    simulator = folder / "librknnrt.so"  # the name that programs linked with it ask for
    shutil.copy(library_path(str(NEWEST_RUNTIME)), simulator)  # a library of its own: no other test chose its chip
    source = Path(__file__).parent / "newer_runtime.c"
    flags = ("-shared", "-fPIC", f"-Wl,-rpath,{folder}", "-Wl,--no-as-needed")
    return compile_c(folder / "libnewer.so", [source, simulator], *flags)


def info(library: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "npumatmul.cli", "info", *arguments]
    environment = {**os.environ, "NPUMATMUL_LIBRARY": str(library)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=True, timeout=100).stdout


def test_info_says_once_what_it_is_used_as(newer_library: Path) -> None:
    text = info(newer_library)
    assert text.count("2.5.0") == 1
    used_as = [line.removeprefix("runtime used as").strip() for line in text.splitlines() if "used as" in line]
    assert used_as == ["2.3.2: what is newer than that is not known, and used like it"]
    facts = json.loads(info(newer_library, "--json"))
    assert facts["runtime_version"].startswith("2.5.0 ")
    assert facts["runtime_used_as"] == "2.3.2"


def test_info_of_known_runtimes_does_not() -> None:
    assert "used as" not in info(library_path("2.3.2"))
    assert json.loads(info(library_path("2.1.0"), "--json"))["runtime_used_as"] == "2.1.0"


#: In a process of its own: where another library of this name inside is loaded already, the loader would take that one.
MULTIPLIES = """
import numpy as np
import npumatmul as npu
from npumatmul import sim
from npumatmul.rknn import RuntimeVersion

rng = np.random.default_rng(0)
a, b = rng.integers(-128, 128, (5, 70), dtype=np.int8), rng.integers(-128, 128, (70, 40), dtype=np.int8)
with npu.Device() as newer:
    assert newer.runtime_version == RuntimeVersion(2, 5, 0)
    exact = a.astype(np.int32) @ b.astype(np.int32)
    np.testing.assert_array_equal(npu.matmul(a, b, device=newer), exact)
    for scheme in ("w8a8", "w4a8_g32", "w4a4"):
        w = rng.standard_normal((64, 48)).astype(np.float32)
        x = rng.standard_normal((3, 64)).astype(np.float32)
        with npu.pack(w, scheme, device=newer) as packed:
            got = npu.matmul(x, packed, device=newer)
        with (
            npu.Device(f"sim:{newer.chip.soc}") as known,
            sim.configured(known, limits="observed"),
            npu.pack(w, scheme, device=known) as packed,
        ):
            np.testing.assert_array_equal(got, npu.matmul(x, packed, device=known))
"""


def test_it_multiplies_as_the_newest_known(newer_library: Path) -> None:
    environment = {**os.environ, "NPUMATMUL_LIBRARY": str(newer_library)}
    subprocess.run([sys.executable, "-c", MULTIPLIES], check=True, env=environment, timeout=120)


@pytest.mark.parametrize("soc", ["rk3588", "rk3576", "rk3566"])
def test_the_table_knows_nothing_of_it(soc: str) -> None:
    """Types, limits and known problems are those of the newest known version; only its number differs."""
    newest, newer = npu.capabilities(soc, NEWEST_RUNTIME), npu.capabilities(soc, RuntimeVersion(2, 5, 0))
    assert newer.types == newest.types
    assert newer.problems == newest.problems
    assert newer.runtime == RuntimeVersion(2, 5, 0)
