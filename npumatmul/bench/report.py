"""A run as CSV, as Markdown, and in the other forms that files have; measured and modelled times stay apart in each."""

from __future__ import annotations

import csv
import io

from npumatmul.bench.record import Record
from npumatmul.bench.tables import facts, tables

__all__ = ["as_csv", "as_markdown"]


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
