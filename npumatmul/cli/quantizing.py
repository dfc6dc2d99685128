"""`npumatmul quantize`: make a file of a model, a recipe and a calibration text, or lay one out for another chip."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from npumatmul.cli.files import read_text
from npumatmul.cli.models import ProgressCallback, console, fetch_model, progress_bar
from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import NpuError
from npumatmul.files.writing import check_target
from npumatmul.llm import GGUFFile, GGUFTokenizer, Window, text_tokens, windows
from npumatmul.llm.quantize import (
    LayerRecipe,
    QuantizedModel,
    Recipe,
    auto_quantize,
    is_quantized,
    load_quantized,
    own_text,
    quantize_model,
    save_quantized,
)
from npumatmul.llm.quantize.quantized_model import layers_to_calibrate


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
    recipe: Recipe | Budget | None
    chip: str | None = None
    portable: bool = False
    calibration: Path | None = None
    context: int = 512
    chunks: int = 40
    recipe_file: Path | None = None


def quantize(request: Request) -> None:
    """Quantize, write the file, and say what it holds."""
    path = fetch_model() if request.model is None else request.model
    sources = (path, request.calibration, request.recipe_file)
    check_target(request.output, [source for source in sources if source is not None])
    device = None if request.portable else chip_device(request.chip)
    with progress_bar() as progress:
        model = _model(path, request, progress)
        save_quantized(model, request.output, device=device, progress=progress)
    for note in model.notes:
        console.print(f"note: {note}")
    console.print(_summary(load_quantized(request.output), request.output))


def chip_device(soc: str | None) -> Device:
    """A device with a chip's layout: the current one if it is of that chip, or none is named, else a simulated one."""
    if soc is None:
        return current_device()
    try:
        here = current_device()
        if here.chip.soc == soc:
            return here
    except NpuError:  # without a library a chip can still be simulated
        pass
    return current_device(f"sim:{soc}")


def _model(path: Path, request: Request, progress: ProgressCallback | None) -> QuantizedModel:
    """Quantize, or open what is quantized already, to be laid out anew."""
    recipe = request.recipe
    if is_quantized(path):
        if recipe is not None:
            raise ValueError(
                f"{path} is quantized already; quantize the GGUF file that it was made of, or give no scheme, "
                "and it is laid out for another chip"
            )
        return load_quantized(path)
    if recipe is None:
        raise ValueError(f"{path} is not quantized yet: give --scheme or --recipe")
    pieces = calibration_pieces(path, request.calibration, request.context, request.chunks)
    if isinstance(recipe, Recipe):
        if pieces or not layers_to_calibrate(path, recipe):
            return quantize_model(path, recipe, pieces, progress=progress)
        count = request.chunks
        note = f"calibrated on a text that the model wrote itself: {count} windows of {request.context} tokens"
        console.print(f"without --calibration the model is {note}")
        pieces = own_text(path, count, request.context, progress=progress)
        model = quantize_model(path, recipe, pieces, progress=progress)
        return dataclasses.replace(model, notes=(*model.notes, note))
    bits, kl = recipe.max_bits, recipe.max_kl
    return auto_quantize(path, recipe.candidates, pieces, max_bits=bits, max_kl=kl, progress=progress)


def calibration_pieces(path: Path, text: Path | None, context: int, chunks: int) -> list[Window]:
    """Cut the calibration text into windows; none without a text."""
    if text is None:
        return []
    with GGUFFile(path) as file:
        tokenizer = GGUFTokenizer(file)
    bos = tokenizer.bos_id if tokenizer.add_bos else None
    return windows(text_tokens(tokenizer, read_text(text)), context, limit=chunks, bos_id=bos)


def _summary(model: QuantizedModel, output: Path) -> Table:
    layout = "codes, for every chip" if model.soc is None else f"packed for {model.soc}"
    table = Table(title=f"{output}: {output.stat().st_size / 1e6:.1f} MB, {layout}", title_justify="left")
    table.add_column("scheme")
    for heading in ("layers", "weights", "MB", "bits per weight"):
        table.add_column(heading, justify="right")
    sizes: dict[str, list[tuple[int, int]]] = {}
    for layer in model.layers.values():  # once: layers of a file are read when they are asked for
        sizes.setdefault(layer.recipe.scheme, []).append((layer.shape[0] * layer.shape[1], layer.nbytes))
    for scheme, each in [*sizes.items(), ("all", [size for part in sizes.values() for size in part])]:
        weights, stored = (sum(column) for column in zip(*each, strict=True))
        table.add_row(scheme, f"{len(each)}", f"{weights:,}", f"{stored / 1e6:.1f}", f"{8 * stored / weights:.2f}")
    return table
