"""What type checkers see of the public functions, and what `help` shows."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

import npumatmul as npu
from npumatmul.host.epilogue import FUNCTIONS, Activation
from npumatmul.quant.names import SchemeName
from npumatmul.quant.schemes import SCHEMES

ROOT = Path(__file__).parent.parent
USES = Path(__file__).parent / "types_uses.py"


def refused() -> set[int]:
    lines = USES.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if line.endswith("# refused")}


def test_mypy_sees_results_and_mistakes() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", f"--config-file={os.devnull}", "--no-pretty", str(USES)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    errors = {int(line) for line in re.findall(r"^.*types_uses\.py:(\d+): error:", found, re.MULTILINE)}
    assert errors == refused(), found


def test_pyright_sees_results_and_mistakes() -> None:
    """By its edition that is a wheel with all that it needs, as strict as pyright's own "standard"."""
    found = subprocess.run(
        [sys.executable, "-m", "basedpyright", "--pythonpath", sys.executable, "--level", "error", "--outputjson",
         str(USES)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout  # fmt: skip
    reports = json.loads(found)["generalDiagnostics"]
    errors = {report["range"]["start"]["line"] + 1 for report in reports if report["severity"] == "error"}
    assert errors == refused(), found


def test_literals_are_what_there_is() -> None:
    names = get_args(SchemeName)
    assert set(SCHEMES) <= set(names)
    assert [npu.Scheme.parse(name).name for name in names] == list(names)
    assert {None, *get_args(Activation)} == set(FUNCTIONS)


PRODUCTS = ("matmul", "dot", "vecdot", "matvec", "vecmat", "inner", "outer", "tensordot", "einsum", "linear")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.get_overloads is of Python 3.11")
@pytest.mark.parametrize("name", [*PRODUCTS, "matmul_async"])
def test_no_overload_gives_any(name: str) -> None:
    from typing import get_overloads

    overloads = get_overloads(inspect.unwrap(getattr(npu, name)))
    assert overloads
    for each in overloads:
        assert each.__annotations__["return"] not in ("Any", "MatmulFuture[Any]")


@pytest.mark.parametrize("name", [name for name in npu.__all__ if inspect.isfunction(getattr(npu, name))])
def test_help_shows_plain_defaults(name: str) -> None:
    for parameter in inspect.signature(getattr(npu, name)).parameters.values():
        if not isinstance(parameter.default, type):  # as of a dtype, and where there is none
            assert not re.match("<|Ellipsis", repr(parameter.default)), parameter
