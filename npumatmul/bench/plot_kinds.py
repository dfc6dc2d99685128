"""The kinds of plots that a run may have: each says what its rows are enough for, and draws it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from npumatmul.bench.cases import TYPES
from npumatmul.bench.plot_parts import (
    BARS,
    CELLS,
    COLOURS,
    MARKS,
    NAMED,
    but_m,
    duration,
    fields,
    grouped,
    legend,
    new_figure,
    number,
    place,
    plain,
    real,
    rows_of,
    short,
    sized,
    spread,
    style,
    ticks_at,
    titled_axes,
)
from npumatmul.bench.record import Machine, Record, Row
from npumatmul.bench.statistics import summarise
from npumatmul.chips.timing import TimingModel
from npumatmul.chips.types import MatmulType

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["KINDS", "NothingToDrawError", "Plot"]


@dataclass(frozen=True)
class Plot:
    """A drawing of a run.

    Attributes
    ----------
    kind : str
        A key of `KINDS`.
    title : str
    text : str
        What there is to see, for those who cannot see it.
    figure : Figure
    """

    kind: str
    title: str
    text: str
    figure: Figure


class NothingToDrawError(Exception):
    """The run has no rows, or too few, for this plot."""


def roofline(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Rates over operations per byte, under the modelled roof of as many cores as each point ran on."""
    rows = [row for row in record.rows if real(row, "gops") and real(row, "ops_per_byte")]
    if not rows:
        raise NothingToDrawError("no row has operations and bytes")
    machine, model = record.machine, timings.get(record.machine.chip)
    figure, axes = titled_axes("Roofline", machine)
    groups = grouped(rows, ("type", "cores"))
    intensities = [row.figures["ops_per_byte"] for row in rows]
    span = np.geomspace(min(0.5, *map(number, intensities)), max(5000.0, *map(number, intensities)), 200)
    roofed = False
    for index, (name, mine) in enumerate(groups.items()):
        colour, mark = style(index)
        at = [number(row.figures["ops_per_byte"]) for row in mine]
        rates = [number(row.figures["gops"]) for row in mine]
        axes.loglog(at, rates, mark, color=colour, markersize=6, label=f"{name}, measured")
        guessed = [(x, _rate(row, each)) for x, row in zip(at, mine, strict=True) if (each := _modelled(row))]
        if guessed:
            axes.loglog(
                *zip(*guessed, strict=True), mark, color=colour, markersize=6, mfc="white", label=f"{name}, modelled"
            )
        mm_type = _type_of(mine[0])
        cores = mine[0].case.get("cores", 1)
        if model is not None and mm_type is not None and model.knows(mm_type) and isinstance(cores, int):
            roof = np.minimum(cores * model.peak[mm_type.a], span * model.bandwidth(cores)) / 1e9
            axes.loglog(span, roof, "--", color=colour, linewidth=1.2, label=f"{name}, modelled roof of {machine.chip}")
            roofed = True
    plain(axes.xaxis, more=False)
    plain(axes.yaxis)
    axes.set_xlabel("operations per byte of A, B and C")
    axes.set_ylabel("GOPS")
    legend(axes, groups, machine, roof=roofed)
    best = max(rows, key=lambda row: number(row.figures["gops"]))
    text = (
        f"Roofline of {len(rows)} cases in {len(groups)} groups of type and cores. The fastest measured is "
        f"{best.label} with {number(best.figures['gops']):.1f} GOPS at "
        f"{number(best.figures['ops_per_byte']):.1f} operations per byte."
    )
    return Plot("roofline", "Roofline", text, figure)


def rates_over_rows(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """GOPS over M, a line for each product that was measured with several."""
    rows = [row for row in record.rows if real(row, "gops")]
    return _over_rows(record.machine, rows, "gops", "GOPS over the rows of A", "GOPS", _rate)


def time_per_row(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Microseconds for each row over M."""
    rows = [row for row in record.rows if row.what != "batch" and real(row, "gops")]
    return _over_rows(
        record.machine, rows, "per-row", "Time for each row of A", "µs for each row",
        lambda row, seconds: 1e6 * seconds / number(row.case["m"]),
    )  # fmt: skip


def batch_curve(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Milliseconds for a batch and for each of its rows over the size of the batch."""
    rows = [row for row in record.rows if row.what == "batch" and isinstance(row.case.get("m"), int)]
    groups = {name: mine for name, mine in grouped(rows, but_m(rows)).items() if len(mine) > 1}
    if not groups:
        raise NothingToDrawError("no product was measured with batches of several sizes")
    groups = {name: groups[name] for name in spread(list(groups), len(COLOURS))}
    figure, (above, below) = new_figure(2, (8, 6.4), sharex=True)
    place(above, "Batches", record.machine)
    best = []
    for index, (name, mine) in enumerate(groups.items()):
        mine = sorted(mine, key=rows_of)
        colour, mark = style(index)
        sizes = [rows_of(row) for row in mine]
        whole = [1e3 * summarise(row.seconds[row.main]).median for row in mine]
        each = [ms / size for ms, size in zip(whole, sizes, strict=True)]
        above.loglog(sizes, whole, f"{mark}-", color=colour, label=f"{name}, measured")
        guessed = [(rows_of(row), 1e3 * seconds) for row in mine if (seconds := _modelled(row))]
        if guessed:
            x, y = zip(*guessed, strict=True)
            above.loglog(x, y, f"{mark}--", color=colour, mfc="white", linewidth=1.1, label=f"{name}, modelled")
            below.loglog(x, np.divide(y, x), f"{mark}--", color=colour, mfc="white", linewidth=1.1)
        below.loglog(sizes, each, f"{mark}-", color=colour)
        least = min(range(len(each)), key=each.__getitem__)
        below.loglog(sizes[least], each[least], "o", color=colour, markersize=13, mfc="none")
        best.append(f"{name}: best with {sizes[least]} rows, {each[least]:.4g} ms for each")
    plain(above.yaxis)
    above.set_ylabel("ms for a batch")
    below.set_ylabel("ms for each row")
    below.set_xlabel("rows in a batch (the ring marks the least time for each row)")
    ticks_at(below, sorted({rows_of(row) for mine in groups.values() for row in mine}))
    legend(above, groups, record.machine, modelled=any(_modelled(row) for mine in groups.values() for row in mine))
    return Plot("batch", "Batches", f"Time over the size of the batch. {'; '.join(best[:3])}.", figure)


def rates_by_shape(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """A map of GOPS over K and N, of the type, M, layout and cores that most shapes were measured with."""
    rows = [row for row in record.rows if real(row, "gops") and sized(row)]
    groups = {
        name: mine
        for name, mine in grouped(rows, [each for each in fields(rows) if each not in "kn"]).items()
        if len(mine) > max(len({row.case[side] for row in mine}) for side in "kn") > 1
    }
    if not groups:
        raise NothingToDrawError("no product was measured with several K for an N, and several N for a K")
    name, mine = max(groups.items(), key=lambda group: len(group[1]))
    ks, ns = (sorted({int(number(row.case[side])) for row in mine}) for side in "kn")
    ks, ns = ks[-CELLS:], ns[-CELLS:]
    cells = np.full((len(ks), len(ns)), np.nan)
    for row in mine:
        if row.case["k"] in ks and row.case["n"] in ns:
            cells[ks.index(int(number(row.case["k"]))), ns.index(int(number(row.case["n"])))] = row.figures["gops"]
    figure, axes = new_figure(1, (max(8.0, 1.8 + 0.75 * len(ns)), max(4.0, 1.6 + 0.5 * len(ks))))
    place(axes, f"GOPS by shape, {name}", record.machine)
    shown = axes.imshow(cells, cmap="cividis", aspect="auto", origin="lower")
    middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
    for (row_, column), rate in np.ndenumerate(cells):
        if np.isfinite(rate):
            axes.text(
                column, row_, f"{rate:.3g}", ha="center", va="center", fontsize=9,
                color="white" if rate < middle else "black",
            )  # fmt: skip
    axes.set_xticks(range(len(ns)), [str(n) for n in ns], rotation=45 if len(ns) > 8 else 0)
    axes.set_yticks(range(len(ks)), [str(k) for k in ks])
    axes.set_xlabel("N")
    axes.set_ylabel("K")
    axes.grid(False)
    figure.colorbar(shown, ax=axes, label="GOPS, measured", pad=0.02)
    text = (
        f"Map of measured GOPS of {name} over {len(ks)} K and {len(ns)} N, "
        f"from {np.nanmin(cells):.1f} to {np.nanmax(cells):.1f}; empty cells were not measured."
    )
    return Plot("heat", f"GOPS by shape, {name}", text, figure)


def bandwidth_curve(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """GB/s over the size of what is read, by who reads."""
    rows = [row for row in record.rows if row.what == "bandwidth" and real(row, "kib") and real(row, "gb_per_s")]
    if not rows:
        raise NothingToDrawError("no row has a bandwidth and a size")
    figure, axes = titled_axes("Bandwidth over the size of what is read", record.machine)
    groups = grouped(rows, ("reads", "cores"))
    best = []
    for index, (name, mine) in enumerate(groups.items()):
        colour, mark = style(index)
        points = sorted((number(row.figures["kib"]), number(row.figures["gb_per_s"])) for row in mine)
        axes.loglog(*zip(*points, strict=True), f"{mark}-", color=colour, label=f"{name}, measured")
        guessed = sorted((number(row.figures["kib"]), _rate_of(row)) for row in mine if real(row, "modelled_gb_per_s"))
        if guessed:
            x, y = zip(*guessed, strict=True)
            axes.loglog(x, y, f"{mark}--", color=colour, mfc="white", linewidth=1.1, label=f"{name}, modelled")
        best.append(f"{name}: at most {max(rate for _, rate in points):.1f} GB/s")
    axes.set_xscale("log", base=2)
    plain(axes.xaxis)
    plain(axes.yaxis)
    axes.set_xlabel("KiB")
    axes.set_ylabel("GB/s")
    legend(axes, groups, record.machine, modelled=any(real(row, "modelled_gb_per_s") for row in rows))
    return Plot("bandwidth", "Bandwidth", f"Measured bandwidth. {'; '.join(best)}.", figure)


def tokens_per_second(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Tokens per second of prompts and of generation, measured and modelled."""
    rows = spread([row for row in record.rows if real(row, "tokens_per_second")], BARS)
    if not rows:
        raise NothingToDrawError("no row has tokens per second")
    figure, axes = new_figure(1, (8, 1.8 + 0.45 * len(rows)))
    place(axes, "Tokens per second", record.machine)
    at = np.arange(len(rows))
    rates = [number(row.figures["tokens_per_second"]) for row in rows]
    around = [number(row.figures.get("plus_minus")) if real(row, "plus_minus") else 0.0 for row in rows]
    axes.barh(at, rates, xerr=around, color=COLOURS[0], height=0.6, ecolor="#444444", capsize=3, label="measured")
    guessed = [
        (number(row.figures["modelled_tokens_per_second"]), y)
        for y, row in zip(at, rows, strict=True)
        if real(row, "modelled_tokens_per_second")
    ]
    if guessed:
        axes.plot(
            *zip(*guessed, strict=True), "D", color=COLOURS[1], mfc="white", markersize=7, linestyle="none",
            label=f"modelled for {short(record.machine.chip)}",
        )  # fmt: skip
    axes.set_yticks(at, [short(row.label) for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("tokens per second")
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    told = [f"{row.label}: {rate:.1f} ± {plus:.1f}" for row, rate, plus in zip(rows, rates, around, strict=True)]
    return Plot("tokens", "Tokens per second", f"Measured tokens per second. {'; '.join(told[:8])}.", figure)


def _rate_of(row: Row) -> float:
    return number(row.figures["modelled_gb_per_s"])


#: What a product does besides its run, in its order; steps that are not timed are left out.
STEPS = {
    "pack_a": "pack A", "sync_a": "sync A", "bind": "bind", "run": "run", "sync_c": "sync C", "unpack_c": "unpack C",
}  # fmt: skip


def steps(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Where the time of each case goes, as shares of all its steps."""
    every = [row for row in record.rows if sum(step in row.seconds for step in STEPS) > 2]
    if not every:
        raise NothingToDrawError("no row has times of the steps of a product")
    rows = spread(every, BARS)
    title = "Where the time goes" + (f", {len(rows)} of {len(every)} cases" if len(rows) < len(every) else "")
    figure, axes = new_figure(1, (8, 1.6 + 0.27 * len(rows)))
    place(axes, title, record.machine)
    medians = [{step: summarise(row.seconds[step]).median for step in STEPS if step in row.seconds} for row in rows]
    totals = [sum(each.values()) or 1.0 for each in medians]
    begin = np.zeros(len(rows))
    for index, (step, name) in enumerate(STEPS.items()):
        shares = np.array([100 * each.get(step, 0.0) / total for each, total in zip(medians, totals, strict=True)])
        axes.barh(range(len(rows)), shares, left=begin, color=COLOURS[index], edgecolor="white", label=name, height=0.8)
        begin += shares
    labels = [f"{short(row.label)}   {duration(total)}" for row, total in zip(rows, totals, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the medians of all steps, measured")
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    run = [100 * each.get("run", 0.0) / total for each, total in zip(medians, totals, strict=True)]
    text = f"Shares of the steps of {len(rows)} cases; the run takes {min(run):.0f} to {max(run):.0f} % of each."
    return Plot("steps", title, text, figure)


def _over_rows(
    machine: Machine, rows: Sequence[Row], kind: str, title: str, unit: str, value: Callable[[Row, float], float]
) -> Plot:  # fmt: skip
    rows = [row for row in rows if sized(row)]
    groups = {
        name: mine for name, mine in grouped(rows, but_m(rows)).items() if len({rows_of(row) for row in mine}) > 1
    }
    if not groups:
        raise NothingToDrawError("no product was measured with several M")
    figure, axes = titled_axes(title, machine)
    chosen = spread(list(groups), len(COLOURS) if len(groups) == len(COLOURS) else NAMED)
    for name, mine in groups.items():
        mine = sorted(mine, key=rows_of)
        named = name in chosen
        index = chosen.index(name) if named else 0
        colour = COLOURS[index] if named else "#c8c8c8"
        at = [rows_of(row) for row in mine]
        values = [value(row, summarise(row.seconds[row.main]).median) for row in mine]
        axes.plot(
            at, values, f"{MARKS[index]}-" if named else "-", color=colour, markersize=6, linewidth=1.6,
            label=f"{name}, measured", zorder=3 if named else 1,
        )  # fmt: skip
        guessed = [(rows_of(row), value(row, each)) for row in mine if (each := _modelled(row))]
        if named and guessed:
            axes.plot(
                *zip(*guessed, strict=True), f"{MARKS[index]}--", color=colour, markersize=5, mfc="white",
                linewidth=1.1, label=f"{name}, modelled", zorder=2,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks_at(axes, sorted({rows_of(row) for mine in groups.values() for row in mine}))
    axes.set_xlabel("M, rows of A")
    axes.set_ylabel(unit)
    legend(axes, chosen, machine, modelled=any(row.modelled for row in rows), others=len(groups) - len(chosen))
    name, mine = next(iter(groups.items()))
    ends = [
        f"{value(row, summarise(row.seconds[row.main]).median):.3g} at M = {rows_of(row)}"
        for row in sorted(mine, key=rows_of)
    ]
    text = f"{title}: {len(groups)} products. Of {name}, measured {unit}: {', '.join(ends[:8])}."
    return Plot(kind, title, text, figure)


def _modelled(row: Row) -> float | None:
    """Modelled seconds of what a row is about."""
    return row.modelled.get(row.main) or None


def _rate(row: Row, seconds: float) -> float:
    """GOPS of a row, if it took so long."""
    return number(row.figures["gops"]) * summarise(row.seconds[row.main]).median / seconds


def _type_of(row: Row) -> MatmulType | None:
    """The matmul type that computed it, by its name, or as a scheme's row says."""
    named = {each.name.lower(): each for each in MatmulType}
    return TYPES.get(str(row.case.get("type"))) or named.get(str(row.figures.get("matmul_type")))


#: The plots by name, the most telling first.
KINDS: Mapping[str, Callable[[Record, Mapping[str, TimingModel]], Plot]] = {
    "batch": batch_curve,
    "bandwidth": bandwidth_curve,
    "tokens": tokens_per_second,
    "roofline": roofline,
    "gops": rates_over_rows,
    "per-row": time_per_row,
    "heat": rates_by_shape,
    "steps": steps,
}
