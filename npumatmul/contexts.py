"""Contexts and buffers of a device that are kept for reuse, shared by all weights."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace

from npumatmul.context import DynamicMatmulContext, MatmulContext
from npumatmul.errors import LayoutMismatchError, RknnError, RknnFail, RknnMallocFail
from npumatmul.memory import PAGE
from npumatmul.session import Memory, Session
from npumatmul.spec import ContextSpec

__all__ = ["ContextPool", "TileShape", "Workspace"]

logger = logging.getLogger(__name__)

#: Share of the process's contexts that is kept for reuse; the rest is left to others in the process.
_SHARE = 0.8
_DYNAMIC_FUNCTIONS = (
    "rknn_matmul_create_dynamic_shape",
    "rknn_matmul_create_dyn_shape",
    "rknn_matmul_set_dynamic_shape",
)

#: A context of one shape, or of several: (spec, every M). M of the spec is the first of them.
_Key = tuple[ContextSpec, tuple[int, ...]]
_Pooled = MatmulContext | DynamicMatmulContext


@dataclass(frozen=True)
class TileShape:
    """What a tile needs: a context with this shape.

    Attributes
    ----------
    spec : ContextSpec
        With the M of the tile.
    buckets : tuple of int
        Every M that tiles with this K and N will have; the context is made for all of them where the runtime can.
    """

    spec: ContextSpec
    buckets: tuple[int, ...]


class ContextPool:
    """Matmul contexts of one device: the least recently used give way when there are too many.

    All that use it hold the device's lock. Other pools in the process are asked to give up a context where the runtime
    makes no further one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._contexts: dict[_Key, _Pooled] = {}
        self._uses = 0  # a clock: each use is an instant of its own
        self._limit = int(session.chip.memory.contexts * _SHARE)
        runtime = session.runtime
        makes = runtime.has("rknn_matmul_create_dynamic_shape") or runtime.has("rknn_matmul_create_dyn_shape")
        self._dynamic = makes and runtime.has("rknn_matmul_set_dynamic_shape")
        #: What the runtime could not make with several shapes.
        self._static: set[_Key] = set()
        _pools.add(self)

    def __len__(self) -> int:
        return len(self._contexts)

    def static(self, specs: Sequence[ContextSpec]) -> list[MatmulContext]:
        """Contexts of one shape each."""
        found = self._get([(spec, ()) for spec in specs])
        assert all(isinstance(context, MatmulContext) for context in found)
        return found  # type: ignore[return-value]

    def for_tiles(self, tiles: Sequence[TileShape]) -> list[_Pooled]:
        """Contexts that have the shape of each tile."""
        while True:
            try:
                return self._get([self._key(tile) for tile in tiles])
            except _NotDynamicError as failed:
                logger.warning("%s: %s; contexts of one shape each serve instead", failed.key[0], failed.__cause__)
                self._static.add(failed.key)

    def touch(self, contexts: Sequence[_Pooled]) -> None:
        """Say that these are used now."""
        self._uses += 1
        for context in contexts:
            context.used = self._uses

    def _key(self, tile: TileShape) -> _Key:
        if self._dynamic and len(tile.buckets) > 1 and tile.spec.m in tile.buckets:
            key = (replace(tile.spec, m=tile.buckets[0]), tile.buckets)
            if key not in self._static:
                return key
        return tile.spec, ()

    def _get(self, keys: Sequence[_Key]) -> list[_Pooled]:
        self.discard_broken()
        wanted = set(keys)
        self._make_room(wanted)
        return [self._context(key, wanted) for key in keys]

    def _context(self, key: _Key, wanted: set[_Key]) -> _Pooled:
        context = self._contexts.get(key)
        if context is None:
            context = self._contexts[key] = self._create(key, wanted)
        self.touch([context])
        return context

    def _create(self, key: _Key, wanted: set[_Key]) -> _Pooled:
        spec, buckets = key
        while True:
            try:
                if not buckets:
                    return MatmulContext(self._session, spec)
                return DynamicMatmulContext(self._session, spec, [(m, spec.k, spec.n) for m in buckets])
            except (RknnError, LayoutMismatchError) as error:
                if buckets and _is_about_shapes(error) and self._works(spec):
                    raise _NotDynamicError(key) from error
                # Contexts are limited per process: give up our own, the least recently used first, then those of
                # other devices in it, before giving up.
                limited = isinstance(error, (RknnFail, RknnMallocFail))
                if not (limited and (self.spare_one(wanted) or any(other.spare() for other in _others(self)))):
                    raise

    def _works(self, spec: ContextSpec) -> bool:
        """Whether a context of one shape can be made."""
        try:
            MatmulContext(self._session, spec).close()
        except (RknnError, LayoutMismatchError):
            return False
        return True

    def _make_room(self, wanted: set[_Key]) -> None:
        """Destroy the least recently used contexts until the wanted ones fit."""
        missing = sum(key not in self._contexts for key in wanted)
        for key in self._spares(wanted):
            if len(self._contexts) + missing <= self._limit:
                return
            logger.debug("destroying the least recently used context %s", key[0])
            self._destroy(key)

    def spare_one(self, wanted: set[_Key] | None = None) -> bool:
        """Destroy the least recently used context that is not wanted, if there is one."""
        spares = self._spares(wanted or set())
        if spares:
            logger.info("no further context can be created; destroying %s", spares[0][0])
            self._destroy(spares[0])
        return bool(spares)

    def _spares(self, wanted: set[_Key]) -> list[_Key]:
        """Those that are not wanted, the least recently used first."""
        spares = [key for key in self._contexts if key not in wanted]
        return sorted(spares, key=lambda key: self._contexts[key].used)

    def spare(self) -> bool:
        """Destroy a context for the sake of another device, unless this one is at work just now."""
        session = self._session
        if session.inherited or not session.lock.acquire(blocking=False):
            return False
        try:
            return not session.closed and self.spare_one()
        finally:
            session.lock.release()

    def discard_broken(self) -> list[ContextSpec]:
        """Destroy the contexts that failed; they are made anew when they are asked for again."""
        broken = [key for key, context in self._contexts.items() if context.broken]
        for key in broken:
            logger.warning("a run failed: %s is destroyed and made anew", key[0])
            self._destroy(key)
        return [spec for spec, _ in broken]

    def _destroy(self, key: _Key) -> None:
        try:
            self._contexts.pop(key).close()
        except RknnError as error:
            logger.warning("a context could not be destroyed: %s", error)

    def clear(self) -> None:
        """Destroy them all."""
        for key in list(self._contexts):
            self._destroy(key)


class Workspace:
    """Buffers of A and C, one set per size, each four times the one before.

    They are synchronised as a whole, so one token must not pay for what a prompt needed; but each holds a descriptor.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._memories: dict[tuple[str, int, int], Memory] = {}

    def __len__(self) -> int:
        return len(self._memories)

    def take(self, role: str, count: int, nbytes: int) -> list[Memory]:
        """The first `count` buffers of a role that have room for `nbytes`."""
        size = PAGE
        while size < nbytes:
            size *= 4
        found = []
        for index in range(count):
            key = (role, index, size)
            memory = self._memories.get(key)
            if memory is None or memory.closed:
                memory = self._memories[key] = self._session.allocate(size)
            found.append(memory)
        return found

    def clear(self) -> None:
        """Give them all back."""
        while self._memories:
            self._session.release(self._memories.popitem()[1])


class _NotDynamicError(Exception):
    """The runtime makes a context of one shape, but not of several."""

    def __init__(self, key: _Key) -> None:
        self.key = key


def _is_about_shapes(error: Exception) -> bool:
    return not isinstance(error, RknnError) or error.function in _DYNAMIC_FUNCTIONS


#: The pools of all devices in the process, which share its contexts.
_pools: weakref.WeakSet[ContextPool] = weakref.WeakSet()


def _others(than: ContextPool) -> list[ContextPool]:
    return [pool for pool in list(_pools) if pool is not than]
