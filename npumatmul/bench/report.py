"""Measurements as rows of a saved run, as a table and as CSV; measured and modelled times are labelled everywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from npumatmul.bench.record import Record, Row

__all__ = ["as_columns", "as_csv"]

def as_columns(results: Sequence[Row]) -> dict[str, list[str]]:
    """Medians in microseconds as the columns of a table, the most important first.

    Parameters
    ----------
    results : sequence of Row

    Returns
    -------
    dict of str to list of str
        Cells by heading. docs/benchmarks.md explains each column.
    """
    rows = [result.flat() for result in results]

    def times(name: str) -> list[str]:
        return ["-" if row.get(name) is None else f"{row[name]:.0f}" for row in rows]

    return {
        "case": [result.label for result in results],
        "run": times("run_us"),
        "modelled": times("modelled_run_us"),
        "modelled range": [
            "-" if "modelled_low_us" not in row else f"{row['modelled_low_us']:.0f}..{row['modelled_high_us']:.0f}"
            for row in rows
        ],
        "matmul": times("matmul_us"),
        "beyond run": times("beyond_run_us"),
        "GOPS": [f"{row['gops']:.1f}" for row in rows],
        "GB/s": [f"{row['gb_per_s']:.1f}" for row in rows],
        "run min..p90": [f"{row['run_min_us']:.0f}..{row['run_p90_us']:.0f}" for row in rows],
        "pack A": times("pack_a_us"),
        "sync A": times("sync_a_us"),
        "bind": times("bind_us"),
        "sync C": times("sync_c_us"),
        "unpack C": times("unpack_c_us"),
        "create": times("create_us"),
    }


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
    facts = {f"machine_{name}": value for name, value in record.machine.flat().items()}
    lines = [{**row.flat(), **facts} for row in record.rows]
    headings = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(headings), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
