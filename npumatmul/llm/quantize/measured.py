"""Sensitivities of layers that were measured, in a file: an interrupted choice of schemes goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, MutableMapping, Sequence
from pathlib import Path

from npumatmul.errors import UnusableFileError
from npumatmul.files.reading import read_json
from npumatmul.files.writing import write_text
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.measure.evaluation import Window
from npumatmul.llm.models.weights import Progress
from npumatmul.llm.quantize.recipe import LayerRecipe

__all__ = ["Measured", "kept_measurements"]

Measured = MutableMapping[str, list[float]]
"""Divergences of each candidate, by layer."""


@contextlib.contextmanager
def kept_measurements(
    file: str | os.PathLike[str],
    model: str | os.PathLike[str],
    candidates: Sequence[LayerRecipe],
    pieces: Sequence[Window],
    progress: Progress | None = None,
) -> Iterator[Measured]:
    """What was measured of a model's layers, within a ``with`` block in which more is measured.

    Parameters
    ----------
    file : str or os.PathLike
        Where it is kept. Where nothing is kept, or it is of another model, other candidates or another text, there is
        nothing at first. It is written if the block is left by an error or an interrupt, and removed if it is not.
    model : str or os.PathLike
        The model.
    candidates : sequence of LayerRecipe
    pieces : sequence of Window
        The text.
    progress : callable, optional
        Told while the model is read.

    Yields
    ------
    mapping of str to list of float
        As `measure_sensitivity` takes it, and adds to it.
    """
    what = _description(model, candidates, pieces, progress)
    found = _read(Path(file), what, len(candidates))
    try:
        yield found
    except BaseException:
        if found:
            write_text(file, json.dumps({**what, "layers": dict(found)}, indent=1))
        raise
    Path(file).unlink(missing_ok=True)


def _description(
    model: str | os.PathLike[str],
    candidates: Sequence[LayerRecipe],
    pieces: Sequence[Window],
    progress: Progress | None,
) -> dict[str, object]:
    text = hashlib.sha256()
    for piece in pieces:
        text.update(len(piece.tokens).to_bytes(8, "little") + piece.tokens.astype("<i8").tobytes())
    with open_source(model) as source:
        digest = source.digest(lambda done, total: progress and progress(done, total, f"reading {source.path.name}"))
    recipes = [dataclasses.asdict(each) for each in candidates]
    return {"model": digest, "text": text.hexdigest(), "candidates": recipes}


def _read(file: Path, what: dict[str, object], candidates: int) -> dict[str, list[float]]:
    try:
        content = read_json(file)
    except (OSError, ValueError, UnusableFileError):
        return {}
    if not isinstance(content, dict) or {key: content.get(key) for key in what} != what:
        return {}
    layers = content.get("layers")
    found = layers.items() if isinstance(layers, dict) else ()
    return {
        name: [float(each) for each in kls]
        for name, kls in found
        if isinstance(kls, list)
        and len(kls) == candidates
        and all(type(each) in (int, float) and math.isfinite(each) for each in kls)
    }
