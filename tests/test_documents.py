"""The programs in the user's guide do what they say: they run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import npumatmul as npu

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["README.md", "docs/matmul.md", "docs/quantization.md"])
def test_python_programs_run(
    fresh_device: npu.Device,
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All blocks of a document, one after the other as a reader would type them."""
    monkeypatch.chdir(tmp_path)  # for what they save
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    with npu.use_device(fresh_device):
        for block in blocks:
            exec(compile(block, name, "exec"), names)
    assert fresh_device.stats().run_calls > 0
    assert capsys.readouterr().out  # all print something
