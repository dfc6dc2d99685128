"""Measurements as a table, as CSV and as JSON; measured and modelled times are labelled in all of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence

from rich.table import Table

from npumatmul.bench.measure import Measurement, Step

__all__ = ["as_csv", "as_json", "as_table"]


def _row(result: Measurement) -> dict[str, object]:
    case = result.case
    row: dict[str, object] = {
        "type": case.type_name,
        "M": case.m,
        "K": case.k,
        "N": case.n,
        "layout": "native" if case.ac_native else "normal",
        "cores": case.cores,
        "timed_on": "CPU simulation" if result.simulated else "NPU",
    }
    for step in Step:
        row[f"{step.value} [us]"] = result.median(step) * 1e6
    row["run min [us]"] = result.quantile(Step.RUN, 0) * 1e6
    row["run p90 [us]"] = result.quantile(Step.RUN, 0.9) * 1e6
    row["GOPS"] = result.operations_per_second / 1e9
    row["GB/s"] = result.bytes_per_second / 1e9
    row["matmul() beyond run [us]"] = result.beyond_run_seconds * 1e6
    row["modelled run on the chip [us]"] = None if result.modelled_seconds is None else result.modelled_seconds * 1e6
    return row


def as_table(results: Sequence[Measurement]) -> Table:
    """Build a table for the terminal: the medians that matter most.

    Parameters
    ----------
    results : sequence of Measurement

    Returns
    -------
    rich.table.Table
    """
    where = "CPU simulation" if any(result.simulated for result in results) else "NPU"
    table = Table(title=f"medians in microseconds, timed on: {where}", title_justify="left")
    headings = {
        "case": None, "create": Step.CREATE, "pack A": Step.PACK_A, "bind": Step.BIND, "run": Step.RUN,
        "unpack C": Step.UNPACK_C, "matmul()": Step.END_TO_END,
    }  # fmt: skip
    for heading in (*headings, "run min..p90", "beyond run", "GOPS", "GB/s", "modelled run"):
        table.add_column(heading, justify="left" if heading == "case" else "right")
    for result in results:
        times = [f"{result.median(step) * 1e6:.0f}" for step in headings.values() if step is not None]
        modelled = "-" if result.modelled_seconds is None else f"{result.modelled_seconds * 1e6:.0f}"
        spread = f"{result.quantile(Step.RUN, 0) * 1e6:.0f}..{result.quantile(Step.RUN, 0.9) * 1e6:.0f}"
        table.add_row(
            str(result.case), *times, spread, f"{result.beyond_run_seconds * 1e6:.0f}",
            f"{result.operations_per_second / 1e9:.1f}", f"{result.bytes_per_second / 1e9:.1f}", modelled,
        )  # fmt: skip
    return table


def as_csv(results: Sequence[Measurement]) -> str:
    """Write one line per case, with a heading.

    Parameters
    ----------
    results : sequence of Measurement

    Returns
    -------
    str
    """
    text = io.StringIO()
    rows = [_row(result) for result in results]
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(results: Sequence[Measurement], machine: dict[str, object]) -> str:
    """Write the machine, and every repetition of every case.

    Parameters
    ----------
    results : sequence of Measurement
    machine : dict
        From `describe_machine`.

    Returns
    -------
    str
    """
    cases = [{**_row(result), "seconds": {step.value: result.seconds[step] for step in Step}} for result in results]
    return json.dumps({"machine": machine, "cases": cases}, indent=1)
