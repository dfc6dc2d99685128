"""Plots of a run. What was measured is filled and solid, what is modelled hollow and dashed, and each says which."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from npumatmul.bench.cases import TYPES
from npumatmul.bench.record import Machine, Record, Row
from npumatmul.bench.statistics import summarise
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.extras import check_installed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["KINDS", "Plot", "drawn", "picture", "plots"]

_T = TypeVar("_T")

#: Colours that people with any colour vision tell apart, dark enough on white (Okabe and Ito's, without the yellow).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#7a5200", "#332288", "#999999")
#: Lines of a plot that have a colour and a name of their own; the rest are grey.
_NAMED = len(COLOURS) - 1
_MARKS = "osD^vPX*"
#: Bars, and cells of a side of a map, that can be told apart.
_BARS, _CELLS = 24, 16
#: Letters of a name beside which there is room for what is drawn.
_NAME = 48
#: Lines of a legend that there is room for beside what is drawn.
_INSIDE = 5
#: Names of cases may have been made up by somebody else: nothing in them is a formula.
_STYLE: Any = {"text.parse_math": False, "font.size": 10.0}


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


def plots(record: Record, timings: Mapping[str, TimingModel] = TIMINGS) -> list[Plot]:
    """Every plot that the rows of a run are enough for.

    Parameters
    ----------
    record : Record
    timings : mapping of str to TimingModel
        By chip; their roofs are drawn.

    Returns
    -------
    list of Plot

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed: it belongs to the extra ``bench``.
    """
    check_installed("matplotlib", "a plot")
    found = []
    for kind in KINDS:
        with contextlib.suppress(NothingToDrawError):
            found.append(_draw(kind, record, timings))
    return found


def drawn(record: Record, kind: str | None = None, timings: Mapping[str, TimingModel] = TIMINGS) -> Plot:
    """One plot of a run.

    Parameters
    ----------
    record : Record
    kind : str, optional
        A key of `KINDS`; by default the first that the rows are enough for.
    timings : mapping of str to TimingModel

    Returns
    -------
    Plot

    Raises
    ------
    ValueError
        If there is nothing to draw.
    MissingPackageError
        If matplotlib is not installed.
    """
    check_installed("matplotlib", "a plot")
    if kind is None:
        every = plots(record, timings)
        if not every:
            raise ValueError("nothing can be plotted: no row has operations and bytes, or several rows of a product")
        return every[0]
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no plot; there are {', '.join(KINDS)}")
    try:
        return _draw(kind, record, timings)
    except NothingToDrawError as error:
        raise ValueError(f"the plot {kind!r} cannot be drawn: {error}") from None


def _draw(kind: str, record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        return KINDS[kind](record, timings)


def picture(plot: Plot, form: str = "png") -> bytes:
    """A plot as a file.

    Parameters
    ----------
    plot : Plot
    form : str
        As matplotlib names it: ``"png"``, ``"svg"``, ``"pdf"``, ...

    Returns
    -------
    bytes
    """
    import matplotlib

    data = io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": plot.kind}):
        plot.figure.savefig(data, dpi=130, format=form, metadata=dates.get(form))
    return data.getvalue()


def roofline(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Rates over operations per byte, under the modelled roof of as many cores as each point ran on."""
    rows = [row for row in record.rows if _real(row, "gops") and _real(row, "ops_per_byte")]
    if not rows:
        raise NothingToDrawError("no row has operations and bytes")
    machine, model = record.machine, timings.get(record.machine.chip)
    figure, axes = _axes("Roofline", machine)
    groups = _groups(rows, ("type", "cores"))
    intensities = [row.figures["ops_per_byte"] for row in rows]
    span = np.geomspace(min(0.5, *map(_float, intensities)), max(5000.0, *map(_float, intensities)), 200)
    roofed = False
    for index, (name, mine) in enumerate(groups.items()):
        colour, mark = _style(index)
        at = [_float(row.figures["ops_per_byte"]) for row in mine]
        rates = [_float(row.figures["gops"]) for row in mine]
        axes.loglog(at, rates, mark, color=colour, markersize=6, label=f"{name}, measured")
        guessed = [(x, _modelled_rate(row)) for x, row in zip(at, mine, strict=True) if row.modelled.get("run")]
        if guessed:
            axes.loglog(
                *zip(*guessed, strict=True), mark, color=colour, markersize=6, mfc="white", label=f"{name}, modelled"
            )
        mm_type = TYPES.get(str(mine[0].case.get("type")))
        cores = mine[0].case.get("cores", 1)
        if model is not None and mm_type is not None and model.knows(mm_type) and isinstance(cores, int):
            roof = np.minimum(cores * model.peak[mm_type.a], span * model.bandwidth(cores)) / 1e9
            axes.loglog(span, roof, "--", color=colour, linewidth=1.2, label=f"{name}, modelled roof of {machine.chip}")
            roofed = True
    _plain(axes.xaxis)
    _plain(axes.yaxis)
    axes.set_xlabel("operations per byte of A, B and C")
    axes.set_ylabel("GOPS")
    _legend(axes, groups, machine, roof=roofed)
    best = max(rows, key=lambda row: _float(row.figures["gops"]))
    text = (
        f"Roofline of {len(rows)} cases in {len(groups)} groups of type and cores. The fastest measured is "
        f"{best.label} with {_float(best.figures['gops']):.1f} GOPS at "
        f"{_float(best.figures['ops_per_byte']):.1f} operations per byte."
    )
    return Plot("roofline", "Roofline", text, figure)


def rates_over_rows(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """GOPS over M, a line for each product that was measured with several."""
    rows = [row for row in record.rows if _real(row, "gops")]
    return _over_rows(
        record.machine, rows, "gops", "GOPS over the rows of A", "GOPS",
        lambda row, seconds: _float(row.figures["gops"]) * summarise(row.seconds[row.main]).median / seconds,
    )  # fmt: skip


def time_per_row(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Microseconds for each row over M."""
    rows = [row for row in record.rows if row.what != "batch"]
    return _over_rows(
        record.machine, rows, "per-row", "Time for each row of A", "µs for each row",
        lambda row, seconds: 1e6 * seconds / _float(row.case["m"]),
    )  # fmt: skip


def batch_curve(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Milliseconds for a batch and for each of its rows over the size of the batch."""
    rows = [row for row in record.rows if row.what == "batch" and isinstance(row.case.get("m"), int)]
    groups = {name: mine for name, mine in _groups(rows, _but_m(rows)).items() if len(mine) > 1}
    if not groups:
        raise NothingToDrawError("no product was measured with batches of several sizes")
    groups = {name: groups[name] for name in _spread(list(groups), len(COLOURS))}
    figure, (above, below) = _figure(2, (8, 6.4), sharex=True)
    _place(above, "Batches", record.machine)
    best = []
    for index, (name, mine) in enumerate(groups.items()):
        mine = sorted(mine, key=_m)
        colour, mark = _style(index)
        sizes = [_m(row) for row in mine]
        whole = [1e3 * summarise(row.seconds[row.main]).median for row in mine]
        each = [ms / size for ms, size in zip(whole, sizes, strict=True)]
        above.loglog(sizes, whole, f"{mark}-", color=colour, label=f"{name}, measured")
        below.loglog(sizes, each, f"{mark}-", color=colour)
        least = min(range(len(each)), key=each.__getitem__)
        below.loglog(sizes[least], each[least], "o", color=colour, markersize=13, mfc="none")
        best.append(f"{name}: best with {sizes[least]} rows, {each[least]:.4g} ms for each")
    _plain(above.yaxis)
    above.set_ylabel("ms for a batch")
    below.set_ylabel("ms for each row")
    below.set_xlabel("rows in a batch (the ring marks the least time for each row)")
    _ticks_at(below, sorted({_m(row) for mine in groups.values() for row in mine}))
    _legend(above, groups, record.machine, modelled=False)
    return Plot("batch", "Batches", f"Time over the size of the batch. {'; '.join(best[:3])}.", figure)


def rates_by_shape(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """A map of GOPS over K and N, of the type, M, layout and cores that most shapes were measured with."""
    rows = [row for row in record.rows if _real(row, "gops") and _sized(row)]
    groups = {
        name: mine
        for name, mine in _groups(rows, [each for each in _fields(rows) if each not in "kn"]).items()
        if len({row.case["k"] for row in mine}) > 1 and len({row.case["n"] for row in mine}) > 1
    }
    if not groups:
        raise NothingToDrawError("no product was measured with several K and several N")
    name, mine = max(groups.items(), key=lambda group: len(group[1]))
    ks, ns = (sorted({int(_float(row.case[side])) for row in mine}) for side in "kn")
    ks, ns = ks[-_CELLS:], ns[-_CELLS:]
    cells = np.full((len(ks), len(ns)), np.nan)
    for row in mine:
        if row.case["k"] in ks and row.case["n"] in ns:
            cells[ks.index(int(_float(row.case["k"]))), ns.index(int(_float(row.case["n"])))] = row.figures["gops"]
    figure, axes = _figure(1, (max(8.0, 1.8 + 0.75 * len(ns)), max(4.0, 1.6 + 0.5 * len(ks))))
    _place(axes, f"GOPS by shape, {name}", record.machine)
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


#: What a product does besides its run, in its order; steps that are not timed are left out.
STEPS = {
    "pack_a": "pack A", "sync_a": "sync A", "bind": "bind", "run": "run", "sync_c": "sync C", "unpack_c": "unpack C",
}  # fmt: skip


def steps(record: Record, timings: Mapping[str, TimingModel]) -> Plot:
    """Where the time of each case goes, as shares of all its steps."""
    every = [row for row in record.rows if sum(step in row.seconds for step in STEPS) > 2]
    if not every:
        raise NothingToDrawError("no row has times of the steps of a product")
    rows = _spread(every, _BARS)
    title = "Where the time goes" + (f", {len(rows)} of {len(every)} cases" if len(rows) < len(every) else "")
    figure, axes = _figure(1, (8, 1.6 + 0.27 * len(rows)))
    _place(axes, title, record.machine)
    medians = [{step: summarise(row.seconds[step]).median for step in STEPS if step in row.seconds} for row in rows]
    totals = [sum(each.values()) or 1.0 for each in medians]
    begin = np.zeros(len(rows))
    for index, (step, name) in enumerate(STEPS.items()):
        shares = np.array([100 * each.get(step, 0.0) / total for each, total in zip(medians, totals, strict=True)])
        axes.barh(range(len(rows)), shares, left=begin, color=COLOURS[index], edgecolor="white", label=name, height=0.8)
        begin += shares
    labels = [f"{_short(row.label)}   {_duration(total)}" for row, total in zip(rows, totals, strict=True)]
    axes.set_yticks(range(len(rows)), labels, fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the medians of all steps, measured")
    axes.grid(False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9, frameon=False)
    run = [100 * each.get("run", 0.0) / total for each, total in zip(medians, totals, strict=True)]
    text = f"Shares of the steps of {len(rows)} cases; the run takes {min(run):.0f} to {max(run):.0f} % of each."
    return Plot("steps", title, text, figure)


#: The plots by name, the most telling first.
KINDS: Mapping[str, Callable[[Record, Mapping[str, TimingModel]], Plot]] = {
    "batch": batch_curve,
    "roofline": roofline,
    "gops": rates_over_rows,
    "per-row": time_per_row,
    "heat": rates_by_shape,
    "steps": steps,
}


def _over_rows(
    machine: Machine, rows: Sequence[Row], kind: str, title: str, unit: str, value: Callable[[Row, float], float]
) -> Plot:  # fmt: skip
    rows = [row for row in rows if _sized(row)]
    groups = {name: mine for name, mine in _groups(rows, _but_m(rows)).items() if len({_m(row) for row in mine}) > 1}
    if not groups:
        raise NothingToDrawError("no product was measured with several M")
    figure, axes = _axes(title, machine)
    chosen = _spread(list(groups), len(COLOURS) if len(groups) == len(COLOURS) else _NAMED)
    for name, mine in groups.items():
        mine = sorted(mine, key=_m)
        named = name in chosen
        index = chosen.index(name) if named else 0
        colour = COLOURS[index] if named else "#c8c8c8"
        at = [_m(row) for row in mine]
        values = [value(row, summarise(row.seconds[row.main]).median) for row in mine]
        axes.plot(
            at, values, f"{_MARKS[index]}-" if named else "-", color=colour, markersize=6, linewidth=1.6,
            label=f"{name}, measured", zorder=3 if named else 1,
        )  # fmt: skip
        guessed = [(_m(row), value(row, row.modelled["run"])) for row in mine if row.modelled.get("run")]
        if named and guessed:
            axes.plot(
                *zip(*guessed, strict=True), f"{_MARKS[index]}--", color=colour, markersize=5, mfc="white",
                linewidth=1.1, label=f"{name}, modelled", zorder=2,
            )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _ticks_at(axes, sorted({_m(row) for mine in groups.values() for row in mine}))
    axes.set_xlabel("M, rows of A")
    axes.set_ylabel(unit)
    _legend(axes, chosen, machine, modelled=any(row.modelled for row in rows), others=len(groups) - len(chosen))
    name, mine = next(iter(groups.items()))
    ends = [
        f"{value(row, summarise(row.seconds[row.main]).median):.3g} at M = {_m(row)}" for row in sorted(mine, key=_m)
    ]
    text = f"{title}: {len(groups)} products. Of {name}, measured {unit}: {', '.join(ends[:8])}."
    return Plot(kind, title, text, figure)


def _figure(count: int, size: tuple[float, float], sharex: bool = False) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(count, sharex=sharex)
    for each in np.atleast_1d(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, which="major", color="#dddddd", linewidth=0.8)
        each.set_axisbelow(True)
    return figure, axes


def _axes(title: str, machine: Machine) -> tuple[Figure, Axes]:
    figure, axes = _figure(1, (8, 5))
    _place(axes, title, machine)
    return figure, axes


def _place(axes: Axes, title: str, machine: Machine) -> None:
    """The title, and below it where the times are from: a picture is passed on without the page that it stood on."""
    axes.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold")
    axes.annotate(
        f"measured on: {_short(machine.timed_on)}", (0, 1), (0, 6), xycoords="axes fraction",
        textcoords="offset points", fontsize=9, color="#555555",
    )  # fmt: skip


def _legend(
    axes: Axes, names: Iterable[str], machine: Machine, roof: bool = False, modelled: bool = True, others: int = 0
) -> None:
    """What colours mean, then what is measured and what is modelled."""
    from matplotlib.lines import Line2D

    handles: list[Line2D] = []
    for index, name in enumerate(names):
        colour, mark = _style(index)
        handles.append(Line2D([], [], marker=mark, linestyle="none", color=colour, label=name))
    if others:
        handles.append(Line2D([], [], color="#c8c8c8", label=f"{others} more, measured"))
    grey = "#444444"
    handles.append(Line2D([], [], marker="o", linestyle="-", color=grey, label="measured"))
    if modelled:
        handles.append(
            Line2D(
                [],
                [],
                marker="o",
                linestyle="--",
                color=grey,
                mfc="white",
                label=f"modelled for {_short(machine.chip)}",
            )
        )
    if roof:
        handles.append(
            Line2D([], [], linestyle="--", color=grey, label=f"modelled roof of {machine.chip}, of as many cores")
        )
    look: Any = {"handles": handles, "fontsize": 8.5, "edgecolor": "#dddddd", "framealpha": 0.9}
    if len(handles) <= _INSIDE:
        axes.legend(**look)
    else:  # it would cover what is drawn
        axes.figure.legend(loc="outside right upper", **look)


def _style(index: int) -> tuple[str, str]:
    """Colour and mark of a group; no two of 64 have both in common."""
    return COLOURS[index % len(COLOURS)], _MARKS[(index + index // len(COLOURS)) % len(_MARKS)]


def _plain(axis: Axis) -> None:
    """Numbers of a logarithmic axis as they are, not as powers."""
    from matplotlib.ticker import FuncFormatter, LogFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1, 0.4)))


def _ticks_at(axes: Axes, values: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    if len(values) <= _CELLS:
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
    _plain(axes.xaxis)
    _plain(axes.yaxis)


def _groups(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by what these fields of their cases say, in words."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        words = Row(row.what, {name: row.case[name] for name in names if name in row.case}, row.seconds).label
        groups.setdefault(words, []).append(row)
    named: dict[str, list[Row]] = {}
    for words, mine in groups.items():
        name = _short(words)
        named[name if name not in named else f"{name} ({len(named)})"] = mine
    return named


def _spread(every: Sequence[_T], most: int) -> list[_T]:
    """At most so many of them, evenly from the first to the last."""
    if len(every) <= most:
        return list(every)
    return [every[round(index * (len(every) - 1) / (most - 1))] for index in range(most)]


def _duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Examples
    --------
    >>> _duration(1.234e-5), _duration(0.02345), _duration(3.0)
    ('12.3 µs', '23.5 ms', '3.00 s')
    """
    for unit, scale in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)):
        if seconds * scale < 1000 or unit == "s":
            break
    digits = 2 if seconds * scale < 10 else 1 if seconds * scale < 100 else 0
    return f"{seconds * scale:.{digits}f} {unit}"


def _short(text: str) -> str:
    """A name that a plot has room for, of printable characters."""
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= _NAME else text[: _NAME - 3] + "..."


def _fields(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.case))


def _but_m(rows: Sequence[Row]) -> list[str]:
    return [name for name in _fields(rows) if name != "m"]


def _sized(row: Row) -> bool:
    return all(isinstance(row.case.get(name), int) and _float(row.case[name]) > 0 for name in "mkn")


def _m(row: Row) -> int:
    return int(_float(row.case["m"]))


def _real(row: Row, name: str) -> bool:
    value = row.figures.get(name)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def _float(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")


def _modelled_rate(row: Row) -> float:
    return _float(row.figures["gops"]) * summarise(row.seconds[row.main]).median / row.modelled["run"]
