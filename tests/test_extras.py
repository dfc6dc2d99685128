"""What is said where an optional package is missing, or is there in a version that does not do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

OFFLOAD = """
import torch
from npumatmul.torch import offload
model = torch.nn.Sequential(torch.nn.Linear(64, 64))
assert len(offload(model)) == 1
"""


def run(program: str, *, path: Path | None = None, without: str = "") -> subprocess.CompletedProcess[str]:
    if without:
        program = f"import sys; sys.modules[{without!r}] = None\n{program}"
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(path), environment.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=100)


@pytest.mark.parametrize(
    ("package", "what", "message"),
    [
        ("torch", "torch", "npumatmul.torch needs torch: pip install 'npumatmul[torch]'"),
        ("sklearn", "sklearn", "npumatmul.sklearn needs scikit-learn: pip install 'npumatmul[sklearn]'"),
        ("skops", "sklearn", "npumatmul.sklearn needs skops: pip install 'npumatmul[sklearn]'"),
        ("onnxruntime", "onnx", "needs onnxruntime: pip install 'npumatmul[onnx]'"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package: str, what: str, message: str) -> None:
    done = run(f"import npumatmul.{what}", without=package)
    assert done.returncode != 0
    assert message in done.stderr.splitlines()[-1]


def test_models_of_pytorch_need_no_transformers() -> None:
    done = run(f"{OFFLOAD}\nfrom npumatmul.torch import NpuConfig", without="transformers")
    assert done.stderr.splitlines()[-1].endswith("NpuConfig needs transformers: pip install 'npumatmul[torch]'")


def test_a_version_that_lacks_something_is_named(tmp_path: Path) -> None:
    (tmp_path / "transformers").mkdir()
    (tmp_path / "transformers" / "__init__.py").write_text("__version__ = '4.40.0'")
    done = run(f"{OFFLOAD}\nfrom npumatmul.torch import NpuConfig", path=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert "NpuConfig cannot use the transformers 4.40.0 that is installed (No module named 'transformers.core" in last
    assert last.endswith("pip install --upgrade 'npumatmul[torch]'")
    (tmp_path / "skops").mkdir()
    (tmp_path / "skops" / "__init__.py").write_text("")
    (tmp_path / "skops" / "io.py").write_text("from skops import what_is_not_there")
    done = run("import npumatmul.sklearn", path=tmp_path)
    assert (
        "npumatmul.sklearn cannot use the skops that is installed (cannot import name" in done.stderr.splitlines()[-1]
    )
