"""`npumatmul perplexity` and `analyze`: how good a model is on a text, how far a scheme moves it, and where."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from npumatmul.cli.files import STANDARD, check_outputs, picture_format, read_matrix, write_output
from npumatmul.cli.models import check_model, check_scheme, fetch_model, open_model, read_windows
from npumatmul.cli.profiling import check_profiles, profiled
from npumatmul.cli.progress import working
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import notes, results, say
from npumatmul.device.current import current_device
from npumatmul.errors import ModelError
from npumatmul.llm import GGUFFile, LoadedModel, npu_layers
from npumatmul.llm.loader import FLOAT32
from npumatmul.llm.measure.analysis import ErrorSums, LayerError, analyze_layers, error_plot, errors_as_csv
from npumatmul.llm.measure.evaluation import Estimate, Evaluation, Window, evaluate_models
from npumatmul.llm.quantize import (
    LayerRecipe,
    ProductError,
    analyze_product,
    best_recipe,
    emulate,
    is_quantized,
    load_quantized,
)
from npumatmul.llm.quantize.steps import Steps

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
    profile: tuple[Path, ...] = ()


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
    check_profiles(request.profile, sources=[each for each in (request.text, request.model) if each is not None])
    given = _given(request, request.reference and request.schemes != (FLOAT32,))
    loaded = _load(given.path, request)
    first = next(iter(loaded.values()))
    reference = None if given.original is None else loaded.get(FLOAT32) or _reference(given.original)
    kept = _Kept()
    try:
        with profiled(request.profile):
            _evaluate(loaded, reference, given.pieces, kept)
    finally:  # an interrupt, or a failure of the device
        if kept.evaluations:
            _report_perplexity(request, given, first.name, kept)


def _report_perplexity(request: Request, given: _Given, model: str, kept: _Kept) -> None:
    if request.as_json:
        windows = {"windows": len(given.pieces), "window": request.context}
        facts = {"model": str(given.path), "text": str(request.text), **windows}
        values = {name: evaluation.as_dict() for name, evaluation in kept.evaluations.items()}
        facts = {**facts, "stride": request.stride, "interrupted": not kept.whole}
        print(json.dumps({**facts, "schemes": values}, indent=1))
    else:
        print_evaluations(results(), kept.evaluations, f"{model} on {_text_name(request)}, {_extent(given.pieces)}")


def analyze(request: Request) -> None:
    """Compare a model layer by layer and as a whole with its float32 self; print tables, save what was asked for."""
    sources = [each for each in (request.text, request.model, request.original) if each is not None]
    check_outputs({"--csv": request.csv, "--plot": request.plot}, sources)
    kind = None if request.plot is None else picture_format(request.plot)
    if request.schemes is not None and len(request.schemes) > 1:
        raise ValueError(f"--scheme: analyze looks at one scheme at a time, not at {' and '.join(request.schemes)}")
    given = _given(request, compared=True)
    assert given.original is not None
    loaded = _load(given.path, request)
    ((scheme, model),) = loaded.items()
    reference, pieces = _reference(given.original), given.pieces
    title = f"{model.name}, {scheme}, on {_text_name(request)}, {_extent(pieces)}"
    kept = _Kept()
    try:
        _compare_layers(model, reference, pieces, kept)
        _evaluate(loaded, reference, pieces, kept)
    finally:  # an interrupt, or a failure of the device
        output = notes if STANDARD in (request.csv, request.plot) else results()
        try:
            if kept.errors and request.csv is not None:
                write_output(request.csv, errors_as_csv(kept.errors), sources)
            if kept.errors and request.plot is not None and kind is not None:
                write_output(request.plot, error_plot(kept.errors, title, kind), sources)
        finally:  # what cannot be saved can be shown
            if kept.errors:
                print_errors(output, kept.errors, title)
            if kept.evaluations:
                print_evaluations(output, kept.evaluations, "the model as a whole")


def analyze_arrays(request: Arrays) -> None:
    """Compare products of quantized arrays with the float64 product; print a table, save CSV if asked for."""
    check_outputs({"--csv": request.csv}, (request.weight, request.activations))
    for name in request.schemes or ():
        check_scheme(name)
    x, given = read_matrix(request.activations, "activations"), read_matrix(request.weight, "weight")
    w = given if request.transposed else given.T
    if x.shape[1] != w.shape[1]:
        raise ValueError(_do_not_multiply(request, x.shape, given.shape))
    make = emulate if request.emulate else npu_layers(current_device(request.device))
    found: list[ProductError] = []
    names = request.schemes or ("w16a16", "w8a8", "w4a8", "w4a4")
    try:
        with working() as progress:
            steps = Steps(progress)
            for done, name in enumerate(names):
                steps(100 * done, 100 * len(names), name)
                recipe = best_recipe(name).default if request.best else LayerRecipe(name)
                found.append(analyze_product(x, w, recipe, make, steps.within(100)))
    finally:  # an interrupt, or a scheme that failed
        if found:
            _report_products(request, found, f"activations {x.shape} @ weight {w.T.shape}, against float64")
            if len(found) < len(names):
                say(f"{len(found)} of {len(names)} schemes were measured")


def _report_products(request: Arrays, found: Sequence[ProductError], title: str) -> None:
    if request.csv is not None:
        columns = ("cosine", "relative_error", "snr_db", "max_error")
        lines = [",".join(["scheme", "bits_per_weight", *(f"{a}_{b}" for a in ("weight", "product") for b in columns)])]
        for each in found:
            figures = [getattr(sums, name) for sums in (each.weight, each.product) for name in columns]
            lines.append(
                ",".join([each.recipe.scheme, *(f"{value:.9g}" for value in (each.bits_per_weight, *figures))])
            )
        write_output(request.csv, "\n".join(lines) + "\n", (request.weight, request.activations))
    print_table(
        notes if request.csv == STANDARD else results(),
        title,
        Column("scheme", [each.recipe.scheme for each in found], left=True),
        [
            Column("bits per\nweight", [f"{each.bits_per_weight:.2f}" for each in found]),
            *_error_columns("product", [each.product for each in found]),
            *_error_columns("weight alone", [each.weight for each in found]),
        ],
    )


def _do_not_multiply(request: Arrays, x: tuple[int, ...], weight: tuple[int, ...]) -> str:
    """Why the arrays do not fit, in the orientation that they were given in."""
    order = "(N, K)" if request.transposed else "(K, N)"
    other = "without --transposed" if request.transposed else "with --transposed"
    turned = f"; {other} it would" if x[1] == weight[0 if request.transposed else 1] else ""
    return (
        f"--activations (M, K) of shape {x} do not multiply --weight {order} of shape {weight}: K is {x[1]} there and "
        f"{weight[1 if request.transposed else 0]} here{turned}"
    )


def print_evaluations(output: Console, found: Mapping[str, Evaluation], title: str) -> None:
    """Print the table of evaluations, one row for each scheme."""
    each = list(found.values())
    quantiles = [evaluation.kl_quantile(0.99) for evaluation in each]
    ratios = [evaluation.log_perplexity_ratio for evaluation in each]
    columns = [
        Column("perplexity", [_text(evaluation.perplexity, ".4f") for evaluation in each]),
        Column("KL divergence", [_text(evaluation.mean_kl, ".6f") for evaluation in each]),
        Column("top-1 agreement", [_text(evaluation.top1, ".2%") for evaluation in each]),
        Column("99 % of KL", ["" if quantile is None else f"{quantile:.5f}" for quantile in quantiles]),
        Column("ln of the ratio\nof perplexities", [_text(ratio, "+.5f") for ratio in ratios]),
        Column("float32\nperplexity", [_text(evaluation.reference_perplexity, ".4f") for evaluation in each]),
    ]
    known = [column for column in columns if any(column.cells)]  # without a reference there is only one
    print_table(output, title, Column("scheme", list(found), left=True), known)


def print_errors(output: Console, errors: Sequence[LayerError], title: str) -> None:
    """Print the table of layers: each alone, and with all before it."""
    columns = [
        *_error_columns("alone", [error.alone for error in errors]),
        *_error_columns("entire", [error.entire for error in errors]),
    ]
    print_table(output, title, Column("layer", [error.name for error in errors], left=True), columns)


def _error_columns(which: str, each: Sequence[ErrorSums]) -> list[Column]:
    return [
        Column(f"{which}:\nSNR (dB)", [f"{sums.snr_db:.1f}" for sums in each]),
        Column(f"{which}:\ncosine", [f"{sums.cosine:.6f}" for sums in each]),
        Column(f"{which}:\nrel. error", [f"{sums.relative_error:.3e}" for sums in each]),
        Column(f"{which}:\nmax error", [f"{sums.max_error:.3g}" for sums in each]),
    ]


@dataclass(frozen=True)
class _Given:
    """What was found before anything of a model is loaded."""

    path: Path
    pieces: list[Window]
    original: Path | None  # the model in float32, where it is compared with


def _given(request: Request, compared: bool) -> _Given:
    """Look at everything that can be wrong without loading a model."""
    for name in request.schemes or ():
        if name != AS_IT_IS:
            check_scheme(name)
    if request.model is not None:
        check_model(request.model)
    path = fetch_model() if request.model is None else request.model
    if is_quantized(path) and request.schemes not in (None, (AS_IT_IS,)):
        raise ValueError(f"{path} is quantized already and takes no --scheme")
    original = _original(path, request) if compared else None
    pieces = read_windows(path, request.text, request.context, stride=request.stride, limit=request.chunks)
    return _Given(path, pieces, original)


def _original(path: Path, request: Request) -> Path:
    """The file itself, or the one that it was quantized from."""
    if not is_quantized(path):
        return path if request.original is None else request.original
    source = load_quantized(path).source
    original = path.parent / Path(source.name).name if request.original is None else request.original
    if not original.is_file():
        raise ValueError(
            f"{path.name} was quantized from {source.name}, which is not beside it; "
            "name that file with --original to compare with it in float32"
        )
    if _digest(original) != source.sha256:
        raise ValueError(f"{original} is not the file that {path.name} was quantized from: its SHA-256 differs")
    return original


def _text_name(request: Request) -> str:
    return "standard input" if request.text == STANDARD else request.text.name


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
        with working() as progress:
            found[name] = open_model(path, scheme, device, progress=progress)
    return found


def _reference(original: Path) -> LoadedModel:
    """The model in float32."""
    with working() as progress:
        return open_model(original, FLOAT32, None, progress=progress)


def _digest(path: Path) -> str | None:
    """Of a model, all its parts; None of what is none."""
    try:
        with GGUFFile(path) as file, working() as progress:
            return file.sha256(lambda done, total: progress(done, total, f"reading {path.name}"))
    except ModelError:
        return None


@dataclass
class _Kept:
    """What was measured so far, so that it can be shown whatever ends the work."""

    errors: Sequence[LayerError] = ()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    whole: bool = False


def _compare_layers(model: LoadedModel, reference: LoadedModel, pieces: Sequence[Window], kept: _Kept) -> None:
    tokens, every = 0, sum(len(piece.tokens) for piece in pieces)
    try:
        with working() as report:

            def progress(done: int, total: int, found: Sequence[LayerError]) -> None:
                nonlocal tokens
                if found is not kept.errors:
                    kept.errors, tokens = found, done // 2
                report(done, total, "comparing layers")

            analyze_layers(model.model, reference.model, pieces, progress)
    except BaseException as error:
        if tokens:
            say(f"{_why(error)}: the errors of layers are those of the first {tokens} of {every} tokens")
        raise


def _evaluate(
    loaded: Mapping[str, LoadedModel], reference: LoadedModel | None, pieces: Sequence[Window], kept: _Kept
) -> None:
    first = next(iter(loaded))
    models = {name: each.model for name, each in loaded.items()}
    try:
        with working() as report:

            def progress(done: int, total: int, found: Mapping[str, Evaluation]) -> None:
                kept.evaluations = found
                report(done, total, f"perplexity {found[first].perplexity.value:.4f}" if found else "perplexity")

            evaluate_models(models, None if reference is None else reference.model, pieces, progress)
            kept.whole = True
    except BaseException as error:
        if kept.evaluations:
            scored = sum(piece.scored for piece in pieces)
            say(f"{_why(error)}: the figures are of the first {kept.evaluations[first].tokens} of {scored} tokens")
        raise


def _why(error: BaseException) -> str:
    """What ended the work; the error itself is told in the end."""
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "ended by an error"


def _text(estimate: Estimate | None, spec: str) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:{spec}} ± {estimate.error:{spec.removeprefix('+')}}"


def _extent(pieces: Sequence[Window]) -> str:
    scored = sum(piece.scored for piece in pieces)
    windows = "1 window" if len(pieces) == 1 else f"{len(pieces)} windows"
    return f"{windows} of {len(pieces[0].tokens)} tokens, {scored} scored"
