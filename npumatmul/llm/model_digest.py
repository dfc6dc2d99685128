"""What tells the files of a model apart from those of another one."""

from __future__ import annotations

from pathlib import Path

from npumatmul.files.reading import RegularFile
from npumatmul.llm.files.digests import digest_of
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.quantize.saving import is_quantized

__all__ = ["model_digest"]


def model_digest(path: Path) -> str:
    """SHA-256 of what is in the files of a model.

    Raises
    ------
    OSError, npumatmul.errors.ModelError
        If they cannot be read any more.
    """
    if is_quantized(path):
        with RegularFile(path) as file:
            return digest_of([file])
    with open_source(path) as source:
        return source.digest()
