"""Runs a benchmark, prints its tables, and saves what was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from npumatmul.bench import Machine, Record, Row, describe_machine
from npumatmul.bench.batching import best_batch, go_lines
from npumatmul.bench.benchmark import Benchmark
from npumatmul.bench.llm_bench import llama_bench_table
from npumatmul.cli.bench_outputs import Outputs, report
from npumatmul.cli.progress import working
from npumatmul.cli.terminal import ended_by_signals, say
from npumatmul.device.current import current_device

__all__ = ["run"]


def run(benchmark: Benchmark, device: str | None, outputs: Outputs, sources: Sequence[str | Path] = ()) -> None:
    """Measure, and say what was left out.

    Whatever ends it early, what was measured until then is printed and saved.

    Parameters
    ----------
    benchmark : Benchmark
    device : str or None
    outputs : Outputs
    sources : sequence of path-like
        Files that results are made of.
    """
    outputs.check(sources, type(benchmark))
    target = current_device(device)
    for note in benchmark.prepare(target):
        say(note)
    machine, found = describe_machine(target), list[Row]()
    complete = False
    try:
        with ended_by_signals(), working() as progress:
            for row in benchmark.measure(target, progress):
                found.append(row)
        complete = True
    finally:  # an interrupt, a signal, or a case that failed
        if found:
            if not complete:
                say(f"it ended early; {len(found)} {'row was' if len(found) == 1 else 'rows were'} measured until then")
            rows = benchmark.arranged(found, target)
            try:
                lines = _LINES.get(benchmark.name)
                for line in [] if lines is None else lines(rows, machine):
                    outputs.console.print(line, soft_wrap=True)
            finally:
                report(Record(machine, rows, benchmark.settings), outputs, sources, target.chip.timings)


def _as_llama_bench(rows: Sequence[Row], machine: Machine) -> list[str]:
    where = f"{machine.chip} simulated" if machine.simulated else machine.chip
    if machine.simulated_runs:
        where += f", {machine.simulated_runs}"
    return [*llama_bench_table(rows, where), ""]


def _as_go(rows: Sequence[Row], machine: Machine) -> list[str]:
    """Lines that tools of Go read, and which batch is best."""
    where = f"on the CPU that simulates {machine.chip}" if machine.simulated else f"on {machine.chip}"
    if machine.simulated_runs:
        where += f" ({machine.simulated_runs})"
    best, modelled = best_batch(rows), best_batch(rows, "modelled_ms_per_row")
    largest = max((int(row.case["m"] or 0) for row in rows), default=0)
    lines = [*go_lines(rows), f"best batch, measured {where}: {_best(best, largest)}"]
    if modelled is not None:
        lines.append(f"best batch, modelled on {machine.chip}, not measured: {_best(modelled, largest)}")
    return [*lines, ""]


def _best(size: int | None, largest: int) -> str:
    if size == largest:
        return f"{size}, the largest of these: still larger ones may be better"
    return f"{size}: no larger one saves a twentieth of a row's time"


#: What is printed before the tables of all.
_LINES: Mapping[str, Callable[[Sequence[Row], Machine], list[str]]] = {"llm": _as_llama_bench, "batch": _as_go}
