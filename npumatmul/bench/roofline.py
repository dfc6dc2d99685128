"""A roofline plot: operations per second against operations per byte, with the modelled roof of the chip."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from npumatmul.bench.cases import TYPES
from npumatmul.bench.measure import Measurement
from npumatmul.chips.timing import TIMINGS, TimingModel
from npumatmul.extras import check_installed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["roofline"]


def roofline(
    results: Sequence[Measurement], soc: str, kind: str = "png", timings: Mapping[str, TimingModel] = TIMINGS
) -> bytes:
    """Draw measured points and, where the chip has a model, the roof of as many cores as they ran on; both labelled.

    Parameters
    ----------
    results : sequence of Measurement
    soc : str
        Chip.
    kind : str
        Format of the picture, as matplotlib names it.
    timings : mapping of str to TimingModel
        By chip.

    Returns
    -------
    bytes
        The picture.

    Raises
    ------
    MissingPackageError
        If matplotlib is not installed: it belongs to the extra ``bench``.
    """
    picture = io.BytesIO()
    figure(results, soc, timings).savefig(picture, dpi=150, format=kind)
    return picture.getvalue()


def figure(results: Sequence[Measurement], soc: str, timings: Mapping[str, TimingModel] = TIMINGS) -> Figure:
    """As `roofline`, to be drawn on."""
    check_installed("matplotlib", "a plot")
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8, 5), layout="constrained")
    axes = drawn.subplots()
    where = "CPU simulation" if any(result.simulated for result in results) else "NPU"
    model = timings.get(soc)
    groups = dict.fromkeys((result.case.type_name, result.case.cores) for result in results)
    for index, (name, cores) in enumerate(groups):
        mine = [result for result in results if (result.case.type_name, result.case.cores) == (name, cores)]
        intensity = [2 * result.case.macs / result.case.nbytes for result in mine]
        rates = [result.operations_per_second / 1e9 for result in mine]
        on = f"{cores} core{'s' if cores > 1 else ''}"
        axes.loglog(intensity, rates, "o", color=f"C{index}", label=f"{name}, {on}, measured on: {where}")
        if model is not None and model.knows(TYPES[name]):
            span = np.geomspace(0.5, 5000, 50)
            roof = np.minimum(cores * model.peak[TYPES[name].a], span * model.bandwidth(cores)) / 1e9
            axes.loglog(span, roof, "--", color=f"C{index}", label=f"{name}, modelled roof of {on} of {soc}")
    axes.set_xlabel("operations per byte of A, B and C")
    axes.set_ylabel("GOPS")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    return drawn
