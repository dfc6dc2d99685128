"""What plots of a run have in common: axes, legends, names, and rows by what they say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from npumatmul.bench.record import Machine, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

_T = TypeVar("_T")

#: Colours that people with any colour vision tell apart, dark enough on white (Okabe and Ito's, without the yellow).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#56b4e9", "#7a5200", "#332288", "#999999")
#: Lines of a plot that have a colour and a name of their own; the rest are grey.
NAMED = len(COLOURS) - 1
MARKS = "osD^vPX*"
#: Bars, and cells of a side of a map, that can be told apart.
BARS, CELLS = 24, 16
#: Letters of a name beside which there is room for what is drawn.
_NAME = 48
#: Lines of a legend that there is room for beside what is drawn.
_INSIDE = 5
#: Names of cases may have been made up by somebody else: nothing in them is a formula.
STYLE: Any = {"text.parse_math": False, "font.size": 10.0}


def new_figure(count: int, size: tuple[float, float], sharex: bool = False) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    axes = figure.subplots(count, sharex=sharex)
    for each in np.atleast_1d(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.grid(True, which="major", color="#dddddd", linewidth=0.8)
        each.set_axisbelow(True)
    return figure, axes


def titled_axes(title: str, machine: Machine) -> tuple[Figure, Axes]:
    figure, axes = new_figure(1, (8, 5))
    place(axes, title, machine)
    return figure, axes


def place(axes: Axes, title: str, machine: Machine) -> None:
    """The title, and below it where the times are from: a picture is passed on without the page that it stood on."""
    axes.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold")
    axes.annotate(
        f"measured on: {short(machine.timed_on)}", (0, 1), (0, 6), xycoords="axes fraction",
        textcoords="offset points", fontsize=9, color="#555555",
    )  # fmt: skip


def legend(
    axes: Axes, names: Iterable[str], machine: Machine, roof: bool = False, modelled: bool = True, others: int = 0
) -> None:
    """What colours mean, then what is measured and what is modelled."""
    from matplotlib.lines import Line2D

    handles: list[Line2D] = []
    for index, name in enumerate(names):
        colour, mark = style(index)
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
                label=f"modelled for {short(machine.chip)}",
            )
        )
    if roof:
        handles.append(Line2D([], [], linestyle="--", color=grey, label="modelled roof of as many cores"))
    look: Any = {"handles": handles, "fontsize": 8.5, "edgecolor": "#dddddd", "framealpha": 0.9}
    if len(handles) <= _INSIDE:
        axes.legend(**look)
    else:  # it would cover what is drawn
        axes.figure.legend(loc="outside right upper", **look)


def style(index: int) -> tuple[str, str]:
    """Colour and mark of a group; no two of 64 have both in common."""
    return COLOURS[index % len(COLOURS)], MARKS[(index + index // len(COLOURS)) % len(MARKS)]


def plain(axis: Axis, more: bool = True) -> None:
    """Numbers of a logarithmic axis as they are, not as powers; with `more`, those at 2 and 5 times them, too."""
    from matplotlib.ticker import FuncFormatter

    def between(value: float, _: int | None) -> str:
        return f"{value:g}" if more and f"{value:.0e}"[0] in "25" else ""

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(between))


def ticks_at(axes: Axes, values: Sequence[int]) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    if len(values) <= CELLS:
        axes.xaxis.set_major_locator(FixedLocator(values))
        axes.xaxis.set_minor_locator(NullLocator())
    plain(axes.xaxis)
    plain(axes.yaxis)


def grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    """Rows by what these fields of their cases say, in words."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        words = Row(row.what, {name: row.case[name] for name in names if name in row.case}, row.seconds).label
        groups.setdefault(words, []).append(row)
    named: dict[str, list[Row]] = {}
    for words, mine in groups.items():
        name = short(words)
        named[name if name not in named else f"{name} ({len(named)})"] = mine
    return named


def spread(every: Sequence[_T], most: int) -> list[_T]:
    """At most so many of them, evenly from the first to the last."""
    if len(every) <= most:
        return list(every)
    return [every[round(index * (len(every) - 1) / (most - 1))] for index in range(most)]


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Examples
    --------
    >>> duration(1.234e-5), duration(0.0235), duration(3.0)
    ('12.3 µs', '23.5 ms', '3.00 s')
    """
    for unit, scale in (("µs", 1e6), ("ms", 1e3), ("s", 1.0)):
        if seconds * scale < 1000 or unit == "s":
            break
    digits = 2 if seconds * scale < 10 else 1 if seconds * scale < 100 else 0
    return f"{seconds * scale:.{digits}f} {unit}"


def short(text: str) -> str:
    """A name that a plot has room for, of printable characters."""
    text = "".join(each if each.isprintable() else "?" for each in text)
    return text if len(text) <= _NAME else text[: _NAME - 3] + "..."


def fields(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.case))


def but_m(rows: Sequence[Row]) -> list[str]:
    return [name for name in fields(rows) if name != "m"]


def sized(row: Row) -> bool:
    return all(isinstance(row.case.get(name), int) and number(row.case[name]) > 0 for name in "mkn")


def rows_of(row: Row) -> int:
    return int(number(row.case["m"]))


def real(row: Row, name: str) -> bool:
    value = row.figures.get(name)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0


def number(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else float("nan")
