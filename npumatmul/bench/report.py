"""Measurements as rows of a saved run, as a table and as CSV; measured and modelled times are labelled everywhere."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from npumatmul.bench.measure import Measurement, Step
from npumatmul.bench.record import Record, Row

__all__ = ["as_columns", "as_csv", "row_of"]

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
            "gb_per_s": result.bytes_per_second / 1e9,
        },
        {} if modelled is None else {"run": modelled.seconds, "low": modelled.low, "high": modelled.high},
    )  # fmt: skip


def as_columns(results: Sequence[Measurement]) -> dict[str, list[str]]:
    """Medians in microseconds as the columns of a table, the most important first.

    Parameters
    ----------
    results : sequence of Measurement

    Returns
    -------
    dict of str to list of str
        Cells by heading. docs/benchmarks.md explains each column.
    """
    rows = [row_of(result).flat() for result in results]

    def times(name: str) -> list[str]:
        return ["-" if row.get(name) is None else f"{row[name]:.0f}" for row in rows]

    return {
        "case": [result.case.label for result in results],
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
