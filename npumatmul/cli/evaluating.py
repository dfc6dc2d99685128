"""`npumatmul perplexity`: how good a model is on a text, and how far each scheme moves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from npumatmul.cli.generating import console, fetch_model, progress_bar
from npumatmul.device import current_device
from npumatmul.llm import LoadedModel, Pack, load_model, npu_pack, numpy_pack
from npumatmul.llm.evaluation import Estimate, Evaluation, Window, evaluate_models, text_tokens, windows

FLOAT32 = "float32"
"""Names the model computed by numpy in float32 where a scheme is asked for."""


@dataclass(frozen=True)
class Request:
    """What is asked for; the fields are the options of the command."""

    model: Path | None
    text: Path
    schemes: tuple[str, ...] = ("w16a16",)
    device: str | None = None
    context: int = 512
    stride: int = 0
    chunks: int | None = None
    reference: bool = True
    as_json: bool = False


def perplexity(request: Request) -> None:
    """Measure every scheme on the text, and print a table or JSON."""
    text = read_text(request.text)
    path = fetch_model() if request.model is None else request.model
    schemes = tuple(dict.fromkeys(name.strip() for name in request.schemes))
    packs = {
        name: numpy_pack if name == FLOAT32 else npu_pack(name, current_device(request.device)) for name in schemes
    }
    loaded: dict[str, LoadedModel] = {}
    for name, pack in packs.items():
        loaded[name] = load(path, pack)
    first = loaded[schemes[0]]
    pieces = windows(
        text_tokens(first.tokenizer, text),
        request.context,
        stride=request.stride,
        limit=request.chunks,
        bos_id=first.tokenizer.bos_id if first.tokenizer.add_bos else None,
    )
    models = {name: each.model for name, each in loaded.items()}
    reference = None
    if request.reference and set(schemes) != {FLOAT32}:
        reference = models[FLOAT32] if FLOAT32 in models else load(path, numpy_pack).model
    with progress_bar() as report:

        def progress(done: int, total: int, found: Mapping[str, Evaluation]) -> None:
            if report is not None:
                report(done, total, f"perplexity {found[schemes[0]].perplexity.value:.4f}")

        found = evaluate_models(models, reference, pieces, progress)
    if request.as_json:
        facts = {"model": str(path), "text": str(request.text), "windows": len(pieces), "window": request.context}
        results = {name: evaluation.as_dict() for name, evaluation in found.items()}
        print(json.dumps({**facts, "stride": request.stride, "schemes": results}, indent=1))
        return
    output = Console(highlight=False, width=None if console.is_terminal else 150)
    output.print(evaluation_table(found, f"{first.name} on {request.text.name}, {_extent(pieces)}"))


def read_text(path: Path) -> str:
    """Read a text file.

    Raises
    ------
    ValueError
        If it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8: {error}") from error


def load(path: Path, pack: Pack) -> LoadedModel:
    """Load a model behind a progress bar."""
    with progress_bar() as progress:
        return load_model(path, pack=pack, progress=progress)


def evaluation_table(found: Mapping[str, Evaluation], title: str) -> Table:
    """Make the table of evaluations, one row for each scheme."""
    table = Table(title=title, title_justify="left")
    table.add_column("scheme")
    for heading in (
        "perplexity",
        "float32 perplexity",
        "ln of their ratio",
        "KL divergence",
        "99 % of KL",
        "top-1 agreement",
    ):
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


def _text(estimate: Estimate | None, spec: str) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:{spec}} ± {estimate.error:{spec.removeprefix('+')}}"


def _extent(pieces: list[Window]) -> str:
    scored = sum(piece.scored for piece in pieces)
    return f"{len(pieces)} windows of {len(pieces[0].tokens)} tokens, {scored} scored"
