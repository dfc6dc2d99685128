"""Where a model's error comes from: each layer's output against the reference's, alone and with all before it.

*Alone* is the error of one layer that is fed what it is fed in the reference; *entire* is the error of its output in
the model as it runs, all layers up to it being what they are there. These are the two columns of the vendor's accuracy
analysis.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from npumatmul.extras import check_installed
from npumatmul.llm.arguments import check_progress
from npumatmul.llm.measure.evaluation import ReadTokens, Window
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.models.taps import TappedLinear
from npumatmul.nn.product import Float32

__all__ = ["ErrorSums", "LayerError", "analyze_layers", "error_plot", "errors_as_csv"]

ROWS = 64
"""Tokens whose inputs and outputs of all layers are kept at a time."""

AnalysisProgress = Callable[[int, int, Sequence["LayerError"]], None]
"""Called with what is done, what there is to do (in tokens that either model reads), and the errors of all layers up to
the last token that both have read: none before there is one."""


@dataclass
class ErrorSums:
    """Sums from which the error of one array against another follows, however many pieces they come in.

    Attributes
    ----------
    expected_square, got_square, product, error_square : float
        Sums over all elements, in float64.
    max_error : float
        Largest magnitude of a difference.

    Examples
    --------
    >>> import numpy as np
    >>> from npumatmul.llm.measure.analysis import ErrorSums
    >>> sums = ErrorSums()
    >>> sums.add(np.array([3.0, 4.0]), np.array([3.0, 4.5]))
    >>> sums.relative_error, sums.snr_db, sums.max_error
    (0.1, 20.0, 0.5)
    """

    expected_square: float = 0.0
    got_square: float = 0.0
    product: float = 0.0
    error_square: float = 0.0
    max_error: float = 0.0

    def add(self, expected: NDArray[np.floating], got: NDArray[np.floating]) -> None:
        """Take a piece into account.

        Parameters
        ----------
        expected, got : ndarray of float, of equal shapes
            Reference and what is compared with it.
        """
        if expected.shape != got.shape:
            raise ValueError(f"arrays of shapes {expected.shape} and {got.shape} do not compare")
        e, g = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
        difference = g - e
        self.expected_square += float(e @ e)
        self.got_square += float(g @ g)
        self.product += float(e @ g)
        self.error_square += float(difference @ difference)
        self.max_error = max(self.max_error, float(np.abs(difference).max(initial=0.0)))

    @classmethod
    def of_nothing(cls) -> ErrorSums:
        """Where there is nothing to compare: all figures are nan."""
        return cls(*[math.nan] * 5)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both as vectors; 1 if both are zero, 0 if one is."""
        if math.isnan(self.product):
            return math.nan
        norm = math.sqrt(self.expected_square) * math.sqrt(self.got_square)
        if norm == 0:
            return 1.0 if self.expected_square == self.got_square else 0.0
        return min(1.0, max(-1.0, self.product / norm))

    @property
    def relative_error(self) -> float:
        """Frobenius norm of the difference over that of the reference."""
        if self.expected_square == 0:
            return 0.0 if self.error_square == 0 else math.inf
        return math.sqrt(self.error_square / self.expected_square)

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in dB: -20 log10 of the relative error; inf where there is no error."""
        error = self.relative_error
        if math.isnan(error):
            return math.nan
        return math.inf if error == 0 else -20 * math.log10(error) if math.isfinite(error) else -math.inf


@dataclass(frozen=True)
class LayerError:
    """The error of one layer.

    Attributes
    ----------
    name : str
        The layer.
    shape : tuple of int
        ``(K, N)``.
    alone : ErrorSums
        Of its output when it is fed what it is fed in the reference; nan of an expert that no token chose there.
    entire : ErrorSums
        Of its output in the model; nan of an expert, which other tokens may choose there.
    """

    name: str
    shape: tuple[int, int]
    alone: ErrorSums = field(default_factory=ErrorSums)
    entire: ErrorSums = field(default_factory=ErrorSums)


def analyze_layers(
    model: Decoder,
    reference: Decoder,
    pieces: Sequence[Window],
    progress: AnalysisProgress | None = None,
) -> list[LayerError]:
    """Compare every layer of two models on a text.

    Parameters
    ----------
    model, reference : Decoder
        What is looked at, and what it is held against; of the same shape.
    pieces : sequence of Window
        The text, see `npumatmul.llm.windows`; every token counts.
    progress : callable, optional
        See `AnalysisProgress`. What it was given last stays as it is, whatever ends the work.

    Returns
    -------
    list of LayerError
        In the order in which a token passes the layers.

    Raises
    ------
    ValueError
        If there is no text, or the models are of different shapes.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model, load_model, numpy_pack, text_tokens, windows
    >>> from npumatmul.llm.measure.analysis import analyze_layers
    >>> exact = load_model(fetch_demo_model(), pack=numpy_pack)
    >>> pieces = windows(text_tokens(exact.tokenizer, "It was the best of times. " * 3), 8, limit=1)
    >>> errors = analyze_layers(exact.model, exact.model, pieces)  # a model against itself
    >>> errors[-1].name, errors[-1].entire.snr_db
    ('head', inf)
    """
    check_progress("analyze_layers", progress)
    if not pieces:
        raise ValueError("there is no text to analyze on")
    if model.config != reference.config:
        raise ValueError("models of different configurations do not compare layer by layer")
    linears = model.linears
    errors = {name: LayerError(name, linear.shape) for name, linear in linears.items()}
    for name in [each for each in errors if ".expert." in each]:
        errors[name] = replace(errors[name], alone=ErrorSums.of_nothing(), entire=ErrorSums.of_nothing())
    found: list[LayerError] = []
    seen: dict[str, tuple[Float32, Float32]] = {}

    def keep(name: str, x: Float32, y: Float32) -> None:
        seen[name] = (x.copy(), y.copy())

    def compare(name: str, x: Float32, y: Float32) -> None:
        if ".expert." not in name:
            errors[name].entire.add(seen[name][1], y)

    expected = reference.with_linears({n: TappedLinear(each, n, keep) for n, each in reference.linears.items()})
    tapped = model.with_linears({n: TappedLinear(each, n, compare) for n, each in linears.items()})
    total = 2 * sum(len(piece.tokens) for piece in pieces)
    read = ReadTokens(lambda done: progress and progress(done, total, found))
    for piece in pieces:
        caches = expected.new_cache(len(piece.tokens)), tapped.new_cache(len(piece.tokens))
        for start in range(0, len(piece.tokens), ROWS):
            tokens = piece.tokens[start : start + ROWS]
            seen.clear()
            read.forward(expected, tokens, caches[0], all_logits=True)
            read.forward(tapped, tokens, caches[1], all_logits=True)
            for name, (x, y) in seen.items():
                if math.isnan(errors[name].alone.product):  # an expert that is chosen for the first time
                    errors[name] = replace(errors[name], alone=ErrorSums())
                errors[name].alone.add(y, linears[name](x))
            found = [replace(each, alone=replace(each.alone), entire=replace(each.entire)) for each in errors.values()]
            if progress is not None:
                progress(read.done, total, found)
    return found


FIGURES = ("cosine", "relative_error", "snr_db", "max_error")


def errors_as_csv(errors: Sequence[LayerError]) -> str:
    """Make CSV of errors, one line for each layer.

    Parameters
    ----------
    errors : sequence of LayerError
        What `analyze_layers` returned.

    Returns
    -------
    str
        With a line of headings.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["layer", "k", "n", *(f"{which}_{name}" for which in ("alone", "entire") for name in FIGURES)])
    for error in errors:
        figures = [getattr(sums, name) for sums in (error.alone, error.entire) for name in FIGURES]
        writer.writerow([error.name, *error.shape, *(f"{figure:.9g}" for figure in figures)])
    return out.getvalue()


def error_plot(errors: Sequence[LayerError], title: str, kind: str = "png") -> bytes:
    """Plot relative errors and cosine distances by layer.

    Parameters
    ----------
    errors : sequence of LayerError
        What `analyze_layers` returned.
    title : str
        Above the picture.
    kind : str
        Format of the picture, as matplotlib names it.

    Returns
    -------
    bytes
        The picture.

    Raises
    ------
    MissingPackageError
        If matplotlib is missing: it comes with the extra ``bench``.
    """
    check_installed("matplotlib", "a plot")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 0.12 * len(errors)), 7.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    positions = np.arange(len(errors))
    for label, marker in (("alone", "o"), ("entire", "s")):
        sums = [getattr(error, label) for error in errors]
        upper.plot(positions, [each.relative_error for each in sums], marker, markersize=3, label=label)
        lower.plot(positions, [max(1 - each.cosine, 1e-16) for each in sums], marker, markersize=3, label=label)
    upper.set_ylabel("relative error (Frobenius)")
    lower.set_ylabel("1 - cosine")
    for axes in (upper, lower):
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()
    step = max(1, len(errors) // 40)
    lower.set_xticks(positions[::step], [error.name for error in errors[::step]], rotation=90, fontsize=7)
    upper.set_title(title)
    picture = io.BytesIO()
    figure.savefig(picture, format=kind)
    return picture.getvalue()
