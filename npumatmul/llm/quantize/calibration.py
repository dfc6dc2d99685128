"""What goes into a model's layers on a calibration text: what smoothing and GPTQ need to know."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.arguments import check_progress
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.loading import load_from, numpy_pack
from npumatmul.llm.measure.evaluation import ReadTokens, Window
from npumatmul.llm.models.taps import TappedLinear
from npumatmul.llm.models.weights import LayerTensors
from npumatmul.nn.product import Float32, Product

__all__ = ["LayerStatistics", "collect_statistics"]

MOMENT_BYTES = 2 << 30
"""Bytes of second moments collected in one pass over the text; more layers take more passes."""

Progress = Callable[[int, int, str], None]


@dataclass
class LayerStatistics:
    """What was seen of a layer's activations.

    Attributes
    ----------
    features : int
        K.
    rows : int
        Activations seen.
    absmax : ndarray of float32, shape (K,)
        Largest magnitude of each feature.
    total : ndarray of float64, shape (K,)
        Sum of each feature.
    products : ndarray of float32, shape (K, K), or None
        Sum of ``x.T @ x``, if it was asked for.
    drift : ndarray of float32, shape (K, K), or None
        Sum of ``(reference - x).T @ x``, if references were given.
    reference_total : ndarray of float64, shape (K,)
        Sum of each feature of the references; of the activations themselves where there are none.
    """

    features: int
    with_products: bool = True
    rows: int = 0
    absmax: Float32 = field(init=False)
    total: NDArray[np.float64] = field(init=False)
    products: Float32 | None = field(init=False)
    drift: Float32 | None = field(init=False, default=None)
    reference_total: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        """Start with nothing seen."""
        self.absmax = np.zeros(self.features, np.float32)
        self.total = np.zeros(self.features, np.float64)
        self.reference_total = np.zeros(self.features, np.float64)
        self.products = np.zeros((self.features, self.features), np.float32) if self.with_products else None

    def add(self, x: Float32, reference: Float32 | None = None) -> None:
        """Take activations into account.

        Parameters
        ----------
        x : ndarray of float32, shape (M, K)
            Activations.
        reference : ndarray of float32, shape (M, K), optional
            What they are in the float model, where layers before this one are quantized; for all rows or for none.
        """
        if not len(x):
            return
        with np.errstate(over="ignore", invalid="ignore"):  # whoever uses the sums looks whether they are finite
            self.rows += len(x)
            np.maximum(self.absmax, np.abs(x).max(axis=0), out=self.absmax)
            self.total += x.sum(axis=0, dtype=np.float64)
            self.reference_total += (x if reference is None else reference).sum(axis=0, dtype=np.float64)
            if self.products is not None:
                self.products += x.T @ x
                if reference is not None:
                    self.drift = np.zeros_like(self.products) if self.drift is None else self.drift
                    self.drift += (reference - x).T @ x

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean of each feature, shape (K,)."""
        return self.total / max(1, self.rows)

    @property
    def reference_mean(self) -> NDArray[np.float64]:
        """Mean of each feature in the float model, shape (K,)."""
        return self.reference_total / max(1, self.rows)

    @property
    def second_moment(self) -> NDArray[np.float64]:
        """Mean of ``x.T @ x``, shape (K, K).

        Raises
        ------
        ValueError
            If products were not collected.
        """
        if self.products is None:
            raise ValueError("products of activations were not collected")
        moment: NDArray[np.float64] = self.products.astype(np.float64) / max(1, self.rows)
        return moment


def collect_statistics(
    path: str | os.PathLike[str],
    pieces: Sequence[Window],
    names: Collection[str] | None = None,
    *,
    products: bool = True,
    progress: Progress | None = None,
) -> dict[str, LayerStatistics]:
    """Run a text through a model in float32 and look at the activations of its layers.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file.
    pieces : sequence of Window
        The text; see `npumatmul.llm.windows`. Every token counts.
    names : collection of str, optional
        Layers to look at; by default all.
    products : bool, default True
        Whether to collect ``x.T @ x``; if these need more than `MOMENT_BYTES`, the text is read several times.
    progress : callable, optional
        Called with (tokens done, tokens in all, what is being done).

    Returns
    -------
    dict of str to LayerStatistics
        By name of the layer.

    Raises
    ------
    ValueError
        If there are no windows, or a name is not a layer's.
    npumatmul.errors.ModelError
        If the file cannot be used.
    """
    check_progress("collect_statistics", progress)
    if not pieces:
        raise ValueError("there is no calibration text")
    found: dict[str, LayerStatistics] = {}
    wanted: set[str] = set()

    def linear(layer: LayerTensors) -> Product:
        features[layer.name] = layer.k

        def observe(name: str, x: Float32, y: Float32) -> None:
            if name in wanted:
                found[name].add(x)

        return TappedLinear(numpy_pack(layer.weight(source)), layer.name, observe)

    features: dict[str, int] = {}
    with GGUFSource(path) as source:
        model = load_from(source, linear).model
    chosen = list(features) if names is None else [name for name in features if name in names]
    unknown = sorted(set(names or ()) - set(features))
    if unknown:
        raise ValueError(f"the model has no layer {unknown[0]!r}")
    passes = _passes({name: features[name] for name in chosen}, products)
    total = len(passes) * sum(len(piece.tokens) for piece in pieces)
    read = ReadTokens(lambda done: progress and progress(done, total, "calibrating"))
    for each in passes:
        wanted = set(each)
        found.update({name: LayerStatistics(features[name], products) for name in each})
        for piece in pieces:
            cache = model.new_cache(len(piece.tokens))
            read.forward(model, piece.tokens, cache, all_logits="head" in wanted)
    return found


def _passes(features: Mapping[str, int], products: bool) -> list[list[str]]:
    """Split layers so that what is collected of each part fits in memory."""
    parts: list[list[str]] = [[]]
    used = 0
    for name, k in features.items():
        size = 4 * k * k if products else 0
        if parts[-1] and used + size > MOMENT_BYTES:
            parts.append([])
            used = 0
        parts[-1].append(name)
        used += size
    return parts
