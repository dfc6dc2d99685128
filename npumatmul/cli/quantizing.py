"""`npumatmul quantize`: make a file of a model, a recipe and a calibration text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from npumatmul.cli.evaluating import read_text
from npumatmul.cli.models import console, fetch_model, progress_bar
from npumatmul.llm import GGUFFile, GGUFTokenizer, Window, text_tokens, windows
from npumatmul.llm.quantize import (
    LayerRecipe,
    QuantizedModel,
    Recipe,
    auto_quantize,
    is_quantized,
    quantize_model,
    save_quantized,
)


@dataclass(frozen=True)
class Budget:
    """What is asked for instead of a recipe: the best choice among candidates within a limit."""

    candidates: tuple[LayerRecipe, ...]
    max_bits: float | None = None
    max_kl: float | None = None


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the command."""

    output: Path
    model: Path | None
    recipe: Recipe | Budget
    calibration: Path | None = None
    context: int = 512
    chunks: int | None = None


def quantize(request: Request) -> None:
    """Quantize, write the file, and say what it holds."""
    path = fetch_model() if request.model is None else request.model
    if is_quantized(path):
        raise ValueError(f"{path} is quantized already; quantize the GGUF file that it was made of")
    if not request.output.parent.is_dir():
        raise ValueError(f"there is no folder {request.output.parent}")
    pieces = calibration_pieces(path, request.calibration, request.context, request.chunks)
    with progress_bar() as progress:
        if isinstance(request.recipe, Recipe):
            model = quantize_model(path, request.recipe, pieces, progress=progress)
        else:
            b = request.recipe
            model = auto_quantize(path, b.candidates, pieces, max_bits=b.max_bits, max_kl=b.max_kl, progress=progress)
    save_quantized(model, request.output)
    for note in model.notes:
        console.print(f"note: {note}")
    console.print(_summary(model, request.output))


def calibration_pieces(path: Path, text: Path | None, context: int, chunks: int | None) -> list[Window]:
    """Cut the calibration text into windows; none without a text."""
    if text is None:
        return []
    with GGUFFile(path) as file:
        tokenizer = GGUFTokenizer(file)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    return windows(text_tokens(tokenizer, read_text(text)), context, limit=chunks, bos_id=bos)


def _summary(model: QuantizedModel, output: Path) -> Table:
    table = Table(title=f"{output}: {output.stat().st_size / 1e6:.1f} MB", title_justify="left")
    table.add_column("scheme")
    for heading in ("layers", "weights", "MB", "bits per weight"):
        table.add_column(heading, justify="right")
    by_scheme: dict[str, list[str]] = {}
    for name, layer in model.layers.items():
        by_scheme.setdefault(layer.recipe.scheme, []).append(name)
    for scheme, names in by_scheme.items():
        layers = [model.layers[name] for name in names]
        weights = sum(layer.shape[0] * layer.shape[1] for layer in layers)
        stored = sum(layer.nbytes for layer in layers)
        table.add_row(scheme, f"{len(layers)}", f"{weights:,}", f"{stored / 1e6:.1f}", f"{8 * stored / weights:.2f}")
    table.add_row("all", f"{len(model.layers)}", "", f"{model.nbytes / 1e6:.1f}", f"{model.bits_per_weight:.2f}")
    return table
