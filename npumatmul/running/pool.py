"""Contexts of a device that are kept for reuse, shared by all weights."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from npumatmul.chips import MemoryLimits
from npumatmul.device.budget import NO_ROOM, descriptors_within_reach
from npumatmul.device.context import DynamicMatmulContext, MatmulContext
from npumatmul.device.leases import Lease, is_idle
from npumatmul.device.living import Living
from npumatmul.device.session import Session
from npumatmul.device.spec import ContextSpec
from npumatmul.errors import LayoutMismatchError, NpuMemoryError, RknnError

__all__ = ["ContextPool", "PooledContext", "TileShape"]

logger = logging.getLogger(__name__)

#: Share of the process's contexts, or of its descriptors, that is kept for reuse; the rest is left to others in it.
_SHARE = 0.8
#: Most contexts that are kept where the process can have any number: each takes memory of the host as well. Twice what
#: real clients hold (facts 15).
_KEPT_MOST = 4096
_DYNAMIC_FUNCTIONS = (
    "rknn_matmul_create_dynamic_shape",
    "rknn_matmul_create_dyn_shape",
    "rknn_matmul_set_dynamic_shape",
)

#: A context of one shape, or of several: (spec, every M). M of the spec is the first of them.
_Key = tuple[ContextSpec, tuple[int, ...]]
PooledContext = MatmulContext | DynamicMatmulContext


@dataclass(frozen=True)
class TileShape:
    """What a tile needs: a context with this shape.

    Attributes
    ----------
    spec : ContextSpec
        With the M of the tile.
    buckets : tuple of int
        Every M that tiles with this K and N will have; the context is made for all of them where the runtime can.
    turn : int
        Tiles with different ones have contexts of their own, though they are alike.
    """

    spec: ContextSpec
    buckets: tuple[int, ...]
    turn: int = 0


class ContextPool:
    """Matmul contexts of one device: the least recently used give way when there are too many.

    A context is leased to one call at a time; another call that wants the same meanwhile gets a copy. All that use the
    pool hold the device's lock. Other pools in the process are asked to give up a context where the runtime makes no
    further one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._contexts: dict[_Key, list[PooledContext]] = {}
        #: A clock: each use is an instant of its own.
        self.uses = 0
        self._limit = _kept_most(session.chip.memory)
        runtime = session.runtime
        makes = runtime.has("rknn_matmul_create_dynamic_shape") or runtime.has("rknn_matmul_create_dyn_shape")
        self._dynamic = makes and runtime.has("rknn_matmul_set_dynamic_shape")
        #: What the runtime could not make with several shapes.
        self._static: set[_Key] = set()
        _pools.add(self)

    def __len__(self) -> int:
        if self._session.closed or self._session.inherited:
            return 0
        return sum(map(len, list(self._contexts.values())))  # other pools ask without this one's lock

    def for_tiles(self, tiles: Sequence[TileShape], lease: Lease) -> list[PooledContext]:
        """Contexts that have the shape of each tile, leased."""
        while True:
            try:
                return self._get([(self._key(tile), tile.turn) for tile in tiles], lease)
            except _NotDynamicError as failed:
                logger.warning("%s: %s; contexts of one shape each serve instead", failed.key[0], failed.__cause__)
                self._static.add(failed.key)

    def _lease(self, contexts: Iterable[PooledContext], lease: Lease) -> None:
        self.uses += 1
        for context in contexts:
            context.lease = lease.ref
            context.used = self.uses

    def _key(self, tile: TileShape) -> _Key:
        if self._dynamic and len(tile.buckets) > 1 and tile.spec.m in tile.buckets:
            key = (replace(tile.spec, m=tile.buckets[0]), tile.buckets)
            if key not in self._static:
                return key
        return tile.spec, ()

    def _get(self, wanted: Sequence[tuple[_Key, int]], lease: Lease) -> list[PooledContext]:
        self.discard_broken()
        found: dict[tuple[_Key, int], PooledContext | None] = {}
        for each in dict.fromkeys(wanted):
            found[each] = context = self._idle(each[0])
            if context is not None:  # what is leased now gives no way to what is made
                self._lease([context], lease)
        self._make_room(sum(context is None for context in found.values()))
        got: dict[tuple[_Key, int], PooledContext] = {}
        for each, context in found.items():
            got[each] = self._create(each[0]) if context is None else context
            self._lease([got[each]], lease)
        return [got[each] for each in wanted]

    def _idle(self, key: _Key) -> PooledContext | None:
        """One that is idle, the same one whenever several are."""
        return next((context for context in self._contexts.get(key, ()) if is_idle(context)), None)

    def _create(self, key: _Key) -> PooledContext:
        spec, buckets = key
        while True:
            try:
                context: PooledContext
                if buckets:
                    context = DynamicMatmulContext(self._session, spec, [(m, spec.k, spec.n) for m in buckets])
                else:
                    context = MatmulContext(self._session, spec)
                self._contexts.setdefault(key, []).append(context)
                return context
            except (RknnError, LayoutMismatchError, NpuMemoryError) as error:
                if buckets and _is_about_shapes(error) and self._works(spec):
                    raise _NotDynamicError(key) from error
                # Descriptors and memory are limited per process: give up our own contexts, the least recently used
                # first, then those of other devices in it, before giving up.
                limited = isinstance(error, NO_ROOM)
                if not (limited and (self.spare_one() or any(other.spare() for other in _others(self)))):
                    raise

    def _works(self, spec: ContextSpec) -> bool:
        """Whether a context of one shape can be made."""
        try:
            MatmulContext(self._session, spec).close()
        except (RknnError, LayoutMismatchError, NpuMemoryError):
            return False
        return True

    def _make_room(self, missing: int) -> None:
        """Destroy least recently used contexts, of the pool in the process that has most, until so many more fit."""
        if not missing:
            return
        for _ in range(sum(map(len, _pools)) + missing - self._limit):
            largest_first = sorted(_pools, key=len, reverse=True)
            if not any(pool.spare_one() if pool is self else pool.spare() for pool in largest_first):
                return

    def spare_one(self) -> bool:
        """Destroy the least recently used context that is idle, if there is one."""
        spares = self._spares()
        if spares:
            key, context = spares[0]
            logger.debug("destroying the least recently used context %s", key[0])
            self._destroy(key, context)
        return bool(spares)

    def _spares(self) -> list[tuple[_Key, PooledContext]]:
        """Those that are idle, the least recently used first."""
        every = ((key, context) for key, copies in self._contexts.items() for context in copies)
        return sorted((each for each in every if is_idle(each[1])), key=lambda each: each[1].used)

    def spare(self) -> bool:
        """Destroy a context for the sake of another device, unless this one is being changed just now."""
        session = self._session
        if session.inherited or not session.lock.acquire(blocking=False):
            return False
        try:
            return not session.closed and self.spare_one()
        finally:
            session.lock.release()

    def discard_broken(self) -> None:
        """Destroy the contexts that failed, when the call that they failed in is over."""
        for key, context in self._spares_broken():
            logger.warning("a run failed: %s is destroyed and made anew", key[0])
            self._destroy(key, context)

    def _spares_broken(self) -> list[tuple[_Key, PooledContext]]:
        every = ((key, context) for key, copies in self._contexts.items() for context in copies)
        return [each for each in every if each[1].broken and is_idle(each[1])]

    def _destroy(self, key: _Key, context: PooledContext) -> None:
        context.struct.broken = 1  # for whoever had it: it is not to be used again
        try:
            context.close()
        except RknnError as error:
            logger.warning("a context could not be destroyed: %s", error)
        copies = self._contexts.get(key, [])  # it stays there until it is closed, for an interrupt may come before
        if context in copies:
            copies.remove(context)
        if not copies:
            self._contexts.pop(key, None)

    def clear(self, domain: int | None = None) -> bool:
        """Destroy all that are idle, or those of an IOMMU domain; whether there was one."""
        going = [each for each in self._spares() if domain in (None, each[0][0].domain)]
        for key, context in going:
            self._destroy(key, context)
        return bool(going)


class _NotDynamicError(Exception):
    """The runtime makes a context of one shape, but not of several."""

    def __init__(self, key: _Key) -> None:
        self.key = key


def _kept_most(limits: MemoryLimits) -> int:
    """How many contexts are kept for reuse."""
    if limits.contexts is not None:
        return int(limits.contexts * _SHARE)
    descriptors = descriptors_within_reach()
    if descriptors is None:
        return _KEPT_MOST
    return max(1, min(_KEPT_MOST, int(descriptors * _SHARE) // limits.context_descriptors))


def _is_about_shapes(error: Exception) -> bool:
    if isinstance(error, NpuMemoryError):
        return False
    return not isinstance(error, RknnError) or error.function in _DYNAMIC_FUNCTIONS


#: The pools of all devices in the process, which share its contexts.
_pools: Living[ContextPool] = Living()


def _others(than: ContextPool) -> list[ContextPool]:
    return [pool for pool in _pools if pool is not than]
