"""Measurements as a table, as CSV and as JSON; measured and modelled times are labelled in all of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence

from npumatmul.bench.measure import Measurement, Step

__all__ = ["as_columns", "as_csv", "as_json"]

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


def _row(result: Measurement) -> dict[str, object]:
    case = result.case
    beyond, modelled = result.beyond_run_seconds, result.modelled
    return {
        "type": case.type_name,
        "m": case.m,
        "k": case.k,
        "n": case.n,
        "layout": "native" if case.ac_native else "normal",
        "cores": case.cores,
        "device": result.device,
        "timed_on": "CPU simulation" if result.simulated else "NPU",
        "repetitions": len(result.seconds[Step.RUN]),
        **{f"{name}_us": result.median(step) * 1e6 for step, name in STEP_NAMES.items()},
        "run_min_us": result.quantile(Step.RUN, 0) * 1e6,
        "run_p90_us": result.quantile(Step.RUN, 0.9) * 1e6,
        "matmul_cores": result.matmul_cores,
        "beyond_run_us": None if beyond is None else beyond * 1e6,
        "gops": result.operations_per_second / 1e9,
        "gb_per_s": result.bytes_per_second / 1e9,
        "modelled_run_us": None if modelled is None else modelled.seconds * 1e6,
        "modelled_low_us": None if modelled is None else modelled.low * 1e6,
        "modelled_high_us": None if modelled is None else modelled.high * 1e6,
    }


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
    rows = [_row(result) for result in results]

    def times(name: str) -> list[str]:
        return ["-" if row[name] is None else f"{row[name]:.0f}" for row in rows]

    return {
        "case": [result.case.label for result in results],
        "run": times("run_us"),
        "modelled": times("modelled_run_us"),
        "modelled range": [
            "-" if row["modelled_low_us"] is None else f"{row['modelled_low_us']:.0f}..{row['modelled_high_us']:.0f}"
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


def as_csv(results: Sequence[Measurement], machine: Mapping[str, object]) -> str:
    """Write one line per case, with a heading; medians in microseconds.

    Parameters
    ----------
    results : sequence of Measurement
    machine : mapping
        From `describe_machine`; a column for each fact, ``machine_<fact>``.

    Returns
    -------
    str
    """
    text = io.StringIO()
    facts = {f"machine_{name}": value for name, value in machine.items()}
    rows = [{**_row(result), **facts} for result in results]
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(results: Sequence[Measurement], machine: Mapping[str, object]) -> str:
    """Write the machine, and every repetition of every case.

    Parameters
    ----------
    results : sequence of Measurement
    machine : mapping
        From `describe_machine`.

    Returns
    -------
    str
    """
    cases = [
        {**_row(result), "seconds": {name: result.seconds[step] for step, name in STEP_NAMES.items()}}
        for result in results
    ]
    return json.dumps({"machine": dict(machine), "cases": cases}, indent=1)
