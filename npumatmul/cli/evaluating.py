"""`npumatmul perplexity` and `analyze`: how good a model is on a text, how far a scheme moves it, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from npumatmul.cli.files import picture_format, read_matrix, read_text
from npumatmul.cli.models import FLOAT32, console, fetch_model, open_model, progress_bar
from npumatmul.device.current import current_device
from npumatmul.errors import ModelError
from npumatmul.files.writing import check_output, write_bytes, write_text
from npumatmul.llm import GGUFFile, LoadedModel, npu_layers
from npumatmul.llm.measure.analysis import ErrorSums, LayerError, analyze_layers, error_plot, errors_as_csv
from npumatmul.llm.measure.evaluation import Estimate, Evaluation, Window, evaluate_models, text_tokens, windows
from npumatmul.llm.quantize import (
    LayerRecipe,
    analyze_product,
    best_recipe,
    emulate,
    is_quantized,
    load_quantized,
)

AS_IT_IS = "quantized"
"""Stands where the scheme of a model would stand that is quantized already."""


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the commands."""

    text: Path
    model: Path | None = None
    schemes: tuple[str, ...] | None = None
    device: str | None = None
    emulate: bool = False
    context: int = 512
    stride: int = 0
    chunks: int | None = None
    reference: bool = True
    original: Path | None = None
    as_json: bool = False
    csv: Path | None = None
    plot: Path | None = None


@dataclass(frozen=True)
class Arrays:
    """What is asked of arrays; the fields are options of `analyze`."""

    weight: Path
    activations: Path
    transposed: bool = False
    schemes: tuple[str, ...] | None = None
    best: bool = False
    device: str | None = None
    emulate: bool = False
    csv: Path | None = None


def perplexity(request: Request) -> None:
    """Measure every scheme on the text, and print a table or JSON."""
    text = read_text(request.text)
    path = fetch_model() if request.model is None else request.model
    loaded = _load(path, request)
    first = next(iter(loaded.values()))
    pieces = _pieces(first, text, request)
    needs_reference = request.reference and set(loaded) != {FLOAT32}
    reference = (loaded.get(FLOAT32) or _reference(path, request)) if needs_reference else None
    found = _evaluate(loaded, reference, pieces)
    if request.as_json:
        facts = {"model": str(path), "text": str(request.text), "windows": len(pieces), "window": request.context}
        results = {name: evaluation.as_dict() for name, evaluation in found.items()}
        print(json.dumps({**facts, "stride": request.stride, "schemes": results}, indent=1))
        return
    _print(evaluation_table(found, f"{first.name} on {request.text.name}, {_extent(pieces)}"))


def analyze(request: Request) -> None:
    """Compare a model layer by layer and as a whole with its float32 self; print tables, save what was asked for."""
    sources = [each for each in (request.text, request.model, request.original) if each is not None]
    for output in (request.csv, request.plot):
        if output is not None:
            check_output(output, sources)
    text = read_text(request.text)
    path = fetch_model() if request.model is None else request.model
    loaded = _load(path, request)
    if len(loaded) > 1:
        raise ValueError("analyze looks at one scheme at a time")
    ((scheme, model),) = loaded.items()
    reference = _reference(path, request)
    pieces = _pieces(model, text, request)
    with progress_bar() as progress:
        errors = analyze_layers(model.model, reference.model, pieces, progress)
    found = _evaluate(loaded, reference, pieces)
    title = f"{model.name}, {scheme}, on {request.text.name}, {_extent(pieces)}"
    if request.csv is not None:
        write_text(request.csv, errors_as_csv(errors), sources)
    if request.plot is not None:
        write_bytes(request.plot, error_plot(errors, title, picture_format(request.plot)), sources)
    _print(error_table(errors, title))
    _print(evaluation_table(found, "the model as a whole"))


def analyze_arrays(request: Arrays) -> None:
    """Compare products of quantized arrays with the float64 product; print a table, save CSV if asked for."""
    if request.csv is not None:
        check_output(request.csv, (request.weight, request.activations))
    x, given = read_matrix(request.activations, "activations"), read_matrix(request.weight, "weight")
    w = given if request.transposed else given.T
    make = emulate if request.emulate else npu_layers(current_device(request.device))
    found = []
    for name in request.schemes or ("w16a16", "w8a8", "w4a8", "w4a4"):
        recipe = best_recipe(name).default if request.best else LayerRecipe(name)
        found.append(analyze_product(x, w, recipe, make))
    table = Table(title=f"activations {x.shape} @ weight {w.T.shape}, against float64", title_justify="left")
    table.add_column("scheme")
    table.add_column("bits per\nweight", justify="right")
    for which in ("weight alone", "product"):
        for name in ("cosine", "rel. error", "SNR (dB)", "max error"):
            table.add_column(f"{which}:\n{name}", justify="right")
    for each in found:
        row = (each.recipe.scheme, f"{each.bits_per_weight:.2f}")
        table.add_row(*row, *_figures(each.weight), *_figures(each.product))
    if request.csv is not None:
        columns = ("cosine", "relative_error", "snr_db", "max_error")
        lines = [",".join(["scheme", "bits_per_weight", *(f"{a}_{b}" for a in ("weight", "product") for b in columns)])]
        for each in found:
            figures = [getattr(sums, name) for sums in (each.weight, each.product) for name in columns]
            lines.append(
                ",".join([each.recipe.scheme, *(f"{value:.9g}" for value in (each.bits_per_weight, *figures))])
            )
        write_text(request.csv, "\n".join(lines) + "\n", (request.weight, request.activations))
    _print(table)


def evaluation_table(found: Mapping[str, Evaluation], title: str) -> Table:
    """Make the table of evaluations, one row for each scheme."""
    headings = "perplexity", "float32 perplexity", "ln of their ratio", "KL divergence", "99 % of KL", "top-1 agreement"
    table = Table(title=title, title_justify="left")
    table.add_column("scheme")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, evaluation in found.items():
        quantile = evaluation.kl_quantile(0.99)
        table.add_row(
            name,
            _text(evaluation.perplexity, ".4f"),
            _text(evaluation.reference_perplexity, ".4f"),
            _text(evaluation.log_perplexity_ratio, "+.5f"),
            _text(evaluation.mean_kl, ".6f"),
            "" if quantile is None else f"{quantile:.5f}",
            _text(evaluation.top1, ".2%"),
        )
    return table


def error_table(errors: Sequence[LayerError], title: str) -> Table:
    """Make the table of layers: each alone, and with all before it."""
    table = Table(title=title, title_justify="left")
    table.add_column("layer")
    for which in ("alone", "entire"):
        for name in ("cosine", "rel. error", "SNR (dB)", "max error"):
            table.add_column(f"{which}:\n{name}", justify="right")
    for error in errors:
        table.add_row(error.name, *_figures(error.alone), *_figures(error.entire))
    return table


def _figures(sums: ErrorSums) -> tuple[str, str, str, str]:
    return f"{sums.cosine:.6f}", f"{sums.relative_error:.3e}", f"{sums.snr_db:.1f}", f"{sums.max_error:.3g}"


def _load(path: Path, request: Request) -> dict[str, LoadedModel]:
    """The model by scheme, in the order asked for."""
    if is_quantized(path):
        schemes: Mapping[str, str | None] = (
            {AS_IT_IS: None} if request.schemes is None else dict.fromkeys(request.schemes)
        )
        schemes = {name: None if name == AS_IT_IS else name for name in schemes}
    else:
        schemes = {name: name for name in request.schemes or ("w16a16",)}
    device = None if request.emulate or set(schemes) == {FLOAT32} else current_device(request.device)
    found = {}
    for name, scheme in schemes.items():
        with progress_bar() as progress:
            found[name] = open_model(path, scheme, device, progress=progress)
    return found


def _reference(path: Path, request: Request) -> LoadedModel:
    """The model in float32: of the file itself, or of the file that it was quantized from."""
    original = request.original
    if is_quantized(path):
        source = load_quantized(path).source
        original = path.parent / Path(source.name).name if original is None else original
        if not original.is_file():
            raise ValueError(
                f"{path.name} was quantized from {source.name}, which is not beside it; "
                "name that file with --original to compare with it in float32"
            )
        if _digest(original) != source.sha256:
            raise ValueError(f"{original} is not the file that {path.name} was quantized from: its SHA-256 differs")
    with progress_bar() as progress:
        return open_model(path if original is None else original, FLOAT32, None, progress=progress)


def _digest(path: Path) -> str | None:
    """Of a model, all its parts; None of what is none."""
    try:
        with GGUFFile(path) as file:
            return file.sha256()
    except ModelError:
        return None


def _pieces(loaded: LoadedModel, text: str, request: Request) -> list[Window]:
    return windows(
        text_tokens(loaded.tokenizer, text),
        request.context,
        stride=request.stride,
        limit=request.chunks,
        bos_id=loaded.tokenizer.bos_id if loaded.tokenizer.add_bos else None,
    )


def _evaluate(
    loaded: Mapping[str, LoadedModel], reference: LoadedModel | None, pieces: Sequence[Window]
) -> dict[str, Evaluation]:
    first = next(iter(loaded))
    with progress_bar() as report:

        def progress(done: int, total: int, found: Mapping[str, Evaluation]) -> None:
            if report is not None:
                report(done, total, f"perplexity {found[first].perplexity.value:.4f}")

        models = {name: each.model for name, each in loaded.items()}
        return evaluate_models(models, None if reference is None else reference.model, pieces, progress)


def _print(table: Table) -> None:
    Console(highlight=False, width=None if console.is_terminal else 150).print(table)


def _text(estimate: Estimate | None, spec: str) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:{spec}} ± {estimate.error:{spec.removeprefix('+')}}"


def _extent(pieces: Sequence[Window]) -> str:
    scored = sum(piece.scored for piece in pieces)
    return f"{len(pieces)} windows of {len(pieces[0].tokens)} tokens, {scored} scored"
