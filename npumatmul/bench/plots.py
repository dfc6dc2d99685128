"""Plots of a run. What was measured is filled and solid, what is modelled hollow and dashed, and each says which."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping

from npumatmul.bench.plot_kinds import KINDS, NothingToDrawError, Plot
from npumatmul.bench.plot_parts import STYLE
from npumatmul.bench.record import Record
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.extras import check_installed

__all__ = ["KINDS", "Plot", "drawn", "picture", "plots"]


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

    with matplotlib.rc_context(STYLE):
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
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": plot.kind}):
        plot.figure.savefig(data, dpi=130, format=form, metadata=dates.get(form))
    return data.getvalue()
