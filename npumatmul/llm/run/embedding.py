"""From texts to embeddings and scores: tokens, batches of like length, pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from npumatmul.errors import ModelError
from npumatmul.llm.arguments import check_flags, check_progress
from npumatmul.llm.counts import count_from_one
from npumatmul.llm.models.sentence import SentenceConfig
from npumatmul.llm.tokenizers.protocol import Tokenizer
from npumatmul.nn.pooling import POOLINGS
from npumatmul.nn.product import Float32

__all__ = ["BATCH_SIZE", "Progress", "batches", "checked_texts", "embedded", "fitted", "normalized", "prepared"]

BATCH_SIZE = 32
#: Tokens of a batch at most, with those that fill shorter texts up, unless one text has more: what is between the
#: matrices of a network has some thousand values for each.
MOST_TOKENS = 4096

Progress = Callable[[int, int], object]
"""Called with how many texts are done, and how many there are."""


def checked_texts(texts: object, called: str) -> list[str]:
    """What has to be a list of texts, as one.

    Raises
    ------
    TypeError
        If it is something else.
    """
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Sequence):
        hint = ": write [text]" if isinstance(texts, str) else ""
        raise TypeError(f"{called}: texts are a list of str, not {type(texts).__name__}{hint}")
    for i, each in enumerate(texts):
        if not isinstance(each, str):
            raise TypeError(f"{called}: text {i} is {type(each).__name__}; texts are str")
    return list(texts)


def prepared(
    texts: object,
    config: SentenceConfig,
    *,
    prompt: str | None,
    pooling: str | None,
    batch_size: int,
    normalize: bool | None,
    progress: Progress | None,
    name: str,
) -> tuple[list[str], str]:
    """Check arguments of an embedding; texts with what precedes them, and how they are pooled.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be used.
    npumatmul.errors.ModelError
        If neither the model nor `pooling` says how to pool.
    """
    given = checked_texts(texts, "embed")
    count_from_one(batch_size, "batch_size", "embed")
    check_flags("embed", normalize=config.normalize if normalize is None else normalize)
    check_progress("embed", progress)
    chosen = config.pooling if pooling is None else pooling
    if chosen is None:
        raise ModelError(
            f"the model {name} does not say how the states of a text become its embedding (modules.json of "
            f"sentence-transformers does): choose with pooling={' or '.join(map(repr, POOLINGS))}, on the command "
            "line --pooling"
        )
    if chosen not in POOLINGS:
        raise ValueError(f"embed: no pooling is called {chosen!r}; there are {', '.join(map(repr, POOLINGS))}")
    key = config.default_prompt if prompt is None else prompt
    if key is not None and key not in config.prompts:
        known = ", ".join(map(repr, config.prompts)) or "none"
        raise ValueError(f"embed: the model has no prompt {key!r}; it has {known}")
    before = "" if key is None else config.prompts[key]
    made = [before + each for each in given]
    return [each.lower() for each in made] if config.lower_case else made, chosen


def fitted(tokenizer: Tokenizer, text: str, longest: int) -> list[int]:
    """Tokens of a text with those at its ends; of a text that is too long the end is left out.

    Raises
    ------
    ValueError
        If it has none, or is no text.
    """
    ids = tokenizer.encode(text)
    if len(ids) > longest:
        bare = tokenizer.encode(text, add_special=False)
        more = len(ids) - len(bare)
        first = next((i for i in range(more + 1) if ids[i : i + len(bare)] == bare), 0)
        kept = max(longest - more, 0)
        ids = [*ids[:first], *bare[:kept], *ids[first + len(bare) :]][:longest]
    if not ids:
        raise ValueError("embed: an empty text has no tokens, and this model adds none")
    return ids


def batches(lengths: Sequence[int], batch_size: int, most: int | None = None) -> Iterator[list[int]]:
    """Numbers of texts that are computed together: those of like length, the longest first."""
    most = MOST_TOKENS if most is None else most
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        count = max(1, min(batch_size, most // lengths[order[start]]))
        yield order[start : start + count]
        start += count


def embedded(
    tokens: Sequence[list[int]],
    compute: Callable[[list[list[int]]], Float32],
    width: int,
    batch_size: int,
    turn: Callable[[], AbstractContextManager[object]],
    progress: Progress | None = None,
) -> Float32:
    """Rows of texts in their order, batch by batch, each in a turn of its own."""
    made = np.empty((len(tokens), width), np.float32)
    done = 0
    for batch in batches([len(each) for each in tokens], batch_size):
        with turn():
            made[batch] = compute([tokens[i] for i in batch])
        done += len(batch)
        if progress is not None:
            progress(done, len(tokens))
    return made


def normalized(rows: Float32) -> NDArray[np.float32]:
    """Rows divided by their lengths, in place; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows /= np.maximum(lengths, np.float32(1e-12))
    return rows
