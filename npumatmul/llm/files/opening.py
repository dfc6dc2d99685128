"""Opening a model, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path

from npumatmul.errors import ModelError
from npumatmul.llm.files.folder import FolderSource
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.files.model_source import ModelSource
from npumatmul.llm.files.paths import model_path, refuse_part

__all__ = ["open_source"]


def open_source(path: str | os.PathLike[str]) -> ModelSource:
    """Open a model: a GGUF file, or a folder as Hugging Face has it.

    Nothing but headers and settings is read. A folder without a config.json that has one GGUF model in it stands for
    that.

    Parameters
    ----------
    path : str or os.PathLike

    Returns
    -------
    ModelSource
        Close it, or use it in a ``with`` block.

    Raises
    ------
    FileNotFoundError
        If there is nothing of this name.
    npumatmul.errors.ModelError
        If it is damaged, or no model that is read here.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model
    >>> with open_source(fetch_demo_model()) as source:
    ...     source.kind, source.architecture, source.weights.shape("model.layers.0.self_attn.q_proj.weight")
    ('gguf', 'llama', (576, 576))
    """
    target = model_path(path, "open_source")
    if not target.is_dir():
        refuse_part(target)
        return GGUFSource(target)
    if not (target / "config.json").exists():
        single = _gguf_within(target)
        if single is not None:
            return GGUFSource(single)
    return FolderSource(target)


def _gguf_within(folder: Path) -> Path | None:
    """The one GGUF model in a folder, by its first part; None if there is none."""
    found = sorted(each for each in folder.iterdir() if each.suffix == ".gguf")
    first = [each for each in found if "-of-" not in each.name or "-00001-of-" in each.name]
    if len(first) > 1:
        names = ", ".join(each.name for each in first[:4])
        raise ModelError(f"the folder {folder} has {len(first)} GGUF models ({names}): give the path of one")
    return first[0] if first else None
