"""Options that commands of `npumatmul bench` share: the files that a run is saved in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from npumatmul.cli.files import path

CsvOption = Annotated[Path | None, typer.Option("--csv", parser=path, help="Save a table here.")]
JsonOption = Annotated[Path | None, typer.Option("--json", parser=path, help="Save every repetition here.")]
JsonLinesOption = Annotated[
    Path | None, typer.Option("--jsonl", parser=path, help="Save them here, a line of JSON for each case.")
]
MarkdownOption = Annotated[Path | None, typer.Option("--markdown", parser=path, help="Save tables to be posted here.")]
PlotOption = Annotated[Path | None, typer.Option("--plot", parser=path, help="Save a plot here.")]
PlotKindOption = Annotated[
    str | None, typer.Option("--plot-kind", help="roofline, gops, per-row, heat, batch, steps; by default what fits.")
]
HtmlOption = Annotated[
    Path | None, typer.Option("--html", parser=path, help="Save a page with all of it, plots included.")
]
