"""What commands of `npumatmul bench` do with a run: print its tables, and save it in the forms that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from npumatmul.bench.benchmark import Benchmark
from npumatmul.bench.page import as_html
from npumatmul.bench.plots import KINDS, drawn, picture
from npumatmul.bench.record import Record
from npumatmul.bench.report import as_csv, as_markdown
from npumatmul.bench.tables import facts, tables
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.cli.files import STANDARD, check_outputs, picture_format, write_output
from npumatmul.cli.tables import Column, print_table
from npumatmul.cli.terminal import notes, results, visible
from npumatmul.extras import check_installed

__all__ = ["Outputs", "report"]


@dataclass(frozen=True)
class Outputs:
    """Files that a run is to be saved in; the fields are options of the command."""

    csv: Path | None = None
    json: Path | None = None
    jsonl: Path | None = None
    markdown: Path | None = None
    plot: Path | None = None
    plot_kind: str | None = None
    html: Path | None = None

    def check(self, sources: Sequence[str | Path] = (), benchmark: type[Benchmark] | None = None) -> None:
        """Refuse what cannot be written, or drawn of a benchmark, before anything is measured."""
        check_outputs({f"--{name}": each for name, each in self._places.items()}, sources)
        if self.plot_kind is not None and self.plot is None:
            raise ValueError("--plot-kind goes with --plot, which names the file")
        if self.plot_kind is not None and self.plot_kind not in KINDS:
            raise ValueError(f"--plot-kind: {self.plot_kind!r} is no plot; there are {', '.join(KINDS)}")
        if self.plot is not None:
            picture_format(self.plot)
            if benchmark is not None and not benchmark.drawable:
                raise ValueError(f"--plot: nothing of bench {benchmark.name} can be drawn; its table says it all")
        if self.html is not None:
            check_installed("matplotlib", "--html")

    @property
    def console(self) -> Console:
        """Where tables go: to standard error where a file goes to standard output."""
        return notes if STANDARD in self._places.values() else results()

    def save(
        self, record: Record, sources: Sequence[str | Path] = (), timings: Mapping[str, TimingModel] = TIMINGS
    ) -> None:
        """Write each of them."""
        texts = {"csv": as_csv, "json": Record.to_json, "jsonl": Record.to_json_lines, "markdown": as_markdown}
        for name, text in texts.items():
            place = self._places[name]
            if place is not None:
                write_output(place, text(record), sources)
        if self.html is not None:
            write_output(self.html, as_html(record, timings), sources)
        if self.plot is not None:  # last, since rows may be too few for it
            plot = drawn(record, self.plot_kind, timings)
            write_output(self.plot, picture(plot, picture_format(self.plot)), sources)

    @property
    def _places(self) -> dict[str, Path | None]:
        return {name: each for name, each in vars(self).items() if name != "plot_kind"}


def report(
    record: Record,
    outputs: Outputs,
    sources: Sequence[str | Path] = (),
    timings: Mapping[str, TimingModel] = TIMINGS,
) -> None:
    """Print the tables of a run and where it was measured, and save it."""
    output = outputs.console
    try:
        for table in tables(record):
            names, *others = (Column(heading, list(map(visible, cells))) for heading, cells in table.columns.items())
            print_table(output, visible(table.title), Column(names.heading, names.cells, left=True), others)
        width = max(map(len, facts(record.machine)))
        for name, text in facts(record.machine).items():
            output.print(f"{name:{width}}  {visible(text)}", soft_wrap=True)
    finally:  # what nobody reads can be saved
        outputs.save(record, sources, timings)
