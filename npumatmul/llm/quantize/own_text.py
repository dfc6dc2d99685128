"""A text that a model writes itself, to calibrate it where there is no other."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.arguments import check_progress
from npumatmul.llm.loading import load_model, numpy_pack
from npumatmul.llm.measure.evaluation import Window
from npumatmul.llm.models.decoder import Decoder
from npumatmul.llm.run.lockstep import Lockstep
from npumatmul.llm.run.sampling import Sampler, SamplingOptions
from npumatmul.llm.tokenizers.protocol import Tokenizer

__all__ = ["own_text"]

CACHE_BYTES = 1 << 30
"""Most bytes of keys and values: more sequences are written one batch after another."""

Progress = Callable[[int, int, str], None]


def own_text(
    path: str | os.PathLike[str],
    windows: int = 40,
    length: int = 512,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Window]:
    """Let a model write a text, in float32 and at temperature 1.

    Each window begins with the start token, where the model has one, and a token drawn from all but control tokens,
    all equally likely. Every further token is drawn as the model predicts it, control tokens left out, so that
    activations are those of ordinary text.

    Parameters
    ----------
    path : str or os.PathLike
        A GGUF file.
    windows : int
        How many.
    length : int
        Tokens of each; the model's context length at most.
    seed : int
        Makes it repeatable on a machine.
    progress : callable, optional
        Called with tokens written, tokens to write, and what is being done.

    Returns
    -------
    list of Window
        All positions count.

    Raises
    ------
    ValueError
        If there is nothing to write.
    npumatmul.errors.ModelError
        If the file cannot be used.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_model
    >>> from npumatmul.llm.quantize import own_text
    >>> (window,) = own_text(fetch_demo_model(), 1, 4)
    >>> window.tokens.shape, window.first
    ((4,), 0)
    """
    check_progress("own_text", progress)
    if windows < 1 or length < 2:
        raise ValueError(f"own_text: {windows} windows of {length} tokens; 1 and 2 are the fewest")
    loaded = load_model(path, pack=numpy_pack)
    length = min(length, loaded.config.context_length)
    at_once = max(1, min(windows, CACHE_BYTES // (length * Lockstep.bytes_per_token(loaded.model))))
    found: list[Window] = []
    while len(found) < windows:
        count = min(at_once, windows - len(found))

        def report(done: int, before: int = len(found), count: int = count) -> None:
            if progress is not None:
                progress(before * length + done * count, windows * length, "writing a calibration text")

        rows = _write(loaded.model, loaded.tokenizer, count, length, seed + len(found), report)
        found.extend(Window(row, 0) for row in rows)
    return found


def _write(
    model: Decoder, tokenizer: Tokenizer, count: int, length: int, seed: int, report: Callable[[int], None]
) -> NDArray[np.int64]:
    """Sequences of tokens, shape (count, length)."""
    control = sorted(tokenizer.control_ids)
    plain = np.setdiff1d(np.arange(tokenizer.vocab_size), control)
    sampler = Sampler(SamplingOptions(temperature=1.0, seed=seed))
    text = np.empty((count, length), np.int64)
    start = 0
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        text[:, 0] = tokenizer.bos_id
        start = 1
    text[:, start] = np.random.default_rng(seed).choice(plain, count)
    together = Lockstep(model, count, length)
    for at in range(length - 1):
        report(at)
        logits = together.step(text[:, at])
        if at >= start:
            logits[:, control] = -np.inf
            text[:, at + 1] = [sampler.sample(row) for row in logits]
    return text
