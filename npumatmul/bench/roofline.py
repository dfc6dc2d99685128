"""A roofline plot: operations per second against operations per byte, with the modelled roof of the chip."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from npumatmul.bench.cases import TYPES
from npumatmul.bench.measure import Measurement
from npumatmul.chips.timing import TIMINGS

__all__ = ["roofline"]


def roofline(results: Sequence[Measurement], soc: str, kind: str = "png") -> bytes:
    """Draw measured points and, where the chip has a model, its roof; both labelled.

    Parameters
    ----------
    results : sequence of Measurement
    soc : str
        Chip.
    kind : str
        Format of the picture, as matplotlib names it.

    Returns
    -------
    bytes
        The picture.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed: it belongs to the extra ``bench``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    where = "CPU simulation" if any(result.simulated for result in results) else "NPU"
    model = TIMINGS.get(soc)
    for index, name in enumerate(dict.fromkeys(result.case.type_name for result in results)):
        mine = [result for result in results if result.case.type_name == name]
        intensity = [2 * result.case.macs / result.case.nbytes for result in mine]
        rates = [result.operations_per_second / 1e9 for result in mine]
        axes.loglog(intensity, rates, "o", color=f"C{index}", label=f"{name}, measured on: {where}")
        if model is not None:
            span = np.geomspace(0.5, 5000, 50)
            peak = model.peak[TYPES[name].a]
            roof = np.minimum(peak, span * model.bandwidth_one_core) / 1e9
            axes.loglog(span, roof, "--", color=f"C{index}", label=f"{name}, modelled roof of one {soc} core")
    axes.set_xlabel("operations per byte of A, B and C")
    axes.set_ylabel("GOPS")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=150, format=kind)
    pyplot.close(figure)
    return picture.getvalue()
