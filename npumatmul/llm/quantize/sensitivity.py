"""Choosing a scheme for each layer by what it was measured to cost.

Each layer is quantized in each candidate's way, alone, and the KL divergence of the model's distributions from the
float32 model's is found: its sensitivity. While changes are small, divergences grow with the square of what a layer
changes in the output of its block; so the candidate that changes most is run through the rest of the model, and the
others are taken in proportion. Divergences of layers add up; so the layers that get more bits are those where the
divergence falls most for each bit.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.arguments import check_progress
from npumatmul.llm.files.gguf import GGUFFile
from npumatmul.llm.files.gguf_source import GGUFSource
from npumatmul.llm.loading import load_model, numpy_pack
from npumatmul.llm.measure.evaluation import EvaluationProgress, Window, evaluate, log_softmax, mean_divergence
from npumatmul.llm.models.decoder import PREFILL_CHUNK, Decoder
from npumatmul.llm.models.weights import Progress, layer_tensors
from npumatmul.llm.quantize.calibration import LayerStatistics, collect_statistics
from npumatmul.llm.quantize.emulation import emulate
from npumatmul.llm.quantize.layer import QuantizedLayer
from npumatmul.llm.quantize.measured import Measured
from npumatmul.llm.quantize.quantized_model import QuantizedModel, Source, layer_of_recipe
from npumatmul.llm.quantize.recipe import LayerRecipe, Recipe
from npumatmul.llm.quantize.steps import Steps
from npumatmul.nn.product import Float32

__all__ = ["Candidate", "auto_quantize", "choose", "measure_sensitivity"]

logger = logging.getLogger(__name__)

PARTS = 1000
"""What making a layer in one way counts, for progress."""

CORRECTIONS = 4
"""Times that a budget of quality is corrected for divergences that did not add up."""


@dataclass(frozen=True)
class Candidate:
    """One way to quantize one layer, and what it costs.

    Attributes
    ----------
    layer : QuantizedLayer
        The layer so quantized.
    kl : float
        Mean KL divergence of the model with only this layer quantized, in nats: measured for the candidate that changes
        the output of its block most (and for all of the head), in proportion to the square of the change for others.
    """

    layer: QuantizedLayer
    kl: float

    @property
    def bits(self) -> int:
        """Stored bits of the layer."""
        return 8 * self.layer.nbytes


def measure_sensitivity(
    path: str | os.PathLike[str],
    candidates: Sequence[LayerRecipe],
    pieces: Sequence[Window],
    *,
    statistics: Mapping[str, LayerStatistics] | None = None,
    make: Callable[[str, LayerRecipe], QuantizedLayer] | None = None,
    tokens: int = 512,
    measured: Measured | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Candidate]]:
    """Quantize every layer in every way, and find what each does to the model alone.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file.
    candidates : sequence of LayerRecipe
        The ways.
    pieces : sequence of Window
        Calibration text.
    statistics : mapping of str to LayerStatistics, optional
        What was seen of layers before, on this text or another one.
    make : callable, optional
        Makes a layer, by its name and recipe; for who keeps layers, or makes them in ways of their own.
    tokens : int, default 512
        Tokens of it that divergences are measured on, the first `PREFILL_CHUNK` of windows spread over the text, which
        are left out of calibration if there are others. The time it takes is about that of ``tokens * layers / 2``
        tokens through the model, beside that of quantizing every layer in every way.
    measured : mapping of str to list of float, optional
        Divergences of candidates by layer that were found before, on the same text; those that are found now are added
        one by one. `kept_measurements` keeps them in a file.
    progress : callable, optional
        Called with what is done, what there is to do, and a name.

    Returns
    -------
    dict of str to list of Candidate
        By layer, in the order of `candidates`.

    Raises
    ------
    ValueError
        If there are no candidates, or no text.
    """
    check_progress("measure_sensitivity", progress)
    if not candidates:
        raise ValueError("there is nothing to choose from")
    if not pieces:
        raise ValueError("sensitivity is measured on a calibration text: give one")
    model = load_model(path, pack=numpy_pack).model
    known = dict(statistics or {})
    if make is None and any(each.needs_calibration for each in candidates):
        missing = [name for name in model.linears if name not in known]
        if missing:
            known.update(collect_statistics(path, _unmeasured(pieces, tokens), missing, progress=progress))
    references = [_Reference(model, part) for part in _parts(pieces, tokens)]
    found: dict[str, list[Candidate]] = {}
    steps = Steps(progress)
    with GGUFSource(path) as source:
        layers = layer_tensors(source)
        for done, (name, tensors) in enumerate(layers.items()):
            made: list[QuantizedLayer] = []
            for number, recipe in enumerate(candidates):
                at, every = done * len(candidates) + number, len(layers) * len(candidates)
                steps(at * PARTS, every * PARTS, f"{name} {recipe.scheme}")
                if make is not None:
                    made.append(make(name, recipe))
                else:
                    made.append(layer_of_recipe(source, tensors, recipe, known.get(name), progress=steps.within(PARTS)))
            if measured is None or name not in measured:
                changed = [model.with_linears({name: emulate(layer)}) for layer in made]
                kls = np.mean(
                    [reference.divergences(model, changed, name) for reference in references], axis=0
                ).tolist()
                if measured is not None:
                    measured[name] = kls
            else:
                kls = measured[name]
            found[name] = [Candidate(layer, kl) for layer, kl in zip(made, kls, strict=True)]
    return found


def choose(
    found: Mapping[str, Sequence[Candidate]], *, max_bits: float | None = None, max_kl: float | None = None
) -> dict[str, Candidate]:
    """Choose one candidate for each layer.

    Starting from the smallest of each layer, the step that lowers the divergence most for each bit is taken, again and
    again (of each layer, only candidates on the lower convex hull of bits and divergence are worth a step). The largest
    layer, such as the output matrix, may be too large a step for what is left: so this is done with each of its
    candidates, and the best choice taken.

    Parameters
    ----------
    found : mapping of str to sequence of Candidate
        What `measure_sensitivity` returned.
    max_bits : float, optional
        Stored bits per weight, on average over all layers: steps are taken while they fit.
    max_kl : float, optional
        Sum of divergences: steps are taken until it is reached.

    Returns
    -------
    dict of str to Candidate
        The choice.

    Raises
    ------
    ValueError
        If not exactly one limit is given, or it cannot be met.
    """
    if (max_bits is None) == (max_kl is None):
        raise ValueError("give either the most bits per weight or the most divergence")
    weights = sum(math.prod(candidates[0].layer.shape) for candidates in found.values())
    fewest = sum(min(each.bits for each in candidates) for candidates in found.values()) / weights
    if max_bits is not None and fewest > max_bits:
        raise ValueError(f"{max_bits} bits per weight cannot be met: the smallest candidates take {fewest:.3f}")
    least = sum(min(each.kl for each in candidates) for candidates in found.values())
    if max_kl is not None and least > max_kl:
        raise ValueError(f"a divergence of {max_kl} cannot be met: the best candidates are expected at {least:.3g}")
    most = math.inf if max_bits is None else max_bits * weights
    largest = max(found, key=lambda name: math.prod(found[name][0].layer.shape))
    choices = [_by_gain({**found, largest: [candidate]}, most, max_kl) for candidate in found[largest]]

    def worth(choice: dict[str, Candidate]) -> tuple[float, float]:
        bits, kl = sum(each.bits for each in choice.values()), sum(each.kl for each in choice.values())
        return (kl, bits) if max_kl is None else (bits, kl)

    return min((choice for choice in choices if choice is not None), key=worth)


def _by_gain(
    found: Mapping[str, Sequence[Candidate]], most: float, max_kl: float | None
) -> dict[str, Candidate] | None:
    """The steps of `choose`, up to so many bits; None where a limit is not met."""
    hulls = {name: _hull(candidates) for name, candidates in found.items()}
    level = dict.fromkeys(hulls, 0)
    steps = sorted(
        (-_gain(hull[i], hull[i + 1]), order, name, i)
        for order, (name, hull) in enumerate(hulls.items())
        for i in range(len(hull) - 1)
    )
    bits = sum(hull[0].bits for hull in hulls.values())
    kl = sum(hull[0].kl for hull in hulls.values())
    for _, _, name, i in steps:
        if max_kl is not None and kl <= max_kl:
            break
        more = hulls[name][i + 1].bits - hulls[name][i].bits
        if level[name] != i or bits + more > most:
            continue  # a step of this layer that did not fit bars the ones after it
        level[name] = i + 1
        bits += more
        kl += hulls[name][i + 1].kl - hulls[name][i].kl
    if bits > most or (max_kl is not None and kl > max_kl):
        return None
    return {name: hulls[name][i] for name, i in level.items()}


def auto_quantize(
    path: str | os.PathLike[str],
    candidates: Sequence[LayerRecipe],
    pieces: Sequence[Window],
    *,
    max_bits: float | None = None,
    max_kl: float | None = None,
    make: Callable[[str, LayerRecipe], QuantizedLayer] | None = None,
    tokens: int = 512,
    measured: Measured | None = None,
    progress: Progress | None = None,
) -> QuantizedModel:
    """Quantize a model, each layer in the way that measured sensitivity speaks for.

    Parameters
    ----------
    path, candidates, pieces, make, tokens, measured, progress
        As for `measure_sensitivity`.
    max_bits, max_kl : float, optional
        As for `choose`; one of them. The whole model is measured on the text in the end, and for `max_kl` chosen anew
        until what is measured keeps the limit: divergences add up only roughly.

    Returns
    -------
    QuantizedModel
        Its recipe names every layer; its notes say what was expected and measured.

    Raises
    ------
    ValueError
        If the limit cannot be met.
    """
    check_progress("auto_quantize", progress)
    found = measure_sensitivity(
        path, candidates, pieces, make=make, tokens=tokens, measured=measured, progress=progress
    )
    file = GGUFFile(path)
    exact = load_model(path, pack=numpy_pack).model
    parts = _parts(pieces, tokens)
    measured_on = [Window(part, 0) for part in parts]
    budget = max_kl
    for _ in range(CORRECTIONS):
        chosen = choose(found, max_bits=max_bits, max_kl=budget)
        changed = exact.with_linears({name: emulate(each.layer) for name, each in chosen.items()})
        evaluation = evaluate(
            changed,
            exact,
            measured_on,
            lambda done, total, _: progress and progress(done, total, "measuring the choice"),
        )
        assert evaluation.mean_kl is not None
        mean_kl = evaluation.mean_kl
        expected = sum(each.kl for each in chosen.values())
        logger.info("auto: expected divergence %.4g, measured %.4g", expected, mean_kl.value)
        if max_kl is None or budget is None or mean_kl.value <= max_kl:
            break
        budget = min(budget, expected) * 0.95 * max_kl / mean_kl.value
    else:
        raise ValueError(f"a divergence of {max_kl} was not met: {mean_kl.value:.3g} was measured; allow more")
    schemes = Counter(each.layer.recipe for each in chosen.values())
    default = schemes.most_common(1)[0][0]
    overrides = {
        name: _difference(default, each.layer.recipe) for name, each in chosen.items() if each.layer.recipe != default
    }
    note = (
        f"schemes were chosen by sensitivity: {', '.join(f'{n} layers {r.scheme}' for r, n in schemes.most_common())}; "
        f"the sum of divergences alone is {expected:.4g}, the model's on the same windows {mean_kl:.4g}"
    )
    layers = {name: each.layer for name, each in chosen.items()}
    source = Source.of(file, progress)
    return QuantizedModel(file.path, file, Recipe(default, overrides), source, layers, (note,))


def _measuring(progress: Progress | None) -> EvaluationProgress:
    return lambda done, total, _: progress and progress(done, total, "measuring the choice")


class _Reference:
    """What the float32 model does with some tokens: what enters each block, and its distributions."""

    def __init__(self, model: Decoder, tokens: NDArray[np.int64]) -> None:
        cache = model.new_cache(len(tokens))
        self._entering: list[Float32] = []
        x = model.embed(tokens)
        for i in range(model.config.n_layers):
            self._entering.append(x)
            x = model.run_block(i, x, cache)
        self._entering.append(x)
        self._log_p = log_softmax(model.logits(x)).astype(np.float32)

    def divergences(self, model: Decoder, changed: Sequence[Decoder], name: str) -> list[float]:
        """Mean divergences where one layer is changed, in several ways: see `Candidate`."""
        block = _block_of(name, model.config.n_layers)
        if block == model.config.n_layers:
            return [mean_divergence(self._log_p, each.logits(self._entering[block])) for each in changed]
        cache = model.new_cache(len(self._entering[0]))
        after = [each.run_block(block, self._entering[block], cache) for each in changed]
        usual = np.square(self._entering[block + 1]).sum(axis=1)  # what follows normalizes rows
        squares = [float((np.square(x - self._entering[block + 1]).sum(axis=1) / usual).mean()) for x in after]
        most = int(np.argmax(squares))
        x = after[most]
        for i in range(block + 1, model.config.n_layers):
            x = model.run_block(i, x, cache)
        kl = mean_divergence(self._log_p, model.logits(x))
        return [kl * square / max(squares[most], np.finfo(float).tiny) for square in squares]


def _block_of(name: str, n_layers: int) -> int:
    """Number of the block of a layer; the head follows the last."""
    return n_layers if name == "head" else int(name.split(".")[1])


def _parts(pieces: Sequence[Window], tokens: int) -> list[NDArray[np.int64]]:
    """The first tokens of windows spread over the text, in pieces that the model runs at once."""
    return [pieces[i].tokens[:PREFILL_CHUNK] for i in _measured(pieces, tokens)]


def _measured(pieces: Sequence[Window], tokens: int) -> list[int]:
    """Numbers of the windows that divergences are measured on."""
    count = min(len(pieces), max(1, -(-tokens // PREFILL_CHUNK)))
    return [i * len(pieces) // count for i in range(count)]


def _unmeasured(pieces: Sequence[Window], tokens: int) -> Sequence[Window]:
    """The other windows, for calibration: on text that it has seen, GPTQ looks better than it is."""
    measured = set(_measured(pieces, tokens))
    return [piece for i, piece in enumerate(pieces) if i not in measured] or pieces


def _hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Candidates on the lower convex hull of bits and divergence, from the smallest on."""
    hull: list[Candidate] = []
    for each in sorted(candidates, key=lambda c: (c.bits, c.kl)):
        if hull and each.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], each):
            hull.pop()
        hull.append(each)
    return hull


def _gain(less: Candidate, more: Candidate) -> float:
    """How much the divergence falls for each bit."""
    return (less.kl - more.kl) / max(1, more.bits - less.bits)


def _difference(default: LayerRecipe, other: LayerRecipe) -> dict[str, object]:
    base = dataclasses.asdict(default)
    return {name: value for name, value in dataclasses.asdict(other).items() if value != base[name]}
