"""`npumatmul quantize`: make a file of a model, a recipe and a calibration text, or lay one out for another chip."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from npumatmul.cli.files import STANDARD
from npumatmul.cli.models import check_model, fetch_model, read_windows
from npumatmul.cli.progress import ProgressCallback, working
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import results, say
from npumatmul.device.current import current_device
from npumatmul.device.device import Device
from npumatmul.errors import NpuError
from npumatmul.files.writing import check_target
from npumatmul.llm.files.opening import open_source
from npumatmul.llm.measure.evaluation import Window
from npumatmul.llm.models.registry import config_of
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
from npumatmul.llm.quantize.measured import kept_measurements
from npumatmul.llm.quantize.quantized_model import layers_to_calibrate
from npumatmul.rknn.socs import plain_name


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
    if request.output == STANDARD:
        raise ValueError("--output: a quantized model cannot be written to standard output; name a file")
    if request.output == Path():
        raise ValueError("--output names no file")
    if request.model is not None:
        check_model(request.model)
    path = fetch_model() if request.model is None else request.model
    sources = (path, request.calibration, request.recipe_file)
    check_target(request.output, [source for source in sources if source is not None])
    device = None if request.portable else chip_device(request.chip)
    doing = "preparing"
    try:
        with working() as bar:

            def progress(done: int, total: int, what: str) -> None:
                nonlocal doing
                doing = what
                bar(done, total, what)

            model, told = _model(path, request, progress)
            save_quantized(model, request.output, device=device, progress=progress)
    except KeyboardInterrupt:
        say(f"interrupted ({doing}): {request.output} was not written")
        raise
    for note in model.notes:
        if note not in told:
            say(f"note: {note}")
    _print_summary(load_quantized(request.output), request.output)


def chip_device(soc: str | None) -> Device:
    """A device with a chip's layout: the current one if it is of that chip, or none is named, else a simulated one."""
    if soc is None:
        return current_device()
    try:
        here = current_device()
        if here.chip.soc == plain_name(soc):
            return here
    except NpuError:  # without a library a chip can still be simulated
        pass
    return current_device(f"sim:{soc}")


def _model(path: Path, request: Request, progress: ProgressCallback) -> tuple[QuantizedModel, tuple[str, ...]]:
    """Quantize, or open what is quantized already, to be laid out anew; and which of its notes were told meanwhile."""
    recipe = request.recipe
    if is_quantized(path):
        if recipe is not None:
            raise ValueError(
                f"{path} is quantized already; quantize the GGUF file that it was made of, or give no scheme, "
                "and it is laid out for another chip"
            )
        return load_quantized(path), ()
    if recipe is None:
        raise ValueError(f"{path} is not quantized yet: give --scheme or --recipe")
    text = request.calibration
    pieces = [] if text is None else read_windows(path, text, request.context, limit=request.chunks)
    if isinstance(recipe, Budget):
        if not pieces:
            raise ValueError("--scheme auto measures each layer on a text: give --calibration")
        return _chosen(path, request.output, recipe, pieces, progress), ()
    if pieces or not layers_to_calibrate(path, recipe):
        return quantize_model(path, recipe, pieces, progress=progress), ()
    with open_source(path) as source:
        length = min(request.context, config_of(source).context_length)
    note = f"calibrated on a text that the model wrote itself: {request.chunks} windows of {length} tokens"
    say(f"without --calibration the model is {note}")
    pieces = own_text(path, request.chunks, length, progress=progress)
    model = quantize_model(path, recipe, pieces, progress=progress)
    return dataclasses.replace(model, notes=(*model.notes, note)), (note,)


def _chosen(
    path: Path, output: Path, budget: Budget, pieces: Sequence[Window], progress: ProgressCallback
) -> QuantizedModel:
    """Choose for each layer; what was measured before an interrupt is kept beside the output."""
    kept = output.with_name(f"{output.name}.measured.json")
    candidates, bits, kl = budget.candidates, budget.max_bits, budget.max_kl
    with kept_measurements(kept, path, candidates, pieces, progress) as measured:
        before = len(measured)
        if before:
            say(f"going on with {before} layers that were measured before an interrupt ({kept})")
        try:
            return auto_quantize(
                path, candidates, pieces, max_bits=bits, max_kl=kl, measured=measured, progress=progress
            )
        except BaseException:
            if measured:
                say(f"what was measured of {len(measured)} layers is kept in {kept}: the same command goes on with it")
            raise


def _print_summary(model: QuantizedModel, output: Path) -> None:
    layout = "codes, for every chip" if model.soc is None else f"packed for {model.soc}"
    sizes: dict[str, list[tuple[int, int]]] = {}
    for layer in model.layers.values():  # once: layers of a file are read when they are asked for
        sizes.setdefault(layer.recipe.scheme, []).append((layer.shape[0] * layer.shape[1], layer.nbytes))
    everything = [size for part in sizes.values() for size in part]
    sums = {name: [sum(column) for column in zip(*each, strict=True)] for name, each in sizes.items()}
    sums["all"] = [sum(column) for column in zip(*everything, strict=True)]
    counts = [*(len(each) for each in sizes.values()), len(everything)]
    print_table(
        results(),
        f"{output}: {output.stat().st_size / 1e6:.1f} MB, {layout}",
        Column("scheme", list(sums), left=True),
        [
            Column("layers", [f"{count}" for count in counts]),
            Column("bits per weight", [f"{8 * stored / weights:.2f}" for weights, stored in sums.values()]),
            Column("MB", [f"{stored / 1e6:.1f}" for _, stored in sums.values()]),
            Column("weights", [f"{weights:,}" for weights, _ in sums.values()]),
        ],
    )
