"""Commands of `npumatmul bench` about runs that were saved: `show`, `compare`, `share`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from npumatmul.cli.files import path

if TYPE_CHECKING:
    from npumatmul.bench import Record

__all__ = ["register"]


RunArgument = Annotated[Path, typer.Argument(parser=path, help="A run that --json or --jsonl saved.")]
OutputOption = Annotated[Path | None, typer.Option(parser=path, help="Save it in this form here.")]


def register(app: typer.Typer) -> None:
    """Add the commands to those of `npumatmul bench`."""
    app.command("show", short_help="Print or convert a saved run.")(show_command)
    app.command("compare", short_help="What changed between two saved runs.")(compare_command)
    app.command("share", short_help="Make saved runs fit to be sent.")(share_command)


def show_command(
    run: RunArgument,
    number: Annotated[int | None, typer.Option(min=1, help="Which one, of a file that share wrote of several.")] = None,
    csv: OutputOption = None,
    json: OutputOption = None,
    jsonl: OutputOption = None,
    markdown: OutputOption = None,
    html: OutputOption = None,
    plot: OutputOption = None,
    plot_kind: Annotated[str | None, typer.Option(help="As of the commands that measure.")] = None,
) -> None:
    """Print the tables of a saved run, and save it in other forms."""
    from npumatmul.cli.bench_outputs import Outputs, report

    outputs = Outputs(csv, json, jsonl, markdown, plot, plot_kind, html)
    outputs.check([run])
    report(_one_of(run, number), outputs, [run])


def compare_command(
    before: Annotated[Path, typer.Argument(metavar="A", parser=path, help="The run that was first.")],
    after: Annotated[Path, typer.Argument(metavar="B", parser=path, help="The run that is compared with it.")],
    threshold: Annotated[
        float, typer.Option(min=0.0, max=1000.0, help="Differences up to so many percent do not matter.")
    ] = 5.0,
    confidence: Annotated[
        float, typer.Option(min=50.0, max=99.99, help="How sure a verdict has to be, in percent, over all cases.")
    ] = 95.0,
    measure: Annotated[
        str | None, typer.Option(help="What is compared, such as matmul or pack_a; by default what each case is about.")
    ] = None,
    across: Annotated[
        bool, typer.Option("--across", help="Compare simulated with measured times, or two chips, all the same.")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail for UNCLEAR and missing cases, too.")] = False,
    json: Annotated[Path | None, typer.Option("--json", parser=path, help="Save the comparison here.")] = None,
) -> None:
    """Compare two saved runs case by case: FASTER, SLOWER, SAME or UNCLEAR. Ends with 1 if a case is SLOWER."""
    from npumatmul.bench.comparing import Verdict, compare
    from npumatmul.cli.files import STANDARD, check_outputs, write_output
    from npumatmul.cli.tables import Column, print_table
    from npumatmul.cli.terminal import notes, results, say, visible

    check_outputs({"--json": json}, [before, after])
    first, second = _one_of(before), _one_of(after)
    found = compare(first, second, threshold / 100, confidence / 100, measure, across)
    output = notes if json == STANDARD else results()
    places = dict.fromkeys((first.machine.timed_on, second.machine.timed_on))
    title = f"medians in microseconds, timed on: {'; B on: '.join(places)}"
    names, *others = (Column(heading, list(map(visible, cells))) for heading, cells in found.columns().items())
    print_table(output, visible(title), Column(names.heading, names.cells, left=True), others)
    for name, values in found.machine.items():
        output.print(visible(f"{name}: {values[0]} in A, {values[1]} in B"), soft_wrap=True)
    for which, labels in (("A", found.only_before), ("B", found.only_after)):
        if labels:
            say(f"only in {which}: {', '.join(labels[:20])}{f' and {len(labels) - 20} more' if labels[20:] else ''}")
    output.print(", ".join(f"{count} {verdict.value}" for verdict, count in found.counts.items()))
    if found.too_few:
        say(
            f"{found.too_few} of {len(found.differences)} cases have too few times for any difference to be told; "
            "measure with more --repetitions"
        )
    if json is not None:
        write_output(json, found.to_json(), [before, after])
    counts = found.counts
    missing = len(found.only_before) + len(found.only_after)
    if counts[Verdict.SLOWER] or (strict and (counts[Verdict.UNCLEAR] or missing)):
        raise typer.Exit(1)


def share_command(
    runs: Annotated[list[Path], typer.Argument(parser=path, help="Runs that --json or --jsonl saved.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", parser=path, help="The file to send; without it, nothing is written."),
    ] = None,
) -> None:
    """Make one file of saved runs that tells nothing about whose they are, and say all that is in it.

    Names of hosts and users, paths and serial numbers are left out: texts are kept only where they consist of words
    that npumatmul itself uses.
    """
    from npumatmul.bench.sharing import read_runs, share
    from npumatmul.cli.files import check_outputs, write_output
    from npumatmul.cli.terminal import say

    check_outputs({"--output": output}, runs)
    shared = share([run for each in runs for run in read_runs(each)])
    for line in shared.contents():
        say(line)
    if output is None:
        say("nothing was written; -o FILE writes this, and all times, to a file that you can send")
        return
    write_output(output, shared.to_json(), runs)
    say(f"{output} has this, and all times; send it to those who asked for it")


def _one_of(path: Path, number: int | None = None) -> Record:
    """The run that a file holds, or the one of that number."""
    from npumatmul.bench.sharing import read_runs

    runs = read_runs(path)
    if number is None and len(runs) == 1:
        return runs[0]
    if number is None:
        raise ValueError(
            f"{path} holds {len(runs)} runs; npumatmul bench show {path} --number 1 --json FILE takes one out"
        )
    if number > len(runs):
        raise ValueError(f"--number is {number}; {path} holds {len(runs)}")
    return runs[number - 1]
