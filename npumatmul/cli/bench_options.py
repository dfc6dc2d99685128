"""Options that commands of `npumatmul bench` share: how often things are timed, and the files of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from npumatmul.cli.files import path

__all__ = ["MEASURING_OPTIONS", "OUTPUT_OPTIONS"]


def _share(text: str) -> float:
    """A share on the command line: 2% or 0.02."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise typer.BadParameter(f"{text!r} is no share above 0 and below 100%, such as 2% or 0.02")
    return value


def _seconds(text: str) -> float:
    """Seconds on the command line: 0.5, 0.5s or 500ms."""
    number, factor = (text[:-2], 1e-3) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    try:
        value = float(number) * factor
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"{text!r} is no time, such as 0.5s or 500ms")
    return value


def _share_option(help_text: str) -> Any:
    return Annotated[float | None, typer.Option(parser=_share, metavar="<share>", help=help_text)]


def _seconds_option(help_text: str) -> Any:
    return Annotated[float | None, typer.Option(parser=_seconds, metavar="<time>", help=help_text)]


#: By fields of `Benchmark`; what is not given is the benchmark's own.
MEASURING_OPTIONS: Mapping[str, Any] = {
    "precision": _share_option("Time each thing until its median is known to within this; 2%."),
    "min_time": _seconds_option("Time each thing so long at least; 50ms."),
    "time_limit": _seconds_option("Begin no further round after so long; 1s."),
    "warmup": Annotated[int | None, typer.Option("--warm-up", min=0, help="Rounds that do not count; 3.")],
    "repetitions": Annotated[int | None, typer.Option(min=1, help="So many rounds instead, however they spread.")],
    "throttle": _share_option("Name clocks that fell below this share of the fastest that was seen; 75%."),
    "seed": Annotated[int | None, typer.Option(help="Of operands, and of the order of cases; 0.")],
}

#: By fields of `Outputs`.
OUTPUT_OPTIONS: Mapping[str, Any] = {
    "csv": Annotated[Path | None, typer.Option("--csv", parser=path, help="Save a table here.")],
    "json": Annotated[Path | None, typer.Option("--json", parser=path, help="Save every repetition here.")],
    "jsonl": Annotated[
        Path | None, typer.Option("--jsonl", parser=path, help="Save them here, a line of JSON for each case.")
    ],
    "markdown": Annotated[Path | None, typer.Option("--markdown", parser=path, help="Save tables to be posted here.")],
    "plot": Annotated[Path | None, typer.Option("--plot", parser=path, help="Save a plot here.")],
    "plot_kind": Annotated[
        str | None,
        typer.Option(
            "--plot-kind",
            help="batch, bandwidth, tokens, roofline, gops, per-row, heat or steps; by default what fits.",
        ),
    ],
    "html": Annotated[
        Path | None, typer.Option("--html", parser=path, help="Save a page with all of it, plots included.")
    ],
}
