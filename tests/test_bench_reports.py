"""What becomes of a run: tables, Markdown, CSV and plots. Values in them are worked out here from the times."""

from __future__ import annotations

import csv
import inspect
import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from test_bench_record import MACHINE, RECORD

from npumatmul.bench import Record, Row, as_csv, as_markdown
from npumatmul.bench.plot_parts import COLOURS
from npumatmul.bench.plots import KINDS, drawn, picture, plots
from npumatmul.bench.record import Value
from npumatmul.bench.tables import facts, tables
from npumatmul.cli import bench_options


def product(m: int, k: int, n: int, run: float, cores: int = 1, **figures: Any) -> Row:
    """A measured product whose operations and bytes are those of int8."""
    case: dict[str, Value] = {"type": "int8", "m": m, "k": k, "n": n, "layout": "native", "cores": cores}
    operations, moved = 2 * m * k * n, m * k + k * n + 4 * m * n
    rates = {"gops": operations / run / 1e9, "ops_per_byte": operations / moved, **figures}
    seconds = {"run": [run, run, run], "pack_a": [run / 2], "sync_a": [run / 4], "matmul": [2 * run]}
    return Row("matmul", case, seconds, rates, {"run": 2 * run, "low": run, "high": 4 * run})


GRID = [
    product(m, k, n, 1e-6 * m * (k + n), cores)
    for cores in (1, 3)
    for m in (1, 8, 64)
    for k in (64, 128)
    for n in (32, 96)
]
RUN = Record(MACHINE, GRID)
BATCHES = Record(
    MACHINE,
    [
        Row("batch", {"type": "int8", "k": 64, "n": 32, "m": m}, {"batch": [ms / 1e3]})
        for m, ms in ((1, 1.0), (4, 2.0), (16, 16.0))
    ],
)


def lines(plot: Any, axes: int = 0) -> dict[str, Any]:
    return {str(line.get_label()): line for line in plot.figure.axes[axes].get_lines()}


def test_each_kind_of_measurement_has_a_table_of_its_own() -> None:
    matmul, bandwidth = tables(RECORD)
    assert (matmul.what, bandwidth.what) == ("matmul", "bandwidth")
    assert "timed on: CPU simulation of rk3588" in matmul.title
    columns = {heading: list(cells) for heading, cells in matmul.columns.items()}
    assert next(iter(columns)) == "case"
    assert (columns["run"], columns["modelled"], columns["modelled range"]) == (["2.0"], ["30"], ["20..45"])
    assert (columns["checked"], columns["marks"], columns["samples"]) == (["yes"], ["padded"], ["3"])
    assert "beyond run" not in columns  # no row has one
    assert dict(bandwidth.columns)["copy"] == ["1000"]


def test_what_a_row_lacks_is_a_dash() -> None:
    rows = [Row("x", {"n": 1}, {"run": [1e-6]}, {"rate": 2.0}), Row("x", {"n": 2}, {"run": [1e-6], "cold": [2e-6]})]
    (table,) = tables(Record(MACHINE, rows))
    assert (list(table.columns["rate"]), list(table.columns["cold"])) == (["2.00", "-"], ["-", "2.00"])


def test_the_spread_is_that_of_the_main_time_and_stands_once() -> None:
    """Also where rows are about different times, as those of core masks that are refused."""
    rows = [Row("x", {"name": "a"}, {"run": [1e-6], "set": [1e-6]}), Row("x", {"name": "b"}, {"set": [2e-6]})]
    (table,) = tables(Record(MACHINE, rows))
    assert list(table.columns) == ["case", "run", "set", "run min..p90", "samples"]
    assert list(table.columns["set"]) == ["1.00", "2.00"]
    assert list(table.columns["run min..p90"]) == ["1.00..1.00", "-"]


def test_a_machine_is_told_in_words() -> None:
    told = facts(MACHINE)
    assert told["timed on"] == "CPU simulation of rk3588, 3 NPU cores"
    assert told["clocks"] == "npu 1000 MHz (performance)"
    assert told["temperature"] == "npu 41.5 °C"
    assert told["load"] == "0.50 0.25 0.12"


def test_markdown_has_every_cell_and_nothing_of_its_own() -> None:
    hostile = Row("x|y", {"name": "a|b\n# c <script>"}, {"run": [1e-6]}, {}, {}, ("*!*",))
    text = as_markdown(Record(MACHINE, [*RECORD.rows, hostile]))
    tables_ = [part for part in text.split("\n\n") if part.startswith("|")]
    for part, rows in zip(tables_, (1, 1, 1), strict=True):
        widths = {line.replace("\\|", "").count("|") for line in part.strip().splitlines()}
        assert len(widths) == 1
        assert len(part.strip().splitlines()) == 2 + rows
    assert "a\\|b \\# c \\<script\\>" in text
    assert "- timed on: CPU simulation of rk3588" in text


def test_csv_has_a_line_for_each_row_and_the_machine_in_each() -> None:
    found = list(csv.DictReader(io.StringIO(as_csv(RECORD))))
    assert [line["what"] for line in found] == ["matmul", "bandwidth"]
    assert [line["run_us"] for line in found] == ["2.0", ""]
    assert {line["machine_clocks_npu"] for line in found} == {"1000000000"}


def test_a_run_has_the_plots_that_its_rows_are_enough_for() -> None:
    assert [plot.kind for plot in plots(RUN)] == ["roofline", "gops", "per-row", "heat", "steps"]
    assert [plot.kind for plot in plots(BATCHES)] == ["batch"]
    assert plots(Record(MACHINE, RECORD.rows[1:])) == []
    assert picture(drawn(RUN, "heat"), "svg") == picture(drawn(RUN, "heat"), "svg")  # no date, no random names
    for plot in plots(RUN):
        texts = [text.get_text() for axes in plot.figure.axes for text in axes.texts]
        assert f"measured on: {MACHINE.timed_on}" in texts
        assert len(plot.text) > 40


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_drawn_is_told(kind: str) -> None:
    with pytest.raises(ValueError, match=f"the plot '{kind}' cannot be drawn: no "):
        drawn(Record(MACHINE, RECORD.rows[1:]), kind)


def test_other_plots_are_told() -> None:
    with pytest.raises(ValueError, match="'pie' is no plot; there are batch, bandwidth"):
        drawn(RUN, "pie")
    with pytest.raises(ValueError, match="nothing can be plotted"):
        drawn(Record(MACHINE, []))
    assert drawn(RUN).kind == "roofline"


def test_rates_over_rows_are_measured_and_modelled() -> None:
    found = lines(drawn(RUN, "gops"))
    at, rates = (np.asarray(values) for values in found["int8 Mx64x32, measured"].get_data())
    assert list(at) == [1, 8, 64]
    np.testing.assert_allclose(rates, 2 * 64 * 32 / (1e-6 * (64 + 32)) / 1e9)
    np.testing.assert_allclose(found["int8 Mx64x32, modelled"].get_ydata(), rates / 2)
    assert "int8 Mx64x32 3 cores, measured" in found
    assert len(found) == 2 * len(COLOURS)


def test_time_for_each_row() -> None:
    found = lines(drawn(RUN, "per-row"))
    np.testing.assert_allclose(found["int8 Mx128x96, measured"].get_ydata(), 128 + 96)


def test_more_products_than_colours_are_grey_but_there() -> None:
    rows = [product(m, 64, n, 1e-6 * m) for m in (1, 2) for n in range(32, 32 * 21, 32)]
    found = [
        line
        for line in drawn(Record(MACHINE, rows), "gops").figure.axes[0].get_lines()
        if ", measured" in str(line.get_label())
    ]
    assert len(found) == 20
    named = {line.get_color() for line in found} - {"#c8c8c8"}
    assert len(named) == len(COLOURS) - 1


def test_batches_have_their_time_and_that_of_a_row_and_the_best_is_marked() -> None:
    plot = drawn(BATCHES, "batch")
    above = lines(plot)["int8 Mx64x32, measured"]
    np.testing.assert_allclose(above.get_ydata(), [1, 2, 16])
    each, ring = plot.figure.axes[1].get_lines()
    assert "int8 Mx64x32, modelled" not in lines(plot)
    np.testing.assert_allclose(np.asarray(each.get_ydata(), float), [1, 0.5, 1])
    np.testing.assert_array_equal(np.asarray(ring.get_xdata(), float), [4])
    assert "best with 4 rows, 0.5 ms for each" in plot.text


def test_roofs_of_schemes_are_those_of_what_computes_them() -> None:
    """w4a8 multiplies int8 on this chip: its roof is that of int8."""
    row = product(64, 1024, 1024, 1e-3, matmul_type="int8_int8_int32")
    scheme = replace(row, case={**row.case, "type": "w4a8"})
    unknown = replace(row, case={**row.case, "type": "w1a1"}, figures={**row.figures, "matmul_type": "int1"})
    found = lines(drawn(Record(MACHINE, [row, scheme, unknown]), "roofline"))
    same = [found[f"{name}, modelled roof of rk3588"].get_ydata() for name in ("int8", "w4a8")]
    np.testing.assert_array_equal(*same)
    assert "w1a1, modelled roof of rk3588" not in found


def test_bandwidth_is_drawn_over_sizes_by_who_reads() -> None:
    rows = [
        Row("bandwidth", {"reads": who, "kib": kib}, {"run": [1e-6]}, {"kib": kib, "gb_per_s": rate, **more})
        for who, rate, more in (("npu", 8.0, {"modelled_gb_per_s": 10.0}), ("cpu copy", 20.0, {}))
        for kib in (64, 16)
    ]
    plot = drawn(Record(MACHINE, rows))
    assert plot.kind == "bandwidth"
    found = lines(plot)
    np.testing.assert_allclose(np.asarray(found["npu, measured"].get_data()), [[16, 64], [8, 8]])
    np.testing.assert_allclose(np.asarray(found["npu, modelled"].get_data()), [[16, 64], [10, 10]])
    assert "cpu copy, modelled" not in found


def test_tokens_are_bars_with_what_is_modelled_beside_them() -> None:
    figures = {"tokens_per_second": 20.0, "plus_minus": 1.5, "modelled_tokens_per_second": 30.0}
    rows = [Row("llm", {"model": "m", "test": test}, {"test": [1.0]}, figures) for test in ("pp128", "tg128")]
    plot = drawn(Record(MACHINE, rows))
    bars: list[Any] = list(plot.figure.axes[0].patches)
    assert (plot.kind, [bar.get_width() for bar in bars]) == ("tokens", [20, 20])
    np.testing.assert_allclose(np.asarray(lines(plot)["modelled for rk3588"].get_xdata()), [30, 30])
    assert "m pp128: 20.0 ± 1.5" in plot.text


def test_the_command_names_every_kind() -> None:
    text = inspect.getsource(bench_options)
    assert all(f" {kind}" in text.replace('"', " ") for kind in KINDS)


def test_a_map_has_a_cell_for_each_shape() -> None:
    cells = drawn(RUN, "heat").figure.axes[0].get_images()[0].get_array()
    expected = [[2 * k * n / (1e-6 * (k + n)) / 1e9 for n in (32, 96)] for k in (64, 128)]
    np.testing.assert_allclose(np.asarray(cells), expected)


def test_steps_are_shares_of_their_sum() -> None:
    bars = drawn(RUN, "steps").figure.axes[0].containers
    shares = {container.get_label(): container[0].get_width() for container in bars}
    assert shares["run"] == pytest.approx(100 / 1.75)
    assert shares["pack A"] == pytest.approx(50 / 1.75)
    assert sum(shares.values()) == pytest.approx(100)
