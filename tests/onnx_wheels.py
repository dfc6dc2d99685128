"""Real ONNX models for tests, out of packages that come through pip."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from pathlib import Path

from npumatmul.llm.files.demo_model import default_cache_dir, download_wheel

#: Requirement, the wheel's SHA-256, the file in it, and its SHA-256.
MODELS = {
    "magika": (
        "magika==1.0.3",
        "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        "magika/models/standard_v3_3/model.onnx",
        "fe2d2eb49c5f88a9e0a6c048e15d6ffdf86235519c2afc535044de433169ec8c",
    ),
    "silero_vad": (
        "silero-vad==6.2.3",
        "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        "silero_vad/data/silero_vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
    ),
}


def fetch(name: str) -> str:
    """The path of a model, downloaded the first time."""
    requirement, digest, within, wanted = MODELS[name]
    folder = default_cache_dir()
    target = folder / f"{name}.onnx"
    if not target.exists() or hashlib.sha256(target.read_bytes()).hexdigest() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            wheel = download_wheel(Path(scratch), requirement, digest, show=False)
            with zipfile.ZipFile(wheel) as archive:
                content = archive.read(within)
            assert hashlib.sha256(content).hexdigest() == wanted
            (Path(scratch) / "model").write_bytes(content)
            os.replace(Path(scratch) / "model", target)
    return str(target)
