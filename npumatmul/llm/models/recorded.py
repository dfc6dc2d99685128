"""Blocks of a decoder as recorded programs: one call of C instead of those of all their layers."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from npumatmul.device.budget import NO_ROOM
from npumatmul.nn.attention import MANY
from npumatmul.nn.block import TransformerBlock
from npumatmul.nn.cache import KVCache
from npumatmul.nn.cache_batch import CacheBatch
from npumatmul.nn.product import Float32
from npumatmul.nn.recordable import CHANGES, passed
from npumatmul.nn.rope import RoPE
from npumatmul.ops.matmul import logs_products
from npumatmul.ops.settings import settings
from npumatmul.running.recorded import RecordedBlock, RecordedProgram
from npumatmul.running.recording import recording

__all__ = ["RecordedBlocks"]

logger = logging.getLogger(__name__)

#: Numbers of rows that come again and again: tokens one by one, and drafts. Others are recorded when they come twice.
_USUAL = 8
#: So many blocks are run by one call where a prompt has no more than so many tokens; of longer ones each by itself, so
#: that others who use the model wait for one block at most.
_AT_ONCE, _SHORT = 3, 64
#: Programs of a model that are kept, and numbers of rows that are remembered.
_KEPT, _REMEMBERED = 8, 256

_Key = tuple[object, ...]


@dataclass(eq=False)
class _Recorded:
    """A program, and when it holds.

    Attributes
    ----------
    program : RecordedProgram
    blocks : list of TransformerBlock
        What it was recorded of.
    ropes : tuple of RoPE
        Whose angles it looks up.
    changes : int
        As of `CHANGES`, then.
    trusted : bool
        Whether it has given the same bits as Python, of other values than it was recorded with.
    """

    program: RecordedProgram
    blocks: list[TransformerBlock]
    ropes: tuple[RoPE, ...]
    changes: int
    trusted: bool = False

    def holds(self, blocks: Sequence[TransformerBlock]) -> bool:
        return self.changes == CHANGES.count and self.blocks == blocks and not self.program.closed


class RecordedBlocks:
    """Programs of a decoder's blocks, by number of rows; each is recorded while Python computes that many.

    A program serves from the second time on that it was found to give the bits that Python gives. Where one cannot be
    recorded, or does not give them, Python computes.
    """

    def __init__(self) -> None:
        self._programs: OrderedDict[_Key, _Recorded] = OrderedDict()
        self._seen: OrderedDict[_Key, None] = OrderedDict()
        #: Of which no program can be made, until something changes.
        self._refused: OrderedDict[_Key, int] = OrderedDict()

    def __reduce__(self) -> tuple[type[RecordedBlocks], tuple[()]]:
        """A copy of a model records its own."""
        return RecordedBlocks, ()

    def forget(self) -> None:
        """Give up all programs, and what is on a device for them alone."""
        self._programs = OrderedDict()  # at once, whoever is about to add one to the others

    def run(
        self,
        blocks: Sequence[TransformerBlock],
        x: Float32,
        cache: KVCache | CacheBatch,
        told: Callable[[int], object] | None,
    ) -> Float32:
        """What leaves the last block.

        Parameters
        ----------
        blocks : sequence of TransformerBlock
        x : ndarray of float32, shape (T, hidden)
        cache : KVCache or CacheBatch
            It grows by the tokens.
        told : callable, optional
            Called with the number of blocks that are done, every few blocks.

        Returns
        -------
        ndarray of float32, shape (T, hidden)
            A new array.
        """
        caches = cache.caches if isinstance(cache, CacheBatch) else (cache,)
        if x.dtype != np.float32 or logs_products() or not all(_is_plain(each, len(blocks)) for each in caches):
            return _by_python(blocks, x, cache, told)
        layouts = tuple([each.layout for each in caches])
        counts = cache.counts if isinstance(cache, CacheBatch) else None
        key = x.shape, counts, settings(), id(blocks), layouts, _on_npu(blocks, len(x), cache)
        found = self._programs.get(key)
        if found is not None and not found.holds(blocks):
            self._programs.pop(key, None)
            found = None
        if found is not None:
            made = self._run(key, found, blocks, x, cache, told)
            return _by_python(blocks, x, cache, told) if made is None else made
        if self._refused.get(key) == CHANGES.count or not self._is_worth_it(key, len(x)):
            return _by_python(blocks, x, cache, told)
        return self._record(key, blocks, x, cache, told)

    def _is_worth_it(self, key: _Key, rows: int) -> bool:
        """Whether so many rows are likely to come again."""
        if rows <= _USUAL or key in self._seen:
            return True
        self._seen[key] = None
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _record(
        self,
        key: _Key,
        blocks: Sequence[TransformerBlock],
        x: Float32,
        cache: KVCache | CacheBatch,
        told: Callable[[int], object] | None,
    ) -> Float32:
        """Compute by Python, and remember how."""
        changes = CHANGES.count
        recorded: list[RecordedBlock] = []
        why: str | None = None
        for layer, block in enumerate(blocks):
            if why is not None:
                x = block(x, cache=cache, layer=layer)
            else:
                with recording(x) as recorder:
                    y = _passed(block, x, cache, layer)
                made = RecordedBlock.of(recorder, y)
                if made is None:
                    why = f"block {layer}: {recorder.refused}"
                else:
                    recorded.append(made)
                x = y
            if told is not None:
                told(layer + 1)
        ropes = {id(rope): rope for block in blocks if (rope := getattr(block.self_attn, "rope", None)) is not None}
        if why is None:
            try:
                program = RecordedProgram(recorded, len(cache.counts) if isinstance(cache, CacheBatch) else 1)
            except ValueError as error:
                why = str(error)
        if why is not None:
            logger.debug("blocks are computed by Python: %s", why)
            self._refuse(key, changes)
            return x
        programs = self._programs
        programs[key] = _Recorded(program, list(blocks), tuple(ropes.values()), changes)
        CHANGES.holding.add(self)
        while len(programs) > _KEPT:
            programs.popitem(last=False)
        return x

    def _refuse(self, key: _Key, changes: int) -> None:
        self._refused[key] = changes
        while len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)

    def _run(
        self,
        key: _Key,
        found: _Recorded,
        blocks: Sequence[TransformerBlock],
        x: Float32,
        cache: KVCache | CacheBatch,
        told: Callable[[int], object] | None,
    ) -> Float32 | None:
        """By a program; None where Python has to compute: nothing has changed then."""
        program, rows = found.program, len(x)
        caches, counts = (cache.caches, cache.counts) if isinstance(cache, CacheBatch) else ((cache,), (rows,))
        for each, count in zip(caches, counts, strict=True):
            if each.limit is not None and each.offset + count > each.limit:
                return None  # which Python says
        for rope in found.ropes:
            for each, count in zip(caches, counts, strict=True):
                if not rope.reach(each.offset + each.shift, count):
                    return None
        trusted, before = found.trusted, [each.offset for each in caches]
        try:
            if rows <= _USUAL or not trusted:
                result = program.run_blocks(x, caches, counts, cache)
            else:
                result, step = x, _AT_ONCE if rows <= _SHORT else 1
                for first in range(0, program.blocks, step):
                    stop = min(first + step, program.blocks)
                    result = program.run_blocks(result, caches, counts, cache, first, stop)
                    if result is None:
                        break
                    if told is not None:
                        for done in range(first, stop):
                            told(done + 1)
        except NO_ROOM as error:
            logger.info("blocks are computed by Python: there is no room for all contexts at once: %s", error)
            self._programs.pop(key, None)
            self._refuse(key, CHANGES.count)
            _reset(caches, before)
            return None
        finally:
            if not trusted:
                _reset(caches, before)
        if result is None:
            return None
        if trusted:
            _reset(caches, [offset + count for offset, count in zip(before, counts, strict=True)])
            if told is not None and rows <= _USUAL:
                told(program.blocks)
            return result
        right = _by_python(blocks, x, cache, told)
        if right.tobytes() == result.tobytes():
            found.trusted = True
        else:
            logger.warning("a recorded program differs from what Python computes, which is used instead")
            self._programs.pop(key, None)
            self._refuse(key, CHANGES.count)
        return right


def _is_plain(cache: KVCache, layers: int) -> bool:
    """Whether it has so many layers, and stores as all caches do: a derived class may do anything besides."""
    kind, plain = type(cache), KVCache
    is_own = kind.update is plain.update and kind.attend is plain.attend and kind._stored is plain._stored
    return is_own and len(cache.structs) == layers


def _on_npu(blocks: Sequence[TransformerBlock], rows: int, cache: KVCache | CacheBatch) -> tuple[bool, ...]:
    """In which blocks an NPU would multiply queries and keys: a program holds while that is the same."""
    if rows < MANY or isinstance(cache, CacheBatch):
        return ()
    attending = [each.self_attn for each in blocks if each.self_attn is not None]
    return tuple([each.npu_for(1, rows, cache) is not None for each in attending])


def _passed(block: TransformerBlock, x: Float32, cache: KVCache | CacheBatch, layer: int) -> Float32:
    """What leaves a block, while a recorder listens."""
    y: Float32 = passed(block, x, lambda x, kept: block(x, cache=kept, layer=layer), cache)
    return y


def _reset(caches: Sequence[KVCache], offsets: Sequence[int]) -> None:
    """Have caches hold so many tokens: calls of Python that a program makes may have counted them, or some."""
    for each, offset in zip(caches, offsets, strict=True):
        each.offset = offset


def _by_python(
    blocks: Sequence[TransformerBlock], x: Float32, cache: KVCache | CacheBatch, told: Callable[[int], object] | None
) -> Float32:
    for layer, block in enumerate(blocks):
        x = block(x, cache=cache, layer=layer)
        if told is not None:
            told(layer + 1)
    return x
