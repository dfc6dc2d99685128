"""The layers of docs/architecture.md, as import-linter reads them from pyproject.toml."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import npumatmul

ROOT = Path(__file__).parent.parent


def test_imports_point_downwards() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 broken" in done.stdout


def test_every_module_of_the_package_has_a_layer() -> None:
    """A new module must be given its place; otherwise the contract would not see it."""
    contracts = (ROOT / "pyproject.toml").read_text()
    layered = set(re.findall(r"npumatmul\.(\w+)", contracts[contracts.index("layers = [") :].partition("]")[0]))
    package = Path(npumatmul.__path__[-1])
    modules = {entry.stem for entry in package.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").exists()}
    assert modules - {"__init__"} == layered


def test_only_the_binding_calls_the_runtime() -> None:
    """Nothing above `npumatmul/rknn` names a C function to call it; the executor gets addresses by name."""
    package = Path(npumatmul.__path__[-1])
    callers = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if re.search(r"\.rknn_\w+\(|CDLL", file.read_text())
    }
    assert callers == {"rknn/runtime.py", "host/kernels.py", "host/onnx_bridge.py"}
