"""Paths of models: what can be one, and what to tell whoever gave one that leads nowhere."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from npumatmul.errors import ModelError

__all__ = ["KINDS", "missing", "model_path", "refuse_part"]

KINDS = "a GGUF file, a folder as Hugging Face has it, or a file that `npumatmul quantize` wrote"
"""What models are read of, for messages."""

#: A name as Hugging Face's hub has it: of an owner and a model.
_HUB = re.compile(r"[\w.-]+/[\w.-]+")
#: How files end of which a folder has several.
_OF_FOLDERS = (".safetensors", ".json", ".bin")


def model_path(path: str | os.PathLike[str], call: str) -> Path:
    """A path, before anything is opened by it.

    Raises
    ------
    TypeError
        If it is no path.
    ValueError
        If it is empty, which would be the folder that we are in.
    """
    try:
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError
    except TypeError:
        raise TypeError(
            f"{call}: the path of a model is a str or a Path ({KINDS}), not {type(path).__name__}"
        ) from None
    if not text.strip():
        raise ValueError(f"{call}: the path of the model is empty; give {KINDS}")
    return Path(path)


def missing(path: Path) -> FileNotFoundError:
    """The error about a path that leads nowhere, with what was perhaps meant."""
    text, hint = str(path), ""
    if re.match(r"[a-z]+:/", text):
        hint = "; addresses are not fetched: fetch the model first, and give its path"
    elif text.startswith("~"):
        hint = f"; '~' is not expanded: give os.path.expanduser({text!r})"
    else:
        near = difflib.get_close_matches(path.name, _beside(path), n=1, cutoff=0.8)
        if near:
            hint = f"; did you mean {path.with_name(near[0])}?"
        elif _HUB.fullmatch(text) and not path.parent.exists() and path.suffix not in (".gguf", *_OF_FOLDERS):
            hint = (
                f"; models are not fetched by name: `hf download {text} --local-dir {path.name}` does that, "
                f"then give {path.name}"
            )
    return FileNotFoundError(f"there is no model file or folder {text}{hint}")


def refuse_part(path: Path) -> None:
    """Refuse a file that is one of several in a folder, where the folder is what has to be given.

    Raises
    ------
    npumatmul.errors.ModelError
        If it is one.
    """
    if path.suffix in _OF_FOLDERS and path.is_file():
        raise ModelError(f"{path} is a part of a model: give the path of the folder that it is in")


def _beside(path: Path) -> list[str]:
    try:
        return os.listdir(path.parent)
    except OSError:
        return []
