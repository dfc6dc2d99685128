"""Several sequences through a model at once, each of a length of its own: every weight is read once for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from npumatmul.llm.models.cache import ContextFullError, KVCache
from npumatmul.llm.models.decoder import Decoder
from npumatmul.nn.cache_batch import CacheBatch
from npumatmul.nn.product import Float32

__all__ = ["forward_together", "is_long"]


def is_long(model: Decoder, cache: KVCache, count: int) -> bool | None:
    """How a sequence with `count` more tokens is rotated, where a model has two ways; None where that would change."""
    before = model.config.longest_short
    wanted = before is not None and cache.length + count > before
    return wanted if cache.is_long == wanted else None


def forward_together(
    model: Decoder, tokens: Sequence[Sequence[int]], caches: Sequence[KVCache], rows: Sequence[int]
) -> list[Float32]:
    """Run tokens of several sequences through a model, each after those that are in its cache.

    Parameters
    ----------
    model : Decoder
    tokens : sequence of sequences of int
        New tokens of each sequence, at least one.
    caches : sequence of KVCache
        Of each; all rotate alike (`is_long`). They grow when all is computed.
    rows : sequence of int
        After how many of its last tokens logits of a sequence are wanted.

    Returns
    -------
    list of ndarray of float32, shape (rows, vocab)
        Logits. Those of schemes whose sums are exact (integers) are bit for bit those of each sequence alone; floats
        may be summed in another order where a product has more rows.

    Raises
    ------
    ContextFullError
        If a cache has no room; nothing has been computed then.
    """
    for cache, new in zip(caches, tokens, strict=True):
        cache.settle()
        if cache.length + len(new) > cache.capacity:
            raise ContextFullError(
                f"{len(new)} more tokens do not fit: the cache holds {cache.length} of at most {cache.capacity}"
            )
    counts = [len(each) for each in tokens]
    ids = np.concatenate([np.asarray(each, np.int64) for each in tokens])
    x = model.embed(ids)
    total = max(cache.length + count for cache, count in zip(caches, counts, strict=True))
    beside = model.layer_inputs(ids, x)
    logits = model.run_to_logits(x, CacheBatch(caches, counts), total, _ranges(counts, rows), beside=beside)
    for cache, new in zip(caches, tokens, strict=True):
        cache.extend(list(new))
    return np.split(logits, np.cumsum(rows)[:-1])


def _ranges(counts: Sequence[int], rows: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Where the last rows of each sequence stand among those of all; ranges that follow each other are one."""
    found: list[tuple[int, int]] = []
    end = 0
    for count, wanted in zip(counts, rows, strict=True):
        end += count
        first = end - wanted
        if found and found[-1][1] == first:
            first = found.pop()[0]
        found.append((first, end))
    return tuple(found)
