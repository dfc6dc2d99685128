"""How good a model is, and how far it has moved from a reference: perplexity, KL divergence, top-1 agreement.

Figures compare with those of llama.cpp's perplexity tool: the text is cut into the same windows, the same tokens are
scored, and standard errors are computed alike. A window is scored a few rows at a time, so the logits of a whole text,
or of a whole window, are never in memory together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.arguments import check_progress
from npumatmul.llm.models.cache import KVCache
from npumatmul.llm.models.decoder import PREFILL_CHUNK, Decoder
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.product import Float32

__all__ = [
    "Estimate",
    "Evaluation",
    "EvaluationProgress",
    "Window",
    "evaluate",
    "evaluate_models",
    "text_tokens",
    "windows",
]

DEFAULT_WINDOW = 512
"""Tokens in a window, as llama.cpp's tool has it by default."""

SOFTMAX_ROWS = 16
"""Rows of logits that are worked on in float64 at a time: few enough to stay in the caches."""

Float64 = NDArray[np.float64]

EvaluationProgress = Callable[[int, int, "Mapping[str, Evaluation]"], object]
"""Called every few layers' time with what is done, what there is to do (in tokens that models read), and the
evaluations after the last whole window, none before the first."""


class Estimate(NamedTuple):
    """A mean and its standard error.

    Attributes
    ----------
    value : float
    error : float
        Standard error, scored tokens taken as independent; nan of fewer than two.
    """

    value: float
    error: float

    def __format__(self, spec: str) -> str:
        """Format both numbers alike: ``f"{estimate:.3f}"`` is ``"1.234 ± 0.005"``."""
        return f"{self.value:{spec}} ± {self.error:{spec}}"


@dataclass(frozen=True)
class Window:
    """A piece of a text: what a model reads at once, and which of its predictions count.

    Attributes
    ----------
    tokens : ndarray of int64, shape (T,)
        What is read, from an empty cache.
    first : int
        The prediction made after reading token `first` is the first one that counts; it is held against token
        ``first + 1``. The prediction after the last but one token is the last one.
    """

    tokens: NDArray[np.int64]
    first: int

    @property
    def scored(self) -> int:
        """Number of predictions that count."""
        return len(self.tokens) - 1 - self.first


@dataclass(frozen=True)
class Evaluation:
    """What was measured, token by token, and its means.

    Attributes
    ----------
    nll : ndarray of float64, shape (n,)
        Negative log-likelihood of each scored token, in nats.
    reference_nll : ndarray of float64, shape (n,), or None
        The same of the reference.
    kl : ndarray of float64, shape (n,), or None
        Kullback-Leibler divergence of the model's distribution from the reference's, ``sum p_ref ln(p_ref / p)``, at
        each scored position, in nats.
    same_top : ndarray of bool, shape (n,), or None
        Whether the likeliest token is the reference's.
    """

    nll: Float64
    reference_nll: Float64 | None = None
    kl: Float64 | None = None
    same_top: NDArray[np.bool_] | None = None

    @property
    def tokens(self) -> int:
        """Tokens scored."""
        return len(self.nll)

    @property
    def perplexity(self) -> Estimate:
        """``exp(mean nll)``."""
        return _exp(_mean(self.nll))

    @property
    def reference_perplexity(self) -> Estimate | None:
        """``exp(mean nll)`` of the reference."""
        return None if self.reference_nll is None else _exp(_mean(self.reference_nll))

    @property
    def log_perplexity_ratio(self) -> Estimate | None:
        """``ln(perplexity / perplexity of the reference)``; its error is that of the paired difference."""
        return None if self.reference_nll is None else _mean(self.nll - self.reference_nll)

    @property
    def mean_kl(self) -> Estimate | None:
        """Mean KL divergence from the reference, in nats."""
        return None if self.kl is None else _mean(self.kl)

    @property
    def top1(self) -> Estimate | None:
        """Share of positions where the likeliest token is the reference's, 0 to 1."""
        return None if self.same_top is None else _mean(self.same_top.astype(np.float64))

    def kl_quantile(self, q: float) -> float | None:
        """Quantile of the KL divergences.

        Parameters
        ----------
        q : float
            0 to 1; 0.5 is the median.

        Returns
        -------
        float or None
            The quantile; None without a reference.
        """
        return None if self.kl is None else float(np.quantile(self.kl, q))

    def as_dict(self) -> dict[str, float | int | dict[str, float]]:
        """Means and errors as plain values, for JSON.

        Returns
        -------
        dict
            ``tokens`` and, of each quantity that was measured, ``value`` and ``error``.
        """
        found: dict[str, float | int | dict[str, float]] = {"tokens": self.tokens}
        for name in ("perplexity", "reference_perplexity", "log_perplexity_ratio", "mean_kl", "top1"):
            estimate: Estimate | None = getattr(self, name)
            if estimate is not None:
                found[name] = estimate._asdict()
        if self.kl is not None:
            found["kl_quantiles"] = {str(q): float(np.quantile(self.kl, q)) for q in (0.5, 0.9, 0.99, 1.0)}
        return found


def text_tokens(tokenizer: Tokenizer, text: str) -> NDArray[np.int64]:
    """Turn a text into tokens as llama.cpp's tool does with a file.

    Parameters
    ----------
    tokenizer : Tokenizer
        The model's tokenizer.
    text : str
        The text. One newline at its end is dropped; control tokens that it spells are plain text.

    Returns
    -------
    ndarray of int64
        Tokens; the first is the start token where the model wants one.
    """
    return np.array(tokenizer.encode(text.removesuffix("\n"), parse_special=False, add_special=True), np.int64)


def windows(
    tokens: Sequence[int] | NDArray[np.int64],
    length: int = DEFAULT_WINDOW,
    *,
    stride: int = 0,
    limit: int | None = None,
    bos_id: int | None = None,
) -> list[Window]:
    """Cut a text into windows as llama.cpp's perplexity tool does.

    Without a stride windows follow one another, the first token of each is replaced by the start token, and the
    predictions from the middle on count: every one of them has seen half a window at least. With a stride (the tool's
    ``--ppl-stride``, called with ``-b`` equal to ``-c``) a window has ``length + stride // 2`` tokens, begins `stride`
    tokens after the one before, and its last `stride` predictions count; the start token is not put in then.

    Parameters
    ----------
    tokens : sequence of int
        The text; two windows at least, so that a figure means something.
    length : int, default 512
        Tokens in a window.
    stride : int, default 0
        0, or tokens from one window to the next, less than `length`.
    limit : int, optional
        Windows at most.
    bos_id : int, optional
        The start token, for models that want one.

    Returns
    -------
    list of Window
        The windows, in order.

    Raises
    ------
    ValueError
        If the text is shorter than two windows, or an argument is out of range.

    Examples
    --------
    >>> from npumatmul.llm.measure.evaluation import windows
    >>> [(window.tokens.tolist(), window.first, window.scored) for window in windows(range(11), 4, bos_id=99)]
    [([99, 1, 2, 3], 2, 1), ([99, 5, 6, 7], 2, 1)]
    >>> [(window.tokens.tolist(), window.first) for window in windows(range(11), 4, stride=2, limit=2)]
    [([0, 1, 2, 3, 4], 2), ([2, 3, 4, 5, 6], 2)]
    """
    ids = np.asarray(tokens, np.int64)
    if length < 4:
        raise ValueError(f"windows of {length} tokens are too short; they need 4 or more")
    if not 0 <= stride < length:
        raise ValueError(f"the stride is {stride}; it must be from 0 (none) to {length - 1}, less than a window")
    if limit is not None and limit < 1:
        raise ValueError(f"at most {limit} windows were asked for; it must be 1 or more")
    length += stride // 2
    if len(ids) < 2 * length:
        raise ValueError(
            f"the text has {len(ids)} tokens; windows of {length} need {2 * length} or more: use a longer one"
        )
    if stride:
        count = -(-(len(ids) - length) // stride)
        starts = [i * stride for i in range(count)]
        return [Window(ids[s : s + length], length - stride - 1) for s in starts[:limit]]
    found = []
    for start in range(0, len(ids) - length + 1, length)[:limit]:
        piece = ids[start : start + length]
        if bos_id is not None:
            piece = np.concatenate([np.array([bos_id], np.int64), piece[1:]])
        found.append(Window(piece, length // 2))
    return found


def evaluate(
    model: Decoder,
    reference: Decoder | None,
    pieces: Sequence[Window],
    progress: EvaluationProgress | None = None,
) -> Evaluation:
    """Measure a model, against a reference or alone.

    Parameters
    ----------
    model : Decoder
        The model.
    reference : Decoder or None
        What to compare with, such as the same model with `numpy_pack`; None measures perplexity only.
    pieces : sequence of Window
        Made by `windows`.
    progress : callable, optional
        See `EvaluationProgress`; the one evaluation is called ``"model"``.

    Returns
    -------
    Evaluation
        What was measured.

    Raises
    ------
    ValueError
        If there are no windows, one does not fit the model's context, or the vocabularies differ.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model, load_model, npu_pack, numpy_pack
    >>> from npumatmul.llm.measure.evaluation import evaluate, text_tokens, windows
    >>> path = fetch_demo_model()
    >>> exact, packed = load_model(path, pack=numpy_pack), load_model(path, pack=npu_pack("w16a16"))
    >>> pieces = windows(text_tokens(exact.tokenizer, "It was the best of times. " * 3), 8, limit=1)
    >>> evaluate(packed.model, exact.model, pieces).mean_kl.value < 1e-3
    True
    """
    return evaluate_models({"model": model}, reference, pieces, progress)["model"]


def evaluate_models(
    models: Mapping[str, Decoder],
    reference: Decoder | None,
    pieces: Sequence[Window],
    progress: EvaluationProgress | None = None,
) -> dict[str, Evaluation]:
    """Measure several models, computing the reference once.

    Parameters
    ----------
    models : mapping of str to Decoder
        Models by name; all of the same vocabulary.
    reference, pieces, progress
        As for `evaluate`.

    Returns
    -------
    dict of str to Evaluation
        What was measured, by name.

    Raises
    ------
    ValueError
        As for `evaluate`.
    """
    check_progress("evaluate_models", progress)
    _check(models, reference, pieces)
    scores = {name: _Scores() for name in models}
    found: dict[str, Evaluation] = {}
    readers = len(models) + (reference is not None)
    total = sum(len(window.tokens) - 1 for window in pieces) * readers
    read = ReadTokens(lambda done: progress and progress(done, total, found))
    for window in pieces:
        outputs = {name: _scored_logits(model, window, read) for name, model in models.items()}
        expected = _scored_logits(reference, window, read) if reference is not None else None
        targets = window.tokens[window.first + 1 :]
        for start in range(0, window.scored, PREFILL_CHUNK):
            target = targets[start : start + PREFILL_CHUNK]
            known = None if expected is None else next(expected)
            for name, logits in outputs.items():
                scores[name].add(next(logits), known, target)
        found = {name: score.evaluation() for name, score in scores.items()}
    if progress is not None:
        progress(total, total, found)
    return found


def _check(models: Mapping[str, Decoder], reference: Decoder | None, pieces: Sequence[Window]) -> None:
    if not pieces:
        raise ValueError("there are no windows to evaluate on")
    longest = max(len(piece.tokens) for piece in pieces)
    everyone = dict(models) if reference is None else {**models, "the reference": reference}
    sizes = {model.config.vocab_size for model in everyone.values()}
    if len(sizes) > 1:
        raise ValueError(f"models with vocabularies of {' and '.join(map(str, sorted(sizes)))} tokens do not compare")
    for name, model in everyone.items():
        if longest > model.config.context_length:
            raise ValueError(
                f"windows of {longest} tokens do not fit the context of {name}, {model.config.context_length} tokens"
            )


class ReadTokens:
    """Counts the tokens that models read, for a progress bar.

    Parameters
    ----------
    report : callable
        Gets how many there are so far.

    Attributes
    ----------
    done : int
        Tokens that were read.
    """

    def __init__(self, report: Callable[[int], object]) -> None:
        self._report = report
        self.done = 0

    def forward(self, model: Decoder, tokens: NDArray[np.int64], cache: KVCache, all_logits: bool = False) -> Float32:
        logits = model.forward(tokens, cache, all_logits, lambda done, total: self._report(self.done + done))
        self.done += len(tokens)
        return logits


def _scored_logits(model: Decoder, window: Window, read: ReadTokens) -> Iterator[Float32]:
    """Logits of the predictions that count, at most `PREFILL_CHUNK` rows at a time."""
    cache: KVCache = model.new_cache(len(window.tokens))
    if window.first:
        read.forward(model, window.tokens[: window.first], cache)
    for start in range(window.first, len(window.tokens) - 1, PREFILL_CHUNK):
        piece = window.tokens[start : min(start + PREFILL_CHUNK, len(window.tokens) - 1)]
        yield read.forward(model, piece, cache, all_logits=True)


class _Scores:
    """Collects what an `Evaluation` holds."""

    def __init__(self) -> None:
        self._parts: list[tuple[Float64, Float64 | None, Float64 | None, NDArray[np.bool_] | None]] = []

    def add(self, logits: Float32, expected: Float32 | None, targets: NDArray[np.int64]) -> None:
        for start in range(0, len(logits), SOFTMAX_ROWS):
            rows = slice(start, start + SOFTMAX_ROWS)
            self._parts.append(_score(logits[rows], None if expected is None else expected[rows], targets[rows]))

    def evaluation(self) -> Evaluation:
        nll, reference_nll, kl, same = (_joined(values) for values in zip(*self._parts, strict=True))
        assert nll is not None
        return Evaluation(nll, reference_nll, kl, same)


def _joined(parts: Sequence[NDArray[Any] | None]) -> NDArray[Any] | None:
    arrays = [part for part in parts if part is not None]
    return np.concatenate(arrays) if arrays else None


def _score(
    logits: Float32, expected: Float32 | None, targets: NDArray[np.int64]
) -> tuple[Float64, Float64 | None, Float64 | None, NDArray[np.bool_] | None]:
    """Score some rows: negative log-likelihood, the reference's, divergence, agreement."""
    log_p = log_softmax(logits)
    rows = np.arange(len(targets))
    nll = -log_p[rows, targets]
    if expected is None:
        return nll, None, None, None
    log_r = log_softmax(expected)
    reference_nll = -log_r[rows, targets]
    same = logits.argmax(axis=1) == expected.argmax(axis=1)
    np.subtract(log_r, log_p, out=log_p)
    kl = np.einsum("ij,ij->i", np.exp(log_r), log_p)
    return nll, reference_nll, kl, same


def mean_divergence(log_p: NDArray[np.floating[Any]], logits: Float32) -> float:
    """Mean KL divergence of distributions from known ones.

    Parameters
    ----------
    log_p : ndarray of float, shape (T, vocab)
        Logarithms of the probabilities of the reference.
    logits : ndarray of float32, shape (T, vocab)
        Logits of what is compared with it.

    Returns
    -------
    float
        Mean over the rows, in nats.
    """
    total = 0.0
    for start in range(0, len(logits), SOFTMAX_ROWS):
        rows = slice(start, start + SOFTMAX_ROWS)
        expected = log_p[rows].astype(np.float64)
        total += float((np.exp(expected) * (expected - log_softmax(logits[rows]))).sum())
    return total / max(1, len(logits))


def log_softmax(logits: Float32) -> Float64:
    """Logarithms of the probabilities that logits stand for, row by row, in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def _mean(values: Float64) -> Estimate:
    mean = float(values.mean())
    error = float(values.std()) / math.sqrt(len(values) - 1) if len(values) > 1 else math.nan
    return Estimate(mean, error)


def _exp(log: Estimate) -> Estimate:
    value = math.exp(min(log.value, 700.0))
    return Estimate(value, value * log.error)
