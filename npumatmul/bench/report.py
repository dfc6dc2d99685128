"""A run as CSV, as Markdown, and in the other forms that files have; measured and modelled times stay apart in each."""

from __future__ import annotations

import csv
import io

from npumatmul.bench.measure import Measurement, Step
from npumatmul.bench.record import Record, Row
from npumatmul.bench.tables import facts, tables

__all__ = ["as_csv", "as_markdown", "row_of"]

#: What steps are called in files, where a unit follows.
STEP_NAMES = {
    Step.CREATE: "create",
    Step.PACK_A: "pack_a",
    Step.SYNC_A: "sync_a",
    Step.BIND: "bind",
    Step.RUN: "run",
    Step.SYNC_C: "sync_c",
    Step.UNPACK_C: "unpack_c",
    Step.END_TO_END: "matmul",
}


def row_of(result: Measurement) -> Row:
    """A measurement as a row of a saved run, with every repetition of every step.

    Parameters
    ----------
    result : Measurement

    Returns
    -------
    Row
    """
    case, beyond, modelled = result.case, result.beyond_run_seconds, result.modelled
    ways = [Step.RUN, *(step for step in Step if step is not Step.RUN)]
    return Row(
        "matmul",
        {
            "type": case.type_name, "m": case.m, "k": case.k, "n": case.n,
            "layout": "native" if case.ac_native else "normal", "cores": case.cores,
        },
        {STEP_NAMES[step]: result.seconds[step] for step in ways},
        {
            "matmul_cores": result.matmul_cores,
            "beyond_run_us": None if beyond is None else beyond * 1e6,
            "gops": result.operations_per_second / 1e9,
            "ops_per_byte": 2 * case.macs / case.nbytes,
            "gb_per_s": result.bytes_per_second / 1e9,
        },
        {} if modelled is None else {"run": modelled.seconds, "low": modelled.low, "high": modelled.high},
    )  # fmt: skip


def as_csv(record: Record) -> str:
    """Write one line per row, with a heading; medians in microseconds.

    Parameters
    ----------
    record : Record
        Facts about its machine are columns, too: ``machine_<fact>``.

    Returns
    -------
    str
    """
    machine = {f"machine_{name}": value for name, value in record.machine.flat().items()}
    lines = [{**row.flat(), **machine} for row in record.rows]
    headings = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(headings), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_markdown(record: Record) -> str:
    """Write the tables, then the machine as a list; to be pasted into an issue.

    Parameters
    ----------
    record : Record

    Returns
    -------
    str
    """
    parts = []
    for table in tables(record):
        headings = list(table.columns)
        lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *zip(*table.columns.values(), strict=True)]
        parts.append(
            f"{_escaped(table.title)}\n\n" + "".join(f"| {' | '.join(map(_escaped, line))} |\n" for line in lines)
        )
    parts.append("".join(f"- {name}: {_escaped(text)}\n" for name, text in facts(record.machine).items()))
    return "\n".join(parts)


def _escaped(text: str) -> str:
    """A text of one line in which Markdown finds nothing of its own."""
    text = " ".join(text.split())
    return "".join(f"\\{each}" if each in "\\`*_[]<>|#" else each for each in text)
