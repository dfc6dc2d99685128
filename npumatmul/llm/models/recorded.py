"""Blocks of a decoder as recorded programs: one call of C instead of those of all their layers."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from npumatmul.device.budget import NO_ROOM
from npumatmul.host.layers import RECORDER
from npumatmul.nn.attention import MANY, Attention
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

__all__ = ["Ending", "RecordedBlocks"]

logger = logging.getLogger(__name__)

#: Numbers of rows that come again and again: tokens one by one, and drafts. Others are recorded when they come twice.
_USUAL = 8
#: So many blocks are run by one call where a prompt has no more than so many tokens; of longer ones each by itself, so
#: that others who use the model wait for one block at most.
_AT_ONCE, _SHORT = 3, 64
#: Programs of a model that are kept, and numbers of rows that are remembered.
_KEPT, _REMEMBERED = 8, 256

_Key = tuple[object, ...]


@dataclass(frozen=True)
class Ending:
    """What is made of the states that leave the last block.

    Attributes
    ----------
    norm, head : Module
        From states to logits.
    rows : tuple of (int, int)
        Which tokens: the first, and the one behind the last, of each text.
    """

    norm: Any
    head: Any
    rows: tuple[tuple[int, int], ...]

    def wanted(self, x: Float32) -> Float32:
        """Of the states of all tokens those of the ones that are asked for."""
        if len(self.rows) == 1:
            ((start, stop),) = self.rows
            return x[start:stop]
        return np.concatenate([x[start:stop] for start, stop in self.rows])

    def of(self, x: Float32) -> Float32:
        """Logits of the tokens, of the states of all."""
        x = self.wanted(x)
        x = passed(self.norm, x, lambda x, _: self.norm(x))
        y: Float32 = passed(self.head, x, lambda x, _: self.head(x))
        return y


@dataclass(frozen=True)
class _Work:
    """What `RecordedBlocks.run` is given."""

    blocks: Sequence[TransformerBlock]
    x: Float32
    cache: KVCache | CacheBatch
    told: Callable[[int], object] | None = None
    beside: Float32 | None = None
    ending: Ending | None = None

    def beside_of(self, layer: int) -> Float32 | None:
        return None if self.beside is None else self.beside[layer]

    def passed(self, layer: int, x: Float32) -> Float32:
        """What leaves a block."""
        own = self.beside_of(layer)
        how = {} if own is None else {"beside": own}
        y: Float32 = self.blocks[layer](x, cache=self.cache, layer=layer, **how)
        return y

    def states_by_python(self) -> Float32:
        """What leaves the last block."""
        x = self.x
        for layer in range(len(self.blocks)):
            x = self.passed(layer, x)
            if self.told is not None:
                self.told(layer + 1)
        return x

    def by_python(self) -> Float32:
        """All of it."""
        return self.ended(self.states_by_python())

    def ended(self, states: Float32) -> Float32:
        """What is made of what leaves the last block."""
        return states if self.ending is None else self.ending.of(states)


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
    ends : bool
        Whether it makes logits.
    ending : Ending or None
        Then, by what.
    trusted : bool
        Whether it has given the same bits as Python, of other values than it was recorded with.
    """

    program: RecordedProgram
    blocks: list[TransformerBlock]
    ropes: tuple[RoPE, ...]
    changes: int
    ends: bool
    ending: Ending | None
    trusted: bool = False

    def holds(self, blocks: Sequence[TransformerBlock], ending: Ending | None) -> bool:
        is_same = self.changes == CHANGES.count and self.blocks == blocks and not self.program.closed
        if not is_same or not self.ends:
            return is_same
        mine = self.ending
        assert mine is not None
        assert ending is not None
        return mine.norm is ending.norm and mine.head is ending.head  # copies of a model share what they have recorded


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
        #: As of which blocks and changes layers of attention were looked at; one of each kind that may move to an NPU.
        self._choosing: tuple[int, int, tuple[Attention, ...]] = (0, -1, ())

    def __reduce__(self) -> tuple[type[RecordedBlocks], tuple[()]]:
        """A copy of a model records its own."""
        return RecordedBlocks, ()

    def _on_npu(self, blocks: Sequence[TransformerBlock], rows: int, cache: KVCache | CacheBatch) -> tuple[bool, ...]:
        """For which kinds of attention an NPU would multiply; a program holds while that is the same."""
        if rows < MANY or isinstance(cache, CacheBatch):
            return ()
        now = id(blocks), CHANGES.count
        if self._choosing[:2] != now:
            kinds: dict[object, Attention] = {}
            for each in blocks:
                if each.self_attn is not None and (kind := each.self_attn.choosing) is not None:
                    kinds.setdefault(kind, each.self_attn)
            self._choosing = (*now, tuple(kinds.values()))
        return tuple([each.npu_for(1, rows, cache) is not None for each in self._choosing[2]])

    def forget(self) -> None:
        """Give up all programs, and what is on a device for them alone."""
        self._programs = OrderedDict()  # at once, whoever is about to add one to the others

    def run(
        self,
        blocks: Sequence[TransformerBlock],
        x: Float32,
        cache: KVCache | CacheBatch,
        told: Callable[[int], object] | None = None,
        beside: Float32 | None = None,
        ending: Ending | None = None,
    ) -> Float32:
        """What leaves the last block, or what comes of that.

        Parameters
        ----------
        blocks : sequence of TransformerBlock
        x : ndarray of float32, shape (T, hidden)
        cache : KVCache or CacheBatch
            It grows by the tokens.
        told : callable, optional
            Called with the number of blocks that are done, every few blocks.
        beside : ndarray of float32, shape (blocks, T, n), optional
            What each block is given besides.
        ending : Ending, optional
            What is made of the states of some tokens.

        Returns
        -------
        ndarray of float32, shape (T, hidden)
            A new array; with an ending what that makes.
        """
        work = _Work(blocks, x, cache, told, beside, ending)
        caches = cache.caches if isinstance(cache, CacheBatch) else (cache,)
        if x.dtype != np.float32 or logs_products() or not all(_is_plain(each, len(blocks)) for each in caches):
            return work.by_python()
        layouts = tuple([each.layout for each in caches])
        counts = cache.counts if isinstance(cache, CacheBatch) else None
        besides = None if beside is None else (beside.shape, beside.dtype)
        how = x.shape, counts, settings(), id(blocks), layouts, besides, self._on_npu(blocks, len(x), cache)
        key = *how, None if ending is None or len(x) > _USUAL else ending.rows
        if key[-1] is not None and self._refused.get(key) == CHANGES.count:
            key = *how, None  # there may be no room for the contexts of the output matrix, say
        found = self._programs.get(key)
        if found is not None and not found.holds(blocks, ending):
            self._programs.pop(key, None)
            found = None
        if found is not None:
            made = self._run(key, found, work)
            return work.by_python() if made is None else made
        if self._refused.get(key) == CHANGES.count or not self._is_worth_it(key, len(x)):
            return work.by_python()
        return self._record(key, work)

    def _is_worth_it(self, key: _Key, rows: int) -> bool:
        """Whether so many rows are likely to come again."""
        if rows <= _USUAL or key in self._seen:
            return True
        self._seen[key] = None
        while len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return False

    def _record(self, key: _Key, work: _Work) -> Float32:
        """Compute by Python, and remember how."""
        changes, blocks, x, ending = CHANGES.count, work.blocks, work.x, work.ending
        recorded: list[RecordedBlock] = []
        why: str | None = None
        for layer, block in enumerate(blocks):
            if why is not None:
                x = work.passed(layer, x)
            else:
                with recording(x, work.beside_of(layer)) as recorder:
                    y = _passed(block, x, work, layer)
                made = RecordedBlock.of(recorder, y)
                if made is None:
                    why = f"block {layer}: {recorder.refused}"
                else:
                    recorded.append(made)
                x = y
            if work.told is not None:
                work.told(layer + 1)
        ends = False
        if ending is not None and (why is not None or key[-1] is None):
            x = ending.of(x)
        elif ending is not None:
            with recording(x) as recorder:
                y = ending.of(x)
            made = RecordedBlock.of(recorder, y)
            ends = made is not None and made.can_end
            if made is not None and ends:
                recorded.append(made)
            else:
                logger.debug("logits are computed by Python: %s", recorder.refused or "a product needs more")
            x = y
        ropes = {id(rope): rope for block in blocks if (rope := getattr(block.self_attn, "rope", None)) is not None}
        if why is None:
            try:
                texts = len(work.cache.counts) if isinstance(work.cache, CacheBatch) else 1
                program = RecordedProgram(recorded, texts, apart=ends)
            except ValueError as error:
                why = str(error)
        if why is not None:
            logger.debug("blocks are computed by Python: %s", why)
            self._refuse(key, changes)
            return x
        programs = self._programs
        programs[key] = _Recorded(program, list(blocks), tuple(ropes.values()), changes, ends, ending if ends else None)
        CHANGES.holding.add(self)
        while len(programs) > _KEPT:
            programs.popitem(last=False)
        return x

    def _refuse(self, key: _Key, changes: int) -> None:
        self._refused[key] = changes
        while len(self._refused) > _REMEMBERED:
            self._refused.popitem(last=False)

    def _run(self, key: _Key, found: _Recorded, work: _Work) -> Float32 | None:
        """By a program; None where Python has to compute: nothing has changed then."""
        program, x, cache, told, beside = found.program, work.x, work.cache, work.told, work.beside
        rows, blocks = len(x), len(work.blocks)
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
                result = program.run_blocks(x, caches, counts, cache, beside=beside)
            else:
                result, step = x, _AT_ONCE if rows <= _SHORT else 1
                for first in range(0, blocks, step):
                    stop = min(first + step, blocks)
                    result = program.run_blocks(result, caches, counts, cache, first, stop, beside)
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
                told(blocks)
            return result if found.ends else work.ended(result)
        states = work.states_by_python()
        right = work.ended(states)
        if (right if found.ends else states).tobytes() == result.tobytes():
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


def _passed(block: TransformerBlock, x: Float32, work: _Work, layer: int) -> Float32:
    """What leaves a block, while a recorder listens."""
    how: dict[str, Any] = {} if work.beside is None else {"beside": work.beside[layer]}
    if how and not block.recordable:  # whoever calls it again has nothing else to give it
        RECORDER.get().refuse("what a block is given beside its rows is of one run")
    y: Float32 = passed(block, x, lambda x, kept: block(x, cache=kept, layer=layer, **how), work.cache)
    return y


def _reset(caches: Sequence[KVCache], offsets: Sequence[int]) -> None:
    """Have caches hold so many tokens: calls of Python that a program makes may have counted them, or some."""
    for each, offset in zip(caches, offsets, strict=True):
        each.offset = offset
        if each.followed:
            each.stored(None)
