"""Rows as the columns of tables, for terminals, Markdown and pages: one table for each kind of measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from npumatmul.bench.record import Machine, Record, Row, Value

__all__ = ["Table", "facts", "tables"]

#: Where columns are explained.
DOCUMENT = "docs/benchmarks.md"


@dataclass(frozen=True)
class Table:
    """Cells as they are printed.

    Attributes
    ----------
    what : str
        Which measurement.
    title : str
        What the times are, and where they were taken.
    columns : mapping of str to list of str
        Cells by heading; the first column names the cases, and the others follow, the most important first.
    """

    what: str
    title: str
    columns: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Heading:
    """A column: a field of `Row.flat`, or from one to another; so many digits stand after the point."""

    text: str
    field: str
    digits: int = 0
    to: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        return (self.field,) if self.to is None else (self.field, self.to)

    def cell(self, line: Mapping[str, Value]) -> str:
        ends = [_cell(line.get(field), self.digits) for field in self.fields]
        return "-" if "-" in ends else "..".join(ends)


#: Columns of tables of products.
_PRODUCT = (
    Heading("run", "run_us"),
    Heading("modelled", "modelled_run_us"),
    Heading("modelled range", "modelled_low_us", to="modelled_high_us"),
    Heading("matmul", "matmul_us"),
    Heading("beyond run", "beyond_run_us"),
    Heading("runs as", "runs_as"),
    Heading("GOPS", "gops", 1),
    Heading("GB/s", "gb_per_s", 1),
    Heading("run min..p90", "run_min_us", to="run_p90_us"),
    Heading("executor", "executor_us"),
    Heading("host", "host_us"),
    Heading("python", "python_us"),
    Heading("pack A", "pack_a_us"),
    Heading("sync A", "sync_a_us"),
    Heading("bind", "bind_us"),
    Heading("sync C", "sync_c_us"),
    Heading("unpack C", "unpack_c_us"),
    Heading("create", "create_us"),
    Heading("pack B", "pack_b_us"),
    Heading("run cold", "run_cold_us"),
    Heading("matmul cold", "matmul_cold_us"),
    Heading("ops/byte", "ops_per_byte", 1),
    Heading("cores of matmul", "matmul_cores"),
)
#: What tables of a measurement begin with; what else its rows have follows.
HEADINGS = {
    "matmul": _PRODUCT,
    "cores": (Heading("run speedup", "run_speedup", 2), Heading("matmul speedup", "matmul_speedup", 2), *_PRODUCT),
    "layout": (
        Heading("together", "together_us"),
        Heading("normal/native", "normal_per_native", 2),
        Heading("of the run", "normal_per_native_run", 2),
        *_PRODUCT,
    ),
    "batch": (
        Heading("ms/batch", "ms_per_batch", 3),
        Heading("ms/row", "ms_per_row", 4),
        Heading("modelled ms/row", "modelled_ms_per_row", 4),
        Heading("GOPS", "gops", 1),
    ),
    "bandwidth": (
        Heading("KiB", "kib"),
        Heading("GB/s", "gb_per_s", 1),
        Heading("modelled GB/s", "modelled_gb_per_s", 1),
        Heading("run", "run_us", 1),
        Heading("modelled run", "modelled_run_us", 1),
        Heading("modelled range", "modelled_low_us", 1, to="modelled_high_us"),
    ),
    "llm": (
        Heading("t/s", "tokens_per_second", 2),
        Heading("±", "plus_minus", 2),
        Heading("modelled t/s", "modelled_tokens_per_second", 2),
    ),
    "drift": (Heading("at first", "first_run_us", 1), Heading("now", "run_us", 1), Heading("%", "drift_percent", 1)),
    "mask": (Heading("run", "run_us", 1), Heading("refused", "refused"), Heading("set mask", "set_core_mask_us", 1)),
}


def tables(record: Record) -> list[Table]:
    """A table for each kind of measurement in a run; times are medians in microseconds.

    Parameters
    ----------
    record : Record

    Returns
    -------
    list of Table

    Examples
    --------
    >>> machine = Machine("sim:rk3588", True, "rk3588", 3, "2.3.2", "0.9.8", "0.1.0", "3.11", "2.0", "6.1", "neon",
    ...                   "Cortex-A76", 8, "aarch64", 1024, "2026-01-31T12:00:00+00:00")
    >>> (table,) = tables(Record(machine, [Row("overhead", {"call": "run"}, {"run": [2e-6, 3e-6]}, {"calls": 40})]))
    >>> table.title
    'overhead: medians in microseconds, timed on: CPU simulation of rk3588; columns are explained in docs/benchmarks.md'
    >>> {heading: list(cells) for heading, cells in table.columns.items()}
    {'case': ['run'], 'run': ['2.50'], 'calls': ['40'], 'run min..p90': ['2.00..2.90'], 'samples': ['2']}
    """
    found = []
    for what in dict.fromkeys(row.what for row in record.rows):
        rows = [row for row in record.rows if row.what == what]
        title = f"medians in microseconds, timed on: {record.machine.timed_on}; columns are explained in {DOCUMENT}"
        found.append(Table(what, f"{what}: {title}", _columns(rows)))
    return found


def facts(machine: Machine) -> dict[str, str]:
    """A machine in a few lines that people read.

    Parameters
    ----------
    machine : Machine

    Returns
    -------
    dict of str to str
        What is told by what it is about.
    """
    clocks = [
        f"{name} {hertz / 1e6:.0f} MHz" + (f" ({machine.governors[name]})" if name in machine.governors else "")
        for name, hertz in machine.clocks.items()
    ]
    clocks += [f"{name} {each}" for name, each in machine.governors.items() if name not in machine.clocks]
    degrees = [f"{name} {celsius:.1f} °C" for name, celsius in machine.temperatures.items()]
    return {
        "timed on": f"{machine.timed_on}, {machine.npu_cores} NPU core{'s' if machine.npu_cores > 1 else ''}",
        "runtime": f"{machine.runtime}, driver {machine.driver}",
        "CPU": f"{machine.cpus} x {machine.cpu}, {machine.machine}, kernels {machine.host_kernels}",
        "versions": f"npumatmul {machine.npumatmul}, Python {machine.python}, numpy {machine.numpy}, "
        f"Linux {machine.kernel}",
        "clocks": ", ".join(clocks) or "cannot be read here",
        "temperature": ", ".join(degrees) or "cannot be read here",
        "load": " ".join(f"{each:.2f}" for each in machine.load) or "unknown",
        "time": machine.time,
    }


def _columns(rows: Sequence[Row]) -> dict[str, list[str]]:
    lines = [row.flat() for row in rows]
    headings = [*HEADINGS.get(rows[0].what, ()), *_others(rows, lines)]
    columns = {"case": [row.label for row in rows]}
    for heading in headings:
        if any(line.get(heading.field) is not None for line in lines):
            columns[heading.text] = [heading.cell(line) for line in lines]
    return columns


def _others(rows: Sequence[Row], lines: Sequence[Mapping[str, Value]]) -> list[Heading]:
    """Columns of what no heading is about, the main time first, its spread last."""
    main = rows[0].main
    spread = Heading(f"{_words(main)} min..p90", f"{main}_min_us", 2, f"{main}_p90_us")
    told = {field for heading in (*HEADINGS.get(rows[0].what, ()), spread) for field in heading.fields}
    told |= {f"{each}_{end}_us" for each in {row.main for row in rows} for end in ("min", "p90", "low", "high")}
    told |= {"what", "samples", "marks", *(name for row in rows for name in row.case)}
    names = [name for name in dict.fromkeys(name for line in lines for name in line) if name not in told]
    found = [Heading(_words(name.removesuffix("_us")), name, 2) for name in names]
    if rows[0].what not in HEADINGS or HEADINGS[rows[0].what][-1] is not _PRODUCT[-1]:
        found.append(spread)
    return [*found, Heading("samples", "samples"), Heading("marks", "marks")]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _cell(value: Value, digits: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{0 if abs(value) >= 1000 else max(digits, int(abs(value) < 9.95))}f}"
    return str(value)
